"""Texts from outside are shown and not obeyed: by spreadsheets, by terminals, by Qt."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsegai.cli import main
from medsegai.commands.console import ProgressBar
from medsegai.io import write_table
from medsegai.progress import ProgressEvent
from medsegai.system.outside_text import VisibleStream, one_line, table_cell, unformatted, visible
from test_cli_console import Terminal

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\x08\r\u202egnp.exe"


@given(st.text())
def test_what_a_terminal_gets_has_no_control_characters(text: str) -> None:
    shown = visible(text)
    assert not any(
        character < " " or "\x7f" <= character <= "\x9f"
        for character in shown
        if character not in "\n\t"
    )
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    if text.isprintable():
        assert shown == text


@given(st.text())
def test_no_cell_is_a_formula_and_numbers_stay(text: str) -> None:
    cell = table_cell(text)
    assert len(cell.splitlines()) <= 1
    if len(text.splitlines(keepends=True)) <= 1 and one_line(text) == text:
        assert cell in (text, f"'{text}")
    if len(cell) > 1 and cell[0] in "=+-@\t\r":
        float(cell)
    assert table_cell(cell) == cell or cell == text


@pytest.mark.parametrize("value", [1, -1.5, None, "-1.5", "-", "", "a=b", "1e-3", "+3"])
def test_plain_cells_stay(value: object) -> None:
    assert table_cell(value) == value


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "-1+cmd|' /C calc'!A0", "+x", "\t=1"])
def test_formulas_are_written_as_text(text: str, tmp_path: Path) -> None:
    write_table(tmp_path / "x.csv", ["a", "b"], [{"a": text, "b": [text, "c"]}])
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row == {"a": f"'{text}", "b": f"'{text}; c"}


@given(st.text())
def test_a_message_is_one_line(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert visible(line) == line
    if text.isprintable():
        assert line == text


def test_a_name_with_line_breaks_cannot_pass_for_other_messages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = "a\nmedsegai: done\r\u2028Written: b"
    (tmp_path / f"{forged}.nii").write_bytes(b"no image")
    assert main(["segment", f"{tmp_path}/{forged}.nii", "-o", f"{tmp_path}/x.nrrd"]) == 3
    assert main(["batch", str(tmp_path), "-o", str(tmp_path / "out"), "--model", "brain"]) == 1
    printed = "".join(capsys.readouterr())
    table = (tmp_path / "out" / "batch.csv").read_text(encoding="utf-8")
    for line in (*printed.splitlines(), *table.splitlines()):
        assert not line.startswith(("medsegai: done", "Written: b"))
    assert len(table.splitlines()) == 2


@given(st.text())
def test_text_for_qt_can_be_given_back(text: str) -> None:
    assert unformatted(text).replace("<\u200b", "<").replace("&\u200blt;", "&lt;") == text


def test_messages_of_commands_are_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own" / "x"
    own.mkdir(parents=True)
    (own / "card.json").write_text(json.dumps({"id": EVIL}))
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "own"))
    before = sys.stdout, sys.stderr
    main(["models", "list"])
    main(["segment", f"{tmp_path}/{EVIL}.nii", "-o", f"{tmp_path}/{EVIL}.nrrd"])
    with pytest.raises(SystemExit):
        main(["segment", EVIL, f"--{EVIL}"])
    assert (sys.stdout, sys.stderr) == before
    for printed in capsys.readouterr():
        assert visible(printed) == printed
        assert printed
    assert EVIL not in printed


def test_the_progress_bar_draws_on_the_terminal_itself() -> None:
    terminal = Terminal()
    bar = ProgressBar(VisibleStream(terminal))
    bar(ProgressEvent(EVIL, 0.5))
    assert terminal.getvalue().startswith("\r")
    assert visible(terminal.getvalue()[1:]) == terminal.getvalue()[1:]
    assert "title" in terminal.getvalue()


# signals


STOPPED = """
    import os, signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    from pathlib import Path
    from medsegai import cli
    from medsegai.commands.console import stoppable
    from medsegai.io import atomic_path
    from medsegai.progress import Progress

    def work(arguments):
        where, out = os.environ["WHERE"], Path(os.environ["OUT"])
        with atomic_path(out) as partial:
            partial.write_text("half")
            if where == "outside":
                os.kill(os.getpid(), int(os.environ["SIGNAL"]))
                time.sleep(60)
            progress = Progress()
            with stoppable(progress):
                os.kill(os.getpid(), int(os.environ["SIGNAL"]))
                if where == "step":
                    progress.step("predict", 1, 2)
                if where == "twice":
                    os.kill(os.getpid(), int(os.environ["SIGNAL"]))
                    time.sleep(60)
        return 0

    cli.models.run_list = work
    sys.exit(cli.main(["models", "list"]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["outside", "step", "twice", "last moment"])
def test_sigterm_is_as_clean_as_ctrl_c_and_the_last_word_is_true(
    where: str, number: signal.Signals, tmp_path: Path
) -> None:
    out = tmp_path / "out.txt"
    environment = os.environ | {"WHERE": where, "OUT": str(out), "SIGNAL": str(int(number))}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STOPPED)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if where == "last moment":
        assert done.returncode == 0, done.stderr
        assert "finished before it could be stopped" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]
    else:
        assert done.returncode == 130, done.stderr
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_made_of_the_command_ends_at_once(tmp_path: Path) -> None:
    code = """
        import os, signal, time
        from medsegai.commands.console import terminable
        with terminable():
            child = os.fork()
            if child == 0:
                time.sleep(60)
            time.sleep(0.5)
            os.kill(child, signal.SIGTERM)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    if not hasattr(os, "fork"):
        pytest.skip("no fork")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(-signal.SIGTERM), done.stderr
