"""What a worker of Dask does: it looks whether it can do the cases of a batch, and then does them one by one.

Nothing raises in a task, because Dask would write the exception, and with it names of files, into its log.
"""

from __future__ import annotations

import hashlib
import json
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
from medsegai.worker.batch_events import Entry


@dataclass(frozen=True)
class Expected:
    """What a worker must have in common with the process that hands out the cases.

    Attributes:
        version: of MedSegAI.
        models: SHA-256 of what is said about each model, by the name that it is asked for by.
        request: what each case is asked for; its inputs do not matter.
        token: a file in the folder of the results, and what it holds.
    """

    version: str
    models: dict[str, str]
    request: SegmentationRequest
    token: tuple[Path, str]


class CaseWorker(WorkerPlugin):
    """Carries what all cases of a batch share to the workers, and stops a case when the batch is stopped.

    Args:
        name: of this batch among those of one scheduler.
        expected: see there.
    """

    def __init__(self, name: str, expected: Expected) -> None:
        self.name, self.expected = name, expected

    def setup(self, worker: Worker) -> None:
        self.cancel = threading.Event()

    def teardown(self, worker: Worker) -> None:
        """The batch has ended, or the worker ends: the case that is under way stops at its next step."""
        self.cancel.set()

    def problem(self) -> str:
        """Why cases must not be given to this worker, in words; "" if it is ready for them.

        The engine and the models are loaded meanwhile, and stay in memory from case to case.
        """
        threads = get_worker().state.nthreads
        if threads != 1:
            return f"it does {threads} cases at once. Start it with --nthreads 1, several times if necessary"
        if self.expected.version != __version__:
            return f"it has MedSegAI {__version__}, and this computer {self.expected.version}. Install the same"
        path, content = self.expected.token
        if _content(path) != content:
            return f"it does not see the folder {path.parent}. Use a folder that all computers share, by one path"
        try:
            for name, known in self.expected.models.items():
                if model_hash(name) != known:
                    return f"its model {name} differs from the one on this computer. Give all computers the same"
        except MedSegAIError as error:
            return f"it lacks a model: {error}"
        from medsegai.engine import warm_up

        try:
            warm_up(self.expected.request)
        except MedSegAIError as error:
            return f"it cannot get ready for the first case: {error}"
        return ""


def model_hash(name: str) -> str:
    """SHA-256 of everything in a model's card, wherever its folder is; weights have theirs in it.

    Raises:
        ModelError: there is no such model.
    """
    text = json.dumps(to_json(find_card(name)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def in_worker(plugin: str, function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function with the `CaseWorker` of a batch; what it raises is returned, as a MedSegAIError."""

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


def do_case(plugin: CaseWorker, job: CaseJob) -> Entry:
    """Segment one case.

    Raises:
        Cancelled: the batch was stopped.
        MedSegAIError: what would go wrong with every case.
    """
    from medsegai.engine import segment

    return job.do(segment, Progress(cancel=plugin.cancel))


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
