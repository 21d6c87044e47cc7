"""Folders as nnU-Net v2 leaves them after training, made by its own classes, with random weights.

`make_model` writes what `nnUNetv2_train` would: dataset.json, plans.json and checkpoints that nnU-Net's own
trainer saved; nnU-Net's predictor runs them. Networks are small unless told otherwise. `nnunet_folders` gives
nnU-Net its three folders for as long as it is asked something.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

RESULTS, RAW, PREPROCESSED = "nnUNet_results", "nnUNet_raw", "nnUNet_preprocessed"
NETWORK_MODULES = {
    "PlainConvUNet": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "ResidualEncoderUNet": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
}
NORMALIZATION = {
    "ct": "CTNormalization",
    "nonorm": "NoNormalization",
    "zscore": "ZScoreNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}


@dataclass(frozen=True)
class Made:
    """What kind of model to make. Spacing and patch are as in plans: (z, y, x), after `transpose`.

    Attributes:
        labels: as in dataset.json; lists are regions, "ignore" is the ignore label.
        channels: names; they decide the normalisation, as in nnU-Net.
        mask_norm: whether intensities are normalised inside the mask of non-zero voxels.
        strides: of the network, per stage; two in every axis by default.
        mirror_axes: allowed for test-time mirroring; "all" as the default trainer sets them.
        file_ending: of the images and label maps.
        separate_z: `force_separate_z` of all resampling.
        resampling: the function for images, labels and logits.
        lowres_factor: how much coarser 3d_lowres is.
        seed: of the weights; each configuration and fold gets others.
    """

    dataset: str = "Dataset901_Made"
    configurations: tuple[str, ...] = ("3d_fullres",)
    folds: tuple[int | str, ...] = (0,)
    labels: Mapping[str, Any] = field(
        default_factory=lambda: {"background": 0, "anterior": 1, "posterior": 2}
    )
    regions_class_order: tuple[int, ...] | None = None
    channels: tuple[str, ...] = ("MRI",)
    mask_norm: bool = False
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    patch: tuple[int, int, int] = (16, 24, 16)
    transpose: tuple[int, int, int] = (0, 1, 2)
    network: str = "PlainConvUNet"
    features: tuple[int, ...] = (2, 4, 4)
    strides: tuple[tuple[int, int, int], ...] | None = None
    mirror_axes: tuple[int, ...] | str | None = "all"
    reader: str = "SimpleITKIO"
    file_ending: str = ".nii.gz"
    separate_z: bool | None = None
    resampling: str = "resample_data_or_seg_to_shape"
    lowres_factor: float = 2.0
    intensities: Mapping[str, float] = field(
        default_factory=lambda: {"mean": 90.0, "std": 45.0, "low": -20.0, "high": 210.0}
    )
    trainer: str = "nnUNetTrainer"
    plans_name: str = "nnUNetPlans"
    seed: int = 0

    def results_name(self, configuration: str) -> str:
        return f"{self.trainer}__{self.plans_name}__{configuration}"


def require_nnunet() -> None:
    """Skip the test where nnunetv2 is not installed; fail it where `CI` is set."""
    try:
        import nnunetv2  # noqa: F401
    except ImportError:
        reason = "nnunetv2 is not installed: pip install 'medsegai[test]'"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@contextlib.contextmanager
def nnunet_folders(root: Path) -> Iterator[None]:
    """nnU-Net's three folders below `root`, made if needed; what it prints is swallowed."""
    folders = {name: root / name for name in (RESULTS, RAW, PREPROCESSED)}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    values = {name: str(folder) for name, folder in folders.items()}
    quiet = contextlib.redirect_stdout(io.StringIO())
    with mock.patch.dict(os.environ, values | {"nnUNet_compile": "f"}), quiet:
        yield


def make_model(root: Path, made: Made | None = None, **changes: Any) -> Path:
    """Write a trained model into `root`/nnUNet_results.

    Args:
        root: holds nnU-Net's three folders.
        made: what to make; `changes` are values of `Made` that differ from it.

    Returns:
        The folder of the dataset, which holds `made.results_name(configuration)` for each configuration.
    """
    require_nnunet()
    made = replace(made or Made(), **changes)
    dataset, plans = dataset_json(made), plans_json(made)
    with nnunet_folders(root):
        folder = root / RESULTS / made.dataset
        for number, configuration in enumerate(made.configurations):
            results = folder / made.results_name(configuration)
            results.mkdir(parents=True, exist_ok=True)
            write_json(results / "dataset.json", dataset)
            write_json(results / "plans.json", plans)
            write_json(results / "dataset_fingerprint.json", {"spacings": [list(made.spacing)]})
            for index, fold in enumerate(made.folds):
                seed = made.seed + 100 * number + index
                _save_fold(made, configuration, fold, seed, plans, dataset)
    return folder


