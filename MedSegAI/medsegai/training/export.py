"""Writes the best weights of a run as a model folder that `medsegai` can use."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsegai.errors import RequestError
from medsegai.io import write_card
from medsegai.models.card import ModelCard, file_sha256
from medsegai.training.checkpoint import (
    LOG,
    best_weights_name,
    compact,
    load_weights,
    read_log,
    save_weights,
)
from medsegai.training.config import TrainingConfig
from medsegai.training.curves import Entry, draw_curves

MODEL_FOLDER = "model"
CURVES = "curves.png"


def best_validation(entries: Sequence[Entry], view: str) -> Entry | None:
    """Return the log entry of a view's best validation; of equal ones, the first."""
    validations = [e for e in entries if e.get("event") == "validate" and e.get("view") == view]
    finite = [entry for entry in validations if entry["dice"] == entry["dice"]]
    return max(finite, key=lambda entry: float(entry["dice"]), default=None)


def validation_figures(
    card: ModelCard, views: Sequence[str], entries: Sequence[Entry]
) -> dict[str, Any]:
    """Return each view's best validation for the card: step, mean Dice, and Dice by structure."""
    names = {label.value: label.name for label in card.labels}
    figures: dict[str, Any] = {}
    for view in views:
        best = best_validation(entries, view)
        if best is None:
            continue
        classes = card.member(view).classes
        named = {
            " / ".join(names[value] for value in classes[int(number)]): dice
            for number, dice in best["per_class"].items()
        }
        figures[view] = {"step": best["step"], "mean_dice": round(best["dice"], 4), "dice": named}
    return figures


def export_model(
    card: ModelCard, config: TrainingConfig, run: Path, weights: Mapping[str, Sequence[float]]
) -> Path:
    """Write ``run``/model: card with hashes and figures, weights in half precision, training file, log, curves.

    `weights` has the class weights of each member in the loss, which inference undoes.

    Raises:
        RequestError: a member was never validated, so its best network is unknown.
    """
    folder = run / MODEL_FOLDER
    folder.mkdir(exist_ok=True)
    for view in config.members:
        _save_best(run, view, folder)
    copy_records(config, run, folder)
    figures = validation_figures(card, config.members, draw_log(run))
    weighted = _with_class_weights(card, weights)
    performance = {**card.performance, "validation on synthetic images": figures}
    write_card(_finished(weighted, folder, config.members, performance), folder)
    return folder


def _save_best(run: Path, view: str, folder: Path) -> None:
    source = run / best_weights_name(view)
    if not source.is_file():
        raise RequestError(
            f"{source} does not exist. Train member {view!r} up to its first validation."
        )
    save_weights(folder / f"{view}.safetensors", compact(load_weights(source)))


def copy_records(config: TrainingConfig, run: Path, folder: Path) -> None:
    """Copy the training file and the log of a run into the folder of its model."""
    shutil.copyfile(config.source, folder / "training.toml")
    shutil.copyfile(run / LOG, folder / "training-log.jsonl")


def draw_log(run: Path) -> Sequence[Entry]:
    """Draw the curves of a run, and return the entries of its log."""
    entries = read_log(run / LOG)
    draw_curves(entries, run / CURVES)
    return entries


def _with_class_weights(card: ModelCard, weights: Mapping[str, Sequence[float]]) -> ModelCard:
    """Return the card with the class weights of the loss in the settings of each member, to four digits."""
    members = []
    for member in card.members:
        settings = dict(member.settings)
        if member.name in weights:
            settings["class_weights"] = [float(f"{value:.4g}") for value in weights[member.name]]
        members.append(dataclasses.replace(member, settings=settings))
    return dataclasses.replace(card, members=tuple(members))


def _finished(
    card: ModelCard, folder: Path, views: Sequence[str], performance: Mapping[str, Any]
) -> ModelCard:
    """Return the card of the weights in ``folder``."""
    members = []
    for view in views:
        name = f"{view}.safetensors"
        sha256 = file_sha256(folder / name)
        members.append(dataclasses.replace(card.member(view), weights=name, sha256=sha256))
    judge = card.contrast_member if card.contrast_member in views else ""
    return dataclasses.replace(
        card, members=tuple(members), contrast_member=judge, performance=performance
    )
