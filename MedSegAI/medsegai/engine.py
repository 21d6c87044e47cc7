"""The pipeline from scans to labels: read, prepare, predict, fuse, and return the result on the input grid.

Everything here is the same for all model families. Command line, batch, worker and scripts all call `segment`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import ModelError, RequestError
from medsegai.families import Inputs, Model, Part, load_model
from medsegai.families._contrast import surer_contrast
from medsegai.inference.fusion import (
    Accumulator,
    Ensemble,
    JointLabels,
    PartPrediction,
    join_labels,
)
from medsegai.inference.grid_sampling import slabs_of
from medsegai.inference.probabilities import StreamedProbabilities
from medsegai.inference.provenance import model_record, scan_record, software
from medsegai.inference.result_builder import ResultBuilder
from medsegai.io import as_channels, check_picture, check_scan, read_channels, read_volume
from medsegai.io.checks import MAX_SPACING_MM, check_one_grid
from medsegai.measurements import plausibility
from medsegai.measurements.instances import objects_of
from medsegai.models import quality
from medsegai.models.card import ModelCard
from medsegai.models.catalogue import find_card
from medsegai.models.json_fields import shown
from medsegai.models.refinement import Refinement
from medsegai.models.suitability import check_suits
from medsegai.networks.backends import Compute, choose_compute
from medsegai.progress import MemberProgress, Progress
from medsegai.refinements import options_of, parse, uses_candidates
from medsegai.request import Candidates, SegmentationRequest, SegmentationResult, StructureMeasures
from medsegai.system.machine import peak_memory_mb
from medsegai.volume import Geometry, Scalar, Volume

STAGES = {"read": 2.0, "prepare": 4.0, "predict": 85.0, "labels": 8.0, "refine": 1.0}
"""What a job consists of, and how the stages weigh in its progress."""

REFINEMENT_SHARE = 5.0
"""How much longer each refinement that is asked for makes the last stage."""

COARSER = 1.5
"""How many times farther apart than in the training of a model slices may be, even beyond the usual limit."""

SLAB_VOXELS = 1 << 20
SLAB_VALUES = 1 << 25
"""Largest number of voxels of the output grid, and of voxels times classes, that are processed together."""


def segment(request: SegmentationRequest, progress: Progress | None = None) -> SegmentationResult:
    """Segment one case.

    Args:
        request: what to do.
        progress: receives each step, and can stop the job.

    Returns:
        labels, measures of each structure and whatever else was requested, all on the grid of the first input.

    Raises:
        InputError, GeometryError: an input cannot be read, or the inputs lie on different grids.
        ModelError, RequestError, DeviceError: the request cannot be fulfilled.
        Cancelled: the user stopped the job.
    """
    progress = progress or Progress()
    cards = [find_card(name) for name in request.models]
    naming = join_labels(cards)
    refinements = _refinements(request, cards, naming)
    _plan(progress, request)
    compute = choose_compute(request.device, request.backend, request.precision)
    inputs, warnings = _read(request, cards, progress)
    box = _region_box(request, inputs[0])
    models = [_model(*_key(card)) for card in cards]
    output = inputs[0].geometry.part(box)
    job = _SegmentationJob(request, inputs, output, compute, progress, _temperature(request, cards))
    parts = _prepared(job, models, naming)
    candidates = any(uses_candidates(item) for item in refinements)
    builder, members = _build(job, parts, naming, candidates)
    refined = builder.refine(refinements, _cut(inputs[0], box, output), progress)
    structures = _judged(job, builder, cards, members)
    result = _on_scan(builder, _Placed(inputs[0], box), request, naming, structures)
    return replace(
        _with_objects(result, inputs, cards, naming),
        seconds=dict(progress.seconds),
        peak_memory_mb=peak_memory_mb(),
        intracranial_ml=_intracranial_ml(_skull_labels(request, cards), structures),
        members=members,
        refinements=tuple(refined),
        provenance=_provenance(job, cards, parts),
        warnings=(*warnings, *_warnings(job, cards, parts, builder, structures)),
    )


def _plan(progress: Progress, request: SegmentationRequest) -> None:
    """Set the stages of the job; each refinement that is requested makes the last one longer."""
    refining = STAGES["refine"] * (1 + REFINEMENT_SHARE * len(request.refinements))
    progress.plan(STAGES | {"refine": refining}, together=("predict", "labels"))


def _build(
    job: _SegmentationJob, parts: Sequence[_PartOf], naming: JointLabels, candidates: bool
) -> tuple[ResultBuilder, tuple[str, ...]]:
    """The labels, and the names of the members that voted.

    Predictions are fused slab by slab; members that stream predict meanwhile. What networks and predictions needed
    is released here, because refining and writing need memory of their own.
    """
    ensemble = _predict(job, parts, naming)
    builder = ResultBuilder(job.request, naming.labels, job.output, ensemble, candidates)
    for slab in slabs_of(builder.grid, _planes_at_once(builder.grid, len(ensemble.labels))):
        job.progress.step("labels", slab.k0, builder.grid.shape[0])
        builder.add(slab)
    names = ensemble.names
    builder.finish()
    del ensemble
    job.compute.release_memory()
    return builder, names


def _on_scan(
    builder: ResultBuilder,
    place: _Placed,
    request: SegmentationRequest,
    naming: JointLabels,
    structures: tuple[StructureMeasures, ...],
) -> SegmentationResult:
    """The result on the grid of the scan, without what is reported of the run."""
    candidates = builder.candidates if request.candidates else None
    return SegmentationResult(
        labelmap=place.volume(builder.labelmap),
        labels=naming.labels,
        structures=structures,
        entropy=None if builder.entropy is None else place.volume(builder.entropy),
        mutual_information=None
        if builder.information is None
        else place.volume(builder.information),
        probabilities=None if builder.probabilities is None else place(builder.probabilities),
        regions=None if builder.regions is None else place(builder.regions),
        candidates=None if candidates is None else place.candidates(candidates),
        region=request.region,
    )


def _with_objects(
    result: SegmentationResult,
    inputs: Sequence[Volume],
    cards: Sequence[ModelCard],
    naming: JointLabels,
) -> SegmentationResult:
    """The result with the objects of the first model that separates them, in a picture."""
    for card, renamed in zip(cards, naming.renamed, strict=True):
        if card.object_labels is not None and len(result.labelmap.voxels) == 1:
            inside, border = (renamed[value] for value in card.object_labels)
            objects, rows = objects_of(result.labelmap, (inside, border), inputs)
            return replace(result, objects=objects, object_rows=rows)
    return result


def warm_up(request: SegmentationRequest) -> None:
    """Read the models of a request, whose inputs do not matter, and make them ready for its first case.

    Raises:
        ModelError, RequestError, DeviceError: the request cannot be fulfilled here.
    """
    compute = choose_compute(request.device, request.backend, request.precision)
    for name in request.models:
        _model(*_key(find_card(name))).warm_up(request, compute)


def _read_picture(item: Path | Volume) -> tuple[tuple[Volume, ...], tuple[str, ...]]:
    channels = (item,) if isinstance(item, Volume) else read_channels(Path(item))
    return channels, check_picture(channels[0])


def _read_scan(item: Path | Volume, limit_mm: float) -> tuple[tuple[Volume, ...], tuple[str, ...]]:
    scan = item if isinstance(item, Volume) else read_volume(Path(item))
    return (scan,), check_scan(scan, limit_mm)


def _read(
    request: SegmentationRequest, cards: Sequence[ModelCard], progress: Progress
) -> tuple[list[Volume], list[str]]:
    """The inputs, checked against the models, and warnings about them.

    A model that was trained on thicker slices than others accepts such slices.
    """
    flat = {card.dimensions == 2 for card in cards}
    if len(flat) > 1:
        raise RequestError("Models of single images and models of volumes cannot be used together.")
    coarsest = COARSER * max(max(card.spacing_mm) for card in cards)
    limit = math.inf if request.anyway else max(MAX_SPACING_MM, coarsest)
    inputs: list[Volume] = []
    warnings: list[str] = []
    for number, item in enumerate(request.inputs):
        progress.step("read", number, len(request.inputs))
        channels, notes = _read_picture(item) if flat == {True} else _read_scan(item, limit)
        inputs += channels
        warnings += notes
    check_one_grid(inputs)
    if flat == {True}:
        fitted = as_channels(inputs, len(cards[0].channels), request.anyway)
        inputs, warnings = fitted.channels, [*warnings, *fitted.warnings]
    warnings += check_suits(cards, inputs, request.anyway)
    return inputs, warnings


@dataclass(frozen=True)
class _SegmentationJob:
    """One case: what is requested, for which scan, and where it runs.

    `output` is the part of the scan's grid; `temperature` that of the probabilities.
    """

    request: SegmentationRequest
    inputs: Sequence[Volume]
    output: Geometry
    compute: Compute
    progress: Progress
    temperature: float


@dataclass(frozen=True)
class _PartOf:
    """A part of one of the models: the number of the model, and the values that its labels have in the result."""

    part: Part
    model: int
    renamed: Mapping[int, int]


def _prepared(job: _SegmentationJob, models: Sequence[Model], naming: JointLabels) -> list[_PartOf]:
    """The parts of all models, which have not predicted yet."""
    parts: list[_PartOf] = []
    inputs = Inputs(job.inputs)
    for number, model in enumerate(models):
        job.progress.step("prepare", number, len(models))
        for part in _parts_of(job, model, inputs):
            cooled = replace(part, activation=part.activation.at(job.temperature))
            parts.append(_PartOf(cooled, number, naming.renamed[number]))
    return parts


def _parts_of(job: _SegmentationJob, model: Model, inputs: Inputs) -> Sequence[Part]:
    """The parts of a model, for the contrast of the scan that it is surer of."""

    def parts(seen: Inputs) -> Sequence[Part]:
        return model.parts(seen, job.output, job.request, job.compute, job.progress)

    found = parts(inputs)  # first, because it refuses requests that the model cannot fulfil
    seen, notes = surer_contrast(model, inputs, job.compute)
    if seen is inputs:
        return found
    first, *others = parts(seen)
    return [replace(first, warnings=(*notes, *first.warnings)), *others]


def _warnings(
    job: _SegmentationJob,
    cards: Sequence[ModelCard],
    parts: Sequence[_PartOf],
    builder: ResultBuilder,
    structures: Sequence[StructureMeasures],
) -> list[str]:
    """What the user should know of the prediction and of the result, in this order."""
    inside_skull = _skull_labels(job.request, cards)
    return [
        *(warning for item in parts for warning in item.part.warnings),
        *(finding for item in parts for finding in item.part.findings()),
        *job.compute.notes,
        *builder.warnings,
        *_cut_skull(inside_skull, Volume(builder.labelmap, job.output)),
        *quality.sentences(structures, [card.reference.source for card in cards if card.reference]),
    ]


def _predict(job: _SegmentationJob, parts: Sequence[_PartOf], naming: JointLabels) -> Ensemble:
    """Let all members predict: now, or, for a part that can be read while it predicts, during reading.

    The part with the most voxels predicts first: it needs the most memory to work in, and the probabilities of the
    others do not yet exist beside it.
    """
    axis = None if job.request.members_apart else _plane_axis([item.part for item in parts])
    work = MemberProgress(job.progress, sum(len(item.part.members) for item in parts))
    labels = (0, *(label.value for label in naming.labels))
    axes = _slab_axes(parts[0].part.geometry, job.output) if axis is None else _beginning_with(axis)
    by_size = sorted(
        range(len(parts)), key=lambda number: -math.prod(parts[number].part.geometry.shape)
    )
    predictions = {}
    for number in by_size:
        job.compute.release_memory()
        predictions[number] = _predict_part(job, parts[number], axis, work)
    job.compute.release_memory()
    return Ensemble([predictions[number] for number in range(len(parts))], labels, axes)


def _predict_part(
    job: _SegmentationJob, item: _PartOf, axis: int | None, work: MemberProgress
) -> PartPrediction:
    """The prediction of a part: made at once or, if its planes are ordered along `axis`, when it is read."""
    part = item.part
    weight = sum(member.weight for member in part.members) if part.weight is None else part.weight
    names = tuple(member.name for member in part.members)
    if axis is not None and part.plane_axis == axis:
        streamed = _streamed(part, item.renamed, job.compute, work)
        return PartPrediction(streamed, weight, part.geometry, names)
    keep = job.request.uncertainty and len(work.done) > 1
    total = _accumulated(job, item, work, keep)
    joined = total.result()
    if not keep:
        return PartPrediction(joined, weight, part.geometry, names)
    members, information = total.member_values(joined), total.information(joined)
    return PartPrediction(joined, weight, part.geometry, names, members, information)


def _plane_axis(parts: Sequence[Part]) -> int | None:
    """The axis of the input along which the first part that streams does so; others must wait for it."""
    return next((part.plane_axis for part in parts if part.plane_axis is not None), None)


def _slab_axes(native: Geometry, output: Geometry) -> tuple[int, int, int]:
    """The order of the output's axes in which slabs lie along native planes, so that each needs few of them."""
    steps = np.abs((native.ras_to_ijk @ output.ijk_to_ras)[2, :3]) * output.shape[::-1]
    return _beginning_with(2 - int(np.argmax(steps)))


