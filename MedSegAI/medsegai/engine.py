"""The pipeline, from scans to labels: read, prepare, predict, fuse, hand back on the input grid.

Everything here is the same for all model families. Command line, batch, worker and scripts all call `segment`.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medsegai import __version__
from medsegai.card import ModelCard
from medsegai.catalogue import find_card
from medsegai.errors import GeometryError, RequestError
from medsegai.families import Member, Model, Prepared, load_model
from medsegai.fusion import Accumulator, fuse, read_member_labels
from medsegai.io import check_scan, read_volume
from medsegai.labels import Label
from medsegai.networks.backends import Compute, choose_compute
from medsegai.probabilities import Readable
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult, StructureMeasures
from medsegai.uncertainty import Agreement
from medsegai.volume import Geometry, Volume

STAGES = {"read": 2.0, "prepare": 4.0, "predict": 85.0, "labels": 9.0}
"""What a job consists of, and how the stages weigh in its progress."""

SLAB_VOXELS = 1 << 20
"""Voxels of the output grid that are worked on together."""


@dataclass
class Fused:
    """All members in one: probabilities, and the labels of each member where they are wanted."""

    probabilities: Readable
    members: list[tuple[Tensor, Geometry]]
    geometries: list[Geometry]
    warnings: list[str]


def segment(request: SegmentationRequest, progress: Progress | None = None) -> SegmentationResult:
    """Segment one case.

    Args:
        request: what to do.
        progress: hears of each step, and can stop the job.

    Raises:
        InputError, GeometryError: an input cannot be read, or the inputs lie on different grids.
        ModelError, RequestError, DeviceError: what was asked for cannot be had.
        Cancelled: the user stopped the job.
    """
    progress = progress or Progress()
    progress.plan(STAGES)
    cards = [find_card(name) for name in request.models]
    labels = _joined_labels(cards)
    compute = choose_compute(request.device, request.backend, request.precision)
    inputs, warnings = _read(request, progress)
    models = [_model(*_key(card)) for card in cards]
    fused = _predict(request, models, labels, inputs, compute, progress)
    grid = inputs[0].geometry
    answer = _Answer(request, labels, grid, fused)
    for k0, k1 in _slabs(grid):
        progress.step("labels", k0, grid.shape[0])
        answer.add(k0, k1)
    progress.step("labels", 1, 1)
    return SegmentationResult(
        labelmap=inputs[0].with_voxels(answer.labelmap),
        labels=labels,
        structures=answer.structures(),
        entropy=None if answer.entropy is None else inputs[0].with_voxels(answer.entropy),
        probabilities=answer.probabilities,
        seconds=dict(progress.seconds),
        peak_memory_mb=peak_memory_mb(),
        provenance=_provenance(request, cards, inputs, compute, fused),
        warnings=(*warnings, *fused.warnings, *answer.warnings()),
    )


def peak_memory_mb() -> float:
    """Largest resident memory of this process until now; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def _read(request: SegmentationRequest, progress: Progress) -> tuple[list[Volume], list[str]]:
    inputs: list[Volume] = []
    warnings: list[str] = []
    for number, item in enumerate(request.inputs):
        progress.step("read", number, len(request.inputs))
        volume = item if isinstance(item, Volume) else read_volume(Path(item))
        warnings += check_scan(volume)
        if inputs and not inputs[0].geometry.matches(volume.geometry):
            raise GeometryError(
                f"{volume.source} ({volume.geometry.describe()}) does not lie on the grid of "
                f"{inputs[0].source} ({inputs[0].geometry.describe()}). Resample one onto the other first."
            )
        inputs.append(volume)
    return inputs, warnings


def _predict(
    request: SegmentationRequest,
    models: Sequence[Model],
    labels: Sequence[Label],
    inputs: Sequence[Volume],
    compute: Compute,
    progress: Progress,
) -> Fused:
    values = (0, *(label.value for label in labels))
    prepared = []
    for number, model in enumerate(models):
        progress.step("prepare", number, len(models))
        prepared.append(model.prepare(inputs))
    members = [
        model.members(request.members, request.dropout_passes, request.seed) for model in models
    ]
    keep = request.uncertainty and sum(map(len, members)) > 1
    done = _Count(progress, sum(len(part) for part in members))
    parts, weights, answers = [], [], []
    for ready, group in zip(prepared, members, strict=True):
        total = Accumulator(values, ready.geometry, compute.device, request.fusion == "vote", keep)
        for member in group:
            _add_member(total, member, ready, compute, done)
        parts.append(total.result())
        weights.append(total.total_weight)
        answers += [(indices, ready.geometry) for indices in total.member_labels(parts[-1])]
        compute.notes += total.notes
    warnings = [warning for ready in prepared for warning in ready.warnings] + compute.notes
    return Fused(fuse(parts, weights), answers, [ready.geometry for ready in prepared], warnings)


def _add_member(
    total: Accumulator, member: Member, prepared: Prepared, compute: Compute, done: _Count
) -> None:
    total.begin_member(member.classes, member.weight)
    done.step(0.0)
    for block in member.predict(prepared, compute):
        total.add(block)
        done.step(block.values[0].numel() / prepared.voxels[0].size)
    done.finish_one()


