"""Cards of strangers: a broken one is listed as broken, with the reason, while every other model works."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import test_joint_model
from medsegai.cli import main
from medsegai.engine import segment
from medsegai.errors import MedSegAIError, ModelError, RequestError
from medsegai.families import _memory, load_model
from medsegai.models import catalogue
from medsegai.models.card import load_card
from medsegai.models.catalogue import BUNDLED_MODELS, find_card, read_cards
from medsegai.request import SegmentationRequest
from medsegai.system.machine import peak_memory_mb
from medsegai.volume import Geometry, Volume

Capture = pytest.CaptureFixture[str]

SEED = 13
MUTATIONS = int(os.environ.get("MEDSEGAI_MUTATIONS", "60"))
"""Of each bundled card."""

STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    0.5,
    float("nan"),
    float("-inf"),
    "",
    " ",
    "a\nb",
    "\x1b[31m",
    "\x00",
    "../../outside",
    "x" * 5000,
    "\ud800",
    [],
    [[]],
    [None],
    ["name"],
    {},
    {"name": 1},
    {"": {"": []}},
)
"""What may stand where something else belongs."""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's models, an empty folder; the bundled ones are there."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv("MEDSEGAI_MODELS", str(folder))
    return folder


def card_text(model: str = "hippocampus", **changes: Any) -> str:
    data = json.loads((BUNDLED_MODELS / model / "card.json").read_text(encoding="utf-8"))
    return json.dumps(data | {"id": "made"} | changes)


def write_card(folder: Path, content: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    (folder / "card.json").write_bytes(content)
    return folder


def scan() -> Volume:
    """A bright ball, of the size of a hippocampus crop."""
    distance = np.linalg.norm(np.mgrid[:36, :48, :36] - np.full((3, 1, 1, 1), 20), axis=0)
    voxels = np.where(distance < 12, 900.0, 100.0) + distance
    return Volume(voxels.astype(np.float32), Geometry((36, 48, 36), np.eye(4)))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every object or list in JSON values, with each of its keys."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def mutated(data: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The same with one to three values replaced, taken away, doubled, or put under a strange key."""
    data = copy.deepcopy(data)
    for _ in range(chance.randint(1, 3)):
        holder, key = chance.choice(list(places(data)))
        way = chance.choice(("replace", "replace", "remove", "double", "rename"))
        strange = copy.deepcopy(chance.choice(STRANGE))
        if way == "replace":
            holder[key] = strange
        elif way == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(0, copy.deepcopy(holder[key]))
        else:
            holder[str(strange)] = (
                holder.pop(key) if way == "rename" else copy.deepcopy(holder[key])
            )
        if not data:
            break
    return data


