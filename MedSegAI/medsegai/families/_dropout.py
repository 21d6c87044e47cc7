"""Monte-Carlo dropout: whether a model has it, and the random numbers of one pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from medsegai.errors import RequestError
from medsegai.models.card import ModelCard
from medsegai.request import SegmentationRequest


def check_dropout(request: SegmentationRequest, card: ModelCard, has_dropout: bool) -> None:
    """Check that a model has dropout if Monte-Carlo passes are requested, because they would be equal otherwise.

    Raises:
        RequestError: passes are requested, and the model has no dropout.
    """
    if request.dropout_passes and not has_dropout:
        raise RequestError(
            f"Model {card.id!r} has no dropout, so Monte-Carlo passes would all be alike. Set dropout-passes "
            "to 0; its members still show where it is uncertain."
        )


@contextlib.contextmanager
def random_numbers(seed: int | None) -> Iterator[None]:
    """Within the block, random numbers depend on `seed` alone; those of the caller are left untouched."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
