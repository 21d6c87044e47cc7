"""Move the border of each structure by an ITK level set, from the prediction to the edges of the image.

Geodesic active contour (Caselles, Kimmel and Sapiro, 1997), threshold or Laplacian level set of ITK, each in a box
around one structure, started from the signed distance to its border. Edges are taken from the image and from the
probabilities together. A border moves by at most a set distance, and only where the model was uncertain. A voxel
that two structures claim is assigned to the one in which it lies deeper; a voxel that all structures leave is
assigned to its runner-up or to a neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.boxes import grown, label_boxes
from medsegai.errors import Cancelled, RequestError
from medsegai.progress import part_of
from medsegai.refinements import Draft, Refined, Step
from medsegai.refinements._components import Tick, components
from medsegai.refinements._freed import give_away, give_to_runner_up, restore_gone
from medsegai.refinements._places import flat_indices, margin, spacing_kji, upright
from medsegai.refinements._settings import labels_setting, setting
from medsegai.request import Candidates
from medsegai.volume import Box, Scalar, Volume, joined_box

TITLE = "Move borders to edges"

METHOD_WORDS = {
    "geodesic": "towards strong edges",
    "threshold": "by similar brightness",
    "laplacian": "towards fine edges",
}
"""The names of the methods on the screen."""

METHODS = tuple(METHOD_WORDS)

MORE_VOXELS = 4
"""The number of voxels that a box extends beyond the largest displacement, because filters need neighbours."""

SMALLEST_VOXELS, SMALLEST_SIDE = 27, 4
"""A structure with fewer voxels, or with a box of a shorter side (in voxels), is too small for a level set."""

TRIFLE = 1e-3
"""The offset, in voxels, of the initial border towards the inside from the middle between two voxels."""

CONNECTIVITY = "26"
"""The connectivity of the parts of a structure, each of which gets one box."""

NOTHING_LEFT_TO_DO = 1e-3
"""The root mean square of the last change, in voxels, below which ITK stops."""


@dataclass(frozen=True)
class Options:
    """The method of the level set, the largest displacement, and the weights of its terms."""

    labels: tuple[int, ...] = labels_setting()
    method: str = setting("geodesic", "which level set of ITK", choices=METHOD_WORDS, title="Kind")
    move_mm: float = setting(
        1.0, "how far a border may move, in mm", (0.1, 50.0), title="Move at most (mm)"
    )
    sigma_mm: float = setting(
        0.7,
        "standard deviation of the Gaussian before edges are looked for, in mm",
        (0.1, 20.0),
        title="Smooth image (mm)",
    )
    iterations: int = setting(
        40, "steps of the level set at most", (1, 2000), title="Steps at most"
    )
    curvature: float = setting(
        0.2, "how much the border is kept smooth", (0.0, 20.0), title="Smoothness"
    )
    advection: float = setting(
        1.0, "geodesic: how much edges attract", (0.0, 20.0), title="Pull of edges"
    )
    propagation: float = setting(
        0.0,
        "geodesic: how much the border swells, or shrinks if below 0",
        (-20.0, 20.0),
        title="Growth",
    )
    spread: float = setting(
        2.0,
        "threshold: grey values within so many standard deviations of those deep inside belong to it, or "
        "those halfway to what lies around",
        (0.1, 20.0),
        title="Range of greys",
    )
    probability: float = setting(
        0.5,
        "geodesic: weight of edges of the probability besides those of the image",
        (0.0, 20.0),
        title="Weight of the AI",
    )
    doubt: float = setting(
        0.3,
        "how probable the runner-up must be for a voxel to change, where it is known",
        (0.0, 0.5),
        title="Doubt needed",
    )


def apply(draft: Draft, options: Options, step: Step) -> Refined:
    if draft.image is None:
        raise RequestError("Refinement 'level_set' needs the scan. Name it with --image.")
    # ITK visits voxels in memory order and decides ties by it, so the draft is reoriented to a common order first.
    order, flips = upright(draft.labelmap.geometry)
    labels, notes = _refined(_turned(draft, order, flips), options, step)
    back = np.flip(labels, flips).transpose(np.argsort(order))
    return Refined.of(draft, np.ascontiguousarray(back), notes)


def _turned(draft: Draft, order: tuple[int, ...], flips: tuple[int, ...]) -> Draft:
    """The draft with its axes in another order and some of them reversed, as views of the same memory."""
    grid = draft.labelmap.geometry.permuted(order).flipped(*flips)

    def turned(voxels: NDArray[Scalar]) -> NDArray[Scalar]:
        return np.flip(voxels.transpose(order), flips)

    image, candidates = draft.image, draft.candidates
    return Draft(
        Volume(turned(draft.labelmap.voxels), grid),
        draft.labels,
        None if image is None else Volume(turned(image.voxels), grid),
        candidates and Candidates(*(turned(array) for array in vars(candidates).values())),
    )


def _refined(draft: Draft, options: Options, step: Step) -> tuple[NDArray[np.integer], list[str]]:
    """The new labels, (k, j, i), and notes."""
    labels = np.array(draft.labelmap.voxels, order="C")
    found = label_boxes(labels, options.labels or None)
    free = np.array([0, *found], np.int64)
    reach = margin(draft.labelmap.geometry, options.move_mm, MORE_VOXELS)
    pieces = _pieces(labels, list(found), reach, lambda: step(0.0))
    claims = _Claims(labels.shape)
    for number, (value, around) in enumerate(pieces):
        part = part_of(step, number, len(pieces))
        part(0.0)
        claims.add(value, around, *_moved(draft, options, value, around, free, part))
    left = claims.settle(labels)
    if draft.candidates is not None:
        left = left[~_to_free_runner_up(labels, left, draft, free)]
    give_away(labels, left, free)
    left_out = sorted(set(found) - {value for value, _ in pieces})
    small = ", ".join(draft.label(value).name for value in left_out)
    notes = [f"Too small for a level set, and left as it was: {small}."] if small else []
    return labels, [*notes, *restore_gone(draft, labels, found)]


def _pieces(
    labels: NDArray[np.integer], wanted: Sequence[int], reach: Sequence[int], tick: Tick
) -> list[tuple[int, Box]]:
    """The boxes in which level sets run, each with its label; they surround parts that are large enough.

    Each part gets its own box, because a stray voxel far away would make a single box as large as the volume.
    Boxes of one structure that overlap are merged.
    """
    parts = components(labels, np.array(wanted, np.int64), CONNECTIVITY, tick)
    large = parts.size >= SMALLEST_VOXELS
    pieces: list[tuple[int, Box]] = []
    boxes = parts.boxes(large, labels.shape)
    for value, box in zip(parts.value[large].tolist(), boxes, strict=True):
        box = grown(box, reach, labels.shape)
        while shared := [item for item in pieces if item[0] == value and _meet(item[1], box)]:
            box = joined_box([box, *(other for _, other in shared)])
            pieces = [item for item in pieces if item not in shared]
        pieces.append((value, box))
    fitting = [piece for piece in pieces if _fits(labels[piece[1]] == piece[0])]
    return sorted(fitting, key=lambda piece: (piece[0], [side.start for side in piece[1]]))


def _meet(one: Box, other: Box) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _fits(mask: NDArray[np.bool_]) -> bool:
    return (
        min(mask.shape) >= SMALLEST_SIDE and int(mask.sum()) >= SMALLEST_VOXELS and not mask.all()
    )


def _moved(
    draft: Draft,
    options: Options,
    value: int,
    box: Box,
    free: NDArray[np.int64],
    step: Step,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The level set of one structure in its box, in mm and negative inside, and the voxels that it may change."""
    labels = draft.labelmap.voxels[box]
    start = signed_distance(labels == value, spacing_kji(draft.labelmap.geometry))
    step(0.0)
    allowed = (np.abs(start) <= options.move_mm) & np.isin(labels, free)
    if draft.candidates is not None:
        allowed &= draft.candidates.p_second[box] >= 255 * options.doubt
    if not allowed.any():
        return start, allowed
    run = {"geodesic": _geodesic, "threshold": _threshold, "laplacian": _laplacian}[options.method]
    return run(draft, options, value, box, start, step), allowed


