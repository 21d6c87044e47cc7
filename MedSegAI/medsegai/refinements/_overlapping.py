"""Refinement of regions that overlap, such as a tumour and its core: each is refined independently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsegai.labels import Label
from medsegai.models.refinement import Refinement
from medsegai.progress import part_of
from medsegai.refinements import Change, Draft, Refined, Step, apply_refinement, options_of
from medsegai.request import Candidates
from medsegai.volume import Geometry, Volume

SURELY_IN = 128
"""The probability, in steps of 1/255, from which a voxel is more probably inside than outside of a region."""


@dataclass(frozen=True, eq=False)
class Regions:
    """The input of a refinement of overlapping regions; all arrays have the same grid.

    Attributes:
        masks: the mask of each region, bool (label, k, j, i).
        labels: the labels of the regions, from the outermost to the innermost.
        geometry: the grid.
        image: the scan, for refinements that need it.
        steps: the probability of each region in steps of 1/255, uint8 (label, k, j, i), if it is known.
    """

    masks: NDArray[np.bool_]
    labels: tuple[Label, ...]
    geometry: Geometry
    image: Volume | None = None
    steps: NDArray[np.uint8] | None = None

    def draft(self, masks: NDArray[np.bool_], group: Sequence[int]) -> Draft:
        """The regions of a group as one structure with the label of the first; all other voxels are background."""
        label = self.labels[group[0]]
        steps = None if self.steps is None else self.steps[list(group)].max(0)
        labelmap = _labelled(np.logical_or.reduce(masks[list(group)]), label)
        candidates = None if steps is None else _candidates(steps, label)
        return Draft(Volume(labelmap, self.geometry), (label,), self.image, candidates)


def apply_to_regions(
    regions: Regions, refinement: Refinement, step: Step = lambda part: None
) -> Refined:
    """Apply a refinement to each region independently of the others.

    Labels that form a group, or that the refinement joins, are refined as one structure: all of them lose the
    voxels that it loses, and the outermost gains those that it gains.

    Returns:
        The changes of each region; `labels` are the new masks, bool (label, k, j, i).

    Raises:
        RequestError: see `apply_refinement`.
        Cancelled: `step` asked to stop.
    """
    options_of(refinement, regions.labels)
    masks, notes = regions.masks.copy(), list[str]()
    groups = list(_groups(refinement, [label.value for label in regions.labels]))
    for number, group in enumerate(groups):
        part = part_of(step, number, len(groups))
        draft = regions.draft(masks, group)
        refined = apply_refinement(draft, _alone(refinement, draft.labels[0].value), part)
        notes += refined.notes
        before, after = draft.labelmap.voxels != 0, refined.labels != 0
        masks[list(group)] &= after | ~before
        masks[group[0]] |= after & ~before
    return _compared(regions, masks, notes)


def _groups(refinement: Refinement, values: Sequence[int]) -> Iterator[list[int]]:
    """The indices of the regions that are refined together, the outermost first."""
    named = refinement.options.get("labels") or values
    entries = [item if isinstance(item, tuple) else (item,) for item in named]
    if refinement.options.get("joined"):
        entries = [tuple(value for entry in entries for value in entry)]
    for entry in entries:
        yield sorted({values.index(value) for value in entry})


def _alone(refinement: Refinement, value: int) -> Refinement:
    """Return the refinement in the form in which it is applied to a single structure."""
    options = {option: item for option, item in refinement.options.items() if option != "joined"}
    alone = Refinement(refinement.name, options)
    return alone.with_options(labels=(value,)) if options.get("labels") else alone


def _labelled(mask: NDArray[np.bool_], label: Label) -> NDArray[np.integer]:
    kind = np.min_scalar_type(label.value)
    return mask.astype(kind) * kind.type(label.value)


def _candidates(steps: NDArray[np.uint8], label: Label) -> Candidates:
    """The candidates of a region: the region and the background, whose probabilities add up to one."""
    inside = steps >= SURELY_IN
    high = np.maximum(steps, 255 - steps)
    low = (255 - high).astype(np.uint8)
    first = _labelled(inside, label)
    return Candidates(first, _labelled(~inside & (low > 0), label), high, low)


def _compared(regions: Regions, masks: NDArray[np.bool_], notes: Sequence[str]) -> Refined:
    changes, voxels, ml = list[Change](), 0, 0.0
    for label, before, after in zip(regions.labels, regions.masks, masks, strict=True):
        draft = Draft(Volume(_labelled(before, label), regions.geometry), (label,))
        refined = Refined.of(draft, _labelled(after, label))
        changes += refined.changes
        voxels, ml = voxels + refined.voxels, ml + refined.ml
    changes.sort(key=lambda change: -change.ml)
    return Refined(masks, tuple(changes), voxels, ml, tuple(notes))
