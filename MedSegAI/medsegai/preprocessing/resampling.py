"""Resampling of images and labels to another grid over the same box, as nnU-Net does it, with far less work.

nnU-Net (nnunetv2 2.8.1, `preprocessing.resampling`) calls `skimage.transform.resize`, and that calls
`scipy.ndimage.zoom`: a spline filter over the whole volume in double precision, then `(order + 1)**3` products for
each new voxel. Both steps are linear and act on one axis at a time, so here each axis is one small matrix, and a
volume is resampled by three banded matrix products. The matrices hold scipy's results for unit impulses, including
its treatment of edges.

Voxel `o` of `new_size` voxels lies at `(o + 0.5) * size / new_size - 0.5` of `size` voxels: the outer edges of
both grids coincide. Images whose planes are thick are resampled plane by plane, and then along the third axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsegai.errors import ModelError
from medsegai.models.nnunet_parts import RESAMPLERS, SPLINE, TORCH, UNCHANGED

Settings = Mapping[str, Any]
Shape = tuple[int, int, int]

THICK = 3.0
"""Planes are resampled separately if the largest spacing is more than this times the smallest."""

PADDING = 12
"""Voxels by which scipy repeats the edge before it filters for a spline of order 2 or more."""

NEGLIGIBLE = 1e-10
"""Smaller weights count as zero, because their products would be subnormal, which is slow."""

ROWS_AT_ONCE = 64
VOXELS_AT_ONCE = 1 << 22
POINTS_AT_ONCE = 1 << 18
"""Bounds of the additional memory."""


FLOAT32_ERROR = 2e-7
FLOAT64_ERROR = 1e-12
"""The relative error of a length that is computed from a float32 matrix."""


def header_spacing(spacing: Sequence[float]) -> tuple[float, ...]:
    """Return the spacing that the file's header stated, from the one that its direction matrix gives.

    The float32 matrix of an oblique NIfTI has columns 1.000000007 and 3.00000008 long where the header says 1 and
    3. The difference decides whether planes are thick, which two axes are alike, and how a half is rounded. So the
    shortest decimal within the error of float32 is taken, as float32 where the matrix was.
    """
    found = []
    for length in spacing:
        decimals = (float(f"{length:.{digits}g}") for digits in range(1, 18))
        plain = next(x for x in decimals if abs(x - length) <= FLOAT32_ERROR * length)
        exact = abs(plain - length) <= FLOAT64_ERROR * length
        found.append(plain if exact else float(np.float32(plain)))
    return tuple(found)


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]
) -> Shape:
    """Return the shape at `new_spacing` of an image of `shape` at `spacing`, all (k, j, i)."""
    k, j, i = (
        round(old / new * size) for size, old, new in zip(shape, spacing, new_spacing, strict=True)
    )
    return k, j, i


def low_resolution_axis(
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    force_separate_z: bool | None = None,
    threshold: float = THICK,
) -> int | None:
    """Return the axis across thick planes, which is resampled separately; None if all axes are treated alike.

    The first grid with a spacing above `threshold` times its smallest decides, `spacing` before `new_spacing`; a
    `force_separate_z` that is not None decides instead. Two equally coarse axes do not form planes.
    """
    if force_separate_z is None:
        thick = [grid for grid in (spacing, new_spacing) if max(grid) / min(grid) > threshold]
    else:
        thick = [spacing] if force_separate_z else []
    if not thick:
        return None
    coarse = [axis for axis, size in enumerate(thick[0]) if max(thick[0]) / size == 1]
    return coarse[0] if len(coarse) == 1 else None


def coordinates(size: int, new_size: int) -> NDArray[np.float64]:
    """Return the positions of the centres of `new_size` voxels among `size` voxels over the same length."""
    centers: NDArray[np.float64] = np.arange(new_size, dtype=np.float64) + 0.5
    return centers * (size / new_size) - 0.5


def nearest(size: int, new_size: int) -> NDArray[np.intp]:
    """Return which of `size` voxels is nearest to each of `new_size`; of two equally near ones, the higher."""
    return np.clip(np.floor(coordinates(size, new_size) + 0.5), 0, size - 1).astype(np.intp)


def resample(
    voxels: Tensor | NDArray[np.float32],
    shape: Sequence[int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    settings: Settings,
) -> Tensor:
    """Resample an image to `shape` voxels over the same box.

    Args:
        voxels: float32 (channel, k, j, i), on any device.
        shape: new (k, j, i).
        spacing, new_spacing: mm (k, j, i); they only decide whether planes are thick.
        settings: "function" as plans name it, and its arguments: order, order_z, force_separate_z.

    Returns:
        float32 (channel, k, j, i) on the device of `voxels`; `voxels` itself where nothing changes.

    Raises:
        ModelError: the function or a spline order is unknown.
    """
    image = torch.as_tensor(voxels)
    if _function(settings) in UNCHANGED or tuple(image.shape[1:]) == tuple(shape):
        return image
    axis = _low_resolution_axis(spacing, new_spacing, settings)
    if _function(settings) == TORCH:
        return _interpolated(image, shape, axis)
    order = _order(settings, "order", 3)
    across = order if axis is None else _order(settings, "order_z", 0)
    front = 0 if axis is None else axis
    image = image.movedim(1 + front, 1)
    in_planes = [size for n, size in enumerate(shape) if n != front]
    result = image.new_empty((len(image), shape[front], *in_planes))
    for channel, new in zip(image, result, strict=True):
        _spline(channel, new, (across, order), clip_planes=axis is not None)
        if axis is None and order > 1:
            new.clamp_(*channel.aminmax())
    return result.movedim(1, 1 + front).contiguous()


def resample_labels(
    labels: NDArray[np.integer],
    shape: Sequence[int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    settings: Settings,
) -> NDArray[np.integer]:
    """Resample labels to `shape` voxels over the same box: each voxel gets the label with most weight around it.

    Of labels with the same weight, that of the nearest voxel wins if it is one of them, otherwise the lowest. Any
    integer is a label, including the -1 by which nnU-Net marks voxels outside the non-zero mask.

    Args:
        labels: integers (k, j, i).
        shape, spacing, new_spacing, settings: as for `resample`; order is 0 or 1, order_z is 0.

    Returns:
        Labels of the same type, (k, j, i).

    Raises:
        ModelError: the function, or an argument of it, is unknown.
    """
    if _function(settings) in UNCHANGED or labels.shape == tuple(shape):
        return labels
    axis = _low_resolution_axis(spacing, new_spacing, settings)
    if _function(settings) == TORCH:
        return _interpolated_labels(labels, shape, axis, settings)
    order = _order(settings, "order", 3)
    order_z = 0 if axis is None else _order(settings, "order_z", 0)
    if order > 1 or order_z > 0:
        raise ModelError(
            f"The model resamples labels by splines of order {order} and {order_z} across "
            "planes. Known are order 0 or 1 within planes, and 0 across planes."
        )
    if order == 0:
        return _nearest_labels(labels, shape)
    in_planes = [labels.shape[n] if n == axis else size for n, size in enumerate(shape)]
    return _nearest_labels(_majority_labels(labels, in_planes), shape)


def output_interpolation(
    settings: Settings, spacing: Sequence[float], native_spacing: Sequence[float]
) -> tuple[str, str, str]:
    """Return how logits at `spacing` are read at `native_spacing`: "linear" or "nearest" along (k, j, i).

    Positions are those of `coordinates`, clamped to the outermost centres; "nearest" means the function `nearest`.

    Raises:
        ModelError: the function is unknown, or its order is not 0 or 1.
    """
    if _function(settings) in UNCHANGED:
        return "linear", "linear", "linear"
    axis = _low_resolution_axis(spacing, native_spacing, settings)
    order, order_z = (
        (1, 0)
        if _function(settings) == TORCH
        else (_order(settings, "order", 3), _order(settings, "order_z", 0))
    )
    orders = [order_z if n == axis else order for n in range(3)]
    if max(orders) > 1:
        raise ModelError(
            f"The model resamples its output by splines of order {max(orders)}. Known are 0 and 1."
        )
    k, j, i = ("linear" if order else "nearest" for order in orders)
    return k, j, i


def spline_matrix(size: int, new_size: int, order: int) -> NDArray[np.float64]:
    """Return what `scipy.ndimage.zoom` computes along one axis, as a matrix (new_size, size).

    It is the response of `zoom(..., order, mode="nearest", grid_mode=True)` to unit impulses: the edge is repeated
    by `PADDING` voxels and filtered, and cardinal B-splines are evaluated at `coordinates`. Orders 0 and 1 are
    neither padded nor filtered, and clamp to the outermost centres.
    """
    rows = np.arange(new_size)
    if order == 0:
        return np.eye(size)[nearest(size, new_size)]
    coefficients = np.eye(size)
    position = np.clip(coordinates(size, new_size), 0, size - 1)
    if order > 1:
        padded = np.pad(coefficients, ((PADDING, PADDING), (0, 0)), mode="edge")
        coefficients = scipy.ndimage.spline_filter1d(padded, order, axis=0, mode="nearest")
        position = coordinates(size, new_size) + PADDING
    base = np.floor(position if order % 2 else position + 0.5)
    matrix = np.zeros((new_size, size))
    weights = _b_spline(position - base if order % 2 else position - base + 0.5, order)
    for offset, weight in enumerate(weights, start=-(order // 2)):
        taken = np.clip(base.astype(np.intp) + offset, 0, len(coefficients) - 1)
        matrix[rows] += weight[:, None] * coefficients[taken]
    return matrix


def _b_spline(part: NDArray[np.float64], order: int) -> list[NDArray[np.float64]]:
    """Return the `order + 1` cardinal B-splines that are not 0 at `part` of the way to the next knot (de Boor)."""
    weights = [np.ones_like(part)]
    for degree in range(1, order + 1):
        carried = np.zeros_like(part)
        raised = []
        for number, weight in enumerate(weights):
            share = weight / degree
            raised.append(carried + (number + 1 - part) * share)
            carried = (part + (degree - 1 - number)) * share
        weights = [*raised, carried]
    return weights


@lru_cache(maxsize=16)
def _bands(size: int, new_size: int, order: int) -> list[tuple[slice, slice, Tensor]]:
    """Return `spline_matrix` in float32 as blocks of (rows, columns, matrix) without the zeros off its band."""
    matrix = spline_matrix(size, new_size, order)
    matrix[np.abs(matrix) < NEGLIGIBLE] = 0
    blocks = []
    for start in range(0, new_size, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, new_size))
        filled = np.flatnonzero(matrix[rows].any(axis=0))
        columns = slice(int(filled[0]), int(filled[-1]) + 1)
        block = torch.from_numpy(np.ascontiguousarray(matrix[rows, columns], dtype=np.float32))
        blocks.append((rows, columns, block))
    return blocks


def _along_rows(values: Tensor, result: Tensor, order: int) -> None:
    """Resample (batch, size, n) to (batch, new_size, n), into `result`."""
    for rows, columns, block in _bands(values.shape[1], result.shape[1], order):
        matrix = block.to(values.device).expand(len(values), -1, -1)
        torch.bmm(matrix, values[:, columns], out=result[:, rows])


def _spline(image: Tensor, result: Tensor, orders: tuple[int, int], clip_planes: bool) -> None:
    """Resample (k, j, i) into `result`, by `orders` along k and within planes.

    `clip_planes` keeps each plane within its own range, but not the values that are then computed along k.
    """
    order_k, order = orders
    planes = image
    if image.shape[1:] != result.shape[1:]:
        same = len(image) == len(result)
        planes = result if same else image.new_empty((len(image), *result.shape[1:]))
        _within_planes(image, planes, order, clip_planes)
        if same:
            return
    if order_k == 0:
        index = torch.from_numpy(nearest(len(image), len(result)))
        torch.index_select(planes, 0, index.to(image.device), out=result)
    else:
        _along_rows(planes.flatten(1)[None], result.flatten(1)[None], order_k)


def _within_planes(image: Tensor, result: Tensor, order: int, clip: bool) -> None:
    for some in _parts(len(image), max(VOXELS_AT_ONCE // image[0].numel(), 1)):
        _spline_planes(image[some], result[some], order)
        if clip and order > 1:
            low, high = image[some].amin((1, 2), True), image[some].amax((1, 2), True)
            result[some].clamp_(low, high)


def _spline_planes(image: Tensor, result: Tensor, order: int) -> None:
    """Resample (k, j, i) within planes, into the contiguous `result`."""
    if image.shape[1] != result.shape[1]:
        same = image.shape[2] == result.shape[2]
        rows = result if same else image.new_empty((*result.shape[:2], image.shape[2]))
        _along_rows(image, rows, order)
        if same:
            return
        image = rows
    columns = image.reshape(1, -1, image.shape[2]).mT
    _along_rows(columns, result.view(1, -1, result.shape[2]).mT, order)


def _interpolated(image: Tensor, shape: Sequence[int], axis: int | None) -> Tensor:
    """Resample (channel, k, j, i) by PyTorch's linear interpolation, and by the nearest plane across thick
    planes.
    """
    if axis is None:
        return F.interpolate(image[None], tuple(shape), mode="trilinear")[0]
    stacks = image.movedim(1 + axis, 1)
    in_planes = [size for n, size in enumerate(shape) if n != axis]
    planes = F.interpolate(stacks.flatten(0, 1)[None], in_planes, mode="bilinear")[0]
    planes = planes.unflatten(0, stacks.shape[:2]).movedim(1, 1 + axis)
    return F.interpolate(planes[None], tuple(shape), mode="nearest-exact")[0]


def _interpolated_labels(
    labels: NDArray[np.integer], shape: Sequence[int], axis: int | None, settings: Settings
) -> NDArray[np.integer]:
    """Return the label with most weight by `_interpolated`, compared in float16 as nnU-Net does; of equals, the
    lowest.
    """
    _check_memory_option(settings)
    present = np.unique(labels)
    in_planes = [labels.shape[n] if n == axis else size for n, size in enumerate(shape)]
    best = torch.full(in_planes, -1.0, dtype=torch.float16)
    chosen = torch.zeros(in_planes)
    for number, label in enumerate(present):
        weight = torch.from_numpy((labels == label).astype(np.float32))[None]
        score = _interpolated(1000 * weight, in_planes, axis)[0].half()
        chosen[score > best] = number
        best = torch.maximum(best, score)
    if axis is not None:
        chosen = F.interpolate(chosen[None, None], tuple(shape), mode="nearest-exact")[0, 0]
    return np.asarray(present[chosen.long().numpy()])


def _check_memory_option(settings: Settings) -> None:
    if settings.get("memefficient_seg_resampling"):
        raise ModelError(
            f"The model resamples labels by {TORCH} with memefficient_seg_resampling, which "
            "MedSegAI does not support. Use a model whose plans leave that out."
        )


def _nearest_labels(labels: NDArray[np.integer], shape: Sequence[int]) -> NDArray[np.integer]:
    index = [nearest(size, new) for size, new in zip(labels.shape, shape, strict=True)]
    return np.asarray(labels[np.ix_(*index)])


def _majority_labels(labels: NDArray[np.integer], shape: Sequence[int]) -> NDArray[np.integer]:
    """Return the label with the most weight among the eight voxels around each new voxel.

    Nothing is computed where these eight agree. Elsewhere products and sums are taken in scipy's order, so that
    labels that weigh the same there weigh the same here.
    """
    pairs = list(zip(labels.shape, shape, strict=True))
    position = [np.clip(coordinates(size, new), 0, size - 1) for size, new in pairs]
    base = [np.floor(along).astype(np.intp) for along in position]
    result = np.asarray(labels[np.ix_(*base)])
    unsure = np.nonzero(~_unanimous(labels)[np.ix_(*base)])
    close = [nearest(size, new) for size, new in pairs]
    for some in _parts(len(unsure[0]), POINTS_AT_ONCE):
        points = [along[some] for along in unsure]
        low = [base[axis][points[axis]] for axis in range(3)]
        part = [position[axis][points[axis]] - low[axis] for axis in range(3)]
        closest = labels[tuple(close[axis][points[axis]] for axis in range(3))]
        result[tuple(points)] = _heaviest(*_corners(labels, low, part), closest)
    return result


def _unanimous(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether a voxel and its seven neighbours towards higher k, j, i have one label, bool (k, j, i)."""
    low = high = labels
    for axis, size in enumerate(labels.shape):
        following = np.minimum(np.arange(size) + 1, size - 1)
        low = np.minimum(low, low.take(following, axis))
        high = np.maximum(high, high.take(following, axis))
    return np.asarray(low == high)


