"""Model cards for what nnU-Net v2 trained: results folders are read as they are.

A results folder `TRAINER__PLANS__CONFIGURATION` holds dataset.json, plans.json and `fold_X` with a checkpoint;
a folder `DatasetXXX_Name` holds several of them, and what `nnUNetv2_find_best_configuration` found. Only JSON is
read here, and no checkpoint is opened, so the card is there at once, without torch.

Formats: MIC-DKFZ/nnUNet (`plans_handler.py`, `label_handling.py`, `find_best_configuration.py`), 2.0 to 2.8.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from medsegai.errors import ModelError
from medsegai.models.card import MemberCard, ModelCard
from medsegai.models.json_fields import shortened
from medsegai.models.nnunet_dataset import (
    Classes,
    Postprocessing,
    channels_of,
    classes_of,
    numbers_of,
    postprocessing_of,
    read_json,
    value_of,
)
from medsegai.models.nnunet_parts import (
    CT_FIGURES,
    LABEL_MANAGERS,
    PICTURES,
    PREPROCESSORS,
    TRAINERS,
    check_settings,
)
from medsegai.models.refinement import Refinement

FAMILY = "nnunet"
RESULTS_NAME = re.compile(r"([^_].*?)__(.+?)__(.+)")
FOLD = re.compile(r"fold_(\d+|all)")
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
"""The first that is there is taken; the second is what a training leaves that was stopped early."""

OLD_NETWORKS = {
    "PlainConvUNet": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "ResidualEncoderUNet": "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet",
}
"""Classes that plans of nnU-Net 2.0 to 2.2 name, and where plans since then find them."""

NO_FOLDS = "It needs folders fold_0, fold_1, ... (or fold_all), as training makes them."


def is_nnunet_folder(path: Path) -> bool:
    """Whether `path` is so much like nnU-Net's results that what is missing there is worth an error.

    True for a results folder, a folder of results folders, and a fold, be it there or not, of a results folder.
    """
    path = path.absolute()
    if FOLD.fullmatch(path.name):
        return _is_results_folder(path.parent)
    return _is_results_folder(path) or bool(_results_folders(path))


def card_of_folder(path: Path) -> ModelCard:
    """The card of what nnU-Net v2 trained; `path` becomes its folder, and its weights stay where they are.

    Args:
        path: a results folder; one fold of it; or the folder of a dataset. Of that, the configurations are
            used that nnU-Net found best (inference_information.json), else all of them; one that only the
            cascade needs gets members of weight 0.

    Raises:
        ModelError: something is missing, contradictory, or made by another version than nnU-Net v2.
    """
    try:
        return _card(path.absolute())
    except ModelError as error:
        raise ModelError(shortened(error)) from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error


def _card(path: Path) -> ModelCard:
    chosen, stages, notes = _choose(path)
    _check_same(chosen + stages)
    first = chosen[0]
    classes = classes_of(first.dataset, first.folder / "dataset.json")
    channels = channels_of(first.dataset, first.folder / "dataset.json")
    settings = _settings(chosen + stages, classes)
    check_settings(settings, len(channels), str(first.source))
    after = postprocessing_of([item.folder for item in chosen], first.folds, _best_file(path))
    members = [
        *(member for results in chosen for member in results.members(path, classes, 1.0)),
        *(member for results in stages for member in results.members(path, classes, 0.0)),
    ]
    return ModelCard(
        id=_identifier(first.plans["dataset_name"]),
        name=re.sub(r"^Dataset\d+_", "", first.plans["dataset_name"]) + " (nnU-Net)",
        family=FAMILY,
        version=_text(first.dataset, "release") or "1.0",
        channels=channels,
        labels=classes.labels,
        members=tuple(members),
        spacing_mm=_spacing(_main(chosen)),
        field_of_view_mm=_field_of_view(first),
        description=_description(chosen, stages, [*notes, *after.notes]),
        intended_use="Images like those it was trained on. Research and education; not a medical device.",
        licence=_text(first.dataset, "licence", "license")
        or "As given by the authors of the weights.",
        origin=_origin(first),
        citation="Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical "
        "image segmentation, Nature Methods 18 (2021) 203-211",
        settings=settings,
        suggested_refinements=_refinements(after),
        folder=path,
        in_place=True,
        dimensions=2 if first.plans["image_reader_writer"] == PICTURES else 3,
    )


@dataclass(frozen=True)
class Results:
    """One results folder, read and checked.

    Attributes:
        configuration: all that its plans say of the configuration, what it inherits included.
        checkpoints: fold ("0", ..., or "all") to checkpoint.
    """

    folder: Path
    trainer: str
    plans_name: str
    name: str
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    configuration: Mapping[str, Any]
    checkpoints: Mapping[str, Path]

    @property
    def folds(self) -> tuple[str, ...]:
        return tuple(self.checkpoints)

    @property
    def source(self) -> Path:
        return self.folder / "plans.json"

    @property
    def previous(self) -> Path | None:
        """The results folder whose labels this configuration needs as input: the cascade's first stage."""
        stage = self.configuration.get("previous_stage")
        return stage and self.folder.parent / f"{self.trainer}__{self.plans_name}__{stage}"

    def members(self, root: Path, classes: Classes, weight: float) -> Iterator[MemberCard]:
        for fold, checkpoint in self.checkpoints.items():
            yield MemberCard(
                name=f"{self.name}/fold_{fold}",
                weights=Path(os.path.relpath(checkpoint, root)).as_posix(),
                weight=weight,
                classes=classes.outputs,
                settings={"configuration": self.name, "fold": fold},
            )


