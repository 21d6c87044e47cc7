"""The real .ui file and the real panel, on Qt with PythonQt's manners."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slicer
from PySide6 import QtCore, QtWidgets
from PySide6.QtTest import QTest
from slicer.util import updateVolumeFromArray

import pythonqt
from medsegai.card import Channel, MemberCard, ModelCard
from medsegai.labels import Label
from medsegai.progress import ProgressEvent
from medsegai.request import StructureMeasures, request_from_options, request_options
from MedSegAILib.panel import Panel
from MedSegAILib.panel.options import ELSEWHERE

REPOSITORY = Path(__file__).resolve().parents[2]
UI = REPOSITORY / "MedSegAI" / "Resources" / "UI" / "MedSegAI.ui"
LEFT = Label(3, "Left hippocampus", (220, 216, 20))
STEM = Label(16, "Brain-Stem", (119, 159, 176))


def card(name: str, *members: str) -> ModelCard:
    return ModelCard(
        id=name,
        name=name.capitalize(),
        family="quicknat",
        version="1.0",
        channels=(Channel("MR", "MR"),),
        labels=(LEFT, STEM),
        members=tuple(MemberCard(member) for member in members),
        spacing_mm=(1, 1, 1),
        intended_use="Research only",
        licence="Apache-2.0",
    )


class Heard:
    """Counts what the panel says."""

    def __init__(self, panel: Panel) -> None:
        self.segment = self.cancel = self.choice = 0
        panel.segment_requested.connect(self._on_segment)
        panel.cancel_requested.connect(self._on_cancel)
        panel.choice_changed.connect(self._on_choice)

    def _on_segment(self) -> None:
        self.segment += 1

    def _on_cancel(self) -> None:
        self.cancel += 1

    def _on_choice(self) -> None:
        self.choice += 1


@pytest.fixture
def widget() -> Iterator[Any]:
    widget = pythonqt.load_ui(UI)
    pythonqt.real(widget).show()
    yield widget
    pythonqt.real(widget).close()


@pytest.fixture
def panel(widget: Any) -> Panel:
    return Panel(pythonqt.child_widget_variables(widget), pythonqt.new_node_selector)


def find(widget: Any, name: str, kind: type = QtWidgets.QWidget) -> Any:
    found = pythonqt.real(widget).findChild(kind, name)
    assert found is not None, name
    return found


def click(widget: Any, name: str) -> None:
    QTest.mouseClick(find(widget, name), QtCore.Qt.MouseButton.LeftButton)


def add_volume(mrml: Any, name: str) -> Any:
    import numpy as np

    node = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    updateVolumeFromArray(node, np.zeros((3, 4, 5)))
    return node


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
    heard = Heard(panel)
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
    assert heard.choice >= 3


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
    heard = Heard(panel)
    find(widget, "modelSelector").setCurrentIndex(1)
    assert panel.choice().card is cards[1]
    assert heard.choice == 1
    assert "Research only" in find(widget, "modelSelector").toolTip()
    panel.show_models([])
    assert panel.choice().card is None


def test_buttons_are_heard(widget: Any, panel: Panel) -> None:
    heard = Heard(panel)
    panel.show_plan("Ready", True)
    click(widget, "segmentButton")
    assert (heard.segment, heard.cancel) == (1, 0)
    panel.show_running()
    click(widget, "segmentButton")
    click(widget, "cancelButton")
    assert (heard.segment, heard.cancel) == (1, 1)


def test_the_plan_says_why_nothing_can_run(widget: Any, panel: Panel) -> None:
    panel.show_plan("There is no input volume.", False)
    assert find(widget, "planLabel").text() == "There is no input volume."
    assert not find(widget, "segmentButton").isEnabled()
    panel.show_plan("Brain on T1.", True)
    assert find(widget, "segmentButton").isEnabled()


def test_a_job_locks_what_it_depends_on_and_frees_it(widget: Any, panel: Panel) -> None:
    panel.show_plan("Ready", True)
    panel.show_message("old news")
    panel.show_running()
    assert find(widget, "progressBar").isVisible()
    assert not find(widget, "messageLabel").isVisible(), "old news beside a new job"
    for name in ("segmentButton", "inputSelector", "modelSelector"):
        assert not find(widget, name).isEnabled(), name
    assert find(widget, "cancelButton").isEnabled()
    panel.show_cancelling()
    assert not find(widget, "cancelButton").isEnabled()
    panel.show_idle()
    assert not find(widget, "progressBar").isVisible()
    assert find(widget, "segmentButton").isEnabled()
    assert find(widget, "inputSelector").isEnabled()
    assert not find(widget, "cancelButton").isEnabled()


@pytest.mark.parametrize(
    ("event", "value", "text"),
    [
        (ProgressEvent("read", 0.0), 0, "Reading – 0 %"),
        (ProgressEvent("predict", 0.421, 73.4), 421, "Predicting – 42 % – 1 min 13 s left"),
        (ProgressEvent("predict", 0.9, 59.6), 900, "Predicting – 90 % – 1 min 00 s left"),
        (ProgressEvent("labels", 1.0, 0.0), 1000, "Joining – 100 % – 0 s left"),
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


# --- options ---------------------------------------------------------------------------------------


def test_every_option_of_a_request_is_shown_with_its_help(widget: Any, panel: Panel) -> None:
    for option in request_options():
        if option.name not in ELSEWHERE:
            row = find(widget, f"{option.name}Option")
            assert row.toolTip() == option.metadata["help"]
    assert set(ELSEWHERE) < {option.name for option in request_options()}


def test_untouched_options_are_the_defaults(panel: Panel) -> None:
    panel.show_models([card("brain", "axial", "coronal", "sagittal")])
    values = panel.choice().options
    request = request_from_options((Path("x"),), values)
    assert request.options() == request_from_options((Path("x"),), {}).options()


def test_changed_options_arrive_with_their_types(widget: Any, panel: Panel) -> None:
    panel.show_models([card("brain", "axial", "coronal", "sagittal")])
    heard = Heard(panel)
    find(widget, "fusionOption").setCurrentText("vote")
    find(widget, "deviceOption").setEditText("cuda:1")
    find(widget, "dropout_passesOption").setValue(12)
    find(widget, "uncertaintyOption").setChecked(True)
    assert heard.choice == 4
    request = request_from_options((Path("x"),), panel.choice().options)
    assert request.fusion == "vote"
    assert request.device == "cuda:1"
    assert request.dropout_passes == 12
    assert request.uncertainty is True


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


# --- the table -------------------------------------------------------------------------------------


def column(widget: Any, number: int) -> list[str]:
    table = find(widget, "resultTable")
    return [table.item(row, number).text().strip() for row in range(table.rowCount())]


def headers(widget: Any) -> list[str]:
    table = find(widget, "resultTable")
    return [table.horizontalHeaderItem(index).text() for index in range(table.columnCount())]


def test_the_table_shows_structures_in_the_models_order(widget: Any, panel: Panel) -> None:
    panel.show_structures(
        [StructureMeasures(LEFT, 4000, 4.0), StructureMeasures(STEM, 25_500, 25.504)]
    )
    assert find(widget, "resultTable").isVisible()
    assert headers(widget) == ["Structure", "Volume (ml)"]
    assert column(widget, 0) == ["Left hippocampus", "Brain-Stem"]
    assert column(widget, 1) == ["4.00", "25.50"]
    color = find(widget, "resultTable").item(0, 0).data(QtCore.Qt.ItemDataRole.DecorationRole)
    assert color.getRgb()[:3] == LEFT.color


def test_the_table_shows_agreement_where_there_is_some(widget: Any, panel: Panel) -> None:
    panel.show_structures(
        [
            StructureMeasures(LEFT, 4000, 4.0, 0.05, 0.93, 0.87, 0.2),
            StructureMeasures(STEM, 0, 0.0, None, None, None, None),
        ]
    )
    assert headers(widget) == ["Structure", "Volume (ml)", "Agreement"]
    assert column(widget, 2) == ["0.87", ""]
    tip = find(widget, "resultTable").item(0, 2).toolTip()
    assert tip == "IoU 0.870, Dice 0.930, CV 0.050, Entropy 0.200"


def test_the_table_sorts_numbers_as_numbers(widget: Any, panel: Panel) -> None:
    volumes = [100.0, 9.5, 0.0, 1234.25, 25.0]
    panel.show_structures(
        [
            StructureMeasures(Label(value, f"S{value}", (0, 0, 0)), 1, volume)
            for value, volume in enumerate(volumes, start=1)
        ]
    )
    table = find(widget, "resultTable")
    table.sortItems(1, QtCore.Qt.SortOrder.DescendingOrder)
    assert column(widget, 1) == ["1234.25", "100.00", "25.00", "9.50", "0.00"]
    assert column(widget, 0) == ["S4", "S1", "S5", "S2", "S3"]


def test_a_second_result_replaces_the_first_even_if_that_was_sorted(
    widget: Any, panel: Panel
) -> None:
    panel.show_structures([StructureMeasures(LEFT, 1, 4.0), StructureMeasures(STEM, 1, 25.0)])
    find(widget, "resultTable").sortItems(0, QtCore.Qt.SortOrder.AscendingOrder)
    panel.show_structures([StructureMeasures(LEFT, 1, 5.0), StructureMeasures(STEM, 1, 26.0)])
    assert column(widget, 0) == ["Left hippocampus", "Brain-Stem"]
    assert column(widget, 1) == ["5.00", "26.00"]
    panel.show_structures([])
    assert not find(widget, "resultTable").isVisible()


def test_a_narrow_panel_cuts_nothing_off(widget: Any, panel: Panel) -> None:
    """Slicer's module column can be 300 pixels wide."""
    panel.show_models([card("brain", "axial")])
    find(widget, "advancedButton").setProperty("collapsed", False)
    panel.show_plan("Brain structures 0.1 on T1 (256 x 256 x 130 voxels): axial. " * 2, True)
    panel.show_error("What went wrong, at some length, so that it has to be wrapped. " * 3)
    pythonqt.process_events()
    assert pythonqt.real(widget).minimumSizeHint().width() <= 300