def write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1))


def dataset_json(made: Made) -> dict[str, Any]:
    data = {
        "channel_names": {str(number): name for number, name in enumerate(made.channels)},
        "labels": dict(made.labels),
        "numTraining": 20,
        "file_ending": made.file_ending,
        "name": made.dataset,
        "licence": "CC0-1.0",
    }
    if made.regions_class_order is not None:
        data["regions_class_order"] = list(made.regions_class_order)
    return data


def plans_json(made: Made) -> dict[str, Any]:
    """Plans in the form of nnU-Net's planner, with all configurations that follow from each other."""
    fine = _configuration(made, made.spacing, made.patch)
    coarse = tuple(length * made.lowres_factor for length in made.spacing)
    intensities = {
        "max": made.intensities["high"] + 100,
        "min": made.intensities["low"] - 100,
        "mean": made.intensities["mean"],
        "median": made.intensities["mean"] - 1,
        "std": made.intensities["std"],
        "percentile_00_5": made.intensities["low"],
        "percentile_99_5": made.intensities["high"],
    }
    return {
        "dataset_name": made.dataset,
        "plans_name": made.plans_name,
        "original_median_spacing_after_transp": list(made.spacing),
        "original_median_shape_after_transp": [2 * size for size in made.patch],
        "image_reader_writer": made.reader,
        "transpose_forward": list(made.transpose),
        "transpose_backward": [made.transpose.index(axis) for axis in range(3)],
        "configurations": {
            "2d": _configuration(made, made.spacing[1:], made.patch[1:]),
            "3d_lowres": _configuration(made, coarse, made.patch)
            | {"next_stage": "3d_cascade_fullres"},
            "3d_fullres": fine,
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(number): intensities for number in range(len(made.channels))
        },
    }


def _configuration(made: Made, spacing: Sequence[float], patch: Sequence[int]) -> dict[str, Any]:
    splines = made.resampling == "resample_data_or_seg_to_shape"
    arguments: dict[str, dict[str, Any]] = {"data": {}, "seg": {}, "probabilities": {}}
    if not made.resampling.startswith("no_"):
        for kind, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
            arguments[kind] = {"is_seg": kind == "seg", "force_separate_z": made.separate_z}
            arguments[kind] |= {"order": order, "order_z": 0} if splines else {}
    schemes = [NORMALIZATION.get(name.casefold(), "ZScoreNormalization") for name in made.channels]
    return {
        "data_identifier": f"{made.plans_name}_{len(patch)}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": [2 * size for size in patch],
        "spacing": list(spacing),
        "normalization_schemes": schemes,
        "use_mask_for_norm": [made.mask_norm] * len(schemes),
        **{f"resampling_fn_{kind}": made.resampling for kind in arguments},
        **{f"resampling_fn_{kind}_kwargs": given for kind, given in arguments.items()},
        "architecture": _architecture(made, len(patch)),
        "batch_dice": True,
    }