def _is_results_folder(path: Path) -> bool:
    if not os.path.isdir(path):
        return False
    if any((path / name).exists() for name in ("plans.json", "plans.pkl")):
        return True
    named = bool(RESULTS_NAME.fullmatch(path.name))
    return (named or (path / "dataset.json").exists()) and any(path.glob("fold_*"))


def _results_folders(path: Path) -> list[Path]:
    if not os.path.isdir(path):
        return []
    named = (folder for folder in path.glob("*__*__*") if RESULTS_NAME.fullmatch(folder.name))
    return sorted(folder for folder in named if _is_results_folder(folder))


# which results


def _choose(path: Path) -> tuple[list[Results], list[Results], list[str]]:
    """The results to fuse, those that only the cascade needs, and what the user should know of the choice."""
    notes: list[str] = []
    if _is_results_folder(path):
        chosen = [_read_results(path)]
    elif FOLD.fullmatch(path.name) and _is_results_folder(path.parent):
        chosen = [_read_results(path.parent, path.name.removeprefix("fold_"))]
    else:
        folders, notes = _wanted(path)
        chosen = [_read_results(folder) for folder in folders]
    stages: list[Results] = []
    for results in chosen:
        if results.previous is None or results.previous in [other.folder for other in chosen]:
            continue
        if not _is_results_folder(results.previous):
            raise ModelError(
                f"{results.folder} is the second stage of a cascade, and the first is missing: put its "
                f"results folder beside it, as {results.previous}."
            )
        stages.append(_read_results(results.previous))
    return chosen, stages, notes


def _wanted(path: Path) -> tuple[list[Path], list[str]]:
    """The results folders to fuse in a folder that has several."""
    folders = _results_folders(path)
    if not folders:
        raise ModelError(
            f"{path} does not contain results of nnU-Net, which are in folders TRAINER__PLANS__CONFIGURATION."
        )
    best = _best(path)
    there = [folder for folder in folders if folder.name in best]
    if there:
        absent = sorted(best - {folder.name for folder in there})
        notes = [f"nnU-Net's best ensemble also has {' and '.join(absent)}, not here."] * bool(
            absent
        )
        _check_different(there)
        return there, notes
    kinds = {folder.name.rpartition("__")[0] for folder in folders}
    if len(kinds) > 1:
        raise ModelError(
            f"{path} holds results of several trainers or plans: {', '.join(sorted(kinds))}. Name one of "
            f"the folders in it, or several as several models."
        )
    configurations = {folder.name.rpartition("__")[2]: folder for folder in folders}
    first_stages = {
        _configuration(read_json(folder / "plans.json"), name, folder / "plans.json").get(
            "previous_stage"
        )
        for name, folder in configurations.items()
    }
    return [folder for name, folder in configurations.items() if name not in first_stages], []


def _best(path: Path) -> set[str]:
    """Names of the results folders that nnUNetv2_find_best_configuration chose; empty if it was not run."""
    information = _information(path)
    if not information:
        return set()
    source = path / "inference_information.json"
    best = value_of(information, "best_model_or_ensemble", dict, source)
    models = value_of(best, "selected_model_or_models", list, source)
    keys = ("trainer", "plans_identifier", "configuration")
    return {"__".join(value_of(model, key, str, source) for key in keys) for model in models}


