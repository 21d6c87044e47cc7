"""The loss against values worked out by hand and by MONAI."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from medsegai.training.loss import (
    LossConfig,
    SegmentationLoss,
    boundaries,
    class_weights,
    dice_loss,
)


def one_hot(classes: torch.Tensor, count: int) -> torch.Tensor:
    return functional.one_hot(classes, count).movedim(-1, 1).float()


def test_dice_loss_by_hand() -> None:
    """Two voxels, two classes: each class has 2 * 0.8 / (1.0 + 1.0) = 0.8."""
    probabilities = torch.tensor([[0.8, 0.2], [0.2, 0.8]]).view(1, 2, 1, 2)
    expected = one_hot(torch.tensor([[[0, 1]]]), 2)
    assert dice_loss(probabilities, expected).item() == pytest.approx(0.2)


def test_dice_loss_equals_monai() -> None:
    losses = pytest.importorskip("monai.losses")
    torch.manual_seed(0)
    probabilities = torch.randn(3, 4, 8, 8).softmax(dim=1)
    expected = one_hot(torch.randint(0, 4, (3, 8, 8)), 4)
    reference = losses.DiceLoss(batch=True, smooth_nr=0.0, smooth_dr=0.0)
    torch.testing.assert_close(
        dice_loss(probabilities, expected), reference(probabilities, expected)
    )


def test_classes_that_are_absent_do_not_count() -> None:
    probabilities = torch.tensor([[0.7, 0.1], [0.1, 0.7], [0.2, 0.2]]).view(1, 3, 1, 2)
    classes = torch.tensor([[[0, 1]]])
    two = 1.0 - 2 * 0.7 / (0.8 + 1.0)
    assert dice_loss(probabilities, one_hot(classes, 3)).item() == pytest.approx(two)


def test_logistic_loss_is_weighted_cross_entropy_and_takes_softmax_once() -> None:
    torch.manual_seed(1)
    logits, classes = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    touches = torch.rand(2, 4, 4) < 0.3
    weights = np.array([0.5, 1.0, 4.0], dtype=np.float32)
    config = LossConfig(dice=2.0, logistic=3.0, boundary=1.5)
    total, dice, logistic = SegmentationLoss(weights, config)(logits, classes, touches)
    surprise = functional.cross_entropy(logits, classes, reduction="none")
    by_hand = ((torch.from_numpy(weights)[classes] + 1.5 * touches) * surprise).mean()
    torch.testing.assert_close(logistic, by_hand)
    torch.testing.assert_close(dice, dice_loss(logits.softmax(1), one_hot(classes, 3)))
    torch.testing.assert_close(total, 2 * dice + 3 * logistic)


def test_perfect_logits_cost_nothing() -> None:
    classes = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(2))
    losses = SegmentationLoss(np.ones(3, dtype=np.float32), LossConfig())
    assert losses(100.0 * one_hot(classes, 3), classes, torch.ones(2, 4, 4)).abs().max() < 1e-5


def test_balancing_is_the_median_frequency_without_rounding() -> None:
    weights = class_weights(np.array([700, 200, 100]), LossConfig(max_class_weight=1.5))
    assert weights.tolist() == pytest.approx([2 / 7, 1.0, 1.5])


def test_balancing_power_limits_and_absent_classes() -> None:
    config = LossConfig(balance_power=0.5, min_class_weight=0.9, max_class_weight=10.0)
    weights = class_weights(np.array([600, 0, 300, 100]), config)
    assert weights.tolist() == pytest.approx([0.9, 0.0, 1.0, math.sqrt(3.0)])
    with pytest.raises(ValueError, match="labelled"):
        class_weights(np.zeros(3, dtype=np.int64), config)


def test_boundaries_are_found_along_all_three_axes() -> None:
    classes = torch.zeros(1, 3, 5, 5, dtype=torch.int64)
    classes[0, 1, 2, 2] = 1
    cross = torch.zeros(5, 5, dtype=torch.bool)
    cross[2, 1:4] = cross[1:4, 2] = True
    assert torch.equal(boundaries(classes)[0], cross)
    through = torch.zeros(1, 3, 5, 5, dtype=torch.int64)
    through[0, 2, 0, 4] = 1
    assert boundaries(through)[0].nonzero().tolist() == [[0, 4]]
    assert not boundaries(torch.full((1, 3, 5, 5), 2)).any()
