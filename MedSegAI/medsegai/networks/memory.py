"""Whether freed memory is kept, which is a setting of the whole process, and when it is released."""

from __future__ import annotations

import ctypes
import sys
from typing import Any


def keep_freed_memory() -> None:
    """Make glibc keep freed memory.

    Page faults take a third of the time of eager torch on a CPU, also in training, and a tenth of the time of
    OpenVINO in 3D, where logits are large.

    The command line and the worker call it when they start; a script that calls the engine decides for its own
    process. It does nothing if the C library is not glibc.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


def release_freed_memory() -> None:
    """Return freed memory to the system once. It does nothing if the C library is not glibc."""
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
