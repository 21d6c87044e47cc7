"""Surfaces: closed, as large as their voxels, where their voxels are, and read by other software alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from images import DIRECTIONS, ORIGIN_RAS, SPACING_MM
from medsegai.boxes import label_boxes
from medsegai.errors import InputError, OutputError, RequestError
from medsegai.export.surfaces import (
    FORMATS,
    SPACES,
    Surface,
    file_name,
    surface_of,
    write_surface,
)
from medsegai.io import read_labelmap
from medsegai.labels import Label
from medsegai.volume import Geometry

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("manifold3d")

KIDNEY = Label(17, "Left kidney (cortex/medulla)", (220, 30, 30))
SHAPE = (24, 34, 40)


def is_closed(surface: Surface) -> bool:
    """Whether each edge lies between exactly two triangles of the same orientation.

    Points at one position count as one, as they do in STL, which only has positions.
    """
    places = np.unique(surface.points.astype(np.float32), axis=0, return_inverse=True)[1]
    corners = places.reshape(-1)[surface.triangles]
    ways = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    there, count = np.unique(ways, axis=0, return_counts=True)
    back = np.unique(ways[:, ::-1], axis=0)
    return bool((count == 1).all() and np.array_equal(there, back))


def grid(name: str = "oblique", shape: tuple[int, ...] = SHAPE) -> Geometry:
    return Geometry.from_spacing(shape, SPACING_MM, ORIGIN_RAS, DIRECTIONS[name])


def ball(shape: tuple[int, ...] = SHAPE, radius_mm: float = 14.0) -> NDArray[np.bool_]:
    middle = (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2
    spacing = np.array(SPACING_MM[::-1]).reshape(3, 1, 1, 1)
    return (((np.indices(shape) - middle) * spacing) ** 2).sum(axis=0) <= radius_mm**2


def noise(share: float) -> NDArray[np.bool_]:
    return np.random.default_rng(5).random((14, 15, 16)) < share


def corner_to_corner() -> NDArray[np.bool_]:
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 0] = mask[2, 2, 1] = True
    return mask


MASKS = {
    "one voxel": np.ones((1, 1, 1), bool),
    "every voxel": np.ones((5, 6, 7), bool),
    "ball": ball(),
    "ball beyond the border": ball((10, 20, 20)),
    "plate": np.ones((1, 9, 12), bool),
    "rod": np.ones((11, 1, 1), bool),
    "corner to corner": corner_to_corner(),
    "hollow": np.pad(np.zeros((2, 2, 2), bool), 2, constant_values=True),
    "noise 20 %": noise(0.2),
    "noise 50 %": noise(0.5),
    "noise 80 %": noise(0.8),
}


def as_trimesh(surface: Surface) -> trimesh.Trimesh:
    """Trimesh joins points at one place, as a slicer of STL files does."""
    return trimesh.Trimesh(surface.points, surface.triangles)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("tolerance", [0.0, 0.1, 0.5])
def test_closed_and_as_large_as_the_voxels(name: str, tolerance: float) -> None:
    mask = MASKS[name]
    geometry = grid("oblique and mirrored", mask.shape)
    surface = surface_of(mask, geometry, tolerance)
    assert is_closed(surface)
    witness = as_trimesh(surface)
    assert witness.is_watertight
    assert witness.is_winding_consistent
    volume = np.count_nonzero(mask) * float(np.prod(SPACING_MM))
    assert witness.volume == pytest.approx(
        volume, rel=1e-4
    )  # positive: the triangles look outwards
    assert surface.volume_ml * 1000 == pytest.approx(volume, rel=1e-5)


@pytest.mark.parametrize("name", list(DIRECTIONS))
def test_a_ball_is_round_and_in_its_place(name: str) -> None:
    geometry = grid(name)
    surface = surface_of(ball(), geometry, tolerance_mm=0.1)
    radii = np.linalg.norm(surface.points - geometry.center_ras, axis=1)
    # Steps of voxels of 2.1 mm would leave more than half of one.
    assert (radii.min(), radii.max()) == pytest.approx((14.0, 14.0), abs=0.75)
    assert radii.std() < 0.3
    np.testing.assert_allclose(as_trimesh(surface).center_mass, geometry.center_ras, atol=0.05)


@pytest.mark.parametrize("tolerance", [0.4, 0.8])
def test_thinning_keeps_to_the_tolerance(tolerance: float) -> None:
    mask = ball(radius_mm=9.0)
    whole, thin = surface_of(mask, grid(), 0.0), surface_of(mask, grid(), tolerance)
    _, there, _ = trimesh.proximity.closest_point_naive(as_trimesh(thin), whole.points[::2])
    _, back, _ = trimesh.proximity.closest_point_naive(as_trimesh(whole), thin.points[::4])
    assert len(thin.triangles) < 0.8 * len(whole.triangles)
    assert max(there.max(), back.max()) <= tolerance


def test_an_open_surface_is_found() -> None:
    surface = surface_of(ball(), grid())
    assert not is_closed(Surface(surface.points, surface.triangles[:-1]))
    turned = np.vstack([surface.triangles[:-1], surface.triangles[-1:, ::-1]])
    assert not is_closed(Surface(surface.points, turned))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("ending", FORMATS)
def test_other_software_reads_the_files(ending: str, space: str, tmp_path: Path) -> None:
    surface = surface_of(ball(), grid())
    path = tmp_path / file_name(KIDNEY, ending)
    write_surface(path, surface, KIDNEY, space)
    assert path.name == f"17_left_kidney_cortex_medulla{ending}"
    scene = trimesh.load_scene(path)
    (mesh,) = scene.geometry.values()
    signs = np.array([-1, -1, 1]) if space == "LPS" else np.ones(3)
    center = grid().center_ras
    np.testing.assert_allclose(mesh.center_mass, center * signs, atol=0.05)
    assert mesh.volume / 1000 == pytest.approx(surface.volume_ml, rel=1e-4)
    if ending != ".stl":  # STL readers join points in different ways
        assert len(mesh.faces) == len(surface.triangles)
    mesh.merge_vertices()
    assert mesh.is_watertight
    if ending == ".glb":
        right, front, up = center / 1000  # glTF: metres, x to the left, y up, z to the viewer
        np.testing.assert_allclose(scene.to_mesh().center_mass, (-right, up, front), atol=1e-4)
        shown = mesh.visual.material.baseColorFactor
        linear = (np.array(KIDNEY.color) / 255) ** 2.2
        np.testing.assert_allclose(np.array(shown[:3]) / 255, linear, atol=0.02)
    else:
        assert f"SPACE={space}".encode() in path.read_bytes()[:80]


def test_options_and_files_that_cannot_be() -> None:
    with pytest.raises(RequestError, match="tolerance"):
        surface_of(ball(), grid(), -0.1)
    with pytest.raises(RequestError, match="tolerance"):
        surface_of(ball(), grid(), float("nan"))
    with pytest.raises(InputError, match="not have a surface"):
        surface_of(np.zeros(SHAPE, bool), grid())
    with pytest.raises(OutputError, match="does not exist"):
        write_surface("/nowhere/at/all.stl", surface_of(ball(), grid()), KIDNEY)


def test_names_that_are_no_file_names() -> None:
    assert file_name(Label(3, "../../Niere", (0, 0, 0)), ".stl") == "3_niere.stl"
    assert file_name(Label(4, "肾", (0, 0, 0)), ".obj") == "4.obj"
    assert len(file_name(Label(5, "x" * 300, (0, 0, 0)), ".glb")) <= 84


def test_real_structures(shared_data: Path) -> None:
    labelmap, labels = read_labelmap(
        shared_data / "totalsegmentator-examples" / "example_seg.nii.gz"
    )
    boxes = label_boxes(labelmap.voxels, [label.value for label in labels])
    assert len(boxes) > 20
    for value, box in list(boxes.items())[::4]:
        mask = labelmap.voxels[box] == value
        part = labelmap.geometry.cropped([side.start for side in box], mask.shape)
        surface = surface_of(mask, part, 0.2)
        assert is_closed(surface), value
        assert as_trimesh(surface).is_watertight, value
