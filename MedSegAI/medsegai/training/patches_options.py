"""The settings of `medsegai train patches`, with their help texts. Nothing heavy is imported for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from medsegai.errors import RequestError
from medsegai.training.limits import NOT_NEGATIVE, SEED, Limits, as_option, check_limits

CELL = 32
"""Sizes of pictures are multiples of the pixels along a cell of the encoders."""


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
    """A whole training. `pictures` is a folder or a table, see `read_pictures`."""

    pictures: Path
    kind: Literal["patch", "picture"] = option(
        "patch",
        "patch: parts of a slide, which models then find on slides; picture: whole radiographs",
        ("patch", "picture"),
    )
    encoder: str = option("mobilenet_v2", "what sees the pictures")
    weights: str = option(
        "package",
        "weights that the encoder begins with: package (installed, pre-trained), none, or a file",
    )
    size: int = option(
        0,
        "side that pictures are brought to, in pixels, a multiple of 32; 0: that of the first",
        limits=Limits(0, LARGEST_SIDE),
    )
    spacing_um: float = option(
        0.0,
        "size of a pixel of the patches in micrometres, such as 0.97; 0 where it is not known",
        limits=NOT_NEGATIVE,
    )
    normal: str = option("", "class that means nothing was found; guessed from usual names")
    folds: int = option(
        5,
        "parts that are held out one after another, unless the pictures have a part valid",
        limits=Limits(2),
    )
    epochs: int = option(
        8, "epochs of the unfrozen stage; 0 for a frozen encoder", limits=NOT_NEGATIVE
    )
    batch: int = option(16, "pictures of a step", limits=Limits(2))
    learning_rate: float = option(
        0.0, "highest rate of the cycle; 0: the finder looks for it", limits=NOT_NEGATIVE
    )
    label_smoothing: float = option(
        0.1, "share of a target that is given to all classes", limits=Limits(0, 0.99)
    )
    mixup: float = option(0.0, "alpha of mixup, such as 0.4; 0 for none", limits=NOT_NEGATIVE)
    balance: bool = option(False, "let all classes weigh alike in the loss")
    prior: float = option(
        100.0,
        "strength of the prior of the frozen stage: that of a small weight, in pictures",
        limits=NOT_NEGATIVE,
    )
    augmentation: Literal["none", "slide", "radiograph"] = option(
        "slide", "how pictures are changed at random", ("none", "slide", "radiograph")
    )
    processes: int = option(
        0, "processes that read and change pictures; 0: between steps", limits=NOT_NEGATIVE
    )
    seed: int = option(1, "start of all random numbers", limits=SEED)
    groups: Path | None = option(  # noqa: RUF009
        None, "table with the columns picture and patient, whose pictures stay together"
    )

    def __post_init__(self) -> None:
        check_limits(self, as_option)
        if self.size % CELL:
            raise RequestError(f"--size must be a multiple of {CELL}, not {self.size}.")

    @classmethod
    def options(cls) -> Iterator[Field[Any]]:
        """The settings that the command line shows."""
        return (item for item in fields(cls) if "help" in item.metadata)

    def fingerprint(self) -> str:
        """What decides the result, shortened; a run is only resumed by the training it began with."""
        values = {k: str(v) for k, v in asdict(self).items() if k not in ("pictures", "processes")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