def signed_distance(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float32]:
    """The distance to the border of a mask in mm, float32 (k, j, i), negative inside.

    The border lies halfway between voxels, moved inwards by `TRIFLE`, because ITK would otherwise choose between
    equally near voxels on both sides by their order in memory.
    """
    from scipy import ndimage

    half, trifle = min(spacing) / 2, TRIFLE * min(spacing)
    inside = ndimage.distance_transform_edt(mask, spacing)
    outside = ndimage.distance_transform_edt(~mask, spacing)
    return (np.where(mask, half - inside, outside - half) + trifle).astype(np.float32)


def _geodesic(
    draft: Draft,
    options: Options,
    value: int,
    box: Box,
    start: NDArray[np.float32],
    step: Step,
) -> NDArray[np.float32]:
    near = np.abs(start) <= options.move_mm
    assert draft.image is not None
    edges = _edges(draft, draft.image.voxels[box], options, near)
    step(0.0)
    if draft.candidates is not None and options.probability:
        probability = _probability(draft, value, box)
        edges += options.probability * _edges(draft, probability, options, near)
        step(0.0)
    return _run(
        _contour(options), draft, options, (start, (1 / (1 + edges)).astype(np.float32)), step
    )


def _contour(options: Options) -> Any:
    import SimpleITK as sitk

    contour = sitk.GeodesicActiveContourLevelSetImageFilter()
    contour.SetPropagationScaling(options.propagation)
    contour.SetAdvectionScaling(options.advection)
    return contour


