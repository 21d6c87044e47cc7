"""Variation of label maps: younger and older heads are derived from a head, and what maps leave out is added.

The available label maps are often from people of one age. A smooth displacement contracts or widens the
ventricles, and fluid in narrow sulci becomes cortex, so that a network also learns from ages without label maps.

Label maps call the claustrum white matter, although it is a sheet of grey matter beside the putamen. A network
that never saw one takes it for putamen, so it is added, as are mild lesions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from medsegai.boxes import grown, label_boxes
from medsegai.errors import RequestError
from medsegai.models.limits import Limits
from medsegai.training.limits import (
    NOT_NEGATIVE,
    POSITIVE,
    RANGE,
    SHARE,
    Range,
    limited,
)

SMOOTHING_MM = 2.0
"""The blur of the directions away from the ventricles; the directions of opposite walls of a narrow horn cancel,
so it stays open."""


@dataclass(frozen=True)
class AnatomyConfig:
    """How label maps are varied before images are made from them. Lengths are in mm; labels are the files' values.

    Each map gets ``variants`` siblings. In each, ``ventricles`` contract by a length drawn from
    ``contraction_mm``, or widen if it is negative; the displacement fades out at ``reach_mm``. If they contract,
    ``fluid`` closer to ``cortex`` than a length drawn from ``sulcus_mm`` becomes cortex. A volume is made from a
    sibling with the probability ``share``. Lesions, which are spots of ``lesion`` inside ``white_matter``, are put
    into a ``lesion_share`` of the siblings. A ``claustrum_share`` of them gets a ``claustrum``: a sheet of
    ``claustrum_mm`` in the white matter between ``putamen`` and cortex, where they are at most
    ``claustrum_gap_mm`` apart. The labels of ``white_matter``, ``cortex``, ``putamen``, ``lesion`` and
    ``claustrum`` are those of one side, then those of the other.
    """

    variants: int = limited(0, NOT_NEGATIVE)
    share: float = limited(0.5, SHARE)
    ventricles: tuple[int, ...] = ()
    contraction_mm: Range = limited((0.6, 4.0), Limits(ascending=True))
    reach_mm: float = limited(18.0, POSITIVE)
    cortex: tuple[int, ...] = ()
    fluid: int = 0
    sulcus_mm: Range = limited((1.0, 1.4), RANGE)
    white_matter: tuple[int, ...] = ()
    lesion: tuple[int, ...] = ()
    lesion_share: float = limited(0.0, SHARE)
    putamen: tuple[int, ...] = ()
    claustrum: tuple[int, ...] = ()
    claustrum_mm: Range = limited((0.8, 2.2), RANGE)
    claustrum_gap_mm: Range = limited((5.0, 9.0), RANGE)
    claustrum_share: float = limited(0.0, SHARE)

    def __post_init__(self) -> None:
        """Raises RequestError: of what is added to white matter, another number of sides is named."""
        for name, beside in (
            ("lesion", ("white_matter",)),
            ("claustrum", ("white_matter", "cortex", "putamen")),
        ):
            sides = len(getattr(self, name))
            for other in beside if sides else ():
                if len(getattr(self, other)) != sides:
                    raise RequestError(
                        f"Training file: anatomy.{name} needs as many labels as anatomy.{other}, "
                        f"one of each side; it has {sides} and the other {len(getattr(self, other))}."
                    )


def vary(
    labels: NDArray[np.integer],
    spacing_mm: tuple[float, float, float],
    config: AnatomyConfig,
    random: np.random.Generator,
) -> NDArray[np.integer]:
    """Make a sibling of a label map, integer (k, j, i); `spacing_mm` is along (k, j, i)."""
    contraction = random.uniform(*config.contraction_mm)
    sulcus = random.uniform(*config.sulcus_mm)
    varied = labels
    if config.ventricles:
        varied = contracted(varied, spacing_mm, config, contraction)
    if config.cortex and contraction > 0:
        varied = with_narrow_sulci(varied, spacing_mm, config, sulcus)
    if config.claustrum and random.random() < config.claustrum_share:
        varied = with_claustrum(varied, spacing_mm, config, random)
    if config.lesion and random.random() < config.lesion_share:
        varied = with_lesions(varied, spacing_mm, config, random)
    return varied


def contracted(
    labels: NDArray[np.integer],
    spacing_mm: tuple[float, float, float],
    config: AnatomyConfig,
    contraction_mm: float,
) -> NDArray[np.integer]:
    """Return the map with its ventricles contracted by `contraction_mm`, or widened if that is negative."""
    inside = np.isin(labels, config.ventricles)
    if not inside.any():
        return labels
    box = _box_around(inside, spacing_mm, config.reach_mm)
    part, inside = labels[box], inside[box]
    coordinates = _moved(inside, spacing_mm, config.reach_mm, contraction_mm)
    varied = labels.copy()
    varied[box] = scipy.ndimage.map_coordinates(part, coordinates, order=0, mode="nearest")
    return varied


def _box_around(
    inside: NDArray[np.bool_], spacing_mm: tuple[float, float, float], reach_mm: float
) -> tuple[slice, ...]:
    """Return the box (k, j, i) of a structure and of what is at most `reach_mm` away, with 2 mm to spare."""
    margin = [int(np.ceil((reach_mm + 2) / spacing)) for spacing in spacing_mm]
    return grown(label_boxes(inside.astype(np.uint8))[1], margin, inside.shape)


def _moved(
    inside: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    reach_mm: float,
    contraction_mm: float,
) -> NDArray[np.float32]:
    """Return the place (axis, k, j, i) that gives each voxel its label: `contraction_mm` outward, less far off."""
    outward = scipy.ndimage.distance_transform_edt(~inside, sampling=spacing_mm)
    depth = scipy.ndimage.distance_transform_edt(inside, sampling=spacing_mm)
    distance = (outward - depth).astype(np.float32)
    sigma = [SMOOTHING_MM / spacing for spacing in spacing_mm]
    smooth = scipy.ndimage.gaussian_filter(distance, sigma)
    fading = np.clip(1.0 - outward / reach_mm, 0.0, 1.0).astype(np.float32)
    coordinates = np.indices(inside.shape, dtype=np.float32)
    for axis, spacing in enumerate(spacing_mm):
        direction = np.gradient(smooth, spacing, axis=axis)
        coordinates[axis] += contraction_mm / spacing * fading * direction
    return coordinates


def with_narrow_sulci(
    labels: NDArray[np.integer],
    spacing_mm: tuple[float, float, float],
    config: AnatomyConfig,
    reach_mm: float,
) -> NDArray[np.integer]:
    """Return the map in which fluid within `reach_mm` of cortex has become the nearest cortex."""
    cortex = np.isin(labels, config.cortex)
    if not cortex.any():
        return labels
    distance, nearest = scipy.ndimage.distance_transform_edt(
        ~cortex, sampling=spacing_mm, return_indices=True
    )
    closed = (labels == config.fluid) & (distance <= reach_mm)
    varied = labels.copy()
    varied[closed] = labels[tuple(index[closed] for index in nearest)]
    return varied


def with_claustrum(
    labels: NDArray[np.integer],
    spacing_mm: tuple[float, float, float],
    config: AnatomyConfig,
    random: np.random.Generator,
) -> NDArray[np.integer]:
    """Return the map with a sheet of claustrum, of the value of its side, where putamen and cortex are close."""
    thickness = random.uniform(*config.claustrum_mm)
    gap = random.uniform(*config.claustrum_gap_mm)
    middle = random.uniform(0.35, 0.65)
    varied = labels.copy()
    sides = zip(config.white_matter, config.cortex, config.putamen, config.claustrum, strict=True)
    for matter, cortex, putamen, claustrum in sides:
        inside = labels == putamen
        if not inside.any():
            continue
        box = _box_around(inside, spacing_mm, gap)
        part = labels[box]
        inner, outer = (
            scipy.ndimage.distance_transform_edt(part != value, sampling=spacing_mm)
            for value in (putamen, cortex)
        )
        between = inner + outer
        sheet = np.abs(inner - middle * between) < thickness / 2
        varied[box][(part == matter) & (between < gap) & sheet] = claustrum
    return varied


def with_lesions(
    labels: NDArray[np.integer],
    spacing_mm: tuple[float, float, float],
    config: AnatomyConfig,
    random: np.random.Generator,
) -> NDArray[np.integer]:
    """Return the map with lesions, of the value of their side, in at most a few per cent of the white matter."""
    grain_mm = random.uniform(1.5, 4.0)
    noise = random.standard_normal(labels.shape, dtype=np.float32)
    field = scipy.ndimage.gaussian_filter(noise, [grain_mm / spacing for spacing in spacing_mm])
    share = random.uniform(0.0, 0.04)
    varied = labels.copy()
    for value, lesion in zip(config.white_matter, config.lesion, strict=True):
        matter = labels == value
        if matter.any():
            threshold = np.quantile(field[matter], 1.0 - share)
            varied[matter & (field > threshold)] = lesion
    return varied
