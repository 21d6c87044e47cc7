"""Training with nnU-Net itself: what it leaves, how it is watched, stopped and gone on with."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crossval_cases import two_balls, write_dataset
from medsegai.cli import main
from medsegai.errors import Cancelled, InputError, MedSegAIError, RequestError
from medsegai.io import read_labelmap
from medsegai.models.catalogue import find_card
from medsegai.networks.backends import choose_compute
from medsegai.networks.checkpoints import read_checkpoint
from medsegai.progress import Progress, ProgressEvent
from medsegai.training.checkpoint import read_log
from medsegai.training.nnunet import PLANS, log_entries
from medsegai.training.nnunet_run import NnunetTraining, Run, train_nnunet
from nnunet_models import require_nnunet

LABELS = {"background": 0, "one": 1, "two": 2}
RESULTS = "nnUNetTrainer__nnUNetPlans__3d_fullres"
EPOCHS = 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    references = {f"case_{number}": two_balls(shift=number % 3) for number in range(5)}
    folder = tmp_path_factory.mktemp("raw") / "Dataset905_Balls"
    return write_dataset(folder, references, LABELS)


@pytest.fixture(scope="module")
def training(dataset: Path) -> NnunetTraining:
    """A few steps, augmented between batches, so that it is repeatable."""
    return NnunetTraining(
        dataset,
        configurations=("3d_fullres",),
        folds=("0",),
        epochs=EPOCHS,
        iterations=2,
        batch_size={"3d_fullres": 2},
        device="cpu",
        processes=0,
        validate=False,
    )


@pytest.fixture(scope="module")
def trained(training: NnunetTraining, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an unbroken training."""
    require_nnunet()
    output = tmp_path_factory.mktemp("trained")
    before = dict(os.environ)
    fractions: list[float] = []
    progress = Progress(lambda event: fractions.append(event.fraction))
    model = train_nnunet(training, output, resume=False, progress=progress)
    assert model == output / "Dataset905_Balls"
    assert dict(os.environ) == before
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    assert len(set(fractions)) > EPOCHS
    return output


def weights(output: Path) -> dict[str, torch.Tensor]:
    folder = output / "Dataset905_Balls" / RESULTS / "fold_0"
    return dict(read_checkpoint(folder / "checkpoint_final.pth").weights)


# what it leaves


@pytest.mark.slow
def test_what_it_leaves_is_a_model_of_nnunet(trained: Path) -> None:
    folder = trained / "Dataset905_Balls" / RESULTS
    plans = json.loads((folder / "plans.json").read_text())
    sizes = {name: item["batch_size"] for name, item in plans["configurations"].items()}
    assert sizes["3d_fullres"] == 2
    assert sizes["2d"] > 2
    checkpoint = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["current_epoch"] == EPOCHS
    assert not list(trained.rglob("*.part"))
    assert not (folder / "fold_0" / "checkpoint_latest.pth").exists()
    card = find_card(str(trained / "Dataset905_Balls"))
    assert [member.name for member in card.members] == ["3d_fullres/fold_0"]


@pytest.mark.slow
def test_nnunet_and_we_predict_with_it_alike(trained: Path, dataset: Path, tmp_path: Path) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    image = dataset / "imagesTr" / "case_1_0000.nii.gz"
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    folder = trained / "Dataset905_Balls" / RESULTS
    predictor.initialize_from_trained_model_folder(str(folder), (0,))
    predictor.predict_from_files_sequential([[str(image)]], [str(tmp_path / "theirs")])
    theirs, _ = read_labelmap(tmp_path / "theirs.nii.gz")
    words = ["segment", image, "--model", folder, "-o", tmp_path / "ours.nii.gz", "-q"]
    assert main([str(word) for word in [*words, "--precision", "fp32"]]) == 0
    ours, _ = read_labelmap(tmp_path / "ours.nii.gz")
    assert np.mean(ours.voxels == theirs.voxels) > 0.999


