"""Grids keep voxels in their place; matrices that cannot place them are refused."""

import re
from collections.abc import Callable

import numpy as np
import pytest

import images
from medsegai.errors import GeometryError
from medsegai.volume import Geometry, Volume


@pytest.mark.parametrize("name", images.DIRECTIONS)
def test_a_grid_from_spacing_has_the_matrix_of_its_parts(name: str) -> None:
    grid = images.geometry(name)
    np.testing.assert_allclose(grid.ijk_to_ras, images.matrix_ras(name), atol=1e-12)
    np.testing.assert_allclose(grid.spacing_mm, images.SPACING_MM)
    np.testing.assert_allclose(grid.ras_to_ijk @ grid.ijk_to_ras, np.eye(4), atol=1e-12)
    assert grid.voxel_volume_ml == pytest.approx(0.9 * 1.3 * 2.1 / 1000)


@pytest.mark.parametrize("name", images.DIRECTIONS)
def test_a_cropped_voxel_stays_where_it_was(name: str) -> None:
    volume = images.numbered(images.geometry(name))
    start, shape = (2, 1, 3), (4, 5, 2)
    voxels = volume.voxels[2:6, 1:6, 3:5]
    cropped = images.positions(Volume(voxels, volume.geometry.cropped(start, shape)))
    whole = images.positions(volume)
    assert len(cropped) == 40
    assert images.apart(cropped, {value: whole[value] for value in cropped}) < 1e-9


def test_the_center_lies_between_opposite_corners() -> None:
    placed = images.positions(images.numbered(images.geometry("oblique")))
    middle = np.add(placed[1], placed[7 * 6 * 5]) / 2
    np.testing.assert_allclose(images.geometry("oblique").center_ras, middle)


def test_grids_match_within_a_hundredth_of_a_voxel() -> None:
    grid = images.geometry("oblique")
    shifted, turned = grid.ijk_to_ras.copy(), grid.ijk_to_ras.copy()
    shifted[:3, 3] += 0.005
    turned[:3, :3] = images.turned(0, 0.5) @ turned[:3, :3]
    assert grid.matches(Geometry(grid.shape, shifted))
    assert not grid.matches(Geometry(grid.shape, shifted), tolerance_voxels=1e-3)
    assert not grid.matches(Geometry(grid.shape, turned))
    assert not grid.matches(Geometry((7, 6, 4), grid.ijk_to_ras))
    assert not grid.matches(images.geometry("mirrored"))


def test_a_grid_cannot_be_changed() -> None:
    grid = images.geometry("straight")
    with pytest.raises(ValueError, match="read-only"):
        grid.ijk_to_ras[0, 3] = 1.0
    with pytest.raises(AttributeError):
        grid.shape = (1, 1, 1)  # type: ignore[misc]


def matrix(**changes: float) -> np.ndarray:
    """The identity with some elements changed: matrix(a01=0.1) has 0.1 in row 0, column 1."""
    result = np.eye(4)
    for place, value in changes.items():
        result[int(place[1]), int(place[2])] = value
    return result


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (matrix(a01=0.01), "right angles"),
        (matrix(a00=0.0), "no length"),
        (matrix(a01=1.0, a11=0.0), "singular"),
        (matrix(a03=np.nan), "finite"),
        (matrix(a22=np.inf), "finite"),
        (matrix(a30=1.0), "last row"),
        (np.eye(3), "4 x 4"),
    ],
)
def test_a_matrix_that_places_nothing_is_refused(broken: np.ndarray, reason: str) -> None:
    with pytest.raises(GeometryError, match=reason):
        Geometry((4, 4, 4), broken)


def test_an_angle_within_rounding_is_no_shear() -> None:
    assert Geometry((4, 4, 4), matrix(a01=0.0005)).ijk_to_ras[0, 1] == 0.0005


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, 4), (4, 4, 4, 4), (-1, 4, 4)])
def test_a_grid_needs_three_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError, match="three positive sizes"):
        Geometry(shape, np.eye(4))  # type: ignore[arg-type]


