"""The words that the panel's process and the worker speak: one JSON object a line.

To the worker:
    warm                                        load what jobs need, if there is nothing else to do
    array     job, name, data, done, total      part of an array of a job that is to come
    segment   job, exchange, inputs, options    do this job
    refine    job, exchange, labelmap, labels, settings, fixed, image, candidates   or this one
    measure   job, exchange, parts, image, models, drawn   or this one
    export    job, exchange, labelmap, labels, outputs, image, dicom, series, run, touched, drawn, warnings,
              overwrite                         or this one
    cancel    job                               stop it, whether its arrays arrive, or it waits or runs
    quit                                        stop everything and end
From the worker:
    ready     version, pid, leads_group         once, at the start
    alive                                       every few seconds, whatever happens
    progress  job, stage, fraction, seconds_left
    array     job, name, data, done, total      part of an array of a `result` that is to come
    result    job, and of `segment`: labelmap, entropy, mutual_information, probabilities, regions, candidates,
                   labels, report
                   of `refine`: labelmap, words, report, seconds
                   of `measure`: rows; of `export`: files, warnings
    error     job, kind, message                `job` is null where the line could not be read

There are several kinds of jobs; `KINDS` says how each is asked for and answered, and all else is the same for
all of them. `job` is a string that the client chooses; each job is answered by exactly one `result` or
`error`, and so is a `cancel` that comes before it. An array is named by a .npy file in a folder, and mapped
into memory from there. `exchange` of a job is that folder, where both sides see it; it belongs to the
client and vanishes with the job. Where it is null, as between two computers, each side has a folder of its
own, and the files come in `array` messages before the message that names them (`medsegai.worker.array_transfer`).
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError, MedSegAIError, OutputError, WorkerError
from medsegai.labels import Label
from medsegai.progress import ProgressEvent
from medsegai.request import (
    Candidates,
    SegmentationRequest,
    SegmentationResult,
    StructureMeasures,
    request_from_options,
)
from medsegai.volume import Geometry, Volume
from medsegai.worker.array_transfer import file_in
from medsegai.worker.requests import (
    ExportRequest,
    ExportResult,
    MeasurementRequest,
    MeasurementResult,
    Part,
    RefinementRequest,
    RefinementResult,
)

PROTOCOL_VERSION = 4

WARM, CANCEL, QUIT = "warm", "cancel", "quit"
SEGMENT, REFINE, MEASURE, EXPORT = "segment", "refine", "measure", "export"
READY, ALIVE, PROGRESS, RESULT, ERROR = "ready", "alive", "progress", "result", "error"
ARRAY = "array"

Message = dict[str, Any]


def encode(message: Mapping[str, Any]) -> bytes:
    """One line, ready for the pipe."""
    return json.dumps(message, allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message in one line.

    Raises:
        WorkerError: the line is not a JSON object with a `type`, or holds numbers that are not finite.
    """
    try:
        message = json.loads(line, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise WorkerError(
            f"The worker pipe carried something that is not JSON: {line[:80]!r}."
        ) from error
    if not isinstance(message, dict) or "type" not in message:
        raise WorkerError(f"The worker pipe carried a message without a type: {line[:80]!r}.")
    return message


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def pack_array(array: NDArray[Any], exchange: Path) -> str:
    """Write `array` into the exchange folder and return its name there.

    Raises:
        OutputError: the folder is gone or not writable, or the disk is full.
    """
    path = exchange / f"{uuid.uuid4().hex}.npy"
    try:
        np.save(path, array, allow_pickle=False)
    except OSError as error:
        raise OutputError(
            f"The temporary file {path} cannot be written: {error.strerror or error}. "
            "Free space on that disk, or choose another temporary folder."
        ) from error
    return path.name


def unpack_array(name: str, exchange: Path) -> NDArray[Any]:
    """Map an array of the exchange folder into memory, copy on write.

    Raises:
        WorkerError: the file is missing, damaged, or would need code to be run.
    """
    path = file_in(exchange, name)
    try:
        return np.lib.format.open_memmap(path, mode="c")
    except (OSError, ValueError) as error:
        raise WorkerError(f"The array file {path} cannot be read: {error}.") from error


def pack_volume(volume: Volume, exchange: Path) -> Message:
    return {
        "array": pack_array(volume.voxels, exchange),
        "ijk_to_ras": volume.geometry.ijk_to_ras.tolist(),
        "source": volume.source,
        "modality": volume.modality,
    }


def unpack_volume(data: Mapping[str, Any], exchange: Path) -> Volume:
    voxels = unpack_array(data["array"], exchange)
    if voxels.ndim != 3:
        raise InputError(
            f"{data['source'] or 'The input'} has {voxels.ndim} dimensions; a 3D volume is needed."
        )
    k, j, i = voxels.shape
    grid = Geometry((k, j, i), np.array(data["ijk_to_ras"]))
    return Volume(voxels, grid, data["source"], modality=str(data.get("modality", "")))


def pack_request(request: SegmentationRequest, exchange: Path) -> Message:
    """The inputs and options; paths become absolute, for the worker has a folder of its own."""
    inputs = [
        pack_volume(item, exchange)
        if isinstance(item, Volume)
        else {"path": str(Path(item).absolute())}
        for item in request.inputs
    ]
    return {"inputs": inputs, "options": request.options()}


def unpack_request(data: Mapping[str, Any], exchange: Path) -> SegmentationRequest:
    inputs = tuple(
        Path(item["path"]) if "path" in item else unpack_volume(item, exchange)
        for item in data["inputs"]
    )
    return request_from_options(inputs, data["options"])


def pack_result(result: SegmentationResult, exchange: Path) -> Message:
    return {
        "labelmap": pack_volume(result.labelmap, exchange),
        "entropy": _pack_volume_if_there(result.entropy, exchange),
        "mutual_information": _pack_volume_if_there(result.mutual_information, exchange),
        "probabilities": _pack_if_there(result.probabilities, exchange),
        "regions": _pack_if_there(result.regions, exchange),
        "candidates": _pack_candidates(result.candidates, exchange),
        "labels": [label.to_dict() for label in result.labels],
        "report": result.report(),
    }


def _pack_if_there(array: NDArray[Any] | None, exchange: Path) -> str | None:
    return None if array is None else pack_array(array, exchange)


def _pack_volume_if_there(volume: Volume | None, exchange: Path) -> Message | None:
    return None if volume is None else pack_volume(volume, exchange)


def _pack_candidates(candidates: Candidates | None, exchange: Path) -> dict[str, str] | None:
    if candidates is None:
        return None
    return {name: pack_array(array, exchange) for name, array in vars(candidates).items()}


def _unpack_if_there(name: str | None, exchange: Path) -> NDArray[Any] | None:
    return None if name is None else unpack_array(name, exchange)


def _unpack_volume_if_there(data: Mapping[str, Any] | None, exchange: Path) -> Volume | None:
    return None if data is None else unpack_volume(data, exchange)


def _unpack_candidates(data: Mapping[str, str] | None, exchange: Path) -> Candidates | None:
    if data is None:
        return None
    return Candidates(**{name: unpack_array(array, exchange) for name, array in data.items()})


def unpack_result(data: Mapping[str, Any], exchange: Path) -> SegmentationResult:
    labels = tuple(Label.from_dict(item) for item in data["labels"])
    report = data["report"]
    structures = tuple(
        StructureMeasures.from_dict(label, item)
        for label, item in zip(labels, report["structures"], strict=True)
    )
    return SegmentationResult(
        labelmap=unpack_volume(data["labelmap"], exchange),
        labels=labels,
        structures=structures,
        entropy=_unpack_volume_if_there(data["entropy"], exchange),
        mutual_information=_unpack_volume_if_there(data["mutual_information"], exchange),
        probabilities=_unpack_if_there(data["probabilities"], exchange),
        regions=_unpack_if_there(data["regions"], exchange),
        candidates=_unpack_candidates(data["candidates"], exchange),
        seconds=report["seconds"],
        peak_memory_mb=report["peak_memory_mb"],
        provenance=report["provenance"],
        warnings=tuple(report["warnings"]),
    )


def pack_refinement(request: RefinementRequest, exchange: Path) -> Message:
    return {
        "labelmap": pack_volume(request.labelmap, exchange),
        "labels": [label.to_dict() for label in request.labels],
        "settings": [dict(item) for item in request.settings],
        "fixed": list(request.fixed),
        "image": _pack_volume_if_there(request.image, exchange),
        "candidates": _pack_candidates(request.candidates, exchange),
    }


def unpack_refinement(data: Mapping[str, Any], exchange: Path) -> RefinementRequest:
    return RefinementRequest(
        unpack_volume(data["labelmap"], exchange),
        tuple(Label.from_dict(item) for item in data["labels"]),
        tuple(data["settings"]),
        tuple(data["fixed"]),
        _unpack_volume_if_there(data["image"], exchange),
        _unpack_candidates(data["candidates"], exchange),
    )


def pack_refined(result: RefinementResult, exchange: Path) -> Message:
    return {
        "labelmap": pack_volume(result.labelmap, exchange),
        "words": list(result.words),
        "report": [dict(item) for item in result.report],
        "seconds": dict(result.seconds),
    }


def unpack_refined(data: Mapping[str, Any], exchange: Path) -> RefinementResult:
    labelmap = unpack_volume(data["labelmap"], exchange)
    return RefinementResult(labelmap, tuple(data["words"]), tuple(data["report"]), data["seconds"])


def pack_measurement(request: MeasurementRequest, exchange: Path) -> Message:
    parts = [
        {
            "labelmap": pack_volume(part.labelmap, exchange),
            "labels": [label.to_dict() for label in part.labels],
            "seen": _pack_volume_if_there(part.seen, exchange),
        }
        for part in request.parts
    ]
    return {
        "parts": parts,
        "image": _pack_volume_if_there(request.image, exchange),
        "models": list(request.models),
        "drawn": list(request.drawn),
    }


def unpack_measurement(data: Mapping[str, Any], exchange: Path) -> MeasurementRequest:
    parts = tuple(
        Part(
            unpack_volume(item["labelmap"], exchange),
            tuple(Label.from_dict(label) for label in item["labels"]),
            _unpack_volume_if_there(item["seen"], exchange),
        )
        for item in data["parts"]
    )
    image = _unpack_volume_if_there(data["image"], exchange)
    return MeasurementRequest(parts, image, tuple(data["models"]), tuple(data["drawn"]))


def pack_measured(result: MeasurementResult, exchange: Path) -> Message:
    return {"rows": [dict(row) for row in result.rows]}


def unpack_measured(data: Mapping[str, Any], exchange: Path) -> MeasurementResult:
    return MeasurementResult(tuple(data["rows"]))


def pack_export(request: ExportRequest, exchange: Path) -> Message:
    plain = {name: getattr(request, name) for name in _PLAIN_OF_EXPORT}
    return plain | {
        "labelmap": pack_volume(request.labelmap, exchange),
        "labels": [label.to_dict() for label in request.labels],
        "image": _pack_volume_if_there(request.image, exchange),
    }


def unpack_export(data: Mapping[str, Any], exchange: Path) -> ExportRequest:
    plain = {name: data[name] for name in _PLAIN_OF_EXPORT}
    lists = {name: tuple(value) for name, value in plain.items() if isinstance(value, list)}
    return ExportRequest(
        unpack_volume(data["labelmap"], exchange),
        tuple(Label.from_dict(item) for item in data["labels"]),
        image=_unpack_volume_if_there(data["image"], exchange),
        **plain | lists,
    )


_PLAIN_OF_EXPORT = (
    "outputs", "dicom", "series", "run", "touched", "drawn", "warnings", "overwrite",
)  # fmt: skip
"""Fields of an ExportRequest that are JSON values as they are."""


def pack_exported(result: ExportResult, exchange: Path) -> Message:
    return {"files": list(result.files), "warnings": list(result.warnings)}


def unpack_exported(data: Mapping[str, Any], exchange: Path) -> ExportResult:
    return ExportResult(tuple(data["files"]), tuple(data["warnings"]))


@dataclass(frozen=True)
class Kind:
    """A kind of job.

    Attributes:
        name: the `type` of the message that asks for it.
        asked: the class of what is asked.
        pack_request, pack_result: make what a message holds besides `type`, `job` and `exchange` from what is
            asked or answered; arrays go into the folder that is given.
        unpack_request, unpack_result: the way back.
    """

    name: str
    asked: type
    pack_request: Callable[[Any, Path], Message]
    unpack_request: Callable[[Mapping[str, Any], Path], Any]
    pack_result: Callable[[Any, Path], Message]
    unpack_result: Callable[[Mapping[str, Any], Path], Any]


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            SEGMENT, SegmentationRequest, pack_request, unpack_request, pack_result, unpack_result
        ),
        Kind(
            REFINE,
            RefinementRequest,
            pack_refinement,
            unpack_refinement,
            pack_refined,
            unpack_refined,
        ),
        Kind(
            MEASURE,
            MeasurementRequest,
            pack_measurement,
            unpack_measurement,
            pack_measured,
            unpack_measured,
        ),
        Kind(EXPORT, ExportRequest, pack_export, unpack_export, pack_exported, unpack_exported),
    )
}
"""What jobs there are, by the name of their message."""


def kind_of(request: object) -> Kind:
    """The kind of job that a request asks for.

    Raises:
        WorkerError: there is none.
    """
    for kind in KINDS.values():
        if isinstance(request, kind.asked):
            return kind
    raise WorkerError(f"The worker has no job for a {type(request).__name__}.")


def pack_progress(event: ProgressEvent) -> Message:
    return {"stage": event.stage, "fraction": event.fraction, "seconds_left": event.seconds_left}


def unpack_progress(data: Mapping[str, Any]) -> ProgressEvent:
    return ProgressEvent(data["stage"], data["fraction"], data["seconds_left"])


def pack_error(error: MedSegAIError) -> Message:
    return {"kind": type(error).__name__, "message": str(error)}


def unpack_error(data: Mapping[str, Any]) -> MedSegAIError:
    """The error as raised in the worker; unknown kinds become a `WorkerError`."""
    kinds = {kind.__name__: kind for kind in _subclasses(MedSegAIError)}
    return kinds.get(data["kind"], WorkerError)(data["message"])


def _subclasses(kind: type[MedSegAIError]) -> list[type[MedSegAIError]]:
    return [kind] + [deeper for direct in kind.__subclasses__() for deeper in _subclasses(direct)]
