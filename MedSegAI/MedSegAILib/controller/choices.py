"""The panel's choices, which are saved with the scene and shown again when it is opened."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from MedSegAILib.controller.context import Context
from MedSegAILib.controller.results import Results
from MedSegAILib.guarding import guarded
from MedSegAILib.kept_choices import KeptChoices


class Choices:
    """Keeps the choices in the scene after each change.

    A scene gets them only if the user has chosen something or pressed *Segment*, so that scenes which are merely
    looked at stay as they were.

    Args:
        results: the table, whose segmentation is one of the choices.
    """

    def __init__(self, context: Context, results: Results) -> None:
        self._panel, self._scene, self._results = context.panel, context.scene, results
        self._follows = False
        self._had_own = False
        self._untouched = KeptChoices()
        context.panel.choice_changed.connect(self._on_change)
        context.panel.refine.choice_changed.connect(self._on_change)
        context.panel.results.segmentation_chosen.connect(self._on_change)
        context.panel.segment_requested.connect(self._keep)

    def wait(self) -> None:
        """Keep nothing while a scene is read, because the selectors change by themselves."""
        if self._follows:
            self._had_own = self._scene.choices_are_kept()
        self._follows = False

    def follow(self) -> None:
        """Show the choices of the scene that was read.

        If it was added to a scene with choices of the user, those of the user stay.
        """
        self._follows = True
        if self._had_own:
            self._had_own = False
            self._keep()
            return
        kept = None
        with guarded(None, "The choices of the scene were not restored"):
            kept = self._scene.kept_choices()
            if kept is not None:
                self._show(kept)
        if kept is None:
            self._untouched = self._of_user()

    def reset(self) -> None:
        """Show the defaults, because the scene is closed.

        The model and the device stay: who segments one scan after another uses the same ones.
        """
        self._scene.forget_choices()
        self._had_own = False
        present = self._panel.kept()
        device = {name: value for name, value in present.options.items() if name == "device"}
        default = KeptChoices(model=present.model, options=device)
        self._panel.restore(default)
        self._panel.refine.restore(default)
        self._untouched = self._of_user()

    def _show(self, kept: KeptChoices) -> None:
        self._follows = False
        try:
            self._panel.restore(kept)
            if kept.result is not None:
                self._results.show_chosen(kept.result)
            self._panel.refine.restore(kept)  # which the result has changed
        finally:
            self._follows = True

    def _on_change(self, *_values: Any) -> None:
        if not self._follows or self._scene.is_closing():
            return
        if self._scene.choices_are_kept() or self._is_touched():
            self._keep()

    def _is_touched(self) -> bool:
        """Whether the user chose anything; selectors choose the first volume by themselves."""
        first = next(iter(self._scene.volumes()), None)
        chosen = [node for node in self._panel.kept().inputs if node not in (None, first)]
        return bool(chosen) or self._of_user() != self._untouched

    def _of_user(self) -> KeptChoices:
        """Return the choices that do not change by themselves, when volumes are loaded or a result is shown."""
        return replace(self._panel.kept(), inputs=(), refined=None, refined_image=None)

    def _keep(self) -> None:
        self._scene.keep_choices(replace(self._panel.kept(), result=self._results.node))
