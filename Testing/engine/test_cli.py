"""The command line: options, files, exit codes, and what stays behind when something goes wrong."""

from __future__ import annotations

import argparse
import csv
import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import fake_engine
from medsegai import errors
from medsegai.cli import EXIT_CODES, build_parser, main
from medsegai.commands.segment import request_from_arguments
from medsegai.models.quality import quality_of
from medsegai.output import result_files
from medsegai.request import SegmentationRequest, request_options

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE_COMMAND = Path(fake_engine.__file__)
STRANGE_AFFINE = np.array([[0, 0, 2.5, -20], [-0.8, 0, 0, 30], [0, 1.25, 0, 7], [0, 0, 0, 1]])
EXIT_KINDS = sorted(
    {kind.exit_code: kind for kind in vars(errors).values() if isinstance(kind, type)}.items()
)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A small anisotropic image with permuted axes."""
    voxels = np.random.default_rng(1).integers(0, 200, (14, 9, 11), dtype=np.int16)
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, STRANGE_AFFINE), path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for results."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


Segment = Callable[..., int]


@pytest.fixture
def segment(scan: Path, model: str, requests: list[SegmentationRequest], out: Path) -> Segment:
    """`medsegai segment` on the scan with the toy model, into out/seg.nii.gz, and more arguments."""

    def run(*arguments: object, output: object = out / "seg.nii.gz") -> int:
        words = ["segment", scan, "-o", output, "--model", model, *arguments]
        return main([str(word) for word in words])

    return run


def parsed(*arguments: str) -> argparse.Namespace:
    return build_parser().parse_args(["segment", "scan.nii.gz", "-o", "out.nii.gz", *arguments])


def requested(*arguments: str) -> SegmentationRequest:
    return request_from_arguments(parsed(*arguments), [Path("scan.nii.gz")])


def in_folder(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Options


def test_without_options_the_request_has_its_own_defaults() -> None:
    assert requested() == SegmentationRequest((Path("scan.nii.gz"),))


def test_every_option_of_the_request_can_be_set() -> None:
    request = requested(
        *("--model", "a,b", "--model", "c", "--views", "axial, coronal", "--fusion", "vote"),
        *("--device", "cuda:1", "--backend", "torch", "--precision", "fp32"),
        *("--dropout-passes", "12", "--seed", "7", "--no-mirroring", "--tile-step", "0.25"),
        *("--no-refine", "--no-calibrated", "--overlap", "--anyway"),
        "--region=-60,60,-90,90.5,0,70",
        *("--refinement", "islands:smallest_ml=0.1;keep=1,holes", "--refinement", "smoothing"),
    )
    expected = {
        "models": ["a", "b", "c"],
        "members": ["axial", "coronal"],
        "fusion": "vote",
        "device": "cuda:1",
        "backend": "torch",
        "precision": "fp32",
        "dropout_passes": 12,
        "seed": 7,
        "mirroring": False,
        "tile_step": 0.25,
        "refine": False,
        "calibrated": False,
        "overlap": True,
        "anyway": True,
        "refinements": ["islands:smallest_ml=0.1;keep=1", "holes", "smoothing"],
        "region": [-60.0, 60.0, -90.0, 90.5, 0.0, 70.0],
    }
    assert {name: request.options()[name] for name in expected} == expected
    by_output = {"uncertainty", "probabilities", "candidates"}
    assert {item.name for item in request_options()} == {*expected} | by_output


def test_views_folds_and_members_are_one_option() -> None:
    request = requested("--views", "axial", "--folds", "0,1", "--members", "x")
    assert request.members == ("axial", "0", "1", "x")


def test_help_shows_the_text_and_default_of_each_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["segment", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for item in request_options():
        if item.name not in ("uncertainty", "probabilities", "candidates"):
            assert item.metadata["help"] in text
    assert "(default: mean)" in text
    assert "(default: brain)" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-option"],
        ["--fusion", "guess"],
        ["--seed", "one"],
        ["--views", "axial,,coronal"],
        ["--dropout-passes", "-1"],
    ],
)
def test_wrong_options_exit_with_2(
    segment: Segment, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = segment(*arguments)
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code == 2
    assert arguments[0].strip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")


def test_output_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["segment", "scan.nii.gz"])
    assert "--output" in capsys.readouterr().err


def subcommands(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that runs something, with its parser."""
    inner = [item for item in parser._actions if isinstance(item, argparse._SubParsersAction)]
    for action in inner:
        for word, subparser in action.choices.items():
            yield from subcommands(subparser, f"{name} {word}")
    if not inner:
        yield name, parser