def _beginning_with(axis: int) -> tuple[int, int, int]:
    """The axes (k, j, i) with one of them put first."""
    first, second = (other for other in range(3) if other != axis)
    return axis, first, second


def _streamed(
    part: Part, renamed: Mapping[int, int], compute: Compute, work: MemberProgress
) -> StreamedProbabilities:
    (member,) = part.members
    labels = [renamed[targets[0]] if targets else 0 for targets in member.classes]
    slabs = (block.values for block in member.predict(compute, work.next_member()))
    return StreamedProbabilities(
        labels, part.geometry, slabs, part.activation, part.linear, part.reach
    )


def _accumulated(
    job: _SegmentationJob, item: _PartOf, work: MemberProgress, keep_members: bool
) -> Accumulator:
    part, compute, renamed = item.part, job.compute, item.renamed
    total = Accumulator(
        (0, *renamed.values()),
        part.geometry,
        compute.device,
        job.request.fusion == "vote",
        keep_members,
        part.activation,
        part.linear,
        compute.notes,
        part.reach,
    )
    for member in part.members:
        classes = [[renamed[value] for value in targets] for targets in member.classes]
        total.begin_member(classes, member.weight)
        for block in member.predict(compute, work.next_member()):
            total.add(block)
    return total


def _refinements(
    request: SegmentationRequest, cards: Sequence[ModelCard], naming: JointLabels
) -> list[Refinement]:
    """The refinements that the cards suggest, with the label values of the result, then those of the request.

    A card that does not name labels means all labels of its own model, and none of another one.

    Raises:
        ModelError: a card suggests a refinement that does not exist or cannot be applied.
        RequestError: the request names such a refinement.
    """
    suggested = [
        item.with_options(
            labels=_renamed(card, item.options.get("labels", tuple(renamed)), renamed)
        )
        for card, renamed in zip(cards, naming.renamed, strict=True)
        for item in card.suggested_refinements
        if request.refine
    ]
    for item in suggested:
        try:
            options_of(item)
        except RequestError as error:
            raise ModelError(
                f"The model suggests a refinement that cannot be applied: {error}"
            ) from None
    wanted = [parse(text) for text in request.refinements]
    for item in wanted:
        options_of(item, naming.labels)
    return suggested + wanted