@pytest.mark.slow
def test_the_log_has_every_epoch(trained: Path) -> None:
    log = read_log(trained / "log.jsonl")
    assert [(entry["event"], entry["step"]) for entry in log] == [
        (event, epoch + 1) for epoch in range(EPOCHS) for event in ("train", "validate")
    ]
    assert {entry["view"] for entry in log} == {"3d_fullres/fold_0"}
    rates = [entry["learning_rate"] for entry in log if entry["event"] == "train"]
    assert rates == pytest.approx(
        [0.01 * (1 - epoch / EPOCHS) ** 0.9 for epoch in range(EPOCHS)], rel=1e-4
    )
    assert all(set(entry["per_class"]) == {"1", "2"} for entry in log[1::2])
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "Epoch 2" in (trained / "nnunet.log").read_text()


# stopping and going on


@pytest.mark.slow
def test_a_break_changes_nothing(trained: Path, training: NnunetTraining, tmp_path: Path) -> None:
    """Stopped after its first epoch and resumed, a training ends in the same weights, bit for bit."""
    output = tmp_path / "broken"
    output.mkdir()
    shutil.copytree(trained / "preprocessed", output / "preprocessed")
    shutil.copy(trained / "training.json", output)
    fold = output / "Dataset905_Balls" / RESULTS / "fold_0"

    def stop(event: ProgressEvent) -> None:
        if (fold / "checkpoint_latest.pth").exists():
            raise Cancelled("here, because the training may end at the next step")

    with pytest.raises(Cancelled):
        train_nnunet(training, output, resume=True, progress=Progress(stop))
    assert (fold / "checkpoint_latest.pth").is_file()
    assert not (fold / "checkpoint_final.pth").exists()

    train_nnunet(training, output, resume=True)
    broken, whole = weights(output), weights(trained)
    assert broken.keys() == whole.keys()
    assert all(torch.equal(broken[name], whole[name]) for name in whole)
    ours, theirs = read_log(output / "log.jsonl"), read_log(trained / "log.jsonl")
    for entry in [*ours, *theirs]:
        entry.pop("seconds", None)
    assert ours == theirs

    finished = (fold / "checkpoint_final.pth").stat().st_mtime_ns
    train_nnunet(training, output, resume=True)
    assert (fold / "checkpoint_final.pth").stat().st_mtime_ns == finished

    longer = dataclasses.replace(training, epochs=training.epochs + 1)
    train_nnunet(longer, output, resume=True)
    steps = [entry["step"] for entry in read_log(output / "log.jsonl")]
    assert max(steps) == training.epochs + 1
    further = weights(output)
    assert any(not torch.equal(further[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_a_configuration_that_is_not_planned(
    trained: Path, training: NnunetTraining, tmp_path: Path
) -> None:
    output = tmp_path / "lowres"
    output.mkdir()
    shutil.copytree(trained / "preprocessed", output / "preprocessed")
    shutil.copy(trained / "training.json", output)
    asked = dataclasses.replace(training, configurations=("3d_lowres",))
    with pytest.raises(RequestError, match="plans no 3d_lowres for Dataset905_Balls, only 2d"):
        train_nnunet(asked, output, resume=True)


@pytest.mark.slow
def test_a_dataset_that_nnunet_refuses(dataset: Path, tmp_path: Path) -> None:
    require_nnunet()
    folder = tmp_path / "Dataset906_Wrong"
    shutil.copytree(dataset, folder)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "numTraining": 17}))
    training = NnunetTraining(folder, device="cpu", processes=0)
    with pytest.raises(InputError, match=r"nnU-Net cannot train on .*17"):
        train_nnunet(training, tmp_path / "out", resume=False)


