"""What families of head models share: the conformed head, and undoing the class weights of their training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsegai.errors import ModelError
from medsegai.families import Inputs
from medsegai.families._memory import check_memory
from medsegai.models.card import SPACINGS_MM, MemberCard
from medsegai.models.json_fields import number, shown
from medsegai.preprocessing.conform import conform, conformed_geometry, head_box
from medsegai.preprocessing.intensity import MODES, scale_intensity
from medsegai.volume import Volume

HEAD_MARGIN_MM = 32.0
"""The air kept around the head. With less, labels change, because networks see the border of the image
(docs/performance/speed.md)."""

KEPT_MARGIN_MM = 8.0
"""The air around the head in which predictions are kept; voxels farther away are background."""


LARGEST_GRID = 1024
"""Voxels along an axis that a card may ask for."""

LARGEST_POWER, CLASS_WEIGHTS = 10.0, (1e-9, 1e9)
"""What a card may ask for to undo the class weights of a loss."""

BYTES_A_VOXEL = 12
"""The memory per voxel of a conformed grid: the resampled, scaled and cropped scan, each float32."""


@dataclass(frozen=True)
class HeadGrid:
    """The grid that a network was trained on, and how the scan comes onto it.

    Attributes:
        grid: least size (i, j, k) in voxels.
        spacing_mm: of the voxels, along (i, j, k).
        intensity: a mode of `scale_intensity`.
        antialias: see `conform`.
        margin_mm: of air around the head.
    """

    grid: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    intensity: str
    antialias: bool
    margin_mm: float = HEAD_MARGIN_MM

    def __post_init__(self) -> None:
        """Raises ModelError: a card asks for what cannot be, or for more than fits into memory."""
        for size in self.grid:
            number(size, "grid", 1, LARGEST_GRID)
        for length in self.spacing_mm:
            number(length, "spacing_mm", *SPACINGS_MM)
        if self.intensity not in MODES:
            raise ModelError(
                f"intensity must be one of {', '.join(MODES)}, not {shown(self.intensity)}."
            )

    def head(self, inputs: Inputs) -> Volume:
        """The conformed scan, its intensities scaled, cropped to the head. Do not change it: others share it.

        Args:
            inputs: one scan.

        Raises:
            ModelError: on this grid the scan does not fit into the memory that is free.
        """
        (scan,) = inputs.scans
        return inputs.prepared(self, lambda: self._head(scan))

    def _head(self, scan: Volume) -> Volume:
        geometry = conformed_geometry(scan.geometry, self.grid, self.spacing_mm)
        check_memory(geometry.shape, BYTES_A_VOXEL)
        scaled = scale_intensity(conform(scan, geometry, self.antialias), self.intensity)
        box = head_box(scaled, margin=round(self.margin_mm / min(self.spacing_mm)))
        return Volume(np.ascontiguousarray(scaled[box]), geometry.part(box))

    def kept(self, head: Volume) -> tuple[slice, slice, slice]:
        """The box (k, j, i) of the head for which answers are kept."""
        return head_box(head.voxels, margin=round(KEPT_MARGIN_MM / min(self.spacing_mm)))


def class_weight_offsets(member: MemberCard) -> Tensor | None:
    """The offsets to subtract from a member's logits to undo the class weights of its loss, float32 (channel,).

    A network that was trained with class weights predicts probabilities that are too large for classes with large
    weights, which are the small structures. Dividing them by `class_weights` to the power `weight_power` corrects
    this (M. Saerens et al., "Adjusting the Outputs of a Classifier to New a Priori Probabilities", 2002). The
    power is chosen for each member on held-out synthetic heads, because Dice loss and boundary weights act in the
    opposite direction.

    Returns:
        The offsets; None if the card has no class weights.

    Raises:
        ModelError: the weights are not positive numbers, one for each channel.
    """
    power = number(member.settings.get("weight_power", 0.0), "weight_power", 0, LARGEST_POWER)
    weights = member.settings.get("class_weights")
    if weights is None or not power:
        return None
    if not isinstance(weights, (list, tuple)) or len(weights) != len(member.classes):
        raise ModelError(
            f"class_weights of member {member.name!r} must be a list with one positive number for each of its "
            f"{len(member.classes)} classes."
        )
    values = [number(value, "class_weights", *CLASS_WEIGHTS) for value in weights]
    return power * torch.tensor(values, dtype=torch.float32).log()