def _corners(
    labels: NDArray[np.integer],
    low: Sequence[NDArray[np.intp]],
    part: Sequence[NDArray[np.float64]],
) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Return labels and weights (8, point) of the voxels around points."""
    near = [1.0 - along for along in part]
    weight = [(along, 1.0 - along) for along in near]
    found, weights = [], []
    for steps in itertools.product((0, 1), repeat=3):
        index = tuple(
            np.minimum(low[axis] + step, labels.shape[axis] - 1) for axis, step in enumerate(steps)
        )
        found.append(labels[index])
        k, j, i = (weight[axis][step] for axis, step in enumerate(steps))
        weights.append(k * j * i)
    return np.stack(found), np.stack(weights)


def _heaviest(
    labels: NDArray[np.integer], weights: NDArray[np.float64], closest: NDArray[np.integer]
) -> NDArray[np.integer]:
    """Return the label with the largest sum of weights, (point,), from (8, point); of equals, `closest` or else
    the lowest.
    """
    sums = np.zeros_like(weights)
    for label, weight in zip(labels, weights, strict=True):
        sums += np.where(labels == label, weight, 0.0)
    top = sums == sums.max(axis=0)
    lowest = np.where(top, labels, np.iinfo(labels.dtype).max).min(axis=0)
    return np.where((top & (labels == closest)).any(axis=0), closest, lowest)


def _parts(count: int, at_once: int) -> list[slice]:
    return [slice(start, start + at_once) for start in range(0, count, at_once)]


def _function(settings: Settings) -> str:
    name = str(settings.get("function", SPLINE))
    RESAMPLERS.check(name, "The model")
    return name


def _order(settings: Settings, name: str, default: int) -> int:
    order = settings.get(name, default)
    if order not in range(6):
        raise ModelError(f"The model resamples with {name} {order!r}. Known are 0 to 5.")
    return int(order)


def _low_resolution_axis(
    spacing: Sequence[float], new_spacing: Sequence[float], settings: Settings
) -> int | None:
    """Call `low_resolution_axis` with the arguments that plans give."""
    apart_by_default = None if _function(settings) == TORCH else False
    return low_resolution_axis(
        spacing,
        new_spacing,
        settings.get("force_separate_z", apart_by_default),
        float(settings.get("separate_z_anisotropy_threshold", THICK)),
    )