@dataclass
class _Count:
    """Progress over members: whole ones that are finished, and a part of the one at work."""

    progress: Progress
    members: int
    finished: int = 0
    part: float = 0.0

    def step(self, part: float) -> None:
        self.part += part
        self.progress.step("predict", self.finished + self.part, self.members)

    def finish_one(self) -> None:
        self.finished, self.part = self.finished + 1, 0.0


class _Answer:
    """Everything that is gathered on the output grid, slab by slab."""

    def __init__(
        self, request: SegmentationRequest, labels: Sequence[Label], grid: Geometry, fused: Fused
    ) -> None:
        self._labels, self._grid, self._fused = labels, grid, fused
        self._values = np.array(fused.probabilities.labels)
        kind = np.uint8 if self._values.max() < 256 else np.uint16
        self._values = self._values.astype(kind)
        self.labelmap: NDArray[Any] = np.zeros(grid.shape, kind)
        self.entropy = np.zeros(grid.shape, np.float32) if request.uncertainty else None
        shape = (len(labels), *grid.shape)
        self.probabilities = np.zeros(shape, np.float16) if request.probabilities else None
        count = len(fused.members)
        self._agreement = (
            Agreement(count or 1, [label.value for label in labels])
            if request.uncertainty
            else None
        )

    def add(self, k0: int, k1: int) -> None:
        """Fill planes k0 to k1 of the output grid."""
        probabilities, where = self._fused.probabilities, slice(k0, k1)
        index = probabilities.argmax(self._grid, k0, k1).cpu().numpy()
        self.labelmap[where] = self._values[index]
        if self.probabilities is not None:
            self.probabilities[:, where] = probabilities.read(self._grid, k0, k1)[1:].cpu().numpy()
        if self.entropy is not None and self._agreement is not None:
            self.entropy[where] = probabilities.entropy(self._grid, k0, k1).cpu().numpy()
            members = (
                self._values[read_member_labels(self._fused.members, self._grid, k0, k1).numpy()]
                if self._fused.members
                else self.labelmap[where][None]
            )
            self._agreement.add(members, self.labelmap[where], self.entropy[where])

    def structures(self) -> tuple[StructureMeasures, ...]:
        counts = np.bincount(self.labelmap.ravel(), minlength=int(self._values.max()) + 1)
        return tuple(
            StructureMeasures(
                label,
                int(counts[label.value]),
                float(counts[label.value]) * self._grid.voxel_volume_ml,
                **(self._agreement.measures(label.value) if self._agreement else {}),
            )
            for label in self._labels
        )

    def warnings(self) -> list[str]:
        if self.labelmap.any():
            return []
        return ["Nothing was found. Is the image of the kind that the model was made for?"]


def _slabs(grid: Geometry) -> Iterator[tuple[int, int]]:
    planes = max(1, SLAB_VOXELS // (grid.shape[1] * grid.shape[2]))
    for k0 in range(0, grid.shape[0], planes):
        yield k0, min(k0 + planes, grid.shape[0])


def _joined_labels(cards: Sequence[ModelCard]) -> tuple[Label, ...]:
    """The labels of all models together; a value must mean the same structure in each."""
    joined: dict[int, Label] = {}
    for card in cards:
        for label in card.labels:
            if joined.setdefault(label.value, label).name != label.name:
                raise RequestError(
                    f"Label {label.value} is {joined[label.value].name!r} in one model and {label.name!r} in "
                    f"{card.id!r}. Models that are used together must agree on their labels."
                )
    return tuple(joined.values())


def _key(card: ModelCard) -> tuple[str, str]:
    """What tells whether a loaded model is still the one in the folder."""
    return str(card.folder), hashlib.sha256(repr(card).encode()).hexdigest()


@functools.lru_cache(maxsize=4)
def _model(folder: str, _fingerprint: str) -> Model:
    """Models stay loaded for the next case; a changed card makes a new one."""
    return load_model(find_card(folder))


def _provenance(
    request: SegmentationRequest,
    cards: Sequence[ModelCard],
    inputs: Sequence[Volume],
    compute: Compute,
    fused: Fused,
) -> dict[str, Any]:
    packages = ("torch", "numpy", "scipy", "openvino")
    return {
        "medsegai": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages if _version(name)},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": compute.describe(),
        "options": request.options(),
        "models": [
            {
                "id": card.id,
                "version": card.version,
                "weights_sha256": {member.name: member.sha256 for member in card.members},
            }
            for card in cards
        ],
        "inputs": [
            {"sha256": _fingerprint(volume), "grid": volume.geometry.describe()}
            for volume in inputs
        ],
        "native_grids": [geometry.describe() for geometry in fused.geometries],
    }


def _fingerprint(volume: Volume) -> str:
    """Hash of voxels and placement; it names a scan without naming a patient."""
    digest = hashlib.sha256(np.ascontiguousarray(volume.voxels).data)
    digest.update(volume.geometry.ijk_to_ras.tobytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
