"""`medsegai slide`: what is printed of a slide, and parts of it as volumes in colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import slide_files
from medsegai.cli import main

PIXELS = slide_files.placed_pixels(200, 160)

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slide_files.write_pyramid(tmp_path_factory.mktemp("slide") / "a.tif", PIXELS)


def test_it_tells_levels_and_millimetres(slide: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["slide", str(slide)]) == 0
    out = capsys.readouterr().out
    assert "level 0: 160 x 200 pixels, each 0.5 x 0.5 micrometres" in out
    assert "level 2: 40 x 50 pixels, each 2 x 2 micrometres" in out
    unknown = slide_files.write_pyramid(tmp_path / "b.tif", PIXELS, spacing_um=None)
    assert main(["slide", str(unknown)]) == 0
    out = capsys.readouterr().out
    assert "each unknown" in out
    assert "the size of its pixels" in out


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ((), (160, 200)),
        (("--level", "1"), (80, 100)),
        (("--longest", "60"), (48, 60)),
        (("--region=-0.05,-0.0252,-0.06,-0.0202",), (51, 81)),
        (("--region=-0.05,-0.0252,-0.06,-0.0202", "--longest", "41"), (26, 41)),
    ],
)
def test_a_part_is_written_at_its_place(
    options: tuple[str, ...], size: tuple[int, int], slide: Path, tmp_path: Path
) -> None:
    """SimpleITK reads red as the row and green as the column of the finest level, at the place in the world."""
    path = tmp_path / "part.nrrd"
    assert main(["slide", str(slide), "-o", str(path), *options]) == 0
    image = sitk.ReadImage(str(path))
    assert image.GetNumberOfComponentsPerPixel() == 3
    assert image.GetSize()[:2] == pytest.approx(size, abs=1)
    pixels = sitk.GetArrayFromImage(image)[0].astype(float)
    step = image.GetSpacing()[0] / 5e-4
    for row, column in ((2, 3), (pixels.shape[0] - 3, pixels.shape[1] - 4)):
        x, y, _ = image.TransformIndexToPhysicalPoint((column, row, 0))
        assert pixels[row, column, 0] == pytest.approx(y / 5e-4, abs=step)
        assert pixels[row, column, 1] == pytest.approx(x / 5e-4, abs=step)


def test_what_cannot_be_written(slide: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "part.nrrd"
    for options, code, words in (
        (("-o", str(path), "--level", "3"), 2, "levels 0 to 2"),
        (("-o", str(path), "--region", "5,6,5,6"), 2, "outside"),
        (("-o", str(path), "--longest", "0"), 2, "--longest"),
        (("-o", str(tmp_path / "a.txt")), 5, "a.txt"),
    ):
        assert main(["slide", str(slide), *options]) == code
        assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    path.write_text("mine")
    assert main(["slide", str(slide), "-o", str(path)]) == 5
    assert path.read_text() == "mine"
    assert main(["slide", str(slide), "-o", str(path), "--overwrite"]) == 0
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0], PIXELS)
