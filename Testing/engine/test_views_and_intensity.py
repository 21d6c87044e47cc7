"""Slices of the three views against the original's transposes, and the scaling of intensities."""

import numpy as np
import pytest

from medsegai.preprocessing.intensity import scale_intensity
from medsegai.preprocessing.views import VIEWS, thick_slices

TRANSPOSES = {"coronal": (2, 0, 1), "axial": (1, 2, 0), "sagittal": (0, 1, 2)}
"""Of the released code, on the conformed file's (x, y, z)."""


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_stacks_are_those_of_the_released_code(name: str) -> None:
    conformed = np.random.default_rng(0).random((4, 5, 6))
    volume = conformed.transpose(2, 1, 0)
    expected = conformed.transpose(TRANSPOSES[name])
    assert np.array_equal(VIEWS[name].stack(volume), expected)
    assert np.array_equal(expected.transpose(VIEWS[name].back), volume)


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_leading_axes_stay_in_front(name: str) -> None:
    probabilities = np.random.default_rng(1).random((3, 4, 5, 6))
    stack = VIEWS[name].stack(probabilities)
    assert np.array_equal(stack[2], VIEWS[name].stack(probabilities[2]))
    assert np.array_equal(
        stack.transpose(0, *(1 + axis for axis in VIEWS[name].back)), probabilities
    )


def test_axial_slices_lie_across_the_body_axis() -> None:
    """j runs to Inferior: the first axial slice is the top, its columns run left, its rows forward."""
    volume = np.zeros((4, 5, 6))
    volume[3, 0, 5] = 1.0
    assert np.argwhere(VIEWS["axial"].stack(volume)).tolist() == [[0, 3, 5]]


def test_thick_slices_repeat_the_edge() -> None:
    stack = np.arange(5)[:, None, None] * np.ones((5, 2, 3))
    thick = thick_slices(stack, [0, 2, 4], 5)
    assert thick.shape == (3, 5, 2, 3)
    assert thick[:, :, 0, 0].tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [2, 3, 4, 4, 4]]
    assert np.array_equal(thick_slices(stack, [1, 3], 1)[:, 0], stack[[1, 3]])
    with pytest.raises(ValueError, match="odd number"):
        thick_slices(stack, [0], 2)


def test_minmax_is_the_original_scaling() -> None:
    voxels = np.array([[-10, 0], [30, 40]], dtype=np.int16)
    scaled = scale_intensity(voxels, "minmax")
    assert scaled.dtype == np.float32
    assert scaled.ravel().tolist() == pytest.approx([0.0, 0.2, 0.8, 1.0])


def test_conform_scaling_rounds_to_eight_bits_and_clips_the_brightest_thousandth() -> None:
    eight_bits = np.array([0.0, 10.4, 10.6, 255.0])
    assert scale_intensity(eight_bits, "conform").tolist() == pytest.approx(
        [0, 10 / 255, 11 / 255, 1]
    )
    voxels = np.concatenate((np.zeros(50000), np.linspace(1, 2000, 9995), np.full(5, 90000)))
    scaled = scale_intensity(voxels, "conform")
    assert scaled[50000 + 9980] == pytest.approx(1.0, abs=0.01)
    assert np.unique(scaled * 255).tolist() == pytest.approx(
        np.unique(np.rint(scaled * 255)).tolist(), abs=1e-3
    )


def head_like(air: int, brightest: float = 100.0) -> np.ndarray:
    """``air`` empty voxels, then a head from 20 to 100, then ten voxels of a very bright vessel."""
    head = np.linspace(20.0, 100.0, 20000)
    return np.concatenate((np.zeros(air), head, np.full(10, brightest)))


def test_percentile_scaling_ignores_a_few_bright_voxels() -> None:
    plain, vessel = (scale_intensity(head_like(30000, bright)) for bright in (100.0, 5000.0))
    assert np.abs(plain - vessel)[:50000].max() < 0.01
    assert vessel.min() == 0.0
    assert vessel.max() == 1.0


def test_percentile_scaling_ignores_how_much_air_there_is() -> None:
    little, much = (scale_intensity(head_like(air))[air:] for air in (20000, 200000))
    assert np.abs(little - much).max() < 0.03


def test_scaling_does_not_depend_on_units_and_leaves_the_input_alone() -> None:
    voxels = head_like(20000).astype(np.float32)
    before = voxels.copy()
    assert np.allclose(scale_intensity(voxels), scale_intensity(7.0 * voxels + 300.0), atol=1e-5)
    assert np.array_equal(voxels, before)


@pytest.mark.parametrize("mode", ["minmax", "conform", "percentile"])
def test_a_constant_volume_becomes_zeros(mode: str) -> None:
    assert not scale_intensity(np.full((3, 3, 3), 7), mode).any()


def test_almost_empty_volumes_do_not_fail() -> None:
    voxels = np.zeros((8, 8, 8))
    voxels[4, 4, 4] = 3.0
    scaled = scale_intensity(voxels)
    assert np.isfinite(scaled).all()
    assert scaled.max() <= 1.0


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="'z-score'"):
        scale_intensity(np.zeros(3), "z-score")