def _renamed(card: ModelCard, labels: Any, renamed: Mapping[int, int]) -> tuple[Any, ...]:
    """Values, or groups of them, as the result has them.

    Raises:
        ModelError: the card suggests something for labels that it does not have.
    """
    try:
        return tuple(
            tuple(renamed[value] for value in item) if isinstance(item, tuple) else renamed[item]
            for item in labels
        )
    except (KeyError, TypeError):
        raise ModelError(
            f"The card of {card.id!r} suggests a refinement of labels that it does not have: {shown(labels)}."
        ) from None


def _judged(
    job: _SegmentationJob,
    builder: ResultBuilder,
    cards: Sequence[ModelCard],
    members: Sequence[str],
) -> tuple[StructureMeasures, ...]:
    """The structures, with the expected Dice of each and the reasons why a person should look at it.

    The cards of several models are not valid for their combination, and in a region a structure need not be whole.
    Where the size of a voxel is not known, volumes are NaN.
    """
    card = cards[0] if len(cards) == 1 else None
    calibration = card.calibration if card is not None else None
    if calibration is not None and not calibration.holds_for(members):
        calibration = None
    structures = builder.structures()
    implausible: Mapping[int, tuple[str, ...]] = {}
    if not job.request.region and min(job.output.shape) > 1:
        labels = [item.label for item in structures]
        reference = None if card is None else card.reference
        implausible = plausibility.remarks(Volume(builder.labelmap, job.output), labels, reference)
    return tuple(
        replace(
            item,
            volume_ml=item.volume_ml if job.inputs[0].size_known else math.nan,
            expected_dice=quality.expected_dice(item, calibration),
            remarks=(
                *quality.remarks(item, calibration),
                *implausible.get(item.label.value, ()),
            ),
        )
        for item in structures
    )