def _information(path: Path) -> Mapping[str, Any]:
    source = path / "inference_information.json"
    return read_json(source) if source.is_file() else {}


def _best_file(path: Path) -> str | None:
    """The post-processing that belongs to `_best`."""
    file = _information(path).get("best_model_or_ensemble", {}).get("postprocessing_file")
    return file if isinstance(file, str) else None


def _check_different(folders: Sequence[Path]) -> None:
    names = [folder.name.rpartition("__")[2] for folder in folders]
    if len(set(names)) < len(names):
        both = ",".join(str(folder) for folder in folders)
        raise ModelError(
            f"Two of the networks that nnU-Net found best have one configuration, with other trainers or plans. "
            f"Use them as two models: --model {both}"
        )


def _check_same(results: Sequence[Results]) -> None:
    """Refuse folders that were put together but do not belong together."""
    first = results[0]
    shared = ("dataset_name", "image_reader_writer", "transpose_forward")
    for other in results[1:]:
        different = [key for key in shared if other.plans[key] != first.plans[key]]
        if _intensities(other) != _intensities(first):
            different.append("foreground intensities")
        if other.plans_name == first.plans_name:
            ours, theirs = first.plans["configurations"], other.plans["configurations"]
            both = ours.keys() & theirs.keys()
            different += sorted(name for name in both if ours[name] != theirs[name])
        keys = ("labels", "regions_class_order", "channel_names", "modality")
        different += [key for key in keys if other.dataset.get(key) != first.dataset.get(key)]
        if different:
            raise ModelError(
                f"{first.folder} and {other.folder.name} do not belong together: their plans.json or "
                f"dataset.json differ in {', '.join(different)}. Use each by itself."
            )


# one results folder


def _read_results(folder: Path, fold: str | None = None) -> Results:
    if (folder / "plans.pkl").exists():
        raise ModelError(
            f"{folder} was made by nnU-Net v1, whose plans are a pickle that can run code. Only nnU-Net v2 "
            f"is read: train again with it."
        )
    named = RESULTS_NAME.fullmatch(folder.name)
    if named is None:
        raise ModelError(
            f"{folder} does not say which configuration it is: give it back the name that nnU-Net gave it, "
            f"as in nnUNetTrainer__nnUNetPlans__3d_fullres."
        )
    source = folder / "plans.json"
    plans = read_json(source)
    _check_plans(plans, source)
    results = Results(
        folder=folder,
        trainer=named[1],
        plans_name=named[2],
        name=named[3],
        plans=plans,
        dataset=read_json(folder / "dataset.json"),
        configuration=_configuration(plans, named[3], source),
        checkpoints=_checkpoints(folder, fold),
    )
    _check_known(results)
    return results


def _check_plans(plans: Mapping[str, Any], source: Path) -> None:
    if "plans_per_stage" in plans:
        raise ModelError(
            f"{source} was made by nnU-Net v1, which is not supported. Train the model again with nnU-Net v2."
        )
    for key, kind in (
        ("dataset_name", str),
        ("image_reader_writer", str),
        ("configurations", dict),
    ):
        value_of(plans, key, kind, source)
    axes = value_of(plans, "transpose_forward", list, source)
    if axes not in [list(order) for order in itertools.permutations(range(3))]:
        raise ModelError(f"{source}: transpose_forward must order the axes 0, 1 and 2.")


def _check_known(results: Results) -> None:
    """Refuse parts of nnU-Net that change the prediction, but do not stand in the card."""
    TRAINERS.check(results.trainer, str(results.folder))
    for data, key, parts in (
        (results.plans, "label_manager", LABEL_MANAGERS),
        (results.configuration, "preprocessor_name", PREPROCESSORS),
    ):
        if key in data:
            parts.check(value_of(data, key, str, results.source), str(results.source))


