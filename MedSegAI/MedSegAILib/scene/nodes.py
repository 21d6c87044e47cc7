"""Finding nodes in a scene that may not be the application's own."""

from __future__ import annotations

from typing import Any


def nodes_of(scene: Any, kind: str) -> list[Any]:
    """All nodes of a class. (`slicer.util.getNodesByClass` asks the application's scene, whichever is given.)"""
    return [scene.GetNthNodeByClass(n, kind) for n in range(scene.GetNumberOfNodesByClass(kind))]
