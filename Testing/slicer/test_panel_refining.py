"""Refinements on the screen: each option of each one has a widget, for a run and for segments that are there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Any

import pytest
from PySide6 import QtCore, QtWidgets

import pythonqt
from medsegai import refinements
from medsegai.models.refinement import Refinement
from medsegai.refinements import option_fields, parse, refinement_names, summary, title
from medsegai.refinements._settings import setting
from medsegai.request import request_from_options, request_options
from MedSegAILib.panel import Panel
from MedSegAILib.panel.fields import field_widget, tip_of, title_of, words_of
from MedSegAILib.panel_values import SegmentRow
from panel_help import LEFT, STEM, UI, Heard, add_volume, card, click, find, new_panel

CHECKED, UNCHECKED = QtCore.Qt.CheckState.Checked, QtCore.Qt.CheckState.Unchecked


@pytest.fixture
def widget(mrml: Any) -> Iterator[Any]:
    made = pythonqt.load_ui(UI)
    pythonqt.real(made).show()
    pythonqt.real(made).setMRMLScene(mrml)
    yield made
    pythonqt.real(made).close()


@pytest.fixture
def panel(widget: Any) -> Panel:
    made = new_panel(widget)
    made.show_models([card("brain", "axial"), card("liver", "fold_0", labels=(STEM,))])
    find(widget, "refineButton").setProperty("collapsed", False)
    find(widget, "advancedButton").setProperty("collapsed", False)
    return made


def add(widget: Any, name: str) -> None:
    find(widget, "refinementNames").setCurrentText(title(name))
    click(widget, "addRefinementButton")


def rows(widget: Any) -> list[str]:
    shown = find(widget, "refinementList")
    return [shown.item(number).text() for number in range(shown.count())]


def chosen(panel: Panel) -> tuple[str, ...]:
    request = request_from_options((Path("x"),), panel.choice().options)
    return request.refinements


def tick(shown: Any, name: str, on: bool = True) -> None:
    for number in range(shown.count()):
        if shown.item(number).text() == name:
            shown.item(number).setCheckState(CHECKED if on else UNCHECKED)


# --- of a run --------------------------------------------------------------------------------------


def test_no_refinement_is_the_default_and_shows_no_list(widget: Any, panel: Panel) -> None:
    assert chosen(panel) == ()
    assert not find(widget, "refinementList").isVisible()
    box = find(widget, "refinementNames")
    assert [box.itemText(n) for n in range(box.count())] == [
        title(name) for name in refinement_names()
    ]
    tips = [box.itemData(n, QtCore.Qt.ItemDataRole.ToolTipRole) for n in range(box.count())]
    assert tips == [f"{summary(name)} ({name})" for name in refinement_names()]


@pytest.mark.parametrize("name", refinement_names())
def test_every_option_of_every_refinement_has_its_widget(
    widget: Any, panel: Panel, name: str
) -> None:
    add(widget, name)
    assert chosen(panel) == (name,), "untouched options are the defaults"
    for option in option_fields(name):
        shown = find(widget, f"refinement_{option.name}")
        assert shown.toolTip() == tip_of(option)
        if option.metadata["choices"]:
            found = {shown.itemData(n): shown.itemText(n) for n in range(shown.count())}
            assert tuple(found) == tuple(option.metadata["choices"])
            assert found == words_of(option)
        if option.metadata["bounds"]:
            assert (shown.minimum(), shown.maximum()) == option.metadata["bounds"]
            assert shown.value() == option.default


@pytest.mark.parametrize(
    "option",
    [*request_options(), *(field for name in refinement_names() for field in option_fields(name))],
    ids=lambda option: option.name,
)
def test_no_identifier_is_a_label(option: Any) -> None:
    """Members, tile_step, sigma_mm and their like stand in tool tips."""
    words = title_of(option)
    assert "_" not in words
    assert not re.search(
        r"(?i)\b(sigma|connectivity|members?|fusion|backend|seed|prior|labels)\b", words
    )
    assert option.metadata["title"] or option.name in (
        "models",
        "region",
        "probabilities",
        "candidates",
    )
    assert tip_of(option).endswith(f"({option.name})")
    for choice, word in words_of(option).items():
        assert word.lower() != choice or choice == "openvino", "the value is no word of a clinician"
        assert not re.search(r"_|\d", word)
        assert f"{word}: {choice}" in tip_of(option)


def test_refinements_have_names_that_say_what_they_do() -> None:
    for name in refinement_names():
        assert "_" not in title(name)
        assert title(name).lower() != name.replace("_", " "), "a verb and a noun"


@pytest.mark.parametrize(
    ("value", "step"), [(0.05, 0.01), (0.3, 0.01), (0.7, 0.1), (1.0, 0.1), (2.0, 0.1), (0.0, 0.1)]
)
def test_a_step_is_a_small_part_of_the_value(value: float, step: float) -> None:
    option = setting(value, "how far, in mm", (0.0, 50.0))
    (found,) = fields(make_dataclass("Options", [("move_mm", float, option)]))
    widget, read, _write = field_widget(found, value, lambda: None)
    assert widget.singleStep == pytest.approx(step)
    assert read() == value
    pythonqt.real(widget).stepUp()
    assert read() == pytest.approx(value + step)


def test_changed_options_arrive_as_the_command_line_writes_them(widget: Any, panel: Panel) -> None:
    heard = Heard(panel.choice_changed)
    add(widget, "islands")
    find(widget, "refinement_smallest_ml").setValue(0.125)
    find(widget, "refinement_keep").setValue(2)
    find(widget, "refinement_spare_largest").setChecked(False)
    find(widget, "refinement_connectivity").setCurrentText("faces")
    tick(find(widget, "refinement_labels"), "Brain-Stem")
    assert len(heard) == 6
    expected = {"labels": (16,), "smallest_ml": 0.125, "keep": 2, "spare_largest": False}
    (text,) = chosen(panel)
    assert parse(text) == Refinement("islands", {"connectivity": "6"} | expected)
    assert rows(widget) == [
        "Remove islands: Structures 1, Smallest part (ml) 0.125, Parts to keep 2, Spare the largest no, "
        "Parts touch by 6"
    ]
    assert text in find(widget, "refinementList").toolTip(), (
        "what scripts and the command line write"
    )
    tick(find(widget, "refinement_labels"), "Brain-Stem", False)
    assert "labels" not in parse(chosen(panel)[0]).options, "none of them ticked means all of them"


def test_they_run_in_the_order_of_the_list(widget: Any, panel: Panel) -> None:
    for name in ("islands", "holes", "smoothing"):
        add(widget, name)
    assert chosen(panel) == ("islands", "holes", "smoothing")
    click(widget, "refinementUpButton")
    assert chosen(panel) == ("islands", "smoothing", "holes")
    click(widget, "refinementUpButton")
    click(widget, "refinementUpButton")
    assert chosen(panel) == ("smoothing", "islands", "holes")
    find(widget, "refinement_sigma_mm").setValue(1.5)
    click(widget, "refinementDownButton")
    assert chosen(panel) == ("islands", "smoothing:sigma_mm=1.5", "holes")
    find(widget, "refinementList").setCurrentRow(0)
    assert find(widget, "refinement_keep").value() == 0
    find(widget, "refinement_keep").setValue(3)
    find(widget, "refinementList").setCurrentRow(1)
    assert find(widget, "refinement_sigma_mm").value() == 1.5, "each keeps its own options"
    click(widget, "removeRefinementButton")
    assert chosen(panel) == ("islands:keep=3", "holes")
    click(widget, "removeRefinementButton")
    click(widget, "removeRefinementButton")
    assert chosen(panel) == ()
    assert not find(widget, "refinementList").isVisible()


def test_structures_are_those_of_the_model(widget: Any, panel: Panel) -> None:
    add(widget, "islands")
    shown = find(widget, "refinement_labels")
    assert [shown.item(n).text() for n in range(shown.count())] == [LEFT.name, STEM.name]
    tick(shown, LEFT.name)
    find(widget, "refinement_keep").setValue(1)
    find(widget, "modelSelector").setCurrentIndex(1)
    assert chosen(panel) == ("islands:keep=1",), "another model has other structures"
    shown = find(widget, "refinement_labels")
    assert [shown.item(n).text() for n in range(shown.count())] == [STEM.name]


def test_a_new_refinement_appears_by_itself(
    mrml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file in the folder of refinements, and no edit elsewhere."""
    (tmp_path / "polish.py").write_text(
        '"""Polish structures until they shine."""\n'
        "from dataclasses import dataclass\n"
        "from medsegai.refinements._settings import setting\n\n\n"
        "@dataclass(frozen=True)\nclass Options:\n"
        '    strokes: int = setting(7, "how often", (1, 9))\n'
        '    cloth: str = setting("silk", "with what", choices=("silk", "wool"))\n'
    )
    monkeypatch.setattr(refinements, "__path__", [*refinements.__path__, str(tmp_path)])
    widget = pythonqt.load_ui(UI)
    panel = new_panel(widget)
    add(widget, "polish")
    find(widget, "refinement_cloth").setCurrentText("wool")
    assert chosen(panel) == ("polish:cloth=wool",)
    find(widget, "refinementSelector").setCurrentText("Polish")
    assert find(widget, "refinementNote").text() == "Polish structures until they shine."
    find(widget, "refineOption_strokes").setValue(12)
    assert panel.refine.choice().refinement == Refinement("polish", {"strokes": 9})
    sys.modules.pop("medsegai.refinements.polish")


