"""Training of classifiers: stages, exact resume, folds, the report, and PatchCamelyon's layout from end to end."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import picture_sets
from medsegai.cli import main
from medsegai.errors import Cancelled, DeviceError, InputError, ModelError, RequestError
from medsegai.evaluation.heat_maps import heat_maps
from medsegai.io.picture_sets import read_pictures
from medsegai.models.card import load_card
from medsegai.progress import Progress, ProgressEvent, ProgressListener
from medsegai.training import patches, patches_run
from medsegai.training.checkpoint import load_weights
from medsegai.training.patches import Encoded, FoldTraining, FrozenFeatures, folds_of
from medsegai.training.patches_options import PatchTraining
from medsegai.training.patches_run import normal_class, train_patches
from medsegai.training.pictures import SizedPictures, change_of, mixed, stained
from medsegai.training.run import RunOptions


@pytest.fixture(autouse=True)
def short_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "FINDER_STEPS", 6)
    monkeypatch.setattr(patches, "VARIANTS", 1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture_sets.write_folders(tmp_path_factory.mktemp("pictures") / "shapes", 8)


def tiny(pictures: Path, **values: object) -> PatchTraining:
    own = {"encoder": "plain", "folds": 2, "epochs": 1, "batch": 4, "learning_rate": 1e-3}
    return PatchTraining(pictures, **{**own, **values})  # type: ignore[arg-type]


def fold_of(training: PatchTraining) -> FoldTraining:
    found = read_pictures(training.pictures)
    sized = SizedPictures(found, (32, 32))
    frozen = FrozenFeatures(training, sized, Encoded.of(training), torch.device("cpu"))
    return FoldTraining(frozen, folds_of(found, training)[0])


def test_a_run_gives_figures_a_report_and_a_model(pictures: Path, tmp_path: Path) -> None:
    training = tiny(pictures, epochs=0, prior=1.0)
    folder = train_patches(training, RunOptions(tmp_path / "run", device="cpu"), Progress())
    with (folder / "held-out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["picture"] for row in rows}) == 16
    figures = json.loads((folder / "evaluation.json").read_text())
    right = np.mean([row["true"] == row["decided"] for row in rows])
    assert figures["accuracy"]["value"] == pytest.approx(right)
    assert right >= 0.7, "discs and stripes differ even for random features"
    card = load_card(folder / "model")
    assert [member.name for member in card.members] == ["fold 0", "fold 1"]
    assert [label.name for label in card.labels] == ["disc", "stripes"]
    card.verify()
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png") == 3
    assert "AUC" in page


def test_the_report_shows_the_worst_mistakes_with_heat_maps(tmp_path: Path) -> None:
    """Two pictures lie in the wrong folder, so they are mistakes."""
    root = picture_sets.write_folders(tmp_path / "shapes", 8)
    for one, other in (("disc/0.png", "stripes/0.png"), ("disc/1.png", "stripes/1.png")):
        kept = (root / one).read_bytes()
        (root / one).write_bytes((root / other).read_bytes())
        (root / other).write_bytes(kept)
    training = tiny(root, epochs=0, augmentation="none")
    folder = train_patches(training, RunOptions(tmp_path / "run", device="cpu"), Progress())
    page = (folder / "report.html").read_text()
    assert "Worst mistakes" in page
    assert "Beside it: Grad-CAM, occlusion." in page
    assert page.count("data:image/jpeg") >= 4 * 3


def stop_after(steps: int, progress: Progress) -> ProgressListener:
    """A listener that stops the job after so many steps."""
    seen: list[ProgressEvent] = []

    def listen(event: ProgressEvent) -> None:
        seen.append(event)
        if len(seen) >= steps:
            progress.cancel.set()

    return listen


def test_without_monai_it_is_said_what_to_install(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A training needs it; a report does without heat maps."""
    monkeypatch.setitem(sys.modules, "monai.visualize", None)
    assert heat_maps(torch.nn.Identity(), "", torch.zeros(1), 0) == {}
    assert "No heat maps" in caplog.text
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"medsegai\[train\]"):
        train_patches(tiny(pictures), RunOptions(tmp_path / "run", device="cpu"), Progress())
    assert not (tmp_path / "run").exists()


