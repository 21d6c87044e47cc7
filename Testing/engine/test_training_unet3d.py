"""Training 3D networks on patches: exact resume after a kill, the pool on disk, and the model that comes out."""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import warm
from medsegai.cli import main
from medsegai.engine import segment
from medsegai.errors import ModelError, RequestError
from medsegai.io import read_labelmap
from medsegai.models.card import load_card
from medsegai.networks.compact_unet import (
    CompactUNet,
    CompactUNetConfig,
    fold_voxels,
    unfold_voxels,
)
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.training.checkpoint import read_log
from medsegai.training.config import TrainingConfig, load_config
from medsegai.training.data import TRAINING, case_source, find_files
from medsegai.training.run import RunOptions, TimeLimit, train
from medsegai.training.sampling import Batch, Pool
from medsegai.training.stored_pool import StoredPool, fill, quantised, stored_volumes, volume_path
from medsegai.training.trainer import Trainer, compiler_at_hand, training_process
from medsegai.training.unet3d import build_trainers
from medsegai.volume import Volume
from training_phantom import write_volumetric_phantom

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are faster on one thread, far more so where other processes want the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    return load_config(write_volumetric_phantom(tmp_path_factory.mktemp("phantom")))


@pytest.fixture(scope="module")
def finished(config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps without a break."""
    folder = tmp_path_factory.mktemp("run")
    train(build_trainers, config, RunOptions(folder, device="cpu"), Progress())
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["step"] == 6
    members = state["members"]
    return {
        f"{name}.{kind}.{key}": value
        for name in members
        for kind in ("network", "averaged")
        for key, value in members[name][kind].items()
    }


def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(
    config: TrainingConfig, finished: Path, tmp_path: Path
) -> None:
    """SIGKILL, at moments that differ, until the run is done: the weights are the same to the bit."""
    folder = tmp_path / "run"
    command = ["train", "unet3d", str(config.source), "-o", str(folder), "--device", "cpu"]
    kills = 0
    for patience in itertools.chain((0.0, 0.3), itertools.repeat(None)):
        resume = ["--resume"] if (folder / "checkpoint.pt").is_file() else []
        before = read_steps(folder)
        process = warm.start(main, [*command, *resume], output=tmp_path / "output.txt")
        if patience is None:
            process.join(300)
            assert process.exitcode == 0, (tmp_path / "output.txt").read_text()
            break
        while process.is_alive() and read_steps(folder) <= before:
            time.sleep(0.02)
        time.sleep(patience)
        process.kill()
        process.join()
        kills += 1
    assert kills == 2
    straight, resumed = weights_of(finished), weights_of(folder)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def read_steps(folder: Path) -> int:
    """How many steps the log of a run tells of."""
    path = folder / "log.jsonl"
    return len(read_log(path)) if path.is_file() else 0


def test_the_finished_model_segments(config: TrainingConfig, finished: Path) -> None:
    card = load_card(finished / "model")
    card.verify()
    for member in card.members:
        weights = member.settings["class_weights"]
        assert len(weights) == len(member.classes)
        assert min(weights) > 0
        kinds = {
            values.dtype
            for values in load_file(card.weights_path(member)).values()
            if values.ndim == 5
        }
        assert kinds == {torch.float16}
    labels, _ = read_labelmap(config.data_root / "head2.nii.gz")
    head = Volume(labels.voxels.astype(np.float32), labels.geometry)
    request = SegmentationRequest(
        (head,), (str(finished / "model"),), device="cpu", backend="torch", uncertainty=True
    )
    result = segment(request)
    assert result.labelmap.geometry.matches(head.geometry)
    assert {"fine", "plain"} == set(result.members)


def test_networks_learn_a_batch_that_they_see_again_and_again(config: TrainingConfig) -> None:
    eager = dataclasses.replace(config.optimiser, learning_rate=0.03, warm_up=1)
    config = dataclasses.replace(config, optimiser=eager, steps=1000)
    card = load_card(config.card_path)
    source = case_source(config, card, CPU)
    pool = Pool(source, config.sampling, config.seed)
    for trainer in build_trainers(config, card, config.members, source, training_process("cpu")):
        batch = pool.draw(0, trainer.task)
        losses = [float(trainer.step(batch)[0]) for _ in range(40)]
        assert losses[-1] < 0.7 * losses[0], trainer.task.name


def test_a_sub_position_is_what_the_whole_answer_holds_there() -> None:
    torch.manual_seed(0)
    network = CompactUNet(CompactUNetConfig(3, (4, 8), fold=2)).eval()
    image = torch.rand(1, 1, 16, 8, 12)
    whole = network(image)
    features = network.features(image)
    for position, (k, j, i) in enumerate(itertools.product(range(2), repeat=3)):
        part = network.logits_at(features, torch.tensor(position))
        torch.testing.assert_close(part, whole[:, :, k::2, j::2, i::2])


def test_folding_is_undone_by_unfolding() -> None:
    values = torch.arange(2 * 4 * 6 * 8).reshape(1, 2, 4, 6, 8)
    folded = fold_voxels(values, 2)
    assert folded.shape == (1, 16, 2, 3, 4)
    assert torch.equal(unfold_voxels(folded, 2), values)


def test_the_pool_on_disk_gives_what_the_source_would_and_stays_bounded(
    config: TrainingConfig, tmp_path: Path
) -> None:
    source = case_source(config, load_card(config.card_path), CPU)
    ahead = dataclasses.replace(config.sampling, ahead=2, pool=3)
    config = dataclasses.replace(config, sampling=ahead)
    pool = StoredPool(source, config, tmp_path / "pool")
    try:
        for number in range(6):
            stored = pool.sample(TRAINING, number)
            expected = quantised(source.sample(TRAINING, number))
            assert np.array_equal(stored.image, expected.image)
            assert np.array_equal(stored.targets, expected.targets)
            while fill(source, config, pool.folder, number):
                pass
            kept = [number for number, _ in stored_volumes(pool.folder)]
            assert len(kept) <= ahead.pool + ahead.ahead
            assert kept[-1] == number + ahead.ahead
    finally:
        pool.close()


@pytest.mark.parametrize("what", ["configuration", "card", "data"])
def test_volumes_that_were_made_from_something_else_are_not_used(what: str, tmp_path: Path) -> None:
    config = load_config(write_volumetric_phantom(tmp_path))

    def pool() -> StoredPool:
        source = case_source(config, load_card(config.card_path), CPU)
        return StoredPool(source, config, tmp_path / "pool")

    first = pool()
    first.sample(TRAINING, 0)
    first.close()
    again = pool()
    assert again.folder == first.folder
    assert volume_path(again.folder, 0).exists(), "a run that goes on uses what is there"
    if what == "configuration":
        config = dataclasses.replace(config, seed=config.seed + 1)
    elif what == "card":
        (card,) = tmp_path.rglob("card.json")
        card.write_text(json.dumps(json.loads(card.read_text()) | {"version": "2"}))
    else:
        os.utime(find_files(config)[0][0], (1, 1))
    other = pool()
    assert other.folder != first.folder
    assert not first.folder.exists(), "and the disk does not fill"


@pytest.mark.parametrize("damage", ["cut", "gone", "full"])
def test_a_pool_that_is_damaged_vanishes_or_is_full_changes_nothing(
    config: TrainingConfig, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = case_source(config, load_card(config.card_path), CPU)
    pool = StoredPool(source, config, tmp_path / "pool")
    folder = pool.folder
    try:
        pool.sample(TRAINING, 0)
        if damage == "cut":
            path = volume_path(folder, 0)
            path.write_bytes(path.read_bytes()[:1000])
        elif damage == "gone":
            for path in folder.iterdir():
                path.unlink(missing_ok=True)
            folder.rmdir()
        else:
            for path in folder.iterdir():
                path.unlink(missing_ok=True)
            folder.rmdir()
            folder.write_text("a file where the folder was: nothing can be written")
        again = pool.sample(TRAINING, 0)
        assert np.array_equal(again.image, quantised(source.sample(TRAINING, 0)).image)
        assert damage != "full" or "cannot be written" in caplog.text
    finally:
        pool.close()


def test_a_loss_that_is_no_number_is_skipped_and_ends_the_run_after_ten(
    config: TrainingConfig,
) -> None:
    card = load_card(config.card_path)
    source = case_source(config, card, CPU)
    trainer = build_trainers(config, card, ["fine"], source, training_process("cpu"))[0]
    batch = Pool(source, config.sampling, config.seed).draw(0, trainer.task)
    spoiled = dataclasses.replace(batch, images=batch.images * float("nan"))  # type: ignore[type-var]
    before = [weight.detach().clone() for weight in trainer.network.parameters()]
    for _ in range(9):
        trainer.step(spoiled)
    unchanged = zip(before, trainer.network.parameters(), strict=True)
    assert all(torch.equal(old, new) for old, new in unchanged)
    trainer.step(batch)
    for _ in range(9):
        trainer.step(spoiled)
    with pytest.raises(ModelError, match="10 steps in a row"):
        trainer.step(spoiled)


def test_a_run_whose_losses_are_never_numbers_can_be_started_again(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It left a checkpoint of step 0, and neither the same folder nor another learning rate was accepted."""
    descend = Trainer.step

    def spoiled(trainer: Trainer, batch: Batch) -> torch.Tensor:
        images = batch.images * float("nan")
        return descend(trainer, dataclasses.replace(batch, images=images))  # type: ignore[type-var]

    folder, options = tmp_path / "run", {"steps": 12}
    short = dataclasses.replace(config, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(Trainer, "step", spoiled)
    with pytest.raises(ModelError, match="Train again with a smaller"):
        train(build_trainers, short, RunOptions(folder, device="cpu"), Progress())
    assert [path.name for path in folder.iterdir()] == ["pool"], "made volumes serve the next run"
    monkeypatch.setattr(Trainer, "step", descend)
    other = dataclasses.replace(short, steps=1)
    train(build_trainers, other, RunOptions(folder, device="cpu"), Progress())
    assert (folder / "checkpoint.pt").is_file()
    monkeypatch.setattr(Trainer, "step", spoiled)
    with pytest.raises(ModelError, match="Train again"):
        train(build_trainers, short, RunOptions(folder, resume=True, device="cpu"), Progress())
    assert (folder / "checkpoint.pt").is_file(), "what was learned stays"


def trainer_and_batch(config: TrainingConfig, **changes: object) -> tuple[Trainer, Batch]:
    config = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
    card = load_card(config.card_path)
    source = case_source(config, card, CPU)
    trainer = build_trainers(config, card, ["fine"], source, training_process("cpu"))[0]
    return trainer, Pool(source, config.sampling, config.seed).draw(0, trainer.task)


def test_compiling_that_changes_gradients_is_left(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """torch 2.13 compiled the bfloat16 gradient of nearest-neighbour interpolation to zero."""

    def compiled(module: torch.nn.Module, dynamic: bool) -> object:
        def run(images: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
            features = module.network.features
            monkeypatch.setattr(
                module.network, "features", lambda values: features(values).detach(), raising=True
            )
            losses = module(images, *others)
            monkeypatch.setattr(module.network, "features", features)
            return losses

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr("medsegai.training.trainer.compiler_at_hand", lambda device: True)
    trainer, batch = trainer_and_batch(config, compile=True)
    assert trainer.run is not trainer.objective
    trainer.step(batch)
    assert trainer.run is trainer.objective
    assert "wrong gradients" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_compiled_gradients_are_those_of_the_plain_network(
    config: TrainingConfig, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    if not compiler_at_hand(CPU):
        pytest.skip("needs a C++ compiler")
    trainer, batch = trainer_and_batch(config, compile=True, precision=precision)
    trainer.step(batch)
    assert trainer.run is not trainer.objective
    assert "wrong gradients" not in caplog.text


@pytest.mark.parametrize(
    ("patch", "message"),
    [((18, 16, 16), "multiples of"), ((64, 64, 64), "larger than data.crop_voxels")],
)
def test_patches_that_do_not_fit_are_refused(
    config: TrainingConfig, patch: tuple[int, int, int], message: str
) -> None:
    sampling = dataclasses.replace(config.sampling, patch=patch)
    other = dataclasses.replace(config, sampling=sampling)
    card = load_card(config.card_path)
    source = case_source(config, card, CPU)
    with pytest.raises(RequestError, match=message):
        build_trainers(other, card, ["fine"], source, training_process("cpu"))


def test_a_run_begins_with_the_weights_of_a_model(
    config: TrainingConfig, finished: Path, tmp_path: Path
) -> None:
    """With steps that half precision rounds away the weights stay those of the model."""
    still = dataclasses.replace(config.optimiser, learning_rate=1e-12)
    still_config = dataclasses.replace(config, optimiser=still, steps=3)
    options = RunOptions(tmp_path / "run", device="cpu", start=str(finished / "model"))
    train(build_trainers, still_config, options, Progress())
    for name in config.members:
        first, second = (
            load_file(folder / "model" / f"{name}.safetensors")
            for folder in (finished, tmp_path / "run")
        )
        assert all(torch.equal(first[key], second[key]) for key in first)
    other = dataclasses.replace(options, folder=tmp_path / "other", start="hippocampus")
    with pytest.raises(ModelError, match="no member 'fine'"):
        train(build_trainers, config, other, Progress())


def test_time_limits() -> None:
    assert TimeLimit.of(None, None).left() == float("inf")
    assert 55 < TimeLimit.of(1.0, None).left() <= 60
    assert 0 < TimeLimit.of(None, "06:30").left() <= 24 * 3600
    assert TimeLimit.of(1.0, "06:30").left() <= 60
    with pytest.raises(RequestError, match="HH:MM"):
        TimeLimit.of(None, "half past six")
    with pytest.raises(RequestError, match="more than 0"):
        TimeLimit.of(0.0, None)


def test_a_time_limit_ends_a_run_with_a_checkpoint_that_resumes(
    config: TrainingConfig, finished: Path, tmp_path: Path
) -> None:
    over = TimeLimit(time.monotonic() - 1.0)
    for _ in range(6):
        resume = (tmp_path / "checkpoint.pt").is_file()
        train(build_trainers, config, RunOptions(tmp_path, resume, "cpu", over), Progress())
    straight, resumed = weights_of(finished), weights_of(tmp_path)
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
