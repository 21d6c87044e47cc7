"""The words that the panel's process and the worker speak: one JSON object a line.

To the worker:
    segment   job, exchange, inputs, options    do this job; its arrays go through folder `exchange`
    cancel    job                               stop it, whether it waits or runs
    quit                                        stop everything and end
From the worker:
    ready     version, pid, leads_group         once, at the start
    progress  job, stage, fraction, seconds_left
    result    job, labelmap, entropy, probabilities, candidates, labels, report
    error     job, kind, message                `job` is null where the line could not be read

`job` is a string that the client chooses; each `segment` is answered by exactly one `result` or
`error`. Arrays never pass through JSON: the sender writes a .npy file into the exchange folder,
which belongs to the client and vanishes with the job, and the other side maps it into memory.
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

PROTOCOL_VERSION = 1

SEGMENT, CANCEL, QUIT = "segment", "cancel", "quit"
READY, PROGRESS, RESULT, ERROR = "ready", "progress", "result", "error"

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
    """Write `array` into the exchange folder and return its path.

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
    return str(path)


def unpack_array(path: str) -> NDArray[Any]:
    """Map the array into memory, copy on write.

    Raises:
        WorkerError: the file is missing, damaged, or would need code to be run.
    """
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


def unpack_volume(data: Mapping[str, Any]) -> Volume:
    voxels = unpack_array(data["array"])
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


def unpack_request(data: Mapping[str, Any]) -> SegmentationRequest:
    inputs = tuple(
        Path(item["path"]) if "path" in item else unpack_volume(item) for item in data["inputs"]
    )
    return request_from_options(inputs, data["options"])


def pack_result(result: SegmentationResult, exchange: Path) -> Message:
    entropy = None if result.entropy is None else pack_volume(result.entropy, exchange)
    probabilities = result.probabilities
    return {
        "labelmap": pack_volume(result.labelmap, exchange),
        "entropy": entropy,
        "probabilities": None if probabilities is None else pack_array(probabilities, exchange),
        "candidates": _pack_candidates(result.candidates, exchange),
        "labels": [label.to_dict() for label in result.labels],
        "report": result.report(),
    }


def _pack_candidates(candidates: Candidates | None, exchange: Path) -> Message | None:
    if candidates is None:
        return None
    return {name: pack_array(array, exchange) for name, array in vars(candidates).items()}


def unpack_result(data: Mapping[str, Any]) -> SegmentationResult:
    labels = tuple(Label.from_dict(item) for item in data["labels"])
    report = data["report"]
    entropy, probabilities = data["entropy"], data["probabilities"]
    candidates = data["candidates"]
    structures = tuple(
        StructureMeasures(label, **{name: item[name] for name in item.keys() - {"value", "name"}})
        for label, item in zip(labels, report["structures"], strict=True)
    )
    return SegmentationResult(
        labelmap=unpack_volume(data["labelmap"]),
        labels=labels,
        structures=structures,
        entropy=None if entropy is None else unpack_volume(entropy),
        probabilities=None if probabilities is None else unpack_array(probabilities),
        candidates=None if candidates is None else _unpack_candidates(candidates),
        seconds=report["seconds"],
        peak_memory_mb=report["peak_memory_mb"],
        provenance=report["provenance"],
        warnings=tuple(report["warnings"]),
    )


def _unpack_candidates(data: Mapping[str, str]) -> Candidates:
    return Candidates(**{name: unpack_array(path) for name, path in data.items()})


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