def _threshold(
    draft: Draft,
    options: Options,
    value: int,
    box: Box,
    start: NDArray[np.float32],
    step: Step,
) -> NDArray[np.float32]:
    import SimpleITK as sitk

    grey = _smooth(draft, options, box)
    deep = start < max(-options.move_mm, float(start.min()) / 2)
    middle, spread = float(grey[deep].mean()), options.spread * float(grey[deep].std())
    far = start > options.move_mm
    halfway = (middle + float(grey[far].mean())) / 2 if far.any() else middle
    lower, upper = min(middle - spread, halfway), max(middle + spread, halfway)
    level = sitk.ThresholdSegmentationLevelSetImageFilter()
    level.SetLowerThreshold(lower)
    level.SetUpperThreshold(upper)
    return _run(level, draft, options, (start, grey), step)


def _laplacian(
    draft: Draft,
    options: Options,
    value: int,
    box: Box,
    start: NDArray[np.float32],
    step: Step,
) -> NDArray[np.float32]:
    import SimpleITK as sitk

    grey = _smooth(draft, options, box)
    near = np.abs(start) <= options.move_mm + max(spacing_kji(draft.labelmap.geometry))
    inside, outside = grey[near & (start < 0)], grey[near & (start >= 0)]
    level = sitk.LaplacianSegmentationLevelSetImageFilter()
    # ITK moves the border the right way for bright or for dark structures, not for both.
    level.SetReverseExpansionDirection(bool(inside.mean() > outside.mean()))
    return _run(level, draft, options, (start, grey), step)


def _smooth(draft: Draft, options: Options, box: Box) -> NDArray[np.float32]:
    """The smoothed scan in a box, in standard deviations, float32 (k, j, i)."""
    from scipy import ndimage

    assert draft.image is not None
    grey = draft.image.voxels[box].astype(np.float32)
    sigmas = [options.sigma_mm / length for length in spacing_kji(draft.labelmap.geometry)]
    smooth = ndimage.gaussian_filter(grey, sigmas, mode="nearest")
    return np.asarray((smooth - smooth.mean()) / (smooth.std() or 1.0))


