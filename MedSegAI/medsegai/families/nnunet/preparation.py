"""From a scan to what one configuration of nnU-Net takes: reoriented, cropped, normalised, resampled.

Follows `DefaultPreprocessor.run_case_npy` of nnunetv2 2.8.1, in its order: transpose, crop to what is not zero,
normalise, resample. Nothing is reoriented by voxels: the geometry goes along, so the way back is read off it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsegai.families._memory import check_memory
from medsegai.io import axes_to_ras, itk_axes_to_ras
from medsegai.models.nnunet_parts import (
    ITK_REORIENTS,
    NIBABEL_REORIENTS,
    PICTURE_SPACING,
    PICTURES,
)
from medsegai.preprocessing.nonzero import nonzero_box, nonzero_mask
from medsegai.preprocessing.normalisation import normalise
from medsegai.preprocessing.resampling import (
    header_spacing,
    output_interpolation,
    resample,
    resample_labels,
    resampled_shape,
)
from medsegai.volume import Geometry, Volume

BYTES_A_VOXEL = 8
"""The memory per voxel of a resampled channel: float32, and once more while it is made or joined with others."""


@dataclass(frozen=True)
class ReorientedScan:
    """The channels of a scan with their axes as nnU-Net has them.

    Attributes:
        voxels: (channel, k, j, i) in nnU-Net's order of axes.
        geometry: the same voxels' grid.
        spacing: of these axes, as nnU-Net's reader gives it.
        plane_axis: the axis (k, j, i) of the scan that became the first.
        reversed: whether planes run against the scan's.
    """

    voxels: NDArray[np.number]
    geometry: Geometry
    spacing: tuple[float, ...]
    plane_axis: int
    reversed: bool


def reoriented(inputs: Sequence[Volume], reader: str, transpose: Sequence[int]) -> ReorientedScan:
    """Channels as the model's reader and `transpose_forward` order their axes."""
    geometry = inputs[0].geometry
    order: tuple[int, ...] = (0, 1, 2)
    flips: tuple[bool, ...] = (False, False, False)
    if reader == NIBABEL_REORIENTS:
        order, flips = axes_to_ras(geometry)
    elif reader == ITK_REORIENTS:
        order, flips = itk_axes_to_ras(geometry)
    order = tuple(order[axis] for axis in transpose)
    flips = tuple(flips[axis] for axis in transpose)
    backwards = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    channels = [volume.voxels.transpose(order)[backwards] for volume in inputs]
    voxels = channels[0][None] if len(channels) == 1 else np.stack(channels)  # no copy of one alone
    grid = geometry.permuted(order).flipped(*np.flatnonzero(flips))
    spacing = header_spacing(grid.spacing_mm[::-1])
    if reader == PICTURES:
        spacing = tuple(PICTURE_SPACING[axis] for axis in transpose)
    return ReorientedScan(voxels, grid, spacing, order[0], flips[0])


@dataclass(frozen=True)
class Ready:
    """The input of one configuration.

    Attributes:
        voxels: float32 (channel, k, j, i) on `geometry`.
        geometry: the native grid.
        linear: along which axes logits are interpolated on the way back.
    """

    voxels: Tensor
    geometry: Geometry
    linear: tuple[bool, bool, bool]


def prepare(
    scan: ReorientedScan,
    configuration: Mapping[str, Any],
    intensities: Mapping[str, Mapping[str, float]],
    stage_before: Callable[[], tuple[NDArray[np.integer], Sequence[int]]] | None = None,
) -> Ready:
    """The input of one configuration.

    Args:
        scan: from `reoriented`.
        configuration: its entry in the card's settings.
        intensities: of the training data, by channel number.
        stage_before: for a cascade, gives the labels of the stage before on the grid of `scan`, and the label
            values that become one channel each.

    Raises:
        ModelError: with the configuration's spacing the scan does not fit into the memory that is free.
    """
    box = nonzero_box(scan.voxels)
    cropped = scan.voxels[(slice(None), *box)]
    grid = scan.geometry.cropped([part.start for part in box], cropped.shape[1:])
    spacing, wanted = scan.spacing, configuration["spacing"]
    wanted = [*spacing[: 3 - len(wanted)], *wanted]
    shape = resampled_shape(cropped.shape[1:], spacing, wanted)
    check_memory(shape, BYTES_A_VOXEL * len(cropped))
    mask = nonzero_mask(cropped) if any(configuration["use_mask"]) or stage_before else None
    resampling = configuration["resampling"]
    channels = []
    for number, (channel, scheme, masked) in enumerate(
        zip(cropped, configuration["normalization"], configuration["use_mask"], strict=True)
    ):
        figures = intensities.get(str(number))
        normal = normalise(channel, scheme, mask if masked else None, figures)[None]
        channels.append(resample(normal, shape, spacing, wanted, resampling["data"]))
    voxels = channels[0] if len(channels) == 1 else torch.cat(channels)
    if stage_before is not None:
        assert mask is not None
        labels, values = stage_before()
        labels = labels[box].astype(np.int16)
        labels[(labels == 0) & ~mask] = -1
        labels = resample_labels(labels, shape, spacing, wanted, resampling["seg"])
        voxels = torch.cat([voxels, _one_hot(labels, values)])
    ways = output_interpolation(resampling["probabilities"], wanted, spacing)
    k, j, i = (way == "linear" for way in ways)
    return Ready(voxels, grid.resized(voxels.shape[1:]), (k, j, i))


def _one_hot(labels: NDArray[np.integer], values: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.stack([labels == value for value in values]).astype(np.float32))
