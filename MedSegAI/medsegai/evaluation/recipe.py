"""The best candidate of a cross-validation as a model that `medsegai segment` runs."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsegai.errors import OutputError, RequestError
from medsegai.evaluation.crossval import (
    Candidate,
    CrossValidation,
    Figures,
    with_members,
)
from medsegai.evaluation.postprocessing import Decision
from medsegai.io import write_card
from medsegai.models.card import CARD_NAME, MemberCard, ModelCard, file_sha256, load_card
from medsegai.models.refinement import Refinement

MODEL = "model"


def chosen_cards(candidate: Candidate) -> list[ModelCard]:
    """The cards of the candidate's models with the members of all folds; weights are named by their full paths."""
    by_model: dict[int, list[tuple[ModelCard, MemberCard]]] = {}
    for part in candidate.parts:
        for fold, (card, members) in part.folds.items():
            for member in members:
                named = _with_fold(card, member, fold)
                by_model.setdefault(part.model, []).append((card, named))
    return [_joined_card(found) for found in by_model.values()]


def _with_fold(card: ModelCard, member: MemberCard, fold: str) -> MemberCard:
    """The member with its fold in its name, if each fold is a separate model."""
    path = str(card.weights_path(member).resolve())
    name = member.name if not fold or "/" in member.name else f"{member.name}/fold_{fold}"
    return dataclasses.replace(member, name=name, weights=path, weight=member.weight or 1.0)


def _joined_card(found: Sequence[tuple[ModelCard, MemberCard]]) -> ModelCard:
    """Join members, which may come from several cards (one for each fold), in one card."""
    card = found[0][0]
    return with_members(card, [member for _, member in found])


def write_recipe(
    validation: CrossValidation,
    candidate: Candidate,
    figures: Sequence[Figures],
    decision: Decision,
    destination: Path,
) -> list[Path]:
    """Write the candidate as model folders at `destination`; older ones are replaced when the new are complete.

    Args:
        validation: the cross-validation that was compared.
        candidate: the best candidate.
        figures: the figures of all candidates.
        decision: the postprocessing that helps.

    Returns:
        The folders, one for each model of the candidate; `medsegai segment --model` takes all of them.

    Raises:
        RequestError: the postprocessing joins structures that no single model has.
        OutputError: `destination` cannot be written.
    """
    cards = chosen_cards(candidate)
    refinements = _refinements(decision, cards)
    performance = cross_validated(validation, figures, decision)
    chosen = f"Chosen by cross-validation: {candidate.name}."
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".best-", dir=destination.parent) as staging:
            staged = Path(staging) / MODEL
            for number, card in enumerate(cards):
                finished = dataclasses.replace(
                    card,
                    description=f"{card.description} {chosen}".strip(),
                    suggested_refinements=refinements[number],
                    performance={**card.performance, "cross-validation": performance},
                )
                _write_model(finished, staged / str(number) if len(cards) > 1 else staged)
            if destination.exists():
                shutil.rmtree(destination)
            staged.rename(destination)
    except OSError as error:
        raise OutputError(
            f"{destination} cannot be written: {error}. Free space or choose another folder."
        ) from error
    return sorted(path.parent for path in destination.rglob(CARD_NAME))


def _refinements(decision: Decision, cards: Sequence[ModelCard]) -> list[tuple[Refinement, ...]]:
    """The refinements that each card suggests; a group is named by the first card that has all of its labels."""
    groups: list[list[list[int]]] = [[] for _ in cards]
    for group in decision.groups:
        for card, suggested in zip(cards, groups, strict=True):
            values = _values_in(card, group, decision)
            if len(values) == len(group):
                suggested.append(values)
                break
        else:
            raise RequestError(
                f"Keeping the largest part of the labels {', '.join(map(str, group))} together helps, but no "
                "model has all of them, so no card can say so. Compare the models one by one."
            )
    return [
        (Refinement("largest_component", {"labels": found}),) if found else () for found in groups
    ]


def _values_in(card: ModelCard, group: Sequence[int], decision: Decision) -> list[int]:
    """The label values of a card for a group of structures, as far as it has them."""
    task = decision.figures.task
    own = {label.name.casefold(): label.value for label in card.labels}
    if task.regions:
        return [value for value in group if value in own.values()]
    names = {item.values: item.name.casefold() for item in task.structures}
    known = [own.get(names[(value,)]) for value in group]
    return [value for value in known if value is not None]


def _write_model(card: ModelCard, folder: Path) -> None:
    """Write the card and its weights, as safetensors, into the folder."""
    if all(str(member.weights).endswith(".safetensors") for member in card.members):
        folder.mkdir(parents=True)
        members = []
        for member in card.members:
            name = f"{member.name.replace('/', '-')}.safetensors"
            shutil.copyfile(str(member.weights), folder / name)
            sha256 = file_sha256(folder / name)
            members.append(dataclasses.replace(member, weights=name, sha256=sha256))
        write_card(dataclasses.replace(card, members=tuple(members)), folder)
    else:
        from medsegai.families.nnunet import convert  # loads torch

        convert(card, folder)
    load_card(folder).verify()


def cross_validated(
    validation: CrossValidation, figures: Sequence[Figures], decision: Decision
) -> dict[str, Any]:
    """The comparison for the card: figures with postprocessing, and those of all candidates without it."""
    return {
        "cases": sum(len(split) for split in validation.folds.values()),
        "folds": len(validation.folds),
        **decision.figures.to_dict(),
        "candidates": {item.name: item.to_dict()["mean_dice"] for item in figures},
    }
