"""The receiver of the events of a job, which came from the queue or directly from a script."""

from __future__ import annotations

from typing import Any, Protocol

from medsegai.errors import MedSegAIError
from medsegai.progress import ProgressEvent


class JobListener(Protocol):
    """Receives the events of one job: `progressed` any number of times, then either `finished` or `failed`, once.

    `finished` receives the result of that kind of job, such as a SegmentationResult. If it raises, `failed`
    receives the error, and `finished` may receive the same result again when the user tries again.
    """

    def progressed(self, event: ProgressEvent) -> None: ...

    def finished(self, result: Any) -> None: ...

    def failed(self, error: MedSegAIError) -> None: ...
