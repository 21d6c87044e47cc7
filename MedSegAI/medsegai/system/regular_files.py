"""Opening of files only if they are regular: a pipe would wait, and a device would never end."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path | str) -> BinaryIO:
    """Open a regular file for reading, without waiting for other kinds of files.

    Raises:
        OSError: the file does not exist, cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    # Without O_NONBLOCK the call itself would wait for a writer of a pipe.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags)
    with contextlib.ExitStack() as undone:
        undone.callback(os.close, descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "It is not a regular file", str(path))
        file = os.fdopen(descriptor, "rb")
        undone.pop_all()
    return file


def read_regular(path: Path | str, at_most: int) -> bytes:
    """Read a regular file that has at most `at_most` bytes.

    Raises:
        OSError: see `open_regular`; or the file is larger.
    """
    with open_regular(path) as file:
        content = file.read(at_most + 1)
    if len(content) > at_most:
        raise OSError(errno.EFBIG, f"It has more than {at_most} bytes", str(path))
    return content
