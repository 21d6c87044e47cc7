"""The scan that a network of MONAI gets, and the steps that change the positions of its voxels.

MONAI keeps the axes of an image in the order of its file, (x, y, z), and so do the steps here. The geometry is
changed together with the voxels. So predictions are read on the grid of the input, and voxels are not transformed
back.

Each class corresponds to the transform of MONAI 1.6.1 with the same name (`monai.transforms.spatial`, `.croppad`),
and its fields are the arguments that matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsegai.errors import ModelError
from medsegai.families._memory import check_memory
from medsegai.inference.grid_sampling import Bounds, Nearest, Reach
from medsegai.io import axes_to_ras
from medsegai.io.orientation import RAS_SIDES
from medsegai.models.card import SPACINGS_MM
from medsegai.models.json_fields import number, shown
from medsegai.volume import Geometry, Volume

BYTES_A_VOXEL = 12
"""The memory in bytes per voxel of a resampled channel: float32, and twice as much while it is computed."""

MOST_VOXELS = 4096
"""The largest number of voxels along an axis, or added to it, that a step may request."""

TOLERANCE = 1e-3
"""Spacings with a smaller difference are equal (MONAI's AFFINE_TOL)."""

EVERYWHERE = Reach(((-math.inf, math.inf),) * 3)

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Scan:
    """Channels and their position.

    Attributes:
        voxels: float32 (channel, x, y, z).
        geometry: the geometry of the axes (x, y, z) in this order.
        reach: the part of this grid whose predictions MONAI transforms back. Voxels outside were cropped, and are
            background.
        resampled: whether the voxels differ from those of the input.
    """

    voxels: Tensor
    geometry: Geometry
    reach: Reach = EVERYWHERE
    resampled: bool = False

    @classmethod
    def of(cls, inputs: Sequence[Volume]) -> Scan:
        """Return the channels as MONAI reads them from files."""
        geometry = inputs[0].geometry.permuted((2, 1, 0))
        voxels = torch.empty((len(inputs), *geometry.shape))  # a copy: steps work in place
        for channel, volume in zip(voxels, inputs, strict=True):
            channel.numpy()[...] = volume.voxels.transpose(2, 1, 0)
        return cls(voxels, geometry)

    @property
    def shape(self) -> Triple:
        x, y, z = self.voxels.shape[1:]
        return x, y, z

    def permuted(self, order: Sequence[int]) -> Scan:
        """Return the same voxels with their axes in another order."""
        voxels = self.voxels.permute(0, *(1 + axis for axis in order))
        geometry, reach = self.geometry.permuted(order), self.reach.permuted(order)
        return replace(self, voxels=voxels.contiguous(), geometry=geometry, reach=reach)

    def moved(self, start: Sequence[int], shape: Sequence[int], voxels: Tensor) -> Scan:
        """Return a scan of `voxels`, which begin at voxel `start` of this one, or outside of it."""
        geometry = self.geometry.cropped(list(start), list(shape))
        return replace(self, voxels=voxels, geometry=geometry, reach=self.reach.cropped(start))

    def cropped(self, start: Sequence[int], stop: Sequence[int]) -> Scan:
        """Return the box from `start` to `stop` inside the image. Predictions outside of it are lost."""
        reach = 1.0 if self.resampled else 0.5
        x, y, z = (
            (max(low, first - reach), min(high, last - 1 + reach))
            for (low, high), first, last in zip(self.reach.bounds, start, stop, strict=True)
        )
        box = tuple(slice(first, last) for first, last in zip(start, stop, strict=True))
        shape = [last - first for first, last in zip(start, stop, strict=True)]
        within = replace(self, reach=replace(self.reach, bounds=(x, y, z)))
        return within.moved(start, shape, self.voxels[(slice(None), *box)])

    def padded(self, widths: Sequence[tuple[int, int]], mode: str, value: float = 0.0) -> Scan:
        """Return the scan with more voxels at both ends of each axis.

        Raises:
            ModelError: the image is too small to be continued in this way.
        """
        if not any(map(any, widths)):
            return self
        shape = [size + sum(width) for size, width in zip(self.shape, widths, strict=True)]
        check_memory(shape, BYTES_A_VOXEL * len(self.voxels))
        options: dict[str, Any] = {"constant_values": value} if mode == "constant" else {}
        try:
            padded = np.pad(self.voxels.numpy(), ((0, 0), *widths), PAD_MODES[mode], **options)
        except ValueError as error:
            raise ModelError(f"The image cannot be padded as the model asks: {error}.") from None
        start = [-before for before, _ in widths]
        return self.moved(start, shape, torch.from_numpy(padded))


PAD_MODES: dict[str, Any] = {
    "constant": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "edge": "edge",
    "circular": "wrap",
    "wrap": "wrap",
    "symmetric": "symmetric",
    **{name: name for name in ("linear_ramp", "maximum", "mean", "median", "minimum")},
}
"""The ways to continue an image, with their names in NumPy."""


class Step(Protocol):
    """One transform of the preprocessing."""

    def check(self) -> None:
        """Refuse impossible settings. Raises ModelError."""
        ...

    def apply(self, scan: Scan) -> Scan:
        """Return the changed scan; the voxels of the given scan may be overwritten."""
        ...


@dataclass(frozen=True)
class Orientation:
    """Reorient the axes to the sides of the body, such as "RAS"."""

    axcodes: str

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        sides = [RAS_SIDES.get(letter, (None, False))[0] for letter in self.axcodes]
        if sorted(sides, key=str) != [0, 1, 2]:
            raise ModelError(
                f"axcodes must name three sides, such as RAS, not {shown(self.axcodes)}."
            )

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        old, reversed = axes_to_ras(scan.geometry.permuted((2, 1, 0)))
        order, flips = [], []
        for axis, letter in enumerate(self.axcodes):
            world, negative = RAS_SIDES[letter]
            order.append(2 - old[2 - world])  # there axes count from k, and here from x
            if reversed[2 - world] != negative:
                flips.append(axis)
        voxels = scan.voxels.permute(0, *(1 + axis for axis in order))
        geometry = scan.geometry.permuted(order).flipped(*flips)
        reach = scan.reach.permuted(order)
        for axis in flips:
            reach = reach.flipped(axis, geometry.shape[axis] - 1)
        turned = voxels.flip([1 + axis for axis in flips]) if flips else voxels
        return replace(scan, voxels=turned.contiguous(), geometry=geometry, reach=reach)


@dataclass(frozen=True)
class Spacing:
    """Resample to voxels of `pixdim` mm along x, y, z; one that is not positive keeps the image's spacing.

    An image whose spacing lies between `min_pixdim` and `max_pixdim` keeps it.
    """

    pixdim: tuple[float, float, float]
    mode: str = "bilinear"
    min_pixdim: tuple[float, float, float] | None = None
    max_pixdim: tuple[float, float, float] | None = None
    dtype: str = "float64"

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        if self.dtype not in ("float32", "float64"):
            raise ModelError(f"Spacing computes in float32 or float64, not in {shown(self.dtype)}.")
        if self.mode not in ("bilinear", "nearest"):
            raise ModelError(
                f"The mode of Spacing must be bilinear or nearest, not {shown(self.mode)}."
            )
        for length in (*self.pixdim, *(self.min_pixdim or ()), *(self.max_pixdim or ())):
            if number(length, "pixdim") > 0:
                number(length, "pixdim", *SPACINGS_MM)

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        affine = scan.geometry.permuted((2, 1, 0)).ijk_to_ras
        spacing = self._spacing(np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
        resized, shape = resized_grid(affine, scan.shape, spacing)
        if np.allclose(resized, affine, atol=TOLERANCE) and shape == scan.shape:
            return scan
        check_memory(shape, BYTES_A_VOXEL * len(scan.voxels))
        there = np.asarray(np.linalg.solve(affine, resized), np.float64)
        back = np.asarray(np.linalg.solve(resized, affine), np.float64)
        voxels = scan.voxels
        for axis in np.argsort(np.array(shape) / scan.shape):  # those that shrink come first
            sizes = scan.shape[axis], shape[axis]
            positions = positions_of_torch(there, int(axis), sizes, getattr(torch, self.dtype))
            voxels = _along(voxels, 1 + int(axis), positions, self.mode == "bilinear")
        bounds = _moved(scan.reach.bounds, back)
        nearest = () if scan.resampled else nearest_of_monai(back, scan.shape, shape)
        geometry = Geometry((shape[2], shape[1], shape[0]), resized).permuted((2, 1, 0))
        return Scan(voxels, geometry, Reach(bounds, nearest), resampled=True)

    def _spacing(self, old: NDArray[np.float64]) -> NDArray[np.float64]:
        new = np.array(self.pixdim, dtype=np.float64)
        new[new <= 0] = old[new <= 0]
        low = new if self.min_pixdim is None else np.minimum(self.min_pixdim, new)
        high = new if self.max_pixdim is None else np.maximum(self.max_pixdim, new)
        kept = (low - TOLERANCE <= old) & (old <= high + TOLERANCE)
        return np.where(kept, old, new)


@dataclass(frozen=True)
class Resize:
    """Resize the image to `spatial_size` voxels in the same box; a size that is not positive is not changed."""

    spatial_size: Triple
    mode: str = "area"

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        _check_sizes("spatial_size", self.spatial_size, -1)
        if self.mode not in ("bilinear", "nearest", "area"):
            raise ModelError(
                f"The mode of Resize must be bilinear, nearest or area, not {shown(self.mode)}."
            )

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        x, y, z = (
            wanted if wanted > 0 else size
            for wanted, size in zip(self.spatial_size, scan.shape, strict=True)
        )
        if (x, y, z) == scan.shape:
            return scan
        check_memory((x, y, z), BYTES_A_VOXEL * len(scan.voxels))
        mode = "trilinear" if self.mode == "bilinear" else self.mode
        voxels = F.interpolate(scan.voxels[None], size=(x, y, z), mode=mode)[0]
        scales = [new / old for new, old in zip((x, y, z), scan.shape, strict=True)]
        reach = tuple(
            ((low + 0.5) * scale - 0.5, (high + 0.5) * scale - 0.5)
            for scale, (low, high) in zip(scales, scan.reach.bounds, strict=True)
        )
        nearest = _resized_nearest(scan, scales, (x, y, z))
        geometry = scan.geometry.resized((x, y, z))
        bounds = Reach((reach[0], reach[1], reach[2]), nearest)
        return Scan(voxels, geometry, bounds, resampled=True)


def _nearest_so_far(scan: Scan) -> tuple[Nearest, ...]:
    """Return which voxel of a scan MONAI reads for each voxel of the input; () if that is unknown."""
    if scan.reach.nearest or scan.resampled:
        return scan.reach.nearest
    return tuple(Nearest(0.0, 1.0, torch.arange(size)) for size in scan.shape)


def _nearest_of_torch(source: int, count: int) -> Tensor:
    """Return which of `source` voxels torch's `interpolate` reads for each of `count`: it rounds edges down."""
    scale = torch.tensor(source / count, dtype=torch.float32)
    return (torch.arange(count, dtype=torch.float32) * scale).floor().long().clamp(max=source - 1)


Matrix = NDArray[np.float64]


def _moved(bounds: Bounds, matrix: Matrix) -> Bounds:
    """Return positions along each axis on another grid with parallel axes."""
    x, y, z = (
        (low * matrix[axis, axis] + matrix[axis, 3], high * matrix[axis, axis] + matrix[axis, 3])
        for axis, (low, high) in enumerate(bounds)
    )
    return x, y, z


def _resized_nearest(scan: Scan, scales: Sequence[float], sizes: Triple) -> tuple[Nearest, ...]:
    """Return which voxel of a resized scan MONAI reads for each voxel of the input; () if that is unknown."""
    return tuple(
        Nearest(
            (known.first + 0.5) * scale - 0.5,
            known.step * scale,
            _nearest_of_torch(new, old)[known.voxels.clamp(0, old - 1)],
        )
        for known, scale, new, old in zip(
            _nearest_so_far(scan), scales, sizes, scan.shape, strict=False
        )
    )


def resized_grid(
    affine: Matrix, shape: Triple, spacing: NDArray[np.float64]
) -> tuple[Matrix, Triple]:
    """Return the matrix and the sizes of the grid to which MONAI's `Spacing` resamples.

    The first voxel keeps its position, and the last one is as near to the old one as possible. But MONAI finds the
    first voxel by comparing numbers that are only zero without rounding errors (`compute_shape_offset`). In a
    rotated grid it may not find it, and centres the new grid on the old one. The same is computed here.
    """
    rotation = affine[:3, :3] @ np.linalg.inv(
        np.linalg.cholesky(affine[:3, :3].T @ affine[:3, :3]).T
    )
    resized = np.eye(4)
    resized[:3, :3] = rotation * spacing
    corners = np.array(np.meshgrid(*((0.0, size - 1.0) for size in shape), indexing="ij"))
    corners = np.concatenate([corners.reshape(3, -1), np.ones((1, 8))])
    found = (np.linalg.solve(resized, affine) @ corners)[:3]
    x, y, z = (int(size) for size in np.round(np.ptp(found, axis=1) + 1.0))
    for corner in range(8):
        lowest = (found - found[:, corner : corner + 1]).min(axis=1)
        if np.allclose(lowest, 0.0, rtol=TOLERANCE):
            resized[:3, 3] = (affine @ corners)[:3, corner]
            return resized, (x, y, z)
    middle = affine[:3, :3] @ (np.array(shape) / 2.0) + affine[:3, 3]
    resized[:3, 3] = middle - resized[:3, :3] @ (np.array([x, y, z]) / 2.0)
    return resized, (x, y, z)


def nearest_of_monai(back: Matrix, shape: Triple, resized: Triple) -> tuple[Nearest, ...]:
    """Return which new voxel MONAI reads for each old one, along x, y and z.

    Args:
        back: the matrix from old voxels to new ones, 4x4.
        shape, resized: the sizes of the old and the new grid.
    """
    found = []
    for axis, sizes in enumerate(zip(resized, shape, strict=True)):
        positions = positions_of_torch(back, axis, sizes, torch.float64)
        voxels = torch.from_numpy(np.rint(positions).astype(np.int64))
        found.append(Nearest(float(back[axis, 3]), float(back[axis, axis]), voxels))
    return tuple(found)


def positions_of_torch(
    matrix: Matrix, axis: int, sizes: tuple[int, int], dtype: torch.dtype
) -> NDArray[np.float64]:
    """Return the positions of the voxels of one grid on another along one axis, as `grid_sample` computes them.

    Coordinates are scaled to the range from -1 to 1 and back, so their last digits are lost. This decides to which
    side a position halfway between two voxels is rounded. It also adds a trace of its neighbour to a voxel at the
    position of another one, so that a zero is no longer a zero for a `NormalizeIntensity` of nonzero voxels.

    Args:
        matrix: the matrix from voxels of the grid to those of the other grid, 4x4.
        sizes: the sizes of the other grid and of the grid.
        dtype: the type of numbers that is used.

    Returns:
        Positions within the other grid.
    """
    other, own = sizes
    there, here = (
        torch.tensor([[2 / size, 1 / size - 1], [0, 1]], dtype=torch.float64).to(dtype)
        for size in (other, own)
    )
    one = torch.tensor([[matrix[axis, axis], matrix[axis, 3]], [0, 1]]).to(dtype)
    scaled = there @ one @ torch.from_numpy(np.linalg.inv(here.numpy()))
    theta = torch.eye(3, 4, dtype=dtype)
    theta[2, 2], theta[2, 3] = scaled[0, 0], scaled[0, 1]
    grid = F.affine_grid(theta[None], [1, 1, own, 1, 1], align_corners=False)[0, :, 0, 0, 2]
    positions = ((grid + 1) * other - 1) / 2
    return positions.clamp(0, other - 1).double().numpy()


def _along(voxels: Tensor, axis: int, positions: NDArray[np.float64], linear: bool) -> Tensor:
    """Return the values at `positions` along one axis."""
    if np.array_equal(positions, np.arange(voxels.shape[axis])):
        return voxels
    if not linear:
        return voxels.index_select(axis, torch.from_numpy(np.rint(positions).astype(np.int64)))
    base = np.minimum(np.floor(positions).astype(np.int64), max(voxels.shape[axis] - 2, 0))
    after = np.minimum(base + 1, voxels.shape[axis] - 1)
    shares = [
        torch.from_numpy(share.astype(np.float32)).reshape(
            [-1 if n == axis else 1 for n in range(4)]
        )
        for share in (1 - (positions - base), positions - base)
    ]
    low = voxels.index_select(axis, torch.from_numpy(base)).mul_(shares[0])
    return low.addcmul_(voxels.index_select(axis, torch.from_numpy(after)), shares[1])


@dataclass(frozen=True)
class CropForeground:
    """Crop to the box in which `source` channels (all if None) are above 0, with a margin in voxels."""

    source: tuple[int, ...] | None = None
    margin: Triple = (0, 0, 0)
    allow_smaller: bool = False
    k_divisible: Triple = (1, 1, 1)
    mode: str = "constant"

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        _check_sizes("margin", self.margin, 0)
        _check_sizes("k_divisible", self.k_divisible, 1)
        _check_mode(self.mode)

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        chosen = scan.voxels if self.source is None else scan.voxels[list(self.source)]
        mask = (chosen > 0).any(0)
        if not mask.any():
            return scan  # MONAI would continue with an image without voxels
        start, stop = zip(*(self._extent(mask, axis) for axis in range(3)), strict=True)
        inside = scan.cropped(
            [max(first, 0) for first in start],
            [min(last, size) for last, size in zip(stop, scan.shape, strict=True)],
        )
        widths = [
            (max(-first, 0), max(last - size, 0))
            for first, last, size in zip(start, stop, scan.shape, strict=True)
        ]
        return inside.padded(widths, self.mode)

    def _extent(self, mask: Tensor, axis: int) -> tuple[int, int]:
        """Return the first voxel along an axis that is kept, and the one after the last; they may be outside."""
        others = tuple(other for other in range(3) if other != axis)
        filled = torch.nonzero(mask.any(others[1]).any(others[0]))[:, 0]
        margin, size = self.margin[axis], mask.shape[axis]
        first, last = int(filled[0]) - margin, int(filled[-1]) + margin + 1
        if self.allow_smaller:
            first, last = max(first, 0), min(last, size)
        length = math.ceil((last - first) / self.k_divisible[axis]) * self.k_divisible[axis]
        first -= (length - (last - first)) // 2
        return first, first + length


@dataclass(frozen=True)
class SpatialPad:
    """Pad to at least `spatial_size` voxels; a size that is not positive keeps that of the image."""

    spatial_size: Triple
    method: str = "symmetric"
    mode: str = "constant"
    value: float = 0.0

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        _check_sizes("spatial_size", self.spatial_size, -1)
        _check_method(self.method)
        _check_mode(self.mode)

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        missing = [
            max(wanted - size, 0)
            for wanted, size in zip(self.spatial_size, scan.shape, strict=True)
        ]
        return scan.padded(_widths(missing, self.method), self.mode, self.value)


@dataclass(frozen=True)
class DivisiblePad:
    """Pad until the sizes are multiples of `k`."""

    k: Triple
    method: str = "symmetric"
    mode: str = "constant"
    value: float = 0.0

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        _check_sizes("k", self.k, 1)
        _check_method(self.method)
        _check_mode(self.mode)

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        missing = [-size % k for size, k in zip(scan.shape, self.k, strict=True)]
        return scan.padded(_widths(missing, self.method), self.mode, self.value)


@dataclass(frozen=True)
class BorderPad:
    """Pad by these six numbers of voxels: before and after x, y and z."""

    spatial_border: tuple[int, int, int, int, int, int]
    mode: str = "constant"
    value: float = 0.0

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        _check_sizes("spatial_border", self.spatial_border, 0)
        _check_mode(self.mode)

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        pairs = list(zip(self.spatial_border[::2], self.spatial_border[1::2], strict=True))
        return scan.padded(pairs, self.mode, self.value)


@dataclass(frozen=True)
class CenterSpatialCrop:
    """Crop to `roi_size` voxels in the middle; a size that is not positive keeps that of the image."""

    roi_size: Triple

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        _check_sizes("roi_size", self.roi_size, -1)

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        start, stop = [], []
        for wanted, size in zip(self.roi_size, scan.shape, strict=True):
            wanted = wanted if wanted > 0 else size
            start.append(max(size // 2 - wanted // 2, 0))
            stop.append(min(start[-1] + wanted, size))
        return scan.cropped(start, stop)


def _widths(missing: Sequence[int], method: str) -> list[tuple[int, int]]:
    if method == "end":
        return [(0, lack) for lack in missing]
    return [(lack // 2, lack - lack // 2) for lack in missing]


def _check_sizes(what: str, sizes: Sequence[int], low: int) -> None:
    for size in sizes:
        number(size, what, low, MOST_VOXELS)


def _check_mode(mode: str) -> None:
    if mode not in PAD_MODES:
        raise ModelError(
            f"The mode of padding must be one of {', '.join(PAD_MODES)}, not {shown(mode)}."
        )


def _check_method(method: str) -> None:
    if method not in ("symmetric", "end"):
        raise ModelError(f"The method of padding must be symmetric or end, not {shown(method)}.")