# --- the adapter itself: each rule of PythonQt is enforced -------------------------------------------


def test_the_adapter_finds_a_misspelt_signal() -> None:
    import qt

    button = qt.QPushButton("Go")
    with pytest.raises(pythonqt.MisspeltSignal):
        button.connect("click()", print)
    with pytest.raises(pythonqt.MisspeltSignal):
        button.connect("clicked(int)", print)
    assert button.connect("clicked(bool)", print)


def test_the_adapter_shows_properties_as_attributes() -> None:
    import qt

    button = qt.QPushButton("Go")
    assert button.text == "Go"
    with pytest.raises(TypeError):
        button.text()
    button.setText("Stop")
    assert button.text == "Stop"
    button.enabled = False
    assert not button.isEnabled()


def test_the_adapter_refuses_unknown_attributes() -> None:
    import qt

    button = qt.QPushButton("Go")
    with pytest.raises(AttributeError):
        button.enable = False
    with pytest.raises(AttributeError):
        button.colour  # noqa: B018
    with pytest.raises(AttributeError):
        qt.QPushButtn  # noqa: B018


def test_the_adapter_keeps_what_a_slot_raises() -> None:
    import qt

    def fail() -> None:
        raise ZeroDivisionError

    button = qt.QPushButton("Go")
    button.connect("clicked()", fail)
    button.click()
    assert [type(error) for error in pythonqt.slot_errors] == [ZeroDivisionError]
    pythonqt.slot_errors.clear()


def test_the_adapter_checks_the_ui_file(tmp_path: Path) -> None:
    text = UI.read_text()
    for right, wrong in (
        ('name="noneEnabled"', 'name="noneEnable"'),
        ('class="QProgressBar"', 'class="QProgressBr"'),
        ("setMRMLScene(vtkMRMLScene*)</slot>", "setScene(vtkMRMLScene*)</slot>"),
        ("<signal>mrmlSceneChanged(", "<signal>sceneChanged("),
    ):
        assert right in text
        path = tmp_path / "wrong.ui"
        path.write_text(text.replace(right, wrong))
        with pytest.raises((AssertionError, AttributeError)):
            pythonqt.load_ui(path)


def test_slicer_core_is_the_real_thing() -> None:
    assert slicer.vtkMRMLScene().IsA("vtkMRMLScene")
