"""Questions about pending strokes before the scene or Slicer is closed."""

from __future__ import annotations

from collections.abc import Callable

import slicer.util

from MedSegAILib.correction.tool import CorrectionTool
from MedSegAILib.slicer_types import MRMLScene, Widget

FIRST = 100.0
"""The priority of the observer: before the Segment Editor, which forgets its segmentation at this event."""


class CloseGuard:
    """Asks, while the effect is active, before a closed scene or Slicer takes the strokes with it.

    Args:
        tool: the strokes.
        may_save: the function that is asked whether to apply them and save the scene.
    """

    def __init__(self, tool: CorrectionTool, may_save: Callable[[str], bool]) -> None:
        self._tool, self._may_save = tool, may_save
        self._scene: MRMLScene = None
        self._tag = 0
        self._window: Widget = None
        self._filter: Widget = None

    def watch(self, scene: MRMLScene, window: Widget) -> None:
        """Begin, with the scene and the main window, each of which may be None."""
        from MedSegAILib.panel.closing import CloseFilter  # late, because it imports the panel

        self.release()
        if scene is not None:
            self._scene = scene
            self._tag = scene.AddObserver(scene.StartCloseEvent, self._on_scene_closes, FIRST)
        if window is not None:
            self._window, self._filter = window, CloseFilter()
            self._filter.watch(window, self._leave)

    def release(self) -> None:
        """End, because the effect is left."""
        if self._scene is not None:
            self._scene.RemoveObserver(self._tag)
        if self._window is not None:
            self._window.removeEventFilter(self._filter)
        self._scene = self._window = self._filter = None

    def _on_scene_closes(self, _scene: MRMLScene, _event: str) -> None:
        if self._tool.leave(self._may_save):
            slicer.util.openSaveDataDialog()

    def _leave(self) -> bool:
        """Apply or discard the strokes. The window may then close, and Slicer itself asks whether to save."""
        self._tool.leave()
        return True
