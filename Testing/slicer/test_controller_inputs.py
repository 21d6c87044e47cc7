"""What the page offers as input: the sample of the model, and a box to stay inside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from controller_help import House, Node
from medsegai.errors import GeometryError, InputError


@pytest.fixture
def house(tmp_path: Path) -> House:
    made = House(tmp_path)
    made.choose(cards=(replace(made.card, sample="MRHead"),))
    return made


def test_the_sample_of_the_model_is_loaded_and_chosen(house: House) -> None:
    house.panel.sample_requested.emit()
    assert house.panel.chosen_input.GetName() == "MRHead"
    assert house.panel.message == ""


def test_a_sample_that_cannot_be_had_is_told(house: House) -> None:
    house.host.sample_error = InputError("The sample MRHead was not loaded.")
    house.panel.sample_requested.emit()
    assert house.panel.error == "The sample MRHead was not loaded."
    assert house.panel.chosen_input is None


def test_a_model_without_a_sample_loads_none(house: House) -> None:
    house.choose(cards=(house.card,))
    house.panel.sample_requested.emit()
    assert house.panel.chosen_input is None


def test_a_new_region_lies_in_the_chosen_volume_and_is_chosen(house: House) -> None:
    house.panel.region_requested.emit()
    assert house.panel.chosen_region.GetName() == "Head region"


def test_without_a_volume_there_is_no_region(house: House) -> None:
    house.choose(nodes={"MR": None})
    house.panel.region_requested.emit()
    assert "Load an image" in house.panel.error
    house.choose(nodes={"MR": Node("Head")})
    house.scene.read_error = GeometryError("It is bent.")
    house.panel.region_requested.emit()
    assert house.panel.error == "It is bent."
    assert house.panel.chosen_region is None