# without nnU-Net


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where nnU-Net would be started."""

    def work(run: Run) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(Run, "work", work)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)


def begin(training: NnunetTraining, output: Path, resume: bool = False) -> Run:
    run = Run(training, output, choose_compute("cpu", "torch"), Progress())
    run.begin(resume, [["case_0"], ["case_1"]])
    return run


def test_only_the_process_has_nnunets_variables(training: NnunetTraining, tmp_path: Path) -> None:
    run = begin(training, tmp_path / "out")
    environment = run.environment()
    assert environment["nnUNet_raw"] == str(training.dataset.parent)
    assert environment["nnUNet_results"] == str(tmp_path / "out")
    assert environment["nnUNet_wandb_enabled"] == "0"
    assert "nnUNet_results" not in os.environ


def test_a_card_is_shown_to_nnunet_as_its_only_one(
    training: NnunetTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = dataclasses.replace(choose_compute("cpu", "torch"), device=torch.device("cuda", 1))
    run = Run(training, tmp_path, compute, Progress())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert run.environment()["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert run.environment()["CUDA_VISIBLE_DEVICES"] == "6"


def test_an_output_folder_holds_one_training(training: NnunetTraining, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(RequestError, match="no training to resume"):
        begin(training, output, resume=True)
    begin(training, output)
    splits = json.loads(
        (output / "preprocessed" / "Dataset905_Balls" / "splits_final.json").read_text()
    )
    assert splits[0] == {"train": ["case_1"], "val": ["case_0"]}
    with pytest.raises(RequestError, match="holds a training already"):
        begin(training, output)
    begin(dataclasses.replace(training, folds=("1",), processes=4), output, resume=True)
    with pytest.raises(
        RequestError, match=r"other settings: epochs 3, batch_size \{'3d_fullres': 2\}"
    ):
        begin(dataclasses.replace(training, epochs=9, batch_size={"": 4}), output, resume=True)
    (output / "training.json").write_text("{")
    with pytest.raises(RequestError, match="is damaged"):
        begin(training, output, resume=True)


def test_a_finished_training_can_be_made_longer(training: NnunetTraining, tmp_path: Path) -> None:
    output = tmp_path / "out"
    begin(training, output)
    fold = output / "Dataset905_Balls" / RESULTS / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_final.pth").write_bytes(b"after three epochs")
    with pytest.raises(RequestError, match="other settings: epochs 3"):
        begin(dataclasses.replace(training, epochs=2), output, resume=True)
    begin(training, output, resume=True)
    assert (fold / "checkpoint_final.pth").is_file()
    longer = dataclasses.replace(training, epochs=5)
    begin(longer, output, resume=True)
    assert not (fold / "checkpoint_final.pth").exists()
    assert (fold / "checkpoint_latest.pth").read_bytes() == b"after three epochs"
    begin(longer, output, resume=True)  # the longer one is now what is resumed


def test_what_is_prepared_is_remembered(training: NnunetTraining, tmp_path: Path) -> None:
    run = begin(training, tmp_path / "out")
    for what in (PLANS, "3d_fullres"):
        run._take({"event": "prepared", "what": what})
    assert begin(training, tmp_path / "out", resume=True).prepared == [PLANS, "3d_fullres"]


def test_the_cascade_comes_after_its_first_stage(training: NnunetTraining, tmp_path: Path) -> None:
    order = ("3d_cascade_fullres", "3d_fullres", "3d_lowres", "2d")
    run = begin(dataclasses.replace(training, configurations=order), tmp_path / "out")
    assert run.configurations == ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")


def test_errors_of_the_process_are_ours(training: NnunetTraining, tmp_path: Path) -> None:
    run = begin(training, tmp_path / "out")
    with pytest.raises(InputError, match="so it is"):
        run._take({"event": "failed", "error": "InputError", "message": "so it is"})


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.exit('out of luck')", "nnU-Net failed: out of luck"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by signal 9"),
    ],
)
def test_a_process_that_fails_is_an_error(
    training: NnunetTraining,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    message: str,
) -> None:
    run = begin(training, tmp_path / "out")
    fake = tmp_path / "code" / "medsegai" / "training"
    fake.mkdir(parents=True)
    for package in (fake, fake.parent):
        (package / "__init__.py").touch()
    (fake / "nnunet.py").write_text(script)
    environment = run.environment() | {"PYTHONPATH": str(tmp_path / "code")}
    monkeypatch.setattr(run, "environment", lambda: environment)
    monkeypatch.chdir(tmp_path / "code")
    with pytest.raises(MedSegAIError, match=message):
        run.work()


def test_progress_counts_this_session_only(training: NnunetTraining, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    run = begin(training, tmp_path / "out")
    run.progress.listener = events.append
    for part in (0.5, 0.75, 1.0):
        run._take({"event": "progress", "stage": "3d_fullres/fold_0", "part": part})
    parts = [event.fraction * 1.1 for event in events]
    assert parts == pytest.approx([0.0, 0.5, 1.0])


def test_what_nnunet_logs_becomes_our_log() -> None:
    logged = {
        "train_losses": [np.float32(0.5), 0.25],
        "val_losses": [0.75, 0.5],
        "lrs": [0.01, 0.005],
        "mean_fg_dice": [np.float64("nan"), 0.5],
        "dice_per_class_or_region": [[np.nan, np.nan], [0.25, 0.75]],
        "epoch_start_timestamps": [100.0, 110.0],
        "epoch_end_timestamps": [109.0, 121.5],
    }
    first, second, *rest = log_entries("2d/fold_1", logged, 2)
    assert first == {
        "event": "train",
        "step": 1,
        "view": "2d/fold_1",
        "loss": 0.5,
        "learning_rate": 0.01,
        "seconds": 9.0,
    }
    assert (second["dice"], second["per_class"]) == (None, {"1": None, "2": None})
    assert (rest[1]["dice"], rest[1]["per_class"]) == (0.5, {"1": 0.25, "2": 0.75})
    assert json.loads(json.dumps([first, second, *rest])) == [first, second, *rest]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"configurations": ("4d",)}, "configuration '4d' is unknown"),
        ({"planner": "Mine"}, "planner 'Mine' is unknown"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"folds": ("one",)}, "Folds must be numbers"),
        ({"batch_size": {"3d_full": 2}}, "not 3d_full=2"),
        ({"batch_size": {"": 0}}, "A batch size must be a number of at least 1"),
    ],
)
def test_options_that_cannot_be(
    training: NnunetTraining, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        dataclasses.replace(training, **change)


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    ("spoil", "words", "code"),
    [
        (lambda folder: folder.rename(folder.with_name("Hearts")), ["Hearts"], 3),
        (lambda folder: (folder.parent / "Dataset905_Twin").mkdir(), ["Dataset905_Balls"], 3),
        (lambda folder: (folder / "dataset.json").unlink(), ["Dataset905_Balls"], 3),
        (lambda folder: None, ["Dataset905_Balls", "--folds", "5"], 2),
        (lambda folder: None, ["Dataset905_Balls", "--device", "cuda:77"], 6),
        (lambda folder: None, ["Dataset905_Balls", "--resume"], 2),
        (lambda folder: None, ["Dataset905_Balls", "--batch-size", "4d=2"], 2),
    ],
)
def test_what_can_be_seen_is_seen_before_nnunet_starts(
    dataset: Path, tmp_path: Path, spoil: Callable[[Path], Any], words: list[str], code: int
) -> None:
    folder = tmp_path / "raw" / "Dataset905_Balls"
    shutil.copytree(dataset, folder)
    spoil(folder)
    command = ["train", "nnunet", str(tmp_path / "raw" / words[0]), *words[1:]]
    assert main([*command, "-o", str(tmp_path / "out")]) == code


def test_without_nnunet_it_says_what_to_install(
    training: NnunetTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'medsegai\[train\]'"):
        train_nnunet(training, tmp_path, resume=False)


def test_patients_are_on_one_side(
    training: NnunetTraining, tmp_path: Path, no_process: None
) -> None:
    table = tmp_path / "patients.csv"
    rows = [f"case_{number},person {number}" for number in range(5)]
    table.write_text("\n".join(["case,patient", *rows]))
    asked = dataclasses.replace(training, groups=table)
    with pytest.raises(AssertionError, match="started"):
        train_nnunet(asked, tmp_path / "out", resume=False)
    folder = tmp_path / "out" / "preprocessed" / "Dataset905_Balls"
    splits = json.loads((folder / "splits_final.json").read_text())
    assert sorted(len(split["val"]) for split in splits) == [1] * 5
