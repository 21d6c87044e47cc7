"""Grad-CAM and occlusion point at what a made network looks at, and heat is laid over pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medsegai.evaluation.heat_maps import grad_cam, heat_maps, occlusion, over_picture

SIDE = 64
PLACES = [(0, 0), (0, 48), (48, 0), (24, 40)]


class Corner(nn.Module):
    """Its second class is the brightness of a square of 16 pixels that begins at a place, and of nothing else."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.seen = nn.Identity()
        mask = torch.zeros(1, 1, SIDE // 8, SIDE // 8)
        mask[..., row // 8 : row // 8 + 2, column // 8 : column // 8 + 2] = 1
        self.register_buffer("mask", mask)

    def forward(self, images: Tensor) -> Tensor:
        features = self.seen(nn.functional.avg_pool2d(images[:, :1], 8) * self.mask)
        score = features.sum((1, 2, 3))
        return torch.stack([torch.zeros_like(score), score - 2], 1)


@pytest.mark.parametrize(("row", "column"), PLACES)
@pytest.mark.parametrize("kind", ["Grad-CAM", "occlusion"])
def test_the_hottest_place_is_what_the_network_looks_at(kind: str, row: int, column: int) -> None:
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 0.2
    image[..., row : row + 16, column : column + 16] += 1
    heat = heat_maps(Corner(row, column), "seen", image, 1)[kind]
    assert heat.shape == (SIDE, SIDE)
    assert heat.max() == pytest.approx(1)
    inside = np.zeros((SIDE, SIDE), bool)
    inside[row : row + 16, column : column + 16] = True
    assert heat[inside].mean() > 5 * heat[~inside].mean()
    assert inside[np.unravel_index(heat.argmax(), heat.shape)] or kind == "occlusion"


def test_what_speaks_against_a_class_is_cold() -> None:
    image = torch.rand(1, 3, SIDE, SIDE)
    network = Corner(0, 0)
    assert grad_cam(network, "seen", image, 0).max() == 0
    assert occlusion(network, image, 0)[32:, 32:].max() == 0


def test_heat_of_any_size_is_laid_over_a_picture() -> None:
    pixels = np.full((40, 60, 3), 200, np.uint8)
    heat = np.zeros((4, 6), np.float32)
    heat[:, 3:] = 1
    found = over_picture(pixels, heat)
    assert found.shape == pixels.shape
    assert (found[:, :20] == 200).all()
    assert (found[:, -1, 0] > found[:, -1, 2]).all()
