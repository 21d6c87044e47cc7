"""What strokes are worth: Dice before and after 1, 3 and 5 simulated strokes, and seconds per update.

    python Testing/bench/correction.py --markdown correction.md
    python Testing/bench/correction.py --model RESULTS_FOLDER --hippocampus splits_final.json --cases 10

Segments scans, looks for the largest connected error of a structure against its manual label, draws one stroke
into it as a user would (the middle of the error, in the slice in which it is largest), corrects, and continues
with what is left. Compared are the way that the product takes, the same without the probabilities of the AI, the
strokes alone, and a random walker with priors (L. Grady, "Multilabel random walker image segmentation using
prior models", CVPR 2005), solved by conjugate gradients. MALC is for evaluation: nothing was tuned to it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import linalg

from medsegai.correction import REACH_MM, Region, box_around, corrected
from medsegai.engine import segment
from medsegai.evaluation import read_mapping
from medsegai.io import read_labelmap, read_volume
from medsegai.request import Candidates, SegmentationRequest

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
MAPPING = Path(__file__).with_name("neuromorphometrics_to_freesurfer.csv")
STROKES = (1, 3, 5)
MINIMUM_ERROR = 20
"""Voxels of the largest connected error from which a structure is worth a stroke."""

Mask = NDArray[np.bool_]
Way = Callable[[Region, Mask, Mask, float], Mask]


@dataclass(frozen=True)
class Case:
    """One scan: intensities, what the AI said, and the manual labels in the values of the model."""

    name: str
    image: NDArray[Any]
    spacing_mm: Sequence[float]
    candidates: Candidates
    labelmap: NDArray[Any]
    reference: NDArray[Any]


def malc_cases(count: int, model: str) -> Iterator[Case]:
    mapping = read_mapping(MAPPING)
    folder = SHARED / "malc2012-train"
    for path in sorted(folder.glob("*_SS.nii.gz"))[:count]:
        labels = read_labelmap(path.with_name(path.name.replace("_SS", "_glm")))[0]
        yield _case(path, mapping.apply(labels).voxels, models=(model,))


def hippocampus_cases(count: int, model: str, splits: Path) -> Iterator[Case]:
    """Those that the first fold did not learn from."""
    folder = SHARED / "Dataset004_Hippocampus"
    for name in json.loads(splits.read_text())[0]["val"][:count]:
        path = folder / "imagesTr" / f"{name}_0000.nii.gz"
        labels = read_labelmap(folder / "labelsTr" / f"{name}.nii.gz")[0]
        yield _case(path, labels.voxels, models=(model,), members=("fold_0",))


def _case(path: Path, reference: NDArray[Any], **options: Any) -> Case:
    scan = read_volume(path)
    result = segment(SegmentationRequest((scan,), candidates=True, device="cpu", **options))
    assert result.candidates is not None
    spacing = scan.geometry.spacing_mm
    return Case(
        path.name, scan.voxels, spacing, result.candidates, result.labelmap.voxels, reference
    )


def largest_error(wrong: Mask) -> Mask | None:
    """The largest connected component, if it is worth a stroke."""
    marked, count = ndimage.label(wrong)
    if not count:
        return None
    sizes = np.bincount(marked.ravel())[1:]
    return marked == 1 + int(sizes.argmax()) if sizes.max() >= MINIMUM_ERROR else None


def stroke_in(error: Mask, spacing_mm: Sequence[float]) -> Mask:
    """The middle of an error in the slice, of any direction, that shows most of it."""
    areas = [error.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    axis = int(np.argmax([area.max() for area in areas]))
    plane = int(areas[axis].argmax())
    shown = np.take(error, plane, axis)
    spacing = [mm for n, mm in enumerate(reversed(spacing_mm)) if n != axis]
    depth = ndimage.distance_transform_edt(np.pad(shown, 1), sampling=spacing)[1:-1, 1:-1]
    stroke = np.zeros_like(error)
    np.moveaxis(stroke, axis, 0)[plane] = depth >= 0.6 * depth.max()
    return stroke


def strokes_alone(region: Region, inside: Mask, outside: Mask, reach_mm: float) -> Mask:
    return (region.mask | inside) & ~outside


def without_probabilities(region: Region, inside: Mask, outside: Mask, reach_mm: float) -> Mask:
    return corrected(
        Region(region.image, region.mask, region.spacing_mm), inside, outside, reach_mm
    )


def random_walker(region: Region, inside: Mask, outside: Mask, reach_mm: float) -> Mask:
    """Weights exp(-beta d^2) between neighbours, and towards the probability of each voxel (or its side now)."""
    image = region.image.astype(np.float64)
    size, numbers = image.size, np.arange(image.size).reshape(image.shape)
    prior = np.where(region.mask, 0.8, 0.2)
    if region.probability is not None:
        known = np.clip(region.probability, 0.05, 0.95)
        prior = np.where(region.mask, np.maximum(known, 0.55), np.minimum(known, 0.45))
    rows, columns, weights = [], [], []
    jumps = [np.diff(image, axis=axis) for axis in range(3)]
    usual = np.mean([float((jump**2).mean()) for jump in jumps])
    for axis, jump in enumerate(jumps):
        spacing = list(reversed(region.spacing_mm))[axis]
        rows.append(np.take(numbers, range(image.shape[axis] - 1), axis).ravel())
        columns.append(np.take(numbers, range(1, image.shape[axis]), axis).ravel())
        weights.append((np.exp(-(jump**2) / (2 * usual)) / spacing**2 + 1e-4).ravel())
    row, column, weight = map(np.concatenate, (rows, columns, weights))
    pull = np.full(size, 0.02)
    pull[(inside | outside).ravel()] = 1e3
    target = np.where(inside, 1.0, np.where(outside, 0.0, prior)).ravel()
    matrix = sparse.coo_matrix((-weight, (row, column)), (size, size))
    matrix = (matrix + matrix.T).tocsr()
    diagonal = pull - np.asarray(matrix.sum(1)).ravel()
    matrix = matrix + sparse.diags(diagonal)
    jacobi = sparse.diags(1 / diagonal)
    # what the strokes change, on top of what there would be without them
    free = np.where((inside | outside).ravel(), 0.02, pull)
    still = matrix + sparse.diags(free - pull)
    with_strokes = linalg.cg(matrix, pull * target, x0=target, rtol=1e-4, M=jacobi)[0]
    without = linalg.cg(still, free * prior.ravel(), x0=prior.ravel(), rtol=1e-4)[0]
    changed = (prior.ravel() + with_strokes - without).reshape(image.shape)
    return ((changed > 0.5) | inside) & ~outside


WAYS: dict[str, Way] = {
    "strokes alone": strokes_alone,
    "geodesic, image alone": without_probabilities,
    "geodesic, image and AI": corrected,
    "random walker with priors": random_walker,
}


@dataclass
class Figures:
    """Of one way: Dice after each number of strokes, for each structure; seconds and voxels of each update."""

    dice: list[list[float]]
    seconds: list[float]
    megavoxels: list[float]


def correct_structure(case: Case, value: int, way: Way, reach_mm: float, figures: Figures) -> None:
    """Up to five strokes for one structure; each is of an error that the others left."""
    reference, mask = case.reference == value, case.labelmap == value
    probability = case.candidates.probability_of(value)
    strokes = {True: np.zeros_like(mask), False: np.zeros_like(mask)}
    dice = [dice_of(mask, reference)]
    for _ in range(STROKES[-1]):
        error = largest_error(mask != reference)
        if error is not None:
            missing = bool(reference[error].any())
            stroke = stroke_in(error & (reference == missing), case.spacing_mm)
            strokes[missing] |= stroke
            strokes[not missing] &= ~stroke
            box = box_around(stroke, case.spacing_mm, reach_mm)
            assert box is not None
            region = Region(case.image[box], mask[box], case.spacing_mm, probability[box])
            started = time.process_time()
            new = way(region, strokes[True][box], strokes[False][box], reach_mm)
            figures.seconds.append(time.process_time() - started)
            figures.megavoxels.append(new.size / 1e6)
            mask = mask.copy()
            mask[box] = new
        dice.append(dice_of(mask, reference))
    figures.dice.append(dice)


def dice_of(mask: Mask, reference: Mask) -> float:
    return 2 * int((mask & reference).sum()) / (int(mask.sum()) + int(reference.sum()))


def structures(case: Case) -> Iterator[int]:
    """Those that both have and that have an error worth a stroke."""
    for value in np.unique(case.labelmap):
        found, wanted = case.labelmap == value, case.reference == value
        if value and wanted.any() and largest_error(found != wanted) is not None:
            yield int(value)


def measure(cases: Iterator[Case], ways: Sequence[str], reach_mm: float) -> dict[str, Figures]:
    found = {name: Figures([], [], []) for name in ways}
    for case in cases:
        for value in structures(case):
            for name in ways:
                correct_structure(case, value, WAYS[name], reach_mm, found[name])
    return found


def markdown(found: dict[str, Figures]) -> str:
    head = " | ".join(f"after {count}" for count in STROKES)
    lines = [f"| way | structures | before | {head} | s per million voxels |", "|---" * 7 + "|"]
    for name, figures in found.items():
        dice = np.array(figures.dice)
        after = " | ".join(f"{dice[:, count].mean():.4f}" for count in STROKES)
        speed = statistics.median(
            seconds / size
            for seconds, size in zip(figures.seconds, figures.megavoxels, strict=True)
        )
        lines.append(f"| {name} | {len(dice)} | {dice[:, 0].mean():.4f} | {after} | {speed:.2f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="brain", help="id or folder of the model")
    parser.add_argument(
        "--hippocampus",
        type=Path,
        metavar="SPLITS",
        help="Task04 in place of MALC: splits_final.json of the nnU-Net that --model names",
    )
    parser.add_argument("--cases", type=int, default=2, help="how many scans")
    parser.add_argument("--reach", type=float, default=REACH_MM, help="of a stroke, in mm")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="to compare")
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    arguments = parser.parse_args(argv)
    if arguments.hippocampus is None:
        cases = malc_cases(arguments.cases, arguments.model)
    else:
        cases = hippocampus_cases(arguments.cases, arguments.model, arguments.hippocampus)
    text = markdown(measure(cases, arguments.ways, arguments.reach))
    print(text)
    if arguments.markdown is not None:
        arguments.markdown.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("correction", main))
