"""What somebody meets who is new: help, slips of the pen, what was written, and machines of every kind."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from medsegai.cli import COMMANDS, build_parser, main
from medsegai.commands.parsing import suggestion
from medsegai.errors import ModelError, OutputError
from medsegai.io import write_segmentation
from medsegai.labels import Label
from medsegai.models.catalogue import BUNDLED_MODELS
from medsegai.volume import Geometry, Volume
from test_cli import subcommands

Capture = pytest.CaptureFixture[str]

PACKAGE = Path(sys.modules["medsegai"].__file__ or "").parent
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")


@pytest.fixture
def segmentation(tmp_path: Path) -> Path:
    """A ball whose name has letters that few encodings share."""
    distance = np.linalg.norm(np.mgrid[:16, :16, :16] - 8, axis=0)
    volume = Volume((distance < 5).astype(np.uint8), Geometry((16, 16, 16), np.eye(4)))
    write_segmentation(
        tmp_path / "ball.seg.nrrd", volume, (Label(1, "Leber 肝 groß", (200, 0, 0)),)
    )
    return tmp_path / "ball.seg.nrrd"


# help


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], "segment one scan"), (["models"], "delete a model"), (["train"], "quicknat")],
)
def test_a_command_alone_prints_its_help(words: list[str], expected: str, capsys: Capture) -> None:
    assert main(words) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["segmnt", "a.nii"], "segment"),
        (["segment", "a.nii", "-o", "b.nii", "--prewiew", "c.png"], "--preview"),
        (["segment", "a.nii", "-o", "b.nii", "--prewiew=c.png"], "--preview"),
        (["segment", "a.nii", "-o", "b.nii", "--tile_step", "0.5"], "--tile-step"),
        (["segment", "a.nii", "-o", "b.nii", "--fusion", "men"], "mean"),
        (["models", "lst"], "list"),
        (["evaluate", "a", "b", "--mappings", "c.csv"], "--mapping"),
        (["train", "nnunett", "a"], "nnunet"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(
    words: list[str], meant: str, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert f"Did you mean {meant}?" in capsys.readouterr().err


def test_what_is_like_nothing_gets_no_suggestion(capsys: Capture) -> None:
    assert suggestion("--zzzz", ["--preview"]) == ""
    with pytest.raises(SystemExit):
        main(["segment", "a.nii", "-o", "b.nii", "--qqqqqq"])
    assert "Did you mean" not in capsys.readouterr().err


@posix
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("medsegai seg", ["segment"]),
        ("medsegai segment a.nii --prev", ["--preview"]),
        ("medsegai segment a.nii --fusion ", ["mean", "vote"]),
        ("medsegai models re", ["remove"]),
    ],
)
def test_the_shell_completes_commands_options_and_choices(
    line: str, expected: list[str], tmp_path: Path
) -> None:
    """As argcomplete's bash function asks."""
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    subprocess.run(
        [sys.executable, "-m", "medsegai"], env=os.environ | asked, check=True, cwd=tmp_path
    )
    assert [word.strip() for word in (tmp_path / "answer").read_text().split("\n")] == expected
    for name in ("cli.py", "__main__.py"):
        assert "PYTHON_ARGCOMPLETE_OK" in (PACKAGE / name).read_text(encoding="utf-8")[:1024]


# what was done


def test_refine_says_what_it_wrote_also_where_nothing_changed(
    segmentation: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, report = tmp_path / "out.seg.nrrd", tmp_path / "out.json"
    words = ["--refinement", "holes", "-o", str(out), "--report", str(report)]
    assert main(["refine", str(segmentation), *words]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Nothing was changed, because the refinements did not find anything to change.",
        f"Written: {out}, {report}",
    ]


def test_refinements_are_described_with_the_words_that_they_read(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["refine", "--help"])
    said = capsys.readouterr().out
    assert "=yes" in said or "=no" in said
    assert "=True" not in said
    assert "=False" not in said


def test_measure_writes_round_numbers(segmentation: Path, tmp_path: Path, capsys: Capture) -> None:
    table = tmp_path / "table.csv"
    assert main(["measure", str(segmentation), "--csv", str(table)]) == 0
    assert f"Written: {table}" in capsys.readouterr().out
    cells = [cell for line in table.read_text(encoding="utf-8").split() for cell in line.split(",")]
    assert not [
        cell for cell in cells if len(cell.replace(".", "").lstrip("-0")) > 12 and "." in cell
    ]


# models


def test_the_accuracy_of_a_model_is_a_few_lines(capsys: Capture) -> None:
    assert main(["models", "show", "brain"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) < 140
    assert "{" not in said
    assert "medsegai models show brain --json" in said


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "own"
    (folder / "mine").mkdir(parents=True)
    text = (BUNDLED_MODELS / "hippocampus" / "card.json").read_text(encoding="utf-8")
    text = text.replace('"id": "hippocampus"', '"id": "mine"', 1)
    (folder / "mine" / "card.json").write_text(text, encoding="utf-8")
    (folder / "worn").mkdir()
    (folder / "worn" / "card.json").write_text("{")
    monkeypatch.setenv("MEDSEGAI_MODELS", str(folder))
    return folder


@pytest.mark.parametrize("name", ["mine", "worn"])
def test_a_model_of_ones_own_is_removed(name: str, own: Path, capsys: Capture) -> None:
    assert main(["models", "remove", name]) == 0
    assert str(own / name) in capsys.readouterr().out
    assert sorted(path.name for path in own.iterdir()) == sorted({"mine", "worn"} - {name})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("brain", "is bundled with MedSegAI"),
        ("nothing", "Your own models are: mine, worn"),
        ("../own/mine", "You do not have a model"),
        ("", "You do not have a model"),
    ],
)
def test_what_is_not_ones_own_is_not_removed(
    name: str, reason: str, own: Path, capsys: Capture
) -> None:
    assert main(["models", "remove", name]) == ModelError.exit_code
    assert reason in capsys.readouterr().err
    assert len(list(own.iterdir())) == 2
    assert (BUNDLED_MODELS / "brain" / "card.json").is_file()


