"""Measuring and handing over from a script and from the page, with real scene, worker and files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from slicer.util import arrayFromVolume

from dicom_files import write_series
from medsegai.cli import main
from medsegai.errors import InputError, OutputExistsError, RequestError
from medsegai.io import write_segmentation, write_volume
from medsegai.labels import Label
from medsegai.volume import Geometry, Volume
from MedSegAILib.panel import export_dialog
from MedSegAILib.panel_values import ExportChoice
from MedSegAILib.scene.inputs import ijk_to_local
from MedSegAILib.scene.statistics import TABLE_REFERENCE
from module_help import button, head, message, press, segment_voxels, until
from scene_images import paint
from stand_ins import put_object

pytest.importorskip("highdicom")
pytest.importorskip("manifold3d")

NAMES = ("Left hippocampus", "Brain-Stem")


@pytest.fixture
def page(module: Any) -> Iterator[Any]:
    page = module.MedSegAIWidget()
    yield page
    page.cleanup()


class Database:
    """Slicer's DICOM database with one series."""

    def __init__(self, folder: Path) -> None:
        self._files = {
            str(pydicom.dcmread(path).SOPInstanceUID): str(path) for path in folder.iterdir()
        }
        self.instances = " ".join(self._files)
        self.series = str(pydicom.dcmread(next(folder.iterdir())).SeriesInstanceUID)

    def fieldForSeries(self, name: str, series: str) -> str:
        return {"Modality": "MR"}[name]

    def fileForInstance(self, uid: str) -> str:
        return self._files.get(uid, "")

    def seriesForFile(self, file: str) -> str:
        return self.series

    def filesForSeries(self, series: str) -> tuple[str, ...]:
        return tuple(self._files.values())


