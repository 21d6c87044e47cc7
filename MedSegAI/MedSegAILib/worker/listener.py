"""Who hears of a job, whether it came from the queue or straight from a script."""

from __future__ import annotations

from typing import Protocol

from medsegai.errors import MedSegAIError
from medsegai.progress import ProgressEvent
from medsegai.request import SegmentationResult


class JobListener(Protocol):
    """Hears of one job: `progressed` any number of times, then either `finished` or `failed`, once."""

    def progressed(self, event: ProgressEvent) -> None: ...

    def finished(self, result: SegmentationResult) -> None: ...

    def failed(self, error: MedSegAIError) -> None: ...
