"""`medsegai models list|show|verify|import|remove`: the installed models."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsegai.commands.console import table
from medsegai.commands.fetch import add_fetch_parsers
from medsegai.commands.parsing import add_switch, help_alone
from medsegai.errors import ModelError, OutputError
from medsegai.models.card import ModelCard
from medsegai.models.catalogue import (
    BUNDLED_MODELS,
    find_card,
    own_models_folder,
    read_cards,
    user_models_folder,
)

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers


FEW_FIGURES = 6
"""The largest number of figures of one kind that `models show` lists one by one."""


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai models` to the command line."""
    parser = subparsers.add_parser(
        "models", help="list, show, verify, import, fetch or remove models"
    )
    help_alone(parser)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    _add_readers(actions)
    _add_importing(actions)
    add_fetch_parsers(actions)
    _add_removing(actions)


def _add_readers(actions: Subparsers) -> None:
    """Add the actions that do not change anything: `list`, `show` and `verify`."""
    listing = actions.add_parser("list", help="list the installed models")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=run_list)

    show = actions.add_parser(
        "show", help="print labels, members, licence, origin and accuracy of one model"
    )
    show.add_argument("model", metavar="ID", help="id of a model, or its folder (nnU-Net's too)")
    show.add_argument("--json", action="store_true", help="print the card as JSON")
    show.set_defaults(run=run_show)

    verify = actions.add_parser("verify", help="compare weights with the hashes in their card")
    verify.add_argument(
        "model", metavar="ID", nargs="?", help="one model; all of them if none is named"
    )
    verify.set_defaults(run=run_verify)


def _add_importing(actions: Subparsers) -> None:
    importing = actions.add_parser(
        "import",
        help="add a model to your own models",
        description="Add a model to your own models, in MEDSEGAI_MODELS or ~/.medsegai/models. PATH is a "
        "folder with card.json and safetensors weights, or a zip archive of it; a folder "
        "that nnU-Net v2 trained, or the zip archive that it exports; the folder or zip "
        "archive of a MONAI bundle; a model.pt of MONAI Auto3DSeg; or the released weights "
        "of a family that MedSegAI knows.",
    )
    importing.add_argument(
        "path", metavar="PATH", type=Path, help="model folder, zip archive, or released weights"
    )
    add_switch(importing, "--replace", "replace your own model of the same id")
    importing.add_argument("--id", help="new id of the model")
    importing.set_defaults(run=run_import)


def _add_removing(actions: Subparsers) -> None:
    removing = actions.add_parser(
        "remove",
        help="delete a model of your own",
        description="Delete a model of your own, card and weights. Bundled models cannot be removed.",
    )
    removing.add_argument("model", metavar="ID", help="id of the model, or name of its folder")
    removing.set_defaults(run=run_remove)


def run_list(arguments: argparse.Namespace) -> int:
    """Print every model; a broken card is shown with its reason and does not hide the others."""
    found = list(read_cards())
    if arguments.json:
        print(json.dumps([_summary(source, card) for source, card in found], indent=2))
        return 0
    rows = [_row(source, card) for source, card in found]
    if rows:
        print(table(["model", "version", "family", "members", "MB", "place"], rows, left=4))
    for source, card in found:
        if isinstance(card, ModelError):
            print(f"\n{source.parent.name}: {card}")
    if not rows:
        print("No models are installed. Add one with `medsegai models import PATH`.")
    return 0


def _row(source: Path, card: ModelCard | ModelError) -> list[str]:
    if isinstance(card, ModelError):
        return [source.parent.name, "broken", "", "", "", _place(source)]
    size, members = f"{_weights_mb(card):.1f}", _members_in_short(card)
    return [card.id, card.version, card.family, members, size, _place(source)]


def run_show(arguments: argparse.Namespace) -> int:
    card = find_card(arguments.model)
    print(json.dumps(card.to_dict(), indent=2) if arguments.json else describe_card(card))
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    """Print one line per model; the exit code is that of `ModelError` if any fails."""
    if arguments.model:
        card = find_card(arguments.model)
        card.verify()
        print(f"{card.id}: {_verified(card)}")
        return 0
    code = 0
    for source, card_or_error in read_cards():
        try:
            if isinstance(card_or_error, ModelError):
                raise card_or_error
            card_or_error.verify()
            print(f"{card_or_error.id}: matches its card")
        except ModelError as error:
            print(f"{source.parent.name}: {error}")
            code = ModelError.exit_code
    return code


def run_import(arguments: argparse.Namespace) -> int:
    from medsegai.models.importing import import_model

    folder = own_models_folder()
    card = import_model(arguments.path, folder, arguments.replace, arguments.id)
    print(f"Imported {card.id} ({card.name}) into {card.folder}.")
    inputs = [shlex.quote(channel.name) for channel in card.channels]
    given = " ".join(inputs) if len(inputs) > 1 else "INPUT"
    print(f"Use it: medsegai segment {given} -o OUT.seg.nrrd --model {card.id}")
    return 0


def run_remove(arguments: argparse.Namespace) -> int:
    """Delete a folder of the user's models, even if its card is broken."""
    place = _own_folder(arguments.model)
    removed = place.with_name(f".removed-{place.name}")
    try:
        place.rename(removed)  # renamed first, so that never half a model is left
        shutil.rmtree(removed)
    except OSError as error:
        raise OutputError(f"{place} cannot be removed: {error}.") from error
    print(f"Removed {arguments.model}: {place}")
    return 0


BUNDLED = (
    "{name} is bundled with MedSegAI and cannot be removed. Only your own models can be removed."
)


