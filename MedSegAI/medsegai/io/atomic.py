"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from medsegai.errors import OutputError
from medsegai.system.outside_text import unicode_text

_REASONS = {
    errno.ENOSPC: "the disk is full. Free some space, or write to another disk",
    errno.EDQUOT: "your disk quota is used up. Free some space, or write to another disk",
    errno.EFBIG: "the file is larger than this disk allows. Write to another disk",
    errno.EACCES: "you are not allowed to write there. Choose another folder",
    errno.EPERM: "you are not allowed to write there. Choose another folder",
    errno.EROFS: "that disk is read-only. Choose another folder",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
}


class FilesTogether:
    """Files that are written beside their final paths, and then moved there in the order of their start."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Path, Path]] = []

    @contextlib.contextmanager
    def path(self, path: Path | str) -> Iterator[Path]:
        """Yield a path beside `path`, with the same endings; the block writes that one file.

        Raises:
            OutputError: the folder is missing or not writable, the disk is full, or the block wrote no file.
        """
        final = _destination(Path(path))
        ending = "".join(final.suffixes[-2:]).lower()  # libraries choose the format by it
        partial = final.with_name(f".{secrets.token_hex(8)}{ending}")
        self._waiting.append((partial, final))
        try:
            yield partial
            _flush(partial)
        except OSError as error:
            raise output_error(final, error) from error
        except OutputError as error:  # from a writer of `partial`; users only know `final`
            raise OutputError(str(error).replace(str(partial), str(final))) from error

    def move(self) -> None:
        """Move all files to their final paths. After the first move, Ctrl-C no longer stops it."""
        begun = False
        while self._waiting:
            partial, final = self._waiting[0]
            try:
                os.replace(partial, final)
            except KeyboardInterrupt:
                if os.path.lexists(partial):
                    if begun:
                        continue
                    raise
            except OSError as error:
                raise output_error(final, error) from error
            del self._waiting[0]
            begun = True

    def discard(self) -> None:
        """Remove the files that were not moved. Ctrl-C takes effect when they are removed."""
        interrupted = None
        while self._waiting:
            try:
                with contextlib.suppress(OSError):
                    self._waiting[-1][0].unlink()
                del self._waiting[-1]
            except KeyboardInterrupt as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted


@contextlib.contextmanager
def files_together() -> Iterator[FilesTogether]:
    """Write several files that appear at the end of the block, in order, or, after an exception, not at all.

    Raises:
        OutputError: a file cannot be moved to its final path.
    """
    files = FilesTogether()
    try:
        yield files
        files.move()
    finally:
        files.discard()


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a path beside `path`, with the same endings, whose file replaces `path` at the end.

    The block writes that one file. If it ends without an exception, the file is moved to `path` and replaces an
    existing file; after any exception, including Ctrl-C, the file is removed and `path` is unchanged. A symbolic
    link is followed: the file that it points to is replaced.

    Raises:
        OutputError: the folder is missing or not writable, the disk is full, or the block wrote
            no file.
    """
    with files_together() as files, files.path(path) as partial:
        yield partial


PARTIAL = re.compile(r"\.[0-9a-f]{16}(?:\.\w+){0,2}")
"""The names of files that are being written. A process that is killed leaves them."""


def check_output(path: Path | str, endings: Sequence[str] | None = None) -> None:
    """Check that `path` can be written, before its content is computed.

    Args:
        path: the file to be written later. Its present content is not changed.
        endings: the file types that the writer knows, lower case, such as (".seg.nrrd", ".nii.gz").

    Raises:
        OutputError: the ending is unknown, the folder is missing or not writable, or even an empty file does not
            fit.
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
    """Return the error that the operating system reported about writing `path`, with a solution."""
    reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}. Choose another place")
    return OutputError(f"{path} cannot be written: {reason}.")


def write_json(path: Path | str, data: object) -> None:
    """Write JSON values as a file in UTF-8, complete or not at all."""
    with atomic_path(path) as partial:
        text = json.dumps(data, indent=2, ensure_ascii=False)
        partial.write_text(unicode_text(text) + "\n", encoding="utf-8")


def make_folder(folder: Path) -> None:
    """Make a folder and its parents. Raises OutputError: the operating system refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error


class _Tried(Exception):
    """Leaves the block of `atomic_path`, so that the trial file is removed and `path` stays."""


def _destination(path: Path) -> Path:
    """Return `path` with links resolved, after a check of its present content.

    Raises:
        OutputError: the folder is missing, `path` is a folder or a device, or its name is not UTF-8.
    """
    _check_name(path)
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


def _check_name(path: Path) -> None:
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:  # SimpleITK would crash the process
        raise OutputError(
            f"{path} cannot be written: its name has bytes that are not UTF-8. Choose another name or folder."
        ) from None


def _flush(path: Path) -> None:
    """Write the file to the disk before it is renamed, so that a crash leaves the old or the new file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