def _skull_labels(request: SegmentationRequest, cards: Sequence[ModelCard]) -> tuple[int, ...]:
    """The labels that fill the skull, by the card; unknown for several models or a region."""
    return () if len(cards) > 1 or request.region else cards[0].intracranial


def _intracranial_ml(
    inside: Sequence[int], structures: Sequence[StructureMeasures]
) -> float | None:
    """The volume of the labels that fill the skull."""
    if not inside:
        return None
    return sum(item.volume_ml for item in structures if item.label.value in inside)


def _cut_skull(inside: Sequence[int], labelmap: Volume) -> list[str]:
    """A warning if what fills the skull may go on beyond the scan."""
    sides = plausibility.cut_sides(labelmap, inside)
    if not sides:
        return []
    return [
        f"The intracranial volume touches the {sides} border of the field of view, so that part of it may be "
        "missing. Do not relate volumes of structures to it."
    ]


def _temperature(request: SegmentationRequest, cards: Sequence[ModelCard]) -> float:
    """The temperature in the card.

    It is 1 for votes, which are not probabilities, and for several models, whose temperature was never measured.
    """
    if not request.calibrated or request.fusion == "vote" or len(cards) > 1:
        return 1.0
    calibration = cards[0].calibration
    return 1.0 if calibration is None else calibration.temperature


