"""The adapter itself: each rule of PythonQt is enforced, or the tests of the panel would prove little."""

from __future__ import annotations

from pathlib import Path

import pytest
import slicer

import pythonqt
import slicer_facts
from panel_help import UI


def test_the_adapter_finds_a_misspelt_signal() -> None:
    import qt

    button = qt.QPushButton("Go")
    with pytest.raises(slicer_facts.NotInSlicer):
        button.connect("click()", print)
    with pytest.raises(slicer_facts.NotInSlicer):
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


def test_the_adapter_lets_a_script_derive_a_filter_of_events() -> None:
    import qt

    class Filter(qt.QWidget):  # type: ignore[misc,name-defined]
        def eventFilter(self, watched: object, event: object) -> bool:
            self.seen.append(event.type())
            return False

    button, kept = qt.QPushButton("Go"), Filter()
    kept.seen = []
    button.installEventFilter(kept)
    button.show()
    pythonqt.process_events(10)
    button.close()
    assert qt.QEvent.Show in kept.seen
    assert qt.QEvent.Close in kept.seen


def test_the_adapter_has_the_names_of_slicers_qt_alone() -> None:
    """PySide6 has more: names of Qt 6, keywords, and what Qt's Python for Slicer does not wrap."""
    import qt

    box, item = qt.QCheckBox("Go"), qt.QTableWidgetItem("Go")
    with pytest.raises(slicer_facts.NotInSlicer):
        box.connect("checkStateChanged(Qt::CheckState)", print)
    with pytest.raises(slicer_facts.NotInSlicer):
        box.initStyleOptions  # noqa: B018
    with pytest.raises(slicer_facts.NotInSlicer):
        item.setTextColour("red")
    with pytest.raises(slicer_facts.NotInSlicer):
        qt.QColor.fromString("#fff")  # since Qt 6.4
    with pytest.raises(TypeError, match="takes no keywords"):
        box.setText(text="Stop")
    assert item.text() == "Go"
    assert qt.QColor("#ff0000").red() == 255
    assert qt.QColor("#ff0000") == qt.QColor(255, 0, 0)
