"""The same labels as nnunetv2's own predictor, case by case, on real and made images.

Weights are random, so that boundaries are everywhere: the hardest case for agreement. nnunetv2 adds tiles up in
float16; it is compared as it comes, and, voxel for voxel, with its sums in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation

import nnunet_reference
from medsegai import engine
from medsegai.io import read_volume
from medsegai.request import SegmentationRequest
from nnunet_models import Made, make_model

OBLIQUE = Rotation.from_euler("xyz", [20, -15, 10], degrees=True).as_matrix()
SAGITTAL = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]])
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
COARSE = (1.3, 1.1, 1.2)


def made_image(
    path: Path,
    shape: tuple[int, int, int] = (26, 34, 32),
    spacing: tuple[float, float, float] = (0.9, 0.95, 1.4),
    directions: NDArray[Any] | None = None,
    *,
    seed: int = 0,
    air: int = 5,
) -> Path:
    """Smooth noise (z, y, x) with air at three faces, written as NIfTI."""
    voxels = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    voxels = (100 * voxels / voxels.std() + 200).astype(np.float32)
    voxels[:air] = voxels[:, :air] = 0
    voxels[:, :, shape[2] - air :] = 0
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetOrigin((3, -7, 11))
    image.SetDirection(np.asarray(np.eye(3) if directions is None else directions).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


def ours(images: Sequence[Path], results: Path, **options: Any) -> NDArray[Any]:
    request = SegmentationRequest(
        tuple(images), (str(results),), backend="torch", precision="fp32", **options
    )
    return engine.segment(request).labelmap.voxels


def agreement(first: NDArray[Any], second: NDArray[Any]) -> tuple[float, float]:
    """Of all voxels, and of those that either calls foreground."""
    same, foreground = first == second, (first > 0) | (second > 0)
    return float(same.mean()), float(same[foreground].mean())


def three_labelmaps(
    root: Path, made: Made, images: Sequence[Path], mirroring: bool = False
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Ours, nnunetv2's with sums in float32, and nnunetv2's as it comes."""
    results = make_model(root, made) / made.results_name(made.configurations[-1])
    found = ours(images, results, mirroring=mirroring)
    exact, usual = (
        nnunet_reference.predict(
            root, results, images, made.folds, mirroring=mirroring, exact=exact
        )
        for exact in (True, False)
    )
    return found, exact, usual


def check(root: Path, made: Made, images: Sequence[Path], mirroring: bool = False) -> None:
    found, exact, usual = three_labelmaps(root, made, images, mirroring)
    assert len(np.unique(exact)) > 1
    everywhere, foreground = agreement(found, exact)
    assert everywhere >= 0.9999
    assert foreground >= 0.999
    assert agreement(found, usual)[0] >= 0.99  # float16 sums on random weights


