"""How a brain model deals with scans worse than usual, how it judges itself, and the same head twice.

    python Testing/bench/spoiled.py scans --cases 3
    python Testing/bench/spoiled.py flags
    python Testing/bench/spoiled.py repeats ../shared/data/brain-label-maps --heads 4
    python Testing/bench/spoiled.py contrasts ../shared/data/brain-label-maps --heads 4

`scans` spoils MALC scans in ten ways and prints the mean Dice of each, as users run the model. `flags` compares
the Dice that the model expects with the true one on MALC, and says how many poor results it flags. `repeats` makes
two scans of each synthetic head (other noise, bias field, blur and position) and compares their volumes.
`contrasts` makes synthetic heads that look like T1, T2 and PD images, and segments them with and without comparing
contrasts. CSF outside the ventricles is left out everywhere: see `malc.py`. MALC scans are for evaluation only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from calibration import to_anterior_inferior_left
from malc import CREDIT, CSF, LABELS, MAPPING, SCAN, chosen_scans, shared_scans
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medsegai.engine import segment
from medsegai.errors import MedSegAIError
from medsegai.evaluation import read_mapping
from medsegai.families import _contrast
from medsegai.io import read_labelmap, read_volume
from medsegai.models.catalogue import find_card
from medsegai.models.quality import remarks
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.training.config import load_config
from medsegai.training.data import VALIDATION, CaseSource, Origin, case_source, seed_for
from medsegai.training.synthesis import Draw, corrupt, paint
from medsegai.volume import Geometry, Volume

Pair = tuple[Volume, Volume]
"""A scan and its reference, on one grid."""

POOR = 0.6
"""Dice below which a structure should be flagged."""


def turned(scan: Volume, truth: Volume) -> Pair:
    """The head lies crooked: 20 degrees about an oblique axis."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(20.0 * np.array([2, -1, 2]) / 3, degrees=True).as_matrix()
    middle = scan.geometry.center_ras
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle
    return _both(scan, truth, Geometry(scan.geometry.shape, matrix @ scan.geometry.ijk_to_ras))


