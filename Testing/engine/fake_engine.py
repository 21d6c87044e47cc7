"""A made-up engine for tests of the command line: it reads the scan, splits it at its mean, and obeys.

Run as `python fake_engine.py ARGUMENTS` it is the `medsegai` command with this engine in place of the
real one. `MEDSEGAI_FAKE_WAIT` names a stage in which it says so on stderr and waits to be stopped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np

from medsegai.labels import Label
from medsegai.models.json_fields import to_json
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult, StructureMeasures
from medsegai.volume import Volume

LABELS = (
    Label(1, "Dark tissue", (30, 60, 220)),
    Label(4, "Bright tissue", (230, 40, 40)),
    Label(9, "Absent tissue", (10, 200, 10)),
)
STAGES = ("load", "predict", "fuse")
WAIT_SECONDS = 60.0


def segment(request: SegmentationRequest, progress: Progress | None = None) -> SegmentationResult:
    """Label 1 below the mean and 4 above it, in voxels that are not the scan's least value."""
    from medsegai.io import read_volume

    progress = progress or Progress()
    progress.plan(dict.fromkeys(STAGES, 1.0))
    scan = (
        request.inputs[0]
        if isinstance(request.inputs[0], Volume)
        else read_volume(request.inputs[0])
    )
    for stage in STAGES:
        progress.step(stage, 0, 1)
        wait_in(stage, progress)
    voxels = scan.voxels.astype(np.float64)
    values = np.where(voxels > voxels.mean(), 4, 1) * (voxels > voxels.min())
    labelmap = scan.with_voxels(values.astype(np.uint8))
    entropy = scan.with_voxels((voxels / voxels.max()).astype(np.float32))
    probabilities = np.stack([values == label.value for label in LABELS]).astype(np.float16)
    return SegmentationResult(
        labelmap=labelmap,
        labels=LABELS,
        structures=tuple(measures(label, labelmap, request.uncertainty) for label in LABELS),
        entropy=entropy if request.uncertainty else None,
        probabilities=probabilities if request.probabilities else None,
        seconds=dict(progress.seconds),
        provenance={"options": request.options(), "models": [{"id": "toy", "version": "1"}]},
        warnings=("This engine is made up.",),
    )


def warm_up(_request: SegmentationRequest) -> None:
    """It is always ready."""


def measures(label: Label, labelmap: Volume, uncertainty: bool) -> StructureMeasures:
    voxels = int((labelmap.voxels == label.value).sum())
    volume = voxels * labelmap.geometry.voxel_volume_ml
    if not uncertainty:
        return StructureMeasures(label, voxels, volume)
    if not voxels:
        return StructureMeasures(label, voxels, volume, *[float("nan")] * 4)
    agreement = (0.125, 0.875, 0.75, 0.5)
    return StructureMeasures(label, voxels, volume, *agreement, remarks=("too small", "in 2 parts"))


def write_model(models: Path) -> None:
    """A model "toy" with members axial and coronal, in a folder of models; this engine needs no weights."""
    card = {
        "id": "toy",
        "name": "Toy",
        "family": "none",
        "version": "1",
        "channels": [{"name": "any", "modality": "MR"}],
        "labels": [to_json(label) for label in LABELS],
        "members": [{"name": "axial"}, {"name": "coronal"}],
        "spacing_mm": [1, 1, 1],
    }
    (models / "toy").mkdir(parents=True)
    (models / "toy" / "card.json").write_text(json.dumps(card))


def wait_in(stage: str, progress: Progress) -> None:
    """Say that this stage is reached, and step on until stopped, where the environment asks for it."""
    if os.environ.get("MEDSEGAI_FAKE_WAIT") != stage:
        return
    say(f"reached {stage}")
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        time.sleep(0.02)
        progress.step(stage, 0, 1)


def say(words: str) -> None:
    sys.stderr.write(words + "\n")
    sys.stderr.flush()


def as_module() -> ModuleType:
    """This file as `medsegai.engine`."""
    module = ModuleType("medsegai.engine")
    module.segment = segment  # type: ignore[attr-defined]
    module.warm_up = warm_up  # type: ignore[attr-defined]
    return module


def slow_table(path: Path, *_others: object) -> None:
    """Writes half a table and then hangs, as on a dead network drive."""
    path.write_text("value,name\n1,half a ro")
    say("reached write")
    seconds = float(os.environ.get("MEDSEGAI_FAKE_WRITE_SECONDS", WAIT_SECONDS))
    time.sleep(seconds)


def main() -> int:
    from medsegai import cli
    from medsegai.output import result_files

    sys.modules["medsegai.engine"] = as_module()
    if os.environ.get("MEDSEGAI_FAKE_WAIT") == "write":
        result_files.WRITERS["volumes"] = slow_table
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
