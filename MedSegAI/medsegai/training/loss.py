"""The sum of Dice and weighted logistic loss with which QuickNAT is trained.

Source: Roy et al., NeuroImage 2019, section 2.2. Unlike there, softmax is computed once, balancing weights are not
rounded, and boundaries are found along all three axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor, nn

from medsegai.errors import RequestError
from medsegai.training.limits import NOT_NEGATIVE, POSITIVE, limited


@dataclass(frozen=True)
class LossConfig:
    """The shares of the two terms, and the weights inside the logistic term.

    The weight of a voxel is ``class weight + boundary * (it touches another class)``. Class weights are ``(median
    frequency / frequency) ** balance_power``, kept between the minimum and the maximum.
    """

    dice: float = limited(1.0, NOT_NEGATIVE)
    logistic: float = limited(1.0, NOT_NEGATIVE)
    boundary: float = limited(1.0, NOT_NEGATIVE)
    balance_power: float = limited(1.0, NOT_NEGATIVE)
    min_class_weight: float = limited(0.0, NOT_NEGATIVE)
    max_class_weight: float = limited(10.0, POSITIVE)

    def __post_init__(self) -> None:
        """Raises RequestError: both terms have no share, or the limits of class weights are exchanged."""
        if not self.dice and not self.logistic:
            raise RequestError("dice and logistic are both 0, so there is nothing to learn from.")
        if self.min_class_weight > self.max_class_weight:
            raise RequestError(
                f"min_class_weight {self.min_class_weight:g} is more than max_class_weight "
                f"{self.max_class_weight:g}."
            )


def class_weights(counts: NDArray[np.int64], config: LossConfig) -> NDArray[np.float32]:
    """Median frequency balancing. ``counts`` (C,) are the voxels of each class; absent classes get weight 0."""
    present = counts > 0
    if not present.any():
        raise ValueError("Class weights need at least one labelled voxel.")
    frequency = counts[present] / counts.sum()
    weights = (np.median(frequency) / frequency) ** config.balance_power
    balanced = np.zeros(len(counts), dtype=np.float32)
    balanced[present] = np.clip(weights, config.min_class_weight, config.max_class_weight)
    return balanced


def member_weights(
    counts: NDArray[np.int64], class_of: NDArray[np.int64], config: LossConfig
) -> NDArray[np.float32]:
    """Return a member's class weights from the voxels and the class of each target, both (targets + 1,)."""
    per_class = np.bincount(class_of, weights=counts, minlength=int(class_of.max()) + 1)
    return class_weights(per_class.astype(np.int64), config)


def boundaries(classes: Tensor) -> Tensor:
    """Return where a slice touches another class, in its plane or in the neighbouring slices.

    ``classes`` (N, 3, H, W) has the previous slice, the slice and the next slice. The result is bool (N, H, W).
    """
    before, here, after = classes.unbind(dim=1)
    touches = (here != before) | (here != after)
    across_rows = here[:, 1:] != here[:, :-1]
    across_columns = here[:, :, 1:] != here[:, :, :-1]
    touches[:, 1:] |= across_rows
    touches[:, :-1] |= across_rows
    touches[:, :, 1:] |= across_columns
    touches[:, :, :-1] |= across_columns
    return touches


def boundaries_3d(classes: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return where voxels (k, j, i) touch another class along any axis, bool of the same shape."""
    touches = np.zeros(classes.shape, bool)
    for axis in range(3):
        ahead = np.moveaxis(classes, axis, 0)
        across = ahead[1:] != ahead[:-1]
        view = np.moveaxis(touches, axis, 0)
        view[1:] |= across
        view[:-1] |= across
    return touches


def dice_loss(probabilities: Tensor, one_hot: Tensor) -> Tensor:
    """Return 1 - soft Dice, averaged over the classes that the batch contains; both inputs are (N, C, ...)."""
    over = (0, *range(2, probabilities.ndim))
    common = (probabilities * one_hot).sum(over)
    volumes = one_hot.sum(over)
    dice = 2.0 * common / (probabilities.sum(over) + volumes).clamp_min(1e-6)
    present = (volumes > 0).to(dice.dtype)
    return 1.0 - (dice * present).sum() / present.sum()


class SegmentationLoss(nn.Module):
    """The (total, Dice, logistic) loss of logits (N, C, ...) for classes (N, ...)."""

    weights: Tensor

    def __init__(self, weights: NDArray[np.float32], config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("weights", torch.from_numpy(weights))

    def forward(self, logits: Tensor, classes: Tensor, touches: Tensor) -> Tensor:
        """Return the loss of a batch, (3,)."""
        log_probabilities = functional.log_softmax(logits.float(), dim=1)
        everything = torch.arange(logits.shape[1], device=logits.device)
        everything = everything.view(1, -1, *(1,) * (logits.ndim - 2))
        one_hot = (classes[:, None] == everything).to(log_probabilities.dtype)
        dice = dice_loss(log_probabilities.exp(), one_hot)
        voxel_weights = self.weights[classes] + self.config.boundary * touches
        surprise = -(log_probabilities * one_hot).sum(dim=1)
        logistic = (voxel_weights * surprise).mean()
        total = self.config.dice * dice + self.config.logistic * logistic
        return torch.stack((total, dice, logistic))
