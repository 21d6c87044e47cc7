"""Where the networks doubted, laid over the slices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import slicer

from medsegai.errors import InputError
from MedSegAILib.scene.attachments import ENTROPY_REFERENCE
from MedSegAILib.scene.nodes import nodes_of
from MedSegAILib.translation import tr as _


@dataclass
class Overlay:
    """Lays an entropy volume over the slices, and puts back what was there."""

    scene: Any
    _before: dict[str, tuple[str, float]] = field(default_factory=dict)
    _own: set[str] = field(default_factory=set)

    def show(self, segmentation: Any, shown: bool, opacity: float) -> None:
        """Show the uncertainty of a segmentation, with a legend, or take it away.

        Raises:
            InputError: its uncertainty was not measured.
        """
        entropy = segmentation.GetNodeReference(ENTROPY_REFERENCE)
        if entropy is None:
            if not shown:
                return
            raise InputError(
                f"The uncertainty of {segmentation.GetName()} was not measured. Run the model again "
                "with uncertainty switched on."
            )
        for view in nodes_of(self.scene, "vtkMRMLSliceCompositeNode"):
            if shown:
                self._lay_over(view, entropy.GetID(), opacity)
            elif view.GetForegroundVolumeID() == entropy.GetID():
                self._put_back(view)
        _legend(entropy, shown)

    def _lay_over(self, view: Any, volume: str, opacity: float) -> None:
        present = view.GetForegroundVolumeID() or ""
        if present not in self._own:  # one overlay may follow another
            self._before[view.GetID()] = (present, view.GetForegroundOpacity())
        self._own.add(volume)
        view.SetForegroundVolumeID(volume)
        view.SetForegroundOpacity(opacity)

    def _put_back(self, view: Any) -> None:
        volume, opacity = self._before.pop(view.GetID(), ("", 0.0))
        is_there = bool(volume) and self.scene.GetNodeByID(volume) is not None
        view.SetForegroundVolumeID(volume if is_there else None)
        view.SetForegroundOpacity(opacity if is_there else 0.0)


def _legend(entropy: Any, shown: bool) -> None:
    """Slicer's own colour legend; nothing where the volume has no display yet."""
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(entropy)
    if legend is None and shown and entropy.GetDisplayNode() is not None:
        legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(entropy)
    if legend is not None:
        legend.SetTitleText(_("Uncertainty (nats)"))
        legend.SetLabelFormat("%.2f")
        legend.SetVisibility(shown)
