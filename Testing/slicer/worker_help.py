"""What tests of the worker client share: a listener that remembers, requests, and patience."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

import pythonqt
from medsegai.errors import MedSegAIError
from medsegai.progress import ProgressEvent
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Geometry, Volume
from MedSegAILib.worker.client import WorkerClient
from MedSegAILib.worker.location import worker_environment

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE_WORKER = REPOSITORY / "Testing" / "engine" / "fake_worker.py"
ENVIRONMENT = worker_environment(REPOSITORY / "MedSegAI") | {
    "OMP_NUM_THREADS": "1",
    "MEDSEGAI_FAKE_ALIVE": "0.5",
}
PATIENCE = 120.0
"""A busy computer may take a minute to load torch."""

LAST = {"slow": "predict", "deaf": "read", "mother": "child"}
"""Of jobs that take long, the stage from which on nothing but time passes."""


class Ear:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.events: list[ProgressEvent] = []
        self.results: list[SegmentationResult] = []
        self.errors: list[MedSegAIError] = []

    @property
    def told(self) -> int:
        return len(self.results) + len(self.errors)

    def progressed(self, event: ProgressEvent) -> None:
        assert not self.told
        self.events.append(event)

    def finished(self, result: SegmentationResult) -> None:
        self.results.append(result)

    def failed(self, error: MedSegAIError) -> None:
        self.errors.append(error)


def make_client(start: str = "", command: list[str] | None = None) -> WorkerClient:
    fake = [sys.executable, str(FAKE_WORKER)]
    return WorkerClient(command or fake, ENVIRONMENT | {"MEDSEGAI_FAKE_START": start})


def request(behaviour: str, **options: object) -> SegmentationRequest:
    image = np.zeros((3, 4, 5), np.float32)
    image[1:] = 150
    volume = Volume(image, Geometry.from_spacing((3, 4, 5), (1, 2, 3)), "head")
    return SegmentationRequest((volume,), models=(behaviour,), **options)


def run(client: WorkerClient, behaviour: str) -> Ear:
    ear = Ear()
    client.start(request(behaviour), ear)
    until(lambda: ear.told)
    return ear


def until(condition: object) -> None:
    """Let the event loop run until the condition holds. A computer that stood still is forgiven."""
    waited, before = 0.0, time.monotonic()
    while not condition():  # type: ignore[operator]
        assert waited < PATIENCE, "nothing happened"
        pythonqt.process_events(10)
        waited += min(time.monotonic() - before, 0.5)
        before = time.monotonic()


def only_error(ear: Ear) -> MedSegAIError:
    assert not ear.results
    (error,) = ear.errors
    return error


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("medsegai-*")]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


def until_gone(pid: int) -> None:
    """Let the event loop run until a process has ended; else say what it is doing."""
    try:
        until(lambda: gone(pid))
    except AssertionError as error:
        facts = (Path(f"/proc/{pid}/{name}").read_text() for name in ("cmdline", "wchan", "status"))
        raise AssertionError("\n".join(facts)) from error
