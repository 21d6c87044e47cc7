"""Made corrected cases of one kind of scan that a brain model segments badly, to fine-tune it with.

    python Testing/bench/corrected_heads.py ../shared/data/brain-label-maps T2 --volumes 8
    python Testing/bench/corrected_heads.py ../shared/data/brain-label-maps T2_test --volumes 4 --held-out
    medsegai train unet3d BRAIN/fast-training.toml --from brain --data T2 --maps BRAIN_LABEL_MAPS -o tuned
    python Testing/bench/corrected_heads.py score T2_test --model brain tuned/model --members fast

The scans are T2-like with thick slices: one protocol of one scanner. Heads to learn from are made of label maps
that the training of the model learned from, those to test with (`--held-out`) of maps that it held out. They are
kept as the panel of the Slicer extension keeps corrected cases. `score` prints the mean Dice of the raw labels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from calibration import write_dataset

from medsegai.engine import segment
from medsegai.errors import MedSegAIError
from medsegai.evaluation.folds import dataset_cases
from medsegai.io import read_labelmap
from medsegai.models.card import ModelCard
from medsegai.models.catalogue import find_card
from medsegai.request import SegmentationRequest
from medsegai.training.config import TrainingConfig, load_config
from medsegai.training.data import CaseSource, case_source
from medsegai.training.validation import DiceCounter

T2 = {
    "background": 0.0,
    "cerebral white matter": 0.38,
    "cerebellar white matter": 0.40,
    "cerebral cortex": 0.58,
    "cerebellar cortex": 0.56,
    "ventricles": 1.0,
    "inferior lateral ventricles": 0.95,
    "cerebrospinal fluid": 0.97,
    "thalamus": 0.47,
    "caudate": 0.52,
    "putamen": 0.48,
    "pallidum": 0.33,
    "brain stem": 0.42,
    "hippocampus and amygdala": 0.58,
    "accumbens": 0.53,
    "ventral diencephalon": 0.42,
}
"""Mean of each tissue class, by its name in the training file; others are drawn anew for each head."""

NOT_JUDGED = 24
"""Outer cerebrospinal fluid, which is where the head is not."""


def protocol_source(card: ModelCard, data: Path, voxels: int, held_out: bool) -> CaseSource:
    """Heads of one protocol, of the label maps that training held out or of eight that it learned from."""
    config = load_config(card.folder / "fast-training.toml")
    names = sorted(path.name for path in data.glob(config.data.maps))
    learned = [name for name in names if name not in config.data.validation]
    chosen = config.data.validation if held_out else tuple(learned[:8])
    spatial = replace(
        config.data,
        root=str(data.resolve()),
        crop_voxels=(voxels, voxels, voxels),
        validation=chosen,
    )
    fine = replace(card, spacing_mm=(1.0, 1.0, 1.0))
    return case_source(replace(as_t2(config), data=spatial), fine, torch.device("cpu"))


def as_t2(config: TrainingConfig) -> TrainingConfig:
    """The training file with the appearance of one T2 protocol."""
    tissues = tuple(replace(tissue, t1=T2.get(tissue.name)) for tissue in config.tissues)
    appearance = replace(
        config.appearance,
        t1_share=1.0,
        t1_jitter=0.02,
        coarse_share=1.0,
        coarse_factor=(2.5, 3.0),
        stripped_share=0.0,
        cut_share=0.0,
    )
    return replace(config, tissues=tissues, appearance=appearance)


def mean_dice(model: str, members: Sequence[str], folder: Path) -> float:
    """Mean Dice of the structures over all cases of a dataset, as the networks say it."""
    card = find_card(model)
    values = np.array((0, *card.label_values))
    counter = DiceCounter.for_classes(len(values))
    for case in dataset_cases(folder):
        request = SegmentationRequest(
            case.images, (model,), members=tuple(members), refine=False, anyway=True
        )
        found = np.searchsorted(values, segment(request).labelmap.voxels)
        counter.add(found, read_labelmap(case.label)[0].voxels.astype(np.int64))
    dice = counter.per_class()
    return float(np.mean([part for place, part in dice.items() if values[place] != NOT_JUDGED]))


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["score"]:
            _score(words[1:])
        else:
            _make(words)
    except MedSegAIError as error:
        print(f"corrected_heads: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _make(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the label maps of the training")
    parser.add_argument("destination", type=Path, help="dataset folder to write")
    parser.add_argument("--model", default="brain", help="(default: brain)")
    parser.add_argument("--volumes", type=int, default=8)
    parser.add_argument("--voxels", type=int, default=192, help="along each axis, 1 mm each")
    parser.add_argument("--held-out", action="store_true", help="of the maps that were held out")
    arguments = parser.parse_args(words)
    card = find_card(arguments.model)
    source = protocol_source(card, arguments.data, arguments.voxels, arguments.held_out)
    write_dataset(card, source, arguments.volumes, arguments.destination)


def _score(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Mean Dice of models on a dataset.")
    parser.add_argument("folder", type=Path, help="dataset folder")
    parser.add_argument("--model", nargs="+", default=["brain"], help="(default: brain)")
    parser.add_argument("--members", nargs="+", default=(), metavar="NAME", help="only these")
    arguments = parser.parse_args(words)
    print("| model | mean Dice |\n| --- | ---: |")
    for model in arguments.model:
        dice = mean_dice(model, arguments.members, arguments.folder)
        print(f"| {model} | {dice:.3f} |", flush=True)


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("corrected_heads", main))
