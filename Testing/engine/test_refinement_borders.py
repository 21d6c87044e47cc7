"""Smoothing, snapping and level sets, against SciPy and SimpleITK on the whole volume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from images import DIRECTIONS
from medsegai.models.refinement import Refinement
from medsegai.refinements import Draft, apply_refinement, smoothing
from medsegai.request import Candidates
from medsegai.volume import Geometry, Volume
from refinement_cases import ball, candidates_of, draft_of, grid, image_of, noisy

WIDE = (16, 30, 42)
SPACING_KJI = (2.3, 1.1, 0.8)


# Smoothing


def smoothed_whole(voxels: NDArray[Any], sigma: float) -> NDArray[Any]:
    """The straightforward way: all indicators on the whole volume at once."""
    sigmas = [sigma / length for length in SPACING_KJI]
    fields = [
        ndimage.gaussian_filter((voxels == value).astype(np.float64), sigmas, mode="nearest")
        for value in range(int(voxels.max()) + 1)
    ]
    return np.argmax(fields, 0)


@pytest.mark.parametrize("sigma", [0.7, 1.5])
@pytest.mark.parametrize("place", ["straight", "oblique and mirrored"])
def test_without_offsets_smoothing_is_that_of_the_whole_volume(sigma: float, place: str) -> None:
    voxels = noisy(seed=2)
    settings = Refinement("smoothing", {"sigma_mm": sigma, "keep_volume": False})
    found = apply_refinement(draft_of(voxels, place), settings).labels
    expected = smoothed_whole(voxels, sigma)
    assert (expected != voxels).mean() > 0.02
    assert (found != expected).mean() < 2e-3  # the Gaussian ends at 3 instead of 4 sigmas


def test_bricks_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = noisy(seed=6)
    whole = apply_refinement(draft_of(voxels), Refinement("smoothing", {"sigma_mm": 1.5})).labels
    monkeypatch.setattr(smoothing, "BRICK", 5)
    small = apply_refinement(draft_of(voxels), Refinement("smoothing", {"sigma_mm": 1.5})).labels
    assert (whole != voxels).any()
    np.testing.assert_array_equal(small, whole)


@pytest.mark.parametrize("sigma", [0.7, 1.5])
def test_volumes_are_kept(sigma: float) -> None:
    voxels = noisy(seed=4, shape=WIDE)
    found = apply_refinement(draft_of(voxels), Refinement("smoothing", {"sigma_mm": sigma})).labels
    before, after = np.bincount(voxels.ravel()), np.bincount(found.ravel())
    loose = np.bincount(smoothed_whole(voxels, sigma).ravel(), minlength=5)
    assert np.abs(after - before)[1:].max() <= 0.003 * before[1:].min()
    assert np.abs(loose - before)[1:].max() > 0.02 * before[1:].min()


def faces(voxels: NDArray[Any]) -> int:
    return sum(int((np.diff(voxels, axis=axis) != 0).sum()) for axis in range(3))


def test_ragged_borders_become_smooth_and_no_gap_opens() -> None:
    geometry = grid("oblique", WIDE)
    left, right = ball(WIDE, geometry, 9.0, -6.0), ball(WIDE, geometry, 9.0, 6.0)
    clean = np.where(left, 1, np.where(right, 2, 0)).astype(np.uint8)
    rng = np.random.default_rng(0)
    ragged = clean.copy()
    for value, mask in ((1, left), (2, right), (0, ~(left | right))):
        near = ndimage.binary_dilation(mask) & (rng.random(WIDE) < 0.15)
        ragged[near] = value
    found = apply_refinement(draft_of(ragged), Refinement("smoothing", {"sigma_mm": 1.5})).labels
    assert faces(found) < 0.7 * faces(ragged)
    assert (found != clean).sum() < 0.5 * (ragged != clean).sum()
    inside = ndimage.binary_erosion(left | right, iterations=2)
    assert (found[inside] > 0).all()  # no gap between the two


# Snap


def shifted_pair() -> tuple[NDArray[np.uint8], NDArray[np.uint8], Candidates]:
    """Two halves; the prediction's border is one voxel off and in doubt there."""
    truth = np.ones(WIDE, np.uint8)
    truth[:, 14:] = 2
    predicted = np.ones(WIDE, np.uint8)
    predicted[:, 15:] = 2
    second = np.where(predicted == 1, 2, 1).astype(np.uint8)
    steps = np.zeros(WIDE, np.uint8)
    steps[:, 12:18] = 110
    known = np.where(steps > 0, second, 0).astype(np.uint8)
    return truth, predicted, Candidates(predicted, known, (255 - steps).astype(np.uint8), steps)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("place", ["straight", "oblique and mirrored"])
