"""The engine in a process of its own: JSON lines come in on stdin, events leave on stdout.

`medsegai.protocol` lists the messages. Jobs run one after another on the main thread, where torch
and signals expect to be; a second thread reads the pipe, so that `cancel` and `quit` are heard at
any time. The process stays alive between jobs, and with it the models that the engine has loaded;
it ends when its stdin closes, so it never outlives the Slicer that started it.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread, current_thread, main_thread
from typing import BinaryIO, NoReturn

from medsegai.errors import DeviceError, MedSegAIError, WorkerError
from medsegai.progress import Progress, ProgressEvent
from medsegai.protocol import (
    CANCEL,
    ERROR,
    PROGRESS,
    PROTOCOL_VERSION,
    QUIT,
    READY,
    RESULT,
    SEGMENT,
    Message,
    decode,
    encode,
    pack_error,
    pack_progress,
    pack_result,
    unpack_request,
)
from medsegai.request import SegmentationRequest, SegmentationResult

Segment = Callable[[SegmentationRequest, Progress], SegmentationResult]

GRACE_SECONDS = 2.0
"""How long a running job may take to notice that it is to end, before the process is ended."""

PROGRESS_INTERVAL = 0.1
"""Seconds between two progress events of the same stage; more would only keep the panel busy."""

logger = logging.getLogger(__name__)


def main(segment: Segment | None = None) -> None:
    """Serve until stdin closes: `medsegai worker`, or `python -m medsegai.worker`.

    Args:
        segment: what does a job; the engine if not given.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s"
    )
    faulthandler.enable(sys.stderr)
    _leave_terminal()
    incoming, outgoing = _take_pipes()
    Worker(segment or _engine, incoming, outgoing).run()


@dataclass
class _Job:
    id: str
    message: Message
    cancel: Event = field(default_factory=Event)


class Worker:
    """Reads messages from `incoming`, does jobs with `segment`, writes events to `outgoing`."""

    def __init__(self, segment: Segment, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._segment = segment
        self._incoming = incoming
        self._outgoing = outgoing
        self._jobs: dict[str, _Job] = {}
        self._waiting: SimpleQueue[_Job | None] = SimpleQueue()
        self._writing = Lock()
        self._ended = Event()

    def run(self) -> None:
        """Do jobs until `quit` comes or `incoming` ends."""
        self._send(READY, version=PROTOCOL_VERSION, pid=os.getpid(), leads_group=_leads_group())
        Thread(target=self._listen, name="pipe", daemon=True).start()
        while (job := self._waiting.get()) is not None:
            self._do(job)
            del self._jobs[job.id]
        self._ended.set()

    def _listen(self) -> None:
        try:
            self._read()
        finally:
            self._wind_up()

    def _read(self) -> None:
        for line in self._incoming:
            try:
                message = decode(line)
                if message["type"] == QUIT:
                    return
                self._obey(message)
            except WorkerError as error:
                self._send(ERROR, job=None, **pack_error(error))

    def _wind_up(self) -> None:
        for job in list(self._jobs.values()):
            job.cancel.set()
        self._waiting.put(None)
        if not self._ended.wait(GRACE_SECONDS):
            logger.warning("The job did not stop in %g s; the process ends.", GRACE_SECONDS)
            _die()

    def _obey(self, message: Message) -> None:
        kind, name = message["type"], message.get("job")
        if not isinstance(name, str) or kind not in (SEGMENT, CANCEL):
            raise WorkerError(f"The worker does not understand {kind!r} for job {name!r}.")
        if kind == CANCEL:
            if name in self._jobs:
                self._jobs[name].cancel.set()
        elif name in self._jobs:
            raise WorkerError(f"There is already a job {name!r}.")
        else:
            self._jobs[name] = _Job(name, message)
            self._waiting.put(self._jobs[name])

    def _do(self, job: _Job) -> None:
        try:
            exchange = Path(job.message["exchange"])
            request = unpack_request(job.message)
            progress = Progress(listener=self._reporter(job.id), cancel=job.cancel)
            result = self._segment(request, progress)
            self._send(RESULT, job=job.id, **pack_result(result, exchange))
        except MedSegAIError as error:
            self._send(ERROR, job=job.id, **pack_error(error))
        except MemoryError:
            self._send(ERROR, job=job.id, **pack_error(_out_of_memory()))
        except Exception as error:
            # The border of the process: what goes wrong in one job must not take the next along.
            logger.exception("Unexpected defect in job %s", job.id)
            self._send(ERROR, job=job.id, **pack_error(_defect(error)))

    def _reporter(self, job: str) -> Callable[[ProgressEvent], None]:
        last_stage, last_time = "", 0.0

        def report(event: ProgressEvent) -> None:
            nonlocal last_stage, last_time
            now = time.monotonic()
            if event.stage == last_stage and now - last_time < PROGRESS_INTERVAL:
                return
            last_stage, last_time = event.stage, now
            self._send(PROGRESS, job=job, **pack_progress(event))

        return report

    def _send(self, kind: str, /, **values: object) -> None:
        line = encode({"type": kind, **values})
        try:
            with self._writing:
                self._outgoing.write(line)
                self._outgoing.flush()
        except OSError:
            logger.warning("Nobody listens any more; the process ends.")
            _die()


def _engine(request: SegmentationRequest, progress: Progress) -> SegmentationResult:
    """The real thing, imported with the first job: loading torch takes seconds."""
    try:
        from medsegai.engine import segment

        return segment(request, progress)
    except ImportError as error:
        raise WorkerError(
            f"The worker's Python ({sys.executable}) lacks a package: {error}. "
            "Inside Slicer, install the PyTorch extension and press Segment again; "
            "elsewhere, `pip install medsegai[torch]`."
        ) from error


def _out_of_memory() -> DeviceError:
    return DeviceError(
        "The computer's memory is not enough for this job. Close other programs, crop the image, "
        "or choose fewer models or members."
    )


def _defect(error: Exception) -> WorkerError:
    return WorkerError(
        f"Unexpected defect in MedSegAI: {type(error).__name__}: {error}. "
        "The log of the worker has the details; please report it."
    )


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep stdin and stdout for the protocol alone.

    What libraries print goes to stderr, and programs that they start cannot read our stdin.
    """
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return incoming, outgoing


def _leave_terminal() -> None:
    """Lead a process group, so that children end with us; Ctrl-C is the client's affair."""
    if hasattr(os, "setsid"):
        with suppress(PermissionError):  # raised where we lead a group already
            os.setsid()
    if current_thread() is main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leads_group() -> bool:
    return hasattr(os, "getpgrp") and os.getpgrp() == os.getpid()


def _die() -> NoReturn:
    """End this process at once, and its children with it."""
    if _leads_group():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
