"""Cohorts: which scans a folder holds, what is written of each, and going on after failures and ends."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import dicom_files
import fake_engine
from medsegai.cli import main
from medsegai.errors import DeviceError, InputError, RequestError
from medsegai.io import read_volume
from medsegai.models.card import Channel
from medsegai.output.batch import Pace
from medsegai.output.cases import Case, find_cases, read_cases
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Geometry, Volume

Batch = Callable[..., int]


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 200, (9, 7, 8), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def states(out: Path) -> dict[str, str]:
    return {row["case"]: row["state"] for row in rows(out / "batch.csv")}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three scans; the second is damaged."""
    folder = tmp_path / "scans"
    for seed, name in enumerate("abc"):
        save(folder / f"{name}.nii.gz", seed)
    (folder / "b.nii.gz").write_bytes(b"no image")
    return folder


@pytest.fixture
def batch(scans: Path, model: str, requests: list[SegmentationRequest], tmp_path: Path) -> Batch:
    """`medsegai batch` with the toy model, into out/, and more arguments."""

    def run(*arguments: object) -> int:
        words = ["batch", scans, "-o", tmp_path / "out", "--model", model, *arguments]
        return main([str(word) for word in words])

    return run


# Which cases


def test_images_are_cases_by_their_names(tmp_path: Path) -> None:
    first, second = save(tmp_path / "x.nii.gz"), save(tmp_path / "y_0000.nii")
    (tmp_path / "x.seg.nrrd").write_text("a segmentation")
    (tmp_path / "notes.txt").write_text("no image")
    assert find_cases(tmp_path, 1) == [Case("x", (first,)), Case("y", (second,))]


def test_channels_are_put_in_order(tmp_path: Path) -> None:
    paths = {name: save(tmp_path / f"{name}.nii.gz") for name in ("p_0001", "p_0000", "q_0000")}
    with pytest.raises(InputError, match=r"q must have 2 images, q_0000 to q_0001"):
        find_cases(tmp_path, 2)
    paths["q_0000"].unlink()
    assert find_cases(tmp_path, 2) == [Case("p", (paths["p_0000"], paths["p_0001"]))]


def test_folders_of_dicom_series_are_cases(tmp_path: Path) -> None:
    inner = tmp_path / "patients" / "one" / "t1"
    inner.parent.mkdir(parents=True)
    voxels = np.zeros((4, 6, 5), np.int16)
    dicom_files.write_series(inner, Volume(voxels, Geometry.from_spacing((4, 6, 5), (1, 1, 2))))
    save(tmp_path / "patients" / "two.nii.gz")
    names = [case.name for case in find_cases(tmp_path / "patients", 1)]
    assert names == ["two", "one_t1"]


STRANGERS: dict[str, bytes] = {
    "000.xml": b"<?xml version='1.0'?>",
    "0.txt": b"notes of the study",
    "00": b"",
    "0.dcm.json": b"{}",
    "A.pdf": b"%PDF-1.4",
}
"""Files that come before a slice by name, and are none."""


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_folder_with_other_files_beside_its_slices_is_a_case(
    tmp_path: Path, stranger: str
) -> None:
    inner = tmp_path / "one"
    voxels = np.arange(4 * 6 * 5, dtype=np.int16).reshape(4, 6, 5)
    dicom_files.write_series(inner, Volume(voxels, Geometry.from_spacing((4, 6, 5), (1, 1, 2))))
    (inner / stranger).write_bytes(STRANGERS[stranger])
    assert find_cases(tmp_path, 1) == [Case("one", (inner,))]
    assert read_volume(inner).voxels.shape == (4, 6, 5)


