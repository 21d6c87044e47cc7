"""The one place that catches anything: where other code is called that may raise whatever it likes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def guarded(
    failed: Callable[[Exception], None] | None, message: str, *values: object
) -> Iterator[None]:
    """Within the block, an error of any kind is logged and goes no further.

    Args:
        failed: is called with the error.
        message: what the log says, with the `values` in their places.
        values: as for `logging`.
    """
    try:
        yield
    except Exception as error:
        logger.exception(message, *values)
        if failed is not None:
            failed(error)
