"""Surfaces that are made one after another between the user's events, with progress and a way to stop."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from MedSegAILib.controller import texts
from MedSegAILib.controller.context import Context
from MedSegAILib.guarding import guarded
from MedSegAILib.slicer_types import SegmentationNode


class Surfaces:
    """Makes the surfaces that the scene requests, for one segmentation after another."""

    def __init__(self, context: Context) -> None:
        self._context, self._bar = context, context.panel.surfaces
        self._waiting: list[tuple[Any, Generator[tuple[int, int], None, None]]] = []
        self._bar.step_requested.connect(self._step)
        self._bar.cancel_requested.connect(self.cancel)
        context.scene.make_surfaces = self.make

    def make(self, segmentation: SegmentationNode) -> None:
        """Make the missing surfaces of a segmentation, while Slicer stays responsive."""
        begun = [steps for node, steps in self._waiting if node is segmentation]
        self._waiting = [item for item in self._waiting if item[0] is not segmentation]
        steps = begun[0] if begun else self._context.scene.surfaces(segmentation)
        self._waiting.append((segmentation, steps))  # each step looks up missing surfaces
        self._bar.show(0, 0)

    def cancel(self) -> None:
        """Stop making surfaces. Existing surfaces are hidden, and reused when they are shown again."""
        waiting, self._waiting = self._waiting, []
        self._bar.hide()
        for segmentation, steps in waiting:
            steps.close()
            if self._context.scene.is_present(segmentation):
                self._context.scene.show_3d(segmentation, False)
        self._context.panel.results.show_surfaces(False)

    def forget(self) -> None:
        """Forget all surfaces, because the scene was closed."""
        self._waiting = []
        self._bar.hide()

    def _step(self) -> None:
        if not self._waiting:
            self._bar.hide()
            return
        segmentation, steps = self._waiting[0]
        progress = None
        with guarded(
            lambda error: self._context.panel.show_error(texts.defect(error), log=True),
            "The surfaces of %s could not be made",
            segmentation.GetName(),
        ):
            progress = next(steps, None)
        if progress is not None:
            self._bar.show(*progress)
            return
        self._waiting = [item for item in self._waiting if item[0] is not segmentation]
        if not self._waiting:
            self._bar.hide()