# --- of a segmentation that is there ---------------------------------------------------------------


@pytest.mark.parametrize("name", refinement_names())
def test_the_section_shows_the_options_of_each_refinement(
    widget: Any, panel: Panel, name: str
) -> None:
    find(widget, "refinementSelector").setCurrentText(title(name))
    assert find(widget, "refinementNote").text() == summary(name)
    assert panel.refine.choice().refinement == Refinement(name)
    for option in option_fields(name):
        found = pythonqt.real(widget).findChildren(QtWidgets.QWidget, f"refineOption_{option.name}")
        if isinstance(option.default, tuple):
            assert not found, "the segments are chosen above"
        else:
            assert found[-1].toolTip() == tip_of(option)


def test_options_arrive_with_their_types(widget: Any, panel: Panel) -> None:
    heard = Heard(panel.refine.choice_changed)
    find(widget, "refinementSelector").setCurrentText(title("level_set"))
    find(widget, "refineOption_method").setCurrentText("by similar brightness")
    find(widget, "refineOption_move_mm").setValue(2.25)
    find(widget, "refineOption_iterations").setValue(7)
    expected = Refinement("level_set", {"method": "threshold", "move_mm": 2.25, "iterations": 7})
    assert panel.refine.choice().refinement == expected
    assert len(heard) == 4