def test_a_dicomdir_and_folders_of_reports_are_no_cases(tmp_path: Path) -> None:
    def change(sop_class: str) -> Callable[[Any, int], None]:
        def to_class(head: Any, k: int) -> None:
            head.SOPClassUID = head.file_meta.MediaStorageSOPClassUID = sop_class
            if "88.11" in sop_class or "1.3.10" in sop_class:
                del head.Rows, head.PixelData

        return to_class

    scan = Volume(np.zeros((4, 6, 5), np.int16), Geometry.from_spacing((4, 6, 5), (1, 1, 2)))
    (tmp_path / "cd").mkdir()
    dicom_files.write_series(tmp_path / "cd" / "IMG", scan)
    report, segmentation = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.5.1.4.1.1.66.4"
    dicom_files.write_series(tmp_path / "cd" / "SR", scan, change(report))
    dicom_files.write_series(tmp_path / "cd" / "SEG", scan, change(segmentation), skip=(1, 2, 3))
    dicom_files.write_series(tmp_path / "x", scan, change("1.2.840.10008.1.3.10"), skip=(1, 2, 3))
    next((tmp_path / "x").iterdir()).rename(tmp_path / "cd" / "DICOMDIR")
    told: list[str] = []
    cases = find_cases(tmp_path / "cd", 1, told.append)
    assert [case.name for case in cases] == ["IMG"]
    assert any(
        "SR was left out, because it holds 4 DICOM files that are not a scan" in words
        for words in told
    )
    assert any(
        "SEG was left out, because it holds 1 DICOM file that is not a scan" in words
        for words in told
    )


