"""The training file of 2D networks: TOML is read into frozen dataclasses, and errors name each mistake."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medsegai.errors import ModelError, RequestError, counted
from medsegai.labels import Label
from medsegai.models.json_fields import NOT_IN_JSON, to_json
from medsegai.models.limits import Limits
from medsegai.networks.unet2d import UNet2DConfig
from medsegai.preprocessing.pictures import PictureSettings
from medsegai.training.config import read_training_file
from medsegai.training.limits import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    check_limits,
    limited,
)


@dataclass(frozen=True)
class DataConfig:
    """The training data. Patterns are relative to ``root``, and ``root`` is relative to the training file.

    Images and label maps are paired by their names without endings; the names of label maps may end with
    ``label_suffix``. With ``threshold``, label maps are masks whose values above it are label 1; None means that
    they hold label values. With ``instances``, label maps hold a number for each object, and the network learns
    the inside of objects (label 1) and their border (label 2), which is ``border_pixels`` thick. ``groups`` is a
    table of cases that belong together, such as those of one patient or slide; they are never on both sides of a
    split.
    """

    root: str = "."
    images: str = "images/*.png"
    labels: str = "masks/*.png"
    label_suffix: str = ""
    threshold: int | None = limited(None, NOT_NEGATIVE)
    instances: bool = False
    border_pixels: int = limited(1, COUNT)
    groups: str = ""
    case_column: str = "case"
    group_column: str = "group"
    channels: int = limited(3, Limits(1, 64))


@dataclass(frozen=True)
class NetworkConfig:
    """The network. ``pretrained`` is "" (random weights), "package" (an installed one), or a file of weights.

    For ``decoder``, ``encoder``, ``widths`` and ``deep_supervision`` see `UNet2DConfig`.
    """

    encoder: str = "mobilenet_v2"
    decoder: str = "unet"
    widths: tuple[int, ...] = (256, 128, 64, 32, 16)
    deep_supervision: bool = False
    pretrained: str = ""


@dataclass(frozen=True)
class AugmentationConfig:
    """The augmentation. ``strength`` says how much images are varied. ``orientation`` is "upright" for images with
    a fixed up, which are only mirrored left to right, or "any" for tissue, which is rotated as well. ``stain``
    says whether colours vary as those of stains do.
    """

    strength: Literal["none", "light", "medium", "heavy"] = "medium"
    orientation: Literal["upright", "any"] = "upright"
    stain: bool = False


@dataclass(frozen=True)
class OptimiserConfig:
    """The optimiser. ``encoder_rate`` is the encoder's learning rate as a part of the decoder's. During the first
    ``frozen_epochs`` the encoder does not change. Every ``lookahead`` steps, weights are moved half-way back (0:
    never). The ``schedule`` "one_cycle" rises and falls once, "plateau" divides the rate by ten after ``patience``
    epochs without a better validation, and "constant" does not change it. After ``early_stopping`` epochs without
    a better validation a fold ends (0: never).
    """

    name: Literal["adamw", "radam"] = "adamw"
    learning_rate: float = limited(1e-3, POSITIVE)
    weight_decay: float = limited(1e-2, NOT_NEGATIVE)
    encoder_rate: float = limited(0.1, NOT_NEGATIVE)
    frozen_epochs: int = limited(0, NOT_NEGATIVE)
    lookahead: int = limited(0, NOT_NEGATIVE)
    schedule: Literal["one_cycle", "plateau", "constant"] = "one_cycle"
    patience: int = limited(5, COUNT)
    early_stopping: int = limited(0, NOT_NEGATIVE)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the Dice loss and of the cross-entropy, and of classes in the latter, background first."""

    dice: float = limited(1.0, NOT_NEGATIVE)
    cross_entropy: float = limited(1.0, NOT_NEGATIVE)
    class_weights: tuple[float, ...] = limited((), NOT_NEGATIVE)

    def __post_init__(self) -> None:
        """Raises RequestError: nothing of what is learned has a weight."""
        if not self.dice and not self.cross_entropy:
            raise RequestError(
                "dice and cross_entropy are both 0, so there is nothing to learn from."
            )
        if self.class_weights and not any(self.class_weights):
            raise RequestError("class_weights are all 0, so there is nothing to learn from.")


