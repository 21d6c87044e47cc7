"""The hippocampus example: its table beside the nnU-Net paper's, and the model that is bundled of it.

    medsegai best DATASET --model RESULTS -o cv
    python Testing/bench/hippocampus.py table cv RESULTS
    python Testing/bench/hippocampus.py bundle cv RESULTS DATASET hippocampus

`table` prints what the cross-validation found. `bundle` writes a model folder of one fold of the configuration
for volumes, its weights as float16, and evaluates that very model on the cases which its training held out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from medsegai.engine import segment
from medsegai.errors import MedSegAIError
from medsegai.evaluation import evaluate
from medsegai.families.nnunet import convert
from medsegai.io import read_labelmap
from medsegai.labels import Label, Terminology
from medsegai.models.card import CARD_NAME, MemberCard, ModelCard, file_sha256, load_card
from medsegai.models.catalogue import find_card
from medsegai.request import SegmentationRequest

PAPER = {"2d": (0.885, 0.867), "3d_fullres": (0.899, 0.882)}
"""Dice of the anterior and posterior part: nnU-Net, 5-fold cross-validation on the 260 training cases."""

CONFIGURATION, FOLD = "3d_fullres", "0"
PART, HIPPOCAMPUS = (
    ("SCT", "123037004", "Anatomical Structure"),
    ("SCT", "5366008", "Hippocampus"),
)
ANTERIOR, POSTERIOR = (
    Terminology(PART, HIPPOCAMPUS, ("SCT", code, meaning))
    for code, meaning in (("255549009", "Anterior"), ("255551008", "Posterior"))
)
LABELS = (
    Label(1, "Anterior hippocampus", (220, 216, 20), ANTERIOR),
    Label(2, "Posterior hippocampus", (240, 140, 40), POSTERIOR),
)
DESCRIPTION = (
    "Anterior and posterior part of one hippocampus in a T1 MR crop around it (about 35x51x35 mm, 1 mm voxels): "
    "nnU-Net, one fold of 3d_fullres. Crop a scan of the head to one hippocampus first."
)
INTENDED_USE = (
    "Research and education. Not a medical device; not for diagnosis or treatment. Trained on crops of one "
    "hippocampus of adults, healthy or with a psychotic disorder."
)
ORIGIN = (
    "Trained by the MedSegAI contributors with nnU-Net v2 on 200 of the 260 labelled cases of the Medical "
    "Segmentation Decathlon, Task04 Hippocampus (Vanderbilt University Medical Center), CC-BY-SA 4.0."
)
CITATION = (
    "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13 (2022) 4128. Isensee et al., "
    "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, Nature Methods 18 "
    "(2021) 203-211."
)


def table(cv: Path, results: Path) -> str:
    """Markdown: each candidate of the cross-validation, and the paper's figures where it has them."""
    figures = json.loads((cv / "figures.json").read_text())
    lines = ["| | anterior | posterior | mean | nnU-Net paper |", "| --- | --- | --- | --- | --- |"]
    for name, item in figures.items():
        parts = [f"{dice:.3f}" for dice in item["dice"].values()]
        paper = " / ".join(f"{dice:.3f}" for dice in PAPER.get(name, ())) or "–"
        lines.append(f"| {name} | {' | '.join(parts)} | {item['mean_dice']:.3f} | {paper} |")
    lengths = (f"{name} {_training(results, name)}" for name in PAPER)
    lines += ["", f"{_cases(cv)} cases. Trained for: {'; '.join(lengths)}."]
    return "\n".join(lines)


