"""Preprocessing beside nnU-Net's own, on the same made images, in turns: `python Testing/bench/resampling.py`.

Seconds are the least of some repeats, and processor seconds count all threads. Memory is what a call adds to the
resident size, sampled while it runs: the most of the repeats. Ratios are theirs to ours.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsegai.preprocessing.nonzero import nonzero_box
from medsegai.preprocessing.normalisation import normalise
from medsegai.preprocessing.resampling import SPLINE, resample, resample_labels, resampled_shape

Grids = tuple[tuple[float, float, float], tuple[float, float, float]]

PLANS = {"order_z": 0, "force_separate_z": None}
FIGURES = {"mean": 97.3, "std": 131.7, "percentile_00_5": -958.0, "percentile_99_5": 270.5}
SHAPE = (256, 256, 200)


@dataclass(frozen=True)
class Case:
    """Two ways to one result, and by how much the results differ, in words."""

    name: str
    theirs: Callable[[], Any]
    ours: Callable[[], Any]
    difference: Callable[[Any, Any], str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--threads", type=int, default=1, help="of PyTorch; nnU-Net resamples on one (default: 1)"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        figures = compare(options.rounds)
    except ImportError:
        sys.exit("nnunetv2 is not installed: pip install 'medsegai[test]'")
    print(as_markdown(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def compare(rounds: int) -> list[dict[str, Any]]:
    """Figures of every case, one dictionary each."""
    return [figures_of(case, rounds) for case in cases()]


def as_markdown(figures: list[dict[str, Any]]) -> str:
    rows = [
        "| 256×256×200 | nnunetv2, CPU s | MedSegAI, CPU s | ratio | nnunetv2, s | MedSegAI, s "
        "| nnunetv2, MB | MedSegAI, MB | difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in figures:
        rows.append(
            f"| {row['name']} | {row['theirs_cpu']:.3f} | {row['ours_cpu']:.3f} "
            f"| {row['theirs_cpu'] / row['ours_cpu']:.1f} | {row['theirs_wall']:.3f} "
            f"| {row['ours_wall']:.3f} | {row['theirs_mb']:.0f} | {row['ours_mb']:.0f} "
            f"| {row['difference']} |"
        )
    return "\n".join(rows)


def figures_of(case: Case, rounds: int) -> dict[str, Any]:
    print(f"running: {case.name}", file=sys.stderr, flush=True)
    best: dict[str, float] = {}
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for side, call in (("theirs", case.theirs), ("ours", case.ours)):
            results[side] = None
            results[side], found = measured(call)
            for kind, value in found.items():
                key, choose = f"{side}_{kind}", max if kind == "mb" else min
                best[key] = choose(best.get(key, value), value)
    difference = case.difference(results["theirs"], results["ours"])
    return {"name": case.name, **best, "difference": difference}


def measured(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result of a call, its processor and wall seconds, and the memory it took at most, in MB."""
    peak = [resident_mb()]
    before, done = peak[0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        result = call()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    finally:
        done.set()
        watcher.join()
    peak[0] = max(peak[0], resident_mb())
    return result, {"cpu": cpu, "wall": wall, "mb": peak[0] - before}


def resident_mb() -> float:
    """Resident memory of this process; where Linux's /proc is missing, the highest so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def cases() -> Iterator[Case]:
    image, labels = made_ct(), made_labels()
    yield image_case("image, 1×1×1.5 mm to 1.5 mm", image, ((1.0, 1.0, 1.5), (1.5, 1.5, 1.5)))
    yield image_case("image, 1 mm to 0.8×1.3×1.3 mm", image, ((1.0, 1.0, 1.0), (0.8, 1.3, 1.3)))
    yield image_case("image, thick planes", image, ((5.0, 1.0, 1.0), (3.5, 1.4, 1.4)))
    yield label_case("labels, 25 classes, to 1.5 mm", labels, ((1.0, 1.0, 1.5), (1.5, 1.5, 1.5)))
    yield crop_case(image)
    yield normalise_case("CTNormalization", image)
    yield normalise_case("ZScoreNormalization", image)


def image_case(name: str, image: NDArray[np.float32], grids: Grids) -> Case:
    from nnunetv2.preprocessing.resampling import default_resampling

    shape = resampled_shape(image.shape[1:], *grids)
    theirs = default_resampling.resample_data_or_seg_to_shape
    settings = {"function": SPLINE, "order": 3, **PLANS}
    return Case(
        name,
        lambda: theirs(image, shape, *grids, is_seg=False, order=3, **PLANS),
        lambda: resample(image, shape, *grids, settings).numpy(),
        lambda a, b: f"{np.abs(a - b).max() / np.ptp(image):.1e} of the range",
    )


def label_case(name: str, labels: NDArray[np.int8], grids: Grids) -> Case:
    from nnunetv2.preprocessing.resampling import default_resampling

    shape = resampled_shape(labels.shape, *grids)
    theirs = default_resampling.resample_data_or_seg_to_shape
    settings = {"function": SPLINE, "order": 1, **PLANS}
    return Case(
        name,
        lambda: theirs(labels[None], shape, *grids, is_seg=True, order=1, **PLANS)[0],
        lambda: resample_labels(labels, shape, *grids, settings),
        lambda a, b: f"{np.count_nonzero(a != b)} of {a.size} voxels",
    )


def crop_case(image: NDArray[np.float32]) -> Case:
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

    return Case(
        "crop to what is not zero",
        lambda: [slice(*bounds) for bounds in crop_to_nonzero(image)[2]],
        lambda: list(nonzero_box(image)),
        lambda a, b: "same box" if a == b else f"{a} and {b}",
    )


def normalise_case(scheme: str, image: NDArray[np.float32]) -> Case:
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes

    theirs = getattr(schemes, scheme)(False, FIGURES)
    return Case(
        scheme,
        lambda: theirs.run(image[0].copy()),
        lambda: normalise(image[0], scheme, None, FIGURES),
        lambda a, b: f"{np.abs(a - b).max() / np.ptp(a):.1e} of the range",
    )


def made_ct() -> NDArray[np.float32]:
    """Tissue, air and noise in Hounsfield units, float32 (1, k, j, i)."""
    generator = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(generator.standard_normal(SHAPE, dtype=np.float32), 6)
    noise = generator.normal(0, 15, SHAPE)
    return (np.where(blobs > 0, 40, -950) + 4000 * blobs + noise).astype(np.float32)[None]


def made_labels() -> NDArray[np.int8]:
    """25 labels in blobs about as large as organs, int8 (k, j, i)."""
    generator = np.random.default_rng(1)
    coarse = generator.standard_normal([size // 8 for size in SHAPE], dtype=np.float32)
    smooth = ndimage.gaussian_filter(coarse, 2)
    rank = np.searchsorted(np.quantile(smooth, np.linspace(0.5, 1, 25)[:-1]), smooth)
    return ndimage.zoom(rank.astype(np.int8), 8, order=0)


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("resampling", main))
