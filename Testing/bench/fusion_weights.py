"""Which weights of members, and which power of class weights, are best on synthetic heads that training held out.

    python Testing/bench/fusion_weights.py ../shared/data/brain-label-maps --model brain --volumes 6

No evaluation scan takes part. Members predict once; what follows is arithmetic on their probabilities on the
native grid. The `weight_power` of each member and, for members of one grid, their `weight` in a card are the best
of these tables; those with several members take the powers of the card.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from calibration import FIRST, held_out_source, to_anterior_inferior_left
from numpy.typing import NDArray
from torch import Tensor

from medsegai.families import Inputs, Part, load_model
from medsegai.inference.fusion import Accumulator, side_aware_first
from medsegai.inference.grid_sampling import Slab
from medsegai.inference.probabilities import Block
from medsegai.models.card import ModelCard
from medsegai.models.catalogue import find_card
from medsegai.networks.backends import Compute, choose_compute
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.training.data import VALIDATION
from medsegai.training.validation import DiceCounter
from medsegai.volume import Volume

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHARES = (0.2, 0.4, 0.6, 0.8, 0.9)
NOT_JUDGED = (24,)
"""Fluid around the brain, which nobody corrects."""


def main() -> None:
    arguments = _parser().parse_args()
    found = find_card(arguments.model)
    powers = {m.name: float(m.settings.get("weight_power", 0.0)) for m in found.members}
    card = _unweighted(found)
    model = load_model(card)
    source = held_out_source(card, arguments.data, arguments.voxels)
    compute = choose_compute()
    tables: dict[str, DiceCounter] = {}
    for number in range(arguments.volumes):
        sample = source.sample(VALIDATION, FIRST + number)
        scan = Volume(sample.image, to_anterior_inferior_left(sample.image.shape))
        request = SegmentationRequest((scan,), (arguments.model,), members=tuple(arguments.members))
        for part in model.parts(Inputs([scan]), scan.geometry, request, compute, Progress()):
            truth = _on_grid(sample.targets, scan, part)
            answers = {
                member.name: _answer(part, number, compute)
                for number, member in enumerate(part.members)
            }
            for name, labels in _combinations(card, part, answers, powers):
                counter = tables.setdefault(name, DiceCounter.for_classes(len(card.labels) + 1))
                counter.add(labels, truth)
    print("| members and power | mean Dice |\n| --- | --- |")
    for name, counter in tables.items():
        dice = {card.label_values[index - 1]: value for index, value in counter.per_class().items()}
        judged = [value for label, value in dice.items() if label not in NOT_JUDGED]
        print(f"| {name} | {np.mean(judged):.4f} |")


def _unweighted(card: ModelCard) -> ModelCard:
    """The card with all powers at 0, so that members say what their networks say."""
    members = [
        replace(member, settings={**member.settings, "weight_power": 0.0})
        for member in card.members
    ]
    return replace(card, members=tuple(members))


def _answer(part: Part, number: int, compute: Compute) -> Tensor:
    """Probabilities of one member on the native grid, float16 (channel, k, j, i)."""
    member = part.members[number]
    total = torch.zeros(len(member.classes), *part.geometry.shape, dtype=torch.float16)
    total[0] = 1.0
    for block in member.predict(compute, lambda part: None):
        where = tuple(
            slice(at, at + size)
            for at, size in zip(block.start, block.values.shape[1:], strict=True)
        )
        total[(slice(None), *where)] = block.values.half()
    return total


def _combinations(
    card: ModelCard, part: Part, answers: Mapping[str, Tensor], powers: Mapping[str, float]
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Names of ways to combine the members, and the class indices (k, j, i) that come out."""
    for name, value in answers.items():
        if all(len(feeds) <= 1 for feeds in card.member(name).classes):
            for power in POWERS:
                divided = {name: _divided(card, name, value, power)}
                yield f"{name}, power {power}", _labels(card, part, divided, {name: 1.0})
    if len(answers) > 1:
        divided = {
            name: _divided(card, name, value, powers.get(name, 0.0))
            for name, value in answers.items()
        }
        for title, weights in _schemes(card, list(answers)).items():
            yield title, _labels(card, part, divided, weights)


def _schemes(card: ModelCard, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Weights as the card has them, and with one member given another share."""
    own = {name: card.member(name).weight for name in names}
    found = {"weights of the card": own}
    for name, share in itertools.product(names, SHARES):
        rest = sum(weight for other, weight in own.items() if other != name)
        scaled = {other: weight * (1.0 - share) / rest for other, weight in own.items()}
        found[f"{name} at {share}"] = scaled | {name: share}
    return found


def _divided(card: ModelCard, name: str, values: Tensor, power: float) -> Tensor:
    weights = torch.tensor(card.member(name).settings["class_weights"]) ** power
    divided = values.float() / weights[:, None, None, None]
    return (divided / divided.sum(0)).half()


def _labels(
    card: ModelCard, part: Part, values: Mapping[str, Tensor], weights: Mapping[str, float]
) -> NDArray[np.int64]:
    total = Accumulator((0, *card.label_values), part.geometry, torch.device("cpu"))
    for member in side_aware_first([card.member(name) for name in values]):
        total.begin_member(member.classes, weights[member.name])
        total.add(Block((0, 0, 0), values[member.name]))
    return (
        total.result()
        .argmax(Slab(part.geometry, 0, part.geometry.shape[0]))
        .numpy()
        .astype(np.int64)
    )


def _on_grid(targets: NDArray[np.uint8], scan: Volume, part: Part) -> NDArray[np.int64]:
    """Targets at the nearest voxels of the part's grid."""
    k, j, i = (axis.ravel() for axis in np.indices(part.geometry.shape))
    points = scan.geometry.ras_to_ijk @ part.geometry.ijk_to_ras @ [i, j, k, np.ones(len(i))]
    index = np.rint(points[:3]).astype(int)[::-1]
    inside = np.all(
        [(at >= 0) & (at < size) for at, size in zip(index, targets.shape, strict=True)], 0
    )
    found = np.zeros(len(k), np.int64)
    found[inside] = targets[tuple(at[inside] for at in index)]
    return found.reshape(part.geometry.shape)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the label maps of the training")
    parser.add_argument("--model", default="brain", help="a model trained here (default: brain)")
    parser.add_argument("--members", nargs="+", default=(), metavar="NAME", help="only these")
    parser.add_argument("--volumes", type=int, default=6, help="held-out volumes (default: 6)")
    parser.add_argument("--voxels", type=int, default=208, help="along each axis, 1 mm each")
    return parser


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("fusion_weights", main))
