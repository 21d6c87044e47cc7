"""Files that others named, opened only if they are regular files: a pipe would wait, a device would never end."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file for reading; what is not a regular file is neither waited for nor read.

    Raises:
        OSError: there is no such file, it cannot be opened, or it is a folder, a pipe, a socket or a device.
    """
    # Without O_NONBLOCK the call itself would wait for somebody who writes into a pipe.
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
    """The content of a regular file that has no more than `at_most` bytes.

    Raises:
        OSError: see `open_regular`; or the file is larger.
    """
    with open_regular(path) as file:
        content = file.read(at_most + 1)
    if len(content) > at_most:
        raise OSError(errno.EFBIG, f"It has more than {at_most} bytes", str(path))
    return content