def bundle(cv: Path, results: Path, dataset: Path, destination: Path) -> ModelCard:
    """Write the model folder, and into its card what it is worth."""
    card = find_card(str(results))
    member = card.member(f"{CONFIGURATION}/fold_{FOLD}")
    card = convert(dataclasses.replace(card, members=(member,)), destination)
    members = (_halved(card, card.members[0]),)
    names = {label.value: label.name for label in card.labels}
    card = dataclasses.replace(
        card,
        id="hippocampus",
        name="Hippocampus (nnU-Net)",
        version="0.1.0",
        labels=LABELS,
        members=members,
        description=DESCRIPTION,
        intended_use=INTENDED_USE,
        licence="CC-BY-SA 4.0, as is the dataset that it was trained on",
        origin=f"{ORIGIN} {_training(results, CONFIGURATION)}; fold {FOLD} of 5.",
        citation=CITATION,
    )
    _write(card)
    figures = json.loads((cv / "figures.json").read_text())[CONFIGURATION]
    measured, memory = held_out(destination, dataset, _folds(cv)[FOLD])
    performance = {
        f"held-out cases of fold {FOLD}": measured,
        f"all {_cases(cv)} cases, each by the fold that held it out": {
            "mean_dice": figures["mean_dice"],
            "dice": {names_of(names, name): dice for name, dice in figures["dice"].items()},
        },
    }
    card = dataclasses.replace(card, performance=performance, memory_mb=memory)
    _write(card)
    return load_card(destination)


def names_of(names: Mapping[int, str], trained: str) -> str:
    """The bundled name of a structure that has another one in the training data."""
    values = {name: value for value, name in names.items()}
    return next(label.name for label in LABELS if label.value == values[trained])


def held_out(model: Path, dataset: Path, cases: Sequence[str]) -> tuple[dict[str, Any], float]:
    """Mean Dice of the bundled model on these cases, as users run it, and its peak memory in MB."""
    found: dict[str, list[float]] = {label.name: [] for label in LABELS}
    memory = 0.0
    for case in cases:
        image = dataset / "imagesTr" / f"{case}_0000.nii.gz"
        result = segment(SegmentationRequest((image,), (str(model),), device="cpu"))
        reference = read_labelmap(dataset / "labelsTr" / f"{case}.nii.gz")
        for figures in evaluate(result.labelmap, reference[0], LABELS):
            found[figures.label.name].append(figures.dice)
        memory = result.peak_memory_mb
    dice = {name: round(statistics.fmean(values), 4) for name, values in found.items()}
    mean = round(statistics.fmean(dice.values()), 4)
    return {"cases": len(cases), "mean_dice": mean, "dice": dice}, round(memory, -1)


def _halved(card: ModelCard, member: MemberCard) -> MemberCard:
    """Half the size; what that changes is in the figures of the card."""
    path = card.weights_path(member)
    state = load_file(path)
    save_file({name: values.half() for name, values in state.items()}, path)
    path.chmod(0o644)
    return dataclasses.replace(member, sha256=file_sha256(path))


def _write(card: ModelCard) -> None:
    text = json.dumps(card.to_dict(), indent=1, ensure_ascii=False)
    (card.folder / CARD_NAME).write_text(text + "\n", encoding="utf-8")


def _folds(cv: Path) -> dict[str, list[str]]:
    folds: dict[str, list[str]] = json.loads((cv / "crossval.json").read_text())["folds"]
    return folds


def _cases(cv: Path) -> int:
    return sum(len(cases) for cases in _folds(cv).values())


def _training(results: Path, configuration: str) -> str:
    """How long each fold was trained, as nnU-Net itself wrote it down."""
    lengths = set()
    for path in results.glob(f"*__{configuration}/fold_*/debug.json"):
        settings = json.loads(path.read_text())
        epochs, batches = settings["num_epochs"], settings["num_iterations_per_epoch"]
        lengths.add(f"{epochs} epochs of {batches} batches of {settings['batch_size']} patches")
    return ", or ".join(sorted(lengths))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    actions = parser.add_subparsers(required=True, dest="action")
    tabled = actions.add_parser("table")
    bundled = actions.add_parser("bundle")
    for action in (tabled, bundled):
        action.add_argument("cv", type=Path, help="output of medsegai best")
        action.add_argument("results", type=Path, help="dataset folder of medsegai train nnunet")
    bundled.add_argument("dataset", type=Path, help="raw dataset")
    bundled.add_argument("destination", type=Path, help="new model folder")
    arguments = parser.parse_args(argv)
    try:
        if arguments.action == "table":
            print(table(arguments.cv, arguments.results))
        else:
            card = bundle(arguments.cv, arguments.results, arguments.dataset, arguments.destination)
            print(json.dumps(card.performance, indent=1))
    except MedSegAIError as error:
        print(f"hippocampus: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("hippocampus", main))
