"""The picture: right is where an anatomist expects it, shapes keep their proportions."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medsegai.errors import GeometryError
from medsegai.labels import Label
from medsegai.output import preview
from medsegai.output.preview import (
    GAP,
    LINE_HEIGHT,
    LONGEST_SIDE,
    MARGIN_MM,
    PLANES,
    render_preview,
)
from medsegai.volume import Geometry, Volume

RIGHT = Label(1, "Right ball", (255, 0, 0))
ANTERIOR = Label(2, "Anterior ball", (0, 255, 0))
SUPERIOR = Label(3, "Superior ball", (0, 0, 255))
BALLS = (RIGHT, ANTERIOR, SUPERIOR)

SIDE_MM = 60.0
"""Field of view along each axis."""

Picture = NDArray[np.int64]


def turned(degrees: float) -> NDArray[np.float64]:
    """A rotation about S, then about R: how an oblique scan lies in the world."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_s = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    about_r = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return about_r @ about_s


def grid(order: tuple[int, ...], signs: tuple[int, ...], turn: float = 0.0) -> Geometry:
    """A cube of 60 mm around the origin, with other spacing and direction along each voxel axis."""
    spacing = np.array([1.0, 1.5, 3.0])
    directions = np.zeros((3, 3))
    for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
        directions[row, column] = sign
    directions = turned(turn) @ directions
    shape = tuple(int(SIDE_MM / step) for step in spacing[::-1])
    middle = (np.array(shape[::-1]) - 1) / 2
    return Geometry.from_spacing(shape, spacing, -directions * spacing @ middle, directions)


def balls(geometry: Geometry, turn: float = 0.0) -> tuple[Volume, Volume]:
    """A scan, and a ball 18 mm from the middle towards each of R, A and S of the turned head."""
    k, j, i = np.indices(geometry.shape)
    ones = np.ones(i.size)
    ras = (geometry.ijk_to_ras @ np.array([i.ravel(), j.ravel(), k.ravel(), ones]))[:3]
    values = np.zeros(i.size, dtype=np.uint8)
    for label, direction in zip(BALLS, turned(turn).T, strict=True):
        center = 18.0 * direction[:, np.newaxis]
        values[np.linalg.norm(ras - center, axis=0) < 9.0] = label.value
    scan = Volume((values > 0).reshape(geometry.shape) * 1000.0, geometry)
    return scan, Volume(values.reshape(geometry.shape), geometry)


def panels(picture: Image.Image, row: int = 0) -> list[Picture]:
    """The three panels of a row, by their black frames on white paper."""
    pixels = np.asarray(picture).astype(np.int64)
    black = (pixels == 0).all(axis=2)
    top = GAP + LINE_HEIGHT
    for above in range(row):
        top += max(len(panel) for panel in panels(picture, above)) + GAP + LINE_HEIGHT
    edges = np.flatnonzero(np.diff(black[top].astype(int), prepend=0))
    found = []
    for left, right in zip(edges[::2], edges[1::2], strict=True):
        height = int(np.argmin(black[top:, left]))
        found.append(pixels[top : top + height, left:right])
    assert len(found) == 3
    return found


def place(panel: Picture, label: Label) -> tuple[float, float]:
    """Middle of a label's outline as (right, down) from the panel's middle, -1 to 1."""
    down, right = np.nonzero((panel == label.color).all(axis=2))
    assert down.size, f"{label.name} is not in the panel"
    height, width = panel.shape[:2]
    return float(2 * right.mean() / (width - 1) - 1), float(2 * down.mean() / (height - 1) - 1)


ORIENTATIONS = [
    (order, signs, 0.0) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
]
OBLIQUE = [(order, signs, 25.0) for order, signs, _ in ORIENTATIONS[::5]]


@pytest.mark.parametrize(("order", "signs", "turn"), ORIENTATIONS + OBLIQUE)
def test_every_side_is_where_slicer_shows_it(
    order: tuple[int, ...], signs: tuple[int, ...], turn: float
) -> None:
    scan, labelmap = balls(grid(order, signs, turn), turn)
    axial, coronal, sagittal = panels(render_preview(scan, labelmap, BALLS))
    # The balls lie from -9 to 27 mm in each direction; with the margin they reach the end of the scan.
    low, high = -9.0 - MARGIN_MM, SIDE_MM / 2
    middle, half = (low + high) / 2, (high - low) / 2
    far, near = (pytest.approx((mm - middle) / half, abs=0.08) for mm in (18.0, 0.0))
    right, down = place(axial, RIGHT)
    assert (-right, -down) == (far, near)
    right, down = place(axial, ANTERIOR)
    assert (-right, -down) == (near, far)
    right, down = place(coronal, RIGHT)
    assert (-right, -down) == (far, near)
    right, down = place(coronal, SUPERIOR)
    assert (-right, -down) == (near, far)
    right, down = place(sagittal, ANTERIOR)
    assert (-right, -down) == (far, near)
    right, down = place(sagittal, SUPERIOR)
    assert (-right, -down) == (near, far)


