"""The bundled brain model: its weights, card and log belong together."""

import dataclasses
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medsegai.models.card import ModelCard, load_card
from medsegai.models.catalogue import BUNDLED_MODELS
from medsegai.networks.quicknat import QuickNAT
from medsegai.networks.volumetric import build_network
from medsegai.training import data as training_data
from medsegai.training.checkpoint import read_log
from medsegai.training.config import load_config
from medsegai.training.data import case_source
from medsegai.training.export import best_validation, validation_figures
from medsegai.training.loss import member_weights
from medsegai.training.quicknat import network_config
from medsegai.training.sampling import classes_of_targets, view_task

BRAIN = BUNDLED_MODELS / "brain"


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return load_card(BRAIN)


def test_weights_are_small_and_as_the_card_says(card: ModelCard) -> None:
    card.verify()
    assert sum(path.stat().st_size for path in BRAIN.glob("*.safetensors")) < 30e6


def test_weights_fit_their_networks(card: ModelCard) -> None:
    assert card.families() == ("quicknat", "unet3d")
    for member in card.members:
        settings = {**card.settings, **member.settings}
        network: torch.nn.Module
        if member.family == "quicknat":
            task = view_task(member, member.name, int(settings["slices"]), card.label_values)
            network = QuickNAT(network_config(settings, task))
        else:
            network = build_network(settings, len(member.classes))
        network.load_state_dict(load_file(card.weights_path(member)), strict=True)


TRAININGS = ("training", "fast-training", "fine-training")


@pytest.mark.parametrize("training", TRAININGS)
def test_figures_in_the_card_are_those_of_the_log(card: ModelCard, training: str) -> None:
    log = read_log(BRAIN / f"{training}-log.jsonl")
    names = load_config(BRAIN / f"{training}.toml").members
    figures = card.performance["validation on synthetic images"]
    assert {name: figures[name] for name in names} == validation_figures(card, names, log)
    for name in names:
        best = best_validation(log, name)
        assert best is not None
        assert all(0.0 <= dice <= 1.0 for dice in best["per_class"].values())


@pytest.fixture(scope="module")
def maps_read_once() -> Iterator[None]:
    """All trainings have the same label maps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_data, "read_labelmap", cache(training_data.read_labelmap))
        yield


@pytest.mark.usefixtures("maps_read_once")
@pytest.mark.parametrize("training", TRAININGS)
def test_class_weights_in_the_card_are_those_of_the_training(
    card: ModelCard, training: str, shared_data: Path
) -> None:
    """Computed again from the label maps, as the loss did."""
    config = load_config(BRAIN / f"{training}.toml")
    data = dataclasses.replace(config.data, root=str(shared_data / "brain-label-maps"))
    source = case_source(dataclasses.replace(config, data=data), card, torch.device("cpu"))
    counts = source.target_counts()
    for member in (card.member(name) for name in config.members):
        class_of = classes_of_targets(member, card.label_values)
        expected = member_weights(counts, class_of, config.loss)
        assert member.settings["class_weights"] == pytest.approx(expected.tolist(), rel=1e-3)


def test_labels_are_named_coded_and_complete(card: ModelCard) -> None:
    assert len(card.labels) == 32
    for label in card.labels:
        assert label.terminology is not None
        side = label.terminology.modifier
        assert label.name.startswith(side[2] if side else ("3rd", "4th", "Brain", "Cerebrospinal"))
    codes = [(label.terminology.type, label.terminology.modifier) for label in card.labels]  # type: ignore[union-attr]
    assert len(set(codes)) == 32
