"""The training file of 2D networks: TOML in, frozen dataclasses out, and every mistake named."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medsegai.errors import ModelError, RequestError
from medsegai.labels import Label
from medsegai.models.json_fields import NOT_IN_JSON, to_json
from medsegai.networks.unet2d import UNet2DConfig
from medsegai.preprocessing.pictures import PictureSettings
from medsegai.training.config import read_training_file
from medsegai.training.limits import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    Limits,
    check_limits,
    limited,
)


@dataclass(frozen=True)
class DataConfig:
    """What is learned from. Patterns are relative to ``root``, and ``root`` to the training file.

    Images and label maps are paired by their names without endings; in those of label maps ``label_suffix`` may
    follow. ``threshold``: label maps are masks, and values above it are label 1; None where they hold label
    values. ``instances``: label maps hold a number for each object; what is learned is the inside of objects
    (label 1) and their border (label 2), ``border_pixels`` thick. ``groups``: a table that says which cases belong
    together, such as a patient's or those of one slide; they are never on both sides of a split.
    """

    root: str = "."
    images: str = "images/*.png"
    labels: str = "masks/*.png"
    label_suffix: str = ""
    threshold: int | None = None
    instances: bool = False
    border_pixels: int = limited(1, COUNT)
    groups: str = ""
    case_column: str = "case"
    group_column: str = "group"
    channels: int = limited(3, Limits(1, 64))


@dataclass(frozen=True)
class NetworkConfig:
    """``pretrained``: "" for random weights, "package" for those of an installed package, or a file of weights.

    ``decoder``, ``encoder``, ``widths`` and ``deep_supervision`` as in `UNet2DConfig`.
    """

    encoder: str = "mobilenet_v2"
    decoder: str = "unet"
    widths: tuple[int, ...] = (256, 128, 64, 32, 16)
    deep_supervision: bool = False
    pretrained: str = ""


@dataclass(frozen=True)
class AugmentationConfig:
    """``strength``: how much images are varied. ``orientation``: "upright" for images with an up and a down, which
    are mirrored left to right alone; "any" for tissue, which is turned as well. ``stain``: whether colours vary as
    those of stains do.
    """

    strength: Literal["none", "light", "medium", "heavy"] = "medium"
    orientation: Literal["upright", "any"] = "upright"
    stain: bool = False


@dataclass(frozen=True)
class OptimiserConfig:
    """``encoder_rate``: the encoder's learning rate as a part of the decoder's. ``frozen_epochs``: how long the
    encoder stays as it is at first. ``lookahead``: steps after which weights are pulled half back to those before
    (0: never). ``schedule``: "one_cycle" up and down once; "plateau" divides by ten after ``patience`` epochs
    without a better validation; "constant". ``early_stopping``: epochs without a better validation after which a
    fold ends (0: never).
    """

    name: Literal["adamw", "radam"] = "adamw"
    learning_rate: float = limited(1e-3, POSITIVE)
    weight_decay: float = limited(1e-2, NOT_NEGATIVE)
    encoder_rate: float = limited(0.1, NOT_NEGATIVE)
    frozen_epochs: int = limited(0, NOT_NEGATIVE)
    lookahead: int = limited(0, NOT_NEGATIVE)
    schedule: Literal["one_cycle", "plateau", "constant"] = "one_cycle"
    patience: int = limited(5, NOT_NEGATIVE)
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
    """A whole training. ``folds``: how many parts are held out in turn; each gives one network of the model.

    ``keep``: the network of the last epoch, whose held-out figures are honest, or the best on the held-out cases,
    whose are not. ``validate_every``: epochs from one look at the held-out cases to the next.
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
        """Raises RequestError: a number is too small, or labels and weights do not fit."""
        check_limits(self)
        if not self.labels:
            raise RequestError("Training file: labels is empty; name at least one.")
        weights = self.loss.class_weights
        if weights and len(weights) != self.classes:
            raise RequestError(
                f"Training file: loss.class_weights needs {self.classes} numbers, background first, not "
                f"{len(weights)}."
            )
        if self.data.instances and [label.value for label in self.labels] != [1, 2]:
            raise RequestError(
                "Training file: with data.instances there must be two labels, 1 for the inside of objects and 2 "
                "for their border."
            )

    @property
    def classes(self) -> int:
        """Channels of the answer, background included."""
        return len(self.labels) + 1

    @property
    def root(self) -> Path:
        return self.source.parent / self.data.root

    def network_config(self) -> UNet2DConfig:
        """The network. Raises RequestError: there is no such network."""
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
        """What decides the result, shortened; a run is only resumed by the training file it began with."""
        values = to_json(self)
        del values["data"]["root"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def load_config(path: Path, changes: dict[str, Any] | None = None) -> Training2DConfig:
    """Read a training file.

    Args:
        path: the file.
        changes: tables and values that stand in place of those of the file.

    Raises:
        RequestError: it is missing, is not TOML, has unknown or missing keys, or a value of the wrong kind.
    """
    return replace(read_training_file(Training2DConfig, path, changes), source=path)