def _configuration(plans: Mapping[str, Any], name: str, source: Path) -> dict[str, Any]:
    """All values of a configuration: its own before those that it inherits."""
    configurations = value_of(plans, "configurations", dict, source)
    values: dict[str, Any] = {}
    visited: list[str] = []
    following: str | None = name
    while following is not None:
        if following in visited:
            raise ModelError(
                f"{source}: configurations inherit from each other in a circle: {', '.join(visited)}."
            )
        if following not in configurations:
            known = ", ".join(configurations)
            raise ModelError(
                f"{source} has no configuration {following!r}; it has {known or 'none'}."
            )
        visited.append(following)
        own = value_of(configurations, following, dict, source)
        values = {**own, **values}
        following = own.get("inherits_from")
    return values


def _checkpoints(folder: Path, fold: str | None) -> dict[str, Path]:
    """Fold to checkpoint. Beside folds with numbers, that of all cases is left out, as nnU-Net does."""
    folders = {match[1]: path for path in folder.iterdir() if (match := FOLD.fullmatch(path.name))}
    if fold is not None:
        if fold not in folders:
            raise ModelError(
                f"{folder} has no fold_{fold}; it has {_names(folders) or 'no folds'}."
            )
        folders = {fold: folders[fold]}
    elif len(folders) > 1:
        folders.pop("all", None)
    if not folders:
        raise ModelError(f"{folder} does not contain folds. {NO_FOLDS}")
    found = {}
    for name in sorted(folders, key=_fold_order):
        candidates = [folders[name] / checkpoint for checkpoint in CHECKPOINTS]
        there = [checkpoint for checkpoint in candidates if checkpoint.is_file()]
        if not there:
            raise ModelError(
                f"{folders[name]} has neither {' nor '.join(CHECKPOINTS)}: its training did not end. Finish it, "
                f"or remove that folder to use the other folds."
            )
        found[name] = there[0]
    return found


def _fold_order(name: str) -> int:
    return int(name) if name.isdigit() else -1


def _names(folds: Mapping[str, Path]) -> str:
    return ", ".join(folds[name].name for name in sorted(folds, key=_fold_order))


# what the card says


def _settings(results: Sequence[Results], classes: Classes) -> dict[str, Any]:
    first = results[0]
    return {
        "reader": first.plans["image_reader_writer"],
        "transpose": first.plans["transpose_forward"],
        "regions": classes.regions and [list(region) for region in classes.regions],
        "regions_class_order": classes.order and list(classes.order),
        "intensities": _intensities(first),
        "configurations": {item.name: _configuration_settings(item) for item in results},
    }


RESAMPLED = ("data", "seg", "probabilities")
"""What is resampled, each in its own way."""


def _configuration_settings(results: Results) -> dict[str, Any]:
    values, source = results.configuration, results.source
    patch = numbers_of(values, "patch_size", source)
    spacing = numbers_of(values, "spacing", source)
    if len(patch) not in (2, 3) or len(spacing) != len(patch):
        raise ModelError(
            f"{source}: patch_size and spacing of {results.name} must have 2 or 3 values each."
        )
    schemes = value_of(values, "normalization_schemes", list, source)
    masks = value_of(values, "use_mask_for_norm", list, source)
    channels = channels_of(results.dataset, results.folder / "dataset.json")
    if not len(schemes) == len(masks) == len(channels):
        raise ModelError(
            f"{source}: {results.name} normalises {len(schemes)} channels, but dataset.json names {len(channels)}."
        )
    return {
        "patch_size": patch,
        "spacing": spacing,
        "normalization": schemes,
        "use_mask": [bool(mask) for mask in masks],
        "network": _network(results),
        "resampling": {kind: _resampling(results, kind) for kind in RESAMPLED},
        "previous_stage": values.get("previous_stage"),
    }


def _network(results: Results) -> dict[str, Any]:
    """Class and arguments of the network, as JSON."""
    values, source = results.configuration, results.source
    if "architecture" in values:
        architecture = value_of(values, "architecture", dict, source)
        return {
            "class": value_of(architecture, "network_class_name", str, source),
            "arguments": value_of(architecture, "arch_kwargs", dict, source),
        }
    return _old_network(values, source)


