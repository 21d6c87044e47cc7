"""A printable picture of a segmented image of one slice, in its own colours, with outlines and a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medsegai.labels import Label
from medsegai.request import NOT_FOR_DIAGNOSIS
from medsegai.volume import Volume

LONGEST, LEAST = 1600, 640
"""The pixels of the longer side of the picture; smaller or larger images are resized in proportion."""

WINDOW_PERCENTILES = (0.5, 99.5)

FONT_SIZE, LINE = 16, 24

INK, FAINT = (30, 30, 30), (110, 110, 110)


def render_picture(
    channels: Sequence[Volume], labelmap: Volume, labels: Sequence[Label]
) -> Image.Image:
    """Draw an image and the structures that were found in it.

    Args:
        channels: red, green and blue, or one grey channel, each of one slice.
        labelmap: label values on the same grid.
        labels: the labels; the legend names those that occur.
    """
    shown = [channels[n % len(channels)].voxels[0] for n in range(3)]
    image = Image.fromarray(np.dstack([_eight_bits(values) for values in shown]))
    size = _shown_size(*image.size)
    values = Image.fromarray(labelmap.voxels[0].astype(np.int32))
    codes = np.array(values.resize(size, Image.Resampling.NEAREST))
    pixels = np.array(image.resize(size, Image.Resampling.BILINEAR))
    present = [label for label in labels if (codes == label.value).any()]
    for label in present:
        pixels[_outline(codes == label.value)] = label.color
    return _with_legend(Image.fromarray(pixels), present)


def _shown_size(width: int, height: int) -> tuple[int, int]:
    longest = max(width, height)
    factor = min(max(longest, LEAST), LONGEST) / longest
    return max(1, round(width * factor)), max(1, round(height * factor))


def _eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return grey values in eight bits; eight-bit values are unchanged."""
    if values.dtype == np.uint8:
        return values.astype(np.uint8)
    low, high = np.percentile(values.astype(np.float64), WINDOW_PERCENTILES)
    scaled = (values.astype(np.float64) - low) / max(high - low, 1e-12)
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the outermost two pixels of a mask."""
    inner = mask
    for _ in range(2):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _with_legend(image: Image.Image, labels: Sequence[Label]) -> Image.Image:
    page = Image.new(
        "RGB", (image.width, image.height + LINE * (len(labels) + 1) + LINE // 2), (255, 255, 255)
    )
    page.paste(image, (0, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_SIZE)
    top = image.height + LINE // 4
    for label in labels:
        draw.rectangle((8, top + 3, 8 + FONT_SIZE, top + 3 + FONT_SIZE), fill=tuple(label.color))
        draw.text((16 + FONT_SIZE, top), label.name, INK, font)
        top += LINE
    draw.text((8, top), NOT_FOR_DIAGNOSIS, FAINT, font)
    return page