def test_voxels_fill_their_grid() -> None:
    with pytest.raises(GeometryError, match="do not fill"):
        Volume(np.zeros((5, 6, 7)), images.geometry("straight"))


def test_new_voxels_keep_place_source_and_notes() -> None:
    grid = images.geometry("oblique")
    volume = Volume(np.zeros(grid.shape), grid, "scan.nii", ("doubtful",))
    changed = volume.with_voxels(np.ones(grid.shape, dtype=np.uint8))
    assert changed.geometry is grid
    assert (changed.source, changed.notes) == ("scan.nii", ("doubtful",))
    assert changed.voxels.dtype == np.uint8
    with pytest.raises(GeometryError):
        volume.with_voxels(np.zeros((1, 1, 1)))


def test_a_grid_is_described_in_the_order_of_its_axes() -> None:
    assert images.geometry("straight").describe() == "5 x 6 x 7 voxels of 0.9 x 1.3 x 2.1 mm"


def test_the_same_voxels_permuted_flipped_and_resized_lie_where_they_lay() -> None:
    grid = Geometry.from_spacing(
        (4, 5, 6), (1.0, 2.0, 3.0), (7, 8, 9), images.DIRECTIONS["oblique"]
    )
    turned = grid.permuted((2, 0, 1)).flipped(0, 2)
    assert turned.shape == (6, 4, 5)
    k, j, i = 3, 2, 5  # on `grid`; on `turned` k is the old i, j the old k, i the old j
    there = turned.ijk_to_ras @ [4 - j, k, 5 - i, 1]
    np.testing.assert_allclose(there, grid.ijk_to_ras @ [i, j, k, 1], atol=1e-12)
    finer = grid.resized((8, 10, 3))
    np.testing.assert_allclose(finer.center_ras, grid.center_ras, atol=1e-12)
    extent = np.array(grid.shape[::-1]) * grid.spacing_mm
    np.testing.assert_allclose(np.array(finer.shape[::-1]) * finer.spacing_mm, extent)


def test_a_box_in_space_holds_the_voxels_that_it_touches() -> None:
    grid = Geometry.from_spacing((4, 5, 6), (1.0, 2.0, 3.0), (10, 20, 30))
    assert grid.box_around((11.6, 12.4, 20, 21.5, 29, 36)) == (
        slice(0, 3),
        slice(0, 2),
        slice(2, 3),
    )
    assert grid.box_around((0, 90, 0, 90, 0, 90)) == (slice(0, 4), slice(0, 5), slice(0, 6))
    assert grid.box_around((16, 18, 20, 22, 30, 31)) is None
    part = grid.cropped((1, 2, 3), (2, 2, 2))
    assert grid.box_around_grid(part) == (slice(1, 3), slice(2, 4), slice(3, 5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m, ""),
        (lambda m: m + np.diag([0, 0, 0.3], k=1), r"their voxels lie up to 0.3 mm apart"),
        (lambda m: m @ np.diag([1, 1.02, 1, 1]), r"their voxels are of .* and of .* mm"),
        (lambda m: rotated(m, 2.0), r"turned by 2 degrees"),
    ],
)
def test_how_two_grids_differ_is_said(
    change: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    grid = images.geometry("oblique")
    other = Geometry(grid.shape, change(grid.ijk_to_ras))
    assert re.search(words, grid.difference(other))
    assert bool(grid.difference(other)) is not grid.matches(other)
    assert (
        grid.difference(grid.cropped((0, 0, 0), (7, 6, 4)))
        == "they have 5 x 6 x 7 and 4 x 6 x 7 voxels"
    )


def rotated(matrix: np.ndarray, degrees: float) -> np.ndarray:
    turn = np.eye(4)
    turn[:3, :3] = images.turned(2, degrees)
    return turn @ matrix