@pytest.mark.parametrize("name", [name for name, _ in subcommands(build_parser(), "medsegai")])
def test_the_documentation_of_a_command_names_its_options(name: str) -> None:
    page = (REPOSITORY / "docs" / "command-line.md").read_text()
    sections = re.split(r"^## (medsegai[\w ]*)$", page, flags=re.MULTILINE)[1:]
    texts = dict(zip(sections[::2], sections[1::2], strict=True))
    section = next(text for title, text in texts.items() if name.startswith(title))
    if name in ("medsegai demo", "medsegai batch", "medsegai dicomweb segment"):
        section += texts["medsegai segment"]
    options = dict(subcommands(build_parser(), "medsegai"))[name]._option_string_actions
    missing = {option for option in options if option not in ("-h", "--help")}
    missing -= set(re.findall(r"`(--?[a-z0-9-]+)`", section))
    assert not missing


# Files


def test_the_labelmap_lies_on_the_grid_of_the_scan(segment: Segment, scan: Path, out: Path) -> None:
    assert segment() == 0
    written, read = nibabel.load(out / "seg.nii.gz"), nibabel.load(scan)
    assert np.allclose(written.affine, STRANGE_AFFINE)
    voxels = np.asarray(read.dataobj)
    expected = np.where(voxels > voxels.mean(), 4, 1) * (voxels > 0)
    assert np.array_equal(np.asarray(written.dataobj), expected)
    assert in_folder(out) == ["seg.nii.gz"]


