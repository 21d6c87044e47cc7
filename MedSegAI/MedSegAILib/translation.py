"""Slicer's translation of texts; outside Slicer they stay as they are."""

from __future__ import annotations

try:
    from slicer.i18n import tr
except ImportError:

    def tr(text: str) -> str:
        return text


__all__ = ["counted", "tr"]


def counted(count: int, one: str, more: str) -> str:
    """A number with the word that agrees with it."""
    return f"{count} {one if count == 1 else more}"
