"""The engine in a separate process, which reads JSON lines on stdin and writes events on stdout.

`medsegai.worker.protocol` lists the messages. Jobs run one after another on the main thread, as torch and signals
require. A second thread reads the pipe, so that `cancel` and `quit` work at any time, and a third reports every
few seconds that the process is alive. The process, and with it the loaded models, stays between jobs; it ends when
its stdin closes, so it never outlives the Slicer that started it, even on another computer.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread, current_thread, main_thread
from typing import Any, BinaryIO, NoReturn

from medsegai.errors import Cancelled, DeviceError, MedSegAIError, WorkerError
from medsegai.models.json_fields import to_json
from medsegai.networks.memory import keep_freed_memory
from medsegai.progress import Progress, ProgressEvent
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.system.guarding import attempt
from medsegai.system.machine import wait_without_spinning
from medsegai.worker.array_transfer import ExchangeFolder, blocks, remove_abandoned, take_block
from medsegai.worker.protocol import (
    ALIVE,
    ARRAY,
    CANCEL,
    ERROR,
    EXPORT,
    KINDS,
    MEASURE,
    PROGRESS,
    PROTOCOL_VERSION,
    QUIT,
    READY,
    REFINE,
    RESULT,
    SEGMENT,
    WARM,
    Message,
    decode,
    encode,
    pack_error,
    packed,
    unpacked,
)
from medsegai.worker.requests import (
    ExportRequest,
    ExportResult,
    MeasurementRequest,
    MeasurementResult,
    RefinementRequest,
    RefinementResult,
)

Segment = Callable[[SegmentationRequest, Progress], SegmentationResult]
Work = Callable[[Any, Progress], Any]
"""A function that does a job of one kind, from the request (`Kind.asked`) to the result (`Kind.answered`)."""

GRACE_SECONDS = 2.0
"""The seconds that a running job may take to stop, before the process is killed."""

PROGRESS_INTERVAL = 0.1
"""The seconds between two progress events of the same stage; more events would only keep the panel busy."""

MOST_LINE = 64 << 20
"""The largest line from the client in bytes. Arrays arrive in blocks of a megabyte; other messages are small."""

ALIVE_SECONDS = 2.0
"""The seconds between two `alive` messages."""

logger = logging.getLogger(__name__)


def main(segment: Segment | None = None) -> None:
    """Serve until stdin closes: `medsegai worker`, or `python -m medsegai.worker`.

    Args:
        segment: the function that segments; the engine if None.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s"
    )
    faulthandler.enable(sys.stderr)
    _leave_terminal()
    keep_freed_memory()
    wait_without_spinning()
    incoming, outgoing = _take_pipes()
    work = WORK if segment is None else {**WORK, SEGMENT: segment}
    Worker(work, incoming, outgoing, _warm_up if segment is None else None).run()


class _Shared:
    """The exchange folder of a job whose client sees the same files."""

    def __init__(self, folder: str) -> None:
        self.incoming = self.outgoing = Path(folder)

    def close(self) -> None:
        """Do nothing, because the folder belongs to the client."""

    def abandon(self) -> None:
        """Remove the folder, because the client is gone and the scan must not be left."""
        remove_abandoned(self.incoming)


class _Carried:
    """The exchange folder of a job whose client is on another computer: arrays are sent through the pipe."""

    def __init__(self) -> None:
        self._folders = [ExchangeFolder(), ExchangeFolder()]
        self.incoming, self.outgoing = (folder.path for folder in self._folders)

    def close(self) -> None:
        for folder in self._folders:
            folder.remove()

    abandon = close


@dataclass
class _WorkerJob:
    id: str
    message: Message
    exchange: _Shared | _Carried
    cancel: Event = field(default_factory=Event)


