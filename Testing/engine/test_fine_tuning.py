"""Fine-tuning: from corrected cases to a new model that is better on them and no worse elsewhere, or to none."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medsegai.cli import main
from medsegai.engine import segment
from medsegai.errors import GeometryError, InputError, MedSegAIError, ModelError, RequestError
from medsegai.models.card import load_card
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.training import quicknat, unet3d
from medsegai.training.checkpoint import best_weights_name, load_weights, read_log
from medsegai.training.config import TrainingConfig, corrected_cases, load_config
from medsegai.training.config import configured as from_arguments
from medsegai.training.corrected import card_of_members, held_out_names, mixed_source
from medsegai.training.data import TRAINING
from medsegai.training.fine_tuning import FineTuning, Judgement, Verdict, fine_tune, slowed
from medsegai.training.run import RunOptions, TimeLimit, begin_with, train
from medsegai.training.trainer import Trainer, training_process
from training_phantom import LEFT, LIA, MIDDLE, RIGHT, head, write_phantom, write_volumetric_phantom

CPU = torch.device("cpu")
NAMES = {"Left hemisphere": LEFT, "Right hemisphere": RIGHT, "Brain stem": MIDDLE}
TUNING = """
[fine_tuning]
steps = 60
rate = 1.0
every = 15
patience = 4
pool = 3
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training file, card and maps of 3D networks, with `fine_tuning`."""
    path = write_volumetric_phantom(tmp_path_factory.mktemp("phantom"))
    text = path.read_text().replace("learning_rate = 5e-3", "learning_rate = 3e-2")
    path.write_text(text.replace("[[tissues]]", TUNING + "\n[[tissues]]"))
    return path


@pytest.fixture(scope="module")
def start(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has hardly learned anything."""
    config = dataclasses.replace(load_config(phantom), steps=1)
    folder = tmp_path_factory.mktemp("start")
    return train(unet3d.build_trainers, config, RunOptions(folder, device="cpu"), Progress())


def write_cases(folder: Path, count: int) -> Path:
    """Corrected cases as the panel keeps them: labels are numbered in the order of the card."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    describe(folder)
    chance = np.random.default_rng(0)
    for number in range(count):
        labels = head(0.9 + 0.05 * number)
        numbered = np.zeros(labels.shape, np.uint8)
        for place, value in enumerate(NAMES.values(), start=1):
            numbered[labels == value] = place
        image = 100.0 * numbered + chance.normal(50, 5, labels.shape)
        save(folder / "labelsTr" / f"case_{number}.nii.gz", numbered)
        save(folder / "imagesTr" / f"case_{number}_0000.nii.gz", image.astype(np.float32))
    return folder


def describe(folder: Path, channels: int = 1, **labels: object) -> None:
    """dataset.json, with more labels than those of the phantom where they are given."""
    numbered: dict[str, object] = {name: number for number, name in enumerate(NAMES, start=1)}
    dataset = {
        "channel_names": {str(number): "MR" for number in range(channels)},
        "labels": {"background": 0, **numbered, **labels},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = LIA) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def load(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("cases") / "Dataset900_Corrected_phantom", 4)


@pytest.fixture(scope="module")
def tuned(
    phantom: Path, start: Path, cases: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A whole run from the command line, of one of the two members."""
    folder = tmp_path_factory.mktemp("tuned")
    command = ["train", "unet3d", phantom, "--from", start, "--data", cases, "-o", folder]
    command += ["--members", "plain", "--maps", phantom.parent / "maps", "--device", "cpu"]
    assert main([str(word) for word in command]) == 0
    return folder


def tune(
    phantom: Path, start: Path, cases: Path, folder: Path, resume: bool = False, **tuning: object
) -> Path:
    options = RunOptions(folder, resume=resume, device="cpu", start=str(start))
    config = configured(phantom, **tuning)
    return fine_tune(unet3d.build_trainers, config, cases, options, Progress())