@dataclass(frozen=True)
class Training2DConfig:
    """A whole training. Each of ``folds`` parts is held out in turn, which gives one network of the model.

    ``keep`` selects the network of the last epoch, whose held-out figures are unbiased, or the best one on the
    held-out cases, whose figures are biased. The network is validated on the held-out cases every
    ``validate_every`` epochs.
    """

    id: str
    name: str
    labels: tuple[Label, ...]
    modality: str = ""
    description: str = ""
    licence: str = ""
    origin: str = ""
    seed: int = limited(1, SEED)
    folds: int = limited(3, Limits(2))
    epochs: int = limited(20, COUNT)
    batch: int = limited(4, Limits(2))
    patches_per_image: int = limited(1, COUNT)
    precision: Literal["fp32", "bf16"] = "fp32"
    keep: Literal["last", "best"] = "last"
    validate_every: int = limited(1, COUNT)
    data: DataConfig = field(default_factory=DataConfig)
    image: PictureSettings = field(default_factory=PictureSettings)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    source: Path = field(default=Path("training.toml"), metadata=NOT_IN_JSON)

    def __post_init__(self) -> None:
        """Raises RequestError: a number is too small, or labels and weights do not match."""
        check_limits(self)
        if not self.labels:
            raise RequestError("Training file: labels is empty; name at least one.")
        weights = self.loss.class_weights
        if weights and len(weights) != self.classes:
            raise RequestError(
                "Training file: loss.class_weights needs "
                f"{counted(self.classes, 'number', 'numbers')}, background first, not "
                f"{len(weights)}."
            )
        self._check_data()

    def _check_data(self) -> None:
        """Raises RequestError: the data are not what the labels, or the numbers for each channel, say."""
        if self.image.mean and len(self.image.mean) != self.data.channels:
            raise RequestError(
                f"Training file: image.mean has {counted(len(self.image.mean), 'number', 'numbers')} and "
                f"data.channels is {self.data.channels}. Name one for each channel."
            )
        if self.data.threshold is not None and {label.value for label in self.labels} != {1}:
            raise RequestError(
                "Training file: with data.threshold, labels must be 1 alone, for what lies above it."
            )
        if self.data.instances and [label.value for label in self.labels] != [1, 2]:
            raise RequestError(
                "Training file: with data.instances, labels must be 1 for the inside of "
                "objects and 2 for their border."
            )

    @property
    def classes(self) -> int:
        """The number of channels of the output, including background."""
        return len(self.labels) + 1

    @property
    def root(self) -> Path:
        return self.source.parent / self.data.root

    def network_config(self) -> UNet2DConfig:
        """Return the shape of the network. Raises RequestError: the settings do not describe one."""
        own = self.network
        try:
            return UNet2DConfig(
                own.encoder,
                own.decoder,
                self.data.channels,
                self.classes,
                own.widths,
                own.deep_supervision,
            )
        except ModelError as error:
            raise RequestError(f"Training file: network: {error}") from None

    def fingerprint(self) -> str:
        """Return a hash of the settings that decide the result; a run is resumed only with the same hash."""
        values = to_json(self)
        del values["data"]["root"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def load_config(path: Path, changes: dict[str, Any] | None = None) -> Training2DConfig:
    """Read a training file.

    Args:
        path: the path of the file.
        changes: tables and values that replace those of the file.

    Raises:
        RequestError: the file is missing, is not TOML, has unknown or missing keys, or has a value of the wrong
            type.
    """
    return replace(read_training_file(Training2DConfig, path, changes), source=path)
