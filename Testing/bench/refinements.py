"""What refinements are worth, and what they take.

    python Testing/bench/refinements.py speed
    python Testing/bench/refinements.py hippocampus --model MODEL --crossval crossval.json --cases 10
    python Testing/bench/refinements.py malc --cases 2

`speed` compares each refinement with the straightforward call of SimpleITK or SciPy on the whole volume: processor
time of one thread, and how many voxels of the results differ. The others compare predictions with manual labels
before and after each refinement. The MALC scans are for evaluation only: nothing may be tuned to them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from malc import CSF, LABELS, MAPPING, SCAN
from numpy.typing import NDArray
from scipy import ndimage

from medsegai.engine import segment
from medsegai.errors import MedSegAIError
from medsegai.evaluation import evaluate, read_mapping
from medsegai.io import read_labelmap, read_volume
from medsegai.labels import Label
from medsegai.refinements import Draft, apply_refinement, parse
from medsegai.request import Candidates, SegmentationRequest
from medsegai.volume import Geometry, Volume

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SIZE, STRUCTURES, REACH, STRAYS = 256, 32, 40, 500
ROWS = (
    "islands",
    "islands:keep=1",
    "holes",
    "smoothing",
    "smoothing:sigma_mm=1",
    "snap",
    "snap:prior=0.3",
    "snap:contrast=3",
    "level_set",
    "level_set:doubt=0.02",
    "level_set:method=threshold",
    "level_set:method=laplacian",
)
FIGURES = ("dice", "hd95_mm", "assd_mm")


# Speed


def made_head() -> Draft:
    """256³ voxels in 32 structures of a sixth of the volume together, with speckles, cavities and uncertainty."""
    rng = np.random.default_rng(0)
    seeds = rng.uniform(0.25, 0.75, (STRUCTURES, 3)) * SIZE
    values = np.zeros((SIZE,) * 3, np.uint8)
    near = np.full(values.shape, REACH**2, np.float32)
    for value, seed in enumerate(seeds, start=1):
        box = tuple(slice(int(at) - REACH, int(at) + REACH + 1) for at in seed)
        axes = np.ogrid[box]
        apart = sum((axis - np.float32(at)) ** 2 for axis, at in zip(axes, seed, strict=True))
        np.copyto(values[box], np.uint8(value), where=apart < near[box])
        np.minimum(near[box], apart, out=near[box])
    image = ndimage.gaussian_filter(20.0 + 6.0 * values.astype(np.float32), 0.8)
    image += rng.normal(0, 3, values.shape).astype(np.float32)
    for count, shift in (
        (20_000, 6),
        (STRAYS, SIZE // 3),
    ):  # labels from nearby, some from far away
        where = rng.integers(0, SIZE, (3, count))
        there = np.clip(where + rng.integers(-shift, shift + 1, where.shape), 0, SIZE - 1)
        values[tuple(where)] = values[tuple(there)]
    geometry = Geometry.from_spacing(values.shape, (1.0, 1.0, 1.0))
    second = np.roll(values, 1, 2)
    steps = np.full(values.shape, 80, np.uint8) * (second != values)
    candidates = Candidates(values, second, (255 - steps).astype(np.uint8), steps)
    return Draft(Volume(values, geometry), (), Volume(image, geometry), candidates)


def whole_islands(draft: Draft, smallest: int = 50) -> NDArray[Any]:
    """Each structure on the whole volume; what is removed becomes background."""
    image = sitk.GetImageFromArray(draft.labelmap.voxels)
    found = draft.labelmap.voxels.copy()
    for value in np.unique(found)[1:]:
        parts = sitk.ConnectedComponent(image == int(value), True)
        sizes = sitk.GetArrayFromImage(sitk.RelabelComponent(parts, True))
        counts = np.bincount(sizes.ravel())
        small = np.flatnonzero(counts < smallest)
        found[np.isin(sizes, small[small > 1])] = 0
    return found


def whole_smoothing(draft: Draft, sigma: float = 0.7) -> NDArray[Any]:
    """The Gaussian of every indicator on the whole volume, and the largest of them."""
    image = sitk.GetImageFromArray(draft.labelmap.voxels)
    best, found = None, np.zeros_like(draft.labelmap.voxels)
    for value in range(STRUCTURES + 1):
        indicator = sitk.Cast(image == value, sitk.sitkFloat32)
        field = sitk.GetArrayFromImage(sitk.DiscreteGaussian(indicator, sigma**2, 32, 0.001))
        if best is None:
            best = field
        else:
            np.copyto(found, np.uint8(value), where=field > best)
            np.maximum(best, field, out=best)
    return found


def whole_level_set(draft: Draft, value: int = 1) -> NDArray[Any]:
    """The geodesic active contour of one structure on the whole volume, with the same numbers."""
    assert draft.image is not None
    mask = draft.labelmap.voxels == value
    # a thousandth inside of halfway, so that nothing is left to the order in memory
    start = np.where(
        mask,
        0.501 - ndimage.distance_transform_edt(mask),
        ndimage.distance_transform_edt(~mask) - 0.499,
    )
    gradient = ndimage.gaussian_gradient_magnitude(draft.image.voxels, 0.7, mode="nearest") ** 2
    feature = 1 / (1 + gradient / np.median(gradient[np.abs(start) <= 1]))
    contour = sitk.GeodesicActiveContourLevelSetImageFilter()
    contour.SetPropagationScaling(0.0)
    contour.SetCurvatureScaling(0.2)
    contour.SetAdvectionScaling(1.0)
    contour.SetNumberOfIterations(40)
    contour.SetMaximumRMSError(1e-3)
    images = [sitk.GetImageFromArray(array.astype(np.float32)) for array in (start, feature)]
    level = sitk.GetArrayFromImage(contour.Execute(*images))
    free = np.isin(draft.labelmap.voxels, [0, value]) & (np.abs(start) <= 1)
    return np.where(free, level < 0, mask)


def speed() -> str:
    """Markdown: both ways side by side. Of islands the removed voxels are compared, not what becomes of them."""
    draft = made_head()
    voxels = draft.labelmap.voxels
    plain = Draft(draft.labelmap, (), draft.image)
    ours: dict[str, tuple[NDArray[Any], float]] = {}
    for text in ("islands", "smoothing", "smoothing:keep_volume=no", "holes"):
        ours[text] = _timed(text, lambda t=text: apply_refinement(plain, parse(t)).labels)
    single = Draft(draft.labelmap.with_voxels(voxels * (voxels == 1)), (), draft.image)
    ours["level_set"] = _timed(
        "level_set", lambda: apply_refinement(single, parse("level_set")).labels
    )
    ours["snap"] = _timed("snap", lambda: apply_refinement(draft, parse("snap")).labels)
    whole = {
        "islands": whole_islands,
        "smoothing:keep_volume=no": whole_smoothing,
        "level_set": whole_level_set,
    }
    lines = [
        "| refinement | ours, s | whole volume, s | ratio | differing voxels |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for text, (found, taken) in ours.items():
        if text not in whole:
            lines.append(f"| `{text}` | {taken:.1f} | | | |")
            continue
        given = single if text == "level_set" else plain
        other, longer = _timed(f"whole volume, {text}", lambda t=text, g=given: whole[t](g))
        differing = _differing(text, voxels, found, other)
        lines.append(
            f"| `{text}` | {taken:.1f} | {longer:.1f} | {longer / taken:.1f} | {differing} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def _timed(name: str, work: Callable[[], NDArray[Any]]) -> tuple[NDArray[Any], float]:
    result, taken = timed(work)
    print(f"{name}: {taken:.1f} s", file=sys.stderr, flush=True)
    return result, taken


def timed(work: Callable[[], NDArray[Any]]) -> tuple[NDArray[Any], float]:
    """The result, and the processor time that it took on one thread."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def _differing(text: str, before: NDArray[Any], ours: NDArray[Any], other: NDArray[Any]) -> int:
    if text == "islands":
        named = before > 0
        return int(((ours != before) != (other != before))[named].sum())
    return int((ours != other).sum())


