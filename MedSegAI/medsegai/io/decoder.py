"""Native readers in a separate process: if it crashes, only one file fails, and the next can be read.

Its code is in the package `decoding`. The process starts when it is first needed, stays for further files, and
ends together with this process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError
from medsegai.io.stored import fill
from medsegai.system.outside_text import unicode_text
from medsegai.system.private_folders import PrivateFolder

MEMORY_BYTES = 1 << 30
"""The memory that the process may use in addition to voxels, decoded and in transit."""

SECONDS = 60.0
"""The seconds that one file may take, in addition to one second for each `BYTES_A_SECOND`."""

BYTES_A_SECOND = 2_000_000


PROGRAM = "from medsegai.decoding.server import main; main()"
"""The program of the process."""


def asked(what: str, path: Path, **arguments: object) -> dict[str, Any]:
    """Return what a function of the package `decoding` returns for a file.

    Args:
        what: the module and name of the function, such as "itk.header".
        path: the file.
        arguments: its other arguments, which must be JSON values.

    Raises:
        InputError: the function refused the file, or crashed.
        ValueError: a library refused the file; the text is its reason.
    """
    return _DECODER.ask(what, path, 0, arguments)[0]


def decoded(what: str, path: Path, expected: int, **arguments: object) -> NDArray[Any]:
    """Return the array that a function of the package `decoding` makes from a file, in C order.

    Args:
        what, path, arguments: see `asked`.
        expected: the size of the array in bytes.

    Raises:
        InputError: the function refused the file, crashed, or needed more time or memory than plausible.
        ValueError: a library refused the file; the text is its reason.
    """
    return _DECODER.ask(what, path, expected, arguments)[1]


def let_go(what: str, path: Path) -> None:
    """Ask a function of the package `decoding` to close a file, if a process may have it open."""
    if _DECODER.is_running():
        with contextlib.suppress(InputError, ValueError):
            asked(what, path)


def itk_voxels(path: Path, reader: str, expected: int) -> NDArray[Any]:
    """Return the voxels of a file, decoded by ITK; see `decoded`.

    Args:
        path: the file.
        reader: the name of ITK's reader, such as "GDCMImageIO".
        expected: the size of the voxels in bytes, according to the header.
    """
    return decoded("itk.image", path, expected, reader=reader)


class _Decoder:
    """The process, with a lock, because only one request may be made at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def ask(
        self, what: str, path: Path, expected: int, arguments: dict[str, Any]
    ) -> tuple[dict[str, Any], NDArray[Any]]:
        """Request a file; if its name is not UTF-8, which ITK cannot read, the request names a link to it."""
        with contextlib.ExitStack() as stack:
            named = path.absolute()
            if unicode_text(str(named)) != str(named):
                folder = stack.enter_context(PrivateFolder("link"))
                link = folder / f"image{unicode_text(path.suffix)}"
                link.symlink_to(named)
                named = link
            return self._ask(what, path, expected, {"path": str(named), **arguments})

    def _ask(
        self, what: str, path: Path, expected: int, arguments: dict[str, Any]
    ) -> tuple[dict[str, Any], NDArray[Any]]:
        seconds = SECONDS + expected / BYTES_A_SECOND
        memory = MEMORY_BYTES + 4 * expected
        request = {"what": what, "arguments": arguments, "memory": memory, "seconds": seconds}
        with self._lock:
            process = self._running()
            with _time_limit(process, seconds) as timed_out:
                try:
                    answer, voxels = _exchange(process, request)
                except (EOFError, OSError, ValueError) as error:
                    self._process = None
                    raise _crashed(path, process, timed_out.is_set()) from error
                except BaseException:  # Ctrl-C: the pending answer would be taken for the next one
                    self.stop()
                    raise
        _check_answer(answer)
        return answer, voxels

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the process. A fork of this process gets its own, because answers to both would mix in a pipe."""
        if self._process is None or not self.is_running():
            self._process, self._owner = _started(), os.getpid()
        return self._process

    def is_running(self) -> bool:
        mine = self._process is not None and self._owner == os.getpid()
        return mine and self._process.poll() is None  # type: ignore[union-attr]

    def stop(self) -> None:
        """End the process; the next file starts another one."""
        if self._process is not None and self._owner == os.getpid():
            with self._process:
                self._process.kill()
        self._process = None


_DECODER = _Decoder()
atexit.register(_DECODER.stop)


def _started() -> subprocess.Popen[bytes]:
    """Start a process that finds the same modules, even in a zip archive, but not in the working folder."""
    flags = {"creationflags": 0x08000000} if sys.platform == "win32" else {"process_group": 0}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", f"import sys; sys.path[:] = {sys.path!r}; {PROGRAM}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        **flags,  # type: ignore[call-overload]
    )


def _check_answer(answer: dict[str, Any]) -> None:
    if "refusal" in answer:
        raise InputError(answer["refusal"])
    if "error" in answer:
        raise ValueError(answer["error"])


def _exchange(
    process: subprocess.Popen[bytes], request: dict[str, Any]
) -> tuple[dict[str, Any], NDArray[Any]]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    answer: dict[str, Any] = json.loads(line)
    return answer, _received(process.stdout, answer)


def _received(stream: IO[bytes], answer: dict[str, Any]) -> NDArray[Any]:
    if not answer["bytes"]:
        return np.empty(0)
    shape, kind = [int(size) for size in answer["shape"]], np.dtype(answer["kind"])
    if math.prod(shape) * kind.itemsize != answer["bytes"]:
        raise ValueError("shape and bytes differ")
    voxels = np.empty(shape, kind)
    fill(stream, voxels)
    return voxels


@contextlib.contextmanager
def _time_limit(process: subprocess.Popen[bytes], seconds: float) -> Iterator[threading.Event]:
    """End a process that works longer than it may; the event is set then."""
    timed_out = threading.Event()
    watch = threading.Timer(seconds, _end, (process, timed_out))
    watch.daemon = True
    watch.start()
    try:
        yield timed_out
    finally:
        watch.cancel()


def _end(process: subprocess.Popen[bytes], timed_out: threading.Event) -> None:
    timed_out.set()
    process.kill()


def _crashed(path: Path, process: subprocess.Popen[bytes], timed_out: bool) -> InputError:
    """Return why the process ended, as the error of the file that it was reading."""
    with process:
        process.kill()
    code = process.returncode
    cause = "takes far longer to read than such a file should"
    if not timed_out:
        cause = "crashes the program that decodes it"
        with contextlib.suppress(ValueError):
            cause += f" ({signal.Signals(-code).name})"
    return InputError(f"{path} {cause}, so it is damaged. Copy or export it again.")
