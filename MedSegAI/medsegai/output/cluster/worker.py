"""The tasks of a Dask worker: it checks whether it can segment the cases of a batch, and then segments them.

A task never raises, because Dask would write the exception, and with it file names, into its log.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from medsegai import __version__
from medsegai.errors import MedSegAIError, WorkerError
from medsegai.models.catalogue import find_card
from medsegai.models.json_fields import to_json
from medsegai.output.batch import CaseJob
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.system.guarding import attempt
from medsegai.worker.batch_events import CaseState, Entry

NO_FOLDER = "it does not see the folder {folder}. Use one path that all computers share"
NO_SCAN = "it cannot read {path}, which this computer can. Use paths that all computers share"
OTHER_MODEL = "its model {name} differs from the one here. Give all computers the same"


@dataclass(frozen=True)
class Expected:
    """What a worker must have in common with the process that distributes the cases.

    Attributes:
        version: the version of MedSegAI.
        models: the SHA-256 of each model's card, by the name in the request.
        request: the request for each case; its inputs do not matter.
        token: a file in the folder of the results, and its content.
    """

    version: str
    models: dict[str, str]
    request: SegmentationRequest
    token: tuple[Path, str]


class CaseWorker(WorkerPlugin):
    """Brings the common data of a batch to the workers, and stops a case when the batch is stopped.

    Args:
        name: the name of this batch among those of the scheduler.
        expected: the requirements for a worker.
    """

    def __init__(self, name: str, expected: Expected) -> None:
        self.name, self.expected = name, expected

    def setup(self, worker: Worker) -> None:
        self.cancel = threading.Event()

    def teardown(self, worker: Worker) -> None:
        """Stop the running case at its next step, because the batch or the worker ends."""
        self.cancel.set()

    def problem(self) -> str:
        """Return why cases must not be given to this worker, in words; "" if it is ready.

        The engine and the models are loaded meanwhile, and stay in memory between cases.
        """
        different = self._difference()
        if different:
            return different
        from medsegai.engine import warm_up

        try:
            warm_up(self.expected.request)
        except MedSegAIError as error:
            return f"it cannot get ready for the first case: {error}"
        return ""

    def _difference(self) -> str:
        """Return what this worker does not share with the computer of the batch; "" if nothing."""
        threads = get_worker().state.nthreads
        if threads != 1:
            return f"it runs {threads} cases at once. Start it with --nthreads 1, several times if necessary"
        if self.expected.version != __version__:
            return f"it has MedSegAI {__version__}, not {self.expected.version} as here. Install the same"
        path, content = self.expected.token
        if _content(path) != content:
            return NO_FOLDER.format(folder=path.parent)
        try:
            for name, known in self.expected.models.items():
                if model_hash(name) != known:
                    return OTHER_MODEL.format(name=name)
        except MedSegAIError as error:
            return f"it lacks a model: {error}"
        return ""


def model_hash(name: str) -> str:
    """Return the SHA-256 of a model's card, which contains that of the weights, independent of its folder.

    Raises:
        ModelError: the model is unknown.
    """
    text = json.dumps(to_json(find_card(name)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def in_worker(plugin: str, function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function with the `CaseWorker` of a batch; an exception is returned as a MedSegAIError."""

    def call() -> Any:
        found = get_worker().plugins.get(plugin)
        if not isinstance(found, CaseWorker):
            return WorkerError("The batch is over.")
        return function(found, *arguments)

    return attempt(call, _failure)


def _failure(error: Exception) -> MedSegAIError:
    if isinstance(error, MedSegAIError):
        return error
    return WorkerError(f"A case met an unexpected error: {type(error).__name__}: {error}")


def look(plugin: CaseWorker) -> str:
    """See `CaseWorker.problem`."""
    return plugin.problem()


@dataclass(frozen=True)
class Unseen:
    """A case with a file that its worker cannot read.

    Attributes:
        path: the file or folder.
        entry: the line of the table, if no other worker can read it either.
    """

    path: Path
    entry: Entry


def can_read(path: Path) -> bool:
    """Whether this process sees a file or folder and may read it."""
    return os.access(path, os.R_OK)


def do_case(plugin: CaseWorker, job: CaseJob) -> Entry | Unseen:
    """Segment one case.

    Raises:
        Cancelled: the batch was stopped.
        MedSegAIError: what would go wrong with every case.
    """
    from medsegai.engine import segment

    unseen = [path for path in job.case.inputs if not can_read(path)]
    entry = job.do(segment, Progress(cancel=plugin.cancel))
    return Unseen(unseen[0], entry) if unseen and entry.state == CaseState.FAILED else entry


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