def configured(phantom: Path, *members: str, **tuning: object) -> TrainingConfig:
    config = load_config(phantom)
    changed = dataclasses.replace(config.fine_tuning, **tuning)
    return dataclasses.replace(config, members=members or ("plain",), fine_tuning=changed)


def test_the_new_model_is_better_on_held_out_cases_and_says_so(start: Path, tuned: Path) -> None:
    old, new = load_card(start), load_card(tuned / "model")
    new.verify()
    assert (new.id, new.calibration) == (f"{old.id}-fine-tuned", None)
    assert "3 corrected cases; 1 more was held out" in new.origin
    figures = new.performance["fine-tuning"]["plain"]
    for kind in ("held-out corrected cases", "synthetic images"):
        assert figures[kind]["mean_dice_after"] >= figures[kind]["mean_dice_before"]
    corrected = figures["held-out corrected cases"]
    assert corrected["mean_dice_after"] > corrected["mean_dice_before"] + 0.1
    assert (tuned / "curves.png").is_file()
    untouched, trained = (
        [card.weights_path(card.member(name)).read_bytes() for card in (old, new)]
        for name in ("fine", "plain")
    )
    assert untouched[0] == untouched[1]
    assert trained[0] != trained[1]
    assert new.member("plain").settings == old.member("plain").settings


def test_its_labels_of_the_held_out_case_are_better(start: Path, tuned: Path, cases: Path) -> None:
    """By the engine, from the files: Dice of all structures together."""
    (held,) = held_out_names([f"case_{number}.nii.gz" for number in range(4)], 0.25, 3)
    truth = load(cases / "labelsTr" / held) > 0
    scan = cases / "imagesTr" / held.replace(".nii.gz", "_0000.nii.gz")
    dice = []
    for model in (start, tuned / "model"):
        request = SegmentationRequest(
            (scan,), (str(model),), members=("plain",), device="cpu", backend="torch", anyway=True
        )
        found = segment(request).labelmap.voxels.T > 0
        dice.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert dice[1] > dice[0] + 0.1


