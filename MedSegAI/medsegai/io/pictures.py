"""Pictures: PNG, JPEG, TIFF and BMP files of one image, grey or in colour.

A picture becomes a volume of one slice, placed as Slicer places it: the first pixel at the origin, columns to the
left and rows to the back of the patient. What a pixel measures is not known from such files (resolutions that they
state are those of a printer), so voxels are of 1 mm and the volume says that they are not to be believed.
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
from medsegai.errors import InputError, MismatchError
from medsegai.io.decoder import asked, decoded, itk_voxels
from medsegai.io.files import check_memory, native, unreadable
from medsegai.volume import Geometry, Volume

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""Endings of pictures, lower case."""

KIND = "a picture"

GREY = ("1", "L", "I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Modes of Pillow with one value a pixel."""

IN_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
"""Modes that become red, green and blue."""

COLOURS = ("red", "green", "blue")

LUMINANCE = (0.299, 0.587, 0.114)
"""How bright red, green and blue are (ITU-R BT.601)."""

PIXELS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Columns run to the left and rows to the back, as ITK's identity is in Slicer."""

_DEEP = {"PNG": "PNGImageIO", "TIFF": "TIFFImageIO"}
"""Formats of which Pillow drops the lower eight bits where pixels have sixteen and several bands, and readers of
ITK that keep them."""


@dataclass(frozen=True)
class Picture:
    """Pixels as they are to be seen.

    Attributes:
        pixels: (j, i) or, of colours, (j, i, 3).
        notes: what was changed on the way, in words.
    """

    pixels: NDArray[np.number]
    notes: tuple[str, ...] = ()


def is_picture(path: Path) -> bool:
    """Whether the name of a file is that of a picture."""
    return path.name.lower().endswith(PICTURE_ENDINGS)


def read_picture(path: Path) -> tuple[Volume, ...]:
    """The channels of a picture, one volume for grey, three for red, green and blue.

    Transparency is left out, palettes and CMYK become colours, and a picture that its camera marked as turned is
    turned; notes say so.

    Raises:
        InputError: it cannot be read, has several pages, or colours of another kind.
    """
    picture = read_pixels(path)
    pixels = picture.pixels if picture.pixels.ndim == 3 else picture.pixels[..., None]
    geometry = Geometry((1, *pixels.shape[:2]), PIXELS_TO_RAS)
    return tuple(
        Volume(
            np.ascontiguousarray(pixels[None, ..., channel]),
            geometry,
            str(path),
            picture.notes,
            size_known=False,
        )
        for channel in range(pixels.shape[2])
    )


def read_label_picture(path: Path) -> Volume:
    """The numbers of a grey picture, or those of a palette, as label values.

    Raises:
        InputError: see `read_picture`; or it is in colours.
    """
    picture = read_pixels(path, palette=True)
    if picture.pixels.ndim > 2:
        raise InputError(
            f"{path} is in colours. Name a label map that is grey or has a palette, whose numbers are the labels."
        )
    geometry = Geometry((1, *picture.pixels.shape), PIXELS_TO_RAS)
    return Volume(picture.pixels[None], geometry, str(path), picture.notes, size_known=False)


def grey(channels: Sequence[Volume]) -> Volume:
    """One volume from one or three channels: their luminance, in the type of the channels.

    Channels that are all alike are one of them.
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
    """Images, one for each channel that a model takes, and what was made of those that were given."""

    channels: list[Volume]
    warnings: tuple[str, ...] = ()


def as_channels(given: Sequence[Volume], count: int, anyway: bool = False) -> Channels:
    """The channels that a model of single images takes, from those that an image has.

    A grey image serves a model of colours as if it were in colours. A picture in colours serves a model of grey
    images by its luminance, if all of its colours are grey or `anyway` is true.

    Args:
        given: of one slice each, on one grid.
        count: how many the model takes.
        anyway: whether colours may be left out, and several slices be segmented one by one.

    Raises:
        MismatchError: the image has colours, and the model takes grey ones; or it has several slices.
        InputError: another number of channels.
    """
    first = given[0]
    name = first.source or "The image"
    warnings: list[str] = []
    slices = first.geometry.shape[0]
    if slices > 1:
        if not anyway:
            raise MismatchError(
                f"{name} has {slices} slices, and the model takes single images. Name one image, or let each "
                "slice be segmented by itself (--anyway; in Slicer: Any kind of scan)."
            )
        warnings.append(f"Each of the {slices} slices of {name} was segmented by itself.")
    if len(given) == count:
        return Channels(list(given), tuple(warnings))
    if len(given) == 1 and count == len(COLOURS):
        warnings.append(
            f"{name} is grey, and the model was made for colours. Look at the result with care."
        )
        return Channels(list(given) * count, tuple(warnings))
    if len(given) == len(COLOURS) and count == 1:
        seen = grey(given)
        if seen is not first and not anyway:
            raise MismatchError(
                f"{name} is in colours, and the model takes grey images. Save it in grey, or segment its "
                "luminance (--anyway; in Slicer: Any kind of scan)."
            )
        return Channels([seen], tuple(warnings))
    raise InputError(f"{name} has {len(given)} channels, and the model takes {count}.")


def read_pixels(path: Path, palette: bool = False) -> Picture:
    """The pixels of a picture.

    Args:
        path: the file.
        palette: whether the numbers of a palette are wanted as they are: they are labels of a label map.

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
        f"{path} has more pixels than a picture is read with. Crop it, or make it smaller, first."
    )


def _pixels(path: Path, head: dict[str, Any], palette: bool) -> Picture:
    """Pixels of a picture by what its header says; see `decoding.pictures.header`."""
    mode, bands, (columns, rows) = head["mode"], head["bands"], head["size"]
    if head["pages"] > 1:
        raise InputError(
            f"{path} has {head['pages']} pages or frames. Save the wanted one as a picture of its own."
        )
    needed = rows * columns * bands * (4 if mode in ("I", "F") else 2)
    check_memory(path, needed)
    if bands > 1 and head["format"] in _DEEP and ";16" in head["stored"]:
        return Picture(*_deep(path, head))
    numbers = palette and mode == "P"
    if mode not in (*GREY, "LA", "La", *IN_COLOUR):
        raise InputError(
            f"{path} has colours of the kind {mode}, which are not read. Save it as RGB or grey."
        )
    pixels = decoded("pictures.pixels", path, 2 * needed, numbers=numbers)
    return Picture(native(pixels), tuple(_changes(path, head, numbers)))


def _changes(path: Path, head: dict[str, Any], numbers: bool) -> Iterator[str]:
    """What the pixels do not show of the file."""
    if head["turned"]:
        yield f"{path} was turned as its camera says (EXIF)."
    if numbers:
        return
    if head["mode"] in ("LA", "La", "RGBA", "RGBa", "PA") or head["transparency"]:
        yield f"The transparency of {path} was left out."
    if head["mode"] == "CMYK":
        yield f"{path} has colours for print (CMYK), which were turned into red, green and blue."


def _deep(path: Path, head: dict[str, Any]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Pixels of sixteen bits in several bands, by ITK."""
    columns, rows = head["size"]
    pixels = itk_voxels(path, _DEEP[head["format"]], 2 * rows * columns * head["bands"])
    pixels = pixels.reshape(rows, columns, -1)
    if pixels.shape[2] in (1, 3):
        return np.squeeze(pixels, 2) if pixels.shape[2] == 1 else pixels, ()
    pixels = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    return pixels, (f"The transparency of {path} was left out.",)
