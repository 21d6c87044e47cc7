"""Display, import and check of models. Code that needs torch runs in the worker's Python, never in this one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.errors import ModelError
from medsegai.models.card import ModelCard
from medsegai.models.catalogue import user_models_folder
from medsegai.models.index import INDEX_VARIABLE, ListedModel, ModelIndex
from medsegai.models.json_fields import from_json
from MedSegAILib import model_search
from MedSegAILib.controller import texts
from MedSegAILib.controller.context import Context
from MedSegAILib.translation import tr as _
from MedSegAILib.worker.location import PlaceKind, WorkerLocation

if TYPE_CHECKING:
    from MedSegAILib.panel.process import Finished


class Models:
    """Connects the model browser with the models on disk."""

    def __init__(self, context: Context) -> None:
        self._context = context
        browser = context.panel.browser
        browser.expectation = self._expectation
        browser.import_requested.connect(self.import_from)
        browser.verify_requested.connect(self.verify)
        browser.index_requested.connect(self.show_index)
        browser.fetch_requested.connect(self.fetch)
        browser.show_index(bool(os.environ.get(INDEX_VARIABLE)))

    def show(self, files: Iterable[Path] | None = None) -> None:
        """Offer the installed models; a card that cannot be read is reported and left out."""
        cards, problems = model_search.read_cards(files)
        self._context.panel.show_models(cards)
        if problems:
            self._context.panel.show_error("\n".join(problems))

    def import_from(self, path: str) -> None:
        """Add the model at `path` to the user's own, in the background."""
        self._add(["models", "import", path], _("Importing {path} …").format(path=path))

    def fetch(self, listed: ListedModel) -> None:
        """Download a model of the index in the background; its hash is checked before it is opened."""
        text = _("Downloading {name} …").format(name=listed.name or listed.id)
        self._add(["models", "fetch", listed.id], text)

    def show_index(self) -> None:
        """Offer the models of the index that are not installed."""
        browser = self._context.panel.browser
        browser.show_busy(True)
        browser.show_status(_("Loading the index …"))

        def done(answer: Finished) -> None:
            browser.show_busy(False)
            if answer.code != 0:
                browser.show_status(reason(answer), problem=True)
                return
            try:
                index = from_json(ModelIndex, json.loads(answer.output))
            except (ValueError, ModelError) as error:
                browser.show_status(str(error), problem=True)
                return
            self._offer(index)

        self._run(["models", "index", "--json"], done)

    def _offer(self, index: ModelIndex) -> None:
        browser, here = self._context.panel.browser, {path.parent.name for path in _own_cards()}
        more = [item for item in index.models if item.id not in here]
        browser.show_listed(more)
        browser.show_status(_("The index has {count} more.").format(count=len(more)))

    def _add(self, arguments: list[str], text: str) -> None:
        """Run a command that adds a model, and choose that model."""
        before = set(_own_cards())
        browser = self._context.panel.browser
        browser.show_busy(True)
        browser.show_status(text)

        def done(answer: Finished) -> None:
            browser.show_busy(False)
            if answer.code != 0:
                browser.show_status(reason(answer), problem=True)
                return
            self.show()
            self._choose(set(_own_cards()) - before)
            browser.show_status(answer.output.strip().splitlines()[0])

        self._run(arguments, done)

    def _choose(self, files: Iterable[Path]) -> None:
        """Choose the models of these cards, one after another, so that the last one stays chosen."""
        for file in sorted(files):
            cards, _problems = model_search.read_cards([file])
            for card in cards:
                self._context.panel.choose_model(card)
                self._context.panel.browser.select(card)

    def verify(self, card: ModelCard) -> None:
        """Compare a model's weights with the hashes in its card, in the background."""
        browser = self._context.panel.browser
        browser.show_busy(True)
        browser.show_status(_("Checking the weights of {name} …").format(name=card.name))

        def done(answer: Finished) -> None:
            browser.show_busy(False)
            if answer.code == 0:
                browser.show_status(
                    _("Every file of weights of {name} has the SHA-256 of its card.").format(
                        name=card.name
                    )
                )
            else:
                browser.show_status(reason(answer), problem=True)

        self._run(["models", "verify", str(card.folder)], done)

    def _run(self, arguments: list[str], done: Callable[[Finished], None]) -> None:
        place = self._local_place()
        command = [place.command()[0], "-m", "medsegai", *arguments]
        self._context.host.run(command, place.environment(), done)

    def _local_place(self) -> WorkerLocation:
        """Return the location for model commands, which is on this computer, because the models are."""
        place = self._context.host.place()
        if place.kind is PlaceKind.SSH:
            return WorkerLocation.own(self._context.host.own_python())
        return place

    def _expectation(self, card: ModelCard) -> str:
        seconds = self._context.estimates.typical_seconds(card)
        return texts.expectation(card, self._context.devices, seconds)


def _own_cards() -> list[Path]:
    folder = user_models_folder()
    return [] if folder is None else sorted(folder.glob("*/card.json"))


def reason(answer: Finished) -> str:
    """Return why a command failed: the last line of its output."""
    lines = [line for line in (answer.errors or answer.output).splitlines() if line.strip()]
    if not lines:
        return _("The command ended without a message (exit code {code}).").format(code=answer.code)
    return lines[-1].removeprefix("medsegai: ")
