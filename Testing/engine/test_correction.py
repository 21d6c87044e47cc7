"""What a clinician expects of a stroke: it counts, it stays near, it stops at borders, it is quick."""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

from medsegai import correction
from medsegai.correction import REACH_MM, Region, box_around, corrected
from medsegai.errors import InputError
from medsegai.io import read_labelmap, read_volume

SHAPE = (24, 30, 36)
EVEN = (1.0, 1.0, 1.0)
Mask = NDArray[np.bool_]


def nothing(shape: tuple[int, ...] = SHAPE) -> Mask:
    return np.zeros(shape, bool)


def box(*bounds: tuple[int, int], shape: tuple[int, ...] = SHAPE) -> Mask:
    mask = nothing(shape)
    mask[tuple(slice(first, last) for first, last in bounds)] = True
    return mask


def flat(probability: float, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    return np.full(shape, probability, np.float32)


def noise(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(100, 5, shape).astype(np.float32)


# --- strokes count --------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_strokes_are_obeyed_whatever_the_ai_and_the_image_say(known: bool) -> None:
    mask = box((8, 16), (8, 20), (8, 20))
    probability = np.where(mask, 1.0, 0.0).astype(np.float32) if known else None
    inside, outside = box((3, 5), (4, 6), (4, 9)), box((10, 12), (10, 12), (10, 12))
    result = corrected(Region(noise(), mask, EVEN, probability), inside, outside)
    assert result[inside].all()
    assert not result[outside].any()


def test_the_outside_wins_where_both_are_painted() -> None:
    mask = box((8, 16), (8, 20), (8, 20))
    both = box((10, 12), (10, 12), (10, 12))
    assert not corrected(Region(noise(), mask, EVEN), both, both)[both].any()


@pytest.mark.parametrize("known", [True, False])
def test_without_strokes_nothing_changes(known: bool) -> None:
    mask = box((8, 16), (8, 20), (8, 20))
    region = Region(noise(), mask, EVEN, flat(0.5) if known else None)
    np.testing.assert_array_equal(corrected(region, nothing(), nothing()), mask)


def test_an_inside_stroke_alone_only_adds_and_an_outside_stroke_alone_only_removes() -> None:
    mask = box((8, 16), (8, 20), (8, 20))
    stroke = box((11, 13), (18, 23), (11, 13))
    region = Region(noise(), mask, EVEN, flat(0.5))
    more, less = corrected(region, stroke, nothing()), corrected(region, nothing(), stroke)
    assert not (mask & ~more).any()
    assert (more & ~mask & ~stroke).any()
    assert not (less & ~mask).any()
    assert (mask & ~less & ~stroke).any()


# --- it stays near --------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("reach", [2.0, 5.0])
def test_nothing_changes_beyond_the_reach(known: bool, reach: float) -> None:
    spacing = (0.8, 1.3, 2.5)
    mask = box((4, 12), (8, 20), (8, 20))
    inside, outside = box((13, 14), (9, 11), (9, 14)), box((6, 7), (17, 19), (12, 13))
    image = np.full(SHAPE, 7, np.int16)
    region = Region(image, mask, spacing, flat(0.5) if known else None)
    changed = corrected(region, inside, outside, reach) != mask
    far = ndimage.distance_transform_edt(~(inside | outside), sampling=spacing[::-1])
    assert changed.any()
    assert far[changed].max() < reach


def test_a_reach_is_in_millimetres_along_every_axis() -> None:
    """In a uniform image, where the AI is undecided, a stroke wins a ball; its axes are alike in mm."""
    shape, spacing = (15, 41, 61), (0.5, 0.8, 2.0)
    stroke = box((7, 8), (20, 21), (30, 31), shape=shape)
    region = Region(np.zeros(shape, np.float32), nothing(shape), spacing, flat(0.5, shape))
    won = corrected(region, stroke, nothing(shape), 6.0)
    for axis, step in enumerate(reversed(spacing)):
        hits = np.flatnonzero(won.any(axis=tuple({0, 1, 2} - {axis})))
        assert (hits[-1] - hits[0]) / 2 * step == pytest.approx(6.0, abs=step + 1e-6)
    distance = ndimage.distance_transform_edt(~stroke, sampling=spacing[::-1])
    assert won[distance < 4.4].all(), "slanted ways are a little longer than they should be"
    assert not won[distance > 6.0].any()


def test_a_box_holds_all_that_can_change() -> None:
    spacing = (0.8, 1.3, 2.5)
    shape = (30, 40, 50)
    stroke = box((14, 15), (20, 22), (25, 26), shape=shape)
    mask, image = box((10, 15), (10, 22), (10, 30), shape=shape), noise(1, shape)
    probability = np.random.default_rng(2).uniform(0, 1, shape).astype(np.float32)
    whole = corrected(Region(image, mask, spacing, probability), stroke, nothing(shape), 4.0)
    where = box_around(stroke, spacing, 4.0)
    assert where is not None
    sizes = [part.stop - part.start for part in where]
    assert sizes == [1 + 2 * 3, 2 + 2 * 5, 1 + 2 * 6]
    outside = np.ones(shape, bool)
    outside[where] = False
    np.testing.assert_array_equal(whole[outside], mask[outside])
    assert (whole != mask).any()


def test_a_box_ends_with_the_image_and_needs_a_stroke() -> None:
    corner = nothing()
    corner[0, 0, -1] = True
    assert box_around(corner, EVEN, 3.0) == (slice(0, 5), slice(0, 5), slice(31, 36))
    assert box_around(nothing(), EVEN, 3.0) is None


# --- it follows the image and the AI --------------------------------------------------------------


def test_a_stroke_stops_at_an_edge_of_the_image() -> None:
    """Bright tissue, a dark wall, bright tissue again: only this side of the wall is won."""
    image = noise(3)
    image[:, :, 20:22] -= 80
    stroke = box((11, 13), (14, 16), (15, 17))
    won = corrected(Region(image, nothing(), EVEN, flat(0.45)), stroke, nothing())
    assert won[11:13, 14:16, 14:19].all()
    assert won.sum() > 20 * stroke.sum()
    assert not won[:, :, 20:].any()


def test_a_stroke_takes_tissue_like_that_under_it() -> None:
    """A boundary between two tissues of which the AI knows nothing."""
    image = noise(4)
    image[:, 15:] += 60
    for side, rows in (((12, 14), slice(0, 15)), ((16, 18), slice(15, 30))):
        stroke = box((11, 13), side, (15, 20))
        won = corrected(Region(image, nothing(), EVEN, flat(0.45)), stroke, nothing())
        counted = won.sum(axis=(0, 2))
        assert counted[rows].sum() > 0.97 * counted.sum()


def test_a_stroke_takes_what_the_ai_half_believed_and_not_what_it_ruled_out() -> None:
    probability = np.full(SHAPE, 0.01, np.float32)
    probability[6:18, 8:22, 8:28] = 0.4
    mask = box((6, 18), (8, 22), (8, 14))
    probability[mask] = 0.9
    stroke = box((11, 13), (14, 16), (17, 19))
    won = corrected(Region(noise(5), mask, EVEN, probability), stroke, nothing())
    assert won[10:14, 13:17, 16:20].all()
    believed = probability > 0.3
    assert not (won & ~believed).any()
    assert (won & ~mask).sum() > 5 * stroke.sum()


def test_an_outside_stroke_takes_away_what_the_ai_doubted() -> None:
    mask = box((6, 18), (8, 22), (8, 28))
    probability = np.where(mask, 0.95, 0.02).astype(np.float32)
    probability[6:18, 8:22, 18:28] = 0.55
    stroke = box((11, 13), (14, 16), (23, 24))
    kept = corrected(Region(noise(6), mask, EVEN, probability), nothing(), stroke)
    lost = mask & ~kept
    assert lost.sum() > 5 * stroke.sum()
    assert lost[:, :, 18:].sum() > 0.95 * lost.sum()


def test_strokes_of_both_kinds_share_what_lies_between_them() -> None:
    shape = (9, 9, 31)
    inside, outside = box((4, 5), (4, 5), (10, 11), shape=shape), nothing(shape)
    outside[4, 4, 20] = True
    image = np.zeros(shape, np.float32)
    result = corrected(Region(image, nothing(shape), EVEN, flat(0.5, shape)), inside, outside, 20.0)
    assert result[4, 4, 6:15].all()
    assert not result[4, 4, 15:].any()


def test_a_change_hangs_together_with_its_stroke() -> None:
    probability = np.random.default_rng(7).uniform(0.05, 0.6, SHAPE).astype(np.float32)
    stroke = box((11, 13), (14, 16), (17, 19))
    won = corrected(Region(noise(7), nothing(), EVEN, probability), stroke, nothing())
    assert ndimage.label(won, np.ones((3, 3, 3)))[1] == 1


def test_the_intensity_scale_does_not_matter() -> None:
    """CT in Hounsfield units, MR from 0 to 1: the same change."""
    mask, stroke = box((8, 16), (8, 20), (8, 20)), box((11, 13), (20, 22), (11, 16))
    results = [
        corrected(Region(noise(8) * scale + shift, mask, EVEN, flat(0.4)), stroke, nothing())
        for scale, shift in ((1.0, 0.0), (30.0, -1000.0), (0.001, 0.0))
    ]
    for other in results[1:]:
        assert (other != results[0]).sum() <= 2  # a voxel on the very border may round otherwise


def test_probabilities_that_are_not_known_are_even_odds() -> None:
    mask, stroke = box((8, 16), (8, 20), (8, 20)), box((11, 13), (20, 22), (11, 16))
    results = [
        corrected(Region(noise(9), mask, EVEN, flat(value)), stroke, nothing())
        for value in (0.5, np.nan)
    ]
    np.testing.assert_array_equal(*results)


# --- distances ------------------------------------------------------------------------------------


def shortest_paths(seeds: Mask, costs: NDArray[np.float32], steps: NDArray[np.float64]) -> NDArray:
    """Dijkstra on the same 26 neighbours."""
    numbers = np.arange(seeds.size).reshape(seeds.shape)
    rows, columns, weights = [], [], []
    for offset in product((-1, 0, 1), repeat=3):
        if not any(offset):
            continue
        length = np.linalg.norm(np.array(offset) * steps)
        to = tuple(
            slice(max(o, 0), n + min(o, 0)) for o, n in zip(offset, seeds.shape, strict=True)
        )
        start = tuple(
            slice(max(-o, 0), n + min(-o, 0)) for o, n in zip(offset, seeds.shape, strict=True)
        )
        rows.append(numbers[start].ravel())
        columns.append(numbers[to].ravel())
        weights.append((length * costs[to]).ravel())
    size = seeds.size
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    graph = coo_matrix(entries, (size, size)).tocsr()
    found = dijkstra(graph, indices=numbers[seeds], min_only=True)
    return found.reshape(seeds.shape)


@pytest.mark.parametrize("spacing", [EVEN, (0.7, 1.1, 3.0)])
def test_sweeps_find_the_shortest_ways(spacing: tuple[float, float, float]) -> None:
    shape = (9, 13, 11)
    rng = np.random.default_rng(11)
    costs = rng.uniform(1, 6, (1, *shape)).astype(np.float32)
    seeds = rng.uniform(size=(1, *shape)) < 0.01
    found = correction._distances(seeds, costs, spacing)[0]
    expected = shortest_paths(seeds[0], costs[0], np.array(spacing[::-1]))
    assert (found >= expected - 1e-4).all(), "no way is shorter than the shortest"
    ratio = found[~seeds[0]] / expected[~seeds[0]]
    assert np.median(ratio) < 1.0001
    assert np.quantile(ratio, 0.99) < 1.05


# --- real images, speed, bad input ----------------------------------------------------------------


def test_a_stroke_mends_a_hippocampus(shared_data: Path) -> None:
    """The tail that a segmentation lost comes back, where an AI is in doubt; the image alone does no harm."""
    folder = shared_data / "Dataset004_Hippocampus"
    scan = read_volume(folder / "imagesTr" / "hippocampus_019_0000.nii.gz")
    truth = read_labelmap(folder / "labelsTr" / "hippocampus_019.nii.gz")[0].voxels > 0
    first = np.flatnonzero(truth.any(axis=(0, 2)))[0]
    mask = truth.copy()
    mask[:, : first + 8] = False
    blurred = ndimage.gaussian_filter(truth.astype(np.float32), 1.5)
    doubt = np.where(mask, np.maximum(blurred, 0.55), blurred * 0.5).astype(np.float32)
    depth = ndimage.distance_transform_edt((truth & ~mask)[:, first + 6])
    stroke = np.zeros_like(mask)
    stroke[:, first + 6] = depth >= 0.6 * depth.max()

    def dice(found: Mask) -> float:
        return 2 * (found & truth).sum() / (found.sum() + truth.sum())

    painted = dice(mask | stroke)
    results = {
        name: dice(corrected(Region(scan.voxels, mask, EVEN, known), stroke, nothing(mask.shape)))
        for name, known in (("with an AI", doubt), ("image alone", None))
    }
    assert results["with an AI"] > painted + 0.02
    assert results["image alone"] >= painted


@pytest.mark.parametrize("known", [True, False])
def test_a_million_voxels_take_less_than_half_a_second(known: bool) -> None:
    shape = (100, 100, 100)
    mask = box((30, 70), (30, 70), (30, 50), shape=shape)
    inside, outside = (box((48, 52), (48, 52), at, shape=shape) for at in ((52, 58), (30, 33)))
    region = Region(noise(12, shape), mask, EVEN, flat(0.4, shape) if known else None)
    times = []
    for _ in range(3):
        started = time.process_time()
        corrected(region, inside, outside)
        times.append(time.process_time() - started)
    assert min(times) < 0.5


@pytest.mark.parametrize("shape", [(1, 20, 20), (20, 1, 20), (2, 2, 2), (1, 1, 1)])
def test_thin_images_are_no_trouble(shape: tuple[int, int, int]) -> None:
    stroke = nothing(shape)
    stroke[0, 0, 0] = True
    for image in (np.zeros(shape, np.uint8), noise(13, shape)):
        result = corrected(Region(image, nothing(shape), EVEN, flat(0.5, shape)), stroke, ~stroke)
        np.testing.assert_array_equal(result, stroke)


def test_what_does_not_fit_is_refused() -> None:
    mask = nothing()
    with pytest.raises(InputError, match="different grids"):
        Region(noise(), nothing((3, 4, 5)), EVEN)
    with pytest.raises(InputError, match="different grids"):
        Region(noise(), mask, EVEN, flat(0.5, (3, 4, 5)))
    region = Region(noise(), mask, EVEN)
    with pytest.raises(InputError, match="do not lie on the grid"):
        corrected(region, nothing((3, 4, 5)), mask)
    for reach in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="above 0 mm"):
            corrected(region, mask, mask, reach)
    assert REACH_MM > 0
