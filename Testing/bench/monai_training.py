"""Losses and figures of our own beside those of MONAI: processor time of both in turn, on the same made labels.

Where ours stays though MONAI has the same, a line of docs/developers.md gives the ratio that this prints.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric, compute_average_surface_distance, compute_hausdorff_distance
from monai.transforms import Rand3DElastic

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "MedSegAI"), str(ROOT / "Testing" / "engine")]

from medsegai.evaluation.measures import surface_figures  # noqa: E402
from medsegai.training.loss import LossConfig, SegmentationLoss  # noqa: E402
from medsegai.training.synthesis import (  # noqa: E402
    DeformationConfig,
    Draw,
    Origin,
    SpatialGrid,
    random_coordinates,
    sample_nearest,
)
from medsegai.training.validation import DiceCounter  # noqa: E402
from monai_bundles import smooth_image  # noqa: E402

ROUNDS = 5
CLASSES = 33
SHAPE = (64, 64, 64)


def seconds(work: Callable[[], object]) -> float:
    """Median processor time of one call."""
    work()
    took = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        work()
        took.append(time.process_time() - begun)
    return statistics.median(took)


def losses() -> tuple[float, float, str]:
    """Forward and backward of Dice with cross-entropy, weighted alike; ours adds weights of boundaries."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(1, CLASSES, *SHAPE, generator=random)
    classes = torch.randint(0, CLASSES, (1, *SHAPE), generator=random)
    touches = torch.zeros(1, *SHAPE, dtype=torch.bool)
    ours = SegmentationLoss(np.ones(CLASSES, np.float32), LossConfig())
    theirs = DiceCELoss(to_onehot_y=True, softmax=True)

    def step(loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
        given = logits.clone().requires_grad_()
        loss(given).backward()

    own = seconds(lambda: step(lambda given: ours(given, classes, touches)[0]))
    other = seconds(lambda: step(lambda given: theirs(given, classes[:, None])))
    return own, other, "weights of boundary voxels, classes that a patch lacks left out"


def distances() -> tuple[float, float, str]:
    """95 % Hausdorff and average surface distance of one structure."""
    first, second = (smooth_image((96, 96, 96), seed=seed) > 80 for seed in (1, 1))
    second = np.roll(second, 2, axis=0)
    pair = [torch.from_numpy(mask.astype(np.float32))[None, None] for mask in (first, second)]

    def theirs() -> None:
        compute_hausdorff_distance(*pair, percentile=95, spacing=(1.0, 1.0, 1.0))
        compute_average_surface_distance(*pair, symmetric=True, spacing=(1.0, 1.0, 1.0))

    own = seconds(lambda: surface_figures(first, second, (1.0, 1.0, 1.0)))
    return own, seconds(theirs), "the same numbers; k-d trees in place of distance maps"


def counting() -> tuple[float, float, str]:
    """Dice of all classes of a volume."""
    random = np.random.default_rng(0)
    truth = torch.from_numpy(random.integers(0, CLASSES, SHAPE))
    found = torch.where(torch.rand(SHAPE) < 0.8, truth, 0)
    metric = DiceMetric(include_background=False, num_classes=CLASSES)

    def theirs() -> None:
        metric(found[None, None], truth[None, None])
        metric.aggregate()
        metric.reset()

    def ours() -> None:
        counter = DiceCounter.for_classes(CLASSES)
        counter.add(found.numpy(), truth.numpy())
        counter.mean()

    return seconds(ours), seconds(theirs), "counts over many slices, of the volumes together"


def deformations() -> tuple[float, float, str]:
    """A turned, scaled and bent volume of label codes, cut from a larger one."""
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, CLASSES, (96, 96, 96)))
    grid = SpatialGrid(SHAPE, (1.0, 1.0, 1.0))
    origin = Origin((48.0, 48.0, 48.0), (1.0, 1.0, 1.0))
    draw = Draw(torch.Generator().manual_seed(0))
    config = DeformationConfig()
    bend = Rand3DElastic(
        sigma_range=(8, 8),
        magnitude_range=(50, 150),
        prob=1.0,
        spatial_size=SHAPE,
        rotate_range=[0.26] * 3,
        scale_range=[0.15] * 3,
        shear_range=[0.1] * 6,
        translate_range=[20] * 3,
        mode="nearest",
        padding_mode="zeros",
    )
    image = codes[None].float()
    own = seconds(lambda: sample_nearest(codes, random_coordinates(draw, grid, origin, config)[0]))
    return own, seconds(lambda: bend(image)), "lengths in mm, whatever the spacing of the source"


def main() -> None:
    print("| ours | processor time, MONAI / ours | what ours has beside |")
    print("| --- | --- | --- |")
    for name, compare in (
        ("training.loss.SegmentationLoss, DiceCELoss", losses),
        ("evaluation.measures.surface_figures, HD95 and ASSD", distances),
        ("training.validation.DiceCounter, DiceMetric", counting),
        ("training.synthesis.random_coordinates, Rand3DElastic", deformations),
    ):
        own, other, beside = compare()
        print(f"| {name} | {other / own:.1f} | {beside} |", flush=True)


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("monai_training", main))
