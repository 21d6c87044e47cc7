"""Whole training runs on a phantom: exact resume, validation, and the model that comes out."""

import dataclasses
import io
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import medsegai
from medsegai.cli import main
from medsegai.errors import (
    Cancelled,
    DeviceError,
    InputError,
    ModelError,
    OutputError,
    RequestError,
)
from medsegai.models.card import load_card
from medsegai.networks.quicknat import QuickNAT
from medsegai.progress import Progress, ProgressEvent
from medsegai.system.locks import reserved
from medsegai.training.checkpoint import read_log
from medsegai.training.config import TrainingConfig, load_config
from medsegai.training.data import TRAINING, VALIDATION, Sample, case_source
from medsegai.training.optimisers import learning_rate_factor
from medsegai.training.quicknat import build_trainers, network_config
from medsegai.training.run import RunOptions, train
from medsegai.training.sampling import Pool, cut_batch, view_task
from medsegai.training.stored_pool import quantised
from medsegai.training.trainer import Trainer, compiler_at_hand, training_process
from medsegai.training.validation import DiceCounter, Validator
from training_phantom import LEFT, LIA, MIDDLE, RIGHT, head, write_phantom

CPU = torch.device("cpu")


def test_views_train_on_volumes_that_were_stored_in_advance(
    config: TrainingConfig, tmp_path: Path
) -> None:
    """Stored images have eight bits; a network once got them as they were, and the first step failed."""
    sampling = dataclasses.replace(config.sampling, ahead=2, pool=2)
    config = dataclasses.replace(config, sampling=sampling, steps=2)
    train_quicknat(config, tmp_path, False, "cpu", Progress())
    losses = [
        entry["loss"] for entry in read_log(tmp_path / "log.jsonl") if entry["event"] == "train"
    ]
    assert losses
    assert np.isfinite(losses).all()


def test_slices_of_a_stored_volume_are_those_of_the_volume(config: TrainingConfig) -> None:
    card = load_card(config.card_path)
    sample = case_source(config, card, CPU).sample(TRAINING, 0)
    task = view_task(card.members[0], "coronal", 3, card.label_values)
    indices = np.arange(0, 16, 5)
    expected = cut_batch(sample, task, indices)
    stored = cut_batch(quantised(sample), task, indices)
    assert stored.slices.dtype == torch.float32
    torch.testing.assert_close(stored.slices, expected.slices, atol=1 / 509, rtol=0)
    assert torch.equal(stored.classes, expected.classes)


def train_quicknat(
    config: TrainingConfig, folder: Path, resume: bool, device: str, progress: Progress
) -> Path:
    return train(build_trainers, config, RunOptions(folder, resume, device), progress)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    return load_config(write_phantom(tmp_path_factory.mktemp("phantom")))