def test_the_letters_agree_with_the_directions() -> None:
    letters = {plane.name: (plane.left, plane.right, plane.top, plane.bottom) for plane in PLANES}
    assert letters == {
        "Axial": ("R", "L", "A", "P"),
        "Coronal": ("R", "L", "S", "I"),
        "Sagittal": ("A", "P", "S", "I"),
    }


def test_a_ball_is_round_whatever_the_spacing() -> None:
    scan, labelmap = balls(grid((0, 1, 2), (1, 1, 1)))
    for panel, label in zip(panels(render_preview(scan, labelmap, BALLS)), (0, 0, 1), strict=True):
        down, right = np.nonzero((panel == BALLS[label].color).all(axis=2))
        assert np.ptp(down) == pytest.approx(np.ptp(right), rel=0.2)
        assert np.ptp(down) == pytest.approx(18 / (39 + MARGIN_MM) * LONGEST_SIDE, rel=0.2)


def test_small_structures_decide_the_slice_as_much_as_large_ones() -> None:
    geometry = Geometry.from_spacing((20, 20, 20), (1, 1, 1))
    values = np.zeros(geometry.shape, dtype=np.uint8)
    values[2:18, 2:18, 2:18] = 1
    values[4, 10, 10], values[4, 5, 5] = 2, 3
    colors = (
        Label(1, "cube", (9, 9, 9)),
        Label(2, "dot", (255, 0, 0)),
        Label(3, "dot b", (0, 0, 255)),
    )
    picture = render_preview(Volume(values * 1.0, geometry), Volume(values, geometry), colors)
    axial = panels(picture)[0]
    place(axial, colors[1])
    place(axial, colors[2])