def test_a_run_that_is_stopped_and_resumed_ends_as_one_that_was_not(
    phantom: Path,
    start: Path,
    cases: Path,
    tuned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A time limit ends each piece after 13 steps, the first before there is anything to give."""
    ends = itertools.cycle([*[False] * 12, True])
    monkeypatch.setattr(TimeLimit, "is_over", lambda self: next(ends))
    with pytest.raises(ModelError, match=r"No model was written, because .* --resume"):
        tune(phantom, start, cases, tmp_path)
    for _ in range(4):
        tune(phantom, start, cases, tmp_path, resume=True)
    assert read_log(tmp_path / "log.jsonl")[-1]["step"] == 60
    for name in ("best-plain.safetensors", "model/plain.safetensors"):
        straight, pieces = load_weights(tuned / name), load_weights(tmp_path / name)
        assert all(torch.equal(straight[key], pieces[key]) for key in straight)


def test_quicknat_is_fine_tuned_by_the_same_command(cases: Path, tmp_path: Path) -> None:
    """Without the label maps of the training: synthetic images are made of the corrected ones."""
    path = write_phantom(tmp_path)
    path.write_text(path.read_text().replace("[[tissues]]", TUNING + "\n[[tissues]]"))
    config = dataclasses.replace(load_config(path), members=("coronal",), steps=1)
    run = RunOptions(tmp_path / "start", device="cpu")
    start = train(quicknat.build_trainers, config, run, Progress())
    for file in (tmp_path / "maps").iterdir():
        file.unlink()
    command = ["train", "quicknat", path, "--from", start, "--data", cases, "--views", "coronal"]
    command += ["-o", tmp_path / "run", "--device", "cpu"]
    assert main([str(word) for word in command]) == 0
    figures = load_card(tmp_path / "run" / "model").performance["fine-tuning"]["coronal"]
    assert figures["step"] > 0


def test_without_a_better_network_there_is_no_model_and_no_waiting(
    phantom: Path, start: Path, cases: Path, tmp_path: Path
) -> None:
    """A rate that changes nothing: the run ends after the judgements that it waits for."""
    with pytest.raises(ModelError, match=r"No model was written: plain has Dice .* before"):
        tune(phantom, start, cases, tmp_path, rate=1e-9, every=2, patience=2)
    steps = [entry["step"] for entry in read_log(tmp_path / "log.jsonl")]
    assert max(steps) == 4
    assert not (tmp_path / "model").exists()


LOGGED = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=9)


@given(LOGGED)
def test_the_best_is_better_on_corrected_cases_and_never_worse_on_synthetic_ones(
    dice: list[tuple[int, int]],
) -> None:
    entries = [
        {"event": event, "step": 10 * number, "view": "plain", "dice": value / 9}
        for number, pair in enumerate(dice)
        for event, value in zip(("corrected", "validate"), pair, strict=True)
    ]
    verdict = Verdict.of([*entries, {"event": "train", "step": 5, "view": "plain"}], "plain")
    better = [c for c, s in dice[1:] if c > dice[0][0] and s >= dice[0][1]]
    assert (verdict.best is None) == (not better)
    if verdict.best is not None:
        first = next(n for n, (c, s) in enumerate(dice) if c == max(better) and s >= dice[0][1])
        assert (verdict.best.corrected, verdict.best.step) == (max(better) / 9, 10 * first)
        assert verdict.since_best() == len(dice) - 1 - first
    else:
        assert verdict.since_best() == len(dice) - 1
    assert verdict.last_is_best == (verdict.best is not None and verdict.since_best() == 0)


@given(LOGGED, st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=3))
def test_weights_between_old_and_new_count_only_if_no_trained_network_passes(
    dice: list[tuple[int, int]], between: list[tuple[int, int]]
) -> None:
    trained = [Judgement(step, c / 9, s / 9) for step, (c, s) in enumerate(dice)]
    mixed = [Judgement(len(dice), c / 9, s / 9, 0.5) for c, s in between]
    alone, both = Verdict(trained), Verdict(trained + mixed)
    assert both.since_best() == alone.since_best()
    if alone.best is not None:
        assert both.best == alone.best
    else:
        passing = [c for c, s in between if c > dice[0][0] and s >= dice[0][1]]
        assert (both.best.corrected if both.best else None) == (
            max(passing) / 9 if passing else None
        )


@dataclasses.dataclass
class MovedBy:
    """Judges a network by how far its weights have moved, as the Dice of a validation."""

    dice_of: Callable[[float], float]
    trainer: Trainer
    old: torch.Tensor
    figure: float = float("nan")

    def dice(self, task: object, predict: object, check: object) -> MovedBy:
        weight = next(self.trainer.judged.parameters())
        moved = float((weight.detach() - self.old).mean())
        return dataclasses.replace(self, figure=self.dice_of(moved))

    def per_class(self) -> dict[int, float]:
        return {}

    def mean(self) -> float:
        return self.figure


def test_weights_between_the_old_and_the_new_ones_are_kept_if_only_they_pass(
    phantom: Path, start: Path, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New weights that are 1 larger are better on corrected cases, but from 0.5 on worse on synthetic images."""
    card = load_card(start)
    config = slowed(configured(phantom))
    place = training_process("cpu")
    learned = card_of_members(card, config.members)
    source = mixed_source(config, learned, cases, place.device)
    trainers = unet3d.build_trainers(config, learned, config.members, source, place)
    begin_with(trainers, card)
    run = FineTuning(config, trainers, source, tmp_path)
    (trainer,) = trainers
    old = next(trainer.judged.parameters()).detach().clone()
    judges = {
        "validate": MovedBy(lambda moved: 0.5 - max(0.0, moved - 0.5), trainer, old),
        "corrected": MovedBy(lambda moved: 0.2 + 0.3 * moved, trainer, old),
    }
    monkeypatch.setattr(run, "_judges", lambda check: judges)
    run.begin(resume=False)
    run.validate()
    with torch.no_grad():
        for values in trainer.judged.state_dict().values():
            values.add_(1.0)
    run.done = 8
    run.validate()
    assert run.verdict(trainer).best is None
    run.mix(card)
    best = run.verdict(trainer).best
    assert best is not None
    assert (best.step, best.share) == (8, 0.5)
    assert best.corrected == pytest.approx(0.35)
    kept = load_weights(tmp_path / best_weights_name("plain"))
    name, weight = next(iter(trainer.judged.named_parameters()))
    assert torch.allclose(kept[name], old + 0.5, atol=1e-6)
    assert torch.allclose(weight, old + 1.0, atol=1e-6), (
        "the network itself stays as it was trained"
    )
    run.end()


@given(st.integers(2, 40), st.floats(0.01, 1.0), st.integers(0, 99))
def test_some_cases_are_held_out_and_some_are_not(count: int, share: float, seed: int) -> None:
    names = [f"case_{number}" for number in range(count)]
    held = held_out_names(names, share, seed)
    assert set(held) < set(names)
    assert abs(len(held) - share * count) <= 1
    assert held == held_out_names(names[::-1], share, seed)


def test_both_kinds_of_images_are_learned_from(phantom: Path, start: Path, cases: Path) -> None:
    """Corrected images vary little in contrast: background is dark, and the middle is bright."""
    config, card = configured(phantom, corrected_share=0.5), load_card(start)
    source = mixed_source(config, card_of_members(card, ["plain"]), cases, CPU)
    assert len(source.corrected.cases) == 3
    assert [case.name for case in source.synthetic.held_out] == ["head2.nii.gz"]
    real = 0
    for index in range(24):
        sample = source.sample(TRAINING, index)
        same = [np.array_equal(sample.image, kind.sample(TRAINING, index).image)
                for kind in (source.corrected, source.synthetic)]  # fmt: skip
        assert same in ([True, False], [False, True])
        real += same[0]
        assert set(np.unique(sample.targets)) <= {0, 1, 2, 3}
    assert 5 < real < 19
    (held,) = source.held_out_samples()
    assert set(np.unique(held.targets)) == {0, 1, 2, 3}


def test_a_head_that_is_cut_off_is_learned_from_as_it_is(
    phantom: Path, start: Path, tmp_path: Path
) -> None:
    """Half of the head is not in the image, and no label is made up for it."""
    folder = write_cases(tmp_path / "cases", 2)
    for path in (*folder.glob("*/case_1*.nii.gz"), *folder.glob("*/case_0*.nii.gz")):
        save(path, load(path)[26:])
    source = mixed_source(configured(phantom), load_card(start), folder, CPU)
    (held,) = source.held_out_samples()
    assert set(np.unique(held.targets)) == {0, 1, 3}
    assert set(np.unique(held.targets[held.image == 0])) == {0}


def other_grid(folder: Path) -> None:
    path = folder / "labelsTr" / "case_0.nii.gz"
    moved = LIA.copy()
    moved[:3, 3] += 1.0
    save(path, load(path), moved)


def unknown_value(folder: Path) -> None:
    path = folder / "labelsTr" / "case_0.nii.gz"
    voxels = load(path).copy()
    voxels[0, 0, 0] = 77
    save(path, voxels)


def empty(folder: Path) -> None:
    path = folder / "labelsTr" / "case_0.nii.gz"
    save(path, np.zeros_like(load(path)))


def one_case(folder: Path) -> None:
    for path in folder.glob("*/case_0*"):
        path.unlink()


def no_image(folder: Path) -> None:
    (folder / "imagesTr" / "case_0_0000.nii.gz").unlink()


BAD: dict[str, tuple[Callable[[Path], None], type[MedSegAIError], str]] = {
    "other grid": (other_grid, GeometryError, "case_0"),
    "unknown value": (unknown_value, InputError, r"case_0.nii.gz has 1 value .* 77"),
    "unknown name": (lambda folder: describe(folder, Kidney=4), InputError, "Kidney"),
    "regions": (
        lambda folder: describe(folder, **{"Brain stem": [1, 2]}),
        InputError,
        "such as a region",
    ),
    "channels": (lambda folder: describe(folder, channels=2), InputError, "has no image|channels"),
    "empty": (empty, InputError, "case_0.nii.gz is empty"),
    "one case": (one_case, InputError, "one case"),
    "no image": (no_image, InputError, "case_0_0000"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_cases_are_refused_before_anything_is_written(
    kind: str, phantom: Path, start: Path, tmp_path: Path
) -> None:
    spoil, error, words = BAD[kind]
    folder = write_cases(tmp_path / "cases", 2)
    spoil(folder)
    with pytest.raises(error, match=words):
        tune(phantom, start, folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_members_of_different_voxels_are_fine_tuned_one_by_one(start: Path) -> None:
    card = load_card(start)
    fine = dataclasses.replace(
        card.members[0], settings={**card.members[0].settings, "spacing_mm": [1.0, 1.0, 1.0]}
    )
    card = dataclasses.replace(card, members=(fine, *card.members[1:]))
    assert card_of_members(card, ["fine"]).spacing_mm == (1.0, 1.0, 1.0)
    assert card_of_members(card, ["plain"]).spacing_mm == card.spacing_mm
    with pytest.raises(RequestError, match="one by one"):
        card_of_members(card, ["fine", "plain"])


def test_corrected_cases_need_a_model_and_maps_need_corrected_cases(
    phantom: Path, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (["--data", cases], "--from"),
        (["--maps", phantom.parent / "maps"], "--maps is used only with corrected cases"),
        (["--data", tmp_path / "none"], f"--data: {tmp_path}/none is not a folder"),
        (
            ["--data", cases, "--maps", tmp_path / "none", "--from", "brain"],
            f"--maps: {tmp_path}/none is not a folder",
        ),
    ):
        command = ["train", "unet3d", phantom, "-o", tmp_path / "run", *words]
        assert main([str(word) for word in command]) == RequestError.exit_code
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("tuned", [True, False])
def test_options_of_the_command_line_count_for_both_kinds_of_training(
    tuned: bool, phantom: Path, cases: Path, tmp_path: Path
) -> None:
    """`--steps`, `--members` and the folders; what they mean depends on what `--data` names."""
    arguments = argparse.Namespace(
        config=phantom,
        data=cases if tuned else tmp_path,
        maps=tmp_path if tuned else None,
        start="brain" if tuned else "",
        members=["plain"],
        steps=7,
    )
    config = from_arguments(arguments)
    assert corrected_cases(arguments) == (cases if tuned else None)
    assert config.members == ("plain",)
    assert Path(config.data.root) == tmp_path.resolve()
    assert (slowed(config) if tuned else config).steps == 7
    assert config.steps == (6 if tuned else 7)


def test_a_training_is_resumed_whatever_its_file_says_of_fine_tuning(phantom: Path) -> None:
    config, other = load_config(phantom), configured(phantom, "fine", "plain", rate=0.5)
    assert config.fingerprint() == other.fingerprint()


@pytest.mark.parametrize("line", ["rate = 0.0", "held_out = 2.0", "patience = 0", "every = 0"])
def test_impossible_settings_are_refused(line: str, phantom: Path, tmp_path: Path) -> None:
    text = phantom.read_text()
    name = line.split(" = ")[0]
    kept = [row for row in TUNING.splitlines() if not row.startswith(name)]
    path = tmp_path / "training.toml"
    path.write_text(text.replace(TUNING, "\n".join([*kept, line, ""])))
    with pytest.raises(RequestError, match=rf"fine_tuning\.{name}"):
        load_config(path)
