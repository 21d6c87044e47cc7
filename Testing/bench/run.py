"""`make bench`: MedSegAI side by side with the plain way of running the same weights, in one run.

The plain way is eager torch in float32 over every slice of the conformed grid, views summed in float32. Each
measurement runs in a separate process, in turns, so that neither warms the other's memory. Figures are
ratios of medians; absolute seconds are those of this computer and of this hour.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsegai.engine import segment
from medsegai.families import Inputs
from medsegai.families._head import KEPT_MARGIN_MM
from medsegai.families.quicknat import QuickNATModel
from medsegai.inference.fusion import Accumulator
from medsegai.inference.grid_sampling import Slab
from medsegai.inference.probabilities import Block, Probabilities
from medsegai.io import read_volume
from medsegai.models.catalogue import find_card
from medsegai.networks.backends import choose_compute, make_runner
from medsegai.preprocessing.conform import conform, conformed_geometry, head_box
from medsegai.preprocessing.intensity import scale_intensity
from medsegai.preprocessing.views import thick_slices
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.volume import Volume

BATCH = 4
HERE = Path(__file__).resolve().parent
DEFAULT_SCAN = HERE.parents[2] / "shared" / "data" / "t1-head" / "t1_crop.nii.gz"
MODES = ("plain", "slices", "volume")
FULL_SIZE = (256, 256, 256)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scan", type=Path, default=DEFAULT_SCAN, help="a head scan")
    parser.add_argument("--model", default="brain")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--labels", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child](options)))
        return
    if not options.scan.is_file():
        sys.exit(f"There is no scan at {options.scan}. Name one with --scan.")
    figures = compare(options)
    print(as_markdown(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All children in turns, and what follows from their figures."""
    runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        labels = {mode: Path(folder) / f"{mode}.npy" for mode in MODES}
        for _ in range(options.rounds):
            for mode in MODES:
                runs[mode].append(run_child(options, mode, labels[mode]))
        found = {mode: np.load(path) for mode, path in labels.items()}
    memory = {
        name: run_child(options, name, Path())["added_mb"]
        for name in ("memory-plain", "memory-ours")
    }
    head = head_mask(read_volume(options.scan))
    plain, slices, volume = (median(runs[mode]) for mode in MODES)
    return {
        "scan": options.scan.name,
        "model": options.model,
        "device": volume["device"],
        "slices": plain["slices"],
        "plain_seconds_per_slice": plain["predict"] / plain["slices"],
        "ours_seconds_per_slice": slices["predict"] / slices["slices"],
        "slice_ratio": plain["predict"] / slices["predict"],
        "slice_agreement": agreement(found["plain"], found["slices"], head),
        "slice_dice": mean_dice(found["plain"], found["slices"]),
        "plain_seconds_per_volume": plain["total"],
        "ours_seconds_per_volume": volume["total"],
        "volume_ratio": plain["total"] / volume["total"],
        "volume_agreement": agreement(found["plain"], found["volume"], head),
        "volume_dice": mean_dice(found["plain"], found["volume"]),
        "ours_first_volume_seconds": volume["first"],
        "ours_peak_mb": volume["peak_mb"],
        "plain_peak_mb": plain["peak_mb"],
        "aggregation_plain_mb": memory["memory-plain"],
        "aggregation_ours_mb": memory["memory-ours"],
        "aggregation_ratio": memory["memory-ours"] / memory["memory-plain"],
    }