def test_random_weights_are_noted(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    Encoded.of(tiny(pictures))
    assert "starts from random weights" in caplog.text
    caplog.clear()
    Encoded.of(tiny(pictures, weights="none"))
    assert not caplog.text


def test_a_training_that_was_stopped_goes_on_exactly(pictures: Path, tmp_path: Path) -> None:
    training = tiny(pictures, epochs=2, mixup=0.4, balance=True)
    whole = train_patches(training, RunOptions(tmp_path / "whole", device="cpu"), Progress())
    folder, resume = tmp_path / "parts", False
    for _ in range(20):
        progress = Progress()
        progress.listener = stop_after(18, progress)
        try:
            train_patches(training, RunOptions(folder, resume, "cpu"), progress)
            break
        except Cancelled:
            resume = (folder / "checkpoint.pt").exists()
    else:
        pytest.fail("it never ended")
    assert resume
    for name in ("best-0.safetensors", "best-1.safetensors"):
        one, other = load_weights(whole / name), load_weights(folder / name)
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (whole / "held-out.csv").read_text() == (folder / "held-out.csv").read_text()


def test_a_folder_with_a_training_is_not_used_twice(pictures: Path, tmp_path: Path) -> None:
    training = tiny(pictures, epochs=0)
    train_patches(training, RunOptions(tmp_path / "run", device="cpu"), Progress())
    with pytest.raises(RequestError, match="--resume"):
        train_patches(training, RunOptions(tmp_path / "run", device="cpu"), Progress())
    with pytest.raises(RequestError, match="another configuration"):
        train_patches(
            tiny(pictures, epochs=0, seed=2), RunOptions(tmp_path / "run", True, "cpu"), Progress()
        )


def test_a_picture_that_was_replaced_by_one_of_the_same_size_is_noticed(tmp_path: Path) -> None:
    root = picture_sets.write_folders(tmp_path / "shapes", 4)
    training, options = tiny(root, epochs=0), RunOptions(tmp_path / "run", device="cpu")
    train_patches(training, options, Progress())
    picture = root / "disc" / "0.png"
    content = picture.read_bytes()
    picture.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RequestError, match="other cases, groups or pictures"):
        train_patches(training, dataclasses.replace(options, resume=True), Progress())


def test_the_frozen_stage_is_the_logistic_regression_of_scikit_learn(pictures: Path) -> None:
    """For two classes a softmax with prior p on both weights is one sigmoid with prior p / 2."""
    work = fold_of(tiny(pictures, label_smoothing=0.0, augmentation="none", prior=4.0))
    work.solve_frozen(Progress())
    labels = work.pictures.pictures.labels
    features = work.frozen.of(work.fold.learned, 0, Progress()).numpy()
    scaler = StandardScaler().fit(features)
    witness = LogisticRegression(C=2 / 4.0, tol=1e-8, max_iter=1000)
    witness.fit(scaler.transform(features), labels[work.fold.learned])
    images = work.pictures.batch(work.fold.held_out.tolist())
    found = work.network.eval()(images).softmax(1)[:, 1].detach().numpy()
    held_out = scaler.transform(work.frozen.of(work.fold.held_out, 0, Progress()).numpy())
    np.testing.assert_allclose(found, witness.predict_proba(held_out)[:, 1], atol=0.02)


def test_deep_layers_learn_faster_than_shallow_ones_over_one_cycle(pictures: Path) -> None:
    work = fold_of(tiny(pictures, epochs=5))
    optimiser = work.optimiser()
    schedule = work.schedule(optimiser, 0.01)
    known = {id(weight): name for name, weight in work.network.named_parameters()}
    groups = [{known[id(weight)] for weight in group["params"]} for group in optimiser.param_groups]
    assert set.union(*groups) == set(known.values())
    assert sum(map(len, groups)) == len(known)
    assert any("levels.0.0.weight" in name for name in groups[0])
    assert "classifier.head.weight" in groups[-1]
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in optimiser.param_groups])
        optimiser.step()
        schedule.step()
    peak = int(np.argmax([rate[-1] for rate in rates]))
    assert rates[peak][0] == pytest.approx(0.001, rel=0.05)
    assert rates[peak][-1] == pytest.approx(0.01, rel=0.05)
    assert rates[0][-1] < rates[peak][-1] > rates[-1][-1]


