"""The engine in a process of its own: JSON lines come in on stdin, events leave on stdout.

`medsegai.worker.protocol` lists the messages. Jobs run one after another on the main thread, where torch
and signals expect to be; a second thread reads the pipe, so that `cancel` and `quit` are heard at
any time, and a third says every few seconds that the process is alive. The process stays between
jobs, and with it the models that the engine has loaded; it ends when its stdin closes, so it never
outlives the Slicer that started it, also where that runs on another computer.
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
"""Does a job of one kind: takes what is asked (`Kind.asked`), and gives what is answered (`Kind.answered`)."""

GRACE_SECONDS = 2.0
"""How long a running job may take to notice that it is to end, before the process is ended."""

PROGRESS_INTERVAL = 0.1
"""Seconds between two progress events of the same stage; more would only keep the panel busy."""

MOST_LINE = 64 << 20
"""Bytes of a line from the client. Arrays come in blocks of a megabyte, all else is small."""

ALIVE_SECONDS = 2.0
"""Seconds between two signs of life."""

logger = logging.getLogger(__name__)


def main(segment: Segment | None = None) -> None:
    """Serve until stdin closes: `medsegai worker`, or `python -m medsegai.worker`.

    Args:
        segment: what segments; the engine if not given.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s"
    )
    faulthandler.enable(sys.stderr)
    _leave_terminal()
    keep_freed_memory()
    incoming, outgoing = _take_pipes()
    work = WORK if segment is None else {**WORK, SEGMENT: segment}
    Worker(work, incoming, outgoing, _warm_up if segment is None else None).run()


class _Shared:
    """The exchange of a job whose client sees the same files."""

    def __init__(self, folder: str) -> None:
        self.incoming = self.outgoing = Path(folder)

    def close(self) -> None:
        """The folder is the client's."""

    def abandon(self) -> None:
        """The client is gone, and the scan must not stay behind."""
        remove_abandoned(self.incoming)


class _Carried:
    """The exchange of a job whose client is elsewhere: arrays come and go through the pipe."""

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
    """Reads messages from `incoming`, does jobs, writes events to `outgoing`.

    Args:
        work: what does the jobs of each kind, by its name in `protocol.KINDS`.
        incoming, outgoing: the pipe.
        warm_up: loads what jobs need; called between them when the client asks for it.
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
        """Do jobs until `quit` comes or `incoming` ends."""
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
        """End when the process that started us has: its pipes may be kept open, and full, by others."""
        while not self._ended.wait(ALIVE_SECONDS):
            if os.getppid() != parent:
                logger.warning("The process that started this one has ended; so does this one.")
                self._orphaned = True
                self._end_at_once()

    def _listen(self) -> None:
        try:
            self._read()
        finally:
            self._wind_up()

    def _read(self) -> None:
        """Obey until `quit` comes; a pipe that ends without it has lost its client."""
        while line := self._incoming.readline(MOST_LINE):
            # Whatever a line makes go wrong, the next one is heard.
            if attempt(partial(self._take_line, line), self._report_line):
                return
        self._orphaned = True

    def _take_line(self, line: bytes) -> bool:
        """Obey one line; True if it says `quit`."""
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
            logger.exception("Unexpected defect at a line of the pipe")
            error = _defect(caught)
        self._send(ERROR, job=None, **pack_error(error))

    def _check_length(self, line: bytes) -> None:
        """Refuse a line that has no end, and pass over the rest of it."""
        if len(line) == MOST_LINE and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = self._incoming.readline(MOST_LINE)
            raise WorkerError(f"The worker pipe carried a line of more than {MOST_LINE} bytes.")

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
        finally:  # whatever a folder that cannot go says: nobody listens any more
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
        elif name not in self._refused:  # what was still under way when its first part was refused
            self._accept(name, message)

    def _cancel(self, name: str) -> None:
        if name in self._jobs:
            self._jobs[name].cancel.set()
        elif name in self._arriving:
            self._refuse(name, Cancelled("Stopped by the user. Nothing was written."))

    def _accept(self, name: str, message: Message) -> None:
        """Take part of an array, or the job itself."""
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
        # The border of the process: what goes wrong in one job must not take the next along.
        answer = attempt(partial(self._result_line, job), partial(_failure, job.id))
        failed = isinstance(answer, MedSegAIError)
        if isinstance(answer, MedSegAIError):
            answer = encode({"type": ERROR, "job": job.id, **pack_error(answer)})
        self._leave(job.exchange)
        del self._jobs[job.id]
        self._write(answer)
        if failed:
            _give_memory_back()  # may take a while, and the next job waits for it

    def _result_line(self, job: _WorkerJob) -> bytes:
        return encode({"type": RESULT, "job": job.id, "result": self._answer(job)})

    def _answer(self, job: _WorkerJob) -> Message:
        """Do the job, and see that the arrays of its result are where the client finds them."""
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
            logger.warning("Nobody listens any more; the process ends.")
            self._orphaned = True
            self._end_at_once()


def _engine(request: SegmentationRequest, progress: Progress) -> SegmentationResult:
    """The real thing, imported with the first job: loading torch takes seconds."""
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
"""What does the jobs of each kind."""


def _load_engine() -> Segment:
    """An OSError is a shared library, such as torch brings, that the system cannot load."""
    try:
        from medsegai.engine import segment
    except (ImportError, OSError) as error:
        raise _lacks(error) from error
    return segment


def _warm_up() -> None:
    """Missing packages are reported to the first job, which may never come."""
    try:
        _load_engine()
    except WorkerError as error:
        logger.warning("%s", error)


def _lacks(error: Exception) -> WorkerError:
    return WorkerError(
        f"The worker's Python ({sys.executable}) lacks a package: {error}. "
        "Inside Slicer, install the PyTorch extension and press Segment again; "
        f"elsewhere, `{sys.executable} -m pip install medsegai[torch]`. "
        "`medsegai doctor` lists everything that is missing."
    )


def _give_memory_back() -> None:
    """A job that was stopped or failed leaves nothing behind, and nothing at all on a graphics card."""
    torch = sys.modules.get("torch")
    on_card = torch is not None and torch.cuda.is_initialized()
    if on_card and "medsegai.engine" in sys.modules:
        from medsegai.engine import forget_models

        forget_models()
    gc.collect()
    if torch is not None and on_card:
        torch.cuda.empty_cache()


def _failure(job: str, caught: Exception) -> MedSegAIError:
    """What is reported of a job that raised this error."""
    if isinstance(caught, MedSegAIError):
        return caught.with_traceback(None)  # its frames hold the arrays of the job
    if isinstance(caught, MemoryError):
        return _out_of_memory()
    logger.exception("Unexpected defect in job %s", job)
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
