"""What the controller does with results: table, walk, review, surfaces, export and correction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller_help import House, Node, brain
from medsegai.errors import (
    Cancelled,
    InputError,
    OutputError,
    OutputExistsError,
    WorkerError,
)
from medsegai.models.card import Channel
from medsegai.worker.requests import ExportResult
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.panel_values import ExportChoice, StructureRow
from MedSegAILib.uncertain_regions import UNCERTAINTY, UncertainRegion

ROW = StructureRow("001_Left", "Left hippocampus", (1, 2, 3), 4.0, "check", "", "flagged")
GOOD = StructureRow("002_Stem", "Brain stem", (1, 2, 3), 4.0, "good", "", "notstarted")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "models"))
    return House(tmp_path)


@pytest.fixture
def shown(house: House) -> House:
    """With a segmentation in the table."""
    house.scene.rows = [ROW]
    house.controller.results.show(Node("Result"))
    return house


def test_a_chosen_segmentation_fills_the_table(house: House) -> None:
    house.scene.rows = [ROW]
    house.panel.results.segmentation_chosen.emit(Node("Result"))
    assert house.panel.results.last("show") == ([ROW], (UNCERTAINTY,))
    house.panel.results.segmentation_chosen.emit(None)
    assert house.panel.results.last("show") == ((), ())


def test_coming_back_to_the_page_reads_edited_segments_again(shown: House) -> None:
    edited = replace(ROW, volume_ml=5.0)
    shown.scene.rows = [edited]
    shown.controller.enter()
    assert shown.panel.results.last("show") == ([edited], (UNCERTAINTY,))


def test_a_click_goes_to_the_structure(shown: House) -> None:
    shown.panel.results.structure_chosen.emit("001_Left")
    assert shown.scene.done == [("jump", (1.0, 2.0, 3.0))]
    shown.panel.results.structure_chosen.emit("empty")
    assert shown.panel.message == "This segment is empty."


PLACES = [
    UncertainRegion("001_Left", "Left hippocampus", (1.0, 0.0, 0.0), 0.6),
    UncertainRegion("", "", (2.0, 0.0, 0.0), 0.5),
]


def test_next_walks_the_uncertain_regions_in_turn(shown: House) -> None:
    shown.scene.places = PLACES
    for _ in range(3):
        shown.panel.results.next_requested.emit()
    jumps = [values[1] for values in shown.scene.done if values[0] == "jump"]
    assert jumps == [(1.0, 0.0, 0.0), (2.0, 0.0, 0.0), (1.0, 0.0, 0.0)]
    assert shown.panel.message == "Uncertain region 1 of 2: Left hippocampus."
    assert shown.panel.results.last("select") == ("001_Left",)


def test_coming_back_neither_restarts_the_walk_nor_loses_the_row(shown: House) -> None:
    shown.scene.places = PLACES
    shown.panel.results.next_requested.emit()
    shown.controller.enter()
    assert shown.panel.results.told[-1] == ("select", "001_Left"), "after the table was filled"
    shown.panel.results.next_requested.emit()
    assert shown.panel.message.startswith("Uncertain region 2 of 2")


def test_a_scene_that_is_opened_shows_its_one_result_and_takes_nothing_away(house: House) -> None:
    house.controller.scene_opened()
    assert house.controller.results.node is None
    house.scene.rows, house.scene.only = [ROW], Node("Result")
    house.controller.scene_opened()
    assert house.controller.results.node is house.scene.only
    assert house.panel.results.last("choose") == (house.scene.only,)
    shown, house.scene.only = house.scene.only, Node("Other")
    house.controller.scene_opened()
    assert house.controller.results.node is shown


def test_a_scene_that_was_saved_with_a_preview_says_what_became_of_it(house: House) -> None:
    house.scene.saved_previews = [("Head preview", "Head segmentation")]
    house.controller.scene_opened()
    assert "Head segmentation is as it was before, and Head preview became" in house.panel.message


def test_what_is_chosen_in_the_table_is_drawn(shown: House) -> None:
    """And once: a segmentation whose eye the user closes stays so when the page is left and entered."""
    node, other = shown.controller.results.node, Node("Older result")
    shown.panel.results.segmentation_chosen.emit(other)
    shown.controller.enter()
    assert shown.scene.drawn == [node, other]


def test_coming_back_the_map_of_uncertainty_is_still_shown_as_such(shown: House) -> None:
    shown.scene.overlaid = UNCERTAINTY
    shown.controller.enter()
    assert shown.panel.results.last("show_overlay") == (UNCERTAINTY, 0.6)


def test_a_row_that_was_clicked_is_still_chosen_after_coming_back(shown: House) -> None:
    shown.panel.results.structure_chosen.emit("016_Stem")
    shown.controller.enter()
    assert shown.panel.results.told[-1] == ("select", "016_Stem")


def test_the_walk_can_be_held_to_one_structure(shown: House) -> None:
    shown.panel.results.places_within.emit("001_Left")
    assert shown.scene.within == "001_Left"
    shown.controller.enter()
    assert shown.panel.results.last("show_places_within") == ("001_Left",)


def test_without_an_uncertain_region_that_is_said(shown: House) -> None:
    shown.panel.results.next_requested.emit()
    assert shown.panel.message == "There is no uncertain region to go to."


def verdict(house: House) -> tuple[str, str]:
    (shown,) = house.panel.results.last("show_verdict")
    return shown.line, shown.tone


def test_the_review_is_kept_and_shown(shown: House) -> None:
    node = shown.controller.results._node
    assert verdict(shown) == ("1 structure, 1 to check", "doubt")
    shown.panel.results.review_chosen.emit(("001_Left",), "completed")
    assert shown.scene.done == [("set_review_state", node, "001_Left", "completed")]
    assert shown.panel.results.last("update") == ((replace(ROW, review="completed"),),)
    assert verdict(shown) == ("1 structure, all completed", "")


def test_32_structures_of_which_5_are_to_be_checked_are_reviewed_in_6_clicks(house: House) -> None:
    rows = [replace(GOOD, segment_id=str(number)) for number in range(27)]
    rows += [replace(ROW, segment_id=f"check {number}") for number in range(5)]
    house.scene.rows = rows
    results, clicks = house.panel.results, 0
    house.controller.results.show(Node("Result"))
    assert verdict(house) == ("32 structures, 5 to check", "doubt")
    results.answers["next_to_check"] = "check 0"
    results.good_completed.emit()
    clicks += 1
    for number in range(5):
        (selected,) = results.last("select")
        assert selected == f"check {number}"
        assert house.scene.done[-1][0] == "jump", "what is to be looked at is in the views"
        results.answers["next_to_check"] = f"check {number + 1}" if number < 4 else ""
        results.done_requested.emit((selected,))
        clicks += 1
    assert clicks == 6
    assert verdict(house) == ("32 structures, all completed", "")
    done = {item[2] for item in house.scene.done if item[0] == "set_review_state"}
    assert len(done) == 32


def test_segments_are_hidden_and_shown_alone(house: House) -> None:
    house.scene.rows = [ROW, GOOD]
    node = Node("Result")
    house.controller.results.show(node)
    house.panel.results.shown_chosen.emit(("001_Left", "002_Stem"), False)
    assert house.scene.done == [("show_segments", node, ("001_Left", "002_Stem"), False)]
    assert [row.shown for row in house.panel.results.last("update")[0]] == [False, False]
    house.panel.results.only_chosen.emit(("002_Stem",))
    assert house.scene.done[1:] == [("show_only", node, ("002_Stem",))]
    assert [row.shown for row in house.panel.results.last("update")[0]] == [False, True]
    house.panel.results.in_3d_chosen.emit(("001_Left",), True)
    house.panel.results.smoothing_chosen.emit(0.8)
    assert house.scene.done[2:] == [
        ("show_in_3d", node, ("001_Left",), True),
        ("smooth_surfaces", node, 0.8),
    ]


def test_eyes_follow_what_another_module_shows(house: House) -> None:
    house.scene.rows = [ROW, GOOD]
    node, other = Node("Result"), Node("Other")
    house.controller.results.show(node)
    ((watched, changed),) = house.scene.watched
    assert watched is node
    house.scene.drawn_segments = {ROW.segment_id: True, GOOD.segment_id: False, "drawn since": True}
    changed()
    assert house.panel.results.last("update") == ((replace(GOOD, shown=False),),)
    assert house.scene.done == [("complete_surfaces", node)]
    told = len(house.panel.results.told)
    changed()
    assert len(house.panel.results.told) == told, "nothing is new"
    house.scene.gone.append(node)
    changed()
    assert len(house.scene.done) == 2, "it has left the scene"
    house.controller.results.show(other)
    assert [watched for watched, _ in house.scene.watched] == [other]
    house.controller.results.show(other)
    assert len(house.scene.watched) == 1, "once"
    house.controller.results.show(None)
    assert house.scene.watched == []


def test_overlay_and_surfaces_are_switched(shown: House) -> None:
    node = shown.controller.results._node
    shown.panel.results.overlay_chosen.emit(UNCERTAINTY)
    shown.panel.results.opacity_chosen.emit(0.3)
    shown.panel.results.surfaces_shown.emit(False)
    assert shown.scene.done == [
        ("show_overlay", node, UNCERTAINTY),
        ("set_overlay_opacity", node, 0.3),
        ("show_3d", node, False),
    ]


def answered(house: House, result: Any) -> None:
    house.client.answer(lambda listener: listener.finished(result))


def test_surfaces_come_one_after_another_and_can_be_stopped(shown: House) -> None:
    node, bar = shown.controller.results.node, shown.panel.surfaces
    shown.scene.make_surfaces(node)
    assert bar.last("show") == (0, 0), "nothing is made before Slicer has lived"
    assert shown.scene.done == []
    for number in (1, 2, 3):
        bar.step_requested.emit()
        assert shown.scene.done[-1] == ("surface", node, number)
        assert bar.last("show") == (number, 3)
    bar.step_requested.emit()
    assert bar.told[-1] == ("hide",)
    shown.scene.make_surfaces(node)
    bar.step_requested.emit()
    bar.cancel_requested.emit()
    assert shown.scene.done[-2:] == [("no more surfaces", node), ("show_3d", node, False)]
    assert shown.panel.results.last("show_surfaces") == (False,)
    count = len(shown.scene.done)
    bar.step_requested.emit()
    assert len(shown.scene.done) == count


def test_surfaces_of_several_segmentations_are_all_made(shown: House) -> None:
    nodes, bar = [Node("First"), Node("Second")], shown.panel.surfaces
    for node in (*nodes, nodes[0]):
        shown.scene.make_surfaces(node)
    for _ in range(8):
        bar.step_requested.emit()
    made = [step[1].GetName() for step in shown.scene.done if step[0] == "surface"]
    assert made == ["Second"] * 3 + ["First"] * 3
    assert bar.told[-1] == ("hide",)


def test_a_closed_scene_and_a_defect_end_the_surfaces(shown: House) -> None:
    bar = shown.panel.surfaces
    shown.scene.make_surfaces(Node("First"))
    shown.controller.scene_closes()
    bar.step_requested.emit()
    assert shown.scene.done == []
    shown.scene.surface_error = RuntimeError("made up")
    shown.scene.make_surfaces(Node("Second"))
    bar.step_requested.emit()
    assert "RuntimeError: made up" in shown.panel.error
    assert shown.panel.log_offered
    assert bar.told[-1] == ("hide",)


def test_the_3d_button_says_what_the_views_show(shown: House) -> None:
    shown.scene.shown_3d = True
    shown.controller.results.refresh()
    assert shown.panel.results.last("show_surfaces") == (True,)


def test_statistics_are_measured_and_go_into_a_table_and_a_file(shown: House) -> None:
    node = shown.controller.results.node
    shown.panel.results.statistics_shown.emit(True)
    assert shown.client.requests == ["measure"]
    assert shown.host.tables == [], "the worker has not answered yet"
    answered(shown, "rows")
    assert shown.scene.done == [("statistics", node, "rows")]
    assert [table.GetName() for table in shown.host.tables] == ["Table"]
    assert shown.panel.results.last("show_statistics") == (True,)
    shown.panel.results.statistics_shown.emit(False)
    assert shown.host.tables[1:] == [None], "the views are as they were"
    shown.panel.results.csv_requested.emit()
    assert len(shown.client.requests) == 1, "no file was chosen"
    shown.host.path = "/out/result.csv"
    shown.panel.results.csv_requested.emit()
    answered(shown, "rows")
    assert shown.scene.done[1][0] == "write_csv"
    assert shown.scene.done[1][2:] == ("rows", "/out/result.csv")
    assert shown.panel.message == "Wrote /out/result.csv."
    assert (shown.host.prepared, shown.host.prepared_for) == (2, [])


def test_what_goes_wrong_with_a_result_is_said(shown: House) -> None:
    shown.scene.error = OutputError("The disk is full.")
    shown.host.path = "/out/result.csv"
    shown.panel.results.csv_requested.emit()
    answered(shown, "rows")
    assert shown.panel.error == "The disk is full."
    shown.scene.read_error = InputError("It is bent.")
    shown.panel.results.statistics_shown.emit(True)
    assert shown.panel.error == "It is bent."
    assert shown.panel.results.last("show_statistics") == (False,), (
        "it is pressed while they show, and not before"
    )
    shown.host.prepare_error = WorkerError("Nothing was installed.")
    shown.panel.results.statistics_shown.emit(True)
    assert shown.panel.error == "Nothing was installed."
    assert len(shown.client.requests) == 1


CHOICE = ExportChoice("/out", ("report", "seg", "surfaces"), "labelmap", (".glb",), 0.3, "RAS")
OUTPUTS = {
    "report": "/out/report.html",
    "seg": "/out/segmentation.dcm",
    "surfaces": "/out/surfaces",
    "encoding": "labelmap",
    "formats": [".glb"],
    "tolerance_mm": 0.3,
    "space": "RAS",
}


def test_a_segmentation_is_handed_over(shown: House) -> None:
    node = shown.controller.results.node
    shown.panel.results.answers["ask_export"] = CHOICE
    shown.panel.results.export_requested.emit()
    assert shown.panel.results.last("ask_export") == ("Result", "")
    assert shown.client.requests == [(node, OUTPUTS, ("/database/head", "1.2.3"), False)]
    assert shown.host.prepared_for == ["export"]
    answered(shown, ExportResult(("a", "b"), ("Look at the liver.",)))
    assert shown.panel.message == "Wrote 2 files into /out.\nLook at the liver."


def test_without_dicom_the_reason_is_told(shown: House) -> None:
    shown.host.dicom_error = InputError("Head was not loaded by the module DICOM.")
    shown.panel.results.export_requested.emit()
    reason = "Head was not loaded by the module DICOM."
    assert shown.panel.results.last("ask_export") == ("Result", reason)
    assert shown.client.requests == [], "the user gave up"
    shown.panel.results.answers["ask_export"] = ExportChoice("/out", ("csv",))
    shown.panel.results.export_requested.emit()
    assert shown.client.requests[0][2] == ("", "")
    assert shown.host.prepared_for == [], "a table needs no other package"


@pytest.mark.parametrize("consent", [True, False])
def test_files_are_replaced_when_the_user_says_so(shown: House, consent: bool) -> None:
    shown.panel.results.answers["ask_export"] = CHOICE
    shown.host.consent = consent
    shown.panel.results.export_requested.emit()
    shown.fail(OutputExistsError("/out/report.html exists already."))
    assert shown.host.questions == ["Some of these files exist in /out already. Replace them?"]
    assert [request[3] for request in shown.client.requests] == [False, True][: 1 + consent]
    if consent:
        shown.fail(OutputExistsError("/out/report.html exists already."))
        assert len(shown.host.questions) == 1, "one answer is enough"
        assert shown.panel.error == "/out/report.html exists already."
    else:
        assert shown.panel.message == "Nothing was written."


def test_a_hand_over_can_fail_and_be_stopped(shown: House) -> None:
    shown.panel.results.answers["ask_export"] = CHOICE
    shown.panel.results.export_requested.emit()
    shown.panel.cancel_requested.emit()
    assert shown.client.cancelled == 1
    shown.fail(Cancelled("The job was stopped. The scene was not changed."))
    assert shown.panel.message == "The job was stopped. The scene was not changed."
    shown.panel.results.export_requested.emit()
    shown.fail(WorkerError("It crashed."))
    assert (shown.panel.error, shown.panel.log_offered) == ("It crashed.", True)
    shown.scene.gone.append(shown.controller.results.node)
    shown.panel.results.export_requested.emit()
    assert shown.panel.error == "The segmentation Result has left the scene."


def test_nothing_is_done_to_a_segmentation_that_has_left_the_scene(shown: House) -> None:
    shown.scene.gone.append(shown.controller.results._node)
    shown.panel.results.surfaces_shown.emit(True)
    assert shown.scene.done == []
    assert shown.panel.error == "The segmentation Result has left the scene."
    assert shown.panel.results.last("show") == ((), ())


def test_the_editor_opens_on_the_result_and_its_image(shown: House) -> None:
    shown.panel.results.correct_requested.emit()
    node, image = shown.controller.results.node, shown.scene.reference
    assert shown.host.edited == [(node, image, "")]


def test_a_structure_of_the_table_is_the_one_that_is_corrected(shown: House) -> None:
    """On the image that it was made of, whatever is chosen as the next input."""
    shown.panel.results.structure_chosen.emit("001_Left")
    shown.panel.results.correct_requested.emit()
    node, image = shown.controller.results.node, shown.scene.reference
    assert shown.host.edited == [(node, image, "001_Left")]


def test_a_segmentation_without_an_image_is_corrected_on_the_chosen_one(shown: House) -> None:
    shown.scene.reference = None
    shown.panel.results.correct_requested.emit()
    assert shown.host.edited == [(shown.controller.results.node, shown.head, "")]


@pytest.mark.parametrize("mode", [OutputMode.NEW, OutputMode.PREVIEW])
@pytest.mark.parametrize("worked", [True, False])
def test_a_review_is_not_interrupted_by_the_result_of_another_scan(
    shown: House, mode: OutputMode, worked: bool
) -> None:
    other, reviewed = Node("Other"), shown.controller.results.node
    shown.choose(nodes={"MR": other}, output=OutputChoice(mode))
    shown.press_segment()
    if worked:
        shown.panel.results.structure_chosen.emit("001_Left")
    shown.scene.done.clear()
    shown.finish()
    if worked:
        assert shown.controller.results.node is reviewed
        assert "is done. Choose it above the table" in shown.panel.message
        assert "Result" in shown.panel.message
        assert not shown.scene.done, "the views stay"
    else:
        assert shown.controller.results.node is not reviewed
        assert shown.panel.message == ""


def test_a_new_result_of_the_reviewed_scan_is_shown(shown: House) -> None:
    """It is drawn instead of the reviewed one, and the job of another scan is expected after it was started."""
    shown.press_segment()
    shown.panel.results.structure_chosen.emit("001_Left")
    shown.finish()
    assert shown.controller.results.node.GetName() == "Head segmentation"
    shown.panel.results.structure_chosen.emit("001_Left")
    shown.choose(nodes={"MR": Node("Other")})
    shown.press_segment()
    shown.finish()
    assert "above the table" not in shown.panel.message


def test_a_slab_is_run_again_into_the_result(shown: House) -> None:
    shown.choose(region=Node("Box"), options={"uncertainty": True})
    shown.panel.results.slab_requested.emit()
    (asked,) = shown.client.requests
    assert asked.region == (0.0, 9.0, 0.0, 9.0, 0.0, 2.0)
    node = shown.controller.results.node
    shown.finish()
    ((_source, _result, output, _frame),) = shown.scene.written
    assert output == OutputChoice(OutputMode.UPDATE, node)
    shown.scene.reference = None
    shown.choose(nodes={"MR": None})
    shown.panel.results.slab_requested.emit()
    assert "no input volume" in shown.panel.error


@pytest.mark.parametrize("chosen", [Node("The next patient"), None])
def test_what_is_done_with_a_result_is_done_on_its_scan(shown: House, chosen: Any) -> None:
    """The scan at the top of the page may be that of the next patient."""
    shown.choose(nodes={"MR": chosen})
    shown.panel.results.slab_requested.emit()
    shown.panel.results.keep_requested.emit()
    shown.finish()
    ((source, _result, output, _frame),) = shown.scene.written
    node = shown.controller.results.node
    assert (source, output.node) == (shown.head, node)
    assert shown.host.kept == [(shown.head, node)]
    assert shown.host.questions == []


def test_a_result_of_several_images_needs_all_of_them(shown: House, tmp_path: Path) -> None:
    channels = (Channel("T1", "MR"), Channel("FLAIR", "MR"))
    card = brain(tmp_path / "two", channels=channels)
    nodes = {"T1": Node("Next T1"), "FLAIR": Node("Next FLAIR")}
    shown.choose(nodes=nodes, cards=(card,))
    for signal in ("slab_requested", "keep_requested"):
        getattr(shown.panel.results, signal).emit()
        assert "Result was made from Head. Choose Head and the other" in shown.panel.error
    assert shown.client.requests == shown.host.kept == []
    shown.choose(nodes=nodes | {"T1": shown.head})
    shown.panel.results.keep_requested.emit()
    assert shown.host.kept == [(shown.head, shown.controller.results.node)]


def test_a_result_of_several_images_is_computed_again_from_its_own(
    shown: House, tmp_path: Path
) -> None:
    """By the names of the channels, so that another model's order does not mix them up."""
    flair, late, result = Node("FLAIR"), Node("Next T1"), shown.controller.results.node
    cards = [
        brain(tmp_path / name, channels=tuple(Channel(each, "MR", each == "T1") for each in order))
        for name, order in (("two", ("T1", "FLAIR")), ("turned", ("FLAIR", "T1")))
    ]
    shown.choose(nodes={"T1": shown.head, "FLAIR": flair}, cards=cards[:1])
    shown.press_segment()
    shown.finish()
    shown.controller.results.show(shown.controller.results.node)
    shown.scene.reference = shown.head
    shown.choose(nodes={"T1": late, "FLAIR": None})
    made = shown.controller.results.node
    assert made is not result
    assert shown.controller.results.choice().nodes == {"T1": shown.head, "FLAIR": flair}
    shown.panel.results.slab_requested.emit()
    assert [each.source for each in shown.client.requests[-1].inputs] == ["Head", "FLAIR"]
    shown.finish()
    shown.choose(nodes={"FLAIR": late, "T1": None}, cards=cards[1:])
    with pytest.raises(InputError, match="was made from Head"):
        shown.controller.results.choice()
    shown.choose(nodes={"T1": late, "FLAIR": None}, cards=cards[:1])
    shown.scene.noted[shown.controller.results.node]["FLAIR"] = None
    with pytest.raises(InputError, match="was made from Head"):
        shown.controller.results.choice()


