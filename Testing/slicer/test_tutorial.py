"""docs/tutorial.md word for word: what it names is on the screen, and a walk through it works."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from PySide6 import QtGui, QtWidgets
from scipy import ndimage

import before_after
import pythonqt
from medsegai.errors import InputError
from medsegai.models.catalogue import BUNDLED_MODELS, find_card
from medsegai.refinements import title
from MedSegAILib.correction import EFFECT_FILE, EFFECT_NAME
from MedSegAILib.panel import export_dialog
from MedSegAILib.panel.shortcuts import SHORTCUTS
from MedSegAILib.panel.structure_table import NAME, TITLES
from MedSegAILib.panel_values import REVIEW_STATES, ExportChoice
from module_help import node_count
from panel_help import REPOSITORY, UI, card, find, new_panel
from slicer_application import MODULE_FOLDER

TEXT = (REPOSITORY / "docs" / "tutorial.md").read_text()
PICTURES = REPOSITORY / "Testing" / "output" / "tutorial"
PATIENCE = 900.0

SLICERS_OWN = {
    "Download Sample Data",
    "Markups",
    "MedSegAI",
    "Segment Editor",
    "Undo",
    "italics",
}


def words_on_screen() -> set[str]:
    """Every text of the panel, also of what is folded away, and of the model browser."""
    widget = pythonqt.load_ui(UI)
    panel = new_panel(widget)
    panel.show_models([find_card("brain"), card("tumour", "fold_0")])
    panel.show_running()
    panel.results.show((), ())
    found = {"Segment", EFFECT_NAME, *REVIEW_STATES.values(), *TITLES}
    for child in pythonqt.real(widget).findChildren(QtWidgets.QWidget):
        for name in ("text", "title", "windowTitle", "placeholderText"):
            if child.metaObject().indexOfProperty(name) >= 0:
                found.add(str(child.property(name)).removeprefix("▸ "))
        if isinstance(child, QtWidgets.QComboBox):
            found |= {child.itemText(number) for number in range(child.count())}
    source = (MODULE_FOLDER / "MedSegAI.py").read_text()
    found |= set(re.findall(r'sampleName="(.+?)"', source))
    asked = EFFECT_FILE.read_text() + (MODULE_FOLDER / "MedSegAILib" / "host.py").read_text()
    return found | set(re.findall(r'_\("(.+?)"\)', asked))


def named() -> set[str]:
    """What the tutorial puts in italics, outside of code."""
    plain = re.sub(r"```.*?```|`[^`]*`", "", TEXT, flags=re.S)
    return set(re.findall(r"(?<![*\w])\*([^*\n]+)\*(?![*\w])", plain))


def test_every_word_in_italics_is_on_the_screen() -> None:
    assert len(named()) > 30
    assert named() - words_on_screen() - SLICERS_OWN == set()


def test_the_keys_of_the_tutorial_are_those_of_the_panel() -> None:
    (section,) = re.findall(r"^## Keys\n(.*?)(?=^## )", TEXT, re.M | re.S)
    assert set(re.findall(r"Ctrl\+Alt\+\w", section)) == {keys for keys, _button in SHORTCUTS}


def test_the_pictures_are_there_and_can_be_looked_at() -> None:
    names = re.findall(r"!\[.*?\]\((images/\S+)\)", TEXT)
    assert len(names) == 8
    for name in names:
        image = QtGui.QImage(str(REPOSITORY / "docs" / name))
        assert image.width() >= 300, name


def head_mr() -> Any:
    """The ICBM152 T1 that nilearn carries, as a volume node."""
    from medsegai.commands.demo import nilearn_scan

    try:
        return loaded(nilearn_scan())
    except InputError as error:
        pytest.skip(str(error))


def loaded(path: Path) -> Any:
    import nibabel

    image: Any = nibabel.load(path)
    voxels = np.ascontiguousarray(np.asarray(image.dataobj).transpose(2, 1, 0).astype(np.int16))
    return slicer.util.addVolumeFromArray(voxels, image.affine, "MRHead")


class Walk:
    """The page with the real engine behind it, and the hands of a reader."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.widget = pythonqt.real(page.parent)
        self.widget.resize(400, 420)
        self.widget.show()

    def press(self, text: str) -> None:
        """The button with this text."""
        buttons = self.widget.findChildren(QtWidgets.QPushButton)
        (button,) = [
            item for item in buttons if item.text() == text and item.isVisibleTo(self.widget)
        ]
        assert button.isEnabled(), text
        button.click()
        pythonqt.process_events(10)

    def message(self) -> str:
        return str(find(self.page.parent, "messageLabel").text())

    def picture(self, name: str, widget: Any = None) -> None:
        pythonqt.process_events(50)
        PICTURES.mkdir(parents=True, exist_ok=True)
        assert (widget or self.widget).grab().save(str(PICTURES / f"{name}.png"))

    def export_into(self, folder: Path) -> Callable[..., ExportChoice]:
        """Looks at the dialog, and answers in its place."""

        def ask(parent: Any, name: str, reason: str, choice: ExportChoice) -> ExportChoice:
            chosen = ExportChoice("/home/me/head", ("report", "csv", "surfaces"))
            dialog = export_dialog.ExportDialog(parent, name, reason, chosen)
            pythonqt.real(dialog.dialog).show()
            self.picture("panel-export", pythonqt.real(dialog.dialog))
            pythonqt.real(dialog.dialog).close()
            return replace(dialog.choice(), folder=str(folder))

        return ask

    def until(self, condition: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"nothing happened; {self.message()}"
            pythonqt.process_events(20)


@pytest.fixture
def walk(fresh_module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Walk]:
    application = QtWidgets.QApplication.instance()
    assert isinstance(application, QtWidgets.QApplication)
    before = application.style().objectName()
    application.setStyle("Fusion")
    monkeypatch.setattr(
        "shutil.which", lambda cmd, mode=1, path=None: None
    )  # this Python is Slicer's
    monkeypatch.setattr(fresh_module, "install_what_is_missing", lambda *_: None)
    monkeypatch.setenv("MEDSEGAI_MODELS", os.devnull)
    page = fresh_module.MedSegAIWidget()
    yield Walk(page)
    page.cleanup()
    application.setStyle(before)


@pytest.mark.slow
def test_a_walk_through_the_tutorial(
    walk: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole day with the bundled model on a real head MR; it takes a minute on two cores."""
    page, volume = walk.page, head_mr()
    page.panel.choose_input(volume)
    page.enter()
    walk.until(lambda: page.controller._context.devices.findings)
    assert find(page.parent, "modelSelector").currentText() == "Brain structures"
    walk.picture("panel-start")

    walk.press("Segment")
    bar = find(page.parent, "progressBar")
    walk.until(lambda: bar.value() > 200)
    walk.picture("panel-running")
    nodes = slicer.mrmlScene.GetNodesByClass
    walk.until(lambda: nodes("vtkMRMLSegmentationNode").GetNumberOfItems() == 1)
    verdict = find(page.parent, "verdictLabel").text()
    assert re.match(r"3[0-2] structures, (\d+|none) to check", verdict)
    segmentation = nodes("vtkMRMLSegmentationNode").GetItemAsObject(0)

    table = find(page.parent, "resultTable")
    assert table.rowCount() >= 30
    rows = {row.name: row for row in page.controller._context.scene.structures(segmentation)}
    assert 2 < rows["Left hippocampus"].volume_ml < 8
    assert 500 < sum(row.volume_ml for row in rows.values()) < 2500
    table.cellClicked.emit(0, NAME)
    walk.press("Next uncertain region")
    assert walk.message().startswith("Uncertain region 1 of ")
    walk.press("Uncertainty")
    walk.press("Uncertainty")
    walk.press("Show 3D")
    walk.until(lambda: not find(page.parent, "surfacesRow").isVisible())
    assert segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
    page.panel.results.review_chosen.emit((rows["Brain stem"].segment_id,), "completed")
    page.panel.results.review_chosen.emit((rows["Left thalamus"].segment_id,), "inprogress")
    walk.widget.resize(400, 900)
    walk.picture("panel-results")

    walk.press("Statistics")
    walk.until(lambda: find(page.parent, "statisticsButton").isChecked())
    monkeypatch.setattr(page.host, "ask_save_file", lambda *_: str(tmp_path / "numbers.csv"))
    walk.press("Save table…")
    walk.until(lambda: walk.message().startswith("Wrote "))
    assert (tmp_path / "numbers.csv").read_text().count("\n") > 30
    monkeypatch.setattr(export_dialog, "ask", walk.export_into(tmp_path))
    walk.press("Export…")
    walk.until(lambda: re.search(r"Wrote \d\d files", walk.message()))
    assert "Not for diagnostic use" in (tmp_path / "report.html").read_text()
    assert len(list((tmp_path / "surfaces").glob("*.stl"))) > 28
    again = re.search(r"about (\d+) (s|min)", find(page.parent, "planLabel").text())
    assert again, "from the second run on the time is told"

    walk.press("Browse…")
    browser = find(page.parent, "modelBrowser")
    page.panel.browser.select(find_card("brain"))
    walk.picture("panel-models", browser)
    browser.close()
    assert (BUNDLED_MODELS / "brain" / "picture.png").is_file()


def parts_of(draft: Any, label: Any) -> int:
    """How many parts a structure consists of."""
    return int(ndimage.label(draft.labelmap.voxels == label.value, np.ones((3, 3, 3)))[1])


@pytest.mark.slow
def test_refining_as_the_tutorial_says(walk: Walk, shared_data: Path) -> None:
    """A head of a person in whom the model finds a few strays; it takes a minute on two cores."""
    page, volume = walk.page, loaded(shared_data / "t1-head" / "t1_crop.nii.gz")
    page.panel.choose_input(volume)
    page.enter()
    walk.press("Segment")
    nodes = slicer.mrmlScene.GetNodesByClass
    walk.until(lambda: nodes("vtkMRMLSegmentationNode").GetNumberOfItems() == 1)
    scene, segmentation = page.controller._context.scene, page.panel.refine.choice().segmentation
    assert segmentation is nodes("vtkMRMLSegmentationNode").GetItemAsObject(0)
    for name, folded in (("inputsButton", True), ("resultsButton", True), ("refineButton", False)):
        find(page.parent, name).setProperty("collapsed", folded)
    find(page.parent, "refinementSelector").setCurrentText(title("islands"))
    before = scene.draft(segmentation, []).request
    walk.press("Preview")
    walk.until(lambda: node_count() == 2)
    assert "Remove islands: " in find(page.parent, "refineMessage").text()
    np.testing.assert_array_equal(
        scene.draft(segmentation, []).request.labelmap.voxels, before.labelmap.voxels
    )
    walk.widget.resize(400, 820)
    walk.picture("panel-refine")
    walk.press("Apply")
    after = scene.draft(segmentation, []).request
    stray = [label for label in before.labels if label.name in ("4th ventricle", "Left caudate")]
    for label in stray:
        parts, count = ndimage.label(after.labelmap.voxels == label.value, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())[1:] * after.labelmap.geometry.voxel_volume_ml
        assert count == 1 or sorted(sizes)[-2] >= 0.05
        assert parts_of(before, label) > count
    image = before_after.render(
        scene.read(volume),
        before.labelmap,
        after.labelmap,
        before.labels,
        [label.name for label in stray],
    )
    image.save(PICTURES / "refine.png")
