"""What the controller does with models: catalogue, import, index and search."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from controller_help import House
from medsegai.models.catalogue import BUNDLED_MODELS
from MedSegAILib import model_search
from MedSegAILib.worker.location import WorkerLocation


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "models"))
    return House(tmp_path)


def test_the_catalogue_shows_good_models_and_tells_of_broken_ones(
    house: House, tmp_path: Path
) -> None:
    good, broken, missing = (tmp_path / name for name in ("good", "broken", "missing"))
    for folder in (good, broken):
        folder.mkdir()
    (good / "card.json").write_text(json.dumps(house.card.to_dict()))
    (broken / "card.json").write_text("{")
    house.controller.models.show(folder / "card.json" for folder in (broken, good, missing))
    assert [card.name for card in house.panel.models] == ["Brain"]
    assert house.panel.models[0].folder == good
    assert "broken" in house.panel.error
    assert "missing" in house.panel.error


def test_the_bundled_models_are_in_the_catalogue(house: House) -> None:
    house.controller.models.show()
    assert "brain" in [card.id for card in house.panel.models]


def test_an_import_runs_in_the_background_and_its_model_is_chosen(
    house: House, tmp_path: Path
) -> None:
    house.panel.browser.import_requested.emit("/downloads/model.zip")
    command, _done = house.host.ran[-1]
    assert command == [
        "/slicer/python",
        "-m",
        "medsegai",
        "models",
        "import",
        "/downloads/model.zip",
    ]
    assert house.panel.browser.last("show_busy") == (True,)
    new = tmp_path / "models" / "liver"
    new.mkdir(parents=True)
    (new / "card.json").write_text(json.dumps(house.card.to_dict() | {"id": "liver"}))
    house.host.answer(output="Imported liver (Brain) into …\nUse it: …")
    assert house.panel.chosen_model is not None
    assert house.panel.chosen_model.id == "liver"
    assert house.panel.browser.last("show_busy") == (False,)
    assert house.panel.browser.last("show_status") == ("Imported liver (Brain) into …",)


def test_an_import_that_fails_says_why(house: House) -> None:
    house.panel.browser.import_requested.emit("/downloads/holiday.zip")
    house.host.answer(
        4, errors="log line\nmedsegai: holiday.zip is not a model that MedSegAI knows.\n"
    )
    text, problem = house.panel.browser.last("show_status")
    assert text == "holiday.zip is not a model that MedSegAI knows."
    assert problem
    house.panel.browser.import_requested.emit("/downloads/holiday.zip")
    house.host.answer(-1)
    assert "code -1" in house.panel.browser.last("show_status")[0]


def test_the_index_is_asked_for_and_a_model_of_it_is_loaded(house: House, tmp_path: Path) -> None:
    entry = {"url": "https://h/x.zip", "sha256": "0" * 64, "bytes": 5}
    listed = [{"id": name, **entry} for name in ("liver", "here")]
    (tmp_path / "models" / "here").mkdir(parents=True)
    (tmp_path / "models" / "here" / "card.json").write_text("{}")
    house.panel.browser.index_requested.emit()
    command, _done = house.host.ran[-1]
    assert command[-3:] == ["models", "index", "--json"]
    house.host.answer(output=json.dumps({"models": listed}))
    (shown,) = house.panel.browser.last("show_listed")[0]
    assert shown.id == "liver"
    house.panel.browser.fetch_requested.emit(shown)
    command, _done = house.host.ran[-1]
    assert command[-3:] == ["models", "fetch", "liver"]
    house.host.answer(3, errors="medsegai: it broke off")
    assert house.panel.browser.last("show_status") == ("it broke off", True)


@pytest.mark.parametrize("output", ["", "{", "[]", '{"models": [{}]}'])
def test_an_index_that_makes_no_sense_is_said(output: str, house: House) -> None:
    house.panel.browser.index_requested.emit()
    house.host.answer(output=output)
    assert house.panel.browser.last("show_status")[1], "a problem"
    assert house.panel.browser.last("show_busy") == (False,)


def test_models_of_this_computer_are_looked_after_here(house: House) -> None:
    """Also where the worker runs on another computer."""
    house.host.where = WorkerLocation.ssh("server")
    house.panel.browser.verify_requested.emit(house.card)
    command, _done = house.host.ran[-1]
    assert command[0] == "/slicer/python"
    assert command[-2:] == ["verify", str(house.card.folder)]
    house.host.answer()
    assert "has the SHA-256 of its card" in house.panel.browser.last("show_status")[0]
    house.panel.browser.verify_requested.emit(house.card)
    house.host.answer(4, errors="axial.safetensors is not the file its card describes")
    assert house.panel.browser.last("show_status")[1], "a problem"


def test_search_finds_words_anywhere_and_filters_join() -> None:
    cards, problems = model_search.read_cards(sorted(BUNDLED_MODELS.glob("*/card.json")))
    assert not problems
    for text in ("hippocampus", "QUICKNAT head", ""):
        assert cards[0] in model_search.found(cards, model_search.Query(text)), text
    assert model_search.found(cards, model_search.Query("kidney")) == []
    assert model_search.found(cards, model_search.Query("", "CT")) == []
    assert cards[0] in model_search.found(cards, model_search.Query("", "MR", "Hippocampus"))
    assert "Hippocampus" in model_search.structures(cards)
    assert not [name for name in model_search.structures(cards) if name.startswith("Left")]


def test_a_card_is_described_as_it_stands(tmp_path: Path) -> None:
    (card,), _ = model_search.read_cards([BUNDLED_MODELS / "brain" / "card.json"])
    text = model_search.describe(replace(card, name="A <b>bold</b> name"), "About 12 s.")
    for part in (card.licence, card.intended_use, "About 12 s.", "Left hippocampus"):
        assert model_search.html.escape(part) in text
    assert "A &lt;b&gt;bold" in text, "a card is a stranger's text"
    assert "<img" not in model_search.describe(replace(card, folder=tmp_path), "")
    shutil.copy(Path(__file__).parents[2] / "Resources" / "MedSegAI.png", tmp_path / "picture.png")
    assert "<img" in model_search.describe(replace(card, folder=tmp_path), "")


def test_the_bundled_brain_model_has_a_picture() -> None:
    (card,), _ = model_search.read_cards([BUNDLED_MODELS / "brain" / "card.json"])
    assert model_search.picture(card) is not None
