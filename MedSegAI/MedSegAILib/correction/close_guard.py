"""Questions about pending strokes before the scene or Slicer is closed."""

from __future__ import annotations

import weakref
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
        self._forget_scene: Callable[[], object] = _nothing
        self._window: Widget = None
        self._filter: Widget = None

    def watch(self, scene: MRMLScene, window: Widget) -> None:
        """Begin, with the scene and the main window, each of which may be None.

        The scene does not keep the guard: it may outlive the effect, or be removed together with it.
        """
        from MedSegAILib.panel.closing import CloseFilter  # late, because it imports the panel

        self.release()
        if scene is not None:
            react = weakref.WeakMethod(self._on_scene_closes)
            tag = scene.AddObserver(scene.StartCloseEvent, lambda *_: _call(react), FIRST)
            self._forget_scene = weakref.finalize(self, scene.RemoveObserver, tag)
            self._forget_scene.atexit = False
        if window is not None:
            self._window, self._filter = window, CloseFilter()
            self._filter.watch(window, self._leave)

    def release(self) -> None:
        """End, because the effect is left."""
        self._forget_scene()
        if self._window is not None:
            self._window.removeEventFilter(self._filter)
        self._forget_scene, self._window, self._filter = _nothing, None, None

    def _on_scene_closes(self) -> None:
        if self._tool.leave(self._may_save):
            slicer.util.openSaveDataDialog()

    def _leave(self) -> bool:
        """Apply or discard the strokes. The window may then close, and Slicer itself asks whether to save."""
        self._tool.leave()
        return True


def _call(react: weakref.WeakMethod[Callable[[], None]]) -> None:
    method = react()
    if method is not None:
        method()


def _nothing() -> None:
    """Do nothing, because no scene is watched."""
