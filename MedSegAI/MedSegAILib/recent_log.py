"""The last errors on this side, which are kept in memory so that a user can read and report them."""

from __future__ import annotations

import logging
from collections import deque

LOGGER = "MedSegAILib"
"""All loggers of the Slicer side are below this one."""

KEPT = 20


class RecentLog(logging.Handler):
    """Keeps the last errors that were logged, with their tracebacks, from `attach` to `detach`."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._lines: deque[str] = deque(maxlen=KEPT)

    def attach(self) -> None:
        """Start to record the log."""
        logging.getLogger(LOGGER).addHandler(self)

    def detach(self) -> None:
        """Stop recording the log."""
        logging.getLogger(LOGGER).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record of the log."""
        self._lines.append(self.format(record))

    @property
    def text(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self._lines)
