"""Images turned as nnunetv2's own readers turn them, in every orientation: the same array, the same place."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from medsegai.families.nnunet.preparation import reoriented
from medsegai.io import read_volume
from nnunet_models import require_nnunet

SHAPE, SPACING = (5, 6, 7), (0.8, 1.1, 2.5)
RIGHT_ANGLES = [
    np.eye(3)[list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
    if np.linalg.det(np.eye(3)[list(order)] * signs) > 0
]
OBLIQUE = [
    rotation.as_matrix() for rotation in Rotation.random(24, random_state=np.random.RandomState(3))
]
READERS = {
    "SimpleITKIO": "simpleitk_reader_writer",
    "SimpleITKIOWithReorient": "simpleitk_reader_writer",
    "NibabelIO": "nibabel_reader_writer",
    "NibabelIOWithReorient": "nibabel_reader_writer",
}


def image(folder: Path, directions: NDArray[Any]) -> Path:
    """Voxels that all differ; `directions` are ITK's, so that the unit matrix is LPS."""
    picture = sitk.GetImageFromArray(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE))
    picture.SetSpacing(SPACING)
    picture.SetDirection(np.asarray(directions, float).ravel().tolist())
    picture.SetOrigin((3.0, -5.0, 11.0))
    sitk.WriteImage(picture, str(folder / "case_0000.nii.gz"))
    return folder / "case_0000.nii.gz"


def reader(name: str) -> Any:
    require_nnunet()
    module = __import__(f"nnunetv2.imageio.{READERS[name]}", fromlist=[name])
    return getattr(module, name)()


@pytest.mark.parametrize("directions", [*RIGHT_ANGLES, *OBLIQUE])
@pytest.mark.parametrize("name", READERS)
def test_the_array_is_that_of_nnunets_reader(
    name: str, directions: NDArray[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = image(tmp_path, directions)
    expected, properties = reader(name).read_images((str(path),))
    found = reoriented([read_volume(path)], name, (0, 1, 2))
    np.testing.assert_array_equal(found.voxels, expected)
    np.testing.assert_allclose(found.geometry.spacing_mm[::-1], properties["spacing"], rtol=1e-5)


@pytest.mark.parametrize("directions", [*RIGHT_ANGLES, *OBLIQUE])
@pytest.mark.parametrize("name", READERS)
def test_every_voxel_keeps_its_place_in_the_world(
    name: str, directions: NDArray[Any], tmp_path: Path
) -> None:
    scan = read_volume(image(tmp_path, directions))
    found = reoriented([scan], name, (0, 1, 2))
    for value in (0.0, 17.0, scan.voxels.max()):
        before, after = (
            geometry.ijk_to_ras @ [*np.argwhere(voxels == value)[0][::-1], 1]
            for geometry, voxels in (
                (scan.geometry, scan.voxels),
                (found.geometry, found.voxels[0]),
            )
        )
        np.testing.assert_allclose(after, before, atol=1e-3)
