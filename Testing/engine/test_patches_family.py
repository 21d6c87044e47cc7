"""Classifiers run over slides, images and radiographs: where they answer, at which magnification, and how they
agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import patch_models
import slide_files
from medsegai.errors import MismatchError, ModelError
from medsegai.families import Inputs, Part, load_model
from medsegai.families import patches as family
from medsegai.io import read_channels
from medsegai.io.slides import SlideChannel
from medsegai.models.card import load_card
from medsegai.networks.backends import choose_compute
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume

SIDE = 1536
TISSUE, TUMOUR = (256, 256, 1280, 1408), (512, 640, 1024, 1024)
"""Boxes (top, left, bottom, right) of the slide, in pixels of half a micrometre."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patch_models.trained(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = patch_models.slide_pixels(SIDE, TISSUE, TUMOUR)
    path = tmp_path_factory.mktemp("slide") / "slide.ome.tif"
    return slide_files.write_pyramid(path, pixels, spacing_um=0.5, ome=True)


def parts(
    model: Path, scans: Sequence[Volume], output: Geometry | None = None, **options: object
) -> list[Part]:
    request = SegmentationRequest(tuple(scans), (str(model),), **options)  # type: ignore[arg-type]
    loaded = load_model(load_card(model))
    compute = choose_compute("cpu")
    return list(
        loaded.parts(Inputs(scans), output or scans[0].geometry, request, compute, Progress())
    )


def answers(part: Part) -> list[np.ndarray]:
    """Of each member the probabilities (channel, row, column)."""
    compute = choose_compute("cpu")
    found = []
    for member in part.members:
        (block,) = member.predict(compute, lambda _part: None)
        found.append(block.values[:, 0].numpy())
    return found


def expected(part: Part, box: tuple[int, int, int, int], spacing_mm: float) -> np.ndarray:
    """Which cells have their centre in a box of pixels of that size."""
    rows, columns = np.indices(part.geometry.shape[1:])
    places = np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)]).reshape(4, -1)
    x, y = -(part.geometry.ijk_to_ras @ places)[:2] / spacing_mm
    inside = (y > box[0]) & (y < box[2]) & (x > box[1]) & (x < box[3])
    return inside.reshape(rows.shape)


def test_a_slide_is_read_at_the_magnification_of_the_training(model: Path, slide: Path) -> None:
    """Pixels of 0.5 um, a model of 1 um: cells of 32 um; the tumour is found at its place and on its area."""
    scans = read_channels(slide)
    assert all(isinstance(scan, SlideChannel) for scan in scans)
    (part,) = parts(model, scans, mirroring=False)
    assert part.geometry.spacing_mm[:2] == pytest.approx((0.032, 0.032))
    mean = np.mean(answers(part), 0)
    np.testing.assert_allclose(mean.sum(0), 1, atol=1e-5)
    tumour, tissue = expected(part, TUMOUR, 5e-4), expected(part, TISSUE, 5e-4)
    found = mean[1] > 0.5
    assert found.sum() > 0.3 * tumour.sum()
    assert (found & tumour).sum() > 0.9 * found.sum()
    assert not found[~tissue].any()
    assert (mean[0][~tissue] > 0.5).all()
    centres = [np.argwhere(mask).mean(0) for mask in (found, tumour)]
    np.testing.assert_allclose(*centres, atol=0.7)