def test_images_in_subfolders_are_told_of(tmp_path: Path) -> None:
    """BIDS: they may be scans, labels or results, so nothing is guessed."""
    for subject in ("sub-01", "sub-02"):
        save(tmp_path / subject / "anat" / f"{subject}_T1w.nii.gz")
    with pytest.raises(
        InputError, match=r"Its subfolders hold 2 images, such as sub-01.anat.sub-01_T1w\.nii\.gz"
    ):
        find_cases(tmp_path, 1)
    told: list[str] = []
    save(tmp_path / "top.nii.gz")
    assert [case.name for case in find_cases(tmp_path, 1, told.append)] == ["top"]
    assert "write a table of cases" in told[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_among_the_scans_is_a_case_that_fails(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii.gz")
    os.mkfifo(tmp_path / "notes.txt")
    (case,) = find_cases(tmp_path, 1)
    assert case.name == "pipe"
    with pytest.raises(InputError, match=r"pipe\.nii\.gz is a device or a pipe"):
        read_volume(*case.images())


def test_what_holds_no_scan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="does not hold a scan"):
        find_cases(tmp_path, 1)
    with pytest.raises(InputError, match="is not a folder"):
        find_cases(tmp_path / "missing", 1)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "x.nii.gz")
    save(tmp_path / "x.nii")
    with pytest.raises(InputError, match=r"x\.nii.* have the same name"):
        find_cases(tmp_path, 1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            "sub_1/a",
            "sub/1_a",
        ),  # folders of series, whose names became one, so one was left out in silence
        ("Head", "head"),
        ("Kopf \u00e4", "Kopf a\u0308"),
    ],
)
def test_cases_that_file_systems_do_not_tell_apart_are_refused(
    first: str, second: str, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = Geometry.from_spacing((4, 6, 5), (1, 1, 2))
    for name in (first, second):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        dicom_files.write_series(
            tmp_path / "in" / name, Volume(np.ones(grid.shape, np.int16), grid)
        )
    words = ["batch", tmp_path / "in", "-o", tmp_path / "out", "--model", model]
    assert main([str(word) for word in words]) == InputError.exit_code
    said = capsys.readouterr().err
    assert "would not tell apart" in said
    assert first in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "options", "file"),
    [
        (("a", "a_uncertainty"), ("--format", ".nii.gz", "--uncertainty"), "a_uncertainty.nii.gz"),
        (("a", "A_Probabilities"), ("--format", ".nii.gz", "--save-probabilities"), "a_prob"),
        (("cohort",), ("--pages",), "cohort.html"),
    ],
)
def test_cases_that_would_write_one_file_are_refused(
    names: tuple[str, ...],
    options: tuple[str, ...],
    file: str,
    tmp_path: Path,
    model: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One result replaced the other, and the table said that both are done."""
    (tmp_path / "in").mkdir()
    for name in names:
        save(tmp_path / "in" / f"{name}.nii.gz")
    words = ["batch", tmp_path / "in", "-o", tmp_path / "out", "--model", model, *options]
    assert main([str(word) for word in words]) == RequestError.exit_code
    assert "would both have the file" in (said := capsys.readouterr().err)
    assert file.casefold() in said.casefold()


def test_files_that_end_the_reader_or_have_strange_names_are_cases_that_fail(
    batch: Batch, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in GDCM, and a name that SimpleITK cannot take: the others are done."""

    def crashing(head: Any, k: int) -> None:
        head.ImageComments = dicom_files.CRASHING

    scan = Volume(np.zeros((4, 6, 5), np.int16), Geometry.from_spacing((4, 6, 5), (1, 1, 2)))
    dicom_files.write_series(scans / "crash", scan, crashing)
    dicom_files.let_decoder_crash(monkeypatch)
    strange = Path(os.fsdecode(os.fsencode(scans) + b"/g\xfc.nii.gz"))
    (scans / "a.nii.gz").rename(strange)
    assert batch() == 1
    expected = {"b": "failed", "c": "done", "crash": "failed", "gxFC": "failed"}
    assert states(tmp_path / "out") == expected


# A table of cases

ONE = (Channel("MR", "MR"),)
TWO = (Channel("T1", "MR"), Channel("FLAIR", "MR", required=False))


def cases_of(text: str, folder: Path, channels: tuple[Channel, ...] = ONE) -> list[Case]:
    return read_cases(text.encode(), "cases.csv", folder, channels)


def test_a_table_names_the_cases(tmp_path: Path) -> None:
    first, second = save(tmp_path / "x.nii.gz"), save(tmp_path / "y, z.nii")
    table = f'case,age,image,series\r\nA 1,40,x.nii.gz,\r\n\r\nB,50,"{second}",3\r\n'
    assert cases_of(table, tmp_path) == [Case("A 1", (first,), ("",)), Case("B", (second,), ("3",))]
    german = table.replace("y, z", "y; z").replace(",", ";").replace("y; z", "y, z")
    assert cases_of("\ufeff" + german, tmp_path) == cases_of(table, tmp_path)


def test_channels_of_a_table_are_known_by_number_or_name(tmp_path: Path) -> None:
    t1, flair = save(tmp_path / "t1.nii.gz"), save(tmp_path / "flair.nii.gz")
    both = [Case("a", (t1, flair), ("", ""))]
    table = "case,{},{}\na,flair.nii.gz,t1.nii.gz"
    assert cases_of(table.format("image_0001", "image_0000"), tmp_path, TWO) == both
    assert cases_of(table.format("flair", "T1"), tmp_path, TWO) == both
    assert cases_of("case,T1\na,t1.nii.gz", tmp_path, TWO) == [Case("a", (t1,), ("",))]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "It is empty"),
        ("case,image\n", "does not list any case"),
        ("name,image\na,x.nii", "does not have the column case. Its columns are name, image"),
        ("case,path\na,x.nii", "does not have the column image"),
        ("case,image\na,x.nii\nb,gone.nii", r"line 3, case b: .*gone\.nii does not exist"),
        ("case,image\na,", r"line 2: case a lacks an image"),
        ("case,image\na,x.nii\nA,x.nii", "line 3: the case A is listed twice"),
        ("case,image\n../a,x.nii", r"line 2: a file cannot be named '\.\./a'"),
        ("case,image\n,x.nii", "line 2: a file cannot be named ''"),
        ('case,image\na,"x.nii', "cannot be read as a table"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(table: str, said: str, tmp_path: Path) -> None:
    save(tmp_path / "x.nii")
    with pytest.raises(InputError, match=said):
        cases_of(table, tmp_path)


def test_what_is_no_text_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Save it as CSV in UTF-8"):
        read_cases(b"\x1f\x8b\x08\xff", "x.nii.gz", tmp_path, ONE)


def test_a_channel_before_another_cannot_be_left_out(tmp_path: Path) -> None:
    save(tmp_path / "x.nii")
    with pytest.raises(InputError, match="an image is missing before another"):
        cases_of("case,T1,FLAIR\na,,x.nii", tmp_path, TWO)


def test_a_series_of_a_folder_that_holds_several_is_segmented(
    model: str, requests: list[SegmentationRequest], tmp_path: Path
) -> None:
    wanted = np.random.default_rng(3).integers(0, 200, (4, 6, 5)).astype(np.int16)
    geometry = Geometry.from_spacing((4, 6, 5), (1, 1, 2))
    for number, voxels in ((1, np.zeros_like(wanted)), (2, wanted)):
        dicom_files.write_series(tmp_path / "study", Volume(voxels, geometry), series=number)
    table, out = tmp_path / "cases.csv", tmp_path / "out"
    table.write_text("case,image,series\ngood,study,2\nunclear,study,\nmissing,study,7\n")
    assert main(["batch", str(table), "-o", str(out), "--model", model, "--preview"]) == 1
    assert states(out)["good"] == "done"
    assert (out / "good.png").is_file()
    assert "no series is named '7'" in rows(out / "batch.csv")[2]["message"]
    (image,) = requests[0].inputs
    assert isinstance(image, Volume)
    np.testing.assert_array_equal(image.voxels, wanted)


def test_a_table_can_come_through_a_pipe(
    scans: Path,
    model: str,
    requests: list[SegmentationRequest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = f"case,image\nä,{scans / 'a.nii.gz'}\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert main(["batch", "-", "-o", str(tmp_path / "out"), "--model", model]) == 0
    assert states(tmp_path / "out") == {"ä": "done"}
    assert (tmp_path / "out" / "ä.seg.nrrd").is_file()


# What is written


def test_a_damaged_scan_does_not_stop_the_others(
    batch: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert batch("--preview") == 1
    assert states(out) == {"a": "done", "b": "failed", "c": "done"}
    assert "b.nii.gz" in rows(out / "batch.csv")[1]["message"]
    assert "b.nii.gz" in capsys.readouterr().err
    kept = {path.name for path in out.iterdir()}
    each = {f"{name}{end}" for name in "ac" for end in (".seg.nrrd", ".json", ".png")}
    assert kept == {*each, "batch.csv", "volumes.csv", "cohort.csv"}


def test_the_table_of_volumes_has_every_case(batch: Batch, scans: Path, tmp_path: Path) -> None:
    batch("--format", ".nii.gz")
    table = rows(tmp_path / "out" / "volumes.csv")
    assert {row["case"] for row in table} == {"a", "c"}
    for row in table:
        labels = nibabel.load(tmp_path / "out" / f"{row['case']}.nii.gz").get_fdata()
        assert int(row["voxels"]) == (labels == int(row["value"])).sum()


def test_events_are_json_lines(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch("--events")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [(e["case"], e["state"]) for e in events if e["event"] == "case"]
    assert found[:3] == [("a", "waiting"), ("b", "waiting"), ("c", "waiting")]
    assert found[3:] == [
        ("a", "running"),
        ("a", "done"),
        ("b", "running"),
        ("b", "failed"),
        ("c", "running"),
        ("c", "done"),
    ]
    fractions = [e["fraction"] for e in events if e["event"] == "progress" and e["case"] == "a"]
    assert fractions == sorted(fractions)
    assert 0 < fractions[-1] <= 1


def test_a_model_can_lie_in_a_folder_with_a_comma_in_its_name(
    scans: Path, model: str, requests: list[SegmentationRequest], tmp_path: Path
) -> None:
    folder = (tmp_path / "models" / model).rename(tmp_path / "models" / "one, two")
    (scans / "b.nii.gz").unlink()
    words = ["batch", str(scans), "-o", str(tmp_path / "out"), "--model", str(folder)]
    assert main([*words, "--members", "axial,coronal"]) == 0
    assert requests[0].models == (str(folder),)
    assert requests[0].members == ("axial", "coronal")


# Going on


def test_resume_does_only_what_is_left(
    batch: Batch, scans: Path, requests: list[SegmentationRequest], tmp_path: Path
) -> None:
    batch()
    corrected = tmp_path / "out" / "a.seg.nrrd"
    corrected.write_text("corrected by hand")
    save(scans / "b.nii.gz", 5)
    requests.clear()
    assert batch("--resume") == 0
    assert [request.inputs[0].name for request in requests] == ["b.nii.gz"]  # type: ignore[union-attr]
    assert corrected.read_text() == "corrected by hand"
    assert set(states(tmp_path / "out").values()) == {"done"}
    assert {row["case"] for row in rows(tmp_path / "out" / "volumes.csv")} == {"a", "b", "c"}


def test_the_table_tells_which_cases_to_look_at_first_also_after_going_on(
    batch: Batch,
    scans: Path,
    requests: list[SegmentationRequest],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def doubtful(request: SegmentationRequest, progress: Progress) -> SegmentationResult:
        result = fake_engine.segment(request, progress)
        first, *others = result.structures
        first = replace(first, remarks=("members differ", "in 3 parts") if not requests else ())
        requests.append(request)
        return replace(result, structures=(first, *others))

    monkeypatch.setattr(sys.modules["medsegai.engine"], "segment", doubtful)
    batch()
    save(scans / "b.nii.gz", 5)
    assert batch("--resume") == 0
    table = {row["case"]: row for row in rows(tmp_path / "out" / "batch.csv")}
    assert {case: row["remarks"] for case, row in table.items()} == {"a": "1", "b": "0", "c": "0"}
    assert all(float(row["seconds"]) >= 0 for row in table.values())
    first = rows(tmp_path / "out" / "volumes.csv")[0]
    assert (first["case"], first["remarks"]) == ("a", "members differ; in 3 parts")


def test_results_are_never_replaced_unasked(
    batch: Batch, requests: list[SegmentationRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    batch()
    requests.clear()
    assert batch() == 5
    assert "--resume" in capsys.readouterr().err
    assert requests == []
    assert batch("--overwrite") == 1
    assert len(requests) == 3


def test_other_options_are_not_mixed_into_a_batch(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch()
    assert batch("--resume", "--members", "axial") == 2
    assert "other options (members)" in capsys.readouterr().err


def test_a_segmentation_without_report_is_not_replaced(
    batch: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.seg.nrrd").write_text("made by hand")
    assert batch("--resume") == 5
    assert "a.seg.nrrd exists already" in capsys.readouterr().err


def test_a_case_that_takes_all_memory_does_not_stop_the_others(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def segment(request: SegmentationRequest, progress: object) -> object:
        if "a.nii" in str(request.inputs[0]):
            raise DeviceError("too little memory")
        return fake_engine.segment(request)

    monkeypatch.setattr(sys.modules["medsegai.engine"], "segment", segment)
    assert batch() == 1
    assert states(tmp_path / "out") == {"a": "failed", "b": "failed", "c": "done"}


def test_a_batch_that_was_killed_goes_on_and_does_the_killer_last(
    scans: Path, model: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["batch", str(scans), "-o", str(out), "--model", model, "--events"]
    command = [sys.executable, fake_engine.__file__, *words]
    save(scans / "b.nii.gz", 5)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("state") == "running":
            process.kill()
            break
    process.wait()
    assert states(out)["a"] == "running"
    again = subprocess.run(
        [*command, "--resume"], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    events = [json.loads(line) for line in again.stdout.splitlines()]
    done = [event["case"] for event in events if event.get("state") == "running"]
    assert done[-1] == "a"
    assert set(states(out).values()) == {"done"}


@pytest.mark.parametrize("seconds", [0.001, 0.05])
def test_a_long_table_takes_no_more_than_a_tenth_of_the_time(seconds: float) -> None:
    """Written anew with each of 20,000 changes, 10,000 lines would take a quarter of an hour."""
    now, written = 0.0, 0.0
    pace = Pace(lambda: now)

    def write() -> None:
        nonlocal now, written
        now, written = now + seconds, written + seconds

    for _change in range(20_000):
        pace(write)
        now += 0.01
    assert written <= 1 + seconds + now / 10


def test_a_short_table_is_written_with_each_change() -> None:
    now, written = 0.0, 0
    pace = Pace(lambda: now)

    def write() -> None:
        nonlocal now, written
        now, written = now + 0.002, written + 1

    for change in range(1000):
        pace(write)
        assert written == change + 1
        now += 0.02
