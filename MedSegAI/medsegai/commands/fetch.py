"""`medsegai models fetch|index`: download models by their name in an index or by address."""

from __future__ import annotations

import argparse
import json
import os
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.console import shown_progress, table
from medsegai.commands.parsing import add_quiet, add_switch
from medsegai.errors import Cancelled, InputError, ModelError, ModelExistsError, RequestError
from medsegai.models.card import ModelCard
from medsegai.models.catalogue import own_models_folder
from medsegai.models.index import INDEX_VARIABLE, ListedModel, ModelIndex
from medsegai.models.json_fields import from_json, read_json, to_json
from medsegai.system.locks import reserved

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers

MOST_INDEX = 8 << 20
MOST_MODEL = 16 << 30
FOLDER = ".fetched"
"""The folder for unfinished downloads, among the user's models. The next try resumes from it."""


def add_fetch_parsers(actions: Subparsers) -> None:
    """Add the actions of `medsegai models` that use the network."""
    listing = actions.add_parser("index", help="list the models of an index")
    listing.add_argument("--json", action="store_true", help="print JSON")
    add_index_option(listing)
    listing.set_defaults(run=run_index)
    _add_fetching(actions)


def _add_fetching(actions: Subparsers) -> None:
    fetching = actions.add_parser(
        "fetch",
        help="download a model from an address, or by its id in an index, and import it",
        description="Download a model over https, check its SHA-256 before anything is opened, and "
        "import it as `medsegai models import` does. An interrupted download is resumed.",
    )
    fetching.add_argument(
        "model", metavar="URL|NAME", help="https address of a model, or its id in the index"
    )
    fetching.add_argument(
        "--sha256", metavar="HASH", help="SHA-256 of the file; required with an address"
    )
    add_switch(fetching, "--replace", "replace a model of yours that has the same id")
    fetching.add_argument("--id", help="the id to give the model, in place of its own")
    add_quiet(fetching, "print nothing but errors")
    add_index_option(fetching)
    fetching.set_defaults(run=run_fetch)


def add_index_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--index",
        metavar="URL|FILE",
        default=os.environ.get(INDEX_VARIABLE, ""),
        help=f"the index, an https address or a file (default: the value of {INDEX_VARIABLE})",
    )


def run_index(arguments: argparse.Namespace) -> int:
    """Print the models of an index."""
    index = read_index(arguments.index)
    if arguments.json:
        print(json.dumps(to_json(index), indent=2))
        return 0
    rows = [
        [item.id, item.version, f"{item.bytes / 1e6:.1f}", item.licence, item.name]
        for item in index.models
    ]
    if rows:
        print(table(["model", "version", "MB", "licence", "name"], rows, left=2, words_last=True))
        print("\nFetch one with: medsegai models fetch MODEL")
    else:
        print("The index does not list any model.")
    return 0


def run_fetch(arguments: argparse.Namespace) -> int:
    """Download, check and import one model."""
    from medsegai.io.atomic import make_folder

    wanted = _wanted(arguments)
    place = own_models_folder() / FOLDER / wanted.sha256.lower()
    make_folder(place)
    try:
        card = _fetched(wanted, place / _file_name(wanted.url), arguments)
    finally:
        _remove_empty(place)
    if not arguments.quiet:
        print(f"Imported {card.id} ({card.name}) into {card.folder}.")
    return 0


def _fetched(wanted: ListedModel, file: Path, arguments: argparse.Namespace) -> ModelCard:
    listed_id = None if "://" in arguments.model else wanted.id
    with reserved([file]):
        _load(wanted, file, arguments.quiet)
        return _imported(file, own_models_folder(), arguments.replace, arguments.id or listed_id)


def _imported(file: Path, folder: Path, replace: bool, id: str | None) -> ModelCard:
    """Import a file that is complete. It stays for the next try, unless it was imported or is not a model."""
    from medsegai.models.importing import import_model

    try:
        card = import_model(file, folder, replace, id)
    except ModelExistsError:
        raise
    except ModelError as error:
        file.unlink()
        arrived = "The download was complete, so another one does not help. Ask the provider of the model."
        raise type(error)(f"{error} {arrived}") from error
    file.unlink()
    return card


def _load(wanted: ListedModel, file: Path, quiet: bool) -> None:
    from medsegai.io.fetching import fetch

    with shown_progress(quiet, {"load": 1.0}) as progress:

        def step(there: int, total: int | None) -> None:
            progress.step("load", there, max(total or wanted.bytes, there))

        try:
            fetch(wanted.url, wanted.sha256, file, wanted.bytes, step)
        except Cancelled:
            raise Cancelled("Stopped by the user. Run the same command again to resume.") from None


def _wanted(arguments: argparse.Namespace) -> ListedModel:
    """Return what to download: the entry of the index, or the address with its hash."""
    from medsegai.io.fetching import check_address, check_sha256

    if "://" not in arguments.model:
        if arguments.sha256:
            raise RequestError(
                "--sha256 can only be used with an address, because the index has the "
                "SHA-256 of its models. Leave it out."
            )
        return read_index(arguments.index).find(arguments.model)
    check_address(arguments.model)
    if not arguments.sha256:
        raise RequestError(
            "--sha256 is missing, but a model is only downloaded if its SHA-256 is known. "
            "Ask the provider of the model for it."
        )
    check_sha256(arguments.sha256)
    return ListedModel("model", arguments.model, arguments.sha256, MOST_MODEL)


def read_index(where: str) -> ModelIndex:
    """Read the index at an https address, or in a file.

    Raises:
        InputError: the index cannot be downloaded or read.
        ModelError: the content is not an index.
        RequestError: an index was not named.
    """
    from medsegai.io.fetching import fetch_text

    if not where:
        raise RequestError(
            f"An index of models is not configured. Name one with --index or in the variable {INDEX_VARIABLE}."
        )
    try:
        data = (
            json.loads(fetch_text(where, MOST_INDEX)) if "://" in where else read_json(Path(where))
        )
        return from_json(ModelIndex, data)
    except OSError as error:
        raise InputError(
            f"{where} cannot be read: {error.strerror or error}. Check {INDEX_VARIABLE} or --index."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where.partition('?')[0]} is not JSON: {error}.") from error
    except ModelError as error:
        raise ModelError(f"{where.partition('?')[0]} is not an index of models: {error}") from error


def _file_name(url: str) -> str:
    """Return the name of the file, by which the import recognises its kind; it is never a path."""
    name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
    kept = "".join(letter for letter in name if letter.isalnum() or letter in "._-").lstrip(".")
    return kept[-80:] or "model.zip"


def _remove_empty(place: Path) -> None:
    for folder in (place, place.parent):
        try:
            folder.rmdir()
        except OSError:
            return
