"""The words that the panel's process and the worker speak: one JSON object a line.

To the worker:
    warm                                        load what jobs need, if there is nothing else to do
    array     job, name, data, done, total      part of an array of a `segment` that is to come
    segment   job, exchange, inputs, options    do this job
    cancel    job                               stop it, whether its arrays arrive, or it waits or runs
    quit                                        stop everything and end
From the worker:
    ready     version, pid, leads_group         once, at the start
    alive                                       every few seconds, whatever happens
    progress  job, stage, fraction, seconds_left
    array     job, name, data, done, total      part of an array of a `result` that is to come
    result    job, labelmap, entropy, probabilities, regions, candidates, labels, report
    error     job, kind, message                `job` is null where the line could not be read

`job` is a string that the client chooses; each `segment` is answered by exactly one `result` or
`error`, and so is a `cancel` that comes before it. An array is named by a .npy file in a folder, and mapped
into memory from there. `exchange` of `segment` is that folder, where both sides see it; it belongs to the
client and vanishes with the job. Where it is null, as between two computers, each side has a folder of its
own, and the files come in `array` messages before the message that names them (`medsegai.exchange`).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError, MedSegAIError, OutputError, WorkerError
from medsegai.exchange import file_in
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

PROTOCOL_VERSION = 2

WARM, SEGMENT, CANCEL, QUIT = "warm", "segment", "cancel", "quit"
READY, ALIVE, PROGRESS, RESULT, ERROR = "ready", "alive", "progress", "result", "error"
ARRAY = "array"

Message = dict[str, Any]


def encode(message: Mapping[str, Any]) -> bytes:
    """One line, ready for the pipe."""
    return json.dumps(message, allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message in one line.

    Raises:
        WorkerError: the line is not a JSON object with a `type`.
    """
    try:
        message = json.loads(line)
    except ValueError as error:
        raise WorkerError(
            f"The worker pipe carried something that is not JSON: {line[:80]!r}."
        ) from error
    if not isinstance(message, dict) or "type" not in message:
        raise WorkerError(f"The worker pipe carried a message without a type: {line[:80]!r}.")
    return message


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
    }


def unpack_volume(data: Mapping[str, Any], exchange: Path) -> Volume:
    voxels = unpack_array(data["array"], exchange)
    if voxels.ndim != 3:
        raise InputError(
            f"{data['source'] or 'The input'} has {voxels.ndim} dimensions; a 3D volume is needed."
        )
    k, j, i = voxels.shape
    return Volume(voxels, Geometry((k, j, i), np.array(data["ijk_to_ras"])), data["source"])


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
    entropy = None if result.entropy is None else pack_volume(result.entropy, exchange)
    candidates = None if result.candidates is None else vars(result.candidates)
    return {
        "labelmap": pack_volume(result.labelmap, exchange),
        "entropy": entropy,
        "probabilities": _pack_if_there(result.probabilities, exchange),
        "regions": _pack_if_there(result.regions, exchange),
        "candidates": candidates
        and {name: pack_array(array, exchange) for name, array in candidates.items()},
        "labels": [label.to_dict() for label in result.labels],
        "report": result.report(),
    }


def _pack_if_there(array: NDArray[Any] | None, exchange: Path) -> str | None:
    return None if array is None else pack_array(array, exchange)


def _unpack_if_there(name: str | None, exchange: Path) -> NDArray[Any] | None:
    return None if name is None else unpack_array(name, exchange)


def unpack_result(data: Mapping[str, Any], exchange: Path) -> SegmentationResult:
    labels = tuple(Label.from_dict(item) for item in data["labels"])
    report, entropy, candidates = data["report"], data["entropy"], data["candidates"]
    structures = tuple(
        StructureMeasures(label, **{name: item[name] for name in item.keys() - {"value", "name"}})
        for label, item in zip(labels, report["structures"], strict=True)
    )
    return SegmentationResult(
        labelmap=unpack_volume(data["labelmap"], exchange),
        labels=labels,
        structures=structures,
        entropy=None if entropy is None else unpack_volume(entropy, exchange),
        probabilities=_unpack_if_there(data["probabilities"], exchange),
        regions=_unpack_if_there(data["regions"], exchange),
        candidates=None
        if candidates is None
        else Candidates(
            **{name: unpack_array(array, exchange) for name, array in candidates.items()}
        ),
        seconds=report["seconds"],
        peak_memory_mb=report["peak_memory_mb"],
        provenance=report["provenance"],
        warnings=tuple(report["warnings"]),
    )


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
