"""The messages between the panel's process and the worker: one JSON object per line.

To the worker:
    warm                                        load what jobs need, if there is nothing else to do
    array     job, name, data, done, total      part of an array of a job that is to come
    segment   job, exchange, request            do this job: the fields of a SegmentationRequest
    refine    job, exchange, request            likewise, of a RefinementRequest
    measure   job, exchange, request            of a MeasurementRequest
    export    job, exchange, request            of an ExportRequest
    cancel    job                               stop it, whether its arrays arrive, or it waits or runs
    quit                                        stop everything and end
From the worker:
    ready     version, pid, leads_group         once, at the start
    alive                                       every few seconds, whatever happens
    progress  job, event                        the fields of a ProgressEvent
    array     job, name, data, done, total      part of an array of a `result` that is to come
    result    job, result                       the fields of the result of its kind
    error     job, kind, message                `job` is null where the line could not be read

There are several kinds of jobs; `KINDS` has the request and the result of each kind, and everything else is the
same for all. `medsegai.models.json_fields` converts dataclasses to JSON. `job` is a string that the client
chooses; each job is answered by exactly one `result` or `error`, and so is a `cancel` that arrives before its job.
An array is named by a .npy file in a folder, and mapped into memory from there. `exchange` of a job is that
folder, if both sides see it; it belongs to the client and is removed with the job. If it is null, as between two
computers, each side has its own folder, and the files arrive in `array` messages before the message that names
them (`medsegai.worker.array_transfer`).
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError, MedSegAIError, OutputError, WorkerError
from medsegai.models.json_fields import from_json, to_json
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Geometry, Volume
from medsegai.worker.array_transfer import file_in
from medsegai.worker.requests import (
    ExportRequest,
    ExportResult,
    MeasurementRequest,
    MeasurementResult,
    RefinementRequest,
    RefinementResult,
)

PROTOCOL_VERSION = 5

WARM, CANCEL, QUIT = "warm", "cancel", "quit"
SEGMENT, REFINE, MEASURE, EXPORT = "segment", "refine", "measure", "export"
READY, ALIVE, PROGRESS, RESULT, ERROR = "ready", "alive", "progress", "result", "error"
ARRAY = "array"

Message = dict[str, Any]

Kinds = TypeVar("Kinds")


def encode(message: Mapping[str, Any]) -> bytes:
    """Return a message as one line for the pipe."""
    return json.dumps(message, allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Return the message in one line.

    Raises:
        WorkerError: the line is not a JSON object with a `type`, or has numbers that are not finite.
    """
    try:
        message = json.loads(line, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise WorkerError(
            f"The worker pipe carried a line that is not JSON: {line[:80]!r}."
        ) from error
    if not isinstance(message, dict) or "type" not in message:
        raise WorkerError(f"The worker pipe carried a message without a type: {line[:80]!r}.")
    return message


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def pack_array(array: NDArray[np.generic], exchange: Path) -> str:
    """Write `array` into the exchange folder and return its name there.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full.
    """
    path = exchange / f"{uuid.uuid4().hex}.npy"
    try:
        np.save(path, array, allow_pickle=False)
    except OSError as error:  # without a number, NumPy wrote less than it wanted to
        raise OutputError(
            f"The temporary file {path} cannot be written: {error.strerror or 'no space is left'}. "
            "Free space on that disk, or choose another temporary folder."
        ) from error
    return path.name


def unpack_array(name: str, exchange: Path) -> NDArray[np.generic]:
    """Map an array of the exchange folder into memory, copy on write.

    Raises:
        WorkerError: the file is missing, damaged, or would run code.
    """
    path = file_in(exchange, name)
    try:
        return np.lib.format.open_memmap(path, mode="c")
    except (OSError, ValueError) as error:
        raise WorkerError(f"The array file {path} cannot be read: {error}.") from error


def pack_volume(volume: Volume, exchange: Path) -> Message:
    """Return a volume as JSON values; its voxels go into the exchange folder."""
    return {
        "array": pack_array(volume.voxels, exchange),
        "ijk_to_ras": volume.geometry.ijk_to_ras.tolist(),
        "source": volume.source,
        "modality": volume.modality,
    }


def unpack_volume(data: Mapping[str, Any], exchange: Path) -> Volume:
    """Return the volume from the JSON values of `pack_volume`.

    Raises:
        InputError: the volume does not have three dimensions.
        WorkerError: see `unpack_array`.
    """
    voxels = unpack_array(data["array"], exchange)
    if voxels.ndim != 3:
        raise InputError(
            f"{data['source'] or 'The input'} has {voxels.ndim} dimensions, but a 3D volume is needed."
        )
    k, j, i = voxels.shape
    grid = Geometry((k, j, i), np.array(data["ijk_to_ras"]))
    return Volume(voxels, grid, data["source"], modality=str(data.get("modality", "")))


def packed(value: object, exchange: Path) -> Message:
    """Return a request or result as JSON values; its arrays go into the exchange folder.

    Paths become absolute, because the worker has another working folder.
    """
    message: Message = to_json(
        value,
        {
            Volume: lambda volume: pack_volume(volume, exchange),
            np.ndarray: lambda array: pack_array(array, exchange),
            Path: lambda path: str(path.absolute()),
        },
    )
    return message


def unpacked(kind: type[Kinds], data: object, exchange: Path) -> Kinds:
    """Return the request or result from the JSON values of `packed`.

    Raises:
        WorkerError: a field is unknown or missing, or a value has another type; see also `unpack_array`.
        InputError: see `unpack_volume`.
    """
    hooks = {
        Volume: lambda volume: unpack_volume(volume, exchange),
        np.ndarray: lambda name: unpack_array(name, exchange),
    }
    return from_json(kind, data, error=WorkerError, hooks=hooks)


@dataclass(frozen=True)
class Kind:
    """A kind of job: the `type` of its message, the class of its request, and the class of its result."""

    name: str
    asked: type
    answered: type


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(SEGMENT, SegmentationRequest, SegmentationResult),
        Kind(REFINE, RefinementRequest, RefinementResult),
        Kind(MEASURE, MeasurementRequest, MeasurementResult),
        Kind(EXPORT, ExportRequest, ExportResult),
    )
}
"""The kinds of jobs, by the type of their message."""


def kind_of(request: object) -> Kind:
    """Return the kind of job of a request.

    Raises:
        WorkerError: there is no such kind of job.
    """
    for kind in KINDS.values():
        if isinstance(request, kind.asked):
            return kind
    raise WorkerError(f"The worker does not have a job for a {type(request).__name__}.")


def pack_error(error: MedSegAIError) -> Message:
    """Return an error as JSON values."""
    return {"kind": type(error).__name__, "message": str(error)}


def unpack_error(data: Mapping[str, Any]) -> MedSegAIError:
    """Return the error as raised in the worker; unknown kinds become a `WorkerError`."""
    kinds = {kind.__name__: kind for kind in _subclasses(MedSegAIError)}
    return kinds.get(data["kind"], WorkerError)(data["message"])


def _subclasses(kind: type[MedSegAIError]) -> list[type[MedSegAIError]]:
    return [kind] + [deeper for direct in kind.__subclasses__() for deeper in _subclasses(direct)]