def _region_box(request: SegmentationRequest, scan: Volume) -> tuple[slice, slice, slice]:
    """The voxels of the scan that the request asks for."""
    if not request.region:
        return tuple(slice(0, size) for size in scan.geometry.shape)  # type: ignore[return-value]
    box = scan.geometry.box_around(request.region)
    if box is None:
        raise RequestError(
            f"The region lies outside of {scan.source or 'the image'}. Move it onto the image."
        )
    return box


def _cut(scan: Volume, box: tuple[slice, slice, slice], output: Geometry) -> Volume:
    return Volume(scan.voxels[box], output, scan.source)


@dataclass(frozen=True)
class _Placed:
    """Puts voxels of a box of the scan back where they came from; the rest of the grid is zero."""

    scan: Volume
    box: tuple[slice, slice, slice]

    def __call__(self, voxels: NDArray[Scalar]) -> NDArray[Scalar]:
        """(..., k, j, i) of the box to the whole grid."""
        shape = self.scan.geometry.shape
        if voxels.shape[-3:] == shape:
            return voxels
        whole = np.zeros((*voxels.shape[:-3], *shape), voxels.dtype)
        whole[(..., *self.box)] = voxels
        return whole

    def volume(self, voxels: NDArray[np.generic]) -> Volume:
        """(k, j, i) of the box as a volume on the grid of the scan."""
        return self.scan.with_voxels(self(voxels))

    def candidates(self, found: Candidates) -> Candidates:
        return Candidates(*(self(array) for array in vars(found).values()))


def _planes_at_once(grid: Geometry, classes: int) -> int:
    voxels = min(SLAB_VOXELS, SLAB_VALUES // classes)
    return max(1, voxels // (grid.shape[1] * grid.shape[2]))


def _key(card: ModelCard) -> tuple[str, str]:
    """What shows whether a loaded model is still the one in the folder."""
    return str(card.folder), card.fingerprint()


@functools.lru_cache(maxsize=4)
def _model(folder: str, _fingerprint: str) -> Model:
    """Models stay loaded for the next case; a changed card makes a new one."""
    return load_model(find_card(folder))


def forget_models() -> None:
    """Release the models that stayed loaded, and the memory that they hold on a graphics card."""
    _model.cache_clear()


def _networks_of(parts: Sequence[_PartOf], model: int) -> set[str]:
    return {name for item in parts if item.model == model for name in item.part.networks}


def _provenance(
    job: _SegmentationJob, cards: Sequence[ModelCard], parts: Sequence[_PartOf]
) -> dict[str, Any]:
    used = [_networks_of(parts, number) for number in range(len(cards))]
    return {
        **software(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": job.compute.describe(),
        "options": job.request.options(),
        "models": [model_record(card, names) for card, names in zip(cards, used, strict=True)],
        "inputs": [scan_record(volume) for volume in job.inputs],
        "native_grids": [item.part.geometry.describe() for item in parts],
    }