class Case:
    """A segmentation of a volume, of which a person corrected one segment, and a folder for files."""

    def __init__(self, module: Any, folder: Path) -> None:
        self.logic, self.volume = module.MedSegAILogic(), head()
        self.node = self.logic.segment(self.volume, "quick")
        self.ids = self.node.GetSegmentation().GetSegmentIDs()
        corrected = self.mask(1)
        corrected[3, 0, 9] = True
        paint(self.node, self.ids[0], corrected, self.volume)
        self.folder, self.out = folder, folder / "out"
        self.out.mkdir()

    def mask(self, value: int) -> Any:
        return np.asarray(segment_voxels(self.node, value, self.volume)) != 0

    @property
    def image(self) -> Volume:
        voxels = arrayFromVolume(self.volume)
        return Volume(voxels, Geometry(voxels.shape, ijk_to_local(self.volume)))

    def from_dicom(self, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The folder of the series that the volume comes from."""
        series = self.folder / "series"
        write_series(series, self.image)
        database = Database(series)
        put_object(monkeypatch, "dicomDatabase", "ctkDICOMDatabase", database)
        self.volume.SetAttribute("DICOM.instanceUIDs", database.instances)
        return series

    def as_files(self) -> list[str]:
        """Segmentation and scan as the command line takes them."""
        voxels = np.zeros(self.image.voxels.shape, np.uint8)
        for value in (1, 2):
            voxels[self.mask(value)] = value
        labels = [Label(value, name, (9, 9, 9)) for value, name in enumerate(NAMES, start=1)]
        grid = self.image.geometry
        write_segmentation(self.folder / "case.seg.nrrd", Volume(voxels, grid), labels)
        write_volume(self.folder / "scan.nii.gz", self.image)
        return [str(self.folder / "case.seg.nrrd"), "--image", str(self.folder / "scan.nii.gz")]


@pytest.fixture
def case(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    put_object(monkeypatch, "dicomDatabase", "ctkDICOMDatabase", None)
    return Case(module, tmp_path)


def test_a_script_measures_what_the_command_measures(case: Case) -> None:
    rows = case.logic.measure(case.node)
    path = case.out / "t.csv"
    assert main(["measure", *case.as_files(), "-q", "--csv", str(path)]) == 0
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["voxels"] for row in rows] == [51, 50]
    for mine, theirs in zip(rows, table, strict=True):
        assert set(mine) == set(theirs)
        for name in set(mine) - {"value", "name", "at_border", "remarks"}:
            found = float("nan") if mine[name] is None else mine[name]
            number = float(theirs[name] or "nan")
            assert found == pytest.approx(number, rel=1e-5, abs=1e-6, nan_ok=True), name
        assert ("yes" if mine["at_border"] else "no") == theirs["at_border"]
    volumes = case.node.GetNodeReference(TABLE_REFERENCE).GetTable().GetColumnByName("Volume [mL]")
    assert [volumes.GetValue(n) for n in range(2)] == [row["volume_ml"] for row in rows]


def test_a_script_hands_over(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"seg": case.out / "s.dcm", "sr": case.out / "r.dcm", "report": case.out / "r.html"}
    with pytest.raises(InputError, match="not loaded by the module DICOM"):
        case.logic.export(case.node, **wanted)
    series = case.from_dicom(monkeypatch)
    done = case.logic.export(
        case.node, **wanted, surfaces=case.out / "parts", formats=(".stl",), tolerance_mm=0.2
    )
    assert len(done.files) == 5
    assert all(Path(file).is_file() for file in done.files)
    dataset = pydicom.dcmread(case.out / "s.dcm")
    assert dataset.pixel_array.sum() == 101
    types = [item.SegmentAlgorithmType for item in dataset.SegmentSequence]
    assert types == ["SEMIAUTOMATIC", "AUTOMATIC"]
    with pytest.raises(OutputExistsError, match="exists already"):
        case.logic.export(case.node, **wanted)
    case.logic.export(case.node, dicom=str(series), overwrite=True, **wanted)
    assert pydicom.dcmread(case.out / "s.dcm").SOPInstanceUID != dataset.SOPInstanceUID
    with pytest.raises(RequestError, match="colour"):
        case.logic.export(case.node, csv=case.out / "t.csv", colour="red")


def test_a_script_that_stops_leaves_no_file(case: Case) -> None:
    def stop(_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        case.logic.export(case.node, progress=stop, csv=case.out / "t.csv")
    assert list(case.out.glob(".*")) == []


def test_the_page_measures(page: Any, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    page.panel.results.choose(case.node)
    press(page, "statisticsButton")
    until(lambda: button(page, "statisticsButton").isChecked())
    assert case.node.GetNodeReference(TABLE_REFERENCE).GetNumberOfRows() == 2
    path = case.out / "t.csv"
    monkeypatch.setattr(page.host, "ask_save_file", lambda *_: str(path))
    press(page, "csvButton")
    until(lambda: message(page) == f"Wrote {path}.")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["voxels"], row["edited"]) for row in rows] == [
        (NAMES[0], "51", "yes"),
        (NAMES[1], "50", "no"),
    ]


def test_the_page_hands_over(page: Any, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    parts = ("report", "csv", "json", "seg", "sr", "surfaces")

    def ask(parent: Any, name: str, reason: str, choice: ExportChoice) -> ExportChoice:
        asked.append(reason)
        return ExportChoice(str(case.out), parts[: 3 if reason else 6])

    monkeypatch.setattr(export_dialog, "ask", ask)
    page.panel.results.choose(case.node)
    press(page, "exportButton")
    until(lambda: "Wrote 3 files" in message(page))
    case.from_dicom(monkeypatch)
    answers = [False, True]
    monkeypatch.setattr(page.host, "confirm", lambda question: answers.pop(0))
    press(page, "exportButton")
    until(lambda: message(page) == "Nothing was written.")
    press(page, "exportButton")
    until(lambda: "Wrote 7 files" in message(page))
    assert "was not loaded by the module DICOM" in asked[0]
    assert asked[1:] == ["", ""]
    names = {path.name for path in case.out.iterdir()}
    assert names == {
        "report.html", "measurements.csv", "measurements.json", "segmentation.dcm",
        "measurements.dcm", "surfaces",
    }  # fmt: skip