def cropped(scan: Volume, truth: Volume) -> Pair:
    """The field of view ends 8 mm inside the brain on every side."""
    hits = np.nonzero(scan.voxels > 0)
    margin = [round(8.0 / step) for step in reversed(scan.geometry.spacing_mm)]
    start = [int(hit.min()) + edge for hit, edge in zip(hits, margin, strict=True)]
    stop = [int(hit.max()) + 1 - edge for hit, edge in zip(hits, margin, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    shape = [b - a for a, b in zip(start, stop, strict=True)]
    grid = scan.geometry.cropped(start, shape)
    return Volume(scan.voxels[box], grid, scan.source), Volume(truth.voxels[box], grid)


def stored_otherwise(scan: Volume, truth: Volume) -> Pair:
    """Axes in another order, and counted from the other end."""
    order, ends = (2, 0, 1), (0, 2)
    grid = scan.geometry.permuted(order).flipped(*ends)
    found = [np.flip(v.voxels.transpose(order), ends) for v in (scan, truth)]
    return Volume(found[0], grid, scan.source), Volume(found[1], grid)


def thick(scan: Volume, truth: Volume) -> Pair:
    """Slices of four voxels along the body."""
    along = _along_the_body(scan)
    count = scan.geometry.shape[along] // 4
    whole = scan.voxels.astype(np.float32).take(range(4 * count), along)
    shape = [*whole.shape[:along], count, 4, *whole.shape[along + 1 :]]
    matrix = scan.geometry.ijk_to_ras.copy()
    matrix[:3, 3] += 1.5 * matrix[:3, 2 - along]
    matrix[:3, 2 - along] *= 4
    sums = whole.reshape(shape).mean(along + 1)
    grid = Geometry(sums.shape, matrix)
    middle = truth.voxels.take(range(1, 4 * count, 4), along)
    return Volume(sums, grid, scan.source), Volume(middle, grid)


def noisy(scan: Volume, truth: Volume) -> Pair:
    """Noise of 6 % of the brightest tissue."""
    noise = np.random.default_rng(0).normal(0, 0.06 * _bright(scan), scan.voxels.shape)
    return scan.with_voxels(np.abs(scan.voxels + noise).astype(np.float32)), truth


def biased(scan: Volume, truth: Volume) -> Pair:
    """A smooth field that makes one side half again as bright as the other."""
    nodes = np.random.default_rng(1).normal(size=(3, 3, 3))
    factors = [size / 3 for size in scan.voxels.shape]
    field = ndimage.zoom(nodes, factors, order=1, mode="nearest", grid_mode=True)
    field = 0.25 * field / field.std()
    return scan.with_voxels((scan.voxels * np.exp(field)).astype(np.float32)), truth


def inverted(scan: Volume, truth: Volume) -> Pair:
    """What was bright is dark: fluid is brightest, as in a T2 image."""
    bright = 1.1 * _bright(scan)
    inside = scan.voxels > 0
    return scan.with_voxels(np.where(inside, (bright - scan.voxels).clip(min=1), 0)), truth


def bright_vessels(scan: Volume, truth: Volume) -> Pair:
    """Strands five times as bright as tissue, in one voxel of two hundred."""
    noise = np.random.default_rng(2).normal(size=scan.voxels.shape)
    strands = ndimage.gaussian_filter(noise, (4.0, 1.0, 1.0))
    inside = scan.voxels > 0
    lit = inside & (strands > np.quantile(strands[inside], 0.995))
    return scan.with_voxels(np.where(lit, 5 * _bright(scan), scan.voxels)), truth


def fine(scan: Volume, truth: Volume) -> Pair:
    """Voxels of 0.8 mm."""
    spacing = np.array(scan.geometry.spacing_mm[::-1])
    shape = np.round(np.array(scan.geometry.shape) * spacing / 0.8).astype(int)
    grid = scan.geometry.resized(shape.tolist())
    factors = shape / scan.geometry.shape
    voxels, labels = (
        ndimage.zoom(volume.voxels, factors, order=order, mode="nearest", grid_mode=True)
        for volume, order in ((scan.with_voxels(scan.voxels.astype(np.float32)), 1), (truth, 0))
    )
    return Volume(voxels, grid, scan.source), Volume(labels, grid)


def negative(scan: Volume, truth: Volume) -> Pair:
    """Values from -1000 on."""
    return scan.with_voxels(scan.voxels.astype(np.float32) * 2 - 1000), truth


WAYS: Mapping[str, Callable[[Volume, Volume], Pair]] = {
    "as it is": lambda scan, truth: (scan, truth),
    "turned by 20 degrees": turned,
    "cropped into the brain": cropped,
    "stored in another order": stored_otherwise,
    "slices of 4 voxels": thick,
    "noise": noisy,
    "bias field": biased,
    "inverted contrast": inverted,
    "bright vessels": bright_vessels,
    "voxels of 0.8 mm": fine,
    "negative values": negative,
}


def _both(scan: Volume, truth: Volume, grid: Geometry) -> Pair:
    return Volume(scan.voxels, grid, scan.source), Volume(truth.voxels, grid)


def _bright(scan: Volume) -> float:
    return float(np.percentile(scan.voxels[scan.voxels > 0], 99))


def _along_the_body(scan: Volume) -> int:
    """The axis (k, j, i) that runs most nearly from head to foot."""
    return 2 - int(np.argmax(np.abs(scan.geometry.ijk_to_ras[2, :3]) / scan.geometry.spacing_mm))


def dice_of(found: NDArray[np.integer], truth: NDArray[np.integer]) -> dict[int, float]:
    """Dice of each value that `truth` has, but background and outer fluid."""
    top = 1 + int(max(found.max(), truth.max()))
    equal = np.bincount(truth[found == truth].ravel(), minlength=top)
    sizes = np.bincount(found.ravel(), minlength=top) + np.bincount(truth.ravel(), minlength=top)
    values = [int(value) for value in np.unique(truth) if value not in (0, CSF)]
    return {value: 2.0 * int(equal[value]) / int(sizes[value]) for value in values}


def malc_pairs(arguments: argparse.Namespace) -> list[tuple[str, Pair]]:
    """Scans and references that a model is judged by.

    Raises:
        InputError: there are none.
    """
    paths = chosen_scans(arguments)
    mapping = read_mapping(MAPPING)
    found = []
    for path in paths:
        name = path.name.removesuffix(SCAN)
        truth = mapping.apply(read_labelmap(path.with_name(name + LABELS))[0])
        found.append((name, (read_volume(path), truth)))
    return found


def run(scan: Volume, arguments: argparse.Namespace, **others: bool) -> SegmentationResult:
    """Segment as users do."""
    request = SegmentationRequest(
        (scan,), (arguments.model,), members=tuple(arguments.members), anyway=True
    )
    return segment(replace(request, **others))  # type: ignore[arg-type]


def scans(arguments: argparse.Namespace) -> None:
    """Print a row for each way to spoil a scan, a column for each scan."""
    pairs = malc_pairs(arguments)
    print(f"| mean Dice | {' | '.join(name for name, _ in pairs)} |")
    print(f"| --- |{' ---: |' * len(pairs)}")
    for way in arguments.ways or WAYS:
        cells = []
        for _, pair in pairs:
            scan, truth = WAYS[way](*pair)
            dice = dice_of(run(scan, arguments).labelmap.voxels, truth.voxels)
            cells.append(f"{np.mean(list(dice.values())):.3f}")
        print(f"| {way} | {' | '.join(cells)} |", flush=True)
    print(f"\n{CREDIT}")


def flags(arguments: argparse.Namespace) -> None:
    """Print for each scan the true and the expected Dice, and how many poor results are flagged."""
    print("| scan | Dice | expected | below 0.6 | of them flagged | others flagged |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    calibration, rows = find_card(arguments.model).calibration, []
    for name, (scan, truth) in malc_pairs(arguments):
        result = run(scan, arguments, uncertainty=True)
        dice = dice_of(result.labelmap.voxels, truth.voxels)
        judged = [
            (dice[item.label.value], item.expected_dice, bool(remarks(item, calibration)))
            for item in result.structures
            if item.label.value in dice and item.expected_dice is not None
        ]
        rows.append(np.array(judged, float).reshape(-1, 3))
        print(f"| {name} | {_flag_cells(rows[-1])} |", flush=True)
    print(f"| **all** | {_flag_cells(np.concatenate(rows))} |\n\n{CREDIT}")


def _flag_cells(judged: NDArray[np.float64]) -> str:
    """`judged`: true and expected Dice of each result, and whether it is flagged, (results, 3)."""
    poor, flagged = judged[:, 0] < POOR, judged[:, 2] > 0
    means = " | ".join(f"{mean:.3f}" for mean in judged[:, :2].mean(0))
    counts = (poor.sum(), (poor & flagged).sum(), (flagged & ~poor).sum())
    return f"{means} | {' | '.join(str(int(count)) for count in counts)}"


def repeats(arguments: argparse.Namespace) -> None:
    """Print for each structure how far two scans of one head agree."""
    card = find_card(arguments.model)
    source = _source(arguments)
    volumes: dict[int, list[tuple[float, float]]] = {}
    for head in range(arguments.heads):
        pair = [_volumes(run(scan, arguments)) for scan in two_scans(source, head)]
        for value in card.label_values:
            if value != CSF:
                volumes.setdefault(value, []).append((pair[0][value], pair[1][value]))
    print("| structure | mean volume, ml | difference, % of the mean |\n| --- | ---: | ---: |")
    everything = []
    for label in card.labels:
        if label.value in volumes:
            found = np.array(volumes[label.value])
            apart = 100 * np.abs(np.diff(found)[:, 0]) / found.mean(1).clip(min=1e-3)
            everything.append(apart.mean())
            print(f"| {label.name} | {found.mean():.2f} | {apart.mean():.1f} |")
    print(f"| **mean** | | **{np.mean(everything):.1f}** |")


CONTRASTS: Mapping[str, Callable[[float], float]] = {
    "T1": lambda mean: mean,
    "T2": lambda mean: 1.25 - mean if mean > 0.3 else 1.0 - 0.67 * mean,
    "PD": lambda mean: 0.9 - 0.25 * mean if mean > 0.3 else 0.85,
}
"""The mean of a tissue, where white matter is 1 in T1; fluid is below 0.3 there."""


def contrasts(arguments: argparse.Namespace) -> None:
    """Print the mean Dice on made heads of several contrasts, without and with comparing contrasts."""
    print("| contrast | head | as it is | the surer contrast |\n| --- | ---: | ---: | ---: |")
    for name, change in CONTRASTS.items():
        source = _source(arguments, change)
        values = np.array([0, *find_card(arguments.model).label_values])
        for head in range(arguments.heads):
            case = source.held_out[head % len(source.held_out)]
            codes, origin = torch.from_numpy(case.codes), Origin(case.center, case.spacing)
            image, targets = source.synthesizer.from_labels(codes, origin, _draw(source.seed, head))
            scan = Volume((1000 * image).astype(np.int16), to_anterior_inferior_left(image.shape))
            with patch.object(_contrast, "SURER", 0.0):
                plain = run(scan, arguments)
            dice = [
                np.mean(list(dice_of(found.labelmap.voxels, values[targets]).values()))
                for found in (plain, run(scan, arguments))
            ]
            print(f"| {name} | {head} | {dice[0]:.3f} | {dice[1]:.3f} |", flush=True)


def _volumes(result: SegmentationResult) -> dict[int, float]:
    return {item.label.value: item.volume_ml for item in result.structures}


def _source(
    arguments: argparse.Namespace, change: Callable[[float], float] = lambda mean: mean
) -> CaseSource:
    """Heads from the held-out label maps, whose tissues have the means of a T1 scan, each of them changed."""
    card = find_card(arguments.model)
    config = load_config(card.folder / "training.toml")
    size = (arguments.voxels,) * 3
    data = replace(config.data, root=str(arguments.data.resolve()), crop_voxels=size)
    appearance = replace(config.appearance, t1_share=1.0, t1_jitter=0.0, coarse_share=0.0)
    tissues = tuple(
        item if item.name == "background" or item.t1 is None else replace(item, t1=change(item.t1))
        for item in config.tissues
    )
    config = replace(config, data=data, appearance=appearance, tissues=tissues)
    return case_source(config, replace(card, spacing_mm=(1.0,) * 3), torch.device("cpu"))


def two_scans(source: CaseSource, head: int) -> list[Volume]:
    """A made head that held still, scanned twice: noise, bias field and blur differ, and it lies otherwise."""
    case = source.held_out[head % len(source.held_out)]
    draw = _draw(source.seed, head)
    origin = Origin(case.center, case.spacing)
    sampled, _, _ = source.synthesizer._deformed(torch.from_numpy(case.codes), origin, draw)
    found = []
    for repeat in (1, 2):
        own = _draw(source.seed, 10_000 * repeat + head)
        painted = paint(sampled, source.synthesizer.tables, source.synthesizer.appearance, own)
        image = corrupt(painted, source.synthesizer.appearance, own).numpy()
        grid = to_anterior_inferior_left(image.shape)
        angle = np.random.default_rng(head + repeat).normal(0, 4, 3)
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_rotvec(angle, degrees=True).as_matrix()
        placed = Geometry(grid.shape, matrix @ grid.ijk_to_ras)
        found.append(Volume((1000 * image).astype(np.int16), placed, f"head {head}, scan {repeat}"))
    return found


def _draw(seed: int, number: int) -> Draw:
    return Draw(torch.Generator().manual_seed(seed_for(seed, VALIDATION, number)))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except MedSegAIError as error:
        print(f"spoiled: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    for kind in (scans, flags, repeats, contrasts):
        own = kinds.add_parser(kind.__name__, help=kind.__doc__)
        own.set_defaults(run=kind)
        own.add_argument("--model", default="brain", metavar="ID", help="(default: brain)")
        own.add_argument("--members", nargs="+", default=(), metavar="NAME", help="only these")
        if kind in (repeats, contrasts):
            own.add_argument("data", type=Path, help="folder of the label maps of the training")
            own.add_argument("--heads", type=int, default=4, metavar="N")
            own.add_argument("--voxels", type=int, default=192, help="along each axis, 1 mm each")
        else:
            folder = shared_scans()
            own.add_argument("--data", type=Path, default=folder, metavar="FOLDER")
            own.add_argument("--cases", type=int, metavar="N", help="the first N scans only")
        if kind is scans:
            own.add_argument("--ways", nargs="+", choices=tuple(WAYS), metavar="WAY")
    return parser


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("spoiled", main))
