"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from medsegai.errors import OutputError

_REASONS = {
    errno.ENOSPC: "the disk is full. Free some space, or write to another disk",
    errno.EDQUOT: "your disk quota is used up. Free some space, or write to another disk",
    errno.EFBIG: "the file is larger than this disk allows. Write to another disk",
    errno.EACCES: "you are not allowed to write there. Choose another folder",
    errno.EPERM: "you are not allowed to write there. Choose another folder",
    errno.EROFS: "that disk is read-only. Choose another folder",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
}


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A path beside `path`, with the same endings, whose file takes the place of `path` at the end.

    The block writes that one file. If it ends without an exception, the file is moved to `path`,
    replacing what was there; after any exception, Ctrl-C included, nothing is left and `path` is
    as before. A symbolic link is followed: the file that it points to is replaced.

    Raises:
        OutputError: the folder is missing or not writable, the disk is full, or the block wrote
            no file.
    """
    final = _destination(Path(path))
    ending = "".join(final.suffixes[-2:]).lower()  # by which libraries choose the format
    partial = final.with_name(f".{secrets.token_hex(8)}{ending}")
    try:
        yield partial
        _flush(partial)
        os.replace(partial, final)
    except OSError as error:
        raise output_error(final, error) from error
    except OutputError as error:  # of a writer that was given `partial`: users know `final` only
        raise OutputError(str(error).replace(str(partial), str(final))) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def check_output(path: Path | str, endings: Sequence[str] | None = None) -> None:
    """Find what would keep `path` from being written, before the work whose result goes there.

    Args:
        path: the file to be written later. What it holds now is left alone.
        endings: the file types that the writer knows, lower case, such as (".seg.nrrd", ".nii.gz").

    Raises:
        OutputError: unknown ending, missing or unwritable folder, or no place for even an empty
            file.
    """
    path = Path(path)
    if endings is not None and not path.name.lower().endswith(tuple(endings)):
        raise OutputError(
            f"{path}: cannot write this type of file. Use one of {', '.join(endings)}."
        )
    with contextlib.suppress(_Tried), atomic_path(path) as partial:
        partial.touch()
        raise _Tried


def output_error(path: Path, error: OSError) -> OutputError:
    """What the operating system said about writing `path`, with the way out."""
    reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}. Choose another place")
    return OutputError(f"{path} cannot be written: {reason}.")


class _Tried(Exception):
    """Leaves the block of `atomic_path` so that the trial file goes and `path` stays."""


def _destination(path: Path) -> Path:
    """`path` with links resolved, after a look at what stands there.

    Raises:
        OutputError: the folder is missing, or `path` is a folder or a device.
    """
    try:
        final = path.resolve()
        if not final.parent.is_dir():
            raise OutputError(
                f"{path} cannot be written: the folder {final.parent} does not exist. Create it first."
            )
        if final.is_dir():
            raise OutputError(f"{path} is a folder. Name a file inside it.")
        if final.exists() and not final.is_file():
            raise OutputError(f"{path} is a device, not a file. Name another file.")
    except OSError as error:
        raise output_error(path, error) from error
    return final


def _flush(path: Path) -> None:
    """Bring the file to the disk before its name does, so that a crash leaves the old or the new."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
