"""Whether freed memory is kept: a setting of the whole process, which only our own programs change."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> None:
    """Make glibc keep freed memory.

    Page faults take a third of the time of eager torch on a CPU, also in training, and a tenth of the time of
    OpenVINO in 3D, where logits are large.

    The command line and the worker call it when they start; a script that calls the engine decides for its own
    process. It does nothing if the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
