"""From voxels to the network's input, step by step here and by nnU-Net's own preprocessor: the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from medsegai.preprocessing.nonzero import nonzero_box, nonzero_mask
from medsegai.preprocessing.normalisation import normalise
from medsegai.preprocessing.resampling import resample, resample_labels, resampled_shape
from nnunet_models import Made, dataset_json, nnunet_folders, plans_json, require_nnunet

PARTS_OF_RANGE = 5e-6


def theirs(
    made: Made,
    configuration: str,
    channels: NDArray[np.float32],
    spacing: tuple[float, float, float],
    labels: NDArray[Any] | None = None,
) -> tuple[NDArray[np.float32], NDArray[Any], list[list[int]]]:
    """Input of the network, labels and crop box from nnU-Net's DefaultPreprocessor, after `transpose`."""
    require_nnunet()
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(plans_json(made))
    data, seg, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        channels,
        None if labels is None else labels[None],
        {"spacing": list(spacing)},
        plans,
        plans.get_configuration(configuration),
        dataset_json(made),
    )
    return data, seg[0], properties["bbox_used_for_cropping"]


def ours(
    made: Made,
    configuration: str,
    channels: NDArray[np.float32],
    spacing: tuple[float, float, float],
    labels: NDArray[Any] | None = None,
) -> tuple[NDArray[np.float32], NDArray[Any] | None, list[list[int]]]:
    """The same by the functions under test, in nnU-Net's order: transpose, crop, normalise, resample."""
    plans = plans_json(made)
    settings = plans["configurations"][configuration]
    channels = channels.transpose(0, *(1 + axis for axis in made.transpose))
    old = [spacing[axis] for axis in made.transpose]
    new = [*old[: 3 - len(settings["spacing"])], *settings["spacing"]]
    box = nonzero_box(channels)
    channels = channels[:, *box]
    mask = nonzero_mask(channels)
    figures = plans["foreground_intensity_properties_per_channel"]
    normalised = np.stack(
        [
            normalise(channel, scheme, mask if masked else None, figures[str(number)])
            for number, (channel, scheme, masked) in enumerate(
                zip(
                    channels,
                    settings["normalization_schemes"],
                    settings["use_mask_for_norm"],
                    strict=True,
                )
            )
        ]
    )
    shape = resampled_shape(channels.shape[1:], old, new)
    data = resample(normalised, shape, old, new, settings["resampling_fn_data_kwargs"]).numpy()
    if labels is not None:
        labels = labels.transpose(made.transpose)[box].copy()
        labels[(labels == 0) & ~mask] = -1
        labels = resample_labels(labels, shape, old, new, settings["resampling_fn_seg_kwargs"])
    return data, labels, [[part.start, part.stop] for part in box]


def read(path: Path) -> NDArray[Any]:
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


@pytest.fixture(scope="module")
def examples(shared_data: Path) -> dict[str, NDArray[Any]]:
    """A CT, an MR and labels of the CT; and two channels of the MR that are zero around and inside the body."""
    folder = shared_data / "totalsegmentator-examples"
    found = {
        "ct": read(folder / "example_ct_sm.nii.gz").astype(np.float32)[None],
        "mr": read(folder / "example_mr_sm.nii.gz").astype(np.float32)[None],
        "labels": read(folder / "example_seg.nii.gz").astype(np.int16),
    }
    stripped = np.where(found["mr"] > np.percentile(found["mr"], 60), found["mr"], 0)
    stripped[:, :3] = stripped[:, :, :9] = stripped[:, :, :, -7:] = 0
    found["stripped"] = np.concatenate([stripped, np.roll(stripped, 3, 2)]) + 0
    return found


