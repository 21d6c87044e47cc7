"""Slicer's translation of texts, which are unchanged outside Slicer."""

from __future__ import annotations

from medsegai.errors import counted

try:
    from slicer.i18n import tr
except ImportError:

    def tr(text: str) -> str:
        """Return a text in the language of the application."""
        return text


__all__ = ["counted", "tr"]
