"""Download of files: only over https, bounded, resumable, and checked by SHA-256 before use."""

from __future__ import annotations

import contextlib
import http
import http.client
import re
import ssl
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from medsegai.errors import InputError, MedSegAIError, ModelError
from medsegai.io.atomic import output_error
from medsegai.models.card import file_sha256
from medsegai.system.outside_text import one_line

SHA256 = re.compile(r"[0-9a-fA-F]{64}")

QUIET_SECONDS = 30.0
"""The seconds after which a silent server is given up."""

TRIES = 4
"""The number of times that a broken connection is opened again, if data arrived meanwhile."""

PAUSE_SECONDS = 1.0

TEXT_SECONDS = 120.0
"""The seconds that a small text may take."""

MOST_DIGITS = 20
"""The largest number of digits of a size in bytes."""

UNUSABLE = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
"""What is raised if a server answers nothing, too slowly, or something else than HTTP."""

REDIRECTS = 5

BLOCK = 1 << 18

Step = Callable[[int, "int | None"], None]
"""A function that receives the number of received bytes, and of all bytes if known. It may raise, to stop."""


def fetch(url: str, sha256: str, target: Path, most: int, step: Step) -> None:
    """Download a file, and resume an earlier try. A complete file of an earlier try is not downloaded again.

    Args:
        url: the address, which begins with https://, as must all addresses to which it redirects.
        sha256: the checksum of the file.
        target: the path of the file. Until it is complete and checked, it is `target` with ".part".
        most: the largest size of the file in bytes.
        step: the receiver of progress, see `Step`.

    Raises:
        InputError: the address cannot be used, or the server does not send the file.
        ModelError: the file has another checksum, or is larger than allowed. It is deleted.
        OutputError: the file cannot be written.
    """
    check_address(url)
    check_sha256(sha256)
    part = target.with_name(f"{target.name}.part")
    try:
        if target.is_file() and file_sha256(target) == sha256.lower():
            return
        for left in reversed(range(TRIES)):
            before = _size(part)
            try:
                _load(url, part, most, step)
                break
            except _Broken as error:
                if not left or _size(part) <= before:
                    raise _given_up(url, part, error) from error
                time.sleep(PAUSE_SECONDS)
        _check(part, sha256, url)
        part.replace(target)
    except OSError as error:
        raise output_error(target, error) from error


def _given_up(url: str, part: Path, error: _Broken) -> InputError:
    if not _size(part):
        part.unlink(missing_ok=True)
        return InputError(
            f"{without_query(url)} cannot be downloaded: {error}. Check the address and the network, and try "
            "again."
        )
    return InputError(
        f"{without_query(url)} broke off after {_size(part) / 1e6:.1f} MB: {error}. Run the same "
        "command again to resume."
    )


