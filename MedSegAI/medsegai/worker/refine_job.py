"""Refinement of an existing segmentation, as a job of the worker."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.boxes import label_boxes
from medsegai.errors import counted
from medsegai.progress import Progress, part_of
from medsegai.refinements import Draft, Refined, apply_refinement
from medsegai.volume import Geometry, Volume
from medsegai.worker.requests import RefinementRequest, RefinementResult


def refine(request: RefinementRequest, progress: Progress) -> RefinementResult:
    """Apply the refinements in their order, and report all changes.

    Labels that are `fixed` do not change, see `kept`.

    Raises:
        RequestError: a refinement, option or label is unknown, a value is out of bounds, or a necessary image is
            missing.
        GeometryError: candidates have another grid.
        Cancelled: the user asked to stop.
    """
    progress.plan({"refine": 1.0})
    progress.step("refine", 0, 1)
    labelmap, words, report = request.labelmap, list[str](), list[dict[str, Any]]()
    image = None if request.image is None else on_grid(request.image, labelmap.geometry)
    whole = functools.partial(progress.step, "refine", total=1.0)
    for number, refinement in enumerate(request.refinements):
        step = part_of(whole, number, len(request.refinements))
        draft = Draft(labelmap, request.labels, image, request.candidates)
        refined = _without(draft, apply_refinement(draft, refinement, step), request.fixed)
        words += refined.words(refinement.name)
        report.append(refined.to_dict(refinement))
        labelmap = labelmap.with_voxels(refined.labels)
    progress.step("refine", 1, 1)
    return RefinementResult(labelmap, tuple(words), tuple(report), dict(progress.seconds))


def on_grid(image: Volume, grid: Geometry) -> Volume:
    """Interpolate the image linearly at the voxels of another grid; outside it, the value at its edge is used.

    It is returned unchanged if its voxels are those of the grid.
    """
    if image.geometry.matches(grid):
        return image
    from scipy import ndimage

    to_image = image.geometry.ras_to_ijk @ grid.ijk_to_ras
    backwards = [2, 1, 0]  # SciPy counts (k, j, i)
    voxels = ndimage.affine_transform(
        np.asarray(image.voxels, np.float32),
        to_image[:3, :3][np.ix_(backwards, backwards)],
        to_image[backwards, 3],
        grid.shape,
        order=1,
        mode="nearest",
    )
    return Volume(voxels, grid, image.source)


def kept(
    before: NDArray[np.integer], after: NDArray[np.integer], fixed: Sequence[int]
) -> tuple[NDArray[np.integer], int]:
    """Return the new labels without changes of fixed labels.

    A voxel that would move to a fixed label keeps its label, so that a moving border does not open a gap. If a
    whole part of a structure would move, such as an island, it becomes background, because it does not belong to
    its structure and must not go to a fixed one.

    Args:
        before, after: the labels (k, j, i) before and after refinement.
        fixed: the values of fixed labels.

    Returns:
        The labels, and the number of voxels that became background.
    """
    labels = after.copy()
    places = np.flatnonzero(before != after)
    old, new = before.reshape(-1)[places], after.reshape(-1)[places]
    undone = np.isin(old, fixed) | np.isin(new, fixed)
    labels.reshape(-1)[places[undone]] = old[undone]
    left = np.setdiff1d(old[undone], [0, *fixed])
    return labels, sum(
        _clear_parts(labels[box], after[box], value)
        for value, box in label_boxes(labels, left.tolist()).items()
    )


def _clear_parts(labels: NDArray[np.integer], after: NDArray[np.integer], value: int) -> int:
    """Clear the parts of a label that were to move completely, in place; return the number of voxels."""
    from scipy import ndimage

    own = labels == value
    parts, _count = ndimage.label(own)
    gone = own & ~np.isin(parts, np.unique(parts[own & (after == value)]))
    labels[gone] = 0
    return int(gone.sum())


def _without(draft: Draft, refined: Refined, fixed: Sequence[int]) -> Refined:
    """Return the refined result without changes of fixed labels."""
    if not fixed or refined.labels is draft.labelmap.voxels:
        return refined
    labels, cleared = kept(draft.labelmap.voxels, refined.labels, fixed)
    ml = cleared * draft.labelmap.geometry.voxel_volume_ml
    note = (
        f"{counted(cleared, 'voxel', 'voxels')}, {ml:.3g} ml, became background, because the structures "
        "around must not change."
    )
    return Refined.of(draft, labels, (*refined.notes, *([note] if cleared else [])))
