"""Model cards: what a valid one says, and that every mistake in one is named."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from medsegai.errors import ModelError
from medsegai.models import catalogue
from medsegai.models.card import ModelCard, card_from_dict, load_card
from medsegai.models.catalogue import card_files, find_card, read_cards

WEIGHTS = b"any bytes will do here"


def card_data() -> dict[str, Any]:
    return {
        "id": "toy",
        "name": "Toy",
        "family": "quicknat",
        "version": "1.2",
        "channels": [{"name": "T1", "modality": "MR", "required": True}],
        "labels": [
            {"value": 17, "name": "Left hippocampus", "color": [220, 216, 20]},
            {
                "value": 53,
                "name": "Right hippocampus",
                "color": [220, 216, 21],
                "terminology": {
                    "category": ["SCT", "123037004", "Anatomical Structure"],
                    "type": ["SCT", "5366008", "Hippocampus"],
                    "modifier": ["SCT", "24028007", "Right"],
                },
            },
        ],
        "members": [
            {
                "name": "axial",
                "weights": "axial.safetensors",
                "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
                "weight": 0.4,
                "classes": [[], [17], [53]],
                "settings": {"filters": 8},
            },
            {"name": "sagittal", "classes": [[], [17, 53]]},
        ],
        "spacing_mm": [1, 1, 1.5],
        "licence": "CC0-1.0",
    }


def write_model(folder: Path, data: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps(data))
    (folder / "axial.safetensors").write_bytes(WEIGHTS)
    return folder


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own models, and none that are bundled."""
    monkeypatch.setattr(catalogue, "BUNDLED_MODELS", tmp_path / "bundled")
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "own"))
    return tmp_path / "own"


def test_a_card_says_what_its_file_says(tmp_path: Path) -> None:
    card = load_card(write_model(tmp_path / "toy", card_data()))
    assert (card.id, card.version, card.licence) == ("toy", "1.2", "CC0-1.0")
    assert card.label_values == (17, 53)
    assert card.labels[1].terminology is not None
    assert card.labels[1].terminology.modifier == ("SCT", "24028007", "Right")
    assert card.spacing_mm == (1.0, 1.0, 1.5)
    assert card.member("axial").classes == ((), (17,), (53,))
    assert card.member("sagittal").classes == ((), (17, 53))
    assert card.weights_path(card.members[0]) == tmp_path / "toy" / "axial.safetensors"


QUALITY: dict[str, Any] = {
    "calibration": {
        "temperature": 1.3,
        "source": "40 held-out cases",
        "members": ["axial", "sagittal"],
        "score": "iou",
        "structures": {"17": {"dice": 0.8, "score": 0.7, "slope": 0.9, "limit": 0.5}},
    },
    "reference": {
        "source": "15 adults",
        "volumes_ml": {"17": [2.0, 6.5], "53": [2, 7]},
        "asymmetry_percent": {"17": [-30, 25.5]},
        "largest_part": {"53": 0.95},
    },
    "intracranial": [17, 53],
}


@pytest.mark.parametrize("more", [{}, QUALITY])
def test_a_card_survives_being_written_and_read(more: dict[str, Any]) -> None:
    card = card_from_dict(card_data() | more)
    written = json.loads(json.dumps(card.to_dict()))
    assert card_from_dict(written) == card
    assert {name: written[name] for name in QUALITY if name in written} == more


