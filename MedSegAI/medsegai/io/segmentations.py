"""Slicer's segmentations (.seg.nrrd) of all versions, with the content of their fields.

A field that Slicer does not need is not required here: a segment without a name is named by its identifier, a
segment without a colour gets a generated one, and before Slicer 4.11 every segment had its own layer and the value
1.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from nrrd import NRRDError
from numpy.typing import NDArray

from medsegai.decoding import PARSER_ERRORS
from medsegai.errors import GeometryError, InputError, ModelError
from medsegai.io.files import (
    check_3d,
    check_memory,
    check_stored_size,
    placed,
    unreadable,
)
from medsegai.io.headers import HEADER_BYTES, header_text, stored
from medsegai.labels import Label, Terminology, made_color
from medsegai.volume import Geometry

TO_RAS = {
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
}
"""Signs of the axes of NRRD's spaces."""

TYPES = {
    name: kind
    for kind, names in {
        "i1": "signed char,int8,int8_t",
        "u1": "uchar,unsigned char,uint8,uint8_t",
        "i2": "short,short int,signed short,signed short int,int16,int16_t",
        "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        "i4": "int,signed int,int32,int32_t",
        "u4": "uint,unsigned int,uint32,uint32_t",
        "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
        "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(",")
}

_KEY_VALUE = re.compile(r"^([^:\n]+):=(.*?)\r?$", re.MULTILINE)
_SEGMENT_KEY = re.compile(r"Segment(\d+)_(.+)")
_REFERENCE = re.compile(r"(?:^|&)Reference image geometry\|([^|]*)\|")


@dataclass(frozen=True)
class Segment:
    """One segment: its layer, its value and its meaning.

    `label.value` is the value in its layer; the labels of several layers are renumbered.
    """

    label: Label
    layer: int


@dataclass(frozen=True)
class Segmentation:
    """The content of a .seg.nrrd file.

    Attributes:
        layers: the values (layer, k, j, i).
        geometry: the grid of each layer.
        segments: the segments in the order of the file.
        reference: the grid of the segmented scan, if the file states it, because Slicer writes only the box around
            the segments.
    """

    layers: NDArray[np.integer]
    geometry: Geometry
    segments: tuple[Segment, ...]
    reference: Geometry | None


def has_segments(path: Path) -> bool:
    """Whether an NRRD file holds segments rather than an image or a plain labelmap."""
    with path.open("rb") as file:
        return re.search(rb"\nSegment\d+_", file.read(HEADER_BYTES)) is not None


def read_segments(path: Path) -> Segmentation:
    """Read a Slicer segmentation.

    Raises:
        InputError: the file is damaged, not of three dimensions, or has fractional segments.
        GeometryError: the voxels cannot be placed.
    """
    try:
        text = header_text(path)
        where = stored(path, text)
        header = nrrd.read_header(
            io.BytesIO(text)
        )  # a path with a line break would count as content
        fields = dict(_KEY_VALUE.findall(text.decode("utf-8", errors="replace")))
        _check_binary(path, fields)
        sizes = [int(size) for size in header["sizes"]]
        axis = _list_axis(header, sizes)
        i, j, k = check_3d(path, [size for n, size in enumerate(sizes) if n != axis])
        kind = np.dtype(TYPES[str(header["type"]).lower()])
        check_stored_size(path, math.prod(sizes) * kind.itemsize, where)
        voxels = where.read(path, math.prod(sizes), kind).reshape(sizes[::-1])
        if axis is not None:
            voxels = np.moveaxis(voxels, len(sizes) - 1 - axis, 0)
        layers = voxels.reshape(-1, k, j, i)
        segments = _segments(fields, len(layers))
        matrix = _to_ras(header, axis)
    except (*PARSER_ERRORS, NRRDError) as error:
        raise unreadable(path, error, "a Slicer segmentation") from error
    geometry = placed(path, (k, j, i), matrix)
    return Segmentation(layers, geometry, segments, _reference(path, fields, kind))


def _check_binary(path: Path, fields: Mapping[str, str]) -> None:
    if "Fractional" in fields.get("Segmentation_MasterRepresentation", ""):
        raise InputError(
            f"{path} holds fractional segments. Convert it to a binary labelmap in Slicer's Segmentations "
            "module."
        )


def _list_axis(header: Mapping[str, Any], sizes: Sequence[int]) -> int | None:
    """Return the axis of the layers in the order of the file, by its kind, or otherwise by its direction."""
    if len(sizes) == 3:
        return None
    space = ("domain", "space")
    kinds = [str(kind).lower() in space for kind in header.get("kinds") or []]
    kinds = kinds or np.isfinite(header["space directions"]).all(axis=1).tolist()
    if len(sizes) != 4 or len(kinds) != 4 or sum(kinds) != 3:
        raise ValueError("its axes are not those of a segmentation")
    return kinds.index(False)


def _to_ras(header: Mapping[str, Any], axis: int | None) -> NDArray[np.float64]:
    space = str(header.get("space", "left-posterior-superior")).lower()
    if space not in TO_RAS:
        raise ValueError(f"its space {space!r} is not known")
    directions = np.asarray(header["space directions"], np.float64)
    directions = directions if axis is None else np.delete(directions, axis, axis=0)
    matrix = np.eye(4)
    matrix[:3, :3] = directions.reshape(3, 3).T
    matrix[:3, 3] = header.get("space origin", (0.0, 0.0, 0.0))
    return np.diag([*TO_RAS[space], 1.0]) @ matrix


def _segments(fields: Mapping[str, str], layers: int) -> tuple[Segment, ...]:
    by_number: dict[int, dict[str, str]] = {}
    for key, value in fields.items():
        match = _SEGMENT_KEY.fullmatch(key)
        if match is not None:
            by_number.setdefault(int(match[1]), {})[match[2]] = value
    in_order = [by_number[number] for number in sorted(by_number)]
    of_layers = any("Layer" in segment for segment in in_order) or layers == 1
    found = []
    for number, segment in enumerate(in_order):
        layer = int(segment.get("Layer", 0 if of_layers else number))
        if not 0 <= layer < layers:
            raise ValueError(f"segment {number} is in layer {layer} of {layers}")
        found.append(Segment(_label(segment, number), layer))
    places = [(segment.layer, segment.label.value) for segment in found]
    if len(set(places)) < len(places):
        raise ValueError("two segments have the same value in one layer")
    return tuple(found)


def _label(segment: Mapping[str, str], number: int) -> Label:
    value = int(segment.get("LabelValue", 1))
    name = _words(segment.get("Name")) or _words(segment.get("ID")) or f"Segment_{number + 1}"
    if value < 1:
        raise ValueError(f"segment {name!r} has the background value {value}")
    return Label(value, name, _color(segment.get("Color"), number + 1), _codes(segment))


def _words(text: str | None) -> str:
    """Return text in one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text or "").split())


def _color(text: str | None, number: int) -> tuple[int, int, int]:
    """Return red, green and blue; a generated colour if the file does not have a readable one."""
    try:
        red, green, blue = (
            round(255 * min(max(float(part), 0.0), 1.0)) for part in (text or "").split()
        )
    except ValueError:
        return made_color(number)
    return red, green, blue


def _codes(segment: Mapping[str, str]) -> Terminology | None:
    """Return the codes of a segment; None if it has none, or invalid ones."""
    for tag in segment.get("Tags", "").split("|"):
        key, colon, entry = tag.strip().partition(":")
        if key == "TerminologyEntry" and colon:
            try:
                return Terminology.from_slicer(entry)
            except ModelError:
                return None
    return None


def _reference(path: Path, fields: Mapping[str, str], kind: np.dtype[Any]) -> Geometry | None:
    """Return the grid of the scan, which Slicer stores as 16 numbers of a matrix to RAS and 6 of an extent."""
    match = _REFERENCE.search(fields.get("Segmentation_ConversionParameters", ""))
    try:
        numbers = [float(part) for part in match[1].split(";") if part.strip()] if match else []
        if len(numbers) != 22:
            return None
        first, last = (np.array(numbers[start::2][:3]) for start in (16, 17))
        matrix = np.reshape(numbers[:16], (4, 4))
        matrix[:3, 3] = (matrix @ [*first, 1.0])[:3]
        shape = (last - first + 1)[::-1].astype(int)
        grid = Geometry((shape[0], shape[1], shape[2]), matrix)
    except (GeometryError, ValueError, OverflowError):
        return None
    check_memory(path, math.prod(grid.shape) * kind.itemsize)
    return grid