# Worth


@dataclass(frozen=True)
class Case:
    """A prediction as it is, and the manual labels of the same scan."""

    draft: Draft
    reference: Volume
    labels: tuple[Label, ...]


def predicted(image: Path, model: str) -> tuple[Draft, tuple[Label, ...]]:
    request = SegmentationRequest((image,), (model,), device="cpu", candidates=True, refine=False)
    result = segment(request)
    draft = Draft(result.labelmap, result.labels, read_volume(image), result.candidates)
    return draft, result.labels


def hippocampus_cases(arguments: argparse.Namespace) -> Iterator[Case]:
    names = json.loads(arguments.crossval.read_text())["folds"][arguments.fold]
    dataset = SHARED / "Dataset004_Hippocampus"
    there = [name for name in names if (dataset / "labelsTr" / f"{name}.nii.gz").exists()]
    for name in there[arguments.skip :][: arguments.cases]:
        draft, labels = predicted(
            dataset / "imagesTr" / f"{name}_0000.nii.gz", str(arguments.model)
        )
        yield Case(draft, read_labelmap(dataset / "labelsTr" / f"{name}.nii.gz")[0], labels)


def malc_cases(arguments: argparse.Namespace) -> Iterator[Case]:
    mapping = read_mapping(MAPPING)
    scans = sorted((SHARED / "malc2012-train").glob(f"*{SCAN}"))
    for path in scans[arguments.skip :][: arguments.cases]:
        draft, labels = predicted(path, str(arguments.model or "brain"))
        manual = path.with_name(path.name.removesuffix(SCAN) + LABELS)
        reference = mapping.apply(read_labelmap(manual)[0])
        chosen = tuple(label for label in labels if label.value != CSF)
        yield Case(draft, reference, chosen)


