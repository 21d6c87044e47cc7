"""A batch that is killed between any two moves of files, and two runs into one output: nothing is mixed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

import medsegai
import warm
from ending_batches import KILLED, ended_at_access, ended_at_move
from medsegai.cli import main
from medsegai.errors import OutputError
from medsegai.io import atomic_path, files_together
from medsegai.models.card import file_sha256
from medsegai.output.batch import PARTIAL, unfinished_hashes
from medsegai.output.result_files import recorded_hashes
from medsegai.system import locks
from medsegai.system.locks import reserved

PARTS = 4  # segmentation, uncertainty, preview, report


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 200, (9, 7, 8), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])), path)


def words(tmp_path: Path, model: str, *more: str) -> list[str]:
    options = ["--uncertainty", "--preview", "-q"]
    return [
        "batch",
        f"{tmp_path}/scans",
        "-o",
        f"{tmp_path}/out",
        "--model",
        model,
        *options,
        *more,
    ]


def killed(tmp_path: Path, model: str, moves: int, *more: str) -> None:
    given = (moves, words(tmp_path, model, *more))
    process = warm.start(ended_at_move, *given, output=tmp_path / "said")
    process.join()
    assert process.exitcode == KILLED, (tmp_path / "said").read_text()


def killed_at_access(tmp_path: Path, model: str, at: int) -> tuple[int | None, str]:
    """The exit code, and what was printed."""
    given = (str(tmp_path / "out"), at, words(tmp_path, model, "--resume"))
    process = warm.start(ended_at_access, *given, output=tmp_path / "said")
    process.join()
    return process.exitcode, (tmp_path / "said").read_text()


def check_all_whole(out: Path) -> None:
    """Every file is the one that its report names, and nothing else is there."""
    names = {path.name for path in out.iterdir()}
    for case in "ab":
        recorded = recorded_hashes(out / f"{case}.json")
        files = {
            "segmentation": ".seg.nrrd",
            "uncertainty": "_uncertainty.nii.gz",
            "preview": ".png",
        }
        assert recorded == {part: file_sha256(out / f"{case}{end}") for part, end in files.items()}
        names -= {f"{case}{end}" for end in (*files.values(), ".json")}
    assert names == {"batch.csv", "volumes.csv", "cohort.csv"}


@pytest.mark.parametrize("moves", range(PARTS))
@pytest.mark.parametrize("before", [False, True], ids=["new", "overwritten"])
def test_a_batch_killed_between_two_moves_is_gone_on_with(
    before: bool, moves: int, tmp_path: Path, model: str, requests: object
) -> None:
    for seed, name in enumerate("ab"):
        save(tmp_path / "scans" / f"{name}.nii.gz", seed)
    if before:
        assert main(words(tmp_path, model)) == 0
        save(tmp_path / "scans" / "a.nii.gz", 7)
    killed(tmp_path, model, moves, *(["--overwrite"] if before else []))
    report = tmp_path / "out" / "a.json"
    assert report.exists() == before
    assert main(words(tmp_path, model, "--resume")) == 0
    check_all_whole(tmp_path / "out")


def test_a_batch_killed_at_any_moment_and_again_ends_as_one_that_was_not(
    tmp_path: Path, model: str, requests: object
) -> None:
    """Each run is killed before a random access to the folder of results; the next goes on where it was."""
    for seed, name in enumerate("ab"):
        save(tmp_path / "scans" / f"{name}.nii.gz", seed)
    code, said = killed_at_access(tmp_path, model, 10**9)
    assert code == 0, said
    accesses = int(said.split()[-1])
    check_all_whole(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    chance, kills = random.Random(os.environ.get("MEDSEGAI_SEED", "13")), 0
    for _ in range(4):
        code, said = killed_at_access(tmp_path, model, chance.randrange(accesses))
        kills += code == KILLED
        assert code in (0, KILLED), f"what was left behind is no obstacle: {said}"
    assert kills
    assert main(words(tmp_path, model, "--resume")) == 0
    check_all_whole(tmp_path / "out")


def test_a_result_that_was_changed_is_kept_and_told(
    tmp_path: Path, model: str, requests: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate("ab"):
        save(tmp_path / "scans" / f"{name}.nii.gz", seed)
    assert main(words(tmp_path, model)) == 0
    corrected = tmp_path / "out" / "a.seg.nrrd"
    corrected.write_text("corrected by hand")
    (tmp_path / "out" / "b.png").unlink()
    requests.clear()
    assert main(words(tmp_path, model, "--resume")) == 0
    assert corrected.read_text() == "corrected by hand"
    assert "a.seg.nrrd was changed after it was written" in (tmp_path / "out/batch.csv").read_text()
    assert len(requests) == 1  # b, whose picture was missing
    assert (tmp_path / "out" / "b.png").is_file()


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "[]", '{"provenance": {"options": []}}'])
def test_a_report_that_makes_no_sense_is_named(
    content: str, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "scans" / "a.nii.gz", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json").write_text(content)
    assert main(words(tmp_path, model, "--resume")) == 3
    assert "a.json" in capsys.readouterr().err


def test_a_table_that_has_no_end_is_not_read(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medsegai.commands.batch.MOST_OF_A_TABLE", 100)
    (tmp_path / "table.csv").write_text("case,image\n" * 100)
    assert main(["batch", f"{tmp_path}/table.csv", "-o", f"{tmp_path}/out", "--model", model]) == 3
    assert "more than 100 bytes" in capsys.readouterr().err.lower()


def test_what_is_unfinished_is_known_by_its_report(tmp_path: Path) -> None:
    report = {"outputs": {"segmentation": {"path": "a.seg.nrrd", "sha256": "0" * 64}}}
    (tmp_path / f".{'a' * 16}.json").write_text(json.dumps(report))
    (tmp_path / f".{'b' * 16}.json").write_text("{")
    (tmp_path / "c.json").write_text(json.dumps({"outputs": {"x": {"sha256": "1" * 64}}}))
    assert unfinished_hashes(tmp_path) == {"0" * 64}
    with atomic_path(tmp_path / "x.seg.nrrd") as partial:
        assert PARTIAL.fullmatch(partial.name)
        partial.touch()


# files that appear together


def test_files_appear_in_the_order_in_which_they_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    replace = os.replace
    monkeypatch.setattr(
        os,
        "replace",
        lambda source, target: [moved.append(Path(target).name), replace(source, target)],
    )
    with files_together() as files:
        for name in ("first", "second", "last"):
            with files.path(tmp_path / name) as partial:
                partial.write_text(name)
            assert moved == []
    assert moved == ["first", "second", "last"]


def test_several_files_are_never_left_to_a_stack() -> None:
    """An ExitStack unwinds backwards: the last file, which vouches for the others, would appear first."""
    sources = Path(medsegai.__file__).parent.rglob("*.py")
    assert not [str(path) for path in sources if "enter_context(atomic_path" in path.read_text()]


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("after", [False, True], ids=["before the move", "after the move"])
def test_ctrl_c_moves_all_files_or_none(
    at: int, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, replace = iter(range(100)), os.replace

    def interrupted(source: Path, target: Path) -> None:
        number = next(calls)
        if number == at and not after:
            raise KeyboardInterrupt
        replace(source, target)
        if number == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    stopped = False
    try:
        with files_together() as files:
            for name in "abc":
                with files.path(tmp_path / name) as partial:
                    partial.write_text(name)
    except KeyboardInterrupt:
        stopped = True
    assert stopped == (at == 0 and not after)
    assert sorted(path.name for path in tmp_path.iterdir()) == ([] if stopped else list("abc"))


# two runs into one output


HOLDING = """
    import sys
    from pathlib import Path
    from medsegai.system.locks import reserved
    with reserved([Path(path) for path in sys.argv[1:]]):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def other_run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is writing out.seg.nrrd and out/batch.csv."""
    (tmp_path / "out").mkdir()
    paths = [str(tmp_path / "out.seg.nrrd"), str(tmp_path / "out" / "batch.csv")]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDING), *paths],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_into_one_output_is_refused(
    tmp_path: Path,
    model: str,
    requests: list[object],
    other_run: subprocess.Popen[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path / "scans" / "a.nii.gz", 1)
    scan, out = f"{tmp_path}/scans/a.nii.gz", f"{tmp_path}/out.seg.nrrd"
    segment = ["segment", scan, "-o", out, "--model", model, "--overwrite"]
    assert main(segment) == 5
    assert f"another run of MedSegAI (process {other_run.pid})" in capsys.readouterr().err
    assert main(words(tmp_path, model, "--overwrite")) == 5
    assert main(["refine", out, "--refinement", "holes", "-o", out, "--overwrite"]) == 5
    assert main(["measure", scan, "--csv", f"{tmp_path}/out/batch.csv", "--overwrite"]) == 5
    assert main(["export", scan, "--csv", f"{tmp_path}/out/batch.csv", "--overwrite"]) == 5
    assert requests == []
    other_run.kill()
    other_run.wait()
    assert main(segment) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"out.seg.nrrd"}
    assert not list(tmp_path.glob(".*.lock"))


def test_a_reservation_leaves_nothing_and_can_be_made_again(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    for _ in range(2):
        with reserved([path, path]):
            assert len(list(tmp_path.iterdir())) == 1
            with pytest.raises(OutputError, match="is being written"), reserved([path]):
                pass
        assert list(tmp_path.iterdir()) == []


def test_without_locks_there_is_no_reservation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(file: object) -> bool:
        raise OSError("no locks on this disk")

    monkeypatch.setattr(locks, "try_lock", none)
    with reserved([tmp_path / "x"]), reserved([tmp_path / "x", tmp_path / "missing" / "y"]):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX")
def test_a_reservation_on_a_full_disk_holds_and_leaves_nothing(tmp_path: Path) -> None:
    """Its file can be made, but there is no room for what would be written into it."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with (
            reserved([tmp_path / "x"]),
            pytest.raises(OutputError, match="is being written"),
            reserved([tmp_path / "x"]),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