def test_segmentation_and_image_are_chosen(widget: Any, panel: Panel, mrml: Any) -> None:
    heard = Heard(panel.refine.segmentation_chosen)
    assert panel.refine.choice().segmentation is None
    volume = add_volume(mrml, "Head")
    node = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Manual")
    panel.refine.choose(node)
    panel.refine.choose_image(volume)
    assert heard.values == [(node,)]
    choice = panel.refine.choice()
    assert (choice.segmentation, choice.image, choice.every) == (node, volume, True)
    panel.refine.choose_image(None)
    assert panel.refine.choice().image is None
    mrml.RemoveNode(node)
    assert panel.refine.choice().segmentation is None


def segments(*locked: str) -> list[SegmentRow]:
    names = ("Liver", "Spleen", "Lesion")
    return [SegmentRow(f"{name}1", name, (9, 8, 7), name in locked) for name in names]


def test_some_segments_can_be_ticked_and_completed_ones_cannot(widget: Any, panel: Panel) -> None:
    panel.refine.show_segments(segments("Spleen"))
    shown = find(widget, "refineSegments")
    assert not shown.isVisible(), "all of them are meant"
    find(widget, "refineSegmentsSelector").setCurrentIndex(1)
    assert shown.isVisible()
    assert panel.refine.choice().every is False
    assert panel.refine.choice().segments == ()
    heard = Heard(panel.refine.choice_changed)
    tick(shown, "Lesion")
    assert len(heard) == 1
    assert panel.refine.choice().segments == ("Lesion1",)
    assert not shown.item(1).flags() & QtCore.Qt.ItemFlag.ItemIsEnabled
    assert "completed" in shown.item(1).toolTip()
    panel.refine.show_segments(segments("Lesion"))
    assert panel.refine.choice().segments == (), "it was completed meanwhile"
    tick(shown, "Liver")
    panel.refine.show_segments(segments()[:2])
    assert panel.refine.choice().segments == ("Liver1",), "what is ticked stays so"


def test_buttons_tell_what_was_pressed_and_can_be_pressed_when_it_makes_sense(
    widget: Any, panel: Panel
) -> None:
    buttons = {
        "refinePreviewButton": Heard(panel.refine.preview_requested),
        "refineApplyButton": Heard(panel.refine.apply_requested),
        "refineCancelButton": Heard(panel.refine.cancel_requested),
    }
    for running, previewing, pressed in (
        (False, False, ("refinePreviewButton", "refineApplyButton")),
        (True, False, ("refineCancelButton",)),
        (False, True, tuple(buttons)),
    ):
        panel.refine.show_state(running=running, previewing=previewing)
        before = {name: len(heard) for name, heard in buttons.items()}
        for name in buttons:
            click(widget, name)
        after = {name: len(heard) for name, heard in buttons.items()}
        assert {name for name in buttons if after[name] > before[name]} == set(pressed)


def test_what_was_changed_is_told_below_the_buttons(widget: Any, panel: Panel) -> None:
    label = find(widget, "refineMessage")
    assert not label.isVisible()
    panel.refine.show_message("Refinement <islands> changed 3 voxels.")
    assert label.isVisible()
    assert label.textFormat() == QtCore.Qt.TextFormat.PlainText
    assert label.styleSheet() == ""
    panel.refine.show_message("Liver and Lesion overlap.", problem=True)
    assert "color" in label.styleSheet()
    panel.refine.show_message("")
    assert not label.isVisible()
