"""Pictures: PNG, JPEG, TIFF and BMP files of one image, grey or in colour.

A picture becomes a volume of one slice, placed as Slicer places it: the first pixel at the origin, columns to the
left and rows to the back of the patient. Such files do not state the size of a pixel (their resolutions are meant
for printers), so voxels have 1 mm, and the volume says that their size is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.decoding import PARSER_ERRORS
from medsegai.errors import InputError, MismatchError, counted
from medsegai.io.decoder import asked, decoded, itk_voxels
from medsegai.io.files import check_memory, native, unreadable
from medsegai.volume import Geometry, Volume

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""Endings of pictures, lower case."""

KIND = "a picture"

GREY = ("1", "L", "I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Pillow's modes with one value per pixel."""

IN_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes that become red, green and blue."""

COLOURS = ("red", "green", "blue")

LUMINANCE = (0.299, 0.587, 0.114)
"""The luminance of red, green and blue (ITU-R BT.601)."""

PIXELS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""The directions of pictures: columns run to the left and rows to the back, as ITK's identity does in Slicer."""

_DEEP = {"PNG": "PNGImageIO", "TIFF": "TIFFImageIO"}
"""Formats of which Pillow drops the lower eight bits if pixels have sixteen bits and several bands, with the ITK
readers that keep them."""


@dataclass(frozen=True)
class Picture:
    """The pixels of a picture as it should be seen.

    Attributes:
        pixels: the pixels (j, i), or (j, i, 3) in colour.
        notes: changes that were made when reading, in words.
    """

    pixels: NDArray[np.number]
    notes: tuple[str, ...] = ()


def is_picture(path: Path) -> bool:
    """Whether a file has the name of a picture."""
    return path.name.lower().endswith(PICTURE_ENDINGS)


def read_picture(path: Path) -> tuple[Volume, ...]:
    """Read the channels of a picture: one volume for grey, three for red, green and blue.

    Transparency is left out, palettes and CMYK become colours, and a picture is rotated as its camera recorded;
    notes report such changes.

    Raises:
        InputError: the picture cannot be read, has several pages, or has another kind of colours.
    """
    picture = read_pixels(path)
    planes = channel_planes(picture.pixels)
    geometry = Geometry(planes[0].shape, PIXELS_TO_RAS)
    return tuple(
        Volume(plane, geometry, str(path), picture.notes, size_known=False) for plane in planes
    )


def channel_planes(pixels: NDArray[np.number]) -> list[NDArray[np.number]]:
    """Return the channels of pixels (row, column) or (row, column, channel) as slices (1, row, column)."""
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    return [np.ascontiguousarray(plane[None]) for plane in np.moveaxis(channels, -1, 0)]


def read_label_picture(path: Path) -> Volume:
    """Read the numbers of a grey picture, or those of a palette, as label values.

    Raises:
        InputError: see `read_picture`; or the picture is in colour.
    """
    picture = read_pixels(path, palette=True)
    if picture.pixels.ndim > 2:
        raise InputError(
            f"{path} is in colour. Name a label map that is grey or has a palette, whose numbers are the labels."
        )
    geometry = Geometry((1, *picture.pixels.shape), PIXELS_TO_RAS)
    return Volume(picture.pixels[None], geometry, str(path), picture.notes, size_known=False)


def grey(channels: Sequence[Volume]) -> Volume:
    """Make one volume from one or three channels: their luminance, in the type of the channels.

    If all channels are equal, one of them is returned.
    """
    first = channels[0]
    if all(np.array_equal(first.voxels, other.voxels) for other in channels[1:]):
        return first
    mixed = sum(
        weight * channel.voxels.astype(np.float64)
        for weight, channel in zip(LUMINANCE, channels, strict=True)
    )
    whole = first.voxels.dtype.kind in "iu"
    return first.with_voxels(
        (np.rint(mixed) if whole else np.asarray(mixed)).astype(first.voxels.dtype)
    )


@dataclass(frozen=True)
class Channels:
    """Images, one for each channel of a model, with notes on how the given images were changed."""

    channels: list[Volume]
    warnings: tuple[str, ...] = ()


def as_channels(given: Sequence[Volume], count: int, anyway: bool = False) -> Channels:
    """Return the channels that a model of single images takes, from the channels of an image.

    A model of colour images takes a grey image as if it were in colour. A model of grey images takes the luminance
    of a colour picture, if all of its colours are grey or `anyway` is true.

    Args:
        given: the channels of the image, of one slice each, on one grid.
        count: the number of channels that the model takes.
        anyway: whether colours may be ignored, and several slices segmented one by one.

    Raises:
        MismatchError: the image is in colour, but the model takes grey images; or it has several slices.
        InputError: the image has another number of channels.
    """
    first = given[0]
    name = first.source or "The image"
    warnings = _slice_by_slice(name, first.geometry.shape[0], anyway)
    if len(given) == count:
        return Channels(list(given), warnings)
    if len(given) == 1 and count == len(COLOURS):
        warning = (
            f"{name} is grey, but the model was made for colour images. Check the result with care."
        )
        return Channels(list(given) * count, (*warnings, warning))
    if len(given) == len(COLOURS) and count == 1:
        seen = grey(given)
        if seen is not first and not anyway:
            raise MismatchError(
                f"{name} is in colour, but the model takes grey images. Save it in grey, or "
                "segment its luminance (--anyway; in Slicer: Any kind of scan)."
            )
        return Channels([seen], warnings)
    raise InputError(
        f"{name} has {counted(len(given), 'channel', 'channels')}, but the model takes {count}. "
        "Choose another image or model."
    )


def _slice_by_slice(name: str, slices: int, anyway: bool) -> tuple[str, ...]:
    """The warning that several slices deserve, if they may be segmented one by one."""
    if slices == 1:
        return ()
    if not anyway:
        raise MismatchError(
            f"{name} has {slices} slices, but the model takes single images. Name one image, or segment each "
            "slice by itself (--anyway; in Slicer: Any kind of scan)."
        )
    return (f"Each of the {slices} slices of {name} was segmented by itself.",)


def read_pixels(path: Path, palette: bool = False) -> Picture:
    """Read the pixels of a picture.

    Args:
        path: the file.
        palette: whether the numbers of a palette are returned, because they are labels of a label map.

    Raises:
        InputError: see `read_picture`.
    """
    try:
        head = asked("pictures.header", path)
        if "refused" in head:
            raise _refused(path, head["refused"])
        return _pixels(path, head, palette)
    except PARSER_ERRORS as error:
        raise unreadable(path, _UNPREFIXED.sub("", str(error)), KIND) from error


_UNPREFIXED = re.compile(r"^\w+Error: ")


def _refused(path: Path, why: str) -> InputError:
    if why == "unknown":
        return unreadable(path, "its content is not known", KIND)
    return InputError(
        f"{path} has more pixels than can be read. Crop it, or make it smaller, first."
    )


def _pixels(path: Path, head: dict[str, Any], palette: bool) -> Picture:
    """Read the pixels of a picture according to its header; see `decoding.pictures.header`."""
    mode, bands, (columns, rows) = head["mode"], head["bands"], head["size"]
    if head["pages"] > 1:
        raise InputError(
            f"{path} has {head['pages']} pages or frames, but a picture must have one. Save "
            "the wanted one as a separate picture."
        )
    needed = rows * columns * bands * (4 if mode in ("I", "F") else 2)
    check_memory(path, needed)
    if bands > 1 and head["format"] in _DEEP and ";16" in head["stored"]:
        return Picture(*_deep(path, head))
    numbers = palette and mode == "P"
    if mode not in (*GREY, "LA", "La", *IN_COLOUR):
        raise InputError(
            f"{path} has colours of the type {mode}, which are not supported. Save it as RGB or grey."
        )
    pixels = decoded("pictures.pixels", path, 2 * needed, numbers=numbers)
    return Picture(native(pixels), tuple(_changes(path, head, numbers)))


def _changes(path: Path, head: dict[str, Any], numbers: bool) -> Iterator[str]:
    """Return notes on properties of the file that the pixels do not show."""
    if head["turned"]:
        yield f"{path} was rotated as its camera recorded (EXIF)."
    if numbers:
        return
    if head["mode"] in ("LA", "La", "RGBA", "RGBa", "PA") or head["transparency"]:
        yield f"The transparency of {path} was left out."
    if head["mode"] == "CMYK":
        yield f"{path} has colours for print (CMYK), which were converted to red, green and blue."


def _deep(path: Path, head: dict[str, Any]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Read 16-bit pixels of several bands with ITK."""
    columns, rows = head["size"]
    pixels = itk_voxels(path, _DEEP[head["format"]], 2 * rows * columns * head["bands"])
    pixels = pixels.reshape(rows, columns, -1)
    if pixels.shape[2] in (1, 3):
        return np.squeeze(pixels, 2) if pixels.shape[2] == 1 else pixels, ()
    pixels = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    return pixels, (f"The transparency of {path} was left out.",)