def test_a_card_tells_what_quality_to_expect() -> None:
    card = card_from_dict(card_data() | QUALITY)
    assert card.calibration is not None
    assert card.calibration.structures[17].limit == 0.5
    assert card.reference is not None
    assert card.reference.volumes_ml == {17: (2.0, 6.5), 53: (2.0, 7.0)}
    assert card.reference.asymmetry_percent == {17: (-30.0, 25.5)}
    assert card.reference.largest_part == {53: 0.95}
    assert card_from_dict(card_data()).reference is None


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("calibration",), 5, "calibration must be an object"),
        (("calibration", "temprature"), 1, "temprature"),
        (("calibration", "temperature"), 0, "temperature"),
        (("calibration", "temperature"), "hot", "'hot'"),
        (("calibration", "temperature"), True, "True"),
        (("calibration", "temperature"), float("nan"), "NaN is not finite"),
        (("calibration", "source"), 5, "source"),
        (("calibration", "members"), "axial", "members"),
        (("calibration", "members"), [1], "members"),
        (("calibration", "score"), "dice", "pairwise_dice"),
        (("calibration", "score"), None, "need a score"),
        (("calibration", "score"), ["iou"], "must be text"),
        (("calibration", "structures"), [], "structures must be an object"),
        (("calibration", "structures", "left"), {}, "'left' is not a label value"),
        (
            ("calibration", "structures", "17", "dice"),
            1.2,
            "structures.17: dice must lie between 0 and 1",
        ),
        (
            ("calibration", "structures", "17", "limit"),
            float("inf"),
            "Infinity is not finite",
        ),
        (("calibration", "structures", "17", "limit"), None, "structures.17: missing key limit"),
        (("calibration", "structures", "99"), QUALITY["calibration"]["structures"]["17"], "[99]"),
        (("reference",), [], "reference must be an object"),
        (("reference", "source"), None, "source"),
        (("reference", "source"), " ", "source"),
        (("reference", "volume_ml"), {}, "volume_ml"),
        (("reference", "volumes_ml", "99"), [1, 2], "[99]"),
        (("reference", "volumes_ml", "17"), [2, 1], "2 must be less than 1"),
        (("reference", "volumes_ml", "17"), [-1, 1], "volumes_ml of 17"),
        (("reference", "volumes_ml", "17"), [1], "17 must be a list of 2 values, each a number"),
        (("reference", "volumes_ml", "17"), "1-2", "17 must be a list of 2 values, each a number"),
        (("reference", "volumes_ml", "17"), [1, None], "None"),
        (("reference", "asymmetry_percent", "17"), [-300, 0], "between -200 and 200"),
        (("reference", "asymmetry_percent", "-17"), [-3, 0], "'-17' is not a label value"),
        (("reference", "largest_part", "17"), 95, "between 0 and 1"),
        (("reference", "largest_part"), 0.9, "largest_part must be an object"),
        (
            ("intracranial",),
            [17, 99],
            "intracranial volume of model 'toy' names unknown labels [99]",
        ),
        (("intracranial",), 17, "intracranial must be a list"),
    ],
)
def test_a_mistake_in_what_it_tells_of_quality_is_named(
    path: tuple[Any, ...], value: Any, word: str, tmp_path: Path
) -> None:
    """None takes the key away."""
    folder = write_model(tmp_path / "toy", changed(card_data() | QUALITY, path, value))
    with pytest.raises(ModelError, match=re.escape(word)) as caught:
        load_card(folder)
    assert str(folder / "card.json") in str(caught.value)


