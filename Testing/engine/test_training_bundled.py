"""The bundled brain model: its weights, card and log belong together."""

import pytest
from safetensors.torch import load_file

from medsegai.card import ModelCard, load_card
from medsegai.catalogue import BUNDLED_MODELS
from medsegai.networks.quicknat import QuickNAT
from medsegai.training.checkpoint import read_log
from medsegai.training.export import best_validation, validation_figures
from medsegai.training.quicknat import network_config
from medsegai.training.sampling import view_task

BRAIN = BUNDLED_MODELS / "brain"


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return load_card(BRAIN)


def test_weights_are_small_and_as_the_card_says(card: ModelCard) -> None:
    card.verify()
    assert sum(path.stat().st_size for path in BRAIN.glob("*.safetensors")) < 30e6


def test_weights_fit_their_networks(card: ModelCard) -> None:
    for member in card.members:
        settings = {**card.settings, **member.settings}
        task = view_task(member, member.name, int(settings["slices"]), card.label_values)
        network = QuickNAT(network_config(settings, task))
        network.load_state_dict(load_file(card.weights_path(member)), strict=True)


def test_figures_in_the_card_are_those_of_the_log(card: ModelCard) -> None:
    log = read_log(BRAIN / "training-log.jsonl")
    views = [member.name for member in card.members]
    figures = card.performance["validation on synthetic images"]
    assert figures == validation_figures(card, views, log)
    for view in views:
        best = best_validation(log, view)
        assert best is not None
        assert all(0.0 <= dice <= 1.0 for dice in best["per_class"].values())


def test_labels_are_named_coded_and_complete(card: ModelCard) -> None:
    assert len(card.labels) == 32
    for label in card.labels:
        assert label.terminology is not None
        side = label.terminology.modifier
        assert label.name.startswith(side[2] if side else ("3rd", "4th", "Brain", "Cerebrospinal"))
    codes = [(label.terminology.type, label.terminology.modifier) for label in card.labels]  # type: ignore[union-attr]
    assert len(set(codes)) == 32
