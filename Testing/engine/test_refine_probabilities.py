"""`medsegai refine --probabilities` does what the refinements of the job itself do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import tiny_quicknat
from images import DIRECTIONS
from medsegai.cli import main
from medsegai.engine import segment
from medsegai.errors import GeometryError, InputError
from medsegai.io import read_candidates, write_probabilities, write_segmentation, write_volume
from medsegai.labels import Label
from medsegai.request import Candidates, SegmentationRequest, SegmentationResult
from medsegai.volume import Geometry, Volume
from nnunet_models import Made, make_model
from refinement_cases import ball_scan
from test_nnunet_parity import COARSE, REGIONS, made_image

ONE, TWO, THREE = (
    Label(1, "One", (250, 9, 9)),
    Label(2, "Two", (9, 250, 9)),
    Label(300, "Three", (9, 9, 250)),
)
GRID = Geometry.from_spacing((3, 4, 5), (0.8, 1.1, 2.3), (3, 4, 5), DIRECTIONS["oblique"])


@pytest.fixture(scope="module")
def scan() -> Volume:
    return ball_scan()


def run(model: Path, scan: Volume | Path, **options: Any) -> SegmentationResult:
    fixed: dict[str, Any] = {"device": "cpu", "backend": "torch", "precision": "fp32"}
    fixed |= {"refine": False, "mirroring": False, "candidates": True}
    return segment(SegmentationRequest((scan,), (str(model),), **fixed | options))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_quicknat.write_model(folder)
    return folder


@pytest.fixture(scope="module")
def raw(model: Path, scan: Volume) -> SegmentationResult:
    return run(model, scan, probabilities=True)


@pytest.fixture(scope="module")
def files(
    raw: SegmentationResult, scan: Volume, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("case")
    paths = {name: folder / f"{name}.nii.gz" for name in ("segmentation", "scan", "probabilities")}
    paths["segmentation"] = folder / "segmentation.seg.nrrd"
    write_segmentation(paths["segmentation"], raw.labelmap, raw.labels)
    write_volume(paths["scan"], scan)
    write_probabilities(paths["probabilities"], raw.probabilities, scan.geometry, raw.labels)
    return paths


def close_to(found: Candidates, expected: Candidates) -> None:
    """Probabilities to one step of 255; another structure only where two are within two steps alike."""
    for name in ("p_first", "p_second"):
        off = np.abs(getattr(found, name).astype(int) - getattr(expected, name))
        assert off.max() <= 1
    same = (found.first == expected.first) & (found.second == expected.second)
    assert same.mean() > 0.98
    swapped = (found.first == expected.second) & (found.second == expected.first)
    alike = np.abs(found.p_first.astype(int) - found.p_second) <= 2
    third = ~same & ~(swapped & alike)
    assert third.mean() < 0.02


def test_the_candidates_of_a_file_are_those_of_the_job(
    raw: SegmentationResult, files: dict[str, Path]
) -> None:
    assert raw.candidates is not None
    found = read_candidates(files["probabilities"], raw.labelmap, raw.labels)
    assert len(np.unique(found.second[found.p_second > 0])) >= 3
    close_to(found, raw.candidates)


def test_the_candidates_of_regions_are_those_of_the_job(tmp_path: Path) -> None:
    made = Made(labels=REGIONS, regions_class_order=(1, 2, 3), spacing=COARSE)
    results = make_model(tmp_path, made) / made.results_name("3d_fullres")
    raw = run(results, made_image(tmp_path / "case_0000.nii.gz"), probabilities=True)
    assert raw.candidates is not None
    assert raw.probabilities.astype(np.float32).sum(0).max() > 1.1
    path = tmp_path / "probabilities.nii"
    write_probabilities(path, raw.probabilities, raw.labelmap.geometry, raw.labels)
    found = read_candidates(path, raw.labelmap, raw.labels)
    assert set(np.unique(found.second[found.p_second > 0])) == {0, 1, 2, 3}
    close_to(found, raw.candidates)


@pytest.mark.parametrize(
    "text",
    [
        "islands:smallest_ml=0.5;connectivity=6",
        "holes:joined=yes",
        "smoothing:sigma_mm=2",
        "snap:shell_mm=3",
        "level_set:move_mm=3",
        "islands:keep=1,snap",
    ],
)
def test_refining_afterwards_is_refining_in_the_job(
    text: str,
    model: Path,
    scan: Volume,
    raw: SegmentationResult,
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    texts = tuple(text.split(","))
    expected = run(model, scan, refinements=texts).labelmap.voxels
    changed = expected != raw.labelmap.voxels
    found = {}
    for name in ("with", "without"):
        out = tmp_path / f"{name}.nii.gz"
        words = ["refine", files["segmentation"], "--image", files["scan"], "-o", out, "-q"]
        words += ["--refinement", ",".join(texts)]
        words += ["--probabilities", files["probabilities"]] if name == "with" else []
        assert main([str(word) for word in words]) == 0
        found[name] = np.asarray(nibabel.load(out).dataobj).T
    off = found["with"] != expected
    assert off.sum() <= 0.02 * changed.sum()
    if "smoothing" in text:
        assert not off.any()
    else:
        assert (found["without"] != expected).sum() > 5 * off.sum()


# Mistakes


def probabilities_of(*shares: float) -> np.ndarray:
    return np.stack([np.full(GRID.shape, share, np.float16) for share in shares])


def labelmap() -> Volume:
    return Volume(np.ones(GRID.shape, np.uint16), GRID, "a.seg.nrrd")


def test_structures_are_found_by_name_and_then_by_value(tmp_path: Path) -> None:
    path = tmp_path / "p.nii.gz"
    write_probabilities(path, probabilities_of(0.6, 0.3, 0.1), GRID, (ONE, TWO, THREE))
    renumbered = (dataclasses.replace(TWO, value=1), dataclasses.replace(ONE, value=7))
    found = read_candidates(path, labelmap(), renumbered)
    assert (found.first == 7).all()
    assert (found.second == 1).all()
    assert found.first.dtype == np.uint16
    np.testing.assert_array_equal(found.p_first, 153)
    unnamed = tuple(Label(value, f"Label {value}", (9, 9, 9)) for value in (1, 2))
    found = read_candidates(path, labelmap(), unnamed)
    assert (found.first == 1).all()
    assert (found.second == 2).all()


def test_what_is_not_known_to_the_model_stays_out(tmp_path: Path) -> None:
    """The background has the rest, and counts as a candidate."""
    path = tmp_path / "p.nii.gz"
    write_probabilities(path, probabilities_of(0.25, 0.05), GRID, (ONE, TWO))
    found = read_candidates(path, labelmap(), (ONE, TWO, THREE))
    assert (found.first == 0).all()
    assert (found.second == 1).all()
    np.testing.assert_array_equal(found.p_second, 64)


def test_one_structure_alone_is_a_3d_image(tmp_path: Path) -> None:
    path = tmp_path / "p.nii.gz"
    write_probabilities(path, probabilities_of(0.8), GRID, (ONE,))
    found = read_candidates(path, labelmap(), (ONE,))
    assert (found.first == 1).all()
    assert not found.second.any()
    np.testing.assert_array_equal(found.p_second, 51)


def test_mistakes_are_told_once_and_clearly(tmp_path: Path) -> None:
    labels, path = (ONE, TWO), tmp_path / "p.nii.gz"
    write_probabilities(path, probabilities_of(0.6, 0.3), GRID, labels)
    elsewhere = Volume(labelmap().voxels, GRID.flipped(1))
    with pytest.raises(GeometryError, match=r"p\.nii\.gz .* does not lie on the grid of the segm"):
        read_candidates(path, elsewhere, labels)
    other = (ONE, dataclasses.replace(TWO, name="Liver"))
    with pytest.raises(InputError, match="label 2 is 'Two', but 'Liver' in the segmentation"):
        read_candidates(path, labelmap(), other)
    image: Any = nibabel.load(path)
    cut = nibabel.Nifti1Image(np.asarray(image.dataobj)[..., :1], image.affine, image.header)
    nibabel.save(cut, tmp_path / "cut.nii.gz")
    with pytest.raises(InputError, match="names 2 structures, but holds 1 volumes"):
        read_candidates(tmp_path / "cut.nii.gz", labelmap(), labels)
    nibabel.save(nibabel.Nifti1Image(np.ones((5, 4, 3, 2)), image.affine), tmp_path / "bare.nii")
    with pytest.raises(InputError, match="does not name its structures"):
        read_candidates(tmp_path / "bare.nii", labelmap(), labels)
    write_probabilities(path, probabilities_of(0.6, 0.3), GRID, labels)
    (tmp_path / "half.nii.gz").write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="cannot be read as a NIfTI image"):
        read_candidates(tmp_path / "half.nii.gz", labelmap(), labels)
    grey = nibabel.Nifti1Image(np.full((5, 4, 3, 2), 7.0), image.affine, image.header)
    grey.header.set_data_dtype(np.float32)
    grey.header.set_slope_inter(1, 0)
    nibabel.save(grey, tmp_path / "grey.nii")
    with pytest.raises(InputError, match="values from 7 to 7, which are not probabilities"):
        read_candidates(tmp_path / "grey.nii", labelmap(), labels)


def test_the_command_says_what_is_wrong(
    tmp_path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.seg.nrrd"
    words = ["refine", files["segmentation"], "--refinement", "islands", "-o", out]
    small = tmp_path / "small.nii.gz"
    write_probabilities(small, probabilities_of(0.6, 0.3), GRID, (ONE, TWO))
    for probabilities, code in ((small, 3), (tmp_path / "none.nii.gz", 3), (files["scan"], 3)):
        assert main([str(word) for word in [*words, "--probabilities", probabilities]]) == code
        assert capsys.readouterr().err.count("\n") <= 2
    used = [*words[:-1], files["probabilities"], "--probabilities", files["probabilities"]]
    assert main([str(word) for word in [*used, "--overwrite"]]) == 2
    assert not out.exists()
    assert json.loads(nibabel.load(small).header.extensions[0].text)[1]["name"] == "Two"