def changed(data: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The same with another value at a path; None takes the key away."""
    data = copy.deepcopy(data)
    place: Any = data
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


def test_the_folder_and_its_card_file_are_the_same_model(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "toy", card_data())
    assert load_card(folder) == load_card(str(folder / "card.json"))


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("licenze",), "CC0", "licenze"),
        (("channels", 0, "modalty"), "MR", "modalty"),
        (("members", 0, "wieght"), 1, "wieght"),
        (("labels", 0, "colour"), [1, 2, 3], "colour"),
        (("id",), None, "id"),
        (("id",), 5, "id"),
        (("family",), "", "family"),
        (("channels",), None, "channels"),
        (("labels",), None, "labels"),
        (("members",), None, "members"),
        (("spacing_mm",), None, "spacing_mm"),
        (("members", 0, "name"), None, "name"),
        (("labels", 0, "value"), None, "value"),
        (("channels",), [], "channel"),
        (("labels",), [], "label"),
        (("members",), [], "member"),
        (("channels",), 5, "card.json"),
        (("labels", 0), "hippocampus", "card.json"),
        (("labels", 0, "value"), 0, "start at 1"),
        (("labels", 0, "value"), 53, "53"),
        (("labels", 0, "name"), "Right hippocampus", "Right hippocampus"),
        (("labels", 0, "color"), [1, 2], "card.json"),
        (("labels", 0, "color"), [1, 2, 256], "0 to 255"),
        (("members", 1, "name"), "axial", "axial"),
        (("members", 1, "classes"), [[], [99]], "99"),
        (("members", 1, "classes"), "all", "card.json"),
        (("spacing_mm",), [1, 1], "card.json"),
        (("spacing_mm",), "fine", "card.json"),
    ],
)
def test_a_mistake_is_named(path: tuple[Any, ...], value: Any, word: str, tmp_path: Path) -> None:
    """None takes the key away."""
    folder = write_model(tmp_path / "toy", changed(card_data(), path, value))
    with pytest.raises(ModelError, match=re.escape(word)) as caught:
        load_card(folder)
    assert str(folder / "card.json") in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b'"card"'])
def test_a_file_that_is_no_card_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"card\.json"):
        load_card(tmp_path)


def test_a_missing_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_card(tmp_path)


def test_weights_are_compared_with_their_hash(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "toy", card_data())
    card = load_card(folder)
    card.verify()
    (folder / "axial.safetensors").write_bytes(WEIGHTS + b".")
    with pytest.raises(ModelError, match="SHA-256"):
        card.verify()
    (folder / "axial.safetensors").unlink()
    with pytest.raises(ModelError, match="missing"):
        card.verify()


def test_weights_without_a_hash_are_refused(tmp_path: Path) -> None:
    data = card_data()
    del data["members"][0]["sha256"]
    with pytest.raises(ModelError, match="does not give a SHA-256"):
        load_card(write_model(tmp_path / "toy", data)).verify()


def in_place(folder: Path) -> ModelCard:
    """A card without hashes, of a folder that another program made."""
    data = card_data()
    del data["members"][0]["sha256"]
    return dataclasses.replace(load_card(write_model(folder, data)), in_place=True)


def test_weights_of_another_program_have_no_hash_to_be_held_to(tmp_path: Path) -> None:
    card = in_place(tmp_path / "toy")
    card.verify()
    (tmp_path / "toy" / "axial.safetensors").unlink()
    with pytest.raises(ModelError, match="missing"):
        card.verify()


def test_the_hash_of_weights_is_known_with_and_without_the_card(tmp_path: Path) -> None:
    card = in_place(tmp_path / "toy")
    axial, sagittal = card.members
    assert card.weights_sha256(axial) == hashlib.sha256(WEIGHTS).hexdigest()
    assert card.weights_sha256(sagittal) is None
    (tmp_path / "toy" / "axial.safetensors").write_bytes(WEIGHTS * 2)
    assert card.weights_sha256(axial) == hashlib.sha256(WEIGHTS * 2).hexdigest()
    (tmp_path / "toy" / "axial.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        card.weights_sha256(axial)
    given = load_card(write_model(tmp_path / "given", card_data()))
    assert given.weights_sha256(given.members[0]) == given.members[0].sha256


def test_the_fingerprint_changes_with_card_and_weights(tmp_path: Path) -> None:
    card = in_place(tmp_path / "toy")
    before = card.fingerprint()
    assert card.fingerprint() == before
    assert dataclasses.replace(card, version="2").fingerprint() != before
    (tmp_path / "toy" / "axial.safetensors").write_bytes(WEIGHTS * 2)
    assert card.fingerprint() != before


def test_where_a_card_came_from_is_not_written(tmp_path: Path) -> None:
    assert not {"folder", "in_place"} & in_place(tmp_path / "toy").to_dict().keys()
    with pytest.raises(ModelError, match="in_place"):
        card_from_dict(card_data() | {"in_place": True})


MEMBERS = {"2d/fold_0": 1, "2d/fold_1": 1, "3d/fold_0": 1, "3d/fold_1": 1, "low/fold_0": 0}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ((), ["2d/fold_0", "2d/fold_1", "3d/fold_0", "3d/fold_1"]),
        (("3d",), ["3d/fold_0", "3d/fold_1"]),
        (("fold_1",), ["2d/fold_1", "3d/fold_1"]),
        (("3d", "fold_0"), ["3d/fold_0"]),
        (("2d/fold_1",), ["2d/fold_1"]),
        (("low",), ["low/fold_0"]),
        (("low/fold_0", "3d/fold_1"), ["3d/fold_1", "low/fold_0"]),
    ],
)
def test_members_are_chosen_by_name_configuration_and_fold(
    names: tuple[str, ...], chosen: list[str]
) -> None:
    members = [{"name": name, "weight": weight} for name, weight in MEMBERS.items()]
    card = card_from_dict(card_data() | {"members": members})
    assert [member.name for member in card.chosen_members(names)] == chosen


def test_a_fold_that_is_not_there_is_named() -> None:
    members = [{"name": name} for name in MEMBERS]
    card = card_from_dict(card_data() | {"members": members})
    with pytest.raises(ModelError, match="no member 'fold_7'; it has 2d/fold_0"):
        card.chosen_members(["2d", "fold_7"])


def test_an_unknown_member_is_named_with_those_there_are() -> None:
    card = card_from_dict(card_data())
    with pytest.raises(ModelError, match="'coronal'; it has axial, sagittal"):
        card.member("coronal")


def test_models_are_found_by_id_and_by_folder(models: Path, tmp_path: Path) -> None:
    write_model(models / "some-folder", card_data())
    elsewhere = write_model(tmp_path / "elsewhere", card_data() | {"id": "other"})
    assert find_card("toy").folder == models / "some-folder"
    assert find_card(str(elsewhere)).id == "other"
    assert [card for _, card in read_cards()] == [find_card("toy")]
    with pytest.raises(ModelError, match=r"'other'.*toy"):
        find_card("other")


def test_a_broken_card_is_listed_and_hides_no_other(models: Path) -> None:
    write_model(models / "toy", card_data())
    broken = write_model(models / "broken", card_data() | {"surprise": 1})
    assert broken / "card.json" in card_files()
    assert isinstance(find_card("toy"), ModelCard)
    with pytest.raises(ModelError, match="surprise"):
        find_card("broken")


def test_without_models_the_message_says_so(models: Path) -> None:
    with pytest.raises(ModelError, match="none"):
        find_card("brain")