def test_of_equally_good_slices_the_middle_one_is_shown() -> None:
    geometry = Geometry.from_spacing((30, 30, 30), (1, 1, 1))
    values = np.zeros(geometry.shape, dtype=np.uint8)
    values[5:26, 5:26, 5:26] = RIGHT.value
    scan = np.zeros(geometry.shape)
    scan[15] = 1000.0  # one bright axial slice, through the middle of the cube
    picture = render_preview(Volume(scan, geometry), Volume(values, geometry), BALLS)
    axial = panels(picture)[0]
    assert axial[axial.shape[0] // 2, axial.shape[1] // 2].sum() > 500


def test_grey_values_span_the_window() -> None:
    geometry = Geometry.from_spacing((30, 30, 30), (1, 1, 1))
    ramp = np.broadcast_to(np.linspace(-1000.0, 3000.0, 30), geometry.shape)
    empty = Volume(np.zeros(geometry.shape, dtype=np.uint8), geometry)
    axial = panels(render_preview(Volume(ramp, geometry), empty, BALLS))[0]
    row = axial[axial.shape[0] // 3, 30:-30, 0]
    assert 240 > row[0] > 200  # +i is R, which is on the left; white is left to the paper
    assert row[-1] < 15
    assert (np.diff(row) <= 0).all()


def test_nan_and_a_constant_scan_are_drawn() -> None:
    scan, labelmap = balls(grid((0, 1, 2), (1, 1, 1)))
    broken = scan.voxels.copy()
    broken[::2] = np.nan
    assert render_preview(scan.with_voxels(broken), labelmap, BALLS).size[0] > 2.8 * LONGEST_SIDE
    same = scan.with_voxels(np.full(scan.voxels.shape, 7, dtype=np.int16))
    assert render_preview(same, labelmap, BALLS).size[0] > 2.8 * LONGEST_SIDE


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("low", "step"), [(0, 1e14), (1e14, 0), (-1e14, 1e3), (0, 1e-9), (5, 1e-12)]
)
def test_grey_values_of_any_size_are_drawn(low: float, step: float) -> None:
    """Without a warning of NumPy on the user's terminal, and not black where they differ."""
    geometry = grid((0, 1, 2), (1, 1, 1))
    _, labelmap = balls(geometry)
    voxels = low + step * np.random.default_rng(1).random(labelmap.voxels.shape)
    low_end, high_end = preview._window(voxels)
    assert low_end < high_end
    grey = preview._grey(voxels[3], (low_end, high_end), voxels.shape[:0:-1])
    assert np.isfinite(grey).all()
    assert (grey.max() > 100) == (step > 0)
    render_preview(labelmap.with_voxels(voxels), labelmap, BALLS)


def test_uncertainty_is_a_second_row_that_glows_where_entropy_is() -> None:
    scan, labelmap = balls(grid((0, 1, 2), (1, 1, 1)))
    plain = render_preview(scan, labelmap, BALLS)
    doubt = scan.with_voxels((labelmap.voxels == RIGHT.value).astype(np.float32))
    picture = render_preview(scan, labelmap, BALLS, doubt)
    tallest = max(len(panel) for panel in panels(plain))
    assert picture.height == plain.height + LINE_HEIGHT + tallest + GAP + 2 * LINE_HEIGHT
    axial = panels(picture, row=1)[0]
    glowing = np.argwhere(axial[:, :, 0] - axial[:, :, 2] > 100)
    assert glowing.size
    assert glowing[:, 1].max() < axial.shape[1] / 2


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything that is written on the page."""
    seen: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def text(
        self: ImageDraw.ImageDraw, place: object, words: str, *arguments: object, **options: object
    ) -> None:
        seen.append(words)
        draw(self, place, words, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return seen


@pytest.mark.parametrize(("order", "signs", "turn"), [*ORIENTATIONS[::7], *OBLIQUE[::4]])
def test_the_position_of_a_slice_is_that_of_its_voxels(
    order: tuple[int, ...], signs: tuple[int, ...], turn: float, words: list[str]
) -> None:
    scan, labelmap = balls(grid(order, signs, turn), turn)
    render_preview(scan, labelmap, BALLS)
    shown = {text.split(",")[0]: text for text in words if text.endswith("mm") and "," in text}
    for plane, letter in zip(PLANES, "SAR", strict=True):
        name, position, unit = shown[plane.name].split(", ")[1].split()
        assert (name, unit) == (letter, "mm")
        # Two balls lie in the plane through the middle, and the third 18 mm from it: the middle shows most.
        expected = pytest.approx(0.0, abs=2.0) if turn == 0 else pytest.approx(0.0, abs=12.0)
        assert float(position) == expected


def test_doubt_has_a_scale_with_numbers(words: list[str]) -> None:
    scan, labelmap = balls(grid((0, 1, 2), (1, 1, 1)))
    render_preview(scan, labelmap, BALLS)
    assert not [text for text in words if "nats" in text]
    words.clear()
    render_preview(scan, labelmap, BALLS, scan.with_voxels(np.zeros(scan.voxels.shape)))
    assert [text for text in words if "entropy in nats" in text]
    numbers = [float(text) for text in words if text.replace(".", "").isdecimal()]
    assert numbers == [0.0, 0.5], "half the entropy of a guess among four classes is 0.69"


def test_both_sides_stand_in_the_legend_once(words: list[str]) -> None:
    geometry = Geometry.from_spacing((20, 20, 20), (1, 1, 1))
    values = np.zeros(geometry.shape, dtype=np.uint8)
    for value in (1, 2, 3, 4):
        values[5:15, 5:15, 4 * value - 2 : 4 * value + 1] = value
    red, blue = (200, 0, 0), (0, 0, 200)
    labels = (
        Label(1, "Left kidney", red),
        Label(2, "Right kidney", red),
        Label(3, "Left lung", red),
        Label(4, "Right lung", blue),
    )
    render_preview(Volume(values * 1.0, geometry), Volume(values, geometry), labels)
    assert [text for text in words if "idney" in text] == ["Kidney"]
    assert [text for text in words if "lung" in text] == ["Left lung", "Right lung"]


def test_a_large_structure_lets_its_tissue_be_seen() -> None:
    """White on white matter hid it."""
    geometry = Geometry.from_spacing((30, 30, 30), (1, 1, 1))
    values = np.ones(geometry.shape, dtype=np.uint8)
    stripes = np.broadcast_to((np.arange(30) // 3 % 2) * 1000.0, geometry.shape)
    white = (Label(1, "Everything", (255, 255, 255)),)
    axial = panels(render_preview(Volume(stripes, geometry), Volume(values, geometry), white))[0]
    inside = axial[100:-100, 100:-100, 0]
    assert np.ptp(inside) > 200


def test_what_is_far_from_every_structure_is_cut_off() -> None:
    geometry = Geometry.from_spacing((200, 200, 200), (1, 1, 1))
    values = np.zeros(geometry.shape, dtype=np.uint8)
    values[90:110, 80:120, 70:130] = RIGHT.value
    picture = render_preview(Volume(values * 1.0, geometry), Volume(values, geometry), BALLS)
    scale = LONGEST_SIDE / (60 + 2 * MARGIN_MM)
    for panel, sides in zip(panels(picture), ((40, 60), (20, 60), (20, 40)), strict=True):
        for length, side in zip(panel.shape, sides, strict=False):
            assert length == pytest.approx((side + 2 * MARGIN_MM) * scale, abs=2)


def test_every_panel_has_a_bar_of_known_length(words: list[str]) -> None:
    scan, labelmap = balls(grid((0, 1, 2), (1, 1, 1)))
    render_preview(scan, labelmap, BALLS)
    bars = [text for text in words if text in {f"{length} mm" for length in preview.LENGTHS_MM}]
    assert bars == ["10 mm"] * 3


def test_grids_that_differ_are_refused() -> None:
    scan, _ = balls(grid((0, 1, 2), (1, 1, 1)))
    _, labelmap = balls(grid((0, 1, 2), (1, -1, 1)))
    with pytest.raises(GeometryError, match="both on the same grid"):
        render_preview(scan, labelmap, BALLS)


def test_a_legend_that_does_not_fit_says_how_many_are_missing() -> None:
    geometry = Geometry.from_spacing((4, 20, 20), (1, 1, 1))
    values = np.arange(1600, dtype=np.uint16).reshape(geometry.shape) % 400
    many = tuple(
        Label(n, f"Structure with a long name {n}", (n % 256, 90, 90)) for n in range(1, 400)
    )
    few = many[:3]
    scan = Volume(values * 1.0, geometry)
    tall = render_preview(scan, Volume(values, geometry), many)
    short = render_preview(scan, Volume(np.where(values < 4, values, 0), geometry), few)
    below = [page.height - max(len(panel) for panel in panels(page)) for page in (short, tall)]
    assert below[0] < below[1] < below[0] + 250


def test_a_thin_stack_and_a_single_label_are_drawn() -> None:
    geometry = Geometry.from_spacing((2, 300, 200), (0.5, 0.5, 6.0))
    values = np.ones(geometry.shape, dtype=np.uint8)
    picture = render_preview(Volume(values * 5, geometry), Volume(values, geometry), (RIGHT,))
    assert picture.width < 3 * LONGEST_SIDE + 4 * GAP


def test_real_head_has_its_left_hemisphere_on_the_right(shared_data: Path) -> None:
    """MALC labels by number: 45 is left and 44 right cerebral white matter."""
    scan, values = (
        nibabel.load(shared_data / "malc2012-train" / f"1000_{kind}.nii.gz")
        for kind in ("SS", "glm")
    )
    k, j, i = scan.shape[::-1]
    geometry = Geometry((k, j, i), scan.affine)
    image = Volume(np.asarray(scan.dataobj).T, geometry)
    labelmap = Volume(np.asarray(values.dataobj).T.astype(np.uint16), geometry)
    sides = (
        Label(44, "Right white matter", (255, 0, 0)),
        Label(45, "Left white matter", (0, 0, 255)),
    )
    pixels = np.asarray(render_preview(image, labelmap, sides)).astype(int)
    width = pixels.shape[1] // 4
    red, blue = (
        np.nonzero((pixels[:400, :width] == side.color).all(axis=2))[1].mean() for side in sides
    )
    assert red < blue - 50


def test_an_image_of_one_slice_is_one_panel_that_fills_the_page() -> None:
    """Also where it is far smaller than the millimetre of its thickness, as a slide of a microscope."""
    grid = Geometry((1, 60, 80), np.diag([-0.001, -0.001, 1.0, 1.0]))
    image = Volume(np.arange(4800, dtype=np.uint16).reshape(1, 60, 80), grid)
    labels = np.zeros((1, 60, 80), np.uint8)
    labels[0, 20:40, 20:60] = 1
    picture = render_preview(image, Volume(labels, grid), (Label(1, "a", (255, 0, 0)),))
    volume = Volume(np.repeat(image.voxels, 60, 0), Geometry((60, 60, 80), np.eye(4)))
    whole = render_preview(
        volume, volume.with_voxels(np.repeat(labels, 60, 0)), (Label(1, "a", (255, 0, 0)),)
    )
    assert picture.width < 0.6 * whole.width
    red = np.asarray(picture, int)
    outline = (red[..., 0] > 180) & (red[..., 1:].max(-1) < 90)
    assert outline.any(0).sum() > 100
