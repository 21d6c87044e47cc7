"""Time and memory of a MONAI bundle here and in MONAI itself, on the same made scan with the same random weights.

Each side runs in a separate process, in turn, so that peak memory is its own and load is shared fairly.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "MedSegAI"), str(ROOT / "Testing" / "engine")]

SIDES = ("monai", "fp32", "bf16")
"""MONAI's own workflow, and ours with the network in float32 and in half precision."""


def bundles() -> dict[str, Any]:
    """Networks of the Model Zoo in their full width."""
    from monai_bundles import CT, LABELS_THEN_BACK, LOAD, RAS, UNET, WINDOW, Bundle, step

    body = {
        "_target_": "SegResNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 105,
        "init_filters": 32,
        "blocks_down": [1, 2, 2, 4],
        "blocks_up": [1, 1, 1],
        "dropout_prob": 0.2,
    }
    spacing = step("Spacing", pixdim=[1.5, 1.5, 1.5], mode="bilinear")
    window = {**WINDOW, "roi_size": [96, 96, 96], "sw_batch_size": 1, "overlap": 0.25}
    swin = {"_target_": "SwinUNETR", "in_channels": 1, "out_channels": 14, "feature_size": 48}
    whole_body = Bundle(
        network=body,
        preprocessing=(
            *(*LOAD, *RAS, spacing),
            step("NormalizeIntensity", nonzero=True),
            step("ScaleIntensity", minv=-1.0, maxv=1.0),
        ),
        inferer={**window, "mode": "gaussian", "padding_mode": "replicate"},
        postprocessing=tuple(LABELS_THEN_BACK),
    )
    return {
        "whole body, SegResNet, 105 classes": whole_body,
        "tiny network, 105 classes": replace(whole_body, network={**UNET, "out_channels": 105}),
        "abdomen, SwinUNETR, 14 classes": Bundle(
            network=swin,
            preprocessing=(
                *LOAD,
                *RAS,
                step("Spacing", pixdim=[1.5, 1.5, 2.0], mode="bilinear"),
                *CT,
            ),
            inferer=window,
        ),
    }


def run_side(side: str, folder: Path) -> dict[str, float]:
    """What one side takes; its labels are kept beside the bundle."""
    import numpy as np

    from medsegai.system.machine import peak_memory_mb

    image = folder / "data" / "image.nii.gz"
    if side == "monai":
        import monai.bundle

        from monai_bundles import monai_answer

        before, begun = peak_memory_mb(), time.perf_counter()
        computed = time.process_time()
        labels = monai_answer(folder / "bundle", image).squeeze()
    else:
        import monai.networks.nets  # noqa: F401

        from medsegai.engine import segment
        from medsegai.request import SegmentationRequest

        before, begun = peak_memory_mb(), time.perf_counter()
        computed = time.process_time()
        precision = "fp32" if side == "fp32" else "mixed"
        request = SegmentationRequest(
            inputs=(image,), models=(str(folder / "ours"),), device="cpu", precision=precision
        )
        labels = np.asarray(segment(request).labelmap.voxels).transpose(2, 1, 0)
    seconds = time.perf_counter() - begun
    processor = time.process_time() - computed
    np.save(folder / f"{side}.npy", labels.astype(np.uint8))
    return {
        "s": seconds,
        "cpu": processor,
        "peak": peak_memory_mb(),
        "beyond": peak_memory_mb() - before,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="200,200,160", help="voxels of the scan along x, y, z")
    parser.add_argument("--spacing", type=float, default=1.5, help="mm of its voxels")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="a word in the name of the bundle")
    parser.add_argument("--ways", default=",".join(SIDES[1:]), help="of ours: fp32, bf16")
    parser.add_argument("--alone", action="store_true", help="without MONAI, which may not fit")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, folder = arguments.child
        print(json.dumps(run_side(side, Path(folder))))
        return 0
    shape = [int(size) for size in arguments.shape.split(",")]
    if arguments.alone:
        print("| bundle | ours | s | processor s | peak MB | MB beyond imports |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name, bundle in bundles().items():
            if arguments.only in name:
                for row in alone(name, bundle, shape, arguments):
                    print(row, flush=True)
        return 0
    print(
        "| bundle | ours | time, MONAI / ours | processor time | peak memory, ours / MONAI | beyond imports "
        "| same labels |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, bundle in bundles().items():
        if arguments.only in name:
            for row in compared(name, bundle, shape, arguments):
                print(row, flush=True)
    return 0


def make(folder: Path, bundle: Any, shape: list[int], spacing: float) -> None:
    """The bundle, the model that it becomes here, and a scan for both."""
    from medsegai.families.monai import import_model
    from monai_bundles import affine, save_image, smooth_image

    lies = affine((spacing,) * 3, flips=(0, 1))
    save_image(folder / "data" / "image.nii.gz", smooth_image(shape), lies)
    import_model(bundle.write(folder / "bundle"), folder / "ours")


def alone(name: str, bundle: Any, shape: list[int], arguments: argparse.Namespace) -> Iterator[str]:
    """A line for each way to run it here, in absolute figures."""
    with tempfile.TemporaryDirectory() as made:
        make(Path(made), bundle, shape, arguments.spacing)
        for side in arguments.ways.split(","):
            took = child(side, Path(made))
            figures = " | ".join(f"{took[what]:.0f}" for what in ("s", "cpu", "peak", "beyond"))
            yield f"| {name}, {' x '.join(map(str, shape))} | {side} | {figures} |"


def compared(name: str, bundle: Any, shape: list[int], arguments: argparse.Namespace) -> list[str]:
    """A line for each way to run it here."""
    import numpy as np

    ways = arguments.ways.split(",")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make(folder, bundle, shape, arguments.spacing)
        took: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(arguments.rounds):
            for side in ("monai", *ways):
                took[side].append(child(side, folder))
                print(f"{name}, {side}: {took[side][-1]}", file=sys.stderr, flush=True)
        labels = {side: np.load(folder / f"{side}.npy") for side in ("monai", *ways)}

    def middle(side: str, what: str) -> float:
        return statistics.median(item[what] for item in took[side])

    return [
        f"| {name}, {' x '.join(map(str, shape))} | {side} "
        f"| {middle('monai', 's') / middle(side, 's'):.2f} "
        f"| {middle('monai', 'cpu') / middle(side, 'cpu'):.2f} "
        f"| {middle(side, 'peak') / middle('monai', 'peak'):.2f} "
        f"| {middle(side, 'beyond') / middle('monai', 'beyond'):.2f} "
        f"| {100 * float((labels[side] == labels['monai']).mean()):.3f} % |"
        for side in ways
    ]


def child(side: str, folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", side, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MEDSEGAI_CACHE": str(folder / "cache")},
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("monai_bundles_beside", main))
