"""What Pillow reads: PNG, JPEG, TIFF and BMP."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
"""Formats that are opened, whatever a file is called. For others, such as PostScript, Pillow starts programs."""

TURNED = 0x0112
"""Number of the EXIF tag that says how the camera was held; 1 is upright."""


def header(path: str) -> dict[str, Any]:
    """What a picture is, or in `refused` why it is not one.

    Besides the size (columns, rows), this is its mode and format as Pillow calls them, the number of bands and of
    pages, how the pixels are stored, whether there is transparency, and whether it is turned when it is decoded.
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
    """Whether the camera was held otherwise; TIFF is turned by Pillow itself."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    return bool(image.getexif().get(TURNED, 1) != 1)


def pixels(path: str, numbers: bool) -> NDArray[np.number]:
    """Grey (row, column), or colours (row, column, 3).

    Args:
        path: the picture.
        numbers: whether those of a palette are wanted as they are, and not its colours.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as image:
            turned = _turned(image)
            image.load()
            upright = ImageOps.exif_transpose(image) if turned else image
            return np.array(upright) if numbers and upright.mode == "P" else _seen(upright)


def _seen(image: Image.Image) -> NDArray[np.number]:
    """Without transparency, and with colours as red, green and blue."""
    if image.mode == "1":
        return np.array(image, dtype=np.uint8) * np.uint8(255)
    if image.mode in ("LA", "La"):
        return np.array(image.convert("LA"))[..., 0]
    if image.mode in ("P", "PA", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        return np.array(image)[..., :3]
    return np.array(image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "RGBX") else image)