def _architecture(made: Made, dimensions: int) -> dict[str, Any]:
    stages = len(made.features)
    strides = made.strides or ((1, 1, 1), *((2, 2, 2),) * (stages - 1))
    plain = made.network == "PlainConvUNet"
    return {
        "network_class_name": NETWORK_MODULES[made.network],
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(made.features),
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * stages,
            "strides": [list(stride[-dimensions:]) for stride in strides],
            "n_conv_per_stage" if plain else "n_blocks_per_stage": [2 if plain else 1] * stages,
            "n_conv_per_stage_decoder": [2 if plain else 1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def find_trainer(name: str, _base: object = None) -> Any:
    """The class of a trainer, from its own module; nnU-Net imports all, and some need what is not there."""
    spec = importlib.util.find_spec("nnunetv2.training.nnUNetTrainer")
    assert spec is not None
    (folder,) = spec.submodule_search_locations or ()
    for file in Path(folder).rglob("*.py"):
        if f"class {name}(" in file.read_text(encoding="utf-8"):
            module = ".".join((spec.name, *file.relative_to(folder).with_suffix("").parts))
            return getattr(importlib.import_module(module), name)
    raise LookupError(name)


def _save_fold(
    made: Made,
    configuration: str,
    fold: int | str,
    seed: int,
    plans: dict[str, Any],
    dataset: dict[str, Any],
) -> None:
    """What a trainer leaves in fold_X; its log holds NumPy numbers, as after a real training."""
    import torch

    trainer_class = find_trainer(made.trainer)
    own_plans = json.loads(json.dumps(plans)) | {"continue_training": False}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trainer = trainer_class(own_plans, configuration, fold, dataset, torch.device("cpu"))
        trainer.num_input_channels = _input_channels(trainer)
        trainer.network = trainer.build_network_architecture(
            trainer.plans_manager,
            trainer.configuration_manager,
            trainer.num_input_channels,
            trainer.label_manager.num_segmentation_heads,
            trainer.enable_deep_supervision,
        )
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    if made.mirror_axes != "all":
        trainer.inference_allowed_mirroring_axes = made.mirror_axes
    trainer.logger.log("mean_fg_dice", np.float64(0.5), 0)
    trainer._best_ema = np.float64(0.5)
    folder = Path(trainer.output_folder)
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    write_json(folder / "debug.json", {"configuration_name": configuration})
    (folder / "progress.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    write_json(folder / "validation" / "summary.json", {"foreground_mean": {"Dice": 0.5}})


def _input_channels(trainer: Any) -> int:
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    return determine_num_input_channels(
        trainer.plans_manager, trainer.configuration_manager, trainer.dataset_json
    )


def export_zip(root: Path, made: Made, file: Path) -> Path:
    """The archive that `nnUNetv2_export_model_to_zip` writes."""
    from nnunetv2.model_sharing.model_export import export_pretrained_model

    with nnunet_folders(root):
        export_pretrained_model(
            made.dataset,
            str(file),
            made.configurations,
            made.trainer,
            made.plans_name,
            made.folds,
        )
    return file


def write_postprocessing(folder: Path, steps: Sequence[Any]) -> Path:
    """postprocessing.json in nnU-Net's form: for each step the labels of which the largest component stays."""
    write_json(
        folder / "postprocessing.json",
        {
            "input_folder": {"foreground_mean": {"Dice": 0.5}, "mean": {}},
            "postprocessed": {"foreground_mean": {"Dice": 0.6}, "mean": {}},
            "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"]
            * len(steps),
            "postprocessing_kwargs": [{"labels_or_regions": labels} for labels in steps],
        },
    )
    return folder / "postprocessing.json"


def write_inference_information(
    dataset: Path, made: Made, configurations: Sequence[str], postprocessing: str
) -> Path:
    """inference_information.json as `nnUNetv2_find_best_configuration` writes it on another computer.

    Args:
        postprocessing: folder of the post-processing, below that of the dataset.
    """
    selected = [
        {"configuration": name, "trainer": made.trainer, "plans_identifier": made.plans_name}
        for name in configurations
    ]
    elsewhere = f"/data/nnunet/{RESULTS}/{made.dataset}/{postprocessing}"
    write_json(
        dataset / "inference_information.json",
        {
            "folds": list(made.folds),
            "dataset_name_or_id": made.dataset,
            "considered_models": selected,
            "ensembling_allowed": True,
            "all_results": {made.results_name(name): 0.5 for name in configurations},
            "best_model_or_ensemble": {
                "result_on_crossval_pre_pp": 0.5,
                "result_on_crossval_post_pp": 0.6,
                "postprocessing_file": f"{elsewhere}/postprocessing.pkl",
                "some_plans_file": f"{elsewhere}/plans.json",
                "selected_model_or_models": selected,
            },
        },
    )
    return dataset / "inference_information.json"


def write_folders(root: Path, made: Made | None = None, **changes: Any) -> Path:
    """The JSON files of a training, and files that stand for checkpoints: a card opens none."""
    made = made or Made(**changes)
    folder = root / made.dataset
    for configuration in made.configurations:
        results = folder / made.results_name(configuration)
        write_json(results / "dataset.json", dataset_json(made))
        write_json(results / "plans.json", plans_json(made))
        for fold in made.folds:
            (results / f"fold_{fold}").mkdir()
            (results / f"fold_{fold}" / "checkpoint_final.pth").write_bytes(b"not opened")
    return folder


def results_of(root: Path, **changes: Any) -> Path:
    """One results folder."""
    made = Made(**changes)
    return write_folders(root, made) / made.results_name(made.configurations[0])


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def in_plans(**changes: Any) -> Callable[[Path], None]:
    """Replace values in plans.json; None takes them away."""
    return lambda results: edit(results / "plans.json", lambda data: replace_values(data, changes))


def replace_values(data: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set these keys; None takes one away."""
    data |= changes
    for key in [key for key in data if data[key] is None]:
        del data[key]
