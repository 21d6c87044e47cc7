"""The bundled model of nuclei, or another, on the tiles of the slide that its fold 0 held out.

As `medsegai segment` runs it, with mirrored images and without: mean Dice, AJI, PQ, F1 and numbers of nuclei.

    python Testing/bench/nuclei.py nuclei --data ../shared/data/nuclei
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from medsegai.engine import segment
from medsegai.evaluation.instances import instance_scores
from medsegai.io import read_labelmap
from medsegai.measurements.instances import SMALLEST, separated
from medsegai.models.catalogue import BUNDLED_MODELS
from medsegai.request import SegmentationRequest
from medsegai.training.unet2d.config import load_config
from medsegai.training.unet2d.data import folds_of, read_cases
from medsegai.training.unet2d.fold import overlap

SCORES = ("dice", "aji", "pq", "f1", "found", "expected")


def scores_of(model: str, root: Path, case: str, mirroring: bool) -> list[float]:
    """The scores of one tile, in the order of `SCORES`."""
    image, truth = root / "images" / f"{case}.png", root / "instances" / f"{case}.png"
    request = SegmentationRequest((image,), (model,), device="cpu", mirroring=mirroring)
    plane = segment(request).labelmap.voxels[0]
    objects = read_labelmap(truth)[0].voxels[0].astype(np.int32)
    found = vars(instance_scores(separated(plane == 1, plane == 2, SMALLEST), objects))
    found |= overlap(plane > 0, objects > 0)
    return [float(found[name]) for name in SCORES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="ids or folders of models")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/nuclei"))
    arguments = parser.parse_args()
    root = arguments.data.resolve()
    config = load_config(BUNDLED_MODELS / "nuclei" / "training.toml", {"data": {"root": str(root)}})
    held_out = folds_of(read_cases(config), config.folds, config.seed)[0]
    for model in arguments.models:
        for mirroring in (True, False):
            rows = [scores_of(model, root, case, mirroring) for case in held_out]
            means = zip(SCORES, np.nanmean(rows, 0), strict=True)
            how = "mirrored" if mirroring else "not mirrored"
            print(f"{model}, {how}: " + ", ".join(f"{n} {v:.4f}" for n, v in means), flush=True)


if __name__ == "__main__":
    main()
