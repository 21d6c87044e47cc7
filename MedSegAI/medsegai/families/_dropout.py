"""What families say of Monte-Carlo dropout that they cannot do."""

from __future__ import annotations

from medsegai.errors import RequestError
from medsegai.models.card import ModelCard
from medsegai.request import SegmentationRequest


def check_dropout(request: SegmentationRequest, card: ModelCard, has_dropout: bool) -> None:
    """Refuse Monte-Carlo passes that would all be alike.

    Raises:
        RequestError: passes are asked for, and the model has no dropout.
    """
    if request.dropout_passes and not has_dropout:
        raise RequestError(
            f"Model {card.id!r} has no dropout, so Monte-Carlo passes would all be alike. Set dropout-passes "
            "to 0; its members still show where it is uncertain."
        )
