"""A check that a job has the images that a model needs."""

from __future__ import annotations

from collections.abc import Sequence

from medsegai.errors import RequestError, counted
from medsegai.models.card import ModelCard
from medsegai.volume import Volume


def require_all_channels(card: ModelCard, inputs: Sequence[Volume]) -> None:
    """Check that a job has one image for each channel of the model.

    Raises:
        RequestError: the job has more or fewer images.
    """
    names = [channel.name for channel in card.channels]
    if len(inputs) != len(names):
        raise RequestError(
            f"Model {card.id!r} takes {counted(len(names), 'image', 'images')} "
            f"({', '.join(names)}, in this order), not {len(inputs)}."
        )