def worth(cases: Iterable[Case], rows: Sequence[str]) -> str:
    """Markdown: means over cases and structures, before and after each refinement."""
    figures: dict[str, list[list[float]]] = {"as predicted": [], **{text: [] for text in rows}}
    changed: dict[str, list[float]] = {text: [] for text in figures}
    count = 0
    for case in cases:
        count += 1
        for text in figures:
            labels = case.draft.labelmap.voxels
            if text != "as predicted":
                refined = apply_refinement(case.draft, parse(text))
                labels = refined.labels
                changed[text].append(refined.ml)
            figures[text].append(_means(case, case.draft.labelmap.with_voxels(labels)))
        print(f"{count}: {figures['as predicted'][-1]}", file=sys.stderr, flush=True)
    return _table(figures, changed, count)


def _means(case: Case, labelmap: Volume) -> list[float]:
    found = evaluate(labelmap, case.reference, case.labels)
    return [float(np.nanmean([getattr(item, name) for item in found])) for name in FIGURES]


def _table(
    figures: dict[str, list[list[float]]], changed: dict[str, list[float]], count: int
) -> str:
    lines = [
        f"{count} cases; in brackets, in how many of them Dice rose or fell.",
        "",
        "| | Dice | HD95, mm | surface distance, mm | changed, ml |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    before = figures["as predicted"]
    for text, rows in figures.items():
        dice, hd95, assd = (statistics.fmean(column) for column in zip(*rows, strict=True))
        rose = sum(new[0] > old[0] + 1e-6 for new, old in zip(rows, before, strict=True))
        fell = sum(new[0] < old[0] - 1e-6 for new, old in zip(rows, before, strict=True))
        name, tally = (
            ("as predicted", "") if rows is before else (f"`{text}`", f" (+{rose} -{fell})")
        )
        ml = f"{statistics.fmean(changed[text]):.2f}" if changed[text] else ""
        lines.append(f"| {name} | {dice:.4f}{tally} | {hd95:.3f} | {assd:.4f} | {ml} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("speed", "hippocampus", "malc"))
    parser.add_argument("--model", type=Path, help="model folder or id")
    parser.add_argument("--crossval", type=Path, help="crossval.json: which cases were held out")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--skip", type=int, default=0, help="leave out so many cases first")
    parser.add_argument("--refinement", dest="rows", action="append", help="instead of all of them")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    cases = {"hippocampus": hippocampus_cases, "malc": malc_cases}
    try:
        if arguments.what == "speed":
            print(speed())
        else:
            print(worth(cases[arguments.what](arguments), arguments.rows or ROWS))
    except MedSegAIError as error:
        print(f"refinements: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("refinements", main))
