"""A grid of networks, trained on the same folds and compared case by case, with confidence intervals.

A single training proves little: the initial weights and the order of the pictures change its Dice as much as many
a change of the network. So differences are taken between scores of the same cases, resampled by groups, and
averaged over seeds if there are several.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsegai.errors import Cancelled, InputError, ModelError, RequestError
from medsegai.models.json_fields import NOT_IN_JSON, from_json
from medsegai.progress import Progress
from medsegai.training.checkpoint import CHECKPOINT
from medsegai.training.unet2d.config import Training2DConfig, load_config
from medsegai.training.unet2d.run import SCORES, RunOptions2D, check_buildable, train

RESAMPLED = 10_000
"""The number of times that groups are drawn for an interval."""

ERROR = 0.05
"""The largest probability that a comparison calls any difference real although there is none."""


@dataclass(frozen=True)
class ComparisonConfig:
    """The networks to compare.

    Attributes:
        training: the training file that all networks share, relative to this file.
        encoders, decoders, pretrained, seeds: the axes of the grid; `pretrained` as in the training file.
        folds: the numbers of the folds; empty for all.
    """

    training: str
    encoders: tuple[str, ...] = ("mobilenet_v2",)
    decoders: tuple[str, ...] = ("unet", "unetplusplus")
    pretrained: tuple[str, ...] = ("",)
    seeds: tuple[int, ...] = (1,)
    folds: tuple[int, ...] = ()
    source: Path = field(default=Path("comparison.toml"), metadata=NOT_IN_JSON)

    def __post_init__(self) -> None:
        """Raises RequestError: a list names something twice, so a network would be compared with itself."""
        for name in ("encoders", "decoders", "pretrained", "seeds", "folds"):
            values: tuple[object, ...] = getattr(self, name)
            if len(set(values)) < len(values):
                raise RequestError(f"{name} names something twice. Write each entry once.")


@dataclass(frozen=True)
class Network:
    """One network of the grid."""

    encoder: str
    decoder: str
    pretrained: str

    @property
    def name(self) -> str:
        """The name of the network in tables."""
        begun = {"": "from scratch", "package": "pre-trained"}
        return f"{self.decoder} {self.encoder}, {begun.get(self.pretrained, self.pretrained)}"

    def folder(self, seed: int) -> str:
        """Return the folder of its training with a seed."""
        begun = {"": "scratch", "package": "pretrained"}.get(self.pretrained)
        if begun is None:  # a file; two of one name may lie in different folders
            digest = hashlib.sha256(self.pretrained.encode()).hexdigest()[:8]
            begun = f"{Path(self.pretrained).stem}-{digest}"
        return f"{self.decoder}-{self.encoder}-{begun}-seed{seed}"

    def changes(self) -> dict[str, Any]:
        """Return its changes to the training file."""
        own = {"encoder": self.encoder, "decoder": self.decoder, "pretrained": self.pretrained}
        whole = {} if self.pretrained else {"optimiser": {"encoder_rate": 1.0}}
        return {"network": own, **whole}


@dataclass(frozen=True)
class Trained:
    """The trainings of a network, one for each seed.

    Attributes:
        dice, iou: the scores of each case by name, averaged over seeds.
        groups: the group of each case.
        folds: the mean Dice of each fold, averaged over seeds.
        parameters: the number of weights of the network.
        seconds: the time for all folds, averaged over seeds.
        runs: the folders of the trainings.
    """

    name: str
    dice: dict[str, float]
    iou: dict[str, float]
    groups: dict[str, str]
    folds: dict[str, float]
    parameters: int
    seconds: float
    runs: tuple[Path, ...]

    @property
    def mean(self) -> float:
        """The mean Dice over all cases."""
        return float(np.mean(list(self.dice.values())))


@dataclass(frozen=True)
class Difference:
    """The difference of the Dice of two networks on the same cases.

    Attributes:
        mean: the mean of `first` minus `second`.
        low, high: the bounds of its interval, which is corrected for the number of compared pairs.
        cases: the number of cases.
    """

    first: str
    second: str
    mean: float
    low: float
    high: float
    cases: int

    @property
    def real(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def load_comparison(path: Path) -> ComparisonConfig:
    """Read a comparison file. Raises RequestError: it is missing, or has unknown keys or wrong values."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"{path} cannot be read as TOML: {error}.") from error
    try:
        config = from_json(ComparisonConfig, data, error=RequestError)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None
    return replace(config, source=path)


def grid(config: ComparisonConfig) -> list[Network]:
    """Return every combination, in the order of the file. Raises RequestError: there are fewer than two."""
    found = [
        Network(encoder, decoder, pretrained)
        for encoder, decoder, pretrained in itertools.product(
            config.encoders, config.decoders, config.pretrained
        )
    ]
    if len(found) < 2 or not config.seeds:
        raise RequestError(
            f"{config.source}: a comparison needs at least two networks and a seed. Add "
            "encoders, decoders or seeds."
        )
    return found


def trainings(config: ComparisonConfig) -> list[tuple[Network, int, Training2DConfig]]:
    """Return the training file of each network and seed; all are read before the first is trained."""
    path = config.source.parent / config.training
    return [
        (network, seed, load_config(path, {**network.changes(), "seed": seed}))
        for network in grid(config)
        for seed in config.seeds
    ]


