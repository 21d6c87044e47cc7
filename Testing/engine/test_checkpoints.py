"""Checkpoints of nnU-Net: what its own trainer writes is read, what wants to run a program is refused."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medsegai.errors import ModelError, UnsafeModelError
from medsegai.networks.checkpoints import read_checkpoint
from medsegai.networks.unet import build_unet, load_state
from nnunet_models import require_nnunet

ARCHITECTURE = {
    "n_stages": 3,
    "features_per_stage": [2, 3, 4],
    "conv_op": "torch.nn.modules.conv.Conv2d",
    "kernel_sizes": [[3, 3]] * 3,
    "strides": [[1, 1], [2, 2], [2, 2]],
    "n_conv_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
NETWORK = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
DATASET = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "hippocampus": 1},
    "file_ending": ".nii.gz",
    "numTraining": 1,
}


def plans() -> dict[str, Any]:
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 8],
        "spacing": [1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": True,
        "architecture": {
            "network_class_name": NETWORK,
            "arch_kwargs": ARCHITECTURE,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset999_Tiny",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "image_reader_writer": "SimpleITKIO",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {"2d": configuration},
        "continue_training": False,
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer of nnU-Net after one step and one epoch of its log, and the checkpoint that it saved."""
    require_nnunet()
    folder = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(folder / name))
        patch.setenv("nnUNet_compile", "0")
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        cases = folder / "preprocessed" / "Dataset999_Tiny" / "nnUNetPlans_2d"
        cases.mkdir(parents=True)
        (cases / "case.npz").touch()  # by its suffix the trainer knows how cases are stored
        trainer = nnUNetTrainer(plans(), "2d", 3, DATASET, device=torch.device("cpu"))
        trainer.initialize()
        for output in trainer.network(torch.ones(1, 1, 8, 8)):
            output.sum().backward()
            break
        trainer.optimizer.step()
        trainer.inference_allowed_mirroring_axes = (0, 1)
        for name in ("train_losses", "val_losses", "mean_fg_dice"):
            trainer.logger.log(name, np.mean(np.float32([1, 2])), 0)
        trainer.logger.log("dice_per_class_or_region", [np.float64(0.5)], 0)
        trainer._best_ema = np.float64(0.5)
        trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    return trainer, folder / "checkpoint_final.pth"


def test_a_checkpoint_of_nnunets_own_trainer_is_read(trained: Any) -> None:
    trainer, path = trained
    checkpoint = read_checkpoint(path)
    assert (checkpoint.trainer, checkpoint.configuration) == ("nnUNetTrainer", "2d")
    assert (checkpoint.fold, checkpoint.mirror_axes) == ("3", (0, 1))
    assert checkpoint.plans["plans_name"] == "nnUNetPlans"
    assert checkpoint.dataset == DATASET
    network = build_unet(NETWORK, ARCHITECTURE, 1, 2)
    load_state(network, checkpoint.weights)
    theirs = trainer.network.eval()
    theirs.decoder.deep_supervision = False
    patches = torch.randn(1, 1, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(patches), theirs(patches))


@pytest.mark.parametrize("spelling", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numbers_of_both_numpy_1_and_2_are_taken(
    trained: Any, tmp_path: Path, spelling: bytes
) -> None:
    def respelled(program: bytes) -> bytes:
        assert b"multiarray\nscalar\n" in program, "the log holds no number of NumPy"
        now = b"numpy._core.multiarray" if b"numpy._core" in program else b"numpy.core.multiarray"
        return program.replace(now, spelling)

    path = rewritten(trained[1], tmp_path / "checkpoint.pth", respelled)
    assert read_checkpoint(path).trainer == "nnUNetTrainer"


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """A copy of a checkpoint with another pickle in it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return target


class Program:
    """Runs a command when it is unpickled."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = call
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def content(**changes: Any) -> dict[str, Any]:
    start = {"configuration": "2d", "fold": 0, "plans": {}, "dataset_json": {}}
    return {
        "network_weights": {"weight": torch.ones(2)},
        "init_args": start,
        "trainer_name": "nnUNetTrainer",
        "logging": {},
    } | changes


@pytest.mark.parametrize(
    ("call", "name"),
    [(os.system, "system"), (eval, "eval"), (getattr, "getattr"), (np.load, "load")],
)
@pytest.mark.parametrize("key", ["logging", "network_weights", "trainer_name"])
def test_a_checkpoint_that_runs_a_program_is_refused_and_named(
    tmp_path: Path, key: str, call: Any, name: str
) -> None:
    path, mark = tmp_path / "checkpoint_final.pth", tmp_path / "ran"
    torch.save(content(**{key: Program(call, f"touch {mark}")}), path)
    with pytest.raises(UnsafeModelError, match=rf"{path} was refused.*{name}'"):
        read_checkpoint(path)
    assert not mark.exists()


def test_the_allowed_numbers_stay_allowed_to_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save(content(), path)
    before = set(torch.serialization.get_safe_globals())  # their order is not kept
    read_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == before


def test_mirroring_that_was_not_said_is_not_allowed(tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "checkpoint_final.pth")
    assert read_checkpoint(tmp_path / "checkpoint_final.pth").mirror_axes is None


def test_truncated_checkpoints_are_damaged(trained: Any, tmp_path: Path) -> None:
    whole = trained[1].read_bytes()
    path = tmp_path / "checkpoint_final.pth"
    for part in (0, 10, 1000, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:part])
        with pytest.raises(ModelError, match=rf"{path}.*damaged.*Copy it again"):
            read_checkpoint(path)


def test_damage_within_the_pickle_is_damage(trained: Any, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    for change in (lambda program: program[:-40], lambda program: b"\x80\x02" + program[9:]):
        rewritten(trained[1], path, change)
        with pytest.raises(ModelError, match="damaged") as caught:
            read_checkpoint(path)
        assert "weights_only" not in str(caught.value), "advice to switch the protection off"


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"state_dict": {"weight": torch.ones(2)}}, r"not a checkpoint of nnU-Net v2.*nnU-Net v1"),
        ({"weight": torch.ones(2)}, r"not a checkpoint of nnU-Net v2: 'init_args'"),
        (torch.ones(2), r"not a checkpoint of nnU-Net v2"),
        (content(network_weights={}), r"does not hold weights"),
        (content(network_weights={"weight": 1.0}), r"does not hold weights"),
        (content(init_args={"fold": 0}), r"'configuration'"),
        (content(inference_allowed_mirroring_axes=["x"]), r"a str stands where an axis belongs"),
    ],
)
def test_other_files_of_torch_are_told_apart(tmp_path: Path, saved: Any, message: str) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save(saved, path)
    with pytest.raises(ModelError, match=rf"{path} .*{message}"):
        read_checkpoint(path)


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"checkpoint .*checkpoint_best\.pth does not exist"):
        read_checkpoint(tmp_path / "checkpoint_best.pth")
    archive = tmp_path / "checkpoint_final.pth"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("readme.txt", "no weights")
    with pytest.raises(ModelError, match="damaged"):
        read_checkpoint(archive)
