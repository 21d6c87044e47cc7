"""Measuring and handing over as the worker does it, beside the commands on files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_files import write_series
from export_cases import ANATOMY, LABELS, SHAPE, complaints, described, drawn, scan
from images import SPACING_MM
from medsegai.cli import main
from medsegai.errors import (
    Cancelled,
    GeometryError,
    OutputExistsError,
    RequestError,
)
from medsegai.io import write_segmentation, write_volume
from medsegai.labels import Label
from medsegai.models.quality import Reference
from medsegai.progress import Progress
from medsegai.volume import Geometry, Volume
from medsegai.worker import measure_and_export_jobs, protocol
from medsegai.worker.measure_and_export_jobs import export_segments, measure_segments, reference_of
from medsegai.worker.requests import ExportRequest, MeasurementRequest, Part
from stop_points import StopAt

pytest.importorskip("highdicom")
pytest.importorskip("manifold3d")

RUN = {
    "provenance": {"models": [{"id": "brain", "version": "0.2.0"}], "medsegai": "0.1.0"},
    "warnings": ["Thick slices."],
    "refined": [{"settings": {"name": "islands"}, "ml": 0.1234}],
}


def carried(request: Any, folder: Path) -> Any:
    """The request as it arrives at the worker."""
    kind = protocol.kind_of(request)
    line = protocol.encode({"type": kind.name, "request": protocol.packed(request, folder)})
    return protocol.unpacked(kind.asked, protocol.decode(line)["request"], folder)


def answered(kind: str, result: Any, folder: Path) -> Any:
    packed = protocol.packed(result, folder)
    line = protocol.encode({"type": protocol.RESULT, "result": packed})
    answered = protocol.KINDS[kind].answered
    return protocol.unpacked(answered, protocol.decode(line)["result"], folder)


def test_the_numbers_are_those_of_the_command(tmp_path: Path) -> None:
    request = MeasurementRequest((Part(drawn("oblique"), LABELS),), scan("oblique"))
    result = measure_segments(carried(request, tmp_path), Progress())
    found = answered("measure", result, tmp_path)
    write_segmentation(tmp_path / "case.seg.nrrd", drawn("oblique"), LABELS)
    write_volume(tmp_path / "scan.nii.gz", scan("oblique"))
    command = ["measure", str(tmp_path / "case.seg.nrrd"), "--image", str(tmp_path / "scan.nii.gz")]
    assert main([*command, "--json", str(tmp_path / "t.json"), "-q"]) == 0
    table = json.loads((tmp_path / "t.json").read_text())["structures"]
    for mine, theirs in zip(found.rows, table, strict=True):
        assert set(mine) == set(theirs)
        for name, value in theirs.items():
            near = isinstance(value, float)
            assert mine[name] == (pytest.approx(value, rel=1e-5) if near else value), name


def test_segments_that_overlap_are_compared_across_parts() -> None:
    grid = scan("straight").geometry
    left, right = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    left[2:4, 3:6, 3:6], right[2:4, 5:7, 3:6] = 1, 2
    parts = (
        Part(Volume(left, grid), (Label(1, "Left lobe", (9, 9, 9)),)),
        Part(Volume(right, grid), (Label(2, "Right lobe", (9, 9, 9)),)),
    )
    rows = measure_segments(MeasurementRequest(parts), Progress()).rows
    assert [row["voxels"] for row in rows] == [18, 12]
    assert [row["asymmetry_percent"] for row in rows] == pytest.approx([40.0, 40.0])
    assert rows[0]["mean"] is None


def test_a_measurement_stops_before_any_structure() -> None:
    request = MeasurementRequest((Part(drawn("oblique"), LABELS),), scan("oblique"))
    whole = StopAt()
    measure_segments(request, whole)
    assert whole.checks >= 2 + len(LABELS)
    for at in range(whole.checks):
        with pytest.raises(Cancelled):
            measure_segments(request, StopAt(at))


def test_grey_values_of_a_scan_on_other_voxels() -> None:
    coarse = scan("straight")
    fine = Geometry.from_spacing(tuple(2 * n for n in SHAPE), np.array(SPACING_MM) / 2)
    labels = np.kron(drawn("straight").voxels, np.ones((2, 2, 2), np.uint16))
    part = Part(Volume(labels, fine), LABELS, drawn("straight"))
    rows = measure_segments(MeasurementRequest((part,), coarse), Progress()).rows
    kidney = drawn("straight").voxels == 3
    assert rows[0]["voxels"] == 8 * kidney.sum()
    assert rows[0]["mean"] == pytest.approx(coarse.voxels[kidney].mean())
    with pytest.raises(GeometryError):
        measure_segments(
            MeasurementRequest((Part(Volume(labels, fine), LABELS),), coarse), Progress()
        )


def test_what_is_plausible_is_said_of_the_models_structures_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = Reference("made up", {3: (1, 2), 9: (3, 4)}, {3: (-5, 5)}, {9: 0.9, 400: 0.8})
    monkeypatch.setattr(
        measure_and_export_jobs, "find_card", lambda _: SimpleNamespace(reference=known)
    )
    assert reference_of(["one"]) == known
    less = reference_of(["one"], [9])
    assert less == Reference("made up", {3: (1, 2)}, {3: (-5, 5)}, {400: 0.8})
    assert reference_of(["one", "other"]) is None
    monkeypatch.undo()
    assert reference_of(["no such model"]) is None


def asked(folder: Path, **outputs: Any) -> ExportRequest:
    """All that the panel tells of `drawn`, as far as it is wanted."""
    write_series(folder / "series", scan("oblique"), described)
    named = {
        name: str(folder / value)
        if name in ("seg", "sr", "report", "csv", "json", "surfaces")
        else value
        for name, value in outputs.items()
    }
    return ExportRequest(
        drawn("oblique"), LABELS, named, None, str(folder / "series"), run=RUN,
        touched=(3,), drawn=(9,), warnings=("Look at the liver.",),
    )  # fmt: skip


def test_everything_is_handed_over(tmp_path: Path) -> None:
    request = asked(
        tmp_path, seg="s.dcm", sr="r.dcm", report="r.html", csv="t.csv", json="t.json",
        surfaces="parts", formats=["stl", "glb"],
    )  # fmt: skip
    request = replace(request, outputs={**request.outputs, "formats": [".stl", ".glb"]})
    result = export_segments(carried(request, tmp_path), Progress())
    found = answered("export", result, tmp_path)
    assert sorted(Path(file).name for file in found.files) == sorted(
        ["s.dcm", "r.dcm", "r.html", "t.csv", "t.json"]
        + [f"{stem}.{kind}" for stem in ("3_left_kidney", "9_l_sion_2", "400_liver")
           for kind in ("stl", "glb")]
    )  # fmt: skip
    assert all(Path(file).is_file() for file in found.files)
    assert {"Look at the liver.", "Thick slices."} <= set(found.warnings)
    page = (tmp_path / "r.html").read_text()
    assert "Look at the liver." in page
    assert "brain 0.2.0" in page
    assert "Refined since</dt><dd>islands (0.123 ml)<" in page
    assert "Changed or reviewed by a person</dt><dd>Left kidney<" in page
    assert "Drawn by a person or imported</dt><dd>Läsion № 2<" in page
    assert complaints(tmp_path / "s.dcm") == []
    assert complaints(tmp_path / "r.dcm") == []
    kidney, lesion, liver = pydicom.dcmread(tmp_path / "s.dcm").SegmentSequence
    types = [item.SegmentAlgorithmType for item in (kidney, lesion, liver)]
    assert types == ["SEMIAUTOMATIC", "MANUAL", "AUTOMATIC"]
    assert "SegmentationAlgorithmIdentificationSequence" not in lesion
    algorithm = liver.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("brain", "0.2.0")
    assert kidney.SegmentedPropertyCategoryCodeSequence[0].CodeValue == ANATOMY[1]


def test_a_record_that_cannot_be_understood(tmp_path: Path) -> None:
    request = replace(asked(tmp_path, seg="s.dcm"), run={"odd": 1}, touched=(), drawn=())
    result = export_segments(request, Progress())
    assert any("cannot be understood" in warning for warning in result.warnings)
    segment = pydicom.dcmread(tmp_path / "s.dcm").SegmentSequence[0]
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "MedSegAI"


def test_without_dicom(tmp_path: Path) -> None:
    request = asked(tmp_path, report="r.html", surfaces="parts")
    request = replace(request, dicom="", image=scan("oblique"), run={})
    assert len(export_segments(request, Progress()).files) == 4
    assert "data:image/png" in (tmp_path / "r.html").read_text()
    with pytest.raises(RequestError, match="the DICOM series that was segmented"):
        export_segments(replace(request, outputs={"seg": str(tmp_path / "s.dcm")}), Progress())


def test_nothing_is_replaced_without_a_word(tmp_path: Path) -> None:
    request = asked(tmp_path, csv="t.csv", surfaces="parts")
    export_segments(request, Progress())
    (tmp_path / "t.csv").unlink()  # the surfaces are there still
    with pytest.raises(OutputExistsError, match=r"3_left_kidney\.stl exists already"):
        export_segments(request, Progress())
    assert not (tmp_path / "t.csv").exists()
    export_segments(replace(request, overwrite=True), Progress())
    assert (tmp_path / "t.csv").exists()
    error = protocol.unpack_error(protocol.pack_error(OutputExistsError("There.")))
    assert isinstance(error, OutputExistsError)


def test_mistakes_and_a_stop_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="colour"):
        export_segments(asked(tmp_path, csv="t.csv", colour="red"), Progress())
    other = replace(asked(tmp_path, seg="s.dcm"), labelmap=drawn("straight"))
    with pytest.raises(GeometryError, match="does not lie on the grid"):
        export_segments(other, Progress())
    progress = Progress(lambda event: progress.cancel.set() if event.stage == "write" else None)
    with pytest.raises(Cancelled):
        export_segments(asked(tmp_path, seg="s.dcm", sr="r.dcm", surfaces="parts"), progress)
    assert [path.name for path in tmp_path.iterdir()] == ["series"]