# commands


def test_a_command_is_described_alone_as_among_all() -> None:
    """`main` leaves the others out; what it does with a word that is not a command concerns all."""
    helps = {name: it.format_help() for name, it in subcommands(build_parser(), "medsegai")}
    words = {name.split()[1] for name in helps}
    assert len(words) == len(COMMANDS)
    for word in words:
        alone = {name: it.format_help() for name, it in subcommands(build_parser(word), "medsegai")}
        assert alone == {name: help for name, help in helps.items() if name.split()[1] == word}


# machines


ENCODINGS = ("cp932", "gbk", "cp950", "cp1251", "cp1252", "ascii", "utf-8")


def helps_and_table(segmentation: Path) -> tuple[list[str], ...]:
    return ["segment", "--help"], ["export", "--help"], ["measure", str(segmentation)]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_gets_the_table(
    encoding: str, segmentation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in helps_and_table(segmentation):
        written = {name: io.BytesIO() for name in ("stdout", "stderr")}
        with monkeypatch.context() as patch:
            for name, into in written.items():
                patch.setattr(sys, name, io.TextIOWrapper(into, encoding, write_through=True))
            assert code_of(words) == 0
            assert written["stdout"].getvalue().decode(encoding)
            assert written["stderr"].getvalue() == b""


def code_of(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as end:  # of argparse, after a help
        return int(end.code or 0)


def test_a_process_of_an_encoding_gets_the_table(segmentation: Path) -> None:
    for words in helps_and_table(segmentation):
        done = subprocess.run(
            [sys.executable, "-m", "medsegai", *words],
            env=os.environ | {"PYTHONIOENCODING": ENCODINGS[0]},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        done.stdout.decode(ENCODINGS[0])
        assert not done.stderr


@posix
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(closed: str, segmentation: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    line = f'"{sys.executable}" -m medsegai measure "{segmentation}" --csv "{out}" {closed}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert out.read_text(encoding="utf-8").startswith("value,name")
    assert "Written" not in out.read_text(encoding="utf-8"), "no file has the number of stdout"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
def test_output_that_cannot_be_printed_is_an_error_without_a_traceback(segmentation: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "medsegai", "measure", str(segmentation)],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            text=True,
        )
    assert done.returncode == OutputError.exit_code
    assert done.stderr == "medsegai: what was to be printed is lost: No space left on device.\n"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="needs root and setpriv",
)
def test_without_home_and_entry_in_the_password_file() -> None:
    """As in containers that run as any user."""
    alone = {"PATH": "/usr/bin:/bin", "TMPDIR": "/tmp"}
    for words in (["models", "list"], ["models", "verify"], ["doctor"]):
        done = subprocess.run(
            [
                *("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"),
                *(sys.executable, "-m", "medsegai", *words),
            ],
            env=alone,
            capture_output=True,
            check=False,
            text=True,
            cwd="/",
        )
        assert done.returncode == 0, done.stderr
        assert "brain" in done.stdout


def test_the_package_runs_from_a_zip_archive(tmp_path: Path) -> None:
    archive = tmp_path / "medsegai.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(PACKAGE.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                file.write(path, path.relative_to(PACKAGE.parent))
    others = [place for place in sys.path if place and Path(place) != PACKAGE.parent]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = (
        "import medsegai, sys; assert '.zip' in medsegai.__file__, medsegai.__file__; "
        "from medsegai.cli import COMMANDS, build_parser, main; sys.exit(main(sys.argv[1:]))"
    )
    for words in (["models", "verify"], ["refine", "--help"]):
        done = subprocess.run(
            [sys.executable, "-S", "-c", code, *words],
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(archive), *others]), "TMPDIR": str(temporary)},
            capture_output=True,
            check=False,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert not list(temporary.iterdir()), "the models that were unpacked are taken away"
