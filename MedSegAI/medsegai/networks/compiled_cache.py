"""Compiled networks on the disk of this user, which are read only if this user wrote them.

A compiled network is a program. So each file carries a code (HMAC-SHA256) over its name, which contains the hash
of the weights, and its content: a blob that was swapped for another network's, cut off or written by somebody else
is not read. The key is stored beside the files, in a folder that only the user can read.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from medsegai.errors import OutputError
from medsegai.io.atomic import atomic_path
from medsegai.system.regular_files import open_regular, read_regular
from medsegai.system.user_folders import own_folder

KEY_NAME, KEY_BYTES, CODE_BYTES = "key", 32, 32


def cache_folder() -> Path:
    """Return where compiled networks are kept: MEDSEGAI_CACHE, or a folder of the user. It can be deleted.

    Raises:
        OSError: the user does not have a home folder.
    """
    folder = own_folder("cache", "MEDSEGAI_CACHE")
    if folder is None:
        raise OSError("this user does not have a home folder")
    return folder


def read_kept(name: str) -> bytes | None:
    """Return the compiled network of this name; None if it is missing or not as this user wrote it."""
    try:
        folder = _private_folder()
        key = _key(folder)
        with open_regular(folder / name) as file:
            code, blob = file.read(CODE_BYTES), file.read()
    except (OSError, OutputError):
        return None
    return blob if hmac.compare_digest(code, _code(key, name, blob)) else None


def keep(name: str, blob: bytes) -> None:
    """Keep a compiled network. If that is not possible, only the next start is slower."""
    with contextlib.suppress(OSError, OutputError):
        folder = _private_folder()
        _write(folder / name, _code(_key(folder), name, blob) + blob)


def _code(key: bytes, name: str, blob: bytes) -> bytes:
    code = hmac.new(key, name.encode() + b"\0", "sha256")
    code.update(blob)
    return code.digest()


def _key(folder: Path) -> bytes:
    """Return the user's key, which is made when it is missing or damaged."""
    with contextlib.suppress(OSError):
        key = read_regular(folder / KEY_NAME, KEY_BYTES)
        if len(key) == KEY_BYTES:
            return key
    key = secrets.token_bytes(KEY_BYTES)
    _write(folder / KEY_NAME, key)
    return key


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as partial:
        partial.touch(0o600)
        partial.write_bytes(content)


def _private_folder() -> Path:
    """Return the folder of compiled networks, which nobody else can write or read.

    Raises:
        OSError: the folder cannot be made, or belongs to another user.
    """
    folder = cache_folder() / "openvino"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode):
        raise NotADirectoryError(f"{folder} is not a folder")
    if hasattr(os, "geteuid"):
        if state.st_uid != os.geteuid():
            raise PermissionError(f"{folder} belongs to another user")
        if state.st_mode & 0o077:
            folder.chmod(0o700)
    return folder
