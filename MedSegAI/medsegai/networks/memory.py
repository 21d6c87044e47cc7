"""What becomes of freed memory: a setting of the whole process, which only our own programs make."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> None:
    """Let glibc keep freed memory.

    Page faults are a third of the time of eager torch on a CPU, in training too, and a tenth of that of
    OpenVINO in 3D, whose logits are large.

    The command line and the worker call it when they start; a script that calls the engine decides for its own
    process. Does nothing where the C library is another one.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
