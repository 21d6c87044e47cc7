"""Intensities against nnU-Net's own classes, on real images and on awkward made ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from medsegai.errors import InputError, ModelError
from medsegai.preprocessing.normalisation import SCHEMES, normalise
from nnunet_models import require_nnunet

FIGURES = {"mean": 97.3, "std": 131.7, "percentile_00_5": -958.0, "percentile_99_5": 270.5}


def theirs(
    voxels: NDArray[np.float32], scheme: str, mask: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """What nnU-Net computes: it writes the mask as a label map that is -1 outside."""
    require_nnunet()
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes

    scheme_class = getattr(schemes, scheme)
    seg = None if mask is None else np.where(mask, 0, -1)
    return np.asarray(scheme_class(mask is not None, FIGURES).run(voxels.copy(), seg))


@pytest.fixture(scope="module")
def ct(shared_data: Path) -> NDArray[np.float32]:
    return read(shared_data / "totalsegmentator-examples" / "example_ct_sm.nii.gz")


@pytest.fixture(scope="module")
def mr(shared_data: Path) -> NDArray[np.float32]:
    case = sorted((shared_data / "Dataset004_Hippocampus" / "imagesTr").glob("*.nii.gz"))[0]
    return read(case)


def read(path: Path) -> NDArray[np.float32]:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(np.float32)


def test_every_scheme_of_nnunet_is_known() -> None:
    require_nnunet()
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes

    named = {name for name in dir(schemes) if name.endswith("Normalization")}
    assert named - {"ImageNormalization"} == set(SCHEMES)


@pytest.mark.parametrize(
    "scheme", ["CTNormalization", "NoNormalization", "RescaleTo01Normalization"]
)
def test_a_real_ct_is_bit_equal(scheme: str, ct: NDArray[np.float32]) -> None:
    before = ct.copy()
    result = normalise(ct, scheme, None, FIGURES)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, theirs(ct, scheme, None))
    np.testing.assert_array_equal(ct, before)


def test_colours_are_bit_equal() -> None:
    voxels = np.random.default_rng(0).integers(0, 256, (5, 6, 7)).astype(np.float32)
    np.testing.assert_array_equal(
        normalise(voxels, "RGBTo01Normalization"), theirs(voxels, "RGBTo01Normalization", None)
    )


@pytest.mark.parametrize("layout", ["whole", "cropped", "turned"])
def test_a_z_score_of_a_real_mr_agrees_to_rounding(layout: str, mr: NDArray[np.float32]) -> None:
    voxels = {"whole": mr, "cropped": mr[3:-4, 5:, :-6], "turned": mr.transpose(2, 0, 1)}[layout]
    result = normalise(voxels, "ZScoreNormalization")
    np.testing.assert_allclose(result, theirs(voxels, "ZScoreNormalization", None), atol=2e-6)
    assert abs(result.mean(dtype=np.float64)) < 1e-6
    assert abs(result.std(dtype=np.float64) - 1) < 1e-6


def test_a_masked_z_score_measures_and_changes_the_mask_alone(mr: NDArray[np.float32]) -> None:
    mask = mr > np.median(mr)
    result = normalise(mr, "ZScoreNormalization", mask)
    np.testing.assert_allclose(result, theirs(mr, "ZScoreNormalization", mask), atol=2e-6)
    np.testing.assert_array_equal(result[~mask], mr[~mask])


def test_the_mean_of_a_large_offset_stays_exact() -> None:
    """A sum in float32 would lose what varies here; the mean must be found to the spacing of float32."""
    voxels = np.random.default_rng(1).normal(30_000, 1, (40, 300, 200)).astype(np.float32)
    result = normalise(voxels, "ZScoreNormalization")
    assert abs(result.mean(dtype=np.float64)) < 2e-3


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_image_stays_finite(scheme: str, value: float) -> None:
    voxels = np.full((3, 4, 5), value, dtype=np.float32)
    result = normalise(voxels, scheme, None, FIGURES)
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(result, theirs(voxels, scheme, None))


@pytest.mark.parametrize("scheme", ["ZScoreNormalization", "RescaleTo01Normalization"])
@pytest.mark.parametrize("contrast", [1e-6, 1e-8, 1e-12])
def test_a_faint_image_is_stretched_as_far_as_nnunet_does(scheme: str, contrast: float) -> None:
    voxels = np.random.default_rng(2).random((4, 5, 6)).astype(np.float32) * np.float32(contrast)
    np.testing.assert_allclose(
        normalise(voxels, scheme), theirs(voxels, scheme, None), rtol=1e-5, atol=1e-6
    )


def test_an_empty_mask_changes_nothing() -> None:
    voxels = np.zeros((3, 4, 5), dtype=np.float32)
    result = normalise(voxels, "ZScoreNormalization", np.zeros(voxels.shape, dtype=bool))
    np.testing.assert_array_equal(result, voxels)


def test_an_unknown_scheme_is_named_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"'MyNormalization'.*CTNormalization, NoNorm"):
        normalise(np.zeros((2, 2, 2), dtype=np.float32), "MyNormalization")


@pytest.mark.parametrize("left_out", sorted(FIGURES))
def test_missing_figures_of_ct_are_named(left_out: str) -> None:
    figures: dict[str, Any] = {name: FIGURES[name] for name in FIGURES if name != left_out}
    with pytest.raises(ModelError, match=f"do not give {left_out}"):
        normalise(np.zeros((2, 2, 2), dtype=np.float32), "CTNormalization", None, figures)


@pytest.mark.parametrize("value", [-1.0, 256.0])
def test_what_is_no_colour_is_refused(value: float) -> None:
    voxels = np.array([[[0.0, value, 255.0]]], dtype=np.float32)
    with pytest.raises(InputError, match=r"colour channels.*0 to 255"):
        normalise(voxels, "RGBTo01Normalization")
