"""The table of results and the queue, as a user sees and uses them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from PySide6 import QtCore, QtWidgets
from PySide6.QtTest import QTest

import pythonqt
from MedSegAILib.panel import Panel
from MedSegAILib.panel.structure_table import EYE, NAME, QUALITY, REVIEW, VOLUME
from MedSegAILib.panel_values import REVIEW_STATES, StructureRow, Verdict
from MedSegAILib.uncertain_regions import HEAT, UNCERTAINTY
from panel_help import UI, Heard, click, find, new_panel, palette

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
    """The texts of a column, of the rows that are shown."""
    shown = table(widget)
    rows = [row for row in range(shown.rowCount()) if not shown.isRowHidden(row)]
    return [shown.item(row, number).text().strip() for row in rows]


def headers(widget: Any) -> list[str]:
    shown = table(widget)
    columns = [index for index in range(shown.columnCount()) if not shown.isColumnHidden(index)]
    return [shown.horizontalHeaderItem(index).text() for index in columns]


def unfold(panel: Panel, mrml: Any) -> Any:
    node = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Result")
    panel.results.choose(node)
    return node


def click_cell(widget: Any, row: int, number: int, *modifiers: Any) -> None:
    """As a user clicks: where the cell is, with the mouse."""
    shown = table(widget)
    place = shown.visualItemRect(shown.item(row, number)).center()
    button = QtCore.Qt.MouseButton.LeftButton
    QTest.mouseClick(shown.viewport(), button, *modifiers, pos=place)


def key(widget: Any, pressed: Any) -> None:
    QTest.keyClick(table(widget), pressed)


def four() -> list[StructureRow]:
    """Of every quality and state of review."""
    made = [
        StructureRow("1", "Left thalamus", (1, 2, 3), 7.0, "good", "", "notstarted"),
        StructureRow("2", "Right thalamus", (4, 5, 6), 7.5, "check", "Look.", "flagged"),
        StructureRow("3", "Left pallidum", (7, 8, 9), 1.5, "poor", "Bad.", "flagged", False),
        StructureRow("4", "Right pallidum", (7, 8, 9), 1.6, "poor", "Bad.", "completed"),
    ]
    return made


def test_structures_stand_in_the_order_of_the_segmentation(
    widget: Any, panel: Panel, mrml: Any
) -> None:
    unfold(panel, mrml)
    panel.results.show([LEFT, STEM], ())
    assert table(widget).isVisible()
    assert headers(widget) == ["", "Structure", "ml"]
    assert column(widget, NAME) == ["Left hippocampus", "Brain-Stem"]
    assert column(widget, VOLUME) == ["4.00", "25.50"]
    color = table(widget).item(0, NAME).data(QtCore.Qt.ItemDataRole.DecorationRole)
    assert color.getRgb()[:3] == LEFT.color


def test_quality_is_a_word_in_one_column_and_its_reason_a_tool_tip(
    widget: Any, panel: Panel, mrml: Any
) -> None:
    unfold(panel, mrml)
    panel.results.show([*four(), LEFT], (UNCERTAINTY,))
    assert headers(widget) == ["", "Structure", "ml", "Quality", "✓"]
    assert column(widget, QUALITY) == ["good", "⚠ check", "⚠ poor", "⚠ poor", ""]
    assert table(widget).item(1, QUALITY).toolTip() == "Look."
    colors = [table(widget).item(row, QUALITY).foreground().color().name() for row in range(3)]
    assert len(set(colors)) == 3
    table(widget).sortItems(QUALITY, QtCore.Qt.SortOrder.DescendingOrder)
    assert column(widget, QUALITY) == ["⚠ poor", "⚠ poor", "⚠ check", "good", ""], "the worst first"
    assert find(widget, "nextButton").isEnabled()
    panel.results.show([STEM], ())
    assert not find(widget, "nextButton").isEnabled()
    assert not find(widget, "uncertaintyButton").isEnabled()
    assert not find(widget, "completeGoodButton").isEnabled(), "nothing is known to be good"


def test_numbers_sort_as_numbers(widget: Any, panel: Panel, mrml: Any) -> None:
    unfold(panel, mrml)
    volumes = [100.0, 9.5, 0.0, 1234.25, 25.0]
    rows = [
        StructureRow(str(number), f"S{number}", (0, 0, 0), volume)
        for number, volume in enumerate(volumes, start=1)
    ]
    panel.results.show(rows, ())
    table(widget).sortItems(VOLUME, QtCore.Qt.SortOrder.DescendingOrder)
    assert column(widget, VOLUME) == ["1234.25", "100.00", "25.00", "9.50", "0.00"]
    heard = Heard(panel.results.structure_chosen)
    click_cell(widget, 0, VOLUME)
    assert heard.values == [("4",)], "the segment that stands there now"


def test_a_second_result_replaces_the_first_even_if_that_was_sorted(
    widget: Any, panel: Panel, mrml: Any
) -> None:
    unfold(panel, mrml)
    panel.results.show([LEFT, STEM], ())
    table(widget).sortItems(NAME, QtCore.Qt.SortOrder.AscendingOrder)
    panel.results.show([LEFT, STEM], ())
    assert column(widget, NAME) == ["Left hippocampus", "Brain-Stem"]
    panel.results.show([], ())
    assert not table(widget).isVisible()


def test_clicks_and_arrow_keys_go_to_a_structure(widget: Any, panel: Panel, mrml: Any) -> None:
    unfold(panel, mrml)
    panel.results.show([LEFT, STEM], ())
    heard = Heard(panel.results.structure_chosen)
    click_cell(widget, 1, NAME)
    click_cell(widget, 1, VOLUME)
    assert heard.values == [("016_Stem",)] * 2, "once for each click"
    key(widget, QtCore.Qt.Key.Key_Up)
    assert heard.values[2:] == [("003_Left",)]
    key(widget, QtCore.Qt.Key.Key_Down)
    assert heard.values[3:] == [("016_Stem",)]
    panel.results.select("003_Left")
    panel.results.update([replace(LEFT, shown=False)])
    assert len(heard) == 4, "what the program does is no click"


def test_the_eye_hides_and_shows(widget: Any, panel: Panel, mrml: Any) -> None:
    unfold(panel, mrml)
    panel.results.show(four(), ())
    shown, jumped = Heard(panel.results.shown_chosen), Heard(panel.results.structure_chosen)
    click_cell(widget, 0, EYE)
    click_cell(widget, 2, EYE)
    assert shown.values == [(("1",), False), (("3",), True)]
    panel.results.update([replace(four()[0], shown=False)])
    click_cell(widget, 0, EYE)
    assert shown.values[2:] == [(("1",), True)]
    assert len(jumped) == 0
    open_eye, closed = (table(widget).item(row, EYE).icon() for row in (1, 0))
    assert open_eye.pixmap(16).toImage() != closed.pixmap(16).toImage()


def test_the_review_is_completed_by_a_click_and_taken_back_by_another(
    widget: Any, panel: Panel, mrml: Any
) -> None:
    unfold(panel, mrml)
    panel.results.show(four(), ())
    assert column(widget, REVIEW) == ["·", "⚑", "⚑", "✓"]
    chosen, jumped = Heard(panel.results.review_chosen), Heard(panel.results.structure_chosen)
    click_cell(widget, 1, REVIEW)
    click_cell(widget, 3, REVIEW)
    assert chosen.values == [(("2",), "completed"), (("4",), "notstarted")]
    assert len(jumped) == 0
    panel.results.update([replace(four()[1], review="completed")])
    assert column(widget, REVIEW) == ["·", "✓", "⚑", "✓"]


def menu_of(widget: Any) -> dict[str, Any]:
    shown = table(widget)
    shown.customContextMenuRequested.emit(QtCore.QPoint(20, 20))
    menu = shown.findChildren(QtWidgets.QMenu, "structureMenu")[-1]
    menu.close()
    return {action.text().split("  ")[-1]: action for action in menu.actions()}


def test_the_menu_changes_all_selected_rows(widget: Any, panel: Panel, mrml: Any) -> None:
    unfold(panel, mrml)
    panel.results.show(four(), ())
    pythonqt.process_events(10)
    reviewed, only = Heard(panel.results.review_chosen), Heard(panel.results.only_chosen)
    shown = Heard(panel.results.shown_chosen)
    click_cell(widget, 0, NAME)
    click_cell(widget, 2, NAME, QtCore.Qt.KeyboardModifier.ShiftModifier)
    actions = menu_of(widget)
    assert set(REVIEW_STATES.values()) <= set(actions)
    actions["Completed"].trigger()
    actions["Show only these"].trigger()
    actions["Hide"].trigger()
    actions["Show all"].trigger()
    assert reviewed.values == [(("1", "2", "3"), "completed")]
    assert only.values == [(("1", "2", "3"),)]
    assert shown.values == [(("1", "2", "3"), False), (("1", "2", "3", "4"), True)]
    in_3d = Heard(panel.results.in_3d_chosen)
    actions["Show in 3D"].trigger()
    actions["Hide in 3D"].trigger()
    assert in_3d.values == [(("1", "2", "3"), True), (("1", "2", "3"), False)]
    panel.results.show(four(), ())
    heard = Heard(panel.results.done_requested)
    find(widget, "doneButton").click()
    assert heard.values == [(("1", "2", "3"),)], "what was selected stays so"


def test_the_menu_of_show_3d_says_how_smooth(widget: Any, panel: Panel, mrml: Any) -> None:
    unfold(panel, mrml)
    panel.results.show(four(), ())
    heard, button = Heard(panel.results.smoothing_chosen), find(widget, "show3dButton")
    button.customContextMenuRequested.emit(QtCore.QPoint(1, 1))
    (menu,) = button.findChildren(QtWidgets.QMenu, "smoothingMenu")
    menu.close()
    for action in menu.actions():
        action.trigger()
    assert heard.values == [(0.0,), (0.5,), (0.8,)]


def test_the_table_is_narrowed_by_name_and_by_state(widget: Any, panel: Panel, mrml: Any) -> None:
    unfold(panel, mrml)
    panel.results.show(four(), ())
    states = find(widget, "resultStateSelector")
    expected = {
        "All": [0, 1, 2, 3],
        "To check": [1, 2],
        "Not completed": [0, 1, 2],
        "Completed": [3],
        "Hidden": [2],
    }
    assert [states.itemText(n) for n in range(states.count())] == list(expected)
    for title, numbers in expected.items():
        states.setCurrentText(title)
        assert column(widget, NAME) == [four()[number].name for number in numbers], title
    states.setCurrentText("All")
    QTest.keyClicks(find(widget, "resultFilterEdit"), "pall LEFT")
    assert column(widget, NAME) == ["Left pallidum"]
    panel.results.show(four(), ())
    assert column(widget, NAME) == ["Left pallidum"], "it stays narrow"
    click_cell(widget, 2, NAME)
    find(widget, "resultFilterEdit").setText("thalamus")
    heard = Heard(panel.results.done_requested)
    find(widget, "doneButton").click()
    assert heard.values == [((),)], "what cannot be seen is not completed"


def test_the_next_to_check_follows_the_order_on_the_screen(
    widget: Any, panel: Panel, mrml: Any
) -> None:
    unfold(panel, mrml)
    panel.results.show(four(), ())
    assert panel.results.next_to_check() == "2"
    panel.results.select("2")
    assert panel.results.next_to_check() == "3"
    panel.results.update([replace(four()[2], review="completed")])
    assert panel.results.next_to_check() == "2", "from the top again"
    panel.results.update([replace(four()[1], review="completed")])
    assert panel.results.next_to_check() == ""
    panel.results.show(four(), ())
    table(widget).sortItems(NAME, QtCore.Qt.SortOrder.AscendingOrder)
    table(widget).clearSelection()
    assert panel.results.next_to_check() == "3", "Left pallidum stands first now"


def test_names_can_be_read_in_a_narrow_column(widget: Any, panel: Panel, mrml: Any) -> None:
    """There is no room for volumes then; they stand in the tool tips."""
    unfold(panel, mrml)
    panel.results.show(four(), ())
    for width, titles in (
        (300, ["", "Structure", "Quality", "✓"]),
        (400, ["", "Structure", "ml", "Quality", "✓"]),
    ):
        pythonqt.real(widget).resize(width, 850)
        pythonqt.process_events(10)
        assert headers(widget) == titles
        assert table(widget).columnWidth(NAME) > 100
    assert "7.00 ml" in table(widget).item(0, NAME).toolTip()


def test_one_line_is_seen_and_the_rest_is_folded(widget: Any, panel: Panel, mrml: Any) -> None:
    unfold(panel, mrml)
    details = "Left pallidum: poor quality is expected.\nIt took 12 s."
    panel.results.show_verdict(Verdict("32 structures, 5 to check", "doubt", details))
    label, more = find(widget, "verdictLabel"), find(widget, "detailsLabel")
    assert label.text() == "32 structures, 5 to check"
    assert "color" in label.styleSheet()
    assert not more.isVisible()
    click(widget, "detailsButton")
    assert more.isVisible()
    assert more.text() == details
    click(widget, "detailsButton")
    assert not more.isVisible()
    panel.results.show_verdict(Verdict())
    assert not label.isVisible()
    assert not find(widget, "detailsButton").isVisible()


def test_the_buttons_of_a_result_are_heard(widget: Any, panel: Panel, mrml: Any) -> None:
    unfold(panel, mrml)
    panel.results.show(four(), (HEAT, UNCERTAINTY))
    results = panel.results
    signals = {
        "completeGoodButton": (results.good_completed, ()),
        "doneButton": (results.done_requested, ((),)),
        "nextButton": (results.next_requested, ()),
        "uncertaintyButton": (results.overlay_chosen, (UNCERTAINTY,)),
        "heatButton": (results.overlay_chosen, (HEAT,)),
        "show3dButton": (results.surfaces_shown, (True,)),
        "statisticsButton": (results.statistics_shown, (True,)),
        "csvButton": (results.csv_requested, ()),
        "exportButton": (results.export_requested, ()),
        "correctButton": (results.correct_requested, ()),
        "slabButton": (results.slab_requested, ()),
        "keepButton": (results.keep_requested, ()),
    }
    for name, (signal, told) in signals.items():
        heard = Heard(signal)
        click(widget, name)
        assert heard.values == [told], name
    results.show([LEFT], (UNCERTAINTY,))
    assert not find(widget, "show3dButton").isChecked(), "another result is not shown yet"
    assert find(widget, "statisticsButton").isChecked(), "the layout of the views is as it was"
    heard = Heard(results.statistics_shown)
    results.show_statistics(False)
    assert not find(widget, "statisticsButton").isChecked()
    assert len(heard) == 0


@pytest.mark.parametrize("name", ["uncertaintyButton", "show3dButton", "statisticsButton"])
def test_a_pressed_button_looks_pressed_in_the_dark_style(
    widget: Any, panel: Panel, mrml: Any, name: str
) -> None:
    unfold(panel, mrml)
    panel.results.show(four(), (UNCERTAINTY,))
    application = QtWidgets.QApplication.instance()
    assert isinstance(application, QtWidgets.QApplication)
    before = application.palette()
    application.setPalette(palette(dark=True))
    button = find(widget, name)
    colors = []
    for pressed in (False, True):
        button.blockSignals(True)
        button.setChecked(pressed)
        pythonqt.process_events(10)
        colors.append(button.grab().toImage().pixelColor(button.width() // 2, 4))
    application.setPalette(before)
    apart = sum(abs(a - b) for a, b in zip(*(c.getRgb()[:3] for c in colors), strict=True))
    assert apart > 100


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
            entry("D", "failed", message="The device cuda:7 is unknown."),
            entry("E", "cancelled"),
        ]
    )
    assert find(widget, "queueButton").property("text") == "Queue – 1 running, 1 waiting"
    assert states(widget) == ["done", "42 %, 1 min 13 s", "waiting", "failed", "stopped"]
    assert "cuda:7" in find(widget, "queueTable").item(3, 1).toolTip()


def test_progress_changes_the_row_and_keeps_the_selection(widget: Any, panel: Panel) -> None:
    jobs = [entry("A", "running"), entry("B", "waiting")]
    panel.queue.show(jobs)
    find(widget, "queueButton").setProperty("collapsed", False)
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
    find(widget, "queueButton").setProperty("collapsed", False)
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


def test_the_uncertain_regions_of_one_structure_can_be_chosen(widget: Any, panel: Panel) -> None:
    panel.results.show((LEFT, STEM), (UNCERTAINTY,))
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
    panel.results.show((LEFT, STEM), ())
    assert not selector.isEnabled()


def test_the_button_says_whether_the_map_is_shown(widget: Any, panel: Panel) -> None:
    panel.results.show((LEFT, STEM), (UNCERTAINTY,))
    heard = Heard(panel.results.overlay_chosen)
    for shown in (True, False):
        panel.results.show_overlay(UNCERTAINTY if shown else "", 0.6)
        assert find(widget, "uncertaintyButton").isChecked() == shown
    assert heard.values == []


def test_one_map_at_most_is_pressed_and_its_opacity_is_beside_it(
    widget: Any, panel: Panel, mrml: Any
) -> None:
    unfold(panel, mrml)
    heat, doubt = find(widget, "heatButton"), find(widget, "uncertaintyButton")
    slider = find(widget, "opacitySlider")
    panel.results.show((LEFT, STEM), (HEAT, UNCERTAINTY))
    assert heat.isVisible()
    assert not slider.isVisible(), "no map is shown"
    chosen, opacity = Heard(panel.results.overlay_chosen), Heard(panel.results.opacity_chosen)
    for kind in (HEAT, UNCERTAINTY):
        panel.results.show_overlay(kind, 0.25)
        assert (heat.isChecked(), doubt.isChecked()) == (kind == HEAT, kind == UNCERTAINTY)
        assert slider.isVisible()
        assert slider.value() == 25
    assert chosen.values == opacity.values == []
    slider.setValue(80)
    assert opacity.values == [(0.8,)]
    click(widget, "uncertaintyButton")
    assert chosen.values == [("",)]


def test_the_next_place_is_called_what_it_is(widget: Any, panel: Panel, mrml: Any) -> None:
    unfold(panel, mrml)
    button = find(widget, "nextButton")
    for maps, text in (
        ((HEAT,), "Next suspicious place"),
        ((HEAT, UNCERTAINTY), "Next suspicious place"),
        ((UNCERTAINTY,), "Next uncertain region"),
    ):
        panel.results.show((LEFT, STEM), maps)
        assert button.text() == text
        assert find(widget, "heatButton").isVisible() == (HEAT in maps)
        assert find(widget, "uncertaintyButton").isEnabled() == (UNCERTAINTY in maps)
    panel.results.show((LEFT, STEM), ())
    assert not button.isEnabled()
