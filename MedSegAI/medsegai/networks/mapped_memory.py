"""Memory of its own for a large tensor, of which only the pages that were written to take room."""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from collections.abc import Sequence

import torch
from torch import Tensor


def mapped_zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros on the CPU that are not in the heap.

    They take room page by page when they are first written to, and give all of it back to the system when they
    are freed. Raises MemoryError.
    """
    count = math.prod(shape)
    if count == 0:
        return torch.zeros(*shape, dtype=dtype)
    try:
        pages = _private_pages(count * dtype.itemsize)
    except OSError as error:
        raise MemoryError(f"{count * dtype.itemsize} bytes are not free") from error
    return torch.frombuffer(pages, dtype=dtype).view(*shape)


def _private_pages(size: int) -> mmap.mmap:
    """Pages of this process alone: shared ones, which are the default, take room also when they are read."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # A huge page of 2 MiB would take room once one of its values is written.
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return pages