def fetch_text(url: str, most: int) -> str:
    """Download a small text, such as an index. Raises InputError."""
    check_address(url)
    try:
        with _opened(url, 0) as answer:
            data = _read(answer, most)
    except (_Broken, _NoSuchPart, OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f"{without_query(url)} cannot be downloaded: {error}.") from error
    if len(data) > most:
        raise InputError(
            f"{without_query(url)} is not an index, because it has more than {most} bytes. Check the address."
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{without_query(url)} is not UTF-8 text. Check the address.") from error


def _read(answer: http.client.HTTPResponse, most: int) -> bytes:
    """Return what a server sends, up to a byte more than `most`."""
    data, end = bytearray(), time.monotonic() + TEXT_SECONDS
    while len(data) <= most and (block := answer.read1(BLOCK)):
        data += block
        if time.monotonic() > end:
            raise _Broken(f"it takes more than {TEXT_SECONDS:.0f} s")
    return bytes(data)


def check_address(url: str) -> None:
    """Check an address. Raises InputError unless it is an https address without a password."""
    try:
        parts = urllib.parse.urlsplit(url)
        usable = bool(parts.hostname) and parts.netloc.isascii() and parts.port != 0
    except ValueError:
        parts, usable = None, False
    if parts is None or not usable or any(character <= " " for character in url):
        raise InputError(f"{without_query(url)} is not an address. Write https://HOST/FILE.")
    if parts.scheme != "https":
        raise InputError(
            f"{without_query(url)} is not encrypted, so others on the network could change "
            "the file. Use an address that begins with https://."
        )
    if parts.username is not None or parts.password is not None:
        raise InputError(
            "The address contains a name or password, which others could read. Remove it."
        )


def check_sha256(text: str) -> None:
    """Check a SHA-256. Raises InputError unless it has 64 hexadecimal digits."""
    if not SHA256.fullmatch(text):
        raise InputError(
            f"{text[:80]!r} is not a SHA-256, which has 64 digits from 0 to f. `sha256sum FILE` prints it."
        )


def without_query(url: str) -> str:
    """Return an address for messages, without the parts after ? and before @, which may be secret."""
    start, at, rest = url.partition("?")[0].partition("#")[0].rpartition("@")
    return f"{start.partition('//')[0]}//{rest}" if at else rest


class _Broken(Exception):
    """The connection broke; the received part is kept."""


class _NoSuchPart(Exception):
    """The server does not have more of the file than was received."""


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to encrypted addresses."""

    max_redirections = REDIRECTS

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> Any:
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _not_trusted(url: str, reason: str) -> InputError:
    return InputError(
        f"{without_query(url)}: this computer does not trust the certificate of the server "
        f"({reason}). Ask the operator of the server."
    )


def _opened(url: str, begin: int) -> http.client.HTTPResponse:
    """Return the response of the server, from a byte on if it supports ranges.

    Raises:
        InputError: the server refuses, or redirects to another kind of address.
        _Broken: the server cannot be reached at the moment.
        _NoSuchPart: the file is shorter.
    """
    try:
        found: http.client.HTTPResponse = _opener().open(
            _request(url, begin), timeout=QUIET_SECONDS
        )
    except urllib.error.URLError as error:
        raise _failure(url, begin, error) from error
    except http.client.InvalidURL as error:  # of a proxy, because the address was checked
        raise InputError(
            f"The proxy of this computer (HTTPS_PROXY) is not an address: {error}. Correct it."
        ) from error
    except UNUSABLE as error:
        raise _Broken(_words(error)) from error
    except ValueError as error:  # from an address to which another server redirected
        raise InputError(
            f"{without_query(url)} redirects to something that is not an address: {error}."
        ) from error
    if found.status not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
        found.close()
        raise _refused(url, found.status)
    return found


def _words(error: Exception) -> str:
    """Return what went wrong in one line; a server may send anything in place of HTTP."""
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError):
        return "the server does not speak HTTP"
    return one_line(str(error)) or type(error).__name__


def _opener() -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _OnlyHttps())


def _request(url: str, begin: int) -> urllib.request.Request:
    headers = {"User-Agent": "medsegai", "Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    return urllib.request.Request(urllib.parse.quote(url, safe=string.punctuation), headers=headers)


def _failure(url: str, begin: int, error: urllib.error.URLError) -> Exception:
    """Return the error of our own that says why a file, from the byte `begin` on, could not be opened."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and begin:
            return _NoSuchPart()
        if error.code >= 500:
            return _Broken(f"the server responded with {error.code}")
        return _refused(url, error.code)
    if isinstance(error.reason, ssl.SSLCertVerificationError):
        return _not_trusted(url, error.reason.verify_message)
    return _Broken(str(error.reason))


def _refused(url: str, code: int) -> MedSegAIError:
    reasons = {
        401: "asks for a password. Download the file with another program, and import it",
        403: "does not allow it. Ask the operator of the server",
        404: "does not have this file. Check the address",
        410: "no longer has this file. Check the address",
    }
    redirected = (
        "redirects too often, or to an address that does not begin with https://. Ask its operator"
    )
    other = redirected if 300 <= code < 400 else "does not send the file"
    return InputError(
        f"{without_query(url)} responded with {code}: the server {reasons.get(code, other)}."
    )


def _load(url: str, part: Path, most: int, step: Step) -> None:
    """Download the missing rest of `part`.

    Raises:
        _Broken: the connection broke before the end.
    """
    begin = _size(part)
    try:
        answer = _opened(url, begin)
    except _NoSuchPart:  # the part belongs to another file, or is complete
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
        except UNUSABLE as error:
            raise _Broken(_words(error)) from error


class _Bound:
    """How many bytes may arrive, and what is called meanwhile."""

    def __init__(self, url: str, most: int, step: Step) -> None:
        self.url, self.most, self.step = url, most, step


def _copy(answer: Any, file: IO[bytes], there: int, total: int | None, bound: _Bound) -> None:
    while block := answer.read1(BLOCK):  # what there is: a slow server must not keep Ctrl-C waiting
        there += len(block)
        if there > bound.most:
            file.close()
            Path(file.name).unlink()
            raise _too_large(bound.url, bound.most)
        file.write(block)
        bound.step(there, total)
    if total is not None and there < total:
        raise _Broken(f"only {there} of {total} bytes arrived")


def _total(answer: Any, begin: int) -> int | None:
    """Return the size of the whole file; None if the server does not state it."""
    length = answer.headers.get("Content-Length", "")
    number = length.isascii() and length.isdigit() and len(length) <= MOST_DIGITS
    return begin + int(length) if number else None


def _too_large(url: str, most: int) -> ModelError:
    return ModelError(
        f"{without_query(url)} has more than {most / 1e6:.1f} MB, and was not downloaded. Check the address."
    )


def _check(part: Path, sha256: str, url: str) -> None:
    found = file_sha256(part)
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
