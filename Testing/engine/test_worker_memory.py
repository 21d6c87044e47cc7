"""What the worker gives back when a job stops or models are forgotten."""

from __future__ import annotations

import io
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medsegai import engine
from medsegai.errors import Cancelled
from medsegai.worker import protocol
from medsegai.worker import server as worker_module
from tiny_quicknat import write_model
from worker_talk import (
    Talk,
    segment_message,
    talking,
)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Talk]:
    yield from talking(tmp_path)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker within this process must not end it, however slow the computer is."""
    monkeypatch.setattr(worker_module, "GRACE_SECONDS", 600.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("on_card", [True, False])
def test_what_stopped_gives_the_graphics_card_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_card: bool
) -> None:
    """A torch that uses a card, as far as the worker looks; on a processor models stay loaded."""
    done: list[str] = []
    cuda = SimpleNamespace(is_initialized=lambda: on_card, empty_cache=lambda: done.append("empty"))
    forgetful = SimpleNamespace(forget_models=lambda: done.append("forget"))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "medsegai.engine", forgetful)

    def stop(*_: object) -> Any:
        raise Cancelled("stop")

    line = segment_message("a", tmp_path)
    outgoing = io.BytesIO()
    worker_module.Worker({"segment": stop}, io.BytesIO(line), outgoing).run()
    answers = [protocol.decode(line)["type"] for line in outgoing.getvalue().splitlines()]
    assert "error" in answers
    assert done == (["forget", "empty"] if on_card else [])


@pytest.mark.usefixtures("patient")
def test_a_stopped_job_is_not_kept_in_memory(tmp_path: Path) -> None:
    """Not even by the error that it ended with."""
    arrays: list[weakref.ref[Any]] = []

    def stop(*_: object) -> Any:
        tensor = np.zeros(1000)
        arrays.append(weakref.ref(tensor))
        raise Cancelled("stop")

    line = segment_message("a", tmp_path)
    held: list[Any] = []

    class Outgoing(io.BytesIO):
        def write(self, data: Any) -> int:
            held.extend(array() for array in arrays)
            return super().write(data)

    worker_module.Worker({"segment": stop}, io.BytesIO(line), Outgoing()).run()
    assert held
    assert all(item is None for item in held)


def test_models_that_are_forgotten_are_loaded_again(tmp_path: Path) -> None:
    card = write_model(tmp_path / "tiny")
    first = engine._model(*engine._key(card))
    assert engine._model(*engine._key(card)) is first
    engine.forget_models()
    assert engine._model(*engine._key(card)) is not first
