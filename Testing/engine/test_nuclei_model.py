"""The bundled model of nuclei: small, licensed, credited, and as good as its card says."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from medsegai.engine import segment
from medsegai.evaluation.instances import instance_scores
from medsegai.io import read_labelmap
from medsegai.measurements.instances import SMALLEST, separated
from medsegai.models.card import ModelCard, load_card
from medsegai.models.catalogue import BUNDLED_MODELS
from medsegai.request import SegmentationRequest
from medsegai.training.unet2d.config import load_config
from medsegai.training.unet2d.data import find_pairs, read_groups
from medsegai.training.unet2d.fold import overlap

NUCLEI = BUNDLED_MODELS / "nuclei"
HELD_OUT = ("nuclei_009", "nuclei_023", "nuclei_053", "nuclei_057", "nuclei_062", "nuclei_066")


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return load_card(NUCLEI)


def test_weights_are_small_and_as_the_card_says(card: ModelCard) -> None:
    card.verify()
    assert sum(path.stat().st_size for path in NUCLEI.iterdir()) < 10e6


def test_the_card_carries_licences_and_credit(card: ModelCard) -> None:
    for said in ("CC0-1.0", "Apache-2.0", "ImageNet", "non-commercial"):
        assert said in card.licence
    assert "Data Science Bowl 2018" in card.origin
    assert "Caicedo" in card.citation


def test_the_log_and_the_training_file_are_those_of_the_card(
    card: ModelCard, shared_data: Path
) -> None:
    config = load_config(NUCLEI / "training.toml", {"data": {"root": str(shared_data / "nuclei")}})
    assert config.network_config().settings().items() <= card.settings.items()
    assert config.labels == card.labels
    lines = (NUCLEI / "training-log.jsonl").read_text(encoding="utf-8").splitlines()
    trained = [line for line in map(json.loads, lines) if line["event"] == "train"]
    assert [line["step"] for line in trained] == list(range(1, config.epochs + 1))
    groups = read_groups(config, list(find_pairs(config)))
    held_out = {groups[name] for name in HELD_OUT}
    assert len(held_out) == 1
    count = sum(group in held_out for group in groups.values())
    assert card.performance["held-out cases"]["cases"] == count


def test_held_out_tiles_are_as_good_as_the_card_says(card: ModelCard, shared_data: Path) -> None:
    """Six of them: not the mean of all, but far from the mean only if something is wrong."""
    promised = card.performance["held-out cases"]
    dice, quality, jaccard = [], [], []
    for name in HELD_OUT:
        image = shared_data / "nuclei" / "images" / f"{name}.png"
        plane = segment(SegmentationRequest((image,), ("nuclei",), device="cpu")).labelmap.voxels[0]
        expected, _ = read_labelmap(shared_data / "nuclei" / "instances" / f"{name}.png")
        objects = expected.voxels[0].astype(np.int32)
        scores = instance_scores(separated(plane == 1, plane == 2, SMALLEST), objects)
        dice.append(overlap(plane > 0, objects > 0)["dice"])
        quality.append(scores.pq)
        jaccard.append(scores.aji)
    assert statistics.fmean(dice) == pytest.approx(promised["dice"], abs=0.04)
    assert statistics.fmean(quality) == pytest.approx(promised["pq"], abs=0.08)
    assert statistics.fmean(jaccard) == pytest.approx(promised["aji"], abs=0.08)