def test_a_case_is_kept_where_the_user_agrees(shown: House) -> None:
    shown.panel.show_message("before")
    shown.panel.results.keep_requested.emit()
    assert shown.panel.message == "before", "a no is answered by nothing"
    shown.host.kept_where = "Kept as case_1 in /data."
    shown.panel.results.keep_requested.emit()
    assert shown.panel.message == "Kept as case_1 in /data."


@pytest.mark.parametrize(
    ("signal", "values"),
    [
        ("structure_chosen", ("001_Left",)),
        ("only_chosen", (("001_Left",),)),
        ("good_completed", ()),
        ("next_requested", ()),
        ("in_3d_chosen", (("001_Left",), True)),
    ],
)
def test_a_segment_that_was_removed_elsewhere_leaves_the_table_before_anything_is_done(
    house: House, signal: str, values: tuple[Any, ...]
) -> None:
    house.scene.rows = [ROW, GOOD]
    house.controller.results.show(Node("Result"))
    house.scene.rows = [GOOD]
    getattr(house.panel.results, signal).emit(*values)
    assert house.scene.done == []
    assert house.panel.results.last("show")[0] == [GOOD]
    assert "Segments were removed" in house.panel.message
    house.panel.results.structure_chosen.emit("002_Stem")
    assert house.scene.done == [("jump", (1.0, 2.0, 3.0))]
