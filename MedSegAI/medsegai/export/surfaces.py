"""Structures as closed surfaces in millimetres, for viewing, planning and printing: STL, OBJ and GLB.

The faces between voxels inside and outside form a closed surface. It is relaxed, with each point staying near its
voxel face (constrained surface nets: S. Gibson, MICCAI 1998), moved along its normals until it has the volume of
the voxels again, and simplified within a tolerance. manifold3d keeps every edge between exactly two triangles on
the way.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from medsegai.errors import InputError, RequestError
from medsegai.io import atomic_path
from medsegai.labels import Label
from medsegai.volume import Geometry

if TYPE_CHECKING:
    import manifold3d

SPACES = {"LPS": np.array([-1.0, -1.0, 1.0]), "RAS": np.ones(3)}
"""The coordinate systems of the files, as signs of RAS. 3D Slicer assumes LPS in STL and OBJ."""

TOLERANCE_MM = 0.1
RELAXATIONS = 20
REACH = 0.4
"""The largest move of a point by relaxation along an axis, in voxels; at 0.5 a single voxel would vanish."""

VOLUME_STEPS = 50
VOLUME_ERROR = 1e-6

Points = NDArray[np.float64]
Triangles = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Surface:
    """A closed surface.

    Attributes:
        points: the points (n, 3), RAS mm.
        triangles: the triangles (m, 3) as indices into `points`, counter-clockwise from outside.
    """

    points: Points
    triangles: Triangles

    @property
    def volume_ml(self) -> float:
        """The volume inside the surface in ml."""
        return _signed_volume(self.points, self.triangles) / 1000


def surface_of(
    mask: NDArray[np.bool_],
    grid: Geometry,
    tolerance_mm: float = TOLERANCE_MM,
) -> Surface:
    """Return the surface of a structure, with the volume of its voxels.

    A structure that touches the border of the grid is closed there, flat at its outermost voxels. Parts that are
    connected only by an edge or corner of voxels are separated.

    Args:
        mask: the mask (k, j, i), with at least one voxel.
        grid: the grid of the mask.
        tolerance_mm: the largest distance by which the surface moves when points are left out; 0 only leaves out
            points in planes.

    Raises:
        RequestError: the tolerance is negative.
        InputError: the mask does not have a voxel.
    """
    if not 0 <= tolerance_mm < np.inf:
        raise RequestError(
            f"The tolerance of surfaces must be at least 0 mm, not {tolerance_mm:g}."
        )
    if not mask.any():
        raise InputError("A structure without voxels does not have a surface. Leave it out.")
    corners, triangles = _manifold_mesh(*_voxel_faces(mask))
    points = (
        _relaxed(corners, triangles)[:, ::-1] @ grid.ijk_to_ras[:3, :3].T + grid.ijk_to_ras[:3, 3]
    )
    if _signed_volume(points, triangles) < 0:
        triangles = triangles[:, ::-1]
    volume = np.count_nonzero(mask) * grid.voxel_volume_ml * 1000
    points = _with_volume(points, triangles, volume)
    # The deviation was up to 1.9 times the tolerance of simplify() on balls.
    points, triangles = _manifold_mesh(points, triangles, tolerance_mm / 2)
    return Surface(_with_volume(points, triangles, volume), triangles)


def _voxel_faces(mask: NDArray[np.bool_]) -> tuple[Points, Triangles]:
    """Return the faces between inside and outside, two triangles each; points are (k, j, i) in voxels."""
    padded = np.pad(mask, 1).astype(np.int8)
    units = np.eye(3, dtype=np.int64)
    quads = []
    for axis in range(3):
        along, across = units[(axis + 1) % 3], units[(axis + 2) % 3]
        crossed = np.diff(padded, axis=axis)
        for change, (second, fourth) in ((-1, (along, across)), (1, (across, along))):
            first = np.argwhere(crossed == change) + units[axis]
            corners = [first, first + second, first + along + across, first + fourth]
            quads.append(np.stack(corners, 1))
    points = np.concatenate(quads).reshape(-1, 3)
    size = np.array(padded.shape) + 1
    flat = np.ravel_multi_index(tuple(points.T), tuple(size))
    used, number = np.unique(flat, return_inverse=True)
    places = np.stack(np.unravel_index(used, tuple(size)), axis=1)
    four = number.reshape(-1, 4)
    return places.astype(np.float64) - 1.5, np.concatenate([four[:, [0, 1, 2]], four[:, [0, 2, 3]]])


def _manifold_mesh(
    points: Points, triangles: Triangles, tolerance_mm: float | None = None
) -> tuple[Points, Triangles]:
    """Return the mesh with each edge between two triangles, simplified if there is a tolerance."""
    import manifold3d

    mesh = manifold3d.Mesh64(
        np.ascontiguousarray(points), np.ascontiguousarray(triangles, dtype=np.uint64)
    )
    body = manifold3d.Manifold(mesh)
    if body.status() != manifold3d.Error.NoError:
        raise RuntimeError(f"manifold3d: {body.status()}")  # a bug, because voxel faces are closed
    return _arrays(body if tolerance_mm is None else body.simplify(tolerance_mm))


def _arrays(body: manifold3d.Manifold) -> tuple[Points, Triangles]:
    mesh = body.to_mesh64()
    points = np.array(mesh.vert_properties, np.float64)[:, :3]
    return points, np.array(mesh.tri_verts, np.int64)


def _relaxed(points: Points, triangles: Triangles) -> Points:
    """Move points towards the mean of their neighbours, within `REACH` of their original positions."""
    count = len(points)
    start, end = triangles[:, [0, 1, 2]].ravel(), triangles[:, [1, 2, 0]].ravel()
    ones = np.ones(2 * len(start))
    pairs = (np.concatenate([start, end]), np.concatenate([end, start]))
    neighbours = sparse.csr_array((ones, pairs), (count, count))
    mean = sparse.diags_array(1 / np.ravel(neighbours.sum(axis=1))) @ neighbours
    moved = points
    for _ in range(RELAXATIONS):
        moved = np.clip((moved + mean @ moved) / 2, points - REACH, points + REACH)
    return moved


def _with_volume(points: Points, triangles: Triangles, volume: float) -> Points:
    """Move all points equally far along their normals, until the surface has `volume` (mm³)."""
    longest = np.ptp(points, axis=0).max() / 10
    for _ in range(VOLUME_STEPS):
        missing = volume - _signed_volume(points, triangles)
        if abs(missing) < VOLUME_ERROR * volume:
            break
        faces = _area_vectors(points, triangles)
        normals = np.zeros_like(points)
        for corner in range(3):
            np.add.at(normals, triangles[:, corner], faces)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        gain = np.einsum("ij,ij->", faces, normals[triangles].sum(axis=1)) / 3  # mm³ per mm
        points = points + normals * min(missing / gain, longest)
    return points


def _area_vectors(points: Points, triangles: Triangles) -> Points:
    """Return area times outward normal of each triangle."""
    first, second, third = (points[triangles[:, corner]] for corner in range(3))
    return np.asarray(np.cross(second - first, third - first) / 2)


def _signed_volume(points: Points, triangles: Triangles) -> float:
    """Return the volume inside, negative if the triangles face inwards."""
    near = points - points.mean(axis=0)
    first, second, third = (near[triangles[:, corner]] for corner in range(3))
    return float(np.einsum("ij,ij->", first, np.cross(second, third)) / 6)


def file_name(label: Label, ending: str) -> str:
    """Return a file name for the surface of a structure that every system accepts: `17_left_hippocampus.stl`."""
    words = re.sub(r"[^a-z0-9]+", "_", label.name.lower()).strip("_")
    return f"{label.value}_{words}"[:80].rstrip("_") + ending


def write_surface(path: Path | str, surface: Surface, label: Label, space: str = "LPS") -> None:
    """Write .stl (binary), .obj or .glb, in mm.

    STL and OBJ name their coordinate system in a comment, as 3D Slicer does. glTF uses metres with Y upwards, so
    the points of a .glb are in mm, and the node above them scales and rotates them.

    Raises:
        OutputError: the file cannot be written.
    """
    points = surface.points * SPACES[space]
    data = _WRITERS[Path(path).suffix.lower()](points, surface.triangles, label, space)
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def _stl(points: Points, triangles: Triangles, label: Label, space: str) -> bytes:
    corners = points.astype("<f4")[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("extra", "<u2")])
    records = np.zeros(len(triangles), record)
    records["normal"], records["corners"] = normals, corners
    head = f"MedSegAI SPACE={space} UNIT=mm".encode().ljust(80)
    return head + struct.pack("<I", len(triangles)) + records.tobytes()


def _obj(points: Points, triangles: Triangles, label: Label, space: str) -> bytes:
    """Return the file as OBJ, to a tenth of a micrometre; one format for all points is three times as fast."""
    head = f"# MedSegAI SPACE={space} UNIT=mm\no {label.name}\n"
    places = "v %.4f %.4f %.4f\n" * len(points) % tuple(points.ravel().tolist())
    faces = "f %d %d %d\n" * len(triangles) % tuple((triangles + 1).ravel().tolist())
    return (head + places + faces).encode()


def _glb(points: Points, triangles: Triangles, label: Label, space: str) -> bytes:
    """Return one mesh in glTF 2.0 (Khronos Group), with points and triangles in one buffer."""
    places, corners = points.astype("<f4"), triangles.astype("<u4")
    views = [
        {"buffer": 0, "byteOffset": 0, "byteLength": places.nbytes, "target": 34962},
        {"buffer": 0, "byteOffset": places.nbytes, "byteLength": corners.nbytes, "target": 34963},
    ]
    bounds = {"min": places.min(axis=0).tolist(), "max": places.max(axis=0).tolist()}
    data: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "MedSegAI"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": label.name, "mesh": 0, "matrix": _upright(space)}],
        "meshes": [
            {
                "name": label.name,
                "primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "material": 0}],
                "extras": {"space": space, "unit": "mm"},
            }
        ],
        "materials": [{"pbrMetallicRoughness": _material(label)}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": len(places), "type": "VEC3"} | bounds,
            {"bufferView": 1, "componentType": 5125, "count": corners.size, "type": "SCALAR"},
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": places.nbytes + corners.nbytes}],
    }
    text = json.dumps(data).encode()
    text = text.ljust(-(-len(text) // 4) * 4)
    binary = places.tobytes() + corners.tobytes()
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    chunks += struct.pack("<II", len(binary), 0x004E4942) + binary
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


def _upright(space: str) -> list[float]:
    """Return the matrix from mm in `space` to metres with x to the patient's left, y to the head, z to the face.

    A glTF matrix is listed by columns.
    """
    to_left, to_back, _ = -SPACES[space]
    matrix = np.zeros((4, 4))
    matrix[0, 0], matrix[1, 2], matrix[2, 1], matrix[3, 3] = to_left, 1, -to_back, 1
    matrix[:3] *= 0.001
    return [float(value) for value in matrix.T.ravel()]


def _material(label: Label) -> dict[str, Any]:
    """Return the colour of the label; glTF colours are linear, those of labels sRGB."""
    shades = np.array(label.color) / 255
    linear = np.where(shades <= 0.04045, shades / 12.92, ((shades + 0.055) / 1.055) ** 2.4)
    return {
        "baseColorFactor": [*linear.tolist(), 1.0],
        "metallicFactor": 0.0,
        "roughnessFactor": 0.8,
    }


_WRITERS: dict[str, Callable[[Points, Triangles, Label, str], bytes]] = {
    ".stl": _stl,
    ".obj": _obj,
    ".glb": _glb,
}
FORMATS = tuple(_WRITERS)
"""The endings of surfaces that can be written."""