@pytest.mark.parametrize("name", ["brain", "hippocampus", "nuclei"])
def test_no_mutation_of_a_card_breaks_a_command_or_another_model(
    name: str, own: Path, capsys: Capture
) -> None:
    chance = random.Random(SEED)
    original = json.loads(card_text(name))
    broken = 0
    for number in range(MUTATIONS):
        folder = write_card(own / "made", json.dumps(mutated(original, chance)))
        cards = dict(read_cards())
        found = cards[folder / "card.json"]
        broken += isinstance(found, ModelError)
        assert find_card("brain").folder == BUNDLED_MODELS / "brain", number
        verifying = [["verify"], ["list", "--json"]] if number % 20 == 0 else []  # hashes take long
        for command in (["list"], ["show", str(folder)], *verifying):
            assert main(["models", *command]) in (0, 4), (number, command)
        said = capsys.readouterr()
        said.out.encode()
        if isinstance(found, ModelError):
            assert str(folder) in str(found), "the file is named"
            assert len(str(found)) < 1000, "and no value is quoted at length"
        else:
            with contextlib.suppress(MedSegAIError):
                load_model(found)
    assert MUTATIONS / 2 < broken < MUTATIONS, "most are noticed, and some are harmless"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"id":' + "[" * 200_000, "nested too deep"),
        ('{"id":' + "[" * 100 + "]" * 100 + "}", "nested more than"),
        (
            card_text().replace('"memory_mb"', '"extra": 1' + "0" * 5000 + ', "memory_mb"', 1),
            "5001 digits",
        ),
        (card_text(memory_mb=12345).replace("12345", "1e999"), "not finite"),
        (card_text(name=["a", "list"]), "name must be text"),
        (card_text(name="half \ud83d of a letter"), "surrogates not allowed"),
        (card_text(spacing_mm=[1, float("nan"), 1]), "the number NaN is not finite"),
        (card_text(spacing_mm=[1, 0, 1]), "spacing_mm must lie between"),
        (
            card_text(suggested_refinements=["islands"]),
            "suggested_refinements[0] must be an object",
        ),
        (b"\xff\xfe" + b"x" * 100, "cannot be read as JSON"),
    ],
)
def test_a_broken_card_is_listed_with_its_reason(
    content: str | bytes, reason: str, own: Path, capsys: Capture
) -> None:
    write_card(own / "made", content)
    assert main(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert reason in out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert lines["made"][1] == "broken"
    assert lines["hippocampus"][-1] == "bundled"
    assert main(["models", "show", "made"]) == ModelError.exit_code
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("model", ["brain", "hippocampus"])
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(
    model: str, number: str, own: Path
) -> None:
    """Python writes and reads them in JSON; settings of a family have no types that would refuse them."""
    original = json.loads(card_text(model))
    where = list(range(len(list(places(original)))))
    for place in random.Random(SEED).sample(where, min(MUTATIONS // 4, len(where))):
        data = copy.deepcopy(original)
        holder, key = list(places(data))[place]
        holder[key] = float(number)
        with pytest.raises(ModelError, match="is not finite"):
            load_card(write_card(own / "made", json.dumps(data)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_a_card_that_never_ends_is_not_read(own: Path) -> None:
    (own / "pipe").mkdir()
    os.mkfifo(own / "pipe" / "card.json")
    (own / "zero").mkdir()
    (own / "zero" / "card.json").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ModelError, match="not a regular file"):
            find_card(name)


def test_a_folder_here_does_not_replace_a_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_card(tmp_path / "brain", card_text("brain", id="brain", name="Not the bundled one"))
    assert find_card("brain").folder == BUNDLED_MODELS / "brain"
    assert find_card("./brain").name == "Not the bundled one"
    assert find_card(str(tmp_path / "brain")).name == "Not the bundled one"
    write_card(tmp_path / "mine", card_text(id="mine"))
    with pytest.raises(ModelError, match=r"write it as a path: \./mine"):
        find_card("mine")


def test_a_model_of_ones_own_does_not_replace_a_bundled_one(own: Path, capsys: Capture) -> None:
    write_card(own / "aaa", card_text("brain", id="brain", name="Not the bundled one"))
    assert find_card("brain").folder == BUNDLED_MODELS / "brain"
    assert main(["models", "list"]) == 0
    assert "has the id 'brain'" in capsys.readouterr().out


def test_of_two_models_with_one_id_the_first_is_used_and_the_other_told_of(own: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(BUNDLED_MODELS / "hippocampus", own / name)
        write_card(own / name, card_text())
    assert find_card("made").folder == own / "first"
    with pytest.raises(ModelError, match="Give it another id"):
        find_card("second")


@pytest.mark.parametrize(
    "name", ["x" * 5000, "./" + "x" * 5000, "a\x00b", "./a\x00b", "\udcff", ""]
)
def test_a_name_that_cannot_be_a_file_is_just_unknown(name: str) -> None:
    with pytest.raises(ModelError, match="There is no model"):
        find_card(name)


def test_a_card_that_is_read_can_be_written_and_read_again(own: Path) -> None:
    chance = random.Random(SEED)
    original = json.loads(card_text())
    for _ in range(MUTATIONS):
        folder = write_card(own / "made", json.dumps(mutated(original, chance)))
        try:
            card = load_card(folder)
        except ModelError:
            continue
        write_card(own / "again", json.dumps(card.to_dict()))
        assert load_card(own / "again").to_dict() == card.to_dict()


@pytest.mark.parametrize("labels", [[99], [[1, 99]], [{}], 5, "all", [None]])
def test_suggestions_for_labels_that_are_not_there_are_a_fault_of_the_card(
    labels: Any, own: Path
) -> None:
    """Found before anything is predicted: the weights are missing."""
    suggested = [{"name": "largest_component", "labels": labels}]
    folder = write_card(own / "made", card_text(suggested_refinements=suggested))
    with pytest.raises(ModelError, match="refinement"):
        segment(SegmentationRequest((scan(),), (str(folder),), backend="torch"))


@pytest.mark.parametrize("model", ["hippocampus", "without"])
def test_dropout_passes_of_a_model_without_dropout_are_refused(model: str, own: Path) -> None:
    settings = json.loads(card_text("brain"))["settings"] | {"dropout": 0.0}
    write_card(own / "without", card_text("brain", id="without", settings=settings))
    with pytest.raises(RequestError, match=f"'{model}' has no dropout"):
        segment(
            SegmentationRequest((scan(),), (model,), backend="torch", dropout_passes=3),
        )


def test_without_a_home_there_are_the_bundled_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDSEGAI_MODELS")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert catalogue.user_models_folder() is None
    assert [card.id for _, card in read_cards() if not isinstance(card, ModelError)] == [
        "brain",
        "hippocampus",
        "nuclei",
    ]


SETTINGS_3D: dict[str, tuple[Any, ...]] = {
    "patch": (
        [1] * 3,
        [32] * 2,
        [2**20] * 3,
        [512] * 3,
        [33] * 3,
        [0] * 3,
        [32.5] * 3,
        32,
        [2**70] * 3,
    ),
    "grid": ([2**20] * 3, [1024] * 3, [64] * 2, [-64] * 3, 64, ["64"] * 3),
    "spacing_mm": ([0.001] * 3, [0] * 3, [2.0], "2", [10.0**30] * 3),
    "intensity": ("none of these", 7),
    "antialias": ("no", 0, []),
    "network": (
        "large",
        7,
        {"class": 3},
        {"class": "x"},
        {"class": "PlainConvUNet", "arguments": {}},
    ),
    "widths": ([2**20] * 2, [4096] * 12, [4] * 100, [0, 4], [4, "8"], 4, [4], [4.0, 8.0]),
    "fold": (0, 3, 64, 2**70, "1", 1.0, True),
    "class_weights": ([1] * 3, [0] * 4, 4, "abcd", {"a": 1}, [10**39] * 4, ["1"] * 4),
    "weight_power": ("1", [1], 10**39, -1e300, True),
}
"""What settings of a member of the family unet3d must not be; no value here is right."""


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with members of both families, which works."""
    folder = tmp_path_factory.mktemp("joint")
    test_joint_model.write_joint_model(folder, class_weights=[1.0] * 4, weight_power=0.5)
    assert set(load_model(load_card(folder)).card.families()) == {"quicknat", "unet3d"}
    return folder


@pytest.mark.parametrize("name", SETTINGS_3D)
def test_settings_of_a_3d_network_that_cannot_be_are_refused_with_little_memory(
    name: str, joint: Path, own: Path
) -> None:
    """Also where each would be possible alone, but takes gigabytes."""
    original = json.loads((joint / "card.json").read_text())
    shutil.copytree(joint, own / "made")
    before = peak_bytes()
    for value in (*SETTINGS_3D[name], *STRANGE):
        data = copy.deepcopy(original)
        data["members"][-1]["settings"][name] = value
        folder = write_card(own / "made", json.dumps(data))
        with contextlib.suppress(MedSegAIError):
            card = load_card(folder)
            with as_if_free(bytes_free=1 << 30):
                segment(test_joint_model.request(folder, "fast"))
            assert value in (None, 0, True, 0.5), (name, value, card)
    assert peak_bytes() - before < 500 << 20


def test_mutated_cards_of_two_families_load_or_say_why(joint: Path, own: Path) -> None:
    chance = random.Random(SEED)
    original = json.loads((joint / "card.json").read_text())
    reasons = []
    for _ in range(MUTATIONS):
        folder = write_card(own / "made", json.dumps(mutated(original, chance)))
        try:
            load_model(load_card(folder))
        except MedSegAIError as error:
            reasons.append(str(error))
    assert MUTATIONS / 3 < len(reasons) < MUTATIONS
    assert max(map(len, reasons)) < 1000


@contextlib.contextmanager
def as_if_free(bytes_free: int) -> Iterator[None]:
    """Within, models see a machine with little memory."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_memory, "available_memory", lambda: bytes_free)
        yield


def peak_bytes() -> int:
    """Most memory that this process had until now."""
    return int(peak_memory_mb() * 1e6)
