"""Correction of AI results: strokes in the Segment Editor, running the AI again on a part, keeping cases."""

from __future__ import annotations

from pathlib import Path

EFFECT_NAME = "AI correct"
EFFECT_FILE = Path(__file__).resolve().parent / "MedSegAIEffects" / "MedSegAICorrectEffect.py"
"""The effect's file; Slicer uses the folder's name for the module, and the file's name for the class."""


def register() -> None:
    """Register the effect *AI correct* in the Segment Editor, when Slicer has started.

    The editor ignores a second effect of the same name.
    """
    import qSlicerSegmentationsEditorEffectsPythonQt as effects

    effect = effects.qSlicerSegmentEditorScriptedEffect(None)
    effect.setPythonSource(EFFECT_FILE.as_posix())
    effect.self().register()