CASES: dict[str, tuple[Made, dict[str, Any]]] = {
    "2d": (Made(configurations=("2d",), spacing=COARSE), {}),
    "resampled": (Made(spacing=COARSE), {}),
    "thick planes in the model": (
        Made(spacing=(3.6, 1, 1), patch=(8, 24, 16), strides=((1, 1, 1), (1, 2, 2), (1, 2, 2))),
        {"shape": (14, 60, 50), "spacing": (0.8, 0.8, 4.0), "air": 2},
    ),
    "thick planes in the image": (
        Made(),
        {"shape": (12, 50, 46), "spacing": (0.9, 0.95, 3.8), "air": 2},
    ),
    "oblique, axes in another order": (
        Made(transpose=(1, 2, 0), spacing=COARSE),
        {"directions": OBLIQUE},
    ),
    "turned by the reader": (
        Made(reader="NibabelIOWithReorient", transpose=(2, 0, 1), spacing=COARSE),
        {"directions": SAGITTAL},
    ),
    "turned upside down by the reader": (
        Made(reader="NibabelIOWithReorient", spacing=COARSE),
        {"directions": np.diag([-1, 1, -1])},
    ),
    "turned from LPS by ITK": (Made(reader="SimpleITKIOWithReorient", spacing=COARSE), {}),
    "not resampled": (Made(resampling="no_resampling_hack"), {"shape": (24, 30, 28)}),
    "resampled by torch": (
        Made(resampling="resample_torch_fornnunet", spacing=COARSE),
        {"shape": (24, 30, 28)},
    ),
    "batch norm of a trainer": (Made(trainer="nnUNetTrainerBN"), {"shape": (24, 30, 28)}),
    "regions": (Made(labels=REGIONS, regions_class_order=(1, 2, 3), spacing=COARSE), {}),
    "image smaller than the patch": (Made(patch=(48, 64, 56)), {"spacing": (1, 1, 1)}),
    "residual encoder": (Made(network="ResidualEncoderUNet"), {}),
    "CT": (Made(channels=("CT",), spacing=COARSE), {}),
    "ignore label": (Made(labels={"background": 0, "one": 1, "two": 2, "ignore": 3}), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_labels_are_those_of_nnunet(name: str, tmp_path: Path) -> None:
    made, options = CASES[name]
    check(tmp_path, made, [made_image(tmp_path / "case_0000.nii.gz", **options)])


@pytest.mark.parametrize(
    ("ending", "channels", "options"),
    [
        (".png", ("R", "G", "B"), {}),
        (
            ".tif",
            ("grey",),
            {"dpi": (300, 600)},
        ),  # which says how large pixels are: nnU-Net does not look
    ],
)
def test_photographs(
    ending: str, channels: tuple[str, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    made = Made(
        configurations=("2d",),
        channels=channels,
        spacing=(999, 1, 1),
        patch=(1, 24, 32),
        reader="NaturalImage2DIO",
        file_ending=ending,
    )
    noise = np.random.default_rng(5).normal(size=(45, 70, len(channels)))
    pixels = ndimage.gaussian_filter(noise, (2, 2, 0))
    pixels = (60 * pixels / pixels.std() + 128).clip(0, 255).astype(np.uint8).squeeze()
    pixels[:6] = 0
    image = tmp_path / f"case_0000{ending}"
    Image.fromarray(pixels).save(image, **options)
    check(tmp_path, made, [image], mirroring=True)


@pytest.mark.parametrize(
    "trainer", ["nnUNetTrainer", "nnUNetTrainer_onlyMirror01", "nnUNetTrainerNoMirroring"]
)
def test_images_are_mirrored_as_the_trainer_allows(trainer: str, tmp_path: Path) -> None:
    made = Made(trainer=trainer, patch=(16, 16, 16))
    image = made_image(tmp_path / "case_0000.nii.gz", (20, 18, 22), (1, 1, 1), air=2)
    results = make_model(tmp_path, made) / made.results_name("3d_fullres")
    expected = nnunet_reference.predict(tmp_path, results, [image], mirroring=True)
    assert agreement(ours([image], results), expected)[0] >= 0.9999


def test_two_channels_inside_their_common_mask(tmp_path: Path) -> None:
    images = [
        made_image(tmp_path / f"case_000{number}.nii.gz", seed=number, air=5 + 2 * number)
        for number in range(2)
    ]
    check(tmp_path, Made(channels=("T1", "T2"), mask_norm=True), images)


def test_folds_and_mirroring_on_a_real_hippocampus(tmp_path: Path, shared_data: Path) -> None:
    image = sorted((shared_data / "Dataset004_Hippocampus" / "imagesTr").glob("*.nii.gz"))[3]
    check(tmp_path, Made(folds=(0, 1), patch=(24, 32, 24)), [image], mirroring=True)


def test_a_real_ct(tmp_path: Path, shared_data: Path) -> None:
    image = shared_data / "totalsegmentator-examples" / "example_ct_sm.nii.gz"
    check(tmp_path, Made(channels=("CT",), spacing=(3.3, 2.9, 3.1), patch=(32, 32, 32)), [image])


def test_a_cascade_runs_its_first_stage_itself(tmp_path: Path) -> None:
    made = Made(configurations=("3d_lowres", "3d_cascade_fullres"), folds=(0, 1))
    folder = make_model(tmp_path, made)
    image = made_image(tmp_path / "case_0000.nii.gz", (44, 50, 46), (0.9, 0.95, 0.8))
    first = nnunet_reference.predict(
        tmp_path, folder / made.results_name("3d_lowres"), [image], made.folds
    )
    results = folder / made.results_name("3d_cascade_fullres")
    expected = nnunet_reference.predict(tmp_path, results, [image], made.folds, stage_before=first)
    everywhere, foreground = agreement(ours([image], results, mirroring=False), expected)
    assert everywhere >= 0.9999
    assert foreground >= 0.999


@pytest.mark.parametrize("regions", [False, True])
def test_configurations_are_averaged_as_probabilities(tmp_path: Path, regions: bool) -> None:
    """As nnUNetv2_ensemble does with the probabilities that nnunetv2 saves."""
    made = Made(configurations=("2d", "3d_fullres"), spacing=COARSE)
    if regions:
        made = Made(
            configurations=made.configurations,
            spacing=COARSE,
            labels=REGIONS,
            regions_class_order=(1, 2, 3),
        )
    folder = make_model(tmp_path, made)
    image = made_image(tmp_path / "case_0000.nii.gz")
    saved = [
        nnunet_reference.predict(
            tmp_path, folder / made.results_name(name), [image], probabilities=True
        )
        for name in made.configurations
    ]
    mean = np.mean([values.astype(np.float32) for values in saved], axis=0)
    if regions:
        expected = np.zeros(mean.shape[1:], int)
        for region, value in enumerate(made.regions_class_order or ()):
            expected[mean[region] > 0.5] = value
    else:
        expected = mean.argmax(0)
    everywhere, foreground = agreement(ours([image], folder, mirroring=False), expected)
    assert everywhere >= 0.9999
    assert foreground >= 0.999


def test_probabilities_are_those_that_nnunet_saves(tmp_path: Path) -> None:
    made = Made(spacing=COARSE)
    results = make_model(tmp_path, made) / made.results_name("3d_fullres")
    image = made_image(tmp_path / "case_0000.nii.gz", directions=OBLIQUE)
    request = SegmentationRequest(
        (image,), (str(results),), backend="torch", precision="fp32", probabilities=True
    )
    found = engine.segment(request).probabilities
    expected = nnunet_reference.predict(
        tmp_path, results, [image], probabilities=True, mirroring=True
    )
    np.testing.assert_allclose(found, expected[1:], atol=2e-3)


def test_a_region_of_interest_has_the_labels_of_the_whole(tmp_path: Path) -> None:
    made = Made(spacing=COARSE)
    results = make_model(tmp_path, made) / made.results_name("3d_fullres")
    image = made_image(tmp_path / "case_0000.nii.gz", directions=OBLIQUE)
    whole = ours([image], results)
    geometry = read_volume(image).geometry
    corners = geometry.ijk_to_ras @ np.array([[20, 22, 18, 1], [26, 30, 24, 1]]).T
    region = tuple(np.stack([corners[:3].min(1), corners[:3].max(1)], 1).ravel().tolist())
    box = geometry.box_around(region)
    assert box is not None
    part = ours([image], results, region=region)
    np.testing.assert_array_equal(part[box], whole[box])
    assert part.any()


def test_uncertainty_changes_no_label_and_knows_where_folds_disagree(tmp_path: Path) -> None:
    made = Made(folds=(0, 1, 2), spacing=COARSE)
    results = make_model(tmp_path, made) / made.results_name("3d_fullres")
    image = made_image(tmp_path / "case_0000.nii.gz")
    request = SegmentationRequest(
        (image,), (str(results),), backend="torch", precision="fp32", uncertainty=True
    )
    apart = engine.segment(request)
    together = ours([image], results)
    assert (apart.labelmap.voxels == together).mean() > 0.9999
    folds = [ours([image], results, members=(f"fold_{number}",)) for number in range(3)]
    for measures in apart.structures:
        masks = [fold == measures.label.value for fold in folds]
        expected = np.logical_and.reduce(masks).sum() / np.logical_or.reduce(masks).sum()
        assert measures.iou == pytest.approx(expected, abs=0.06)  # native grid against the output's
