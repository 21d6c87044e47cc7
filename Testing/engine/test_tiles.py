"""Tiles, their weights and padding against nnU-Net's own functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsegai.preprocessing.tiles import gaussian, padded, tile_starts
from nnunet_models import require_nnunet

GRIDS = [
    ((200, 171, 171), (128, 128, 128)),
    ((40, 56, 40), (40, 56, 40)),
    ((41, 57, 99), (40, 56, 40)),
    ((129, 300, 77), (16, 24, 33)),
    ((64, 64, 64), (1, 3, 64)),
]


@pytest.mark.parametrize("step", [1.0, 0.5, 0.3])
@pytest.mark.parametrize(("shape", "patch"), GRIDS)
def test_tiles_stand_where_nnunet_puts_them(
    shape: tuple[int, ...], patch: tuple[int, ...], step: float
) -> None:
    require_nnunet()
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    assert list(tile_starts(shape, patch, step)) == compute_steps_for_sliding_window(
        shape, patch, step
    )


def test_flat_tiles_take_every_plane_by_itself() -> None:
    require_nnunet()
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    planes, *rest = tile_starts((7, 100, 90), (64, 48))
    assert planes == list(range(7))
    assert rest == compute_steps_for_sliding_window((100, 90), (64, 48), 0.5)


def test_impossible_tiles_are_refused() -> None:
    with pytest.raises(ValueError, match="smaller than tiles"):
        tile_starts((10, 64, 64), (16, 16, 16))
    for step in (0.0, 1.1):
        with pytest.raises(ValueError, match="the step must be"):
            tile_starts((16, 64, 64), (16, 16, 16), step)


@pytest.mark.parametrize("patch", [(40, 56, 40), (5, 33, 64), (28, 256), (1, 8, 8)])
def test_weights_are_those_of_nnunet_before_it_rounds_them(patch: tuple[int, ...]) -> None:
    require_nnunet()
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    cpu = torch.device("cpu")
    exact = compute_gaussian(patch, 1 / 8, 10, torch.float32, cpu).numpy()
    rounded = compute_gaussian(patch, 1 / 8, 10, torch.float16, cpu).float().numpy()
    weights = gaussian(patch)
    assert weights.dtype == np.float32
    assert weights.shape == patch
    np.testing.assert_allclose(weights, exact, rtol=1e-6)
    np.testing.assert_allclose(weights, rounded, rtol=1e-3, atol=1e-7)
    assert weights.min() > 0


def test_weights_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="read-only"):
        gaussian((4, 4, 4))[0, 0, 0] = 1


@pytest.mark.parametrize("shape", [(2, 9, 20, 31), (1, 40, 12, 8), (1, 16, 16, 16), (3, 15, 17, 1)])
@pytest.mark.parametrize("patch", [(16, 16, 16), (16, 16)])
def test_padding_is_that_of_nnunet_and_can_be_undone(
    shape: tuple[int, ...], patch: tuple[int, ...]
) -> None:
    require_nnunet()
    from acvl_utils.cropping_and_padding.padding import pad_nd_image

    image = torch.rand(shape)
    wanted, undo = pad_nd_image(image, patch, "constant", {"value": 0}, True)
    found, inside = padded(image, patch)
    assert torch.equal(found, wanted)
    assert inside == tuple(slice(int(s.start), int(s.stop)) for s in undo[1:])
    assert torch.equal(found[:, *inside], image)


def test_an_image_that_is_large_enough_is_not_copied() -> None:
    image = torch.rand(1, 20, 20, 20)
    found, inside = padded(image, (16, 20, 4))
    assert found is image
    assert found[:, *inside].shape == image.shape