def test_all_outputs_at_once(
    segment: Segment, requests: list[SegmentationRequest], out: Path
) -> None:
    code = segment(
        *("--uncertainty", out / "entropy.nii.gz", "--save-probabilities", out / "p.nii.gz"),
        *("--volumes", out / "v.csv", "--preview", out / "p.png", "--report", out / "r.json"),
        output=out / "seg.seg.nrrd",
    )
    assert code == 0
    assert requests[0].uncertainty
    assert requests[0].probabilities
    assert nibabel.load(out / "entropy.nii.gz").get_fdata().max() == 1.0
    assert nibabel.load(out / "p.nii.gz").shape == (14, 9, 11, 3)
    assert (out / "p.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "seg.seg.nrrd").read_bytes().startswith(b"NRRD")


def test_uncertainty_is_not_measured_unless_asked_for(
    segment: Segment, requests: list[SegmentationRequest]
) -> None:
    segment()
    assert not requests[0].uncertainty
    assert not requests[0].probabilities


def test_the_table_of_volumes_agrees_with_the_labelmap(segment: Segment, out: Path) -> None:
    assert segment("--volumes", out / "v.csv", "--uncertainty", out / "e.nii.gz") == 0
    with (out / "v.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    image = nibabel.load(out / "seg.nii.gz")
    voxel_ml = 2.5 * 0.8 * 1.25 / 1000
    for label in fake_engine.LABELS:
        count = int((np.asarray(image.dataobj) == label.value).sum())
        assert int(rows[label.name]["voxels"]) == count
        assert float(rows[label.name]["volume_ml"]) == pytest.approx(count * voxel_ml)
    assert float(rows["Dark tissue"]["iou"]) == 0.75
    assert rows["Absent tissue"]["iou"] == ""
    assert rows["Dark tissue"]["remarks"] == "too small; in 2 parts"
    assert rows["Absent tissue"]["remarks"] == ""


def test_the_report_names_the_outputs_and_their_hashes(segment: Segment, out: Path) -> None:
    assert segment("--report", out / "r.json", "--preview", out / "p.png") == 0
    report = json.loads((out / "r.json").read_text())
    assert set(report["outputs"]) == {"segmentation", "preview"}
    for entry in report["outputs"].values():
        digest = hashlib.sha256(Path(entry["path"]).read_bytes()).hexdigest()
        assert entry["sha256"] == digest
    assert report["provenance"]["options"]["models"] == ["toy"]
    assert report["seconds"].keys() >= {"load", "predict"}
    assert report["warnings"] == ["This engine is made up."]


def test_the_printed_table_has_uncertainty_only_if_measured(
    segment: Segment, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment() == 0
    printed = capsys.readouterr()
    assert "Bright tissue" in printed.out
    assert "IoU" not in printed.out
    assert "This engine is made up." in printed.err
    assert "quality" not in printed.out
    report = out / "quality.json"
    options = ("--uncertainty", out / "e.nii.gz", "--report", report, "--overwrite")
    assert segment(*options) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = ["structure", "ml", "quality", "CV", "Dice", "IoU", "entropy", "remarks"]
    assert lines[0].split() == titles
    words = [line.split()[3] for line in lines[2:5]]
    structures = json.loads(report.read_text())["structures"]
    assert words == [quality_of(item, bool(item["remarks"])) or "-" for item in structures]
    assert len(set(words)) > 1
    assert lines[2].split()[4:8] == ["0.125", "0.875", "0.750", "0.500"]
    assert lines[4].split() == ["Absent", "tissue", "0.00", "-", "-", "-", "-", "-"]


def test_quiet_prints_nothing_on_standard_output(
    segment: Segment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment("--quiet") == 0
    assert capsys.readouterr().out == ""


# Bad outputs and inputs are found before the engine is asked


@pytest.mark.parametrize(
    ("output", "arguments", "word"),
    [
        ("missing/seg.nii.gz", [], "missing"),
        ("seg.docx", [], ".seg.nrrd"),
        ("seg.nii.gz", ["--volumes", "v.txt"], ".csv"),
        ("seg.nii.gz", ["--preview", "p.jpg"], ".png"),
        ("seg.nii.gz", ["--report", "r.yaml"], ".json"),
        ("seg.nii.gz", ["--uncertainty", "e.seg.nrrd"], "e.seg.nrrd"),
        ("seg.nii.gz", ["--save-probabilities", "p.nrrd"], ".nii"),
        ("folder.nii.gz", [], "folder"),
        pytest.param(
            "/proc/seg.nii.gz",
            [],
            "/proc",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's"),
        ),
    ],
)
def test_outputs_that_cannot_be_written_exit_with_5(
    segment: Segment,
    requests: list[SegmentationRequest],
    out: Path,
    output: str,
    arguments: list[str],
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(out)
    Path("folder.nii.gz").mkdir()
    assert segment(*arguments, output=output) == 5
    assert word in capsys.readouterr().err
    assert not requests
    assert in_folder(out) == ["folder.nii.gz"]


def test_an_output_that_is_there_is_kept(
    segment: Segment,
    requests: list[SegmentationRequest],
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edited = out / "seg.nii.gz"
    edited.write_text("hours of manual work")
    assert segment() == 5
    assert "--overwrite" in capsys.readouterr().err
    assert edited.read_text() == "hours of manual work"
    assert not requests
    assert segment("--overwrite") == 0
    assert nibabel.load(edited).shape == (14, 9, 11)


def test_the_scan_is_never_overwritten(segment: Segment, scan: Path) -> None:
    before = scan.read_bytes()
    assert segment("--overwrite", output=scan) == 2
    assert scan.read_bytes() == before


def test_two_outputs_cannot_share_a_file(segment: Segment, out: Path) -> None:
    same = out / "same.nii.gz"
    assert segment("--uncertainty", out / "." / "same.nii.gz", output=same) == 2
    assert in_folder(out) == []


def test_an_unknown_model_exits_with_4(
    scan: Path, model: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", str(scan), "-o", str(out / "s.nii.gz"), "--model", "brian"]) == 4
    error = capsys.readouterr().err
    assert "'brian'" in error
    assert "toy" in error


def test_an_unknown_view_exits_with_4(segment: Segment, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment("--views", "oblique") == 4
    assert "axial, coronal" in capsys.readouterr().err


def test_a_missing_input_exits_with_3(model: str, out: Path) -> None:
    words = ["segment", "nowhere.nii.gz", "-o", str(out / "s.nii.gz"), "--model", model]
    assert main(words) == 3


def test_a_file_that_is_no_image_exits_with_3(segment: Segment, scan: Path, out: Path) -> None:
    scan.write_bytes(b"not an image")
    assert segment() == 3
    assert in_folder(out) == []


# Errors of the engine


@pytest.mark.parametrize(("code", "kind"), EXIT_KINDS)
def test_each_kind_of_error_has_its_exit_code(
    segment: Segment,
    code: int,
    kind: type[errors.MedSegAIError],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_arguments: object) -> None:
        raise kind("Because of the test.")

    monkeypatch.setattr(sys.modules["medsegai.engine"], "segment", fail)
    assert segment() == code
    assert "medsegai: Because of the test." in capsys.readouterr().err
    assert in_folder(out) == []


def test_too_little_memory_exits_with_6(
    segment: Segment,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(result_files, "render_preview", fail)
    assert segment("--preview", out / "p.png") == 6
    assert "memory" in capsys.readouterr().err
    assert in_folder(out) == []


def test_help_lists_every_exit_code() -> None:
    listed = {int(line.split()[0]) for line in EXIT_CODES.splitlines() if line[2:3].isdigit()}
    assert listed == {0, *(code for code, _ in EXIT_KINDS)}


def test_a_defect_shows_its_traceback_and_leaves_no_file(
    segment: Segment, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("medsegai.output.result_files.render_preview", fail)
    with pytest.raises(ZeroDivisionError):
        segment("--preview", out / "p.png")
    assert in_folder(out) == []


def test_a_full_disk_exits_with_5_and_leaves_everything_as_it_was(
    segment: Segment,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (out / "seg.nii.gz").write_text("old")

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(result_files.WRITERS, "volumes", full)
    assert segment("--volumes", out / "v.csv", "--overwrite") == 5
    error = capsys.readouterr().err
    assert "disk is full" in error
    assert "v.csv" in error
    assert (out / "seg.nii.gz").read_text() == "old"
    assert in_folder(out) == ["seg.nii.gz"]


# A separate process: signals, limits, start-up


def command(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command with the fake engine."""
    return subprocess.Popen(
        [sys.executable, FAKE_COMMAND, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(process: subprocess.Popen[str], stage: str, times: int = 1) -> tuple[int, str]:
    """Press Ctrl-C when the stage is reached; returns exit code and what was said after."""
    assert process.stderr is not None
    said = ""
    while f"reached {stage}" not in said:
        line = process.stderr.readline()
        assert line, f"ended before the stage {stage}: {said}"
        said += line
    process.send_signal(signal.SIGINT)
    for _ in range(times - 1):
        while "Ctrl-C again" not in said:
            said += process.stderr.readline()
        process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=30)
    return process.returncode, said + rest


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("stage", "times"), [("load", 1), ("predict", 1), ("fuse", 1), ("write", 1), ("write", 2)]
)
def test_ctrl_c_in_any_stage_leaves_nothing(
    scan: Path, model: str, out: Path, stage: str, times: int
) -> None:
    process = command(
        *("segment", scan, "-o", out / "seg.seg.nrrd", "--volumes", out / "v.csv"),
        *("--uncertainty", out / "e.nii.gz", "--model", model),
        MEDSEGAI_FAKE_WAIT=stage,
        MEDSEGAI_FAKE_WRITE_SECONDS="0.3" if times == 1 else "60",
    )
    code, said = interrupt(process, stage, times)
    assert code == 130, said
    assert "Traceback" not in said
    assert in_folder(out) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_file_that_cannot_grow_exits_with_5(scan: Path, model: str, out: Path) -> None:
    import resource

    process = subprocess.run(
        [sys.executable, FAKE_COMMAND, "segment", scan, "-o", out / "seg.nii.gz", "--model", model],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 5, process.stderr
    assert "Traceback" not in process.stderr
    assert in_folder(out) == []


def test_help_and_mistakes_answer_without_loading_torch(model: str) -> None:
    script = """
import sys
from medsegai.cli import main
for words in (["--help"], ["segment", "--help"], ["train", "quicknat", "--help"], ["--version"]):
    try:
        main(words)
    except SystemExit:
        pass
assert main(["models", "list"]) == 0
assert main(["models", "show", "toy"]) == 0
assert main(["segment", "nowhere.nii.gz", "-o", "x.nii.gz"]) == 3
assert main(["segment", ".", "-o", "x.nii.gz", "--model", "brian"]) == 4
heavy = {"torch", "SimpleITK", "nibabel", "scipy", "PIL", "monai"} & set(sys.modules)
sys.exit(f"loaded {heavy}" if heavy else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_python_m_medsegai_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "medsegai", "--version"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "medsegai")


def test_a_reader_that_goes_away_is_no_error(model: str) -> None:
    process = command("models", "show", model)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    assert (process.wait(timeout=30), said) == (0, "")


TOO_LONG = "a" * 300

LOOKING = (
    ("segment", TOO_LONG, "-o", "out.seg.nrrd"),
    ("refine", TOO_LONG, "-o", "out.seg.nrrd", "--refinement", "islands"),
    ("measure", TOO_LONG),
    ("export", TOO_LONG, "--csv", "table.csv"),
    ("objects", TOO_LONG, "-o", "objects.png"),
    ("evaluate", TOO_LONG, TOO_LONG),
    ("batch", TOO_LONG, "-o", "results"),
    ("slide", TOO_LONG),
    ("crossval", TOO_LONG, "--model", "brain"),
    ("calibrate", "brain", TOO_LONG, "--cases", "all"),
    ("train", "patches", TOO_LONG),
    ("train", "nnunet", TOO_LONG, "-o", "run"),
    ("train", "unet2d", TOO_LONG, "-o", "run"),
    ("compare", TOO_LONG, "-o", "comparison"),
    ("models", "import", TOO_LONG),
)


@pytest.mark.parametrize("words", LOOKING, ids=lambda words: " ".join(words[:2])[:20])
def test_a_path_that_cannot_be_looked_at_is_one_error(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As where a folder is closed to the user, or a name is longer than names can be; it was a traceback."""
    monkeypatch.chdir(tmp_path)
    code = main(list(words))
    said = capsys.readouterr().err
    assert 1 <= code <= 5
    assert said.startswith("medsegai: ")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
