"""Label maps that refinements are tried on, and what every one of them must keep."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from images import DIRECTIONS
from medsegai.refinements import Draft
from medsegai.request import Candidates
from medsegai.volume import Geometry, Volume

SHAPE = (14, 18, 22)
SPACING_MM = (0.8, 1.1, 2.3)


def grid(name: str = "oblique", shape: tuple[int, int, int] = SHAPE) -> Geometry:
    return Geometry.from_spacing(shape, SPACING_MM, (-31.0, 17.5, 42.25), DIRECTIONS[name])


def noisy(labels: int = 4, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    """Touching structures with islands, cavities and ragged borders; they reach all faces of the volume."""
    rng = np.random.default_rng(seed)
    fields = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 2.0) for _ in range(labels)])
    values = (1 + fields.argmax(0)).astype(np.uint8)
    values[fields.max(0) < np.quantile(fields.max(0), 0.3)] = 0
    speckles = rng.random(shape) < 0.03
    values[speckles] = rng.integers(0, labels + 1, speckles.sum())
    return values


def draft_of(voxels: NDArray[Any], name: str = "oblique", **more: Any) -> Draft:
    return Draft(Volume(voxels, grid(name, voxels.shape)), **more)


def candidates_of(first: NDArray[Any], second: NDArray[Any], p_second: float = 0.4) -> Candidates:
    """The same doubt everywhere."""
    steps = np.full(first.shape, round(255 * p_second), np.uint8)
    return Candidates(first.copy(), second, (255 - steps).astype(np.uint8), steps)


def image_of(voxels: NDArray[Any], name: str = "oblique", noise: float = 4.0) -> Volume:
    """A scan in which every label has its own grey value."""
    rng = np.random.default_rng(7)
    values = 60.0 * voxels + rng.normal(0, noise, voxels.shape)
    return Volume(values.astype(np.float32), grid(name, voxels.shape), "scan")


def ball(
    shape: tuple[int, int, int], geometry: Geometry, radius_mm: float, shift_mm: float = 0.0
) -> NDArray[np.bool_]:
    """A ball around the middle of the grid, in millimetres of the world."""
    k, j, i = np.indices(shape)
    places = np.tensordot(geometry.ijk_to_ras[:3, :3], np.stack([i, j, k]), 1)
    places += geometry.ijk_to_ras[:3, 3, None, None, None]
    middle = geometry.center_ras + np.array([shift_mm, 0, 0])
    apart = np.linalg.norm(places - middle[:, None, None, None], axis=0)
    return np.asarray(apart <= radius_mm)


def ball_scan() -> Volume:
    """A scan for jobs with the tiny QuickNAT: a noisy ball on an oblique grid of thick voxels."""
    shape = (20, 28, 24)
    noise = np.random.default_rng(5).normal(0, 30, shape)
    k, j, i = np.indices(shape)
    ball = (k - 10) ** 2 * 2.2 + (j - 14) ** 2 + (i - 12) ** 2 < 9**2
    geometry = Geometry.from_spacing(shape, (2.1, 2.0, 2.6), (-30, -20, 5), DIRECTIONS["oblique"])
    return Volume((ball * (200 + noise)).astype(np.float32), geometry, "scan")
