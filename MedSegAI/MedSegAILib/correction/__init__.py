"""Correcting what the AI found: strokes in the Segment Editor, running it again on a part, keeping the result."""

from __future__ import annotations

from pathlib import Path

EFFECT_NAME = "AI correct"
EFFECT_FILE = Path(__file__).resolve().parent / "MedSegAIEffects" / "MedSegAICorrectEffect.py"
"""Slicer takes the name of the folder for that of a module, and the name of the file for that of the class."""


def register() -> None:
    """Give the Segment Editor the effect *AI correct*; to be called when Slicer has started.

    The editor takes it once: it ignores a second effect of the same name.
    """
    import qSlicerSegmentationsEditorEffectsPythonQt as effects

    effect = effects.qSlicerSegmentEditorScriptedEffect(None)
    effect.setPythonSource(EFFECT_FILE.as_posix())
    effect.self().register()
