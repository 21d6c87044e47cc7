"""The training file: TOML is read into frozen dataclasses, and each mistake gives an error that names it."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from medsegai.errors import ModelError, RequestError
from medsegai.models.json_fields import NOT_IN_JSON, from_json
from medsegai.models.limits import Limits
from medsegai.training.anatomy import AnatomyConfig
from medsegai.training.limits import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    check_limits,
    limited,
)
from medsegai.training.loss import LossConfig
from medsegai.training.synthesis import AppearanceConfig, DeformationConfig, TissueClass

Config = TypeVar("Config")

PART = Limits(0, 1, above=True)
"""Some of a whole, or all of it."""


@dataclass(frozen=True)
class DataConfig:
    """The training data. Patterns are relative to ``root``, and ``root`` is relative to the training file.

    The data are label maps alone (``maps``), or images with labels (``images`` and ``labels``, paired in sorted
    order). ``validation`` names the files (of ``maps`` or of ``labels``) that are held out. ``remap`` translates
    label values of the files to label values of the card. ``mirrored`` holds pairs of left and right labels, and
    ``not_brain`` the labels of the card that brain extraction may remove.
    """

    root: str = "."
    maps: str = ""
    images: str = ""
    labels: str = ""
    validation: tuple[str, ...] = ()
    remap: dict[int, int] = field(default_factory=dict)
    mirrored: tuple[tuple[int, int], ...] = ()
    not_brain: tuple[int, ...] = ()
    crop_voxels: tuple[int, int, int] = limited((128, 128, 128), Limits(16, 512))

    def __post_init__(self) -> None:
        """Raises RequestError: a label is in two pairs of sides, or in one pair twice."""
        sides = Counter(value for pair in self.mirrored for value in pair)
        if (doubled := [value for value, count in sides.items() if count > 1]) != []:
            raise RequestError(
                f"mirrored names the label {doubled[0]} twice. Write each label once, in a pair of left and right."
            )


@dataclass(frozen=True)
class OptimiserConfig:
    """The optimiser and the schedule of its learning rate.

    The ``schedule`` is cosine, which falls to zero; step, which multiplies the rate by ``step_factor`` every
    ``step_every`` steps; or trapezoid, which falls to zero in the last ``decay_share`` of the steps, so that the
    number of steps can be chosen late. ``ema`` is the share of the averaged weights that remains at each step; the
    averaged weights are validated and saved. 0 means that weights are not averaged.
    """

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    learning_rate: float = limited(2e-3, POSITIVE)
    weight_decay: float = limited(1e-4, NOT_NEGATIVE)
    momentum: float = limited(0.95, SHARE)
    schedule: Literal["cosine", "step", "trapezoid"] = "cosine"
    warm_up: int = limited(100, NOT_NEGATIVE)
    step_every: int = limited(1000, COUNT)
    step_factor: float = limited(0.1, POSITIVE)
    decay_share: float = limited(0.25, SHARE)
    gradient_limit: float = limited(0.0, NOT_NEGATIVE)
    ema: float = limited(0.0, Limits(0, 0.999999))


@dataclass(frozen=True)
class SamplingConfig:
    """How batches are drawn: from the last ``pool`` volumes, to which every ``refresh`` steps a new one is added.

    A batch has ``batch`` slices, or patches of ``patch`` (k, j, i) voxels. ``ahead`` is the number of volumes that
    a separate process makes in advance and keeps on disk; with 0, volumes are made when they are needed.
    """

    batch: int = limited(8, COUNT)
    pool: int = limited(24, COUNT)
    refresh: int = limited(3, COUNT)
    brain_share: float = limited(0.9, SHARE)
    patch: tuple[int, int, int] = limited((128, 128, 128), Limits(1, 512))
    ahead: int = limited(0, NOT_NEGATIVE)


@dataclass(frozen=True)
class ValidationConfig:
    """The validation uses ``volumes`` held-out volumes, and of these every ``slice_step``-th slice."""

    every: int = limited(500, COUNT)
    volumes: int = limited(4, COUNT)
    slice_step: int = limited(2, COUNT)


@dataclass(frozen=True)
class FineTuningConfig:
    """How a trained model is fine-tuned on corrected cases (see `training.fine_tuning`).

    The learning rate begins at ``rate`` times that of ``optimiser`` and falls to zero over at most ``steps``
    steps. A ``corrected_share`` of the volumes are corrected cases, and the others are synthetic. A share
    ``held_out`` of the cases, at least one, is not used for training; the networks are judged on them every
    ``every`` steps, and the training ends after ``patience`` judgements without an improvement. For ``pool``, see
    `SamplingConfig`.
    """

    steps: int = limited(400, COUNT)
    rate: float = limited(0.05, PART)
    corrected_share: float = limited(0.5, PART)
    held_out: float = limited(0.25, PART)
    every: int = limited(40, COUNT)
    patience: int = limited(4, COUNT)
    pool: int = limited(12, COUNT)


@dataclass(frozen=True)
class TrainingConfig:
    """The configuration of a training run. ``card`` is relative to the training file, whose path is ``source``."""

    card: str
    members: tuple[str, ...] = ("axial", "coronal", "sagittal")
    seed: int = limited(1, SEED)
    steps: int = limited(4000, COUNT)
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: bool = True
    checkpoint_every: int = limited(200, COUNT)
    log_every: int = limited(10, COUNT)
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    anatomy: AnatomyConfig = field(default_factory=AnatomyConfig)
    deformation: DeformationConfig = field(default_factory=DeformationConfig)
    appearance: AppearanceConfig = field(default_factory=AppearanceConfig)
    fine_tuning: FineTuningConfig = field(default_factory=FineTuningConfig)
    tissues: tuple[TissueClass, ...] = ()
    source: Path = field(default=Path("training.toml"), metadata=NOT_IN_JSON)

    def __post_init__(self) -> None:
        check_limits(self)
        of_tissues = Counter(value for tissue in self.tissues for value in tissue.labels)
        if (doubled := [value for value, count in of_tissues.items() if count > 1]) != []:
            raise RequestError(
                f"Training file: the label {doubled[0]} is in [[tissues]] twice, and has one intensity only."
            )
        if any(size < 16 or size % 16 for size in self.data.crop_voxels):
            raise RequestError(
                "Training file: data.crop_voxels must be multiples of 16, because the "
                "networks halve them 4 times."
            )
        if not self.members or len(set(self.members)) < len(self.members):
            raise RequestError(
                "Training file: members is empty or names one twice; name each member of the card once."
            )

    @property
    def card_path(self) -> Path:
        """The path of the model's card."""
        return self.source.parent / self.card

    @property
    def data_root(self) -> Path:
        """The folder of the data."""
        return self.source.parent / self.data.root

    def fingerprint(self) -> str:
        """A hash of the settings that the result depends on; a run is resumed only with the same hash.

        It excludes the number of steps, so that a run can be made longer or shorter, the paths and settings of the
        machine, and the settings of fine-tuning.
        """
        values = dataclasses.asdict(self)
        left_out = ("steps", "source", "compile", "checkpoint_every", "log_every", "card")
        for name in (*left_out, "fine_tuning"):
            del values[name]
        del values["data"]["root"], values["sampling"]["ahead"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def load_config(path: Path) -> TrainingConfig:
    """Read a training file. Raises the errors of `read_training_file`."""
    return dataclasses.replace(read_training_file(TrainingConfig, path), source=path)


def read_training_file(
    kind: type[Config], path: Path, changes: Mapping[str, Any] | None = None
) -> Config:
    """Read a TOML file into the dataclass of a training.

    Args:
        kind: the dataclass.
        path: the path of the file.
        changes: tables and values that replace those of the file.

    Raises:
        RequestError: the file is missing, is not TOML, has unknown or missing keys, or has a value of the wrong
            type.
    """
    data = _read_toml(path)
    try:
        return from_json(kind, merged(data, changes or {}), error=RequestError)
    except (RequestError, ModelError) as error:
        raise RequestError(f"{path}: {error}") from None


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise RequestError(
            f"{path} does not exist. Give the path of a training file (TOML)."
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"{path} cannot be read as TOML: {error}.") from error


def matching_files(root: Path, pattern: str, key: str) -> list[Path]:
    """The files that a pattern of a training file names, sorted.

    Args:
        root: the folder that the pattern is relative to.
        pattern: such as `images/*.png`.
        key: of the pattern in the training file, for messages.

    Raises:
        RequestError: no file matches, or the pattern cannot be used.
    """
    found = _matching(root, pattern, key)
    if not found:
        raise RequestError(f"No file matches {pattern!r} in {root}. Check {key} and data.root.")
    return found


def _matching(root: Path, pattern: str, key: str) -> list[Path]:
    try:
        return sorted(path for path in root.glob(pattern) if not path.is_dir())
    except (ValueError, NotImplementedError) as error:
        raise RequestError(
            f"Training file: {key} must be a pattern relative to data.root, such as images/*.png, not {pattern!r} "
            f"({error})."
        ) from error


def merged(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with the values of `changes`; nested tables are merged."""
    result = dict(data)
    for name, value in changes.items():
        inner = result.get(name)
        if isinstance(value, dict) and isinstance(inner, dict):
            value = merged(inner, value)
        result[name] = value
    return result


def configured(arguments: argparse.Namespace) -> TrainingConfig:
    """Read the training file ``config``, changed by ``data``, ``members`` and ``steps`` of the command line.

    Raises:
        RequestError: see `load_config`.
    """
    config = load_config(arguments.config)
    tuned = corrected_cases(arguments) is not None
    root = arguments.maps if tuned else arguments.data
    if root is not None:
        if not root.is_dir():
            raise RequestError(
                f"{'--maps' if tuned else '--data'}: {root} is not a folder. Check the path."
            )
        data = dataclasses.replace(config.data, root=str(root.resolve()))
        config = dataclasses.replace(config, data=data)
    if arguments.members:
        config = dataclasses.replace(config, members=tuple(arguments.members))
    if arguments.steps is not None and tuned:
        tuning = dataclasses.replace(config.fine_tuning, steps=arguments.steps)
        config = dataclasses.replace(config, fine_tuning=tuning)
    elif arguments.steps is not None:
        config = dataclasses.replace(config, steps=arguments.steps)
    return config


MAPS_ALONE = (
    "--maps is used only with corrected cases, which --data names (a folder with "
    "dataset.json). Name the label maps of a training with --data."
)


def corrected_cases(arguments: argparse.Namespace) -> Path | None:
    """The folder of corrected cases that the command line names; None if another training is meant.

    Raises:
        RequestError: the model to fine-tune is not named, or label maps of its training are named without
            corrected cases.
    """
    data: Path | None = arguments.data
    from_maps = bool(load_config(arguments.config).data.maps)
    if data is None or not from_maps or not (data / "dataset.json").is_file():
        if arguments.maps is not None:
            raise RequestError(MAPS_ALONE)
        return None
    if not arguments.start:
        raise RequestError(
            f"{data} holds images with labels, but {arguments.config} learns from label maps "
            "only. Name the model that should learn from these cases with --from."
        )
    return data