class Worker:
    """Reads messages from `incoming`, does jobs, and writes events to `outgoing`.

    Args:
        work: the functions that do the jobs of each kind, by its name in `protocol.KINDS`.
        incoming, outgoing: the streams of the pipe.
        warm_up: the function that loads what jobs need, called between jobs when the client asks for it.
    """

    def __init__(
        self,
        work: Mapping[str, Work],
        incoming: BinaryIO,
        outgoing: BinaryIO,
        warm_up: Callable[[], None] | None = None,
    ) -> None:
        self._work = work
        self._incoming = incoming
        self._outgoing = outgoing
        self._warm_up = warm_up
        self._arriving: dict[str, _Carried] = {}
        self._refused: set[str] = set()
        self._jobs: dict[str, _WorkerJob] = {}
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._writing = Lock()
        self._ended = Event()
        self._orphaned = False

    def run(self) -> None:
        """Do jobs until `quit` arrives or `incoming` ends."""
        self._send(READY, version=PROTOCOL_VERSION, pid=os.getpid(), leads_group=_leads_group())
        Thread(target=self._listen, name="pipe", daemon=True).start()
        Thread(target=self._give_signs, name="alive", daemon=True).start()
        Thread(target=self._watch_parent, args=[os.getppid()], name="parent", daemon=True).start()
        try:
            while (task := self._waiting.get()) is not None:
                task()
            self._ended.set()
        except KeyboardInterrupt:  # SIGTERM
            self._end_at_once()

    def _give_signs(self) -> None:
        while not self._ended.wait(ALIVE_SECONDS):
            self._send(ALIVE)

    def _watch_parent(self, parent: int) -> None:
        """End when the parent process has ended, because other processes may keep its pipes open, and full."""
        while not self._ended.wait(ALIVE_SECONDS):
            if os.getppid() != parent:
                logger.warning("The parent process has ended, so this process ends, too.")
                self._orphaned = True
                self._end_at_once()

    def _listen(self) -> None:
        try:
            self._read()
        finally:
            self._wind_up()

    def _read(self) -> None:
        """Handle messages until `quit` arrives; a pipe that ends without it has lost its client."""
        while line := self._incoming.readline(MOST_LINE):
            # After any error in a line, the next line is still read.
            if attempt(partial(self._take_line, line), self._report_line):
                return
        self._orphaned = True

    def _take_line(self, line: bytes) -> bool:
        """Handle one line; return True if it is `quit`."""
        self._check_length(line)
        message = decode(line)
        if message["type"] == QUIT:
            return True
        self._obey(message)
        return False

    def _report_line(self, caught: Exception) -> None:
        if isinstance(caught, WorkerError):
            error = caught
        else:
            logger.exception("Unexpected error in a line of the pipe")
            error = _defect(caught)
        self._send(ERROR, job=None, **pack_error(error))

    def _check_length(self, line: bytes) -> None:
        """Refuse a line that is too long, and skip the rest of it."""
        if len(line) == MOST_LINE and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = self._incoming.readline(MOST_LINE)
            raise WorkerError(
                f"The worker pipe carried a line of more than {MOST_LINE} bytes, which was refused."
            )

    def _wind_up(self) -> None:
        for job in list(self._jobs.values()):
            job.cancel.set()
        try:
            for exchange in list(self._arriving.values()):
                exchange.close()
        finally:
            self._waiting.put(None)
            if not self._ended.wait(GRACE_SECONDS):
                self._end_at_once()

    def _end_at_once(self) -> NoReturn:
        try:
            for job in list(self._jobs.values()):
                self._leave(job.exchange)
            for exchange in list(self._arriving.values()):
                exchange.close()
        finally:  # errors in removing a folder do not matter any more
            _die()

    def _leave(self, exchange: _Shared | _Carried) -> None:
        if self._orphaned:
            exchange.abandon()
        else:
            exchange.close()

    def _obey(self, message: Message) -> None:
        kind, name = message["type"], message.get("job")
        if kind == WARM:
            if self._warm_up is not None:
                self._waiting.put(self._warm_up)
            return
        if not isinstance(name, str) or kind not in (ARRAY, CANCEL, *self._work):
            raise WorkerError(f"The worker does not understand {kind!r} for job {name!r}.")
        if kind == CANCEL:
            self._cancel(name)
        elif name in self._jobs:
            raise WorkerError(f"A job {name!r} exists already.")
        elif name not in self._refused:  # parts already sent when the first was refused
            self._accept(name, message)

    def _cancel(self, name: str) -> None:
        if name in self._jobs:
            self._jobs[name].cancel.set()
        elif name in self._arriving:
            self._refuse(name, Cancelled("Stopped by the user. Nothing was written."))

    def _accept(self, name: str, message: Message) -> None:
        """Accept a part of an array, or the job itself."""
        try:
            if message["type"] == ARRAY:
                if name not in self._arriving:
                    self._arriving[name] = _Carried()
                take_block(message, self._arriving[name].incoming)
                return
            folder = message["exchange"]
            carried = self._arriving.pop(name, None)
            exchange = _Shared(folder) if folder is not None else carried or _Carried()
            job = self._jobs[name] = _WorkerJob(name, message, exchange)
            self._waiting.put(lambda: self._do(job))
        except MedSegAIError as error:
            self._refuse(name, error)
        except (KeyError, TypeError, ValueError) as error:
            self._refuse(name, WorkerError(f"The job is not valid: {error!r}."))

    def _refuse(self, name: str, error: MedSegAIError) -> None:
        self._refused.add(name)
        exchange = self._arriving.pop(name, None)
        if exchange is not None:
            exchange.close()
        self._send(ERROR, job=name, **pack_error(error))

    def _do(self, job: _WorkerJob) -> None:
        # The border of the process: an error in one job must not affect the next.
        answer = attempt(partial(self._result_line, job), partial(_failure, job.id))
        failed = isinstance(answer, MedSegAIError)
        if isinstance(answer, MedSegAIError):
            answer = encode({"type": ERROR, "job": job.id, **pack_error(answer)})
        self._leave(job.exchange)
        del self._jobs[job.id]
        self._write(answer)
        if failed:
            _give_memory_back()  # may take a while, during which the next job waits

    def _result_line(self, job: _WorkerJob) -> bytes:
        return encode({"type": RESULT, "job": job.id, "result": self._answer(job)})

    def _answer(self, job: _WorkerJob) -> Message:
        """Do the job, and make the arrays of its result available to the client."""
        kind = KINDS[job.message["type"]]
        request: Any = unpacked(kind.asked, job.message.get("request"), job.exchange.incoming)
        progress = Progress(listener=self._reporter(job.id), cancel=job.cancel)
        result = self._work[kind.name](request, progress)
        message = packed(result, job.exchange.outgoing)
        if isinstance(job.exchange, _Carried):
            for block in blocks(job.exchange.outgoing):
                if job.cancel.is_set():
                    raise Cancelled("Stopped by the user. Nothing was written.")
                self._send(ARRAY, job=job.id, **block)
        return message

    def _reporter(self, job: str) -> Callable[[ProgressEvent], None]:
        last_stage, last_time = "", 0.0

        def report(event: ProgressEvent) -> None:
            nonlocal last_stage, last_time
            now = time.monotonic()
            soon = event.stage == last_stage and now - last_time < PROGRESS_INTERVAL
            if soon and event.fraction < 1:
                return
            last_stage, last_time = event.stage, now
            self._send(PROGRESS, job=job, event=to_json(event))

        return report

    def _send(self, kind: str, /, **values: object) -> None:
        self._write(encode({"type": kind, **values}))

    def _write(self, line: bytes) -> None:
        try:
            with self._writing:
                self._outgoing.write(line)
                self._outgoing.flush()
        except OSError:
            logger.warning("The client is gone, so the process ends.")
            self._orphaned = True
            self._end_at_once()