@pytest.fixture(scope="module")
def finished(config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps without a break."""
    folder = tmp_path_factory.mktemp("run")
    train_quicknat(config, folder, False, "cpu", Progress())
    return folder


def stop_after(steps: int) -> Progress:
    """Cancels a run as soon as it wants to begin the step after these."""
    progress = Progress()

    def listen(event: ProgressEvent) -> None:
        listen.seen += 1  # type: ignore[attr-defined]
        if listen.seen >= steps:  # type: ignore[attr-defined]
            progress.cancel.set()

    listen.seen = 0  # type: ignore[attr-defined]
    progress.listener = listen
    return progress


def assert_same_state(first: object, second: object) -> None:
    if isinstance(first, torch.Tensor):
        assert isinstance(second, torch.Tensor)
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert isinstance(second, dict)
        assert first.keys() == second.keys()
        for key in first:
            assert_same_state(first[key], second[key])
    elif isinstance(first, list):
        assert isinstance(second, list)
        for one, other in zip(first, second, strict=True):
            assert_same_state(one, other)
    else:
        assert first == second


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(
    config: TrainingConfig, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):
        train_quicknat(config, tmp_path, False, "cpu", stop_after(3))
    cut = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert cut["step"] == 3, "the step that was under way when it was stopped is kept"
    train_quicknat(config, tmp_path, True, "cpu", Progress())
    straight = torch.load(finished / "checkpoint.pt", weights_only=True)
    resumed = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert straight["step"] == resumed["step"] == 6
    assert straight["members"]["coronal"]["optimiser"]["state"], "the optimiser has a state"
    assert_same_state(straight, resumed)
    logs = [read_log(folder / "log.jsonl") for folder in (finished, tmp_path)]
    for entry in (entry for log in logs for entry in log):
        entry.pop("seconds", None)
    assert logs[0] == logs[1]


def test_another_seed_gives_another_network(
    config: TrainingConfig, finished: Path, tmp_path: Path
) -> None:
    other = dataclasses.replace(config, seed=4, members=("coronal",))
    train_quicknat(other, tmp_path, False, "cpu", Progress())
    name = "best-coronal.safetensors"
    first, second = load_file(finished / name), load_file(tmp_path / name)
    assert not torch.equal(first["classifier.conv.weight"], second["classifier.conv.weight"])


def test_the_finished_model_is_one_that_can_be_used(config: TrainingConfig, finished: Path) -> None:
    card = load_card(finished / "model")
    card.verify()
    best = card.performance["validation on synthetic images"]["coronal"]
    assert set(best["dice"]) == {"Left hemisphere", "Right hemisphere", "Brain stem"}
    assert (finished / "model" / "training.toml").read_text() == config.source.read_text()
    assert read_log(finished / "model" / "training-log.jsonl")
    for member in card.members:
        task = view_task(member, member.name, 3, card.label_values)
        network = QuickNAT(network_config(dict(card.settings), task))
        weights = load_file(card.weights_path(member))
        assert weights["encode1.conv1.weight"].dtype == torch.float16
        assert weights["encode1.batchnorm1.running_var"].dtype == torch.float32
        network.load_state_dict(weights, strict=True)


def test_curves_are_drawn(finished: Path) -> None:
    pytest.importorskip("matplotlib")
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_shows_loss_and_dice(finished: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = accumulators.EventAccumulator(str(finished / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("coronal/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in board.Scalars("sagittal/dice")] == [3, 6]


def test_a_network_learns_a_batch_that_it_sees_again_and_again(config: TrainingConfig) -> None:
    eager = dataclasses.replace(config.optimiser, learning_rate=0.02, warm_up=1, schedule="step")
    config = dataclasses.replace(config, optimiser=eager)
    card = load_card(config.card_path)
    source = case_source(config, card, CPU)
    trainer = build_trainers(config, card, ["coronal"], source, training_process("cpu"))[0]
    torch.manual_seed(0)
    batch = Pool(source, config.sampling, config.seed).draw(0, trainer.task)
    losses = [float(trainer.step(batch)[0]) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_an_earlier_run_is_not_begun_anew(
    config: TrainingConfig, finished: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(RequestError, match=r"holds a training already.*--resume"):
        train_quicknat(config, finished, False, "cpu", Progress())
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(RequestError, match="without a checkpoint"):
        train_quicknat(config, tmp_path, False, "cpu", Progress())


def test_two_trainings_into_one_folder_are_refused(config: TrainingConfig, tmp_path: Path) -> None:
    with (
        reserved([tmp_path / "checkpoint.pt"]),
        pytest.raises(OutputError, match="is being written by another run"),
    ):
        train_quicknat(config, tmp_path, False, "cpu", Progress())
    assert list(tmp_path.iterdir()) == []


def test_resume_without_a_checkpoint_or_with_another_configuration(
    config: TrainingConfig, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="no training to resume"):
        train_quicknat(config, tmp_path, True, "cpu", Progress())
    shutil.copy(finished / "checkpoint.pt", tmp_path)
    other = dataclasses.replace(config, seed=9)
    with pytest.raises(RequestError, match="another configuration"):
        train_quicknat(other, tmp_path, True, "cpu", Progress())


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other"])
def test_a_damaged_checkpoint_is_named(
    damage: str, config: TrainingConfig, finished: Path, tmp_path: Path
) -> None:
    whole = (finished / "checkpoint.pt").read_bytes()
    other = io.BytesIO()
    torch.save([1, 2], other)
    content = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello",
        "other": other.getvalue(),
    }
    (tmp_path / "checkpoint.pt").write_bytes(content[damage])
    with pytest.raises(RequestError, match=r"checkpoint\.pt is damaged.*another folder"):
        train_quicknat(config, tmp_path, True, "cpu", Progress())


def test_weights_that_are_damaged_are_named(
    config: TrainingConfig, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "best-coronal.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RequestError, match=r"best-coronal\.safetensors is missing or damaged"):
        train_quicknat(config, tmp_path, True, "cpu", Progress())


@pytest.mark.slow
def test_two_processes_share_a_batch(config: TrainingConfig, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(medsegai.__file__).parents[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [str(config.source), "-o", str(tmp_path), "--device", "cpu", "--views", "coronal"]
    subprocess.run(
        [*command, "-m", "medsegai.training", *words, "--steps", "2"],
        env=environment,
        check=True,
        timeout=300,
    )
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    load_card(tmp_path / "model").verify_member(load_card(tmp_path / "model").member("coronal"))


def test_shares_of_a_batch_are_the_batch(config: TrainingConfig) -> None:
    card = load_card(config.card_path)
    pool = Pool(case_source(config, card, CPU), config.sampling, config.seed)
    task = view_task(card.member("coronal"), "coronal", 3, card.label_values)
    whole = pool.draw(5, task)
    shares = [pool.draw(5, task, rank, 2) for rank in range(2)]
    for rank in range(2):
        assert torch.equal(whole.slices[rank::2], shares[rank].slices)
        assert torch.equal(whole.classes[rank::2], shares[rank].classes)


def test_the_pool_depends_on_the_step_alone(config: TrainingConfig) -> None:
    card = load_card(config.card_path)
    source = case_source(config, card, CPU)
    walked, jumped = (Pool(source, config.sampling, config.seed) for _ in range(2))
    for step in range(8):
        walked.at(step)
    expected = [sample.image for sample in jumped.at(7)]
    assert list(walked.volumes) == list(jumped.volumes) == [3, 4, 5]
    assert all(np.array_equal(a.image, b) for a, b in zip(walked.at(7), expected, strict=True))


def test_sagittal_classes_hold_both_sides(config: TrainingConfig) -> None:
    card = load_card(config.card_path)
    task = view_task(card.member("sagittal"), "sagittal", 3, card.label_values)
    places = {value: place + 1 for place, value in enumerate(card.label_values)}
    assert task.class_of[[0, places[LEFT], places[RIGHT], places[MIDDLE]]].tolist() == [0, 1, 1, 2]


def test_a_perfect_prediction_has_dice_exactly_one(config: TrainingConfig) -> None:
    card = load_card(config.card_path)
    source = case_source(config, card, CPU)
    validator = Validator.from_source(source, volumes=2, slice_step=1, batch=8)
    for view in ("coronal", "sagittal"):
        task = view_task(card.member(view), view, 3, card.label_values)
        truth = np.concatenate(
            [task.class_of[task.view.stack(sample.targets)] for sample in validator.samples]
        )
        shown = iter(range(0, len(truth), 8))

        def predict(slices: torch.Tensor, truth=truth, shown=shown) -> torch.Tensor:
            start = next(shown)
            classes = torch.from_numpy(truth[start : start + len(slices)])
            return torch.nn.functional.one_hot(classes, 4).movedim(-1, 1).float()

        counter = validator.dice(task, predict)
        assert set(counter.per_class().values()) == {1.0}
        assert counter.mean() == 1.0


def test_dice_by_hand_and_absent_classes() -> None:
    counter = DiceCounter.for_classes(4)
    counter.add(np.array([0, 1, 1, 3]), np.array([0, 1, 2, 2]))
    counter.add(np.array([1, 1]), np.array([1, 0]))
    assert counter.per_class() == {1: pytest.approx(2 * 2 / (4 + 2)), 2: 0.0}
    assert counter.mean() == pytest.approx(1 / 3)
    assert np.isnan(DiceCounter.for_classes(3).mean())


def test_dice_equals_monai() -> None:
    metrics = pytest.importorskip("monai.metrics")
    random = np.random.default_rng(0)
    predicted, expected = random.integers(0, 4, (2, 6, 7, 8))
    counter = DiceCounter.for_classes(4)
    for index in range(6):
        counter.add(predicted[index], expected[index])
    reference = metrics.DiceMetric(include_background=False, reduction="none", num_classes=4)(
        torch.from_numpy(predicted)[None, None], torch.from_numpy(expected)[None, None]
    )
    assert list(counter.per_class().values()) == pytest.approx(reference[0].tolist())


def test_the_learning_rate_warms_up_and_comes_down(config: TrainingConfig) -> None:
    cosine = dataclasses.replace(config.optimiser, warm_up=10)
    factors = [learning_rate_factor(cosine, 110, step) for step in range(111)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == pytest.approx(0.0)
    assert all(late <= early for early, late in itertools.pairwise(factors[10:]))
    steps = dataclasses.replace(cosine, schedule="step", step_every=20, step_factor=0.1)
    assert [learning_rate_factor(steps, 0, step) for step in (19, 20, 45)] == pytest.approx(
        [1.0, 0.1, 0.01]
    )


def test_another_number_of_steps_takes_effect_at_once(
    config: TrainingConfig, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    longer = dataclasses.replace(config, steps=12)
    card = load_card(config.card_path)
    source = case_source(longer, card, CPU)
    trainer = build_trainers(longer, card, ["coronal"], source, training_process("cpu"))[0]
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    trainer.restore(state["members"]["coronal"])
    expected = longer.optimiser.learning_rate * learning_rate_factor(longer.optimiser, 12, 6)
    assert trainer.optimiser.param_groups[0]["lr"] == pytest.approx(expected)


def test_weight_decay_leaves_normalisation_alone(config: TrainingConfig) -> None:
    card = load_card(config.card_path)
    source = case_source(config, card, CPU)
    trainer = build_trainers(config, card, ["coronal"], source, training_process("cpu"))[0]
    decayed, free = trainer.optimiser.param_groups
    assert decayed["weight_decay"] > 0 == free["weight_decay"]
    assert all(weight.ndim == 4 for weight in decayed["params"])
    count = len(decayed["params"]) + len(free["params"])
    assert count == len(list(trainer.network.parameters()))


def test_without_a_compiler_training_goes_on_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.WARNING):
        assert not compiler_at_hand(CPU)
    assert "Install g++" in caplog.text


def coronal_steps(config: TrainingConfig, precision: str) -> Trainer:
    """A trainer of the coronal view that may compile, after its first step."""
    config = dataclasses.replace(config, compile=True, precision=precision)  # type: ignore[arg-type]
    card = load_card(config.card_path)
    source = case_source(config, card, CPU)
    trainer = build_trainers(config, card, ["coronal"], source, training_process("cpu"))[0]
    trainer.step(Pool(source, config.sampling, config.seed).draw(0, trainer.task))
    return trainer


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_compiling_that_only_rounds_otherwise_is_kept(
    config: TrainingConfig, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The biases before batch normalisation have no gradient but rounding, whose direction is arbitrary."""

    def compiled(module: torch.nn.Module, dynamic: bool) -> Callable[..., torch.Tensor]:
        unit = torch.finfo(torch.bfloat16 if precision == "bf16" else torch.float32).eps
        return lambda images, *others: module(images * (1 - unit), *others)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr("medsegai.training.trainer.compiler_at_hand", lambda device: True)
    trainer = coronal_steps(config, precision)
    assert trainer.run is not trainer.objective


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_compiled_quicknat_stays_compiled(config: TrainingConfig, precision: str) -> None:
    if not compiler_at_hand(CPU):
        pytest.skip("needs a C++ compiler")
    trainer = coronal_steps(config, precision)
    assert trainer.run is not trainer.objective


def with_data(config: TrainingConfig, **changes: object) -> TrainingConfig:
    data = dataclasses.replace(config.data, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(config, data=data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maps": "*.mgz"}, "No file matches"),
        ({"validation": ("head7.nii.gz",)}, r"head7\.nii\.gz are not among"),
        ({"validation": ()}, "hold out some"),
        ({"labels": "*.nii.gz"}, "give either data.maps"),
        ({"maps": "", "labels": "*.nii.gz"}, "both data.images and data.labels"),
        ({"maps": "", "labels": "*.nii.gz", "images": "head0*"}, "1 image but 3 label maps"),
        ({"maps": "/tmp/*.nii.gz"}, r"data\.maps must be a pattern"),
        ({"maps": "**.nii.gz"}, r"data\.maps must be a pattern|No file matches"),
        ({"remap": {LEFT: 7}}, r"data\.remap leads to 7, which the card does not have"),
        ({"mirrored": ((LEFT, 77),)}, r"the card has only 2, so mirrored volumes"),
    ],
)
def test_data_that_do_not_fit_are_named(
    config: TrainingConfig, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        case_source(with_data(config, **changes), load_card(config.card_path), CPU)


def test_a_map_without_structures_to_learn_is_named(config: TrainingConfig, tmp_path: Path) -> None:
    for name in ("head1.nii.gz", "head2.nii.gz"):
        shutil.copy(config.data_root / name, tmp_path)
    other = np.full((20, 20, 20), 77, dtype=np.int16)
    other[0] = 0
    nibabel.save(nibabel.Nifti1Image(other, LIA), tmp_path / "head0.nii.gz")
    with pytest.raises(InputError, match=r"head0\.nii\.gz does not hold any structure"):
        case_source(with_data(config, root=str(tmp_path)), load_card(config.card_path), CPU)


def test_unknown_views_and_devices_are_refused(config: TrainingConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no member 'axial'"):
        train_quicknat(
            dataclasses.replace(config, members=("axial",)), tmp_path, False, "cpu", Progress()
        )
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="does not find a CUDA device"):
            train_quicknat(config, tmp_path, False, "cuda", Progress())


@pytest.fixture(scope="module")
def pairs(config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    """The phantom with images: bright left, dim right, so that sides can be told by intensity."""
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(3):
        labels = head(0.95 + 0.05 * number)
        image = np.select([labels == LEFT, labels == RIGHT, labels == MIDDLE], [200.0, 100.0, 50.0])
        affine = LIA.copy()
        nibabel.save(nibabel.Nifti1Image(labels, affine), folder / f"labels{number}.nii.gz")
        nibabel.save(
            nibabel.Nifti1Image(image.astype(np.float32), affine), folder / f"image{number}.nii.gz"
        )
    found = {"root": str(folder), "maps": "", "images": "image*", "labels": "labels*"}
    return with_data(config, **found, validation=("labels2.nii.gz",))


def of_pairs(pairs: TrainingConfig, stream: int, index: int) -> Sample:
    return case_source(pairs, load_card(pairs.card_path), CPU).sample(stream, index)


def test_held_out_pairs_are_resampled_only(pairs: TrainingConfig) -> None:
    sample = of_pairs(pairs, VALIDATION, 0)
    for place, value in ((1, 1.0), (2, 0.5), (3, 0.25)):
        assert np.median(sample.image[sample.targets == place]) == pytest.approx(value, abs=0.01)
    assert np.array_equal(sample.image, of_pairs(pairs, VALIDATION, 1).image)


def test_pairs_are_varied_and_a_flip_exchanges_their_sides(pairs: TrainingConfig) -> None:
    """The bright side is the left one in the file; flipped, it must be labelled right."""
    brighter_left = []
    for index in range(12):
        sample = of_pairs(pairs, TRAINING, index)
        left, right = (sample.image[sample.targets == place].mean() for place in (1, 2))
        columns = [np.nonzero(sample.targets == place)[2].mean() for place in (1, 2)]
        assert columns[0] > columns[1]
        brighter_left.append(bool(left > right))
    assert set(brighter_left) == {True, False}


def test_images_on_another_grid_are_refused(pairs: TrainingConfig, tmp_path: Path) -> None:
    shutil.copytree(pairs.data.root, tmp_path, dirs_exist_ok=True)
    shifted = LIA.copy()
    shifted[0, 3] += 5
    image = nibabel.load(tmp_path / "image0.nii.gz")
    nibabel.save(
        nibabel.Nifti1Image(np.asarray(image.dataobj), shifted), tmp_path / "image0.nii.gz"
    )
    with pytest.raises(InputError, match=r"labels0\.nii\.gz .*grid of .*image0\.nii\.gz"):
        of_pairs(with_data(pairs, root=str(tmp_path)), TRAINING, 0)


def test_the_command_trains(config: TrainingConfig, tmp_path: Path) -> None:
    words = ["train", "quicknat", str(config.source), "-o", str(tmp_path), "--device", "cpu"]
    assert main([*words, "--steps", "3", "--views", "sagittal"]) == 0
    assert json.loads((tmp_path / "model" / "card.json").read_text())["id"] == "phantom"
    words[4] = str(tmp_path / "another")
    assert main([*words, "--views", "no-such-view"]) == ModelError.exit_code
