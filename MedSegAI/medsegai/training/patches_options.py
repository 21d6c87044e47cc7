"""The settings of `medsegai train patches`, with their help texts. Nothing heavy is imported for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from medsegai.errors import RequestError

CELL = 32
"""Sizes of pictures are multiples of the pixels along a cell of the encoders."""


def option(default: object, help: str, choices: Sequence[str] = ()) -> Any:
    """A field that the command line shows, with its help text."""
    return field(default=default, metadata={"help": help, "choices": tuple(choices)})


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
        0, "side that pictures are brought to, in pixels, a multiple of 32; 0: that of the first"
    )
    spacing_um: float = option(
        0.0, "size of a pixel of the patches in micrometres, such as 0.97; 0 where it is not known"
    )
    normal: str = option("", "class that means nothing was found; guessed from usual names")
    folds: int = option(
        5, "parts that are held out one after another, unless the pictures have a part valid"
    )
    epochs: int = option(8, "epochs of the unfrozen stage; 0 for a frozen encoder")
    batch: int = option(16, "pictures of a step")
    learning_rate: float = option(0.0, "highest rate of the cycle; 0: the finder looks for it")
    label_smoothing: float = option(0.1, "share of a target that is given to all classes")
    mixup: float = option(0.0, "alpha of mixup, such as 0.4; 0 for none")
    balance: bool = option(False, "let all classes weigh alike in the loss")
    prior: float = option(
        100.0, "strength of the prior of the frozen stage: that of a small weight, in pictures"
    )
    augmentation: Literal["none", "slide", "radiograph"] = option(
        "slide", "how pictures are changed at random", ("none", "slide", "radiograph")
    )
    processes: int = option(0, "processes that read and change pictures; 0: between steps")
    seed: int = option(1, "start of all random numbers")
    groups: Path | None = option(  # noqa: RUF009
        None, "table with the columns picture and patient, whose pictures stay together"
    )

    def __post_init__(self) -> None:
        for name, least in (("folds", 2), ("epochs", 0), ("batch", 2), ("processes", 0)):
            if getattr(self, name) < least:
                raise RequestError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if self.size % CELL or self.size < 0:
            raise RequestError(f"size must be a multiple of {CELL}, not {self.size}.")
        if not 0 <= self.label_smoothing < 1:
            raise RequestError(
                f"label-smoothing must lie from 0 to below 1, not at {self.label_smoothing:g}."
            )
        for name in ("spacing_um", "learning_rate", "mixup", "prior"):
            if not getattr(self, name) >= 0:
                raise RequestError(
                    f"{name.replace('_', '-')} must not be negative: {getattr(self, name):g}."
                )

    @classmethod
    def options(cls) -> Iterator[Field[Any]]:
        """The settings that the command line shows."""
        return (item for item in fields(cls) if "help" in item.metadata)

    def fingerprint(self) -> str:
        """What decides the result, shortened; a run is only resumed by the training it began with."""
        values = {k: str(v) for k, v in asdict(self).items() if k not in ("pictures", "processes")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
