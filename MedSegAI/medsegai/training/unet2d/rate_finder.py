"""The learning rate of a 2D training, found by trials on its first fold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from medsegai.errors import OutputError
from medsegai.training.learning_rate import LOWEST, FoundRate, draw_rates, find_learning_rate
from medsegai.training.trainer import training_process
from medsegai.training.unet2d.config import Training2DConfig
from medsegai.training.unet2d.data import folds_of, read_cases
from medsegai.training.unet2d.fold import Fold, Ready, made_ready

TRIED = 60
"""The number of rates that are tried."""


@dataclass(frozen=True)
class SuggestedRate:
    """The suggested `rate` of the decoder, and the `picture` of the losses."""

    rate: float
    picture: Path


class _Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """Augmented batches of a fold, without end."""

    def __init__(self, fold: Fold, ready: list[Ready]) -> None:
        self._fold, self._ready = fold, ready

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self._fold.drawn_batches(self._ready)


def suggest_rate(config: Training2DConfig, folder: Path, device: str = "auto") -> SuggestedRate:
    """Try rates on the first fold; the decoder's rate grows, and the encoder's in proportion.

    Raises:
        RequestError, InputError, ModelError: the training file, its data or its weights cannot be used.
        OutputError: the picture cannot be written.
    """
    place = training_process(device).device
    cases = read_cases(config)
    held_out = set(folds_of(cases, config.folds, config.seed)[0])
    ready = made_ready(config, [case for case in cases if case.name not in held_out])
    fold = Fold(config, 0, place)
    encoder, others = fold.optimiser.param_groups
    encoder["lr"], others["lr"] = config.optimiser.encoder_rate * LOWEST, LOWEST
    batches = DataLoader(_Batches(fold, ready), batch_size=None)
    found = find_learning_rate(fold.network, fold.optimiser, fold.loss, batches, TRIED)
    return SuggestedRate(found.rate, _drawn(found, folder))


def _drawn(found: FoundRate, folder: Path) -> Path:
    path = folder / "learning-rate.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draw_rates(found, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}.") from error
    return path