def test_a_border_snaps_to_the_edge_of_the_image(guided: bool, place: str) -> None:
    truth, predicted, candidates = shifted_pair()
    image = image_of(truth, place)
    draft = draft_of(predicted, place, image=image, candidates=candidates if guided else None)
    settings = Refinement("snap", {"prior": 0.02, "contrast": 5.0, "shell_mm": 2.5})
    found = apply_refinement(draft, settings).labels
    assert (found != truth).sum() < 0.05 * (predicted != truth).sum()


def test_where_the_model_is_certain_nothing_snaps() -> None:
    truth, predicted, candidates = shifted_pair()
    certain = Candidates(
        candidates.first,
        np.zeros_like(candidates.second),
        np.full_like(candidates.p_first, 255),
        np.zeros_like(candidates.p_second),
    )
    draft = draft_of(predicted, image=image_of(truth), candidates=certain)
    assert apply_refinement(draft, Refinement("snap", {"prior": 0.01})).voxels == 0


def walk_whole(draft: Draft, prior: float) -> NDArray[Any]:
    """Grady's linear system over every voxel of the volume, solved directly; two labels, all in doubt."""
    assert draft.image is not None
    assert draft.candidates is not None
    image, shape = draft.image.voxels.astype(np.float64), draft.image.voxels.shape
    number = np.arange(image.size).reshape(shape)
    rows, columns, apart, near = [], [], [], []
    for axis in range(3):
        a, b = (np.take(number, range(n, shape[axis] - 1 + n), axis).ravel() for n in (0, 1))
        rows.append(a)
        columns.append(b)
        apart.append((image.ravel()[a] - image.ravel()[b]) ** 2)
        near.append(np.full(len(a), (min(SPACING_KJI) / SPACING_KJI[axis]) ** 2))
    squared = np.concatenate(apart)
    ties = np.concatenate(near) * np.exp(-squared / squared.mean())
    pair = np.concatenate(rows), np.concatenate(columns)
    weights = scipy.sparse.coo_matrix((ties, pair), (image.size, image.size)).tocsr()
    weights = weights + weights.T
    laplacian = scipy.sparse.diags(np.asarray(weights.sum(1)).ravel() + prior) - weights
    first = draft.candidates.probability_of(1).ravel()
    likely = scipy.sparse.linalg.spsolve(laplacian.tocsc(), prior * first)
    return np.where(likely > 0.5, 1, 2).reshape(shape), np.abs(likely - 0.5).reshape(shape)


def test_the_walk_is_the_solution_of_the_linear_system() -> None:
    rng = np.random.default_rng(1)
    shape = (6, 8, 9)
    p_first = (0.5 + 0.3 * np.tanh(ndimage.gaussian_filter(rng.normal(size=shape), 1) * 4)).ravel()
    steps = np.round(255 * p_first).astype(np.uint8).reshape(shape)
    one = steps >= 128
    labels = np.where(one, 1, 2).astype(np.uint8)
    high, low = np.maximum(steps, 255 - steps), np.minimum(steps, 255 - steps)
    candidates = Candidates(labels, (3 - labels).astype(np.uint8), high, low)
    image = Volume(rng.normal(size=shape).astype(np.float32), grid("oblique", shape))
    draft = draft_of(labels, image=image, candidates=candidates)
    settings = Refinement("snap", {"shell_mm": 20.0, "doubt": 0.01, "prior": 0.3})
    found = apply_refinement(draft, settings).labels
    expected, clear = walk_whole(draft, 0.3)
    assert (expected != labels).any()
    np.testing.assert_array_equal(found[clear > 1e-3], expected[clear > 1e-3])


# Level sets


@pytest.mark.parametrize("method", ["geodesic", "threshold", "laplacian"])
@pytest.mark.parametrize("bright", [True, False])
@pytest.mark.parametrize("off_mm", [-1.0, 1.0])
def test_a_ball_finds_its_border_again(method: str, bright: bool, off_mm: float) -> None:
    geometry = grid("oblique and mirrored", WIDE)
    truth = ball(WIDE, geometry, 11.0)
    predicted = ball(WIDE, geometry, 11.0 + off_mm).astype(np.uint8)
    image = image_of((truth if bright else ~truth).astype(np.uint8), "oblique and mirrored")
    draft = draft_of(predicted, "oblique and mirrored", image=image)
    settings = Refinement("level_set", {"method": method, "move_mm": 2.5, "iterations": 80})
    found = apply_refinement(draft, settings).labels.astype(bool)
    assert (found ^ truth).sum() < 0.5 * (predicted.astype(bool) ^ truth).sum()