def _own_folder(name: str) -> Path:
    """Return the folder of a user's model, by its id, or by its folder's name if its card is broken.

    Raises:
        ModelError: the user does not have such a model.
    """
    own = user_models_folder()
    names: list[str] = []
    for source, card in read_cards():
        known = source.parent.name if isinstance(card, ModelError) else card.id
        is_own = own is not None and source.is_relative_to(own)
        if known == name and is_own:
            return source.parent
        if known == name:
            raise ModelError(BUNDLED.format(name=name))
        names += [known] * is_own
    raise ModelError(
        f"You do not have a model {name!r}. Your own models are: {', '.join(names) or 'none'}."
    )


def _verified(card: ModelCard) -> str:
    if card.in_place:
        return "all weights exist, but only an imported model has hashes to compare them with"
    return "matches its card"


def _label_rows(card: ModelCard) -> list[list[str]]:
    return [
        [str(label.value), label.name, _range(card, label.value), _codes(card, label.value)]
        for label in card.labels
    ]


def describe_card(card: ModelCard) -> str:
    """Return the card as text for a terminal."""
    facts = _facts(card)
    channels = [[c.name, c.modality, "yes" if c.required else "no"] for c in card.channels]
    members = [[m.name, m.weights or "-", f"{m.weight:g}", m.sha256 or "-"] for m in card.members]
    labels = _label_rows(card)
    parts = [
        f"{card.id}: {card.name}",
        card.description,
        "\n".join(f"{name + ':':<14}{value}" for name, value in facts if value),
        table(["input", "modality", "required"], channels, left=3),
        table(["member", "weights", "share", "SHA-256"], members, left=2),
        table(["value", "structure", "plausible ml", "code"], labels, left=4),
    ]
    if card.performance:
        parts.append(_accuracy(card.performance))
        parts.append(f"All figures: medsegai models show {card.id} --json")
    return "\n\n".join(part for part in parts if part)


def _facts(card: ModelCard) -> list[tuple[str, str]]:
    spacing = " x ".join(f"{length:g}" for length in card.spacing_mm)
    flat = card.dimensions == 2  # its settings have the number of pixels
    return [
        ("version", card.version),
        ("family", card.family),
        ("intended use", card.intended_use),
        ("origin", card.origin),
        ("licence", card.licence),
        ("citation", card.citation),
        ("works at", "" if flat else f"{spacing} mm"),
        ("memory", f"{card.memory_mb:.0f} MB" if card.memory_mb else ""),
        ("calibrated", card.calibration.source if card.calibration else ""),
        ("plausible", card.reference.source if card.reference else ""),
        ("folder", str(card.folder)),
    ]


def _accuracy(performance: Mapping[str, Any]) -> str:
    """Return figures under headings that name the cases they come from."""
    parts = []
    for heading, figures in performance.items():
        nested = figures if isinstance(figures, Mapping) else {"": figures}
        lines = [[": ".join(filter(None, path)), value] for path, value in _figures(nested)]
        parts.append(f"Accuracy, {heading}:\n{_indented(lines)}")
    return "\n\n".join(parts)


def _figures(
    data: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Return every figure in nested objects with its names; for many structures only the lowest and highest."""
    if len(data) > FEW_FIGURES and all(isinstance(value, (int, float)) for value in data.values()):
        low, high = min(data, key=data.__getitem__), max(data, key=data.__getitem__)
        yield path, f"{_figure(data[low])} ({low}) to {_figure(data[high])} ({high})"
        return
    if len(data) > FEW_FIGURES and all(isinstance(value, Mapping) for value in data.values()):
        kinds = dict.fromkeys(kind for value in data.values() for kind in value)
        data = {
            kind: {name: value[kind] for name, value in data.items() if kind in value}
            for kind in kinds
        }
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _figures(value, (*path, name))
        else:
            yield (*path, name), _figure(value)


def _figure(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_figure, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _indented(lines: Sequence[Sequence[str]]) -> str:
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in lines)


def _range(card: ModelCard, value: int) -> str:
    volumes = card.reference.volumes_ml if card.reference else {}
    return "{:g} to {:g}".format(*volumes[value]) if value in volumes else "-"


def _codes(card: ModelCard, value: int) -> str:
    terminology = next(label.terminology for label in card.labels if label.value == value)
    if terminology is None:
        return ""
    scheme, code, meaning = terminology.type
    side = f", {terminology.modifier[2]}" if terminology.modifier else ""
    return f"{scheme} {code} {meaning}{side}"


def _members_in_short(card: ModelCard) -> str:
    """Return the names of members; for configurations, with the number of folds."""
    folds = Counter(member.name.rpartition("/")[0] for member in card.members)
    alone = [member.name for member in card.members if "/" not in member.name]
    together = [f"{name} x {count}" for name, count in folds.items() if name]
    return ", ".join([*alone, *together])


def _place(source: Path) -> str:
    return "bundled" if source.is_relative_to(BUNDLED_MODELS) else str(source.parent)


def _weights_mb(card: ModelCard) -> float:
    paths = {card.weights_path(member) for member in card.members if member.weights}
    return sum(os.path.getsize(path) for path in paths if os.path.isfile(path)) / 1e6


def _summary(source: Path, card: ModelCard | ModelError) -> dict[str, object]:
    if isinstance(card, ModelError):
        return {"folder": str(source.parent), "broken": str(card)}
    return {
        "id": card.id,
        "name": card.name,
        "version": card.version,
        "family": card.family,
        "members": [member.name for member in card.members],
        "structures": len(card.labels),
        "folder": str(card.folder),
    }