def test_the_finder_leaves_the_network_as_it_was(pictures: Path) -> None:
    work = fold_of(tiny(pictures))
    before = {name: values.clone() for name, values in work.network.state_dict().items()}
    found = work.find_rate()
    assert 1e-6 <= found.rate <= 1
    assert len(found.rates) == len(found.losses) > 2
    after = work.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_balance_lets_a_rare_class_weigh_as_much(tmp_path: Path) -> None:
    root = picture_sets.write_folders(tmp_path / "set", 8, ("train", "valid"))
    for number in range(2, 8):
        (root / "train" / "disc" / f"{number}.png").unlink()
    work = fold_of(tiny(root, balance=True))
    assert work.loss.weight is not None
    torch.testing.assert_close(work.loss.weight * torch.tensor([2.0, 8.0]), torch.full((2,), 5.0))
    assert fold_of(tiny(root)).loss.weight is None


def test_a_class_within_one_fold_is_refused(tmp_path: Path) -> None:
    root = picture_sets.write_folders(tmp_path / "set", 4)
    rows = [{"picture": f"disc/{n}.png", "patient": "one"} for n in range(4)]
    rows += [{"picture": f"stripes/{n}.png", "patient": f"p{n}"} for n in range(4)]
    table = picture_sets.write_table(tmp_path / "patients.csv", rows)
    found = read_pictures(root, table)
    with pytest.raises(InputError, match=r"'disc' .* in one of 2 folds"):
        folds_of(found, tiny(root))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": 50}, "multiple of 32"),
        ({"folds": 1}, "folds must be at least 2"),
        ({"label_smoothing": 1.0}, "label-smoothing"),
        ({"mixup": -1.0}, "--mixup must be at least 0"),
        ({"seed": -1}, "--seed must lie between 0 and"),
        ({"size": 64_000}, "--size must lie between 0 and 4096"),
        ({"spacing_um": float("nan")}, "spacing-um"),
        ({"learning_rate": float("inf")}, "--learning-rate must be at least 0, not inf"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        tiny(Path("none"), **values)


def test_a_normal_class_that_is_not_there_is_refused_before_the_training(tmp_path: Path) -> None:
    root = picture_sets.write_folders(tmp_path / "set", 4)
    with pytest.raises(RequestError, match="class 'helthy' is unknown"):
        train_patches(tiny(root, normal="helthy"), RunOptions(tmp_path / "run"), Progress())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "named", "words"),
    [
        ({}, "two\nlines", "name of one line"),
        ({"spacing_um": 1e9}, "disc", "spacing_mm must lie between"),
    ],
)
def test_what_a_card_cannot_say_is_refused_before_the_training(
    values: dict[str, object], named: str, words: str, tmp_path: Path
) -> None:
    root = picture_sets.write_folders(tmp_path / "set", 4)
    (root / "disc").rename(root / named)
    with pytest.raises(RequestError, match=f"could not be written: .*{words}"):
        train_patches(tiny(root, **values), RunOptions(tmp_path / "run", device="cpu"), Progress())
    assert not (tmp_path / "run").exists()


def test_a_rate_that_is_far_too_high_is_said_to_be(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="loss of fold 0 is not a number"):
        train_patches(
            tiny(pictures, learning_rate=1e30, epochs=3),
            RunOptions(tmp_path / "run", device="cpu"),
            Progress(),
        )


def test_a_device_that_is_not_known_is_refused(pictures: Path, tmp_path: Path) -> None:
    for device in ("x", "meta", "cuda:x"):
        with pytest.raises(DeviceError):
            train_patches(tiny(pictures), RunOptions(tmp_path / "run", device=device), Progress())
    assert not (tmp_path / "run").exists()


def test_a_picture_that_cannot_be_read_leaves_nothing_behind(tmp_path: Path) -> None:
    """So that the same command can be run again without it."""
    root = picture_sets.write_folders(tmp_path / "set", 4)
    broken = root / "disc" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    options = RunOptions(tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match=r"2\.png cannot be read"):
        train_patches(tiny(root), options, Progress())
    assert not (tmp_path / "run").exists()
    broken.unlink()
    train_patches(tiny(root, epochs=0), options, Progress())


