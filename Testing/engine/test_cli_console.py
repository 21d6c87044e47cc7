"""What is drawn at a terminal, and only there."""

from __future__ import annotations

import io
import os
import signal
import threading

import pytest

from medsegai.commands import console
from medsegai.commands.console import ProgressBar, duration, progress_line, stoppable, table
from medsegai.progress import Progress, ProgressEvent


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> str:
        """The line as it stands after all that was written: each return starts over it."""
        shown = ""
        for line in self.getvalue().split("\r"):
            shown = line + shown[len(line) :]
        return shown.rstrip()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that `console` sees; the last one counts."""
    times = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: times[-1])
    return times


def test_nothing_is_drawn_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    bar = ProgressBar(stream)
    bar(ProgressEvent("predict", 0.5, 10.0))
    bar.clear()
    assert stream.getvalue() == ""


def test_nothing_is_drawn_when_quiet() -> None:
    stream = Terminal()
    ProgressBar(stream, quiet=True)(ProgressEvent("predict", 0.5))
    assert stream.getvalue() == ""


def test_the_line_tells_stage_part_and_time_left(clock: list[float]) -> None:
    stream = Terminal()
    bar = ProgressBar(stream)
    clock.append(1.0)
    bar(ProgressEvent("predict", 0.25, 75.0))
    assert stream.screen().split() == [
        *("predict", "[" + "#" * 6 + "-" * 18 + "]"),
        *("25%", "1", "min", "15", "s", "left"),
    ]


def test_a_shorter_line_covers_the_longer_one_before_it(clock: list[float]) -> None:
    stream = Terminal()
    bar = ProgressBar(stream)
    for number, event in enumerate(
        (ProgressEvent("a stage with a long name", 0.5, 4000.0), ProgressEvent("write", 1.0))
    ):
        clock.append(1.0 + number)
        bar(event)
    assert stream.screen() == progress_line(ProgressEvent("write", 1.0))
    bar.clear()
    assert stream.screen() == ""


def test_a_stage_is_drawn_at_once_and_then_not_too_often(clock: list[float]) -> None:
    stream = Terminal()
    bar = ProgressBar(stream)
    clock.append(1.0)
    for part in range(100):
        bar(ProgressEvent("predict", part / 100))
    bar(ProgressEvent("fuse", 1.0))
    assert stream.getvalue().count("\r") == 2
    clock.append(1.0 + console.REDRAW_SECONDS)
    bar(ProgressEvent("fuse", 1.0))
    assert stream.getvalue().count("\r") == 3


def test_the_line_never_wraps(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    clock.append(1.0)
    ProgressBar(stream)(ProgressEvent("a stage with a long name", 0.5, 4000.0))
    assert len(stream.screen()) == 29


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7380, "2 h 03 min"),
    ],
)
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_columns_of_a_table_are_aligned() -> None:
    lines = table(["name", "ml"], [["hippocampus", "3.10"], ["a", "12.05"]]).splitlines()
    assert lines == [
        "name            ml",
        "-----------  -----",
        "hippocampus   3.10",
        "a            12.05",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    assert table(["name", "ml"], []).splitlines() == ["name  ml", "----  --"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_asks_to_stop_then_stops(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    progress = Progress()
    with stoppable(progress):
        os.kill(os.getpid(), signal.SIGINT)
        assert progress.cancel.is_set()
        assert "Ctrl-C again" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_beside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with stoppable(Progress()):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
