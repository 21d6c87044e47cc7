"""Compiled networks that this user keeps on the disk, and believes only if this user wrote them.

A compiled network is a program. So each file carries a code (HMAC-SHA256) over its name, which is made of the hash
of the weights, and its content: a blob that was swapped for another network's, cut off or written by somebody else
is not read. The key lies beside them, in a folder that is the user's alone.
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
    """Where compiled networks are kept: MEDSEGAI_CACHE, or a folder of the user's own. It can be deleted.

    Raises:
        OSError: the user has no home.
    """
    folder = own_folder("cache", "MEDSEGAI_CACHE")
    if folder is None:
        raise OSError("this user has no home")
    return folder


def read_kept(name: str) -> bytes | None:
    """The compiled network of this name; None if there is none, or it is not the one that this user kept."""
    try:
        folder = _private_folder()
        key = _key(folder)
        with open_regular(folder / name) as file:
            code, blob = file.read(CODE_BYTES), file.read()
    except (OSError, OutputError):
        return None
    return blob if hmac.compare_digest(code, _code(key, name, blob)) else None


def keep(name: str, blob: bytes) -> None:
    """Keep a compiled network. Where that is not possible the next start is slower, no more."""
    with contextlib.suppress(OSError, OutputError):
        folder = _private_folder()
        _write(folder / name, _code(_key(folder), name, blob) + blob)


def _code(key: bytes, name: str, blob: bytes) -> bytes:
    code = hmac.new(key, name.encode() + b"\0", "sha256")
    code.update(blob)
    return code.digest()


def _key(folder: Path) -> bytes:
    """The user's key, made when it is first needed or is damaged."""
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
    """The folder of compiled networks, which nobody else can write or read.

    Raises:
        OSError: it cannot be made, or is another user's.
    """
    folder = cache_folder() / "openvino"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode):
        raise NotADirectoryError(f"{folder} is not a folder")
    if hasattr(os, "geteuid"):
        if state.st_uid != os.geteuid():
            raise PermissionError(f"{folder} is another user's")
        if state.st_mode & 0o077:
            folder.chmod(0o700)
    return folder