def run_child(options: argparse.Namespace, mode: str, labels: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", mode, "--scan", str(options.scan)]
    command += ["--model", options.model, "--labels", str(labels)]
    print(f"running: {mode}", file=sys.stderr, flush=True)
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def run_plain(options: argparse.Namespace) -> dict[str, Any]:
    """Every slice of the conformed grid through eager torch in float32."""
    return run_all_slices(options, lambda network: torch.inference_mode()(network.eval().forward))


def run_slices(options: argparse.Namespace) -> dict[str, Any]:
    """The same slices through MedSegAI's backend."""
    compute = choose_compute("cpu")
    return run_all_slices(options, lambda network: make_runner(network, compute))


def run_all_slices(options: argparse.Namespace, prepare: Any) -> dict[str, Any]:
    model = QuickNATModel(find_card(options.model))
    scan = read_volume(options.scan)
    request = SegmentationRequest((scan,))
    (part,) = model.parts(Inputs([scan]), scan.geometry, request, choose_compute("cpu"), Progress())
    members = part.members
    networks = [prepare(member.network._read()) for member in members]
    for network, member in zip(
        networks, members, strict=True
    ):  # compiled, and pages touched, before the clock
        size = model.settings.grid[0]
        network(torch.zeros(BATCH, member.network.slices, size, size))
    begin = time.perf_counter()
    scan = read_volume(options.scan)
    grid = conformed_geometry(scan.geometry, model.settings.grid, model.card.spacing_mm)
    voxels = scale_intensity(
        conform(scan, grid, model.settings.antialias), model.settings.intensity
    )
    labels = (0, *model.card.label_values)
    total = torch.zeros(len(labels), *grid.shape)
    predict, count = 0.0, 0
    for network, member in zip(networks, members, strict=True):
        view = member.network.view
        stack = view.stack(voxels)
        feeds = [
            next(n for n, c in enumerate(member.classes) if (value in c) or (not value and not c))
            for value in labels
        ]
        for first in range(0, stack.shape[0], BATCH):
            chosen = np.arange(first, min(first + BATCH, stack.shape[0]))
            started = time.perf_counter()
            probabilities = network(
                torch.from_numpy(thick_slices(stack, chosen, member.network.slices))
            ).softmax(1)
            predict += time.perf_counter() - started
            count += len(chosen)
            target = total.permute(0, *(1 + axis for axis in view.axes))[
                :, first : first + len(chosen)
            ]
            answer = probabilities[:, feeds].movedim(1, 0)
            for sides in (classes for classes in member.classes if len(classes) > 1):
                known = target[[labels.index(value) for value in sides]]  # by the members before
                answer[[labels.index(value) for value in sides]] *= known / known.sum(0).clamp(
                    min=1e-12
                )
            target += member.weight * answer
    total /= total.sum(0)
    fused = Probabilities(labels, grid, total)
    found = torch.cat(
        [fused.argmax(scan.geometry, k, k + 1) for k in range(scan.geometry.shape[0])]
    )
    seconds = time.perf_counter() - begin
    np.save(options.labels, np.array(labels, np.uint8)[found.numpy()])
    return {"predict": predict, "total": seconds, "slices": count, "peak_mb": peak_mb()}


def run_volume(options: argparse.Namespace) -> dict[str, Any]:
    """MedSegAI as users run it: the first case, and a second one in the same process."""
    request = SegmentationRequest((options.scan,), (options.model,), device="cpu")
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        result = segment(request)
        seconds.append(time.perf_counter() - begin)
    np.save(options.labels, result.labelmap.voxels)
    device = result.provenance["device"]
    return {"first": seconds[0], "total": seconds[1], "device": device, "peak_mb": peak_mb()}


def run_memory_plain(options: argparse.Namespace) -> dict[str, Any]:
    """What the original two-view code holds: both views' logits and their sum, in full, float32, 256³."""
    classes = 33
    before = peak_mb()
    views = [torch.zeros(classes, *FULL_SIZE).normal_() for _ in range(2)]
    total = views[0] + views[1]
    total.argmax(0)
    return {"added_mb": peak_mb() - before}


def run_memory_ours(options: argparse.Namespace) -> dict[str, Any]:
    """Three views of the same size through the accumulator and the slab reader, on the head's box at 1 mm."""
    scan = read_volume(options.scan)
    grid = conformed_geometry(scan.geometry, FULL_SIZE, (1.0, 1.0, 1.0))
    box = head_box(
        scale_intensity(conform(scan, grid, False), "percentile"), margin=round(KEPT_MARGIN_MM)
    )
    shape = tuple(part.stop - part.start for part in box)
    native = grid.cropped([part.start for part in box], shape)
    block = torch.rand(33, BATCH, *shape[1:]).softmax(0)
    before = peak_mb()
    accumulator = Accumulator(tuple(range(33)), native, torch.device("cpu"))
    every = [[]] + [[value] for value in range(1, 33)]
    sides = (
        [[]]
        + [[value, value + 14] for value in range(1, 15)]
        + [[value] for value in range(29, 33)]
    )
    for weight, classes in ((0.4, every), (0.4, every), (0.2, sides)):
        accumulator.begin_member(classes, weight)
        for k in range(0, shape[0], BATCH):
            accumulator.add(Block((k, 0, 0), block[:, : shape[0] - k]))
    fused = accumulator.result()
    for k in range(0, 256, 16):
        fused.argmax(Slab(grid, k, k + 16))
    return {"added_mb": peak_mb() - before}


CHILDREN = {
    "plain": run_plain,
    "slices": run_slices,
    "volume": run_volume,
    "memory-plain": run_memory_plain,
    "memory-ours": run_memory_ours,
}


def head_mask(scan: Volume) -> NDArray[np.bool_]:
    return scale_intensity(scan.voxels, "percentile") > 0.1


def agreement(first: NDArray[Any], second: NDArray[Any], head: NDArray[np.bool_]) -> float:
    return float((first == second)[head].mean())


def mean_dice(first: NDArray[Any], second: NDArray[Any]) -> float:
    scores = []
    for value in np.unique(first[first > 0]):
        a, b = first == value, second == value
        scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(scores))


def median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: statistics.median(run[key] for run in runs) if not isinstance(value, str) else value
        for key, value in runs[0].items()
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def as_markdown(figures: dict[str, Any]) -> str:
    f = figures
    rows = [
        (
            "one slice, s",
            f["plain_seconds_per_slice"],
            f["ours_seconds_per_slice"],
            f["slice_ratio"],
            "slice",
        ),
        (
            "whole volume, s",
            f["plain_seconds_per_volume"],
            f["ours_seconds_per_volume"],
            f["volume_ratio"],
            "volume",
        ),
    ]
    lines = [
        f"Model {f['model']}, scan {f['scan']}, {f['slices']:.0f} slices, {f['device']}",
        "",
        "| | plain fp32 | MedSegAI | times faster | labels equal in the head | mean Dice |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, plain, ours, ratio, kind in rows:
        equal, dice = f[f"{kind}_agreement"], f[f"{kind}_dice"]
        lines.append(
            f"| {name} | {plain:.3f} | {ours:.3f} | {ratio:.2f} | {100 * equal:.3f} % | {dice:.4f} |"
        )
    lines += [
        "",
        f"First volume in a fresh process: {f['ours_first_volume_seconds']:.1f} s. "
        f"Peak memory: plain {f['plain_peak_mb']:.0f} MB, MedSegAI {f['ours_peak_mb']:.0f} MB.",
        f"Aggregation at 256³, 33 classes: original two views {f['aggregation_plain_mb']:.0f} MB, "
        f"three views here {f['aggregation_ours_mb']:.0f} MB, ratio {f['aggregation_ratio']:.3f}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("run", main))
