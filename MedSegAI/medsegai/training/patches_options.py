"""The settings of `medsegai train patches`, with their help texts. Nothing heavy is imported for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from medsegai.errors import RequestError
from medsegai.models.limits import Limits
from medsegai.training.limits import NOT_NEGATIVE, SEED, as_option, check_limits

CELL = 32
"""The sizes of pictures are multiples of this, the side of a cell of the encoders in pixels."""


LARGEST_SIDE = 4096
"""Pixels along a side that pictures may be brought to."""


def option(
    default: object, help: str, choices: Sequence[str] = (), limits: Limits | None = None
) -> Any:
    """A field that the command line shows, with its help text, and limits if it is a number."""
    metadata = {"help": help, "choices": tuple(choices)}
    return field(default=default, metadata=metadata | ({"limits": limits} if limits else {}))


@dataclass(frozen=True)
class PatchTraining:
    """The settings of a whole training. `pictures` is a folder or a table, see `read_pictures`."""

    pictures: Path
    kind: Literal["patch", "picture"] = option(
        "patch",
        "patch: parts of a slide, which models then find on slides; picture: whole radiographs",
        ("patch", "picture"),
    )
    encoder: str = option("mobilenet_v2", "encoder of the network")
    weights: str = option(
        "package",
        "initial weights of the encoder: package (installed, pre-trained), none, or a file",
    )
    size: int = option(
        0,
        "side to which pictures are resized, in pixels, a multiple of 32; 0: the side of the "
        "first picture",
        limits=Limits(0, LARGEST_SIDE),
    )
    spacing_um: float = option(
        0.0,
        "size of a pixel of the patches in micrometres, such as 0.97; 0 if it is unknown",
        limits=NOT_NEGATIVE,
    )
    normal: str = option(
        "", "class which means that nothing was found; default: guessed from usual names"
    )
    folds: int = option(
        5,
        "number of parts that are held out in turn, unless the pictures have a part named valid",
        limits=Limits(2),
    )
    epochs: int = option(
        8, "epochs of the unfrozen stage; 0 for a frozen encoder", limits=NOT_NEGATIVE
    )
    batch: int = option(16, "number of pictures per step", limits=Limits(2))
    learning_rate: float = option(
        0.0,
        "highest learning rate of the cycle; 0: the learning-rate finder chooses it",
        limits=NOT_NEGATIVE,
    )
    label_smoothing: float = option(
        0.1, "share of the target that is spread over all classes", limits=Limits(0, 0.99)
    )
    mixup: float = option(0.0, "alpha of mixup, such as 0.4; 0 for no mixup", limits=NOT_NEGATIVE)
    balance: bool = option(False, "give all classes the same weight in the loss")
    prior: float = option(
        100.0,
        "strength of the prior towards small weights in the frozen stage, in pictures",
        limits=NOT_NEGATIVE,
    )
    augmentation: Literal["none", "slide", "radiograph"] = option(
        "slide", "kind of random augmentation", ("none", "slide", "radiograph")
    )
    processes: int = option(
        0,
        "number of processes that read and augment pictures; 0: the training does it between steps",
        limits=NOT_NEGATIVE,
    )
    seed: int = option(1, "seed of all random numbers", limits=SEED)
    groups: Path | None = option(  # noqa: RUF009
        None,
        "table with the columns picture and patient; the pictures of a patient stay in one fold",
    )

    def __post_init__(self) -> None:
        check_limits(self, as_option)
        if self.size % CELL:
            raise RequestError(f"--size must be a multiple of {CELL}, not {self.size}.")

    @classmethod
    def options(cls) -> Iterator[Field[Any]]:
        """Return the settings that the command line shows."""
        return (item for item in fields(cls) if "help" in item.metadata)

    def fingerprint(self) -> str:
        """Return a hash of the settings that decide the result; a run is resumed only with the same hash."""
        values = {k: str(v) for k, v in asdict(self).items() if k not in ("pictures", "processes")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