def test_a_border_moves_no_farther_than_it_may() -> None:
    voxels = ball(WIDE, grid("oblique", WIDE), 7.0).astype(np.uint8)
    image = image_of(ball(WIDE, grid("oblique", WIDE), 12.0).astype(np.uint8))
    settings = Refinement("level_set", {"method": "threshold", "iterations": 200, "spread": 20.0})
    for far in (0.9, 1.7):
        found = apply_refinement(
            draft_of(voxels, image=image), settings.with_options(move_mm=far)
        ).labels
        gained = (found == 1) & (voxels == 0)
        apart = ndimage.distance_transform_edt(voxels == 0, SPACING_KJI)
        assert gained.any()
        assert apart[gained].max() <= far + min(SPACING_KJI) / 2 + 1e-6


def test_two_structures_never_share_and_leave_no_gap() -> None:
    geometry = grid("oblique", WIDE)
    left, right = ball(WIDE, geometry, 8.0, -6.0), ball(WIDE, geometry, 8.0, 6.0)
    voxels = np.where(left, 1, np.where(right, 2, 0)).astype(np.uint8)
    draft = draft_of(voxels, image=image_of(voxels, noise=20.0))
    refined = apply_refinement(draft, Refinement("level_set"))
    middle = ndimage.binary_erosion(left | right, iterations=2)
    assert refined.voxels > 0
    assert (refined.labels[middle] > 0).all()


def whole_volume_contour(
    image: NDArray[Any], predicted: NDArray[Any], spacing: tuple[float, float, float]
) -> NDArray[np.bool_]:
    """The same level set called straight on whole images of SimpleITK, which stand straight: ITK takes directions
    of edges in the world for those of the grid."""
    half = min(spacing) / 2
    start = np.where(
        predicted,
        half - ndimage.distance_transform_edt(predicted, spacing),
        ndimage.distance_transform_edt(1 - predicted, spacing) - half,
    )
    sigmas, orders = [0.7 / length for length in spacing], np.eye(3, dtype=int)
    slopes = [
        ndimage.gaussian_filter(image, sigmas, orders[axis], mode="nearest") / spacing[axis]
        for axis in range(3)
    ]
    gradient = np.square(slopes).sum(0)
    feature = 1 / (1 + gradient / np.median(gradient[np.abs(start) <= 2.0]))
    contour = sitk.GeodesicActiveContourLevelSetImageFilter()
    contour.SetPropagationScaling(0.0)
    contour.SetCurvatureScaling(0.2)
    contour.SetAdvectionScaling(1.0)
    contour.SetNumberOfIterations(30)
    contour.SetMaximumRMSError(1e-3)
    images = [sitk.GetImageFromArray(array.astype(np.float32)) for array in (start, feature)]
    for item in images:
        item.SetSpacing(spacing[::-1])
    inside = sitk.GetArrayFromImage(contour.Execute(*images)) < 0
    return np.where(np.abs(start) <= 2.0, inside, predicted > 0)


@pytest.mark.parametrize("place", ["straight", "oblique and mirrored"])
def test_the_box_gives_what_the_whole_volume_gives(place: str) -> None:
    shape, spacing = (26, 40, 52), (1.4, 1.1, 0.8)
    geometry = Geometry.from_spacing(shape, spacing[::-1], (3, 4, 5), DIRECTIONS[place])
    rng = np.random.default_rng(0)
    grey = (80.0 * ball(shape, geometry, 9.0) + rng.normal(0, 5, shape)).astype(np.float32)
    predicted = ball(shape, geometry, 8.0).astype(np.uint8)
    draft = Draft(Volume(predicted, geometry), (), Volume(grey, geometry))
    settings = Refinement("level_set", {"move_mm": 2.0, "iterations": 30})
    found = apply_refinement(draft, settings).labels.astype(bool)
    expected = whole_volume_contour(grey, predicted, spacing)
    assert (expected != predicted).sum() > 100
    assert (found != expected).mean() < 1e-4


def test_a_certain_model_is_not_overruled() -> None:
    truth = ball(WIDE, grid("oblique", WIDE), 10.0).astype(np.uint8)
    predicted = ball(WIDE, grid("oblique", WIDE), 9.0).astype(np.uint8)
    sure = candidates_of(predicted, (1 - predicted).astype(np.uint8), 0.0)
    draft = draft_of(predicted, image=image_of(truth), candidates=sure)
    assert apply_refinement(draft, Refinement("level_set")).voxels == 0
    unsure = candidates_of(predicted, (1 - predicted).astype(np.uint8), 0.4)
    draft = draft_of(predicted, image=image_of(truth), candidates=unsure)
    assert apply_refinement(draft, Refinement("level_set")).voxels > 0