def test_glass_is_not_looked_at(model: Path, slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles without tissue cost nothing."""
    seen: list[tuple[int, int]] = []
    own = family.CellMember._tile

    def tile(self: object, runner: object, compute: object, row: int, column: int) -> torch.Tensor:
        seen.append((row, column))
        return own(self, runner, compute, row, column)  # type: ignore[arg-type]

    monkeypatch.setattr(family.CellMember, "_tile", tile)
    monkeypatch.setattr(family, "OVERLAP_CELLS", 2)
    view_tile = (4, 4)
    monkeypatch.setattr(family.View, "tile", view_tile, raising=False)
    (part,) = parts(model, read_channels(slide), mirroring=False)
    view = part.members[0]._view  # type: ignore[attr-defined]
    part.members[0]._view = replace(view, tile=view_tile)  # type: ignore[attr-defined]
    list(part.members[0].predict(choose_compute("cpu"), lambda _part: None))
    rows, columns = view.tissue.shape
    assert 0 < len(seen) < 0.8 * (rows / 2 + 1) * (columns / 2 + 1)


def test_mirror_images_and_quarter_turns_are_members(model: Path, slide: Path) -> None:
    (part,) = parts(model, read_channels(slide))
    names = [member.name for member in part.members]
    assert len(names) == len(set(names)) == 2 * 8
    assert "fold 0 mirrored turned 90" in names
    assert sum(member.weight for member in part.members) == pytest.approx(2)
    found = answers(part)
    tumour = expected(part, TUMOUR, 5e-4)
    for values in found:  # each is turned back to its place
        assert values[1][tumour].mean() > values[1][~tumour].mean() + 0.3


def test_an_image_of_the_scene_is_brought_to_the_magnification(model: Path) -> None:
    """Without the file of the slide, from pixels of 0.5 um and of 1 um."""
    pixels = patch_models.slide_pixels(SIDE, TISSUE, TUMOUR)
    found = []
    for image, spacing in ((pixels, 5e-4), (slide_files.halved(pixels), 1e-3)):
        grid = Geometry((1, *image.shape[:2]), np.diag([-spacing, -spacing, 1, 1]))
        scans = [Volume(image[None, ..., n], grid) for n in range(3)]
        (part,) = parts(model, scans, mirroring=False)
        assert part.geometry.spacing_mm[:2] == pytest.approx((0.032, 0.032))
        found.append(np.mean(answers(part), 0)[1])
    assert np.abs(found[0] - found[1]).mean() < 0.1


def test_pixels_that_are_too_coarse_or_of_unknown_size_are_refused_unless_wanted(
    model: Path,
) -> None:
    pixels = patch_models.slide_pixels(256, (20, 20, 200, 200), (60, 60, 120, 120))
    grid = Geometry.from_spacing((1, 256, 256), (0.01, 0.01, 1.0))
    coarse = [Volume(pixels[None, ..., n], grid, "coarse") for n in range(3)]
    with pytest.raises(MismatchError, match="pixels of 10 micrometres"):
        parts(model, coarse)
    unknown = [replace(scan, size_known=False) for scan in coarse]
    with pytest.raises(MismatchError, match="does not state the size"):
        parts(model, unknown)
    (part,) = parts(model, unknown, anyway=True)
    assert "used as they are" in part.warnings[0]


def test_a_slide_without_millimetres_is_refused_unless_wanted(model: Path, tmp_path: Path) -> None:
    pixels = patch_models.slide_pixels(512, (64, 64, 448, 448), (128, 128, 320, 320))
    path = slide_files.write_pyramid(tmp_path / "a.tif", pixels, spacing_um=None)
    scans = read_channels(path)
    assert not scans[0].size_known
    with pytest.raises(MismatchError, match="the size of its pixels"):
        parts(model, scans)
    (part,) = parts(model, scans, anyway=True, mirroring=False)
    assert part.geometry.spacing_mm[:2] == pytest.approx((32, 32))
    assert "finest pixels" in part.warnings[0]


@pytest.mark.parametrize("levels", [1, 2])
def test_a_slide_of_coarser_pixels_is_refused_unless_wanted(
    levels: int, model: Path, tmp_path: Path
) -> None:
    """Also one without a pyramid, which is a slide because it states its magnification."""
    pixels = patch_models.slide_pixels(256, (20, 20, 200, 200), (60, 60, 120, 120))
    path = slide_files.write_pyramid(tmp_path / "a.tif", pixels, levels, spacing_um=4.0)
    with pytest.raises(MismatchError, match="pixels of 4 micrometres"):
        parts(model, read_channels(path))
    (part,) = parts(model, read_channels(path), anyway=True, mirroring=False)
    assert part.geometry.spacing_mm[:2] == pytest.approx((0.032, 0.032))


def test_a_radiograph_is_seen_as_a_whole(tmp_path: Path) -> None:
    """The heat map covers the picture, whatever its size, and a sentence says how probable each class is."""
    model = patch_models.trained(tmp_path, "picture", 0.0, 128)
    image = patch_models.stain(patch_models.VIOLET, 100, 150, 3)
    image[:, :75] = patch_models.stain(patch_models.PINK, 100, 75, 4)
    grid = Geometry.from_spacing((1, 100, 150), (0.2, 0.2, 1.0))
    (part,) = parts(model, [Volume(image[None, ..., n], grid) for n in range(3)])
    assert part.geometry.shape == (1, 4, 4)
    assert part.geometry.spacing_mm[:2] == pytest.approx((7.5, 5.0))
    assert part.findings() == ()
    mean = np.mean(answers(part), 0)
    assert (mean[1, :, 3] > mean[1, :, 0]).all()
    (finding,) = part.findings()
    assert "picture as a whole: tumor 0." in finding


def test_classify_is_the_mean_of_folds_and_ways(model: Path) -> None:
    loaded = load_model(load_card(model))
    assert isinstance(loaded, family.PatchesModel)
    compute = choose_compute("cpu")
    for colour, sure in ((patch_models.PINK, 0), (patch_models.VIOLET, 1)):
        values = loaded.classify(patch_models.stain(colour, 96, 96, 99), compute)
        assert values.sum() == pytest.approx(1, abs=1e-5)
        assert values.argmax() == sure


@given(size=st.floats(1, 12), count=st.integers(1, 30), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_the_mean_over_a_window_is_that_of_the_cells_in_it(
    size: float, count: int, seed: int
) -> None:
    """By hand, cell by cell: the share of each cell that the window covers is its weight."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(2, 1, count)).astype(np.float32)
    seen = random.random(count) < 0.7
    logits[:, :, ~seen] = 0
    found = family._averaged(torch.from_numpy(logits), (1.0, size), torch.from_numpy(seen[None]))
    centres = np.arange(count)
    for at in np.flatnonzero(seen):
        ends = np.minimum(centres + 0.5, at + size / 2) - np.maximum(centres - 0.5, at - size / 2)
        weights = np.clip(ends, 0, 1) * seen
        wanted = (logits[:, 0] * weights).sum(1) / weights.sum()
        np.testing.assert_allclose(found[:, 0, at].numpy(), wanted, atol=1e-4)


@given(turns=st.integers(0, 3), mirrored=st.booleans())
def test_turning_back_undoes_a_turn(turns: int, mirrored: bool) -> None:
    values = torch.arange(12.0).reshape(1, 3, 4)
    way = (turns, mirrored)
    assert torch.equal(family._turned(family._turned(values, way), way, back=True), values)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": [50, 50]}, "multiples of 32"),
        ({"std": [0, 1, 1]}, "std must be above 0"),
        ({"kind": "film"}, "kind"),
        ({"symmetries": "some"}, "symmetries"),
    ],
)
def test_a_card_that_does_not_describe_classifiers(
    settings: dict[str, object], words: str, model: Path
) -> None:
    card = load_card(model)
    with pytest.raises(ModelError, match=words):
        load_model(replace(card, settings={**card.settings, **settings}))
    broken = replace(card.members[0], settings={"encoder": "none"})
    with pytest.raises(ModelError, match="encoder 'none' is unknown"):
        load_model(replace(card, members=(broken,)))
