"""Measurement and export as jobs of the worker, for the panel and scripts in Slicer.

The segmentation comes from the scene instead of a file; otherwise they are the same as `medsegai measure` and
`medsegai export`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from medsegai.errors import ModelError, RequestError
from medsegai.export import dicom_seg
from medsegai.export.case import Case
from medsegai.export.files import STAGES, Exports, Work, write
from medsegai.export.provenance import Provenance, closed, of_report
from medsegai.io import on_grid, read_volume
from medsegai.measurements.structures import Measurement, measure, with_asymmetry
from medsegai.models.catalogue import find_card
from medsegai.models.quality import Reference
from medsegai.progress import Check, Progress
from medsegai.volume import Volume
from medsegai.worker.requests import (
    EXPORT_PATHS,
    ExportRequest,
    ExportResult,
    MeasurementRequest,
    MeasurementResult,
    Part,
)

T = TypeVar("T")

UNKNOWN = "{name}: the record of its origin cannot be understood, so model and options are unknown."


def measure_segments(request: MeasurementRequest, progress: Progress) -> MeasurementResult:
    """Measure segments with `measurements.measure`; left and right are compared across all parts.

    Raises:
        GeometryError: a part and the scan have different voxels, and `seen` is missing.
        Cancelled: the user stopped the job.
    """
    progress.plan({"measure": 1.0})
    reference = reference_of(request.models, request.drawn)
    rows: list[Measurement] = []
    for done, part in enumerate(request.parts):
        progress.step("measure", done, len(request.parts))
        rows += _measured(part, request.image, reference, progress.check)
    progress.step("measure", 1, 1)
    return MeasurementResult(tuple(row.to_dict() for row in with_asymmetry(rows)))


def _measured(
    part: Part, image: Volume | None, reference: Reference | None, check: Check
) -> tuple[Measurement, ...]:
    """Measure shapes on the segments' own voxels, and grey values on those of the scan."""
    if part.seen is None or image is None:
        return measure(part.labelmap, part.labels, image, reference, check)
    shapes = measure(part.labelmap, part.labels, None, reference, check)
    greys = measure(part.seen, part.labels, image, check=check)
    return tuple(
        replace(shape, mean=grey.mean, sd=grey.sd)
        for shape, grey in zip(shapes, greys, strict=True)
    )


def export_segments(request: ExportRequest, progress: Progress) -> ExportResult:
    """Export a segmentation, all outputs or none.

    Raises:
        OutputExistsError: a file exists already, and the request does not say that it may be replaced.
        MedSegAIError: see `export.export`; nothing was written.
        Cancelled: the user stopped the job; nothing was written.
    """
    exports = exports_of(request.outputs)
    dicom = Path(request.dicom) if request.dicom else None
    exports.check(dicom, (), request.overwrite)
    progress.plan(STAGES)
    progress.step("read", 0, 1)
    source, labelmap, image = None, request.labelmap, request.image
    if dicom is not None and exports.seg is not None:
        source = dicom_seg.read_source(dicom, request.series or None)
        image = read_volume(dicom, request.series or None)
    if image is not None:
        labelmap = on_grid(labelmap, image.geometry, image.source)
    made = _made(request)
    reference = reference_of(made.maker.name.split("+"), request.drawn)
    case = Case(labelmap, request.labels, image, request.warnings, reference)
    work = Work.of(case, made, source, progress.check)
    files = write(work, exports, progress, request.overwrite)
    return ExportResult(tuple(str(path) for path in files), work.warnings)


def exports_of(outputs: Mapping[str, Any]) -> Exports:
    """Return the outputs of a request.

    Raises:
        RequestError: an output or option is unknown.
    """
    unknown = set(outputs) - {item.name for item in fields(Exports)}
    if unknown:
        raise RequestError(
            f"The outputs {', '.join(sorted(unknown))} are unknown. Use the names of `medsegai export`."
        )
    values = dict(outputs)
    for name in EXPORT_PATHS:
        if values.get(name) is not None:
            values[name] = Path(values[name])
    if "formats" in values:
        values["formats"] = tuple(values["formats"])
    return Exports(**values)


def reference_of(models: Iterable[str], drawn: Collection[int] = ()) -> Reference | None:
    """Return the plausible ranges of a model; None if several models made the segments, or it is not installed.

    Args:
        models: the ids of the models.
        drawn: the values of structures that are not from the model.
    """
    names = tuple(models)
    try:
        found = find_card(names[0]).reference if len(names) == 1 else None
    except ModelError:
        return None
    if found is None:
        return None
    return Reference(
        found.source,
        _without(found.volumes_ml, drawn),
        _without(found.asymmetry_percent, drawn),
        _without(found.largest_part, drawn),
    )


def _without(items: Mapping[int, T], values: Collection[int]) -> dict[int, T]:
    return {value: item for value, item in items.items() if value not in values}


def _made(request: ExportRequest) -> Provenance:
    """Return who made the segments, and how people changed them."""
    found = Provenance(dicom_seg.Maker())
    if request.run:
        try:
            found = of_report(request.run)
        except ValueError:
            found = replace(found, warnings=(UNKNOWN.format(name=request.labelmap.source),))
    touched, drawn = frozenset(request.touched), frozenset(request.drawn)
    names = {label.value: label.name for label in request.labels}
    lines = {
        "Changed or reviewed by a person": [names[value] for value in sorted(touched & set(names))],
        "Drawn by a person or imported": [names[value] for value in sorted(drawn & set(names))],
    }
    maker = replace(found.maker, touched=touched - drawn, drawn=drawn)
    return closed(
        replace(found, maker=maker), {name: value for name, value in lines.items() if value}
    )
