"""The real .ui file and the real panel, on Qt with PythonQt's manners."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PySide6 import QtCore, QtWidgets

import pythonqt
from medsegai.models.card import MemberCard
from medsegai.progress import ProgressEvent
from medsegai.request import request_from_options, request_options
from MedSegAILib.controller.jobs import chosen_nodes
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.panel import Panel
from MedSegAILib.panel.fields import tip_of
from MedSegAILib.panel.options import ELSEWHERE, PANEL_DEFAULTS
from MedSegAILib.panel.shortcuts import SHORTCUTS
from MedSegAILib.panel_values import DeviceChoice
from panel_help import UI, Heard, add_volume, card, click, find, new_panel


@pytest.fixture
def widget() -> Iterator[Any]:
    widget = pythonqt.load_ui(UI)
    pythonqt.real(widget).show()
    yield widget
    pythonqt.real(widget).close()


@pytest.fixture
def panel(widget: Any) -> Panel:
    return new_panel(widget)


def test_the_panel_starts_with_nothing_to_press(widget: Any, panel: Panel) -> None:
    assert not find(widget, "segmentButton").isEnabled()
    assert not find(widget, "cancelButton").isEnabled()
    for name in ("progressBar", "messageLabel", "resultTable"):
        assert not find(widget, name).isVisible(), name


def test_volumes_of_the_scene_are_offered_and_other_nodes_are_not(
    widget: Any, panel: Panel, mrml: Any
) -> None:
    pythonqt.real(widget).setMRMLScene(mrml)
    assert panel.choice().node is None
    heard = Heard(panel.choice_changed)
    mrml.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Labels")
    mrml.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Colour")
    mrml.AddNewNodeByClass("vtkMRMLModelNode", "Skin")
    assert panel.choice().node is None
    first = add_volume(mrml, "T1")
    second = add_volume(mrml, "T2")
    assert panel.choice().node is first
    panel.choose_input(second)
    assert panel.choice().node is second
    mrml.RemoveNode(second)
    assert panel.choice().node is first
    assert len(heard) >= 3


def test_the_user_can_neither_add_nor_remove_nodes_here(widget: Any) -> None:
    selector = pythonqt.child_widget_variables(widget).inputSelector
    assert not selector.addEnabled
    assert not selector.removeEnabled
    assert selector.nodeTypes == ("vtkMRMLScalarVolumeNode",)


def test_models_are_offered_and_the_first_is_chosen(widget: Any, panel: Panel) -> None:
    cards = [card("brain", "axial", "coronal"), card("liver", "fold 0")]
    assert panel.choice().card is None
    panel.show_models(cards)
    assert panel.choice().card is cards[0]
    heard = Heard(panel.choice_changed)
    find(widget, "modelSelector").setCurrentIndex(1)
    assert panel.choice().card is cards[1]
    assert len(heard) == 1
    assert "Research only" in find(widget, "modelSelector").toolTip()
    panel.show_models([])
    assert panel.choice().card is None


def test_buttons_are_heard(widget: Any, panel: Panel) -> None:
    segment, cancel = Heard(panel.segment_requested), Heard(panel.cancel_requested)
    panel.show_plan("Ready", True)
    click(widget, "segmentButton")
    assert (len(segment), len(cancel)) == (1, 0)
    panel.show_running()
    click(widget, "cancelButton")
    assert (len(segment), len(cancel)) == (1, 1)


def test_while_a_job_runs_the_button_adds_to_the_queue(widget: Any, panel: Panel) -> None:
    heard = Heard(panel.segment_requested)
    panel.show_plan("Ready", True)
    assert find(widget, "segmentButton").text() == "Segment"
    panel.show_running()
    assert find(widget, "segmentButton").text() == "Add to the queue"
    assert find(widget, "inputSelector").isEnabled(), "the user goes on meanwhile"
    click(widget, "segmentButton")
    assert len(heard) == 1


def test_the_plan_says_why_nothing_can_run(widget: Any, panel: Panel) -> None:
    panel.show_plan("There is no input volume.", False)
    assert find(widget, "planLabel").text() == "There is no input volume."
    assert not find(widget, "segmentButton").isEnabled()
    panel.show_plan("Runs axial on cpu.", True, "Brain on T1")
    assert find(widget, "segmentButton").isEnabled()
    assert find(widget, "planLabel").toolTip() == "Brain on T1"


def test_a_job_shows_its_progress_and_ends_it(widget: Any, panel: Panel) -> None:
    panel.show_plan("Ready", True)
    panel.show_running()
    assert find(widget, "progressBar").isVisible()
    assert find(widget, "cancelButton").isEnabled()
    panel.show_cancelling()
    assert not find(widget, "cancelButton").isEnabled()
    panel.show_idle()
    assert not find(widget, "progressBar").isVisible()
    assert find(widget, "segmentButton").isEnabled()
    assert not find(widget, "cancelButton").isEnabled()


@pytest.mark.parametrize(
    ("event", "value", "text"),
    [
        (ProgressEvent("read", 0.0), 0, "Reading – 0 %"),
        (ProgressEvent("predict", 0.421, 73.4), 421, "Predicting – 42 % – 1 min 13 s left"),
        (ProgressEvent("predict", 0.9, 59.6), 900, "Predicting – 90 % – 1 min 00 s left"),
        (ProgressEvent("labels", 1.0, 0.0), 1000, "Combining – 100 % – 0 s left"),
        (ProgressEvent("level sets", 0.5, 8.0), 500, "Level sets – 50 % – 8 s left"),
    ],
)
def test_progress_is_shown_as_it_is(
    widget: Any, panel: Panel, event: ProgressEvent, value: int, text: str
) -> None:
    panel.show_running()
    panel.show_progress(event)
    bar = find(widget, "progressBar")
    assert bar.value() == value
    assert bar.maximum() == 1000
    assert bar.text() == text


def test_errors_stand_out_and_text_is_taken_as_text(widget: Any, panel: Panel) -> None:
    label = find(widget, "messageLabel")
    panel.show_error("<b>a.nii</b> & co. cannot be read")
    assert label.isVisible()
    assert label.text() == "<b>a.nii</b> & co. cannot be read"
    assert label.textFormat() == QtCore.Qt.TextFormat.PlainText
    assert "color" in label.styleSheet()
    panel.show_message("Done")
    assert label.styleSheet() == ""
    panel.show_message("")
    assert not label.isVisible()


def test_the_log_is_offered_with_an_error_of_the_worker_alone(widget: Any, panel: Panel) -> None:
    heard = Heard(panel.log_requested)
    panel.show_error("There is no input volume.")
    assert not find(widget, "logButton").isVisible()
    panel.show_error("The worker crashed.", log=True)
    click(widget, "logButton")
    assert len(heard) == 1
    panel.show_message("Done")
    assert not find(widget, "logButton").isVisible()


# --- channels, region, frames ----------------------------------------------------------------------


def selector(widget: Any, name: str) -> Any:
    return pythonqt._foreign(find(widget, name))


def test_a_model_with_several_channels_gets_a_selector_for_each(
    widget: Any, panel: Panel, mrml: Any
) -> None:
    pythonqt.real(widget).setMRMLScene(mrml)
    first, second = add_volume(mrml, "T1"), add_volume(mrml, "FLAIR")
    tumour = card("tumour", "fold_0", channels=("T1", "FLAIR", "T2?"))
    panel.show_models([card("brain", "axial"), tumour])
    panel.choose_model(tumour)
    assert panel.choice().nodes == {"T1": first, "FLAIR": None, "T2": None}
    assert find(widget, "inputLabel").text() == "T1:"
    heard = Heard(panel.choice_changed)
    selector(widget, "channel1Selector").setCurrentNode(second)
    assert panel.choice().nodes["FLAIR"] is second
    assert len(heard) == 1
    assert selector(widget, "channel2Selector").noneDisplay == "None (optional)"
    panel.choose_model(panel._cards[0])
    pythonqt.process_events()
    assert list(panel.choice().nodes) == ["MR"]
    assert find(widget, "inputLabel").text() == "Volume:"
    assert not pythonqt.real(widget).findChildren(QtWidgets.QWidget, "channel1Selector")


@pytest.mark.parametrize("colours", [("red", "green", "blue"), ("grey",)])
def test_a_model_of_pictures_gets_one_selector_that_offers_colours(
    widget: Any, panel: Panel, mrml: Any, colours: tuple[str, ...]
) -> None:
    pythonqt.real(widget).setMRMLScene(mrml)
    head = add_volume(mrml, "MRHead")
    tile = mrml.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Tile")
    nuclei = replace(card("nuclei", "fold_0", channels=colours), dimensions=2)
    panel.show_models([card("brain", "axial"), nuclei])
    panel.choose_input(tile)
    assert panel.choice().node is not tile, "a model of volumes does not take colours"
    panel.choose_input(head)
    panel.choose_model(nuclei)
    panel.choose_input(tile)
    assert panel.choice().nodes == {colours[0]: tile}
    assert chosen_nodes(panel.choice()) == [tile]
    assert find(widget, "inputLabel").text() == "Picture:"
    assert not pythonqt.real(widget).findChildren(QtWidgets.QWidget, "channel1Selector")
    panel.choose_model(panel._cards[0])
    assert panel.choice().node is head
    assert find(widget, "inputLabel").text() == "Volume:"


def test_guessed_channels_are_shown_to_be_checked(widget: Any, panel: Panel, mrml: Any) -> None:
    pythonqt.real(widget).setMRMLScene(mrml)
    first, second = add_volume(mrml, "FLAIR"), add_volume(mrml, "T1")
    panel.show_models([card("tumour", "fold_0", channels=("T1", "FLAIR"))])
    heard = Heard(panel.choice_changed)
    assert not find(widget, "channelsNote").isVisible()
    panel.show_guess({"T1": second, "FLAIR": first})
    assert panel.choice().nodes == {"T1": second, "FLAIR": first}
    assert panel.choice().node is second
    assert "check" in find(widget, "channelsNote").text()
    assert find(widget, "channelsNote").isVisible()
    assert len(heard) == 1, "one change, not one for each channel"


def test_a_region_can_be_chosen_and_is_none_at_first(widget: Any, panel: Panel, mrml: Any) -> None:
    pythonqt.real(widget).setMRMLScene(mrml)
    region = mrml.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    assert panel.choice().region is None
    panel.choose_region(region)
    assert panel.choice().region is region


def test_frames_are_offered_where_there_are_some(widget: Any, panel: Panel) -> None:
    assert not find(widget, "framesSelector").isVisible()
    panel.show_frames(12)
    assert find(widget, "framesSelector").isVisible()
    assert not panel.choice().every_frame
    find(widget, "framesSelector").setCurrentIndex(1)
    assert find(widget, "framesSelector").currentText() == "Every frame (12)"
    assert panel.choice().every_frame
    panel.show_frames(12)
    assert panel.choice().every_frame, "the choice stays while the volume does"
    panel.show_frames(0)
    assert not panel.choice().every_frame


# --- output ----------------------------------------------------------------------------------------


def test_a_new_segmentation_is_the_default_and_asks_nothing_more(widget: Any, panel: Panel) -> None:
    assert panel.choice().output == OutputChoice()
    for name in ("outputNodeSelector", "lockedCheck", "paintedCheck"):
        assert not find(widget, name).isVisible(), name


@pytest.mark.parametrize("mode", [OutputMode.UPDATE, OutputMode.ADD, OutputMode.PREVIEW])
def test_an_output_that_is_there_can_be_chosen(
    widget: Any, panel: Panel, mrml: Any, mode: OutputMode
) -> None:
    pythonqt.real(widget).setMRMLScene(mrml)
    node = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Manual")
    panel.choose_output(mode, node)
    assert panel.choice().output == OutputChoice(mode, node)
    assert find(widget, "outputNodeSelector").isVisible()
    changes = mode is not OutputMode.ADD
    assert find(widget, "lockedCheck").isVisible() is changes
    if changes:
        find(widget, "paintedCheck").setChecked(True)
        assert panel.choice().output == OutputChoice(mode, node, change_painted=True)


def test_a_preview_asks_for_a_yes_or_a_no(widget: Any, panel: Panel) -> None:
    accepted, rejected = Heard(panel.preview.accepted), Heard(panel.preview.rejected)
    assert not find(widget, "previewBar").isVisible()
    panel.preview.show("Head segmentation")
    assert "Head segmentation is a preview" in find(widget, "previewLabel").text()
    click(widget, "acceptButton")
    click(widget, "rejectButton")
    assert (len(accepted), len(rejected)) == (1, 1)
    panel.preview.show("")
    assert not find(widget, "previewBar").isVisible()


# --- options ---------------------------------------------------------------------------------------


def test_every_option_of_a_request_is_shown_with_its_help(widget: Any, panel: Panel) -> None:
    for option in request_options():
        if option.name not in ELSEWHERE:
            row = find(widget, f"{option.name}Option")
            assert row.toolTip() == tip_of(option)
            assert option.metadata["help"][1:] in row.toolTip()
            assert row.toolTip().endswith(f"({option.name})"), "the name that scripts use"
    assert set(ELSEWHERE) < {option.name for option in request_options()}


def test_untouched_options_are_the_defaults(panel: Panel) -> None:
    panel.show_models([card("brain", "axial", "coronal", "sagittal")])
    values = panel.choice().options
    request = request_from_options((Path("x"),), values)
    assert request.options() == request_from_options((Path("x"),), PANEL_DEFAULTS).options()


def test_changed_options_arrive_with_their_types(widget: Any, panel: Panel) -> None:
    panel.show_models([card("brain", "axial", "coronal", "sagittal")])
    heard = Heard(panel.choice_changed)
    find(widget, "fusionOption").setCurrentText("majority vote")
    find(widget, "deviceOption").setEditText("cuda:1")
    find(widget, "dropout_passesOption").setValue(12)
    find(widget, "uncertaintyOption").setChecked(False)
    assert len(heard) == 4
    request = request_from_options((Path("x"),), panel.choice().options)
    assert request.fusion == "vote"
    assert request.device == "cuda:1"
    assert request.dropout_passes == 12
    assert request.uncertainty is False


def test_members_are_those_of_the_model(widget: Any, panel: Panel) -> None:
    panel.show_models([card("brain", "axial", "coronal", "sagittal"), card("liver", "fold 0")])

    def boxes() -> list[Any]:
        found = find(widget, "membersOption").findChildren(QtWidgets.QCheckBox)
        return [box for box in found if not box.isHidden()]

    assert [box.text() for box in boxes()] == ["axial", "coronal", "sagittal"]
    boxes()[1].setChecked(False)
    assert panel.choice().options["members"] == ("axial", "sagittal")
    boxes()[1].setChecked(True)
    assert panel.choice().options["members"] == (), "all of them is the default"
    for box in boxes():
        box.setChecked(False)
    assert [box.isChecked() for box in boxes()] == [True] * 3, "none of them cannot run"
    find(widget, "modelSelector").setCurrentIndex(1)
    pythonqt.process_events()
    assert [box.text() for box in boxes()] == ["fold 0"]


def test_advanced_options_are_folded_away_at_first(widget: Any, panel: Panel) -> None:
    panel.show_models([card("brain", "axial")])
    assert not find(widget, "deviceOption").isVisible()
    find(widget, "advancedButton").setProperty("collapsed", False)
    assert find(widget, "deviceOption").isVisible()


def test_devices_are_shown_with_what_they_are_and_chosen_by_name(widget: Any, panel: Panel) -> None:
    assert panel.choice().options["device"] == "auto"
    devices = [DeviceChoice("auto", "the fastest"), DeviceChoice("cuda:0", "RTX 4070, 9 GB free")]
    panel.show_devices(devices)
    assert panel.choice().options["device"] == "auto", "what was chosen stays"
    box = find(widget, "deviceOption")
    assert [box.itemText(n) for n in range(box.count())][1] == "cuda:0 – RTX 4070, 9 GB free"
    box.setCurrentIndex(1)
    assert panel.choice().options["device"] == "cuda:0"
    panel.show_devices(devices[:1])
    assert panel.choice().options["device"] == "cuda:0", "also where it is not offered any more"


def test_members_without_a_share_are_not_ticked_at_first(widget: Any, panel: Panel) -> None:
    from dataclasses import replace

    plain = card("liver", "2d/fold_0", "3d/fold_0")
    members = (replace(plain.members[0], weight=0.0), plain.members[1])
    panel.show_models([replace(plain, members=members)])
    boxes = find(widget, "membersOption").findChildren(QtWidgets.QCheckBox)
    assert [box.isChecked() for box in boxes] == [False, True]
    assert panel.choice().options["members"] == ()
    boxes[0].setChecked(True)
    assert panel.choice().options["members"] == ("2d/fold_0", "3d/fold_0")


def test_models_of_one_name_are_told_from_each_other(widget: Any, panel: Panel) -> None:
    """A fine-tuned model often keeps the name of the one that it was made from."""
    made = [replace(card(name, "a"), name="Brain") for name in ("one", "two", "copy")]
    first, second, third = made[0], made[1], replace(made[2], id="one")
    panel.show_models([first, second, third, card("liver", "a")])
    selector = find(widget, "modelSelector")
    titles = [selector.itemText(row) for row in range(selector.count())]
    assert titles == ["Brain (one)", "Brain (two)", f"Brain ({Path('/models/copy')})", "Liver"]
    boxes = find(widget, "othersOption").findChildren(QtWidgets.QCheckBox)
    next(box for box in boxes if box.text() == "Brain (two)").setChecked(True)
    assert panel.choice().cards == (first, second)
    assert panel.kept().others == ("two",)


def test_models_that_take_the_same_images_can_be_used_together(widget: Any, panel: Panel) -> None:
    brain, other = card("brain", "axial"), card("other", "fold_0")
    panel.show_models([brain, other, card("tumour", "fold_0", channels=("T1", "T2"))])
    boxes = find(widget, "othersOption").findChildren(QtWidgets.QCheckBox)
    assert [box.text() for box in boxes] == ["Other"]
    assert panel.choice().cards == (brain,)
    boxes[0].setChecked(True)
    assert panel.choice().cards == (brain, other)
    panel.show_models([brain])
    assert panel.choice().cards == (brain,)


def test_the_chosen_model_stays_when_the_list_is_read_again(widget: Any, panel: Panel) -> None:
    panel.show_models([card("brain", "axial"), card("liver", "fold_0")])
    find(widget, "modelSelector").setCurrentIndex(1)
    panel.show_models([card("abdomen", "fold_0"), card("brain", "axial"), card("liver", "fold_0")])
    assert panel.choice().card.id == "liver"
    panel.show_models([card("brain", "axial")])
    assert panel.choice().card.id == "brain"


# --- keys ------------------------------------------------------------------------------------------


def test_keys_press_the_buttons(widget: Any, panel: Panel) -> None:
    from PySide6 import QtGui

    heard = Heard(panel.segment_requested)
    panel.show_plan("Ready", True)
    shortcut = find(widget, "segmentButtonShortcut", QtGui.QShortcut)
    assert shortcut.key().toString() == "Ctrl+Alt+S"
    assert shortcut.context() == QtCore.Qt.ShortcutContext.ApplicationShortcut
    shortcut.activated.emit()
    assert len(heard) == 1
    panel.show_plan("Not ready", False)
    shortcut.activated.emit()
    assert len(heard) == 1, "a button that cannot be pressed is not"
    keys = [item.key().toString() for item in pythonqt.real(widget).findChildren(QtGui.QShortcut)]
    assert len(keys) == len(set(keys)) == len(SHORTCUTS) == 10


# --- speed, sample, region ------------------------------------------------------------------------


def test_fast_runs_one_network_of_several(widget: Any, panel: Panel) -> None:
    members = (
        MemberCard("axial", weight=0.4),
        MemberCard("coronal", weight=0.6),
        MemberCard("spare", weight=0),
    )
    panel.show_models([replace(card("brain", "x"), members=members), card("liver", "only")])
    selector = find(widget, "speedSelector")
    assert selector.isVisible()
    assert panel.choice().options["members"] == ()
    heard = Heard(panel.choice_changed)
    selector.setCurrentText("Fast")
    assert len(heard) == 1
    options = panel.choice().options
    assert options["members"] == ("coronal",), "the one that counts most"
    assert not options["mirroring"]
    find(widget, "modelSelector").setCurrentIndex(1)
    assert not selector.isVisible(), "one network is as fast as can be"
    assert panel.choice().options["members"] == ()
    assert panel.choice().options["mirroring"]


def test_a_sample_is_offered_where_the_model_has_one(widget: Any, panel: Panel) -> None:
    panel.show_models([replace(card("brain", "x"), sample="MRHead"), card("liver", "only")])
    heard, regions = Heard(panel.sample_requested), Heard(panel.region_requested)
    assert find(widget, "sampleButton").isVisible()
    click(widget, "sampleButton")
    click(widget, "regionButton")
    assert len(heard) == len(regions) == 1
    find(widget, "modelSelector").setCurrentIndex(1)
    assert not find(widget, "sampleButton").isVisible()