def _engine(request: SegmentationRequest, progress: Progress) -> SegmentationResult:
    """Segment with the engine, which is imported with the first job, because loading torch takes seconds."""
    try:
        return _load_engine()(request, progress)
    except ImportError as error:  # some packages are loaded when a job needs them
        raise _lacks(error) from error


def _refine(request: RefinementRequest, progress: Progress) -> RefinementResult:
    try:
        from medsegai.worker.refine_job import refine

        return refine(request, progress)
    except ImportError as error:  # SciPy and SimpleITK are loaded when a refinement needs them
        raise _lacks(error) from error


def _measure(request: MeasurementRequest, progress: Progress) -> MeasurementResult:
    try:
        from medsegai.worker.measure_and_export_jobs import measure_segments

        return measure_segments(request, progress)
    except ImportError as error:
        raise _lacks(error) from error


def _export(request: ExportRequest, progress: Progress) -> ExportResult:
    try:
        from medsegai.worker.measure_and_export_jobs import export_segments

        return export_segments(request, progress)
    except ImportError as error:
        raise _lacks(error) from error


WORK: Mapping[str, Work] = {
    SEGMENT: _engine,
    REFINE: _refine,
    MEASURE: _measure,
    EXPORT: _export,
}
"""The functions that do the jobs of each kind."""


