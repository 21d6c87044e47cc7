"""Slides and radiographs from the command line to segments, tables and pictures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import patch_models
import slide_files
from medsegai.cli import main
from medsegai.engine import segment
from medsegai.io import read_labelmap
from medsegai.labels import Label
from medsegai.measurements.places import suspicious_places
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Geometry, Volume

SIDE = 1536
TISSUE = (192, 192, 1408, 1408)
TUMOURS = ((320, 320, 832, 832), (960, 960, 1280, 1280))
"""Boxes (top, left, bottom, right) in pixels of half a micrometre."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patch_models.trained(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = patch_models.slide_pixels(SIDE, TISSUE, TUMOURS[0])
    top, left, bottom, right = TUMOURS[1]
    pixels[top:bottom, left:right] = patch_models.stain(
        patch_models.VIOLET, bottom - top, right - left, 5
    )
    return slide_files.write_pyramid(
        tmp_path_factory.mktemp("slide") / "slide.ome.tif", pixels, spacing_um=0.5, ome=True
    )


def test_a_slide_becomes_segments_and_a_table_of_places(
    model: Path, slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        name: tmp_path / name
        for name in ("a.seg.nrrd", "places.csv", "a.png", "doubt.nrrd", "p.nii.gz", "a.json")
    }
    arguments = ["segment", str(slide), "--model", str(model), "-o", str(files["a.seg.nrrd"])]
    arguments += ["--places", str(files["places.csv"]), "--preview", str(files["a.png"])]
    arguments += ["--uncertainty", str(files["doubt.nrrd"]), "--report", str(files["a.json"])]
    arguments += ["--save-probabilities", str(files["p.nii.gz"]), "--device", "cpu"]
    arguments += ["--refinement", "islands:smallest_ml=0", "--members", "fold 0"]
    assert main(arguments) == 0, capsys.readouterr().err
    labelmap, labels = read_labelmap(files["a.seg.nrrd"])
    assert [label.name for label in labels] == ["tumor"]
    assert labelmap.geometry.shape == (1, SIDE, SIDE)
    assert labelmap.geometry.spacing_mm[:2] == pytest.approx((5e-4, 5e-4))
    found, (top, left, bottom, right) = labelmap.voxels[0] > 0, TUMOURS[0]
    assert found[top:bottom, left:right].mean() > 0.3
    assert found[: TISSUE[0] - 64].sum() == 0
    with files["places.csv"].open() as file:
        rows = list(csv.DictReader(file))
    probabilities = [float(row["highest_probability"]) for row in rows]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(float(row["area_mm2"]) for row in rows) == pytest.approx(found.sum() * 2.5e-7)
    largest = max(rows, key=lambda row: float(row["area_mm2"]))
    assert float(largest["r_mm"]) == pytest.approx(-(left + right) / 2 * 5e-4, abs=0.04)
    assert float(largest["a_mm"]) == pytest.approx(-(top + bottom) / 2 * 5e-4, abs=0.04)
    assert all(path.is_file() for path in files.values())
    assert len(json.loads(files["a.json"].read_text())["provenance"]["members"]) == 8


def test_a_region_of_a_slide_is_that_part_of_the_whole(model: Path, slide: Path) -> None:
    request = SegmentationRequest((slide,), (str(model),), device="cpu", mirroring=False)
    whole = segment(request).labelmap
    region = (-0.45, -0.1, -0.5, -0.1, -1.0, 1.0)
    part = segment(
        SegmentationRequest((slide,), (str(model),), device="cpu", mirroring=False, region=region)
    ).labelmap
    box = whole.geometry.box_around(region)
    assert box is not None
    inside = np.zeros(whole.voxels.shape, bool)
    inside[box] = True
    assert not part.voxels[~inside].any()
    assert (part.voxels[inside] == whole.voxels[inside]).mean() > 0.97


