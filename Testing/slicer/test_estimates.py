"""How long a job will take: by the grid of the model, and by the last runs on this computer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_worker
from controller_help import HEAD, House
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume
from MedSegAILib.controller.estimates import KEPT, Estimates


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def request(**options: Any) -> SegmentationRequest:
    return SegmentationRequest((HEAD,), **options)


def head_of(spacing: tuple[float, float, float], **options: Any) -> SegmentationRequest:
    """The same head, 192 x 240 x 180 mm, in voxels of another size."""
    size = (192, 240, 180)
    shape = tuple(
        round(length / step) for length, step in zip(size[::-1], spacing[::-1], strict=True)
    )
    volume = Volume(np.zeros(shape, np.uint8), Geometry.from_spacing(shape, spacing))
    return SegmentationRequest((volume,), **options)


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 1), (1, 1, 6), (4, 4, 4), (2, 6, 1)])
def test_the_same_head_in_other_voxels_takes_as_long(
    house: House, spacing: tuple[float, float, float]
) -> None:
    """A scan of thick slices was promised in 1 s, and took 100."""
    estimates, cards = Estimates(lambda: "", lambda text: None), (house.card,)
    result = replace(fake_worker.halves(HEAD), seconds={"predict": 100.0})
    estimates.learn(cards, head_of((1, 1, 1)), result)
    assert estimates.seconds(cards, head_of(spacing)) == pytest.approx(100, rel=0.01)


def test_a_box_and_a_finer_grid_change_the_time(house: House) -> None:
    estimates = Estimates(lambda: "", lambda text: None)
    fine = replace(house.card, spacing_mm=(0.5, 0.5, 0.5))
    fixed = replace(house.card, id="fixed", settings={"grid": [64, 64, 64]})
    result = replace(fake_worker.halves(HEAD), seconds={"predict": 100.0})
    quarter = head_of((1, 1, 1), region=(0.0, 96.0, 0.0, 120.0, 0.0, 180.0))
    half = head_of((1, 1, 1), region=(0.0, 192.0, 0.0, 120.0, 0.0, 180.0))
    estimates.learn((fine,), half, result)
    assert estimates.seconds((fine,), quarter) == pytest.approx(50, rel=0.01)
    estimates.learn((fixed,), head_of((1, 1, 1)), result)
    assert estimates.seconds((fixed,), head_of((3, 3, 3))) == pytest.approx(100), (
        "it fills its grid"
    )


def test_time_is_learnt_by_kind_of_job_and_outlives_the_session(house: House) -> None:
    kept = [""]
    estimates = Estimates(lambda: kept[0], lambda text: kept.__setitem__(0, text))
    cards = (house.card,)
    assert estimates.seconds(cards, request()) is None
    result = fake_worker.halves(HEAD)
    for seconds in (3.0, 2.0, 100.0):
        estimates.learn(cards, request(), replace(result, seconds={"predict": seconds}))
    assert estimates.seconds(cards, request()) == pytest.approx(3.0), "the median"
    assert estimates.seconds(cards, request(device="cpu")) is None, "another device"
    again = Estimates(lambda: kept[0], lambda text: None)
    assert again.seconds(cards, request()) == pytest.approx(3.0)
    assert again.typical_seconds(house.card) is not None
    for _ in range(KEPT):
        estimates.learn(cards, request(), replace(result, seconds={"predict": 1.0}))
    assert estimates.seconds(cards, request()) == pytest.approx(1.0), "the last ones count"


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"a": "b"}', '{"a": ["b"]}', "[" * 9999])
def test_a_damaged_memory_is_forgotten(house: House, text: str) -> None:
    assert Estimates(lambda: text, lambda _: None).seconds((house.card,), request()) is None


@pytest.mark.parametrize("time", ["NaN", "Infinity", "-1", "0"])
def test_a_time_that_cannot_be_is_forgotten(house: House, time: str) -> None:
    cards = (house.card,)
    kept: list[str] = []
    estimates = Estimates(lambda: "", kept.append)
    result = fake_worker.halves(HEAD)
    estimates.learn(cards, request(), replace(result, seconds={"predict": 1.0}))
    (kind,) = json.loads(kept[0])
    damaged = Estimates(lambda: f'{{"{kind}": [{time}]}}', kept.append)
    assert damaged.seconds(cards, request()) is None
