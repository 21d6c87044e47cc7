"""A real worker process with a made-up engine: the name of the model says how the job goes.

Run as `python fake_worker.py`; `MEDSEGAI_FAKE_START` changes how the process starts, and
`MEDSEGAI_FAKE_ALIVE` says after how many seconds it gives a sign of life.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np

from medsegai.errors import DeviceError
from medsegai.labels import Label, Terminology
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult, StructureMeasures
from medsegai.volume import Volume
from medsegai.worker import server

LABELS = (
    Label(
        1,
        "Left hippocampus",
        (220, 216, 20),
        Terminology(
            ("SCT", "123037004", "Anatomical Structure"),
            ("SCT", "5366008", "Hippocampus"),
            ("SCT", "7771000", "Left"),
        ),
    ),
    Label(2, "Brain-Stem", (119, 159, 176)),
    Label(7, "Absent", (1, 2, 3)),
)


STAGES = ("read", "prepare", "predict", "labels", "refine")


def halves(volume: Volume, uncertainty: bool = False) -> SegmentationResult:
    """Label 1 where the image is above 100, label 2 where it is above 200, label 7 nowhere."""
    image = np.asarray(volume.voxels)
    labelmap = ((image > 100).astype(np.uint8) + (image > 200)).astype(np.uint8)
    entropy = volume.with_voxels(np.full(image.shape, 0.25, np.float32)) if uncertainty else None
    voxel_ml = volume.geometry.voxel_volume_ml
    structures = []
    for label in LABELS:
        voxels = int((labelmap == label.value).sum())
        spread = 0.125 if uncertainty else None
        structures.append(StructureMeasures(label, voxels, voxels * voxel_ml, volume_cv=spread))
    return SegmentationResult(
        labelmap=volume.with_voxels(labelmap),
        labels=LABELS,
        structures=tuple(structures),
        entropy=entropy,
        seconds={"predict": 0.5},
        provenance={"pid": os.getpid(), "device": "cpu"},
        warnings=("The image is made up.",),
    )


def fake_segment(request: SegmentationRequest, progress: Progress) -> SegmentationResult:
    behaviour = request.models[0]
    progress.plan({"read": 1, "predict": 9})
    progress.step("read", 1, 1)
    volume = request.inputs[0]
    assert isinstance(volume, Volume)
    BEHAVIOURS.get(behaviour, quick)(progress)
    result = halves(volume, request.uncertainty)
    if behaviour == "not finite":
        return replace(result, seconds={"predict": float("inf")})
    return result


def quick(progress: Progress) -> None:
    for done in range(1, 4):
        progress.step("predict", done, 3)


def short(progress: Progress) -> None:
    """Time to do something behind the job's back."""
    progress.step("predict", 0, 1)
    time.sleep(1)


def slow(progress: Progress) -> None:
    for done in range(600):
        progress.step("predict", done, 600)
        time.sleep(0.05)


def deaf(progress: Progress) -> None:
    """Does not look at the cancel flag, as a long native call."""
    time.sleep(60)


def stuck(progress: Progress) -> None:
    """A library that never gives the interpreter back: no thread of ours runs any more."""
    ctypes.PyDLL(None).sleep(60)


def steps(progress: Progress) -> None:
    """Comes by every stage of a real job; MEDSEGAI_FAKE_DIE names the one in which the system ends it."""
    progress.plan(dict.fromkeys(STAGES, 1.0))
    for stage in STAGES:
        for done in range(20):
            progress.step(stage, done, 20)
            if os.environ.get("MEDSEGAI_FAKE_DIE") == stage and done == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)


def noisy(progress: Progress) -> None:
    sys.stdout.write("chatter of a library\n")
    os.write(1, b"chatter of a C library\n")
    subprocess.run([sys.executable, "-c", "print(input())"], check=False)


def mother(progress: Progress) -> None:
    """Starts a child that would outlive us, and says which."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    progress.step(f"child {child.pid}", 1, 1)
    time.sleep(60)


def refuse(progress: Progress) -> None:
    raise DeviceError("The device cuda:7 is unknown.")


def defect(progress: Progress) -> None:
    raise ZeroDivisionError("made up")


def crash(progress: Progress) -> None:
    ctypes.string_at(0)


def out_of_memory(progress: Progress) -> None:
    """What the kernel does to a process when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def not_json(progress: Progress) -> None:
    """Finds the pipe behind the worker's back, as a library that keeps its own descriptor could."""
    for descriptor in range(3, 10):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if target.startswith(("pipe:", "socket:")):
            try:
                os.write(descriptor, b"garbage on the pipe\n")
            except OSError:
                continue
    time.sleep(60)


BEHAVIOURS = {
    "short": short,
    "slow": slow,
    "deaf": deaf,
    "stuck": stuck,
    "steps": steps,
    "noisy": noisy,
    "mother": mother,
    "refuse": refuse,
    "defect": defect,
    "crash": crash,
    "out of memory": out_of_memory,
    "not json": not_json,
}

if __name__ == "__main__":
    start = os.environ.get("MEDSEGAI_FAKE_START", "")
    if start == "mute":
        time.sleep(60)
    if start == "die":
        sys.exit("there is no such package")
    if start == "chatter":
        os.write(1, b"Welcome to this Python\n")
    if start == "slow":
        time.sleep(1)
    server.ALIVE_SECONDS = float(os.environ.get("MEDSEGAI_FAKE_ALIVE", server.ALIVE_SECONDS))
    server.main(fake_segment)