def _check_folds(config: ComparisonConfig, count: int) -> None:
    """Raise RequestError: the comparison names a fold that the training file does not make."""
    if not all(0 <= number < count for number in config.folds):
        raise RequestError(
            f"{config.source}: folds must lie between 0 and {count - 1}, because the training file makes "
            f"{count} folds."
        )


@contextlib.contextmanager
def _named(network: str) -> Iterator[None]:
    """Let an error of a training within the block say which network of the grid it is of, and how to go on."""
    try:
        yield
    except Cancelled:
        raise Cancelled(
            f"The comparison was stopped at {network}. Finished epochs are kept, and the same command continues."
        ) from None
    except ModelError as error:
        raise ModelError(
            f"{network}: {error} Other networks that are trained are kept, so leave this one out, or change the "
            "training file of all."
        ) from error


def run(config: ComparisonConfig, folder: Path, device: str, progress: Progress) -> list[Trained]:
    """Train the networks that are not yet trained, and read all scores; unfinished trainings continue.

    Raises:
        RequestError, InputError, ModelError, OutputError, Cancelled: see `training.unet2d.run.train`.
    """
    planned = trainings(config)
    _check_folds(config, planned[0][2].folds)
    for _, _, training in planned:  # a mistake in the last is found before the first is trained
        check_buildable(training, 0, torch.device("cpu"))
    for network, seed, training in planned:
        place = folder / network.folder(seed)
        begun = (place / CHECKPOINT).is_file()
        options = RunOptions2D(place, resume=begun, device=device, folds=config.folds)
        with _named(f"{network.name}, seed {seed}"):
            train(training, options, progress)
    return [
        read_trained(network.name, [folder / network.folder(seed) for seed in config.seeds])
        for network in grid(config)
    ]


def _read_scores(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}. Train it first.") from error


def read_trained(name: str, runs: Sequence[Path]) -> Trained:
    """Read the trainings of one network with several seeds. Raises InputError: one has no scores."""
    found = [_read_scores(place / SCORES) for place in runs]
    rows = [row for item in found for row in item["cases"]]
    names = sorted({row["case"] for row in rows})
    scores = {
        key: {case: float(np.mean([r[key] for r in rows if r["case"] == case])) for case in names}
        for key in ("dice", "iou")
    }
    folds = sorted({row["fold"] for row in rows})
    return Trained(
        name,
        scores["dice"],
        scores["iou"],
        {row["case"]: str(row.get("group", row["case"])) for row in rows},
        {str(n): float(np.mean([r["dice"] for r in rows if r["fold"] == n])) for n in folds},
        int(found[0]["parameters"]),
        float(np.mean([sum(item["seconds"].values()) for item in found])),
        tuple(runs),
    )


def differences(networks: Sequence[Trained], seed: int = 0) -> list[Difference]:
    """Compare every pair of networks, the better one first.

    Intervals come from a bootstrap over groups, at a level that is corrected for the number of pairs (Bonferroni):
    it is unlikely that even one of the differences that are called real is due to the choice of cases.

    Raises:
        InputError: the networks were not judged on the same cases.
    """
    pairs = list(itertools.combinations(networks, 2))
    level = ERROR / max(len(pairs), 1)
    found = []
    for pair in pairs:
        first, second = sorted(pair, key=lambda network: -network.mean)
        found.append(_difference(first, second, level, seed))
    return found


def _difference(first: Trained, second: Trained, level: float, seed: int) -> Difference:
    if first.dice.keys() != second.dice.keys():
        raise InputError(
            f"{first.name} and {second.name} were not judged on the same cases. Train them on the same folds."
        )
    names = list(first.dice)
    values = np.array([first.dice[name] - second.dice[name] for name in names])
    means = bootstrap(values, [first.groups[name] for name in names], seed)
    low, high = np.quantile(means, (level / 2, 1 - level / 2))
    return Difference(
        first.name, second.name, float(values.mean()), float(low), float(high), len(names)
    )


def bootstrap(values: NDArray[np.float64], groups: Sequence[str], seed: int) -> NDArray[np.float64]:
    """Return the means of values in `RESAMPLED` draws of all groups with replacement."""
    names, members = np.unique(np.array(groups), return_inverse=True)
    sums = np.bincount(members, values)
    counts = np.bincount(members)
    drawn = np.random.default_rng(seed).integers(len(names), size=(RESAMPLED, len(names)))
    return np.asarray(sums[drawn].sum(1) / counts[drawn].sum(1))


def summary(networks: Sequence[Trained], found: Sequence[Difference]) -> dict[str, Any]:
    """Return all figures as JSON values."""
    return {
        "networks": [
            {
                "name": network.name,
                "dice": round(network.mean, 5),
                "iou": round(float(np.mean(list(network.iou.values()))), 5),
                "folds": {name: round(value, 5) for name, value in network.folds.items()},
                "parameters": network.parameters,
                "seconds": round(network.seconds, 1),
                "cases": {name: round(value, 5) for name, value in network.dice.items()},
            }
            for network in networks
        ],
        "differences": [{**vars(item), "real": item.real} for item in found],
    }
