"""Text from outside (file names, DICOM descriptions, cards, messages of other programs) made harmless.

A spreadsheet computes cells that begin like a formula, a terminal obeys control characters, a browser obeys tags,
and Qt shows text that looks like HTML as HTML, including pictures from the network. Each has one function here;
elsewhere texts are unchanged.
"""

from __future__ import annotations

import contextlib
import html
import re
import sys
from collections.abc import Iterator
from typing import Any

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

_TURNING = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Characters that change the direction of later text, so that a name can look like another."""

_SHOWN = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160))}
_SHOWN |= {code: f"\\u{code:04x}" for code in _TURNING}
del _SHOWN[ord("\n")], _SHOWN[ord("\t")]


_BREAKS = {
    ord(character): repr(character)[1:-1] for character in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
}
"""The characters at which `str.splitlines` begins another line."""

_NOT_UNICODE = re.compile("[\ud800-\udfff]")
"""Surrogates, which also stand for bytes that could not be decoded (PEP 383)."""


def unicode_text(text: str) -> str:
    """Return text that files and terminals can hold: bytes that are not UTF-8 are written as numbers."""
    return _NOT_UNICODE.sub(
        lambda half: (
            f"\\x{ord(half[0]) - 0xDC00:02x}"
            if 0xDC80 <= ord(half[0]) <= 0xDCFF
            else f"\\u{ord(half[0]):04x}"
        ),
        text,
    )


def table_cell(value: object) -> Any:
    """Return a CSV cell that spreadsheets do not compute: an apostrophe precedes text that begins like a formula.

    Line breaks are written out, so that a row is one line for programs that read line by line.
    """
    value = unicode_text(value).translate(_BREAKS) if isinstance(value, str) else value
    if not isinstance(value, str) or not value.startswith(FORMULA_STARTS) or len(value) == 1:
        return value
    with contextlib.suppress(ValueError):
        float(value)
        return value
    return f"'{value}"


def visible(text: str) -> str:
    """Return text for a terminal, in which control characters are visible and not obeyed; lines and tabs stay."""
    return text.translate(_SHOWN)


def one_line(text: str) -> str:
    """Return a message in one line, so that a file name with line breaks cannot imitate other messages."""
    return visible(text.translate(_BREAKS))


def page_text(text: object) -> str:
    """Return text for elements and quoted attributes of an HTML page, in which nothing is a tag or invisible."""
    return html.escape(visible(unicode_text(str(text))))


def unformatted(text: str) -> str:
    """Return text that Qt shows as plain text: a zero-width space prevents its detection as HTML."""
    return text.replace("<", "<\u200b").replace("&lt;", "&\u200blt;")


def label_text(text: str) -> str:
    """Return text for labels, tool tips and questions of Qt: as plain text, with visible control characters."""
    return unformatted(visible(text))


class VisibleStream:
    """A stream for people, whose output does not contain control characters.

    Attributes:
        drawn_on: the underlying stream, for code that draws on a terminal itself.
    """

    def __init__(self, stream: Any) -> None:
        self.drawn_on = stream

    def write(self, text: str) -> int:
        self.drawn_on.write(visible(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.drawn_on, name)


@contextlib.contextmanager
def visible_streams() -> Iterator[None]:
    """Pass standard output and standard error through `visible` within the block."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = VisibleStream(sys.stdout), VisibleStream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
