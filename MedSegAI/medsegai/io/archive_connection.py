"""The HTTP connection to an archive that is not trusted: answers are bounded, and nobody else is asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.message import Message
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

ANSWER_SECONDS = 60.0
"""The seconds after which a silent archive is given up."""

SLOW_SECONDS, SLOW_BYTES = 60.0, 6000
"""An archive that sends fewer bytes in this time is given up: drops could go on for ever."""

MOST_ANSWER = 1 << 28
"""The largest size of an answer to a search in bytes, unpacked."""

MOST_SERIES = 1 << 36
"""The largest size of a series in bytes."""

BUSY = (408, 429, 503, 504)
"""The status of an archive that may answer a second time."""

BLOCK = 1 << 17

LONGEST_HEAD = 1 << 16
"""The largest size of the header of a part in bytes."""

PARTIAL = 206


class Redirected(requests.RequestException):
    """The archive names another server, or another address for what is sent to it."""

    def __init__(self, elsewhere: str) -> None:
        super().__init__("redirected")
        self.elsewhere = elsewhere


class Excessive(requests.RequestException):
    """The answer is larger or slower than allowed."""


class ArchiveSession(requests.Session):
    """A session that follows redirects on the same server alone, and tries once more where the archive is busy."""

    def __init__(self) -> None:
        super().__init__()
        again = Retry(
            1,
            status_forcelist=BUSY,
            allowed_methods=("GET",),
            backoff_factor=0.2,
            raise_on_status=False,
            respect_retry_after_header=False,  # it may say hours
        )
        for scheme in ("http://", "https://"):
            self.mount(scheme, _BoundedAdapter(max_retries=again))
        self.hooks["response"].append(_checked)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where the answer redirects. Raises Redirected unless the same server is only asked."""
        target: str | None = super().get_redirect_target(resp)
        if target is None:
            return None
        there = urljoin(str(resp.url), target)
        if resp.request.method != "GET" or origin(there) != origin(str(resp.url)):
            raise Redirected(origin(there))
        return target


def origin(url: str) -> str:
    """Return scheme, host and port of an address, without what may be secret."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        return f"{parts.scheme}://{parts.hostname}:{port}"
    except ValueError:
        return "another address"


def _checked(response: requests.Response, *_: object, **__: object) -> None:
    """Refuse what is neither an error nor an answer, and name its kind as dicomweb-client compares it."""
    status = response.status_code
    if status == PARTIAL or (300 <= status < 400 and not response.is_redirect):
        raise requests.HTTPError(response=response)
    if response.request.method == "POST":
        kind = response.headers.get("Content-Type", "")
        response.headers["Content-Type"] = kind.partition(";")[0].strip().lower()


class _BoundedAdapter(HTTPAdapter):
    """Connections whose answers end."""

    def send(  # type: ignore[override]  # passes on what else there is
        self, request: requests.PreparedRequest, stream: bool = False, **others: Any
    ) -> requests.Response:
        response = super().send(request, stream=stream, **others)
        response.raw = _Bounded(response.raw, MOST_SERIES if stream else MOST_ANSWER)
        return response


class _Bounded:
    """An answer of urllib3 that is read as it arrives, until it is too large or too slow."""

    def __init__(self, raw: Any, most: int) -> None:
        self._raw, self._most = raw, most

    def stream(self, amt: int = BLOCK, decode_content: bool | None = None) -> Iterator[bytes]:
        """Yield the content. Raises Excessive."""
        total = recent = 0
        waited = 0.0
        while True:
            begin = time.monotonic()
            block: bytes = self._raw.read1(min(amt, BLOCK), decode_content)
            waited += time.monotonic() - begin
            if not block:
                return
            total += len(block)
            recent += len(block)
            if total > self._most:
                raise Excessive("too large")
            if waited > SLOW_SECONDS:
                if recent < SLOW_BYTES:
                    raise Excessive("too slow")
                waited, recent = 0.0, 0
            yield block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def parts(response: requests.Response) -> Iterator[Iterator[bytes]]:
    """Yield the parts of a multipart answer, each as blocks that are read before the next part.

    An answer of one DICOM file without parts, as some archives send it, is one part.

    Raises:
        ValueError: the answer is of another kind, or a header in it is too long.
        EOFError: the answer ends before its last boundary.
    """
    kind = Message()
    kind["Content-Type"] = response.headers.get("Content-Type", "")
    blocks = response.iter_content(BLOCK)
    if kind.get_content_type() == "application/dicom":
        yield blocks
        return
    boundary = kind.get_boundary()
    if kind.get_content_type() != "multipart/related" or not boundary:
        raise ValueError("the answer is not multipart")
    yield from _parts(_Stream(blocks), b"\r\n--" + boundary.encode())


def _parts(stream: _Stream, delimiter: bytes) -> Iterator[Iterator[bytes]]:
    _exhaust(stream.until(delimiter))
    while stream.peek(2) != b"--":
        _exhaust(stream.until(b"\r\n\r\n"), LONGEST_HEAD)
        content = stream.until(delimiter)
        yield content
        _exhaust(content)


def _exhaust(blocks: Iterator[bytes], most: float = float("inf")) -> None:
    size = 0
    for block in blocks:
        size += len(block)
        if size > most:
            raise ValueError("a header is too long")


class _Stream:
    """Blocks of bytes, read up to marks. A line break stands before the first byte."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._left = blocks, b"\r\n"

    def until(self, mark: bytes) -> Iterator[bytes]:
        """Yield the bytes before the next mark, and skip it. Raises EOFError if there is none."""
        while (at := self._left.find(mark)) < 0:
            ready = max(0, len(self._left) - len(mark) + 1)
            yield self._left[:ready]
            self._left = self._left[ready:]
            self._read_on()
        yield self._left[:at]
        self._left = self._left[at + len(mark) :]

    def peek(self, count: int) -> bytes:
        """Return the next bytes without skipping them. Raises EOFError if there are fewer."""
        while len(self._left) < count:
            self._read_on()
        return self._left[:count]

    def _read_on(self) -> None:
        block = next(self._blocks, b"")
        if not block:
            raise EOFError("the answer ends early")
        self._left += block
