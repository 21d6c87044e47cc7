"""Lengths that a header gives in another unit than mm: put right where ITK does so too, else refused."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import images
from medsegai.errors import InputError
from medsegai.io import read_labelmap, read_volume, write_segmentation
from medsegai.io.itk import to_sitk
from medsegai.labels import Label

SCAN = images.numbered(images.geometry("oblique"))
OTHERS = (
    "um",
    "µm",
    "microns",
    "micrometer",
    "nm",
    "cm",
    "Centimeters",
    "m",
    "metres",
    "in",
    "inches",
)
MM = ("mm", "millimeters", "", "???")

FIELDS = {
    "a.nrrd": '\nspace units: "{0}" "{0}" "{0}"',
    "b.nrrd": '\nunits: "{0}" "{0}" "{0}"',
    "a.mha": "\nDistanceUnits = {0}",
}


def with_unit(folder: Path, name: str, unit: str) -> Path:
    """A scan by SimpleITK, with a line about the unit in its header."""
    path = folder / name
    sitk.WriteImage(to_sitk(SCAN), str(path), useCompression=False)
    content = path.read_bytes()
    if name == "b.nrrd":  # which gives spacings and no directions
        content = re.sub(rb"\nspace (directions|origin): .*", b"", content)
        content = re.sub(rb"\nspace: .*", b"\nspacings: 0.9 1.3 2.1", content)
    after = b"\nDimSize = " if name.endswith("mha") else b"\nsizes: "
    assert content.count(after) == 1
    path.write_bytes(content.replace(after, FIELDS[name].format(unit).encode() + after))
    return path


@pytest.mark.parametrize("unit", OTHERS)
@pytest.mark.parametrize("name", FIELDS)
def test_headers_in_another_unit_are_refused(tmp_path: Path, name: str, unit: str) -> None:
    with pytest.raises(InputError, match=rf"has its lengths in {unit.lower()}, which"):
        read_volume(with_unit(tmp_path, name, unit))


@pytest.mark.parametrize("unit", MM)
@pytest.mark.parametrize("name", FIELDS)
def test_headers_in_mm_are_read(tmp_path: Path, name: str, unit: str) -> None:
    found = read_volume(with_unit(tmp_path, name, unit))
    np.testing.assert_array_equal(found.voxels, SCAN.voxels)
    np.testing.assert_allclose(found.geometry.spacing_mm, SCAN.geometry.spacing_mm)


def test_a_segmentation_in_another_unit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.seg.nrrd"
    labels = (Label(1, "Part", (9, 99, 199)),)
    write_segmentation(path, images.blobs(SCAN.geometry, (1,)), labels)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\nsizes: ", b'\nspace units: "um" "um" "um"\nsizes: ', 1))
    with pytest.raises(InputError, match="has its lengths in um"):
        read_labelmap(path)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e3), ("mm", 1.0), ("micron", 1e-3)])
@pytest.mark.parametrize("form", ["sform", "qform", "none"])
def test_units_of_nifti_are_put_right_as_by_itk(
    tmp_path: Path, unit: str, factor: float, form: str
) -> None:
    path = tmp_path / "a.nii.gz"
    matrix = SCAN.geometry.ijk_to_ras.copy()
    matrix[:3] /= factor
    image = nibabel.Nifti1Image(SCAN.voxels.T, None if form == "none" else matrix)
    image.header.set_zooms(np.linalg.norm(matrix[:3, :3], axis=0))
    if form != "none":
        image.set_sform(matrix if form == "sform" else None, code=int(form == "sform"))
        image.set_qform(matrix if form == "qform" else None, code=int(form == "qform"))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    found = read_volume(path)
    by_itk = sitk.ReadImage(str(path))
    np.testing.assert_allclose(found.geometry.spacing_mm, by_itk.GetSpacing(), rtol=1e-4)
    np.testing.assert_allclose(found.geometry.spacing_mm, SCAN.geometry.spacing_mm, rtol=1e-4)
    if form != "none":
        assert found.geometry.matches(SCAN.geometry, 0.01)