CASES: dict[str, tuple[str, Made, str, tuple[float, float, float]]] = {
    "CT": ("ct", Made(channels=("CT",), spacing=(2.0, 2.5, 2.5)), "3d_fullres", (3, 3, 3)),
    "CT, low resolution": ("ct", Made(channels=("CT",), spacing=(3, 2, 2)), "3d_lowres", (3, 3, 3)),
    "CT, thick planes": (
        "ct",
        Made(channels=("CT",), spacing=(9.0, 2.0, 2.0)),
        "3d_fullres",
        (10.0, 3.0, 3.0),
    ),
    "CT, plane by plane": ("ct", Made(channels=("CT",), spacing=(5, 2, 2.5)), "2d", (3, 3, 3)),
    "MR, as it is": ("mr", Made(spacing=(3, 3, 3)), "3d_fullres", (3, 3, 3)),
    "MR, axes exchanged": (
        "mr",
        Made(spacing=(3.3, 2.7, 2.0), transpose=(2, 0, 1)),
        "3d_fullres",
        (3.0, 2.5, 3.5),
    ),
    "two channels inside a mask": (
        "stripped",
        Made(channels=("MRI", "MRI"), mask_norm=True, spacing=(2.5, 2.5, 2.5)),
        "3d_fullres",
        (3, 3, 3),
    ),
    "two schemes, thick axis last": (
        "stripped",
        Made(channels=("rescale_to_0_1", "noNorm"), spacing=(1, 1, 4), transpose=(1, 2, 0)),
        "3d_fullres",
        (5.0, 1.2, 1.2),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_input_of_the_network_is_that_of_nnunet(
    case: str, examples: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    name, made, configuration, spacing = CASES[case]
    with nnunet_folders(tmp_path):
        wanted, _, wanted_box = theirs(made, configuration, examples[name].copy(), spacing)
    found, _, box = ours(made, configuration, examples[name], spacing)
    assert box == wanted_box
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype == np.float32
    assert np.abs(found - wanted).max() < PARTS_OF_RANGE * np.ptp(wanted)


def test_labels_of_the_previous_stage_are_those_of_nnunet(
    examples: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    made = Made(channels=("CT",), spacing=(2.0, 2.5, 2.2), labels={"background": 0, "rest": 1})
    image, labels = examples["ct"] + 1024, examples["labels"]
    image[:, :, :30] = image[:, :4] = 0
    with nnunet_folders(tmp_path):
        _, wanted, _ = theirs(made, "3d_cascade_fullres", image.copy(), (3, 3, 3), labels)
    _, found, _ = ours(made, "3d_fullres", image, (3, 3, 3), labels)
    assert found is not None
    assert (found == -1).any()
    np.testing.assert_array_equal(found, wanted)


def test_an_image_of_zeros_is_taken_whole_as_nnunet_takes_it(tmp_path: Path) -> None:
    image = np.zeros((1, 20, 30, 25), dtype=np.float32)
    made = Made(mask_norm=True)
    with nnunet_folders(tmp_path), np.errstate(all="ignore"), pytest.warns(RuntimeWarning):
        wanted, _, wanted_box = theirs(made, "3d_fullres", image.copy(), (1, 1, 1))
    found, _, box = ours(made, "3d_fullres", image, (1, 1, 1))
    assert box == wanted_box == [[0, 20], [0, 30], [0, 25]]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "voxels",
    [[(0, 0, 0)], [(6, 7, 8)], [(2, 3, 4)], [(1, 5, 2), (4, 0, 6)], [(3, 7, 0), (0, 3, 8)]],
)
def test_the_box_holds_what_is_not_zero_in_some_channel(voxels: list[tuple[int, int, int]]) -> None:
    channels = np.zeros((2, 7, 8, 9), dtype=np.float32)
    for number, voxel in enumerate(voxels):
        channels[number, *voxel] = -0.5
    where = np.argwhere(channels.any(axis=0))
    wanted = [slice(*pair) for pair in zip(where.min(0), where.max(0) + 1, strict=True)]
    assert list(nonzero_box(channels)) == wanted


@pytest.mark.parametrize("seed", range(6))
def test_holes_are_filled_as_scipy_fills_them(seed: int) -> None:
    generator = np.random.default_rng(seed)
    channels = (generator.random((2, 11, 12, 13)) < 0.12 + 0.06 * seed).astype(np.float32)
    wanted = ndimage.binary_fill_holes(channels.any(axis=0))
    found = nonzero_mask(channels)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, wanted)


def test_a_cavity_is_filled_and_a_tunnel_is_not() -> None:
    block = np.zeros((1, 9, 9, 9))
    block[:, 1:8, 1:8, 1:8] = 1
    block[:, 3:6, 3:6, 3:6] = 0
    assert nonzero_mask(block)[4, 4, 4]
    block[:, 4, 4, 5:] = 0
    assert not nonzero_mask(block)[4, 4, 4]
    assert nonzero_mask(np.ones((1, 2, 3, 4))).all()
    assert not nonzero_mask(np.zeros((1, 2, 3, 4))).any()
