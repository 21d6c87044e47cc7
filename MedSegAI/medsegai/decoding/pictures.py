"""The pictures that Pillow reads: PNG, JPEG, TIFF and BMP."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
"""The formats that are opened, whatever the file name. For others, such as PostScript, Pillow starts programs."""

TURNED = 0x0112
"""The number of the EXIF tag with the orientation of the camera; 1 is upright."""


def header(path: str) -> dict[str, Any]:
    """Return the properties of a picture, or in `refused` why it cannot be read.

    These are the size (columns, rows), Pillow's mode and format, the numbers of bands and pages, how the pixels
    are stored, whether there is transparency, and whether the picture is rotated when it is decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # memory is checked next
        try:
            with Image.open(path, formats=FORMATS) as image:
                return _described(image)
        except UnidentifiedImageError:
            return {"refused": "unknown"}
        except Image.DecompressionBombError:
            return {"refused": "bomb"}


def _described(image: Image.Image) -> dict[str, Any]:
    tiles = getattr(image, "tile", None)
    stored = tiles[0][3] if tiles else ""
    return {
        "size": image.size,
        "mode": image.mode,
        "format": image.format or "",
        "bands": len(image.getbands()),
        "pages": int(getattr(image, "n_frames", 1)),
        "stored": str(stored[0] if isinstance(stored, tuple) else stored),
        "transparency": "transparency" in image.info,
        "turned": _turned(image),
    }


def _turned(image: Image.Image) -> bool:
    """Whether the camera was not upright; Pillow rotates TIFF itself."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    return bool(image.getexif().get(TURNED, 1) != 1)


def pixels(path: str, numbers: bool) -> NDArray[np.number]:
    """Return grey values (row, column), or colours (row, column, 3).

    Args:
        path: the picture.
        numbers: whether the numbers of a palette are returned instead of its colours.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as image:
            turned = _turned(image)
            image.load()
            upright = ImageOps.exif_transpose(image) if turned else image
            return np.array(upright) if numbers and upright.mode == "P" else _seen(upright)


def _seen(image: Image.Image) -> NDArray[np.number]:
    """Return the image without transparency, and with colours as red, green and blue."""
    if image.mode == "1":
        return np.array(image, dtype=np.uint8) * np.uint8(255)
    if image.mode in ("LA", "La"):
        return np.array(image.convert("LA"))[..., 0]
    if image.mode in ("P", "PA", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        return np.array(image)[..., :3]
    return np.array(image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "RGBX") else image)
