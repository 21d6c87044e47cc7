"""The table of results and the queue, as a user sees and uses them."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from PySide6 import QtCore, QtWidgets

import pythonqt
from MedSegAILib.panel import Panel
from MedSegAILib.view import REVIEW_STATES, StructureRow
from panel_help import UI, Heard, click, find, new_panel

LEFT = StructureRow("003_Left", "Left hippocampus", (220, 216, 20), 4.0)
STEM = StructureRow("016_Stem", "Brain-Stem", (119, 159, 176), 25.504)


@pytest.fixture
def widget(mrml: Any) -> Iterator[Any]:
    widget = pythonqt.load_ui(UI)
    pythonqt.real(widget).setMRMLScene(mrml)
    pythonqt.real(widget).show()
    yield widget
    pythonqt.real(widget).setMRMLScene(None)
    pythonqt.real(widget).close()


@pytest.fixture
def panel(widget: Any) -> Panel:
    return new_panel(widget)


def table(widget: Any) -> Any:
    return find(widget, "resultTable")


def column(widget: Any, number: int) -> list[str]:
    shown = table(widget)
    return [shown.item(row, number).text().strip() for row in range(shown.rowCount())]


def headers(widget: Any) -> list[str]:
    shown = table(widget)
    return [shown.horizontalHeaderItem(index).text() for index in range(shown.columnCount())]


def unfold(panel: Panel, mrml: Any) -> Any:
    node = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Result")
    panel.results.choose(node)
    return node


def test_structures_stand_in_the_order_of_the_segmentation(
    widget: Any, panel: Panel, mrml: Any
) -> None:
    unfold(panel, mrml)
    panel.results.show([LEFT, STEM], False)
    assert table(widget).isVisible()
    assert headers(widget) == ["Structure", "ml"]
    assert column(widget, 0) == ["Left hippocampus", "Brain-Stem"]
    assert column(widget, 1) == ["4.00", "25.50"]
    color = table(widget).item(0, 0).data(QtCore.Qt.ItemDataRole.DecorationRole)
    assert color.getRgb()[:3] == LEFT.color


def test_agreement_and_doubt_are_shown_where_they_were_measured(
    widget: Any, panel: Panel, mrml: Any
) -> None:
    unfold(panel, mrml)
    sure = StructureRow("1", "Sure", (0, 0, 0), 1.0, 0.87, "IoU 0.870")
    unsure = StructureRow("2", "Unsure", (0, 0, 0), 1.0, 0.41, "IoU 0.410\nthey disagree", True)
    panel.results.show([sure, unsure, STEM], True)
    assert headers(widget) == ["Structure", "ml", "Sure"]
    assert [text.split() for text in column(widget, 2)] == [["0.87"], ["⚠", "0.41"], []]
    assert table(widget).item(1, 2).toolTip() == "IoU 0.410\nthey disagree"
    assert find(widget, "nextButton").isEnabled()
    panel.results.show([STEM], False)
    assert not find(widget, "nextButton").isEnabled()
    assert not find(widget, "uncertaintyButton").isEnabled()


def test_doubt_is_marked_where_agreement_was_not_measured(
    widget: Any, panel: Panel, mrml: Any
) -> None:
    unfold(panel, mrml)
    small = StructureRow("1", "Small", (0, 0, 0), 1.0, None, "volume 1 ml", True)
    panel.results.show([small, STEM], False)
    assert headers(widget) == ["Structure", "ml", "⚠"]
    assert column(widget, 2) == ["⚠", ""]
    assert table(widget).item(0, 2).toolTip() == "volume 1 ml"


def test_numbers_sort_as_numbers(widget: Any, panel: Panel, mrml: Any) -> None:
    unfold(panel, mrml)
    volumes = [100.0, 9.5, 0.0, 1234.25, 25.0]
    rows = [
        StructureRow(str(number), f"S{number}", (0, 0, 0), volume)
        for number, volume in enumerate(volumes, start=1)
    ]
    panel.results.show(rows, False)
    table(widget).sortItems(1, QtCore.Qt.SortOrder.DescendingOrder)
    assert column(widget, 1) == ["1234.25", "100.00", "25.00", "9.50", "0.00"]
    heard = Heard(panel.results.structure_chosen)
    table(widget).cellClicked.emit(0, 1)
    assert heard.values == [("4",)], "the segment that stands there now"


def test_a_second_result_replaces_the_first_even_if_that_was_sorted(
    widget: Any, panel: Panel, mrml: Any
) -> None:
    unfold(panel, mrml)
    panel.results.show([LEFT, STEM], False)
    table(widget).sortItems(0, QtCore.Qt.SortOrder.AscendingOrder)
    panel.results.show([LEFT, STEM], False)
    assert column(widget, 0) == ["Left hippocampus", "Brain-Stem"]
    panel.results.show([], False)
    assert not table(widget).isVisible()


def test_a_click_and_the_return_key_choose_a_structure(
    widget: Any, panel: Panel, mrml: Any
) -> None:
    unfold(panel, mrml)
    panel.results.show([LEFT, STEM], False)
    heard = Heard(panel.results.structure_chosen)
    table(widget).cellClicked.emit(1, 0)
    table(widget).cellActivated.emit(0, 1)
    assert heard.values == [("016_Stem",), ("003_Left",)]


def test_the_review_is_changed_in_its_cell(widget: Any, panel: Panel, mrml: Any) -> None:
    from dataclasses import replace

    unfold(panel, mrml)
    panel.results.show([replace(LEFT, review="notstarted"), replace(STEM, review="flagged")], False)
    assert headers(widget)[-1] == "✓"
    assert column(widget, 2) == ["·", "⚑"]
    chosen, jumped = Heard(panel.results.review_chosen), Heard(panel.results.structure_chosen)
    table(widget).cellClicked.emit(0, 2)
    (menu,) = table(widget).findChildren(QtWidgets.QMenu, "reviewMenu")
    assert len(menu.actions()) == len(REVIEW_STATES)
    menu.actions()[2].trigger()
    menu.close()
    assert chosen.values == [("003_Left", "completed")]
    assert len(jumped) == 0
    panel.results.show_review("003_Left", "completed")
    assert column(widget, 2) == ["✓", "⚑"]


def test_the_buttons_of_a_result_are_heard(widget: Any, panel: Panel, mrml: Any) -> None:
    unfold(panel, mrml)
    panel.results.show([LEFT], True)
    results = panel.results
    signals = {
        "nextButton": results.next_requested,
        "uncertaintyButton": results.uncertainty_shown,
        "show3dButton": results.surfaces_shown,
        "statisticsButton": results.statistics_requested,
        "csvButton": results.csv_requested,
        "handOverButton": results.handover_requested,
        "correctButton": results.correct_requested,
        "slabButton": results.slab_requested,
        "keepButton": results.keep_requested,
    }
    for name, signal in signals.items():
        heard = Heard(signal)
        click(widget, name)
        checkable = name in ("uncertaintyButton", "show3dButton")
        assert heard.values == [(True,) if checkable else ()], name
    results.show([LEFT], True)
    assert not find(widget, "show3dButton").isChecked(), "another result is not shown yet"


def test_the_chosen_segmentation_is_told(widget: Any, panel: Panel, mrml: Any) -> None:
    heard = Heard(panel.results.segmentation_chosen)
    first = unfold(panel, mrml)
    assert heard.values == [(first,)]
    assert not find(widget, "resultsButton").property("collapsed")
    mrml.RemoveNode(first)
    assert heard.values[-1] == (None,)


# --- the queue -------------------------------------------------------------------------------------


def entry(title: str, state: str, **more: Any) -> SimpleNamespace:
    values = {"fraction": 0.0, "seconds_left": None, "stage": "", "message": "", "stopping": False}
    return SimpleNamespace(title=title, state=state, **(values | more))


def states(widget: Any) -> list[str]:
    shown = find(widget, "queueTable")
    return [shown.item(row, 1).text() for row in range(shown.rowCount())]


def test_an_empty_queue_takes_no_room(widget: Any, panel: Panel) -> None:
    panel.queue.show([])
    assert not find(widget, "queueButton").isVisible()


def test_the_queue_shows_each_state_and_counts_in_its_title(widget: Any, panel: Panel) -> None:
    panel.queue.show(
        [
            entry("A", "done"),
            entry("B", "running", fraction=0.42, seconds_left=73.0, stage="predict"),
            entry("C", "waiting"),
            entry("D", "failed", message="There is no device cuda:7."),
            entry("E", "cancelled"),
        ]
    )
    assert find(widget, "queueButton").property("text") == "Queue – 1 running, 1 waiting"
    assert states(widget) == ["done", "42 %, 1 min 13 s", "waiting", "failed", "stopped"]
    assert "cuda:7" in find(widget, "queueTable").item(3, 1).toolTip()


def test_progress_changes_the_row_and_keeps_the_selection(widget: Any, panel: Panel) -> None:
    jobs = [entry("A", "running"), entry("B", "waiting")]
    panel.queue.show(jobs)
    panel.queue.unfold()
    find(widget, "queueTable").selectRow(1)
    jobs[0].fraction = 0.5
    panel.queue.show(jobs)
    assert states(widget)[0] == "50 %"
    assert panel.queue.chosen() is jobs[1]
    panel.queue.show([jobs[1], jobs[0]])
    assert panel.queue.chosen() is jobs[1], "it stays chosen where it moves"


@pytest.mark.parametrize(
    ("state", "buttons"),
    [
        ("waiting", {"upButton", "downButton", "cancelEntryButton", "removeButton"}),
        ("running", {"cancelEntryButton", "removeButton"}),
        ("done", {"againButton", "removeButton", "clearButton"}),
        ("failed", {"againButton", "removeButton", "clearButton"}),
    ],
)
def test_only_what_can_be_done_can_be_pressed(
    widget: Any, panel: Panel, state: str, buttons: set[str]
) -> None:
    panel.queue.show([entry("A", state)])
    find(widget, "queueTable").selectRow(0)
    names = (
        "upButton",
        "downButton",
        "againButton",
        "cancelEntryButton",
        "removeButton",
        "clearButton",
    )
    assert {name for name in names if find(widget, name).isEnabled()} == buttons


def test_the_buttons_of_the_queue_name_the_chosen_job(widget: Any, panel: Panel) -> None:
    jobs = [entry("A", "waiting"), entry("B", "done")]
    panel.queue.show(jobs)
    panel.queue.unfold()
    pythonqt.process_events(10)
    queue = panel.queue
    moved, removed = Heard(queue.move_requested), Heard(queue.remove_requested)
    stopped, again = Heard(queue.cancel_requested), Heard(queue.again_requested)
    cleared = Heard(queue.clear_requested)
    find(widget, "queueTable").selectRow(0)
    for name in ("upButton", "downButton", "cancelEntryButton", "removeButton"):
        find(widget, name).click()
    find(widget, "queueTable").selectRow(1)
    for name in ("againButton", "clearButton"):
        find(widget, name).click()
    assert moved.values == [(jobs[0], -1), (jobs[0], 1)]
    assert stopped.values == removed.values == [(jobs[0],)]
    assert again.values == [(jobs[1],)]
    assert len(cleared) == 1


def test_the_doubtful_places_of_one_structure_can_be_chosen(widget: Any, panel: Panel) -> None:
    panel.results.show((LEFT, STEM), True)
    selector = find(widget, "placesSelector")
    titles = [selector.itemText(number) for number in range(selector.count())]
    assert titles == ["in all structures", "in Left hippocampus", "in Brain-Stem"]
    heard = Heard(panel.results.places_within)
    for index in (2, 0):
        selector.setCurrentIndex(index)
        selector.activated.emit(index)
    assert heard.values == [("016_Stem",), ("",)], "and nothing where the page sets it by itself"
    panel.results.show_places_within("003_Left")
    assert selector.currentText() == "in Left hippocampus"
    panel.results.show_places_within("gone")
    assert selector.currentText() == "in all structures"
    panel.results.show((LEFT, STEM), False)
    assert not selector.isEnabled()


def test_the_button_says_whether_the_map_is_shown(widget: Any, panel: Panel) -> None:
    panel.results.show((LEFT, STEM), True)
    heard = Heard(panel.results.uncertainty_shown)
    for shown in (True, False):
        panel.results.show_overlay(shown)
        assert find(widget, "uncertaintyButton").isChecked() == shown
    assert heard.values == []