def _edges(
    draft: Draft, values: NDArray[np.number], options: Options, near: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """The squared gradient of `values`, scaled so that 1 is usual near the border."""
    from scipy import ndimage

    spacing = spacing_kji(draft.labelmap.geometry)
    sigmas = [options.sigma_mm / length for length in spacing]
    squared = np.zeros(values.shape, np.float32)
    for axis, length in enumerate(spacing):
        order = [int(axis == other) for other in range(3)]
        slope = ndimage.gaussian_filter(values.astype(np.float32), sigmas, order, mode="nearest")
        squared += np.square(slope / np.float32(length))
    return squared / (float(np.median(squared[near])) or 1.0)


def _probability(draft: Draft, value: int, box: Box) -> NDArray[np.float32]:
    assert draft.candidates is not None
    first, second, p_first, p_second = (array[box] for array in vars(draft.candidates).values())
    steps = np.where(first == value, p_first, np.where(second == value, p_second, 0))
    return np.asarray(steps.astype(np.float32) / np.float32(255))


def _itk_image(array: NDArray[np.float32], spacing_mm: Sequence[float]) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm)
    return image


def _run(
    level: Any,
    draft: Draft,
    options: Options,
    images: tuple[NDArray[np.float32], NDArray[np.float32]],
    step: Step,
) -> NDArray[np.float32]:
    """Run a level set of ITK on its start and feature images; `step` can stop it at each iteration."""
    import SimpleITK as sitk

    level.SetCurvatureScaling(options.curvature)
    level.SetNumberOfIterations(options.iterations)
    level.SetMaximumRMSError(NOTHING_LEFT_TO_DO)
    stopped: list[Cancelled] = []

    def heard() -> None:
        try:
            step(min(level.GetElapsedIterations() / options.iterations, 1.0))
        except Cancelled as error:  # ITK would make another error of it
            stopped.append(error)
            level.Abort()

    level.AddCommand(sitk.sitkIterationEvent, heard)
    spacing = draft.labelmap.geometry.spacing_mm
    try:
        found = level.Execute(*(_itk_image(array, spacing) for array in images))
    except RuntimeError:
        if not stopped:
            raise
    if stopped:
        raise stopped[0]
    return np.asarray(sitk.GetArrayFromImage(found))


class _Claims:
    """The voxels that structures claim, with their depth, and the voxels that structures leave."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._places: list[NDArray[np.int64]] = []
        self._levels: list[NDArray[np.float32]] = []
        self._values: list[NDArray[np.int64]] = []

    def add(
        self, value: int, box: Box, level: NDArray[np.float32], allowed: NDArray[np.bool_]
    ) -> None:
        """Add the claims of one structure on the voxels that it may change."""
        places = flat_indices(allowed, box, self._shape)
        self._places.append(places)
        self._levels.append(level[allowed])
        self._values.append(np.full(len(places), value, np.int64))

    def settle(self, labels: NDArray[np.integer]) -> NDArray[np.int64]:
        """Assign each voxel to the structure in which it lies deepest, in place.

        Returns:
            The indices in the flat volume of voxels that their structure leaves and no structure claims.
        """
        if not self._places:
            return np.zeros(0, np.int64)
        places, values = np.concatenate(self._places), np.concatenate(self._values)
        levels = np.concatenate(self._levels)
        flat = labels.reshape(-1)
        left = places[(levels >= 0) & (flat[places] == values)]
        # A voxel that its own structure may not change keeps its label: it lies deep inside, or is certain.
        asked = places[flat[places] == values]
        background = flat[places] == 0
        claimed = (levels < 0) & (background | np.isin(places, asked))
        order = np.lexsort((levels[claimed], places[claimed]))
        places, values = places[claimed][order], values[claimed][order]
        first = np.r_[True, np.diff(places) > 0] if len(places) else np.zeros(0, bool)
        flat[places[first]] = values[first]
        return np.setdiff1d(left, places)


def _to_free_runner_up(
    labels: NDArray[np.integer], places: NDArray[np.int64], draft: Draft, free: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Assign voxels to their runner-up if it is a `free` label, in place; return which were, bool (place)."""
    assert draft.candidates is not None
    flat = labels.reshape(-1)
    before = flat[places]
    known = give_to_runner_up(labels, places, draft.candidates) & np.isin(flat[places], free)
    flat[places[~known]] = before[~known]
    return known