def _old_network(values: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The same of plans before nnU-Net 2.3, translated as it does."""
    name = value_of(values, "UNet_class_name", str, source)
    if name not in OLD_NETWORKS:
        raise ModelError(
            f"{source}: the network {name!r} is unknown; known: {', '.join(OLD_NETWORKS)}."
        )
    dimension = len(value_of(values, "patch_size", list, source))
    encoder = value_of(values, "n_conv_per_stage_encoder", list, source)
    features = value_of(values, "UNet_base_num_features", int, source)
    most = value_of(values, "unet_max_num_features", int, source)
    per_stage = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    arguments = {
        "n_stages": len(encoder),
        "features_per_stage": [min(features << stage, most) for stage in range(len(encoder))],
        "conv_op": f"torch.nn.modules.conv.Conv{dimension}d",
        "kernel_sizes": value_of(values, "conv_kernel_sizes", list, source),
        "strides": value_of(values, "pool_op_kernel_sizes", list, source),
        per_stage: encoder,
        "n_conv_per_stage_decoder": value_of(values, "n_conv_per_stage_decoder", list, source),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimension}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {"class": OLD_NETWORKS[name], "arguments": arguments}


def _resampling(results: Results, kind: str) -> dict[str, Any]:
    """Function and options; that label maps are label maps is known by the kind."""
    values, source = results.configuration, results.source
    function = value_of(values, f"resampling_fn_{kind}", str, source)
    options = value_of(values, f"resampling_fn_{kind}_kwargs", dict, source)
    return {"function": function} | {k: v for k, v in options.items() if k != "is_seg"}


def _intensities(results: Results) -> dict[str, dict[str, float]]:
    """Per channel what CT normalisation needs, where it is known; early plans have another name for it."""
    plans, source = results.plans, results.source
    old = "foreground_intensity_properties_by_modality"
    key = old if old in plans else "foreground_intensity_properties_per_channel"
    channels = value_of(plans, key, dict, source)
    known: dict[str, dict[str, float]] = {}
    for channel, values in channels.items():
        found = {
            name: value_of(values, name, (int, float, NoneType), source) for name in CT_FIGURES
        }
        known[str(channel)] = {
            name: float(value) for name, value in found.items() if value is not None
        }
    return known


def _main(chosen: Sequence[Results]) -> Results:
    """The configuration whose grid stands for the model: the finest in 3D."""
    return min(
        chosen, key=lambda results: (len(_patch(results)) < 3, *results.configuration["spacing"])
    )


def _patch(results: Results) -> Sequence[int]:
    return results.configuration["patch_size"]


def _spacing(results: Results) -> tuple[float, float, float]:
    """Spacing along (i, j, k); 2D networks keep that between slices, so the training data's stands for it."""
    spacing = results.configuration["spacing"]
    if len(spacing) == 2:
        median = numbers_of(
            results.plans, "original_median_spacing_after_transp", results.source, 3
        )
        spacing = [median[0], *spacing]
    kji = [0.0, 0.0, 0.0]
    for axis, length in zip(results.plans["transpose_forward"], spacing, strict=True):
        kji[axis] = float(length)
    return kji[2], kji[1], kji[0]


def _field_of_view(results: Results) -> tuple[float, float, float]:
    """Sides of the training set's median scan in mm, shortest first."""
    spacing, shape = (
        numbers_of(results.plans, f"original_median_{what}_after_transp", results.source, 3)
        for what in ("spacing", "shape")
    )
    first, second, third = sorted(a * b for a, b in zip(spacing, shape, strict=True))
    return first, second, third


def _description(chosen: Sequence[Results], stages: Sequence[Results], notes: Sequence[str]) -> str:
    parts = [f"{results.name} (fold {', '.join(results.folds)})" for results in chosen]
    text = _text(chosen[0].dataset, "description")
    lines = [text if not text or text.endswith(".") else text + "."] * bool(text)
    lines.append(f"nnU-Net {' and '.join(parts)}, trained by {chosen[0].trainer}.")
    lines += [f"{results.name} is its first stage." for results in stages]
    return " ".join([*lines, *notes])


def _origin(results: Results) -> str:
    reference = _text(results.dataset, "reference")
    origin = f"Trained by nnU-Net on {results.plans['dataset_name']} as {results.folder.name}."
    return f"{origin} {reference}" if reference else origin


def _refinements(after: Postprocessing) -> tuple[Refinement, ...]:
    if not after.groups:
        return ()
    return (Refinement("largest_component", {"labels": after.groups}),)


def _identifier(dataset_name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", dataset_name)[:64].strip("-._") or FAMILY


def _text(data: Mapping[str, Any], *keys: str) -> str:
    """The first of these values that is text and not empty, on one line."""
    texts = (" ".join(value.split()) for key in keys if isinstance(value := data.get(key), str))
    return next((text for text in texts if text), "")
