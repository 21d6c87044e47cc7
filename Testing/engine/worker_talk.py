"""A conversation with a worker process over its pipes, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import numpy as np

from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume
from medsegai.worker import protocol
from medsegai.worker.array_transfer import ExchangeFolder, blocks

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE_WORKER = REPOSITORY / "Testing" / "engine" / "fake_worker.py"
PATIENCE = 20.0
ALIVE = 0.5


def request(*models: str, **options: Any) -> SegmentationRequest:
    image = np.zeros((3, 4, 5), np.float32)
    image[1:] = 150
    volume = Volume(image, Geometry.from_spacing((3, 4, 5), (1, 2, 3)))
    return SegmentationRequest((volume,), models=models, **options)


def segment_message(job: str, exchange: Path) -> bytes:
    """The line that asks for a job of a made-up engine."""
    packed = protocol.packed(request("a"), exchange)
    return protocol.encode(
        {"type": "segment", "job": job, "exchange": str(exchange), "request": packed}
    )


class Talk:
    """The other end of a worker's pipes."""

    def __init__(self, command: list[str], exchange: Path) -> None:
        self.exchange = exchange
        environment = os.environ | {
            "TMPDIR": str(exchange),
            "PYTHONPATH": str(REPOSITORY / "MedSegAI"),
            "OMP_NUM_THREADS": "1",
            "MEDSEGAI_FAKE_ALIVE": str(ALIVE),
        }
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        self.lines: Queue[bytes] = Queue()
        self.errors: list[bytes] = []
        Thread(target=self._read, daemon=True).start()
        Thread(target=self._read_errors, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(b"")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def say(self, **message: Any) -> None:
        self.raw(json.dumps(message).encode() + b"\n")

    def raw(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def segment(self, job: str, *models: str, **options: Any) -> None:
        message = protocol.packed(request(*models, **options), self.exchange)
        self.say(type="segment", job=job, exchange=str(self.exchange), request=message)

    def carry(self, job: str, *models: str, arrays_only: bool = False) -> None:
        """The same job for a worker that does not see our files."""
        folder = ExchangeFolder(self.exchange)
        message = protocol.packed(request(*models), folder.path)
        for block in blocks(folder.path):
            self.say(type="array", job=job, **block)
        folder.remove()
        if not arrays_only:
            self.say(type="segment", job=job, exchange=None, request=message)

    def hear(self, *kinds: str) -> dict[str, Any]:
        """The next message of one of these kinds."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                line = self.lines.get(timeout=deadline - time.monotonic())
            except Empty:
                break
            assert line, f"the worker ended: {b''.join(self.errors).decode()}"
            message = protocol.decode(line)
            if message["type"] in kinds:
                return message
        raise AssertionError(f"no {kinds} came: {b''.join(self.errors).decode()}")

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(PATIENCE)

    def log(self) -> str:
        return b"".join(self.errors).decode()


def talking(folder: Path) -> Iterator[Talk]:
    """A conversation with a worker that has a made-up engine; the process is ended afterwards."""
    talk = Talk([sys.executable, str(FAKE_WORKER)], folder)
    yield talk
    talk.process.kill()
    talk.process.wait()


def gone_now(pid: int) -> bool:
    """Whether the process has ended; one that waits to be collected by its parent has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


def gone(pid: int) -> bool:
    """Whether the process ends soon."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if gone_now(pid):
            return True
        time.sleep(0.05)
    return False
