"""A training that is stopped anywhere, also in its validation, and resumed is one that was never stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import picture_sets
from made_pictures import dataset
from medsegai.errors import Cancelled, ModelError
from medsegai.progress import Progress
from medsegai.training import patches, quicknat, unet3d
from medsegai.training.checkpoint import CHECKPOINT, LOG, load_weights, read_log
from medsegai.training.config import load_config
from medsegai.training.fine_tuning import fine_tune
from medsegai.training.patches_options import PatchTraining
from medsegai.training.patches_run import train_patches
from medsegai.training.run import RunOptions, train
from medsegai.training.unet2d import comparison
from medsegai.training.unet2d import config as config2d
from medsegai.training.unet2d import run as run2d
from stop_points import StopAt, checks_of
from test_comparison import COMPARISON
from test_fine_tuning import write_cases
from training_phantom import write_phantom, write_volumetric_phantom

Train = Callable[[Path, bool, Progress], object]
"""Trains in a folder, perhaps from the checkpoint there."""

SECONDS = ("seconds",)
FOLLOWING = ("lr",)
"""What each step sets anew from its number, so it does not matter in a checkpoint."""


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks this small are faster on one thread, and few rates do."""
    monkeypatch.setattr(patches, "FINDER_STEPS", 6)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def of_volumes(folder: Path, family: str) -> Train:
    write, module = {
        "quicknat": (write_phantom, quicknat),
        "unet3d": (write_volumetric_phantom, unet3d),
    }[family]
    config = load_config(write(folder))
    short = dataclasses.replace(config, steps=4, members=config.members[:1])
    sampling = dataclasses.replace(config.sampling, ahead=0, pool=2)
    validation = dataclasses.replace(config.validation, every=2, slice_step=16)
    short = dataclasses.replace(short, sampling=sampling, validation=validation)

    def run(out: Path, resume: bool, progress: Progress) -> object:
        return train(module.build_trainers, short, RunOptions(out, resume, "cpu"), progress)

    return run


def of_pictures(folder: Path) -> Train:
    path = dataset(folder / "data", 4)
    config = dataclasses.replace(config2d.load_config(path), epochs=2, patches_per_image=2)

    def run(out: Path, resume: bool, progress: Progress) -> object:
        return run2d.train(config, run2d.RunOptions2D(out, resume, "cpu"), progress)

    return run


def of_patches(folder: Path) -> Train:
    pictures = picture_sets.write_folders(folder / "shapes", 4)
    training = PatchTraining(
        pictures, encoder="plain", folds=2, epochs=1, batch=4, augmentation="none"
    )

    def run(out: Path, resume: bool, progress: Progress) -> object:
        return train_patches(training, RunOptions(out, resume, "cpu"), progress)

    return run


def of_corrected_cases(folder: Path) -> Train:
    """Fine-tuning of a model that has learned nothing; it need not end with a new one."""
    path = write_volumetric_phantom(folder)
    path.write_text(path.read_text().replace("[[tissues]]", "[fine_tuning]\n\n[[tissues]]"))
    config = dataclasses.replace(load_config(path), members=("plain",), steps=1)
    options = RunOptions(folder / "start", device="cpu")
    start = train(unet3d.build_trainers, config, options, Progress())
    cases = write_cases(folder / "Dataset900_Corrected_phantom", 2)
    tuning = dataclasses.replace(config.fine_tuning, steps=4, every=2, pool=2)
    config = dataclasses.replace(config, fine_tuning=tuning)

    def run(out: Path, resume: bool, progress: Progress) -> object:
        options = RunOptions(out, resume, "cpu", start=str(start))
        with contextlib.suppress(ModelError):
            fine_tune(unet3d.build_trainers, config, cases, options, progress)
        return None

    return run


TRAININGS: dict[str, Callable[[Path], Train]] = {
    "quicknat": lambda folder: of_volumes(folder, "quicknat"),
    "unet3d": lambda folder: of_volumes(folder, "unet3d"),
    "unet2d": of_pictures,
    "patches": of_patches,
    "fine-tuning": of_corrected_cases,
}


def ending(folder: Path) -> dict[str, Any]:
    """What a training left, without times: weights, log, the other figures."""
    found: dict[str, Any] = {path.name: load_weights(path) for path in folder.glob("*.safetensors")}
    found["log"] = [
        {key: value for key, value in entry.items() if key not in SECONDS}
        for entry in read_log(folder / LOG)
    ]
    found["state"] = without_times(torch.load(folder / CHECKPOINT, weights_only=True))
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        left_out = (*SECONDS, *FOLLOWING)
        return {key: without_times(item) for key, item in value.items() if key not in left_out}
    return [without_times(item) for item in value] if isinstance(value, (list, tuple)) else value


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_same(first, second)
    else:
        assert one == other or (one != one and other != other)


def check_stops(run: Train, folder: Path, points: int) -> None:
    """Stop a training at a number of random places."""
    checks = checks_of(lambda progress: run(folder / "whole", False, progress))
    chance = random.Random(os.environ.get("MEDSEGAI_SEED"))
    for point in chance.sample(range(checks), min(points, checks)):
        out = folder / f"stopped-{point}"
        with pytest.raises(Cancelled):
            run(out, False, StopAt(point))
        begun = (out / CHECKPOINT).exists()
        assert begun or not out.exists(), "nothing is left that could not be resumed"
        run(out, begun, Progress())
        assert_same(ending(out), ending(folder / "whole"))


@pytest.mark.parametrize("family", TRAININGS)
def test_a_training_that_is_stopped_ends_as_one_that_was_not(family: str, tmp_path: Path) -> None:
    """At two places, others in each run; at many in the slow test."""
    check_stops(TRAININGS[family](tmp_path), tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize("family", TRAININGS)
def test_a_training_that_is_stopped_at_many_places_ends_as_one_that_was_not(
    family: str, tmp_path: Path
) -> None:
    check_stops(TRAININGS[family](tmp_path), tmp_path, 40)


def test_a_comparison_that_is_stopped_is_continued_by_the_same_command(tmp_path: Path) -> None:
    training = dataset(tmp_path / "data", 4)
    training.write_text(training.read_text().replace("epochs = 6", "epochs = 1"))
    (tmp_path / "compare.toml").write_text(COMPARISON)
    config = comparison.load_comparison(tmp_path / "compare.toml")

    def run(out: Path, progress: Progress) -> list[dict[str, float]]:
        return [network.dice for network in comparison.run(config, out, "cpu", progress)]

    checks = checks_of(lambda progress: run(tmp_path / "whole", progress))
    with pytest.raises(Cancelled, match=r"same command continues") as stopped:
        run(tmp_path / "out", StopAt(checks - 2))
    assert "--resume" not in str(stopped.value)
    assert run(tmp_path / "out", Progress()) == run(tmp_path / "whole", Progress())
