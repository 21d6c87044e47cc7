"""The folder through which panel and worker hand arrays to each other, one for each job."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from pathlib import Path

from medsegai.errors import OutputError

_PREFIX = "medsegai-exchange-"


class ExchangeFolder:
    """A new private folder; `remove` it when the job is over.

    Its name holds the number of this process, so that folders which a crash of Slicer left behind are
    known for what they are: each new folder sweeps those of dead processes away.

    Raises:
        OutputError: the temporary folder does not exist or is not writable, or its disk is full.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        sweep(parent)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
        except OSError as error:
            raise OutputError(
                f"No folder can be made in the temporary folder {parent}: {error.strerror}. "
                "Free space there or make it writable, or choose another with the variable TMPDIR."
            ) from error

    def remove(self) -> bool:
        """Delete the folder; False where Windows keeps it, as long as a file in it is mapped."""
        shutil.rmtree(self.path, ignore_errors=True)
        return not self.path.exists()


def sweep(parent: Path) -> None:
    """Delete the folders of processes that are no more."""
    for folder in parent.glob(f"{_PREFIX}*"):
        number = folder.name.removeprefix(_PREFIX).split("-")[0]
        if number.isdecimal() and not _is_alive(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":
        return _is_alive_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _is_alive_on_windows(pid: int) -> bool:
    """`os.kill` would end the process here."""
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009, absent from the stubs of other systems
    query_limited_information, still_active = 0x1000, 259
    handle = kernel.OpenProcess(query_limited_information, False, pid)
    if not handle:
        return False
    code = ctypes.c_ulong()
    known = kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return not known or code.value == still_active
