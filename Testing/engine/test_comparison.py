"""The comparison of networks: which differences are called real, and the report."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from made_pictures import dataset
from medsegai.cli import main
from medsegai.errors import InputError, RequestError
from medsegai.training.unet2d.comparison import Network, Trained, differences, grid, load_comparison


def network(name: str, dice: np.ndarray, groups: list[str] | None = None) -> Trained:
    names = [f"c{n}" for n in range(len(dice))]
    scores = dict(zip(names, dice.tolist(), strict=True))
    owners = dict(zip(names, groups or names, strict=True))
    return Trained(name, scores, scores, owners, {"0": float(dice.mean())}, 1, 1.0, (Path(),))


def test_a_difference_that_every_case_shows_is_real() -> None:
    random = np.random.default_rng(0)
    easy = random.uniform(0.7, 0.99, 40)  # cases differ far more than networks
    found = differences(
        [network("a", easy), network("b", easy + 0.01 + random.normal(0, 0.003, 40))]
    )
    assert (found[0].first, found[0].real) == ("b", True)
    assert found[0].low < 0.01 < found[0].high


def test_chance_is_hardly_ever_called_real() -> None:
    random = np.random.default_rng(1)
    called = 0
    for _ in range(60):
        alike = [network(name, 0.9 + random.normal(0, 0.02, 30)) for name in "abcd"]
        called += any(item.real for item in differences(alike))
    assert called <= 9, "at most 5 % of comparisons, of which 9 of 60 is far away"


def test_cases_of_one_group_do_not_count_as_many() -> None:
    """Ten copies of the same six patients are not sixty."""
    values = np.repeat(np.random.default_rng(2).normal(0.004, 0.01, 6), 10)
    groups = [f"p{n // 10}" for n in range(60)]
    base = np.full(60, 0.9)
    apart = differences([network("a", base), network("b", base + values)])[0]
    together = differences([network("a", base, groups), network("b", base + values, groups)])[0]
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_networks_of_other_cases_are_not_compared() -> None:
    one = network("a", np.full(4, 0.9))
    with pytest.raises(InputError, match="not judged on the same cases"):
        differences([one, replace(one, name="b", dice={"x": 0.9})])


COMPARISON = """
training = "data/training.toml"
encoders = ["plain"]
decoders = ["unet", "unetplusplus"]
folds = [0]
"""


def test_the_command_trains_the_grid_and_reports(tmp_path: Path) -> None:
    training = dataset(tmp_path / "data", 4)
    training.write_text(training.read_text().replace("epochs = 6", "epochs = 1"))
    (tmp_path / "compare.toml").write_text(COMPARISON)
    arguments = ["compare", str(tmp_path / "compare.toml"), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--device", "cpu"]) == 0
    values = json.loads((tmp_path / "out/comparison.json").read_text())
    assert [item["name"] for item in values["networks"]] == [
        "unet plain, from scratch",
        "unetplusplus plain, from scratch",
    ]
    page = (tmp_path / "out/comparison.html").read_text()
    assert page.count("<img") >= 2 * 4 + 2
    assert "http" not in page
    weights = tmp_path / "out/unet-plain-scratch-seed1/best-fold_0.safetensors"
    before = weights.stat().st_mtime_ns
    assert main([*arguments, "--device", "cpu"]) == 0
    assert weights.stat().st_mtime_ns == before, "what is trained is not trained again"


def test_a_network_that_cannot_learn_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = dataset(tmp_path / "data", 4)
    training.write_text(
        training.read_text().replace("learning_rate = 1e-2", "learning_rate = 1e30")
    )
    (tmp_path / "compare.toml").write_text(COMPARISON)
    arguments = ["compare", str(tmp_path / "compare.toml"), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--device", "cpu"]) == 4
    assert "unet plain, from scratch, seed 1: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing is left of a comparison that learned nothing"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('training = "t.toml"\nencoders = 3', "encoders"),
        ('training = "t.toml"\nwidth = 3', "width"),
        ('training = "t.toml"\ndecoders = ["unet"]', "two networks"),
        ('training = "t.toml"\nencoders = ["plain", "plain"]', "encoders names something twice"),
        ('training = "t.toml"\nseeds = [1, 1]', "seeds names something twice"),
        ("= ", "cannot be read as TOML"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(RequestError, match=words):
        grid(load_comparison(tmp_path / "c.toml"))


def test_each_beginning_of_a_network_has_a_name_and_a_folder_of_its_own() -> None:
    """Two files of weights had one folder, so the second training was refused after the first had ended."""
    begun = ("", "package", "a/weights.pt", "b/weights.pt")
    networks = [Network("plain", "unet", how) for how in begun]
    assert len({network.name for network in networks}) == len(begun)
    assert len({network.folder(1) for network in networks}) == len(begun)


def test_a_fold_that_is_not_made_is_refused_by_the_name_of_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(tmp_path / "data", 4)
    (tmp_path / "compare.toml").write_text(COMPARISON.replace("folds = [0]", "folds = [0, 2]"))
    assert main(["compare", str(tmp_path / "compare.toml"), "-o", str(tmp_path / "out")]) == 2
    assert "compare.toml: folds must lie between 0 and 1" in capsys.readouterr().err


@pytest.mark.parametrize("more", ['encoders = ["plain", "plane"]', 'pretrained = ["", "none.pt"]'])
def test_a_mistake_in_the_last_network_is_found_before_the_first_is_trained(
    more: str, tmp_path: Path
) -> None:
    """The first networks had been trained, for hours, when the misspelt one was met."""
    dataset(tmp_path / "data", 4)
    text = "\n".join(line for line in COMPARISON.splitlines() if not line.startswith(more[:8]))
    (tmp_path / "compare.toml").write_text(f"{text}\n{more}\n")
    arguments = ["compare", str(tmp_path / "compare.toml"), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--device", "cpu"]) != 0
    assert not (tmp_path / "out").exists()