def test_a_training_is_resumed_with_the_pictures_that_it_began_with(tmp_path: Path) -> None:
    root = picture_sets.write_folders(tmp_path / "set", 5)
    train_patches(tiny(root, epochs=0), RunOptions(tmp_path / "run", device="cpu"), Progress())
    options = RunOptions(tmp_path / "run", resume=True, device="cpu")
    kept = (root / "disc" / "2.png").read_bytes()
    (root / "disc" / "2.png").write_bytes(kept + b"more")  # a picture still, but not the same file
    with pytest.raises(RequestError, match="started with other cases"):
        train_patches(tiny(root, epochs=0), options, Progress())
    (root / "disc" / "2.png").write_bytes(kept)
    train_patches(tiny(root, epochs=0), options, Progress())
    (root / "disc" / "2.png").unlink()
    with pytest.raises(RequestError, match="started with other cases"):
        train_patches(tiny(root, epochs=0), options, Progress())


def test_the_normal_class_is_known_by_its_name() -> None:
    assert normal_class(("Normal", "tumor"), "") == 0
    assert normal_class(("a", "b"), "") is None
    assert normal_class(("a", "b"), "b") == 1
    with pytest.raises(RequestError, match="class 'c' is unknown"):
        normal_class(("a", "b"), "c")


def test_patch_camelyon_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of the documents, on made patches in the layout of the real ones."""
    monkeypatch.setattr(patches_run, "WHOLE_PICTURE", 32)
    root = picture_sets.write_patch_camelyon(
        tmp_path / "pcam", {"train": 16, "valid": 8, "test": 4}
    )
    arguments = ["train", "patches", str(root), "-o", str(tmp_path / "run"), "--device", "cpu"]
    arguments += ["--spacing-um", "0.97", "--encoder", "plain", "--epochs", "1", "--batch", "8"]
    assert main(arguments) == 0
    card = load_card(tmp_path / "run" / "model")
    assert [label.name for label in card.labels] == ["tumor"]
    assert card.members[0].classes == ((), (1,))
    assert card.spacing_mm[0] == pytest.approx(0.00097)
    assert card.performance["held out"]["pictures"] == 8
    assert (tmp_path / "run" / "learning-rate-0.png").is_file()
    assert "Report, figures and model" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["slide", "radiograph"])
def test_changes_are_the_same_for_the_same_seed(kind: str) -> None:
    picture = torch.from_numpy(picture_sets.drawn(0, 0)).permute(2, 0, 1).float()
    change = change_of(kind)  # type: ignore[arg-type]
    one, other = change(picture, 1), change(picture, 2)
    assert torch.equal(one, change(picture, 1))
    assert not torch.equal(one, other)
    assert one.shape == picture.shape
    assert float(one.min()) >= 0
    assert float(one.max()) <= 255
    assert torch.equal(change_of("none")(picture, 1), picture)


def test_a_stain_changes_colours_and_leaves_glass() -> None:
    glass = torch.full((3, 4, 4), 255.0)
    torch.testing.assert_close(stained(glass, 1), glass)
    assert not torch.equal(stained(torch.full((3, 4, 4), 120.0), 1), torch.full((3, 4, 4), 120.0))


@given(count=st.integers(2, 6), alpha=st.floats(0.1, 2.0), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_mixup_mixes_pictures_and_classes_alike(count: int, alpha: float, seed: int) -> None:
    """Where a picture is its class, it stays so."""
    targets = torch.eye(count)
    images = targets[..., None].repeat(1, 1, 5)
    mixed_images, mixed_targets = mixed(images, targets, alpha, seed)
    torch.testing.assert_close(mixed_images[..., 0], mixed_targets)
    torch.testing.assert_close(mixed_targets.sum(1), torch.ones(count))
    assert (mixed_targets.diagonal() >= 0.5).all()
    same_images, same_targets = mixed(images, targets, 0.0, seed)
    assert same_images is images
    assert same_targets is targets