def test_a_grey_radiograph_says_how_probable_each_class_is(tmp_path: Path) -> None:
    """Bright against dark, learned from grey pictures; the sentence is among the warnings."""
    from PIL import Image

    from medsegai.models.card import load_card

    root = tmp_path / "patches"
    for name, value in (("normal", 60), ("dense", 190)):
        (root / name).mkdir(parents=True)
        for number in range(6):
            pixels = patch_models.stain((value, value, value), 64, 64, number)[..., 0]
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    arguments = ["train", "patches", str(root), "-o", str(tmp_path / "run"), "--device", "cpu"]
    arguments += ["--kind", "picture", "--size", "64", "--encoder", "plain", "--epochs", "0"]
    assert main([*arguments, "--folds", "2", "--augmentation", "none", "--prior", "1"]) == 0
    model = tmp_path / "run" / "model"
    assert [channel.name for channel in load_card(model).channels] == ["grey"]
    image = tmp_path / "film.png"
    Image.fromarray(np.full((50, 70), 190, np.uint8) + np.eye(50, 70, dtype=np.uint8)).save(image)
    result = segment(SegmentationRequest((image,), (str(model),), device="cpu"))
    assert result.labelmap.geometry.shape == (1, 50, 70)
    assert any("picture as a whole: dense 0." in warning for warning in result.warnings)
    assert (result.labelmap.voxels == 1).mean() > 0.5


def test_places_of_a_volume_have_volumes_and_those_of_unknown_pixels_no_area() -> None:
    voxels = np.zeros((3, 5, 6), np.uint8)
    voxels[0, 0, 0] = 1
    voxels[1, 1, 1] = 1  # touches it by a corner
    voxels[2, 4, 4:] = 1
    labels = (Label(1, "a", (255, 0, 0)),)
    grid = Geometry.from_spacing(voxels.shape, (1.0, 2.0, 3.0), (10.0, 20.0, 30.0))
    found = suspicious_places(SegmentationResult(Volume(voxels, grid), labels, ()))
    assert [place.voxels for place in found] == [2, 2]
    assert [place.volume_ml for place in found] == pytest.approx([0.012, 0.012])
    assert {place.area_mm2 for place in found} == {None}
    assert found[0].centre_ras == pytest.approx((10.5, 21.0, 31.5))
    flat = Volume(voxels[:1], Geometry((1, 5, 6), np.eye(4)), size_known=False)
    probabilities = np.full((1, 1, 5, 6), 0.75, np.float16)
    (place,) = suspicious_places(SegmentationResult(flat, labels, (), probabilities=probabilities))
    assert (place.area_mm2, place.volume_ml, place.highest) == (None, None, 0.75)


def test_classify_judges_pictures_that_were_not_seen(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other pictures of the same two stains; what is called healthy here is the class normal of the model."""
    root = patch_models.write_patches(tmp_path / "other", 3)
    (root / "normal").rename(root / "healthy")
    arguments = ["classify", str(root), "--model", str(model), "-o", str(tmp_path / "judged")]
    assert main([*arguments, "--device", "cpu"]) == 0, capsys.readouterr().err
    figures = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    assert figures["classes"] == ["healthy", "tumor"]
    assert figures["accuracy"]["value"] == 1.0
    assert figures["confusion"] == [[3, 0], [0, 3]]
    assert (
        "every picture was classified correctly"
        in (tmp_path / "judged" / "report.html").read_text()
    )
    assert "Accuracy" in capsys.readouterr().out
    assert main([*arguments, "--device", "cpu"]) == 5
    assert "exists already" in capsys.readouterr().err
    (root / "healthy").rename(root / "normal")
    (root / "tumor").rename(root / "cyst")
    assert main([*arguments[:-1], str(tmp_path / "no"), "--device", "cpu"]) == 2
    assert "the model knows tumor" in capsys.readouterr().err
    assert main([*arguments, "--part", "test"]) == 2
    assert main([*arguments[:-1], str(tmp_path / "no"), "--specificity", "2"]) == 2
    assert "--specificity must be more than 0" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