def _load_engine() -> Segment:
    """Import the engine. An OSError is a shared library, such as those of torch, that the system cannot load."""
    try:
        from medsegai.engine import segment
    except (ImportError, OSError) as error:
        raise _lacks(error) from error
    return segment


def _warm_up() -> None:
    """Load what jobs need. Missing packages are reported to the first job, which may never come."""
    try:
        _load_engine()
    except WorkerError as error:
        logger.warning("%s", error)


def _lacks(error: Exception) -> WorkerError:
    return WorkerError(
        f"The worker's Python ({sys.executable}) lacks a package: {error}. Inside Slicer, install the PyTorch "
        f"extension and press Segment again; elsewhere, run `{sys.executable} -m pip install medsegai[torch]` "
        "(`medsegai doctor` lists everything that is missing)."
    )


def _give_memory_back() -> None:
    """Free the memory of a job that was stopped or failed, in particular on a graphics card."""
    torch = sys.modules.get("torch")
    on_card = torch is not None and torch.cuda.is_initialized()
    if on_card and "medsegai.engine" in sys.modules:
        from medsegai.engine import forget_models

        forget_models()
    gc.collect()
    if torch is not None and on_card:
        torch.cuda.empty_cache()


def _failure(job: str, caught: Exception) -> MedSegAIError:
    """Return the message for a job that raised an error."""
    if isinstance(caught, MedSegAIError):
        return caught.with_traceback(None)  # its frames hold the arrays of the job
    if isinstance(caught, MemoryError):
        return _out_of_memory()
    logger.exception("Unexpected error in job %s", job)
    return _defect(caught)


def _out_of_memory() -> DeviceError:
    return DeviceError(
        "The computer does not have enough memory for this job. Close other programs, crop the image, "
        "or choose fewer models or networks."
    )


def _defect(error: Exception) -> WorkerError:
    return WorkerError(
        f"Unexpected error in MedSegAI: {type(error).__name__}: {error}. "
        "The log of the worker has the details; please report it."
    )


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Reserve stdin and stdout for the protocol.

    The output of libraries goes to stderr, and programs that they start cannot read our stdin.
    """
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return incoming, outgoing


def _leave_terminal() -> None:
    """Lead a process group, so that children end with this process; the client handles Ctrl-C."""
    if hasattr(os, "setsid"):
        with suppress(PermissionError):  # raised if this process already leads a group
            os.setsid()
    if current_thread() is main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leads_group() -> bool:
    return hasattr(os, "getpgrp") and os.getpgrp() == os.getpid()


def _die() -> NoReturn:
    """End this process and its children at once."""
    if _leads_group():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
