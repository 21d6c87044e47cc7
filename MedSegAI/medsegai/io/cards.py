"""Writing of model cards; `medsegai.models.card` reads them."""

from __future__ import annotations

import json
from pathlib import Path

from medsegai.io.atomic import atomic_path
from medsegai.models.card import CARD_NAME, ModelCard


def write_card(card: ModelCard, folder: Path) -> None:
    """Write the `card.json` of a model into its folder, which is made if it is missing.

    Raises:
        OutputError: the card cannot be written; an existing card is not changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(card.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_path(folder / CARD_NAME) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
