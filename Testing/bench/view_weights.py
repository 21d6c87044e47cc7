"""Which weights of the views fuse best on held-out label maps with synthetic images, never on evaluation scans.

    python Testing/bench/view_weights.py --data ../shared/data/brain-label-maps --volumes 6

The weights in a QuickNAT card are the best of this table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from medsegai.card import ModelCard
from medsegai.catalogue import find_card
from medsegai.fusion import Accumulator, side_aware_first
from medsegai.networks.quicknat import QuickNAT
from medsegai.probabilities import Block
from medsegai.training.config import TrainingConfig, load_config
from medsegai.training.data import VALIDATION, Sample, case_source
from medsegai.training.quicknat import network_config
from medsegai.training.sampling import ViewTask, cut_batch, view_task
from medsegai.training.validation import DiceCounter
from medsegai.volume import Geometry

CPU = torch.device("cpu")
SLICES = 8
SCHEMES = {
    "axial alone": (1.0, 0.0, 0.0),
    "coronal alone": (0.0, 1.0, 0.0),
    "0.4 / 0.4 / 0.2": (0.4, 0.4, 0.2),
    "equal": (1 / 3, 1 / 3, 1 / 3),
    "0.3 / 0.4 / 0.3": (0.3, 0.4, 0.3),
    "0.2 / 0.4 / 0.4": (0.2, 0.4, 0.4),
    "0.1 / 0.5 / 0.4": (0.1, 0.5, 0.4),
    "0.2 / 0.3 / 0.5": (0.2, 0.3, 0.5),
}
"""Weights of axial, coronal and sagittal. The sagittal view alone cannot tell left from right."""


def main() -> None:
    arguments = _parser().parse_args()
    card = find_card(arguments.model)
    config = load_config(card.folder / "training.toml")
    config = replace(config, data=replace(config.data, root=str(arguments.data)))
    source = case_source(config, card, CPU)
    counters = {name: DiceCounter.for_classes(len(card.labels) + 1) for name in SCHEMES}
    networks = [_network(card, config, view) for view in config.members]
    for number in range(arguments.volumes):
        sample = source.sample(VALIDATION, number)
        answers = [_answer(sample, task, network) for task, network in networks]
        for name, weights in SCHEMES.items():
            found = _fused(card, config, answers, weights)
            counters[name].add(found.numpy().astype(np.int64), sample.targets.astype(np.int64))
    print("| axial / coronal / sagittal | mean Dice |\n| --- | --- |")
    for name, counter in counters.items():
        print(f"| {name} | {counter.mean():.4f} |")


def _network(card: ModelCard, config: TrainingConfig, view: str) -> tuple[ViewTask, QuickNAT]:
    member = card.member(view)
    task = view_task(member, view, card.settings["slices"], card.label_values)
    network = QuickNAT(network_config(dict(card.settings), task))
    weights = load_file(card.weights_path(member))
    network.load_state_dict({name: values.float() for name, values in weights.items()})
    return task, network.eval()


@torch.inference_mode()
def _answer(sample: Sample, task: ViewTask, network: QuickNAT) -> Tensor:
    """Probabilities (channel, k, j, i) of one view on the whole volume, float16."""
    slices = len(task.view.stack(sample.targets))
    parts = [
        network(cut_batch(sample, task, np.arange(first, min(first + SLICES, slices))).slices)
        .softmax(1)
        .half()
        for first in range(0, slices, SLICES)
    ]
    stacked = torch.cat(parts).movedim(1, 0)
    return stacked.permute(0, *(1 + axis for axis in task.view.back))


def _fused(
    card: ModelCard, config: TrainingConfig, answers: list[Tensor], weights: tuple[float, ...]
) -> Tensor:
    """Class indices (k, j, i), fused as the engine does."""
    grid = Geometry.from_spacing(answers[0].shape[1:], card.spacing_mm)
    total = Accumulator((0, *card.label_values), grid, CPU)
    for member, weight, answer in _in_order(card, config, answers, weights):
        if weight:
            total.begin_member(card.member(member).classes, weight)
            total.add(Block((0, 0, 0), answer))
    return total.result().native_argmax


def _in_order(
    card: ModelCard, config: TrainingConfig, answers: list[Tensor], weights: tuple[float, ...]
) -> Iterator[tuple[str, float, Tensor]]:
    by_view = dict(zip(config.members, zip(weights, answers, strict=True), strict=True))
    for member in side_aware_first([card.member(view) for view in config.members]):
        yield member.name, *by_view[member.name]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="brain", help="a QuickNAT trained here (default: brain)")
    parser.add_argument("--data", type=Path, required=True, help="the folder of label maps")
    parser.add_argument("--volumes", type=int, default=6, help="held-out volumes (default: 6)")
    return parser


if __name__ == "__main__":
    main()
