"""Files from an address: over https alone, bounded, resumed after a break, and known by SHA-256 before use."""

from __future__ import annotations

import contextlib
import hashlib
import http
import http.client
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from medsegai.errors import InputError, MedSegAIError, ModelError
from medsegai.io.atomic import output_error

SHA256 = re.compile(r"[0-9a-fA-F]{64}")

QUIET_SECONDS = 30.0
"""A server that says nothing for so long is given up."""

TRIES = 4
"""So often a connection that breaks is made again, if anything came meanwhile."""

PAUSE_SECONDS = 1.0

REDIRECTS = 5

BLOCK = 1 << 18

Step = Callable[[int, "int | None"], None]
"""Receives the number of received bytes, and of all bytes if the server says it. It may raise, to stop."""


def fetch(url: str, sha256: str, target: Path, most: int, step: Step) -> None:
    """Load a file. What is there of an earlier try is resumed.

    Args:
        url: begins with https://; so must all that it leads to.
        sha256: of the file.
        target: where it goes. Until the file is whole and right it lies beside, as `target` with ".part".
        most: bytes that it may have.
        step: see there.

    Raises:
        InputError: the address cannot be used, or the server does not give the file.
        ModelError: the file is another one, or larger than allowed. Nothing of it is kept.
        OutputError: it cannot be written.
    """
    check_address(url)
    check_sha256(sha256)
    part = target.with_name(f"{target.name}.part")
    try:
        for left in reversed(range(TRIES)):
            before = _size(part)
            try:
                _load(url, part, most, step)
                break
            except _Broken as error:
                if not left or _size(part) <= before:
                    raise InputError(
                        f"{without_query(url)} broke off after {_size(part) / 1e6:.1f} MB: {error}. Run the same "
                        "command again to resume."
                    ) from error
                time.sleep(PAUSE_SECONDS)
        _check(part, sha256, url)
        part.replace(target)
    except OSError as error:
        raise output_error(target, error) from error


def fetch_text(url: str, most: int) -> str:
    """A small text, such as an index. Raises InputError."""
    check_address(url)
    try:
        with _opened(url, 0) as answer:
            data: bytes = answer.read(most + 1)
    except (_Broken, OSError, http.client.HTTPException) as error:
        raise InputError(f"{without_query(url)} cannot be loaded: {error}.") from error
    if len(data) > most:
        raise InputError(f"{without_query(url)} has more than {most} bytes. It is not an index.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{without_query(url)} is not text in UTF-8.") from error


def check_address(url: str) -> None:
    """Raises InputError unless this is an https address without a password in it."""
    try:
        parts = urllib.parse.urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, usable = None, False
    if parts is None or not usable or any(character <= " " for character in url):
        raise InputError(f"{without_query(url)} is not an address. Write https://HOST/FILE.")
    if parts.scheme != "https":
        raise InputError(
            f"{without_query(url)} is not encrypted, so anyone between could change the file. Use an address "
            "that begins with https://."
        )
    if parts.username is not None or parts.password is not None:
        raise InputError(
            "The address contains a name or password, which others could read. Remove it."
        )


def check_sha256(text: str) -> None:
    """Raises InputError unless this is a SHA-256."""
    if not SHA256.fullmatch(text):
        raise InputError(
            f"{text[:80]!r} is not a SHA-256, which has 64 digits from 0 to f. `sha256sum FILE` prints it."
        )


def without_query(url: str) -> str:
    """An address for messages: what follows its ? may be a secret, and so may be what precedes its @."""
    start, at, rest = url.partition("?")[0].partition("#")[0].rpartition("@")
    return f"{start.partition('//')[0]}//{rest}" if at else rest


class _Broken(Exception):
    """The connection broke; what came is kept."""


class _NoSuchPart(Exception):
    """The server has no more of the file than is here."""


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows a server to another address only where that is encrypted too."""

    max_redirections = REDIRECTS

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> Any:
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opened(url: str, begin: int) -> http.client.HTTPResponse:
    """The answer of the server, from this byte on if it can do that.

    Raises:
        InputError: it refuses, or leads elsewhere.
        _Broken: it cannot be reached just now.
        _NoSuchPart: the file is not that long.
    """
    headers = {"User-Agent": "medsegai", "Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=ssl.create_default_context()), _OnlyHttps()
    )
    try:
        found: http.client.HTTPResponse = opener.open(
            urllib.request.Request(url, headers=headers), timeout=QUIET_SECONDS
        )
        return found
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and begin:
            raise _NoSuchPart from error
        if error.code >= 500:
            raise _Broken(f"the server answers {error.code}") from error
        raise _refused(url, error.code) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise InputError(
                f"{without_query(url)}: the certificate of the server is not one that this computer trusts "
                f"({error.reason.verify_message}). Ask who runs the server."
            ) from error
        raise _Broken(str(error.reason)) from error
    except ValueError as error:  # of an address that another server gave
        raise InputError(
            f"{without_query(url)} redirects to something that is not an address: {error}."
        ) from error


def _refused(url: str, code: int) -> MedSegAIError:
    reasons = {
        401: "asks for a password. Load the file with another program, and import that",
        403: "does not allow it. Ask who runs the server",
        404: "has no such file. Check the address",
        410: "has no such file any more. Check the address",
    }
    return InputError(
        f"{without_query(url)} answers {code}: the server {reasons.get(code, 'does not give the file')}."
    )


def _load(url: str, part: Path, most: int, step: Step) -> None:
    """Add to `part` what it lacks.

    Raises:
        _Broken: the connection broke before the end.
    """
    begin = _size(part)
    try:
        answer = _opened(url, begin)
    except _NoSuchPart:  # what is there is of another file, or whole already
        part.unlink()
        answer = _opened(url, 0)
    with answer:
        if answer.status != 206:
            begin = 0
        total = _total(answer, begin)
        if total is not None and total > most:
            raise _too_large(url, most)
        try:
            with part.open("ab" if begin else "wb") as file:
                _copy(answer, file, begin, total, _Bound(url, most, step))
        except MedSegAIError:
            raise
        except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            raise _Broken(str(error) or type(error).__name__) from error


class _Bound:
    """How much may come, and what is called meanwhile."""

    def __init__(self, url: str, most: int, step: Step) -> None:
        self.url, self.most, self.step = url, most, step


def _copy(answer: Any, file: IO[bytes], there: int, total: int | None, bound: _Bound) -> None:
    while block := answer.read(BLOCK):
        there += len(block)
        if there > bound.most:
            file.close()
            Path(file.name).unlink()
            raise _too_large(bound.url, bound.most)
        file.write(block)
        bound.step(there, total)
    if total is not None and there < total:
        raise _Broken(f"{there} of {total} bytes came")


def _total(answer: Any, begin: int) -> int | None:
    """Bytes of the whole file; None where the server does not say."""
    length = answer.headers.get("Content-Length", "")
    return begin + int(length) if length.isascii() and length.isdigit() else None


def _too_large(url: str, most: int) -> ModelError:
    return ModelError(
        f"{without_query(url)} has more than {most / 1e6:.1f} MB, and is not loaded. Check the address."
    )


def _check(part: Path, sha256: str, url: str) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        part.unlink()
        raise ModelError(
            f"{without_query(url)} is not the expected file: its SHA-256 is {found}, not {sha256.lower()}. "
            "It was deleted and not opened."
        )


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
