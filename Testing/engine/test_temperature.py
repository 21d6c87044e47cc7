"""The temperature makes probabilities more or less sure and changes no label."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special

import tiny_quicknat
from images import DIRECTIONS
from medsegai import engine
from medsegai.inference.activation import Activation
from medsegai.inference.grid_sampling import Slab
from medsegai.inference.joint_probabilities import JointProbabilities
from medsegai.inference.probabilities import Probabilities, ProbabilitySource, two_best
from medsegai.models.card import load_card
from medsegai.models.quality import Calibration
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume

NATIVE = Geometry.from_spacing((9, 10, 11), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), DIRECTIONS["LIA"])
TARGET = Geometry.from_spacing(
    (16, 17, 18), (1.2, 1.1, 1.0), (-2.0, -3.0, -15.0), DIRECTIONS["oblique"]
)
LABELS = (0, 4, 2, 9)
WARM = 1.7


def logits(seed: int = 0) -> torch.Tensor:
    numbers = np.random.default_rng(seed).normal(size=(len(LABELS), *NATIVE.shape)) * 3
    return torch.from_numpy(numbers).float()


def whole(part: ProbabilitySource) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities on the target."""
    planes = (0, TARGET.shape[0])
    return part.argmax(Slab(TARGET, *planes)).numpy(), part.read(Slab(TARGET, *planes)).numpy()


def test_logits_are_divided_by_it() -> None:
    values = logits()
    found = Activation.LOGITS.at(WARM).probabilities(values, 0)
    np.testing.assert_allclose(found, special.softmax(values.numpy() / WARM, 0), atol=1e-6)


def test_probabilities_become_what_their_logits_would() -> None:
    values = logits()
    found = Activation.PROBABILITIES.at(WARM).probabilities(values.softmax(0), 0)
    np.testing.assert_allclose(found, special.softmax(values.numpy() / WARM, 0), atol=1e-5)


def test_each_region_has_odds_of_its_own() -> None:
    values = logits()
    expected = special.expit(values.numpy() / WARM)
    activation = Activation.REGIONS.at(WARM)
    np.testing.assert_allclose(activation.probabilities(values, 0), expected, atol=1e-6)
    np.testing.assert_allclose(activation.tempered(values.sigmoid(), 0), expected, atol=1e-5)


def test_entropy_of_regions_is_that_of_each_being_there_or_not() -> None:
    values = logits()
    values[0] = 0.0  # stands for none of the regions, and is not one
    inside = special.expit(values.numpy()[1:])
    expected = (special.entr(inside) + special.entr(1 - inside)).sum(0)
    activation = Activation.REGIONS
    np.testing.assert_allclose(
        activation.entropy(activation.probabilities(values, 0), 0), expected, atol=1e-5
    )


@pytest.mark.parametrize("temperature", [0.6, WARM])
@pytest.mark.parametrize(
    "activation", [Activation.LOGITS, Activation.PROBABILITIES, Activation.REGIONS]
)
def test_no_label_changes_on_any_grid(activation: Activation, temperature: float) -> None:
    values = logits() if not activation.sums_to_one else logits().softmax(0)
    plain, warm = (
        Probabilities(LABELS, NATIVE, values, found)
        for found in (activation, activation.at(temperature))
    )
    labels, probabilities = whole(plain)
    same, other = whole(warm)
    np.testing.assert_array_equal(labels, same)
    assert np.abs(probabilities - other).max() > 0.05


def test_parts_are_joined_as_they_are_and_then_tempered() -> None:
    parts = {
        temperature: [
            Probabilities(LABELS, NATIVE, logits(seed), Activation.LOGITS.at(temperature))
            for seed in (0, 1)
        ]
        for temperature in (1.0, WARM)
    }
    plain, warm = (JointProbabilities(found, [1.0, 2.0], LABELS) for found in parts.values())
    labels, probabilities = whole(plain)
    same, tempered = whole(warm)
    np.testing.assert_array_equal(labels, same)
    powers = probabilities ** (1 / WARM)
    np.testing.assert_allclose(tempered, powers / powers.sum(0), atol=1e-5)


def test_the_runner_up_is_as_probable_as_it_is_read() -> None:
    part = Probabilities(LABELS, NATIVE, logits(), Activation.LOGITS.at(WARM))
    planes = (0, TARGET.shape[0])
    _, _, p_first, p_second = two_best(part, Slab(TARGET, *planes))
    two = np.sort(part.read(Slab(TARGET, *planes)).numpy(), axis=0)[-2:] * 255
    assert np.abs(p_second.numpy() - two[0]).max() < 1.0
    assert (np.abs(p_first.numpy() - two[1]) < 1.0).mean() > 0.99  # ties apart


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A QuickNAT whose card has a temperature."""
    folder = tmp_path / "tiny"
    card = tiny_quicknat.write_model(folder)
    card = replace(card, calibration=Calibration(WARM, "made"))
    (folder / "card.json").write_text(json.dumps(card.to_dict()))
    assert load_card(folder).calibration == card.calibration
    return folder


def test_a_card_tempers_what_users_see_and_never_the_labels(model: Path) -> None:
    image = Volume(
        np.random.default_rng(0).uniform(0, 900, (40, 44, 42)).astype(np.float32),
        Geometry.from_spacing(
            (40, 44, 42), (2.0, 2.2, 2.4), (0.0, 0.0, 0.0), DIRECTIONS["oblique"]
        ),
    )
    options = {"models": (str(model),), "probabilities": True, "uncertainty": True}
    tempered, plain = (
        engine.segment(SegmentationRequest((image,), calibrated=calibrated, **options))
        for calibrated in (True, False)
    )
    np.testing.assert_array_equal(tempered.labelmap.voxels, plain.labelmap.voxels)
    assert tempered.entropy.voxels.mean() > plain.entropy.voxels.mean() + 0.05
    background = 1.0 - plain.probabilities.astype(np.float32).sum(0)
    raw = np.concatenate([background[None], plain.probabilities.astype(np.float32)]).clip(0, 1)
    powers = raw ** (1 / WARM)
    expected = (powers / powers.sum(0))[1:]
    assert np.abs(tempered.probabilities.astype(np.float32) - expected).mean() < 2e-3
    for ours, theirs in zip(tempered.structures, plain.structures, strict=True):
        np.testing.assert_equal(ours.mutual_information, theirs.mutual_information)
        np.testing.assert_equal(ours.iou, theirs.iou)


def test_of_models_together_no_temperature_is_known(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_quicknat.write_model(other)
    image = Volume(
        np.random.default_rng(0).uniform(0, 900, (24, 24, 24)).astype(np.float32),
        Geometry.from_spacing((24, 24, 24), (2.0, 2.0, 2.0)),
    )
    tempered, plain = (
        engine.segment(
            SegmentationRequest(
                (image,), (str(model), str(other)), probabilities=True, calibrated=calibrated
            )
        )
        for calibrated in (True, False)
    )
    np.testing.assert_array_equal(tempered.probabilities, plain.probabilities)
