"""What receives the events of a job, whether it came from the queue or directly from a script."""

from __future__ import annotations

from typing import Any, Protocol

from medsegai.errors import MedSegAIError
from medsegai.progress import ProgressEvent


class JobListener(Protocol):
    """Receives the events of one job: `progressed` any number of times, then either `finished` or `failed`, once.

    What `finished` gets is the answer of that kind of job, such as a SegmentationResult. Where it raises, `failed`
    hears why, and `finished` may get the same answer again when the user wants it tried again.
    """

    def progressed(self, event: ProgressEvent) -> None: ...

    def finished(self, result: Any) -> None: ...

    def failed(self, error: MedSegAIError) -> None: ...
