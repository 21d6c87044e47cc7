"""Whether a scan is of the kind that a model was made for, by what is known before the model runs.

A network segments whatever it is given. What the file says about its scanner, how large its field of view is, and
whether its values are Hounsfield units is compared with the card; only a clear mismatch is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import MismatchError
from medsegai.models.card import ModelCard
from medsegai.volume import Scalar, Volume

MODALITIES = {"CT": "CT", "MR": "MR", "PT": "PET", "US": "ultrasound"}
"""DICOM's codes that cards use too, and their names."""

LARGER = (2.0, 4.0)
"""How many times the usual length, as the mean of its sides, makes a scan questionable, or a mismatch. A head is
five times as long as a crop of one hippocampus."""

SMALLER = 1 / 2
"""A scan that is a smaller part of the usual length is questionable; it may be cropped on purpose."""

SAMPLES = 2_000_000
"""Largest number of voxels whose values are inspected."""

AIR_HU, AIR_SHARE = (-1100.0, -900.0), 0.05
"""Around a body a CT shows air, of -1000 Hounsfield units, or the padding beside its round field of view."""

TISSUE_HU, TISSUE_SHARE = (-150.0, 150.0), 0.03
"""Water, fat and organs."""

BETWEEN_HU = (-600.0, -300.0)
"""Hardly anything in a body: lungs lie below, fat above."""

WHAT_TO_DO = (
    "Choose a model for such scans, or segment it anyway (--anyway; in Slicer: Any kind of scan)."
)


@dataclass(frozen=True)
class Doubt:
    """One thing that does not fit, as a sentence; `clear` if it is a clear mismatch."""

    words: str
    clear: bool


def check_suits(
    cards: Sequence[ModelCard], inputs: Sequence[Volume], anyway: bool = False
) -> tuple[str, ...]:
    """Compare scans with the cards of the models that will segment them.

    Args:
        cards: the models.
        inputs: one image per channel, in the order of the channels.
        anyway: whether to accept a scan that clearly does not suit a model.

    Returns:
        What is questionable, as sentences; empty if nothing is.

    Raises:
        MismatchError: a scan clearly does not suit a model, and `anyway` is false.
    """
    for words in () if anyway else mismatches(cards, inputs):
        raise MismatchError(f"{words} {WHAT_TO_DO}")
    return tuple(doubt.words for card in cards for doubt in doubts(card, inputs))


def mismatches(cards: Sequence[ModelCard], inputs: Sequence[Volume]) -> tuple[str, ...]:
    """Why scans clearly do not suit models, as sentences; empty if they suit."""
    found = (doubt for card in cards for doubt in doubts(card, inputs))
    return tuple(doubt.words for doubt in found if doubt.clear)


def doubts(card: ModelCard, inputs: Sequence[Volume]) -> Iterator[Doubt]:
    """What does not fit, channel by channel; the field of view of the first one represents all."""
    yield from _of_extent(card, inputs[0])
    for channel, volume in zip(card.channels, inputs, strict=False):
        yield from _of_modality(card, channel.modality, volume)


def _of_modality(card: ModelCard, wanted: str, volume: Volume) -> Iterator[Doubt]:
    name, said = volume.source or "The image", volume.modality.upper()
    if wanted not in MODALITIES:
        return
    if said in MODALITIES and said != wanted:
        yield Doubt(
            f"{name} is a scan of {MODALITIES[said]}, but the model {card.name} was made for "
            f"{MODALITIES[wanted]}.",
            clear=True,
        )
        return
    yield from _of_values(card, wanted, said, name, _sample(volume.voxels))


def _of_values(
    card: ModelCard, wanted: str, said: str, name: str, values: NDArray[np.number]
) -> Iterator[Doubt]:
    if wanted in ("MR", "US") and said != wanted and _is_hounsfield(values):
        yield Doubt(
            f"{name} has the values of a CT (air at -1000), but the model {card.name} was made for "
            f"{MODALITIES[wanted]}.",
            clear=True,
        )
    elif wanted == "CT" and values.min() >= 0:
        yield Doubt(
            f"{name} has no values below 0, as a CT in Hounsfield units has; the model {card.name} was made for "
            "these. Look at the result with care.",
            clear=False,
        )


def _of_extent(card: ModelCard, volume: Volume) -> Iterator[Doubt]:
    if card.field_of_view_mm is None:
        return
    name, grid = volume.source or "The image", volume.geometry
    sides = [size * step for size, step in zip(grid.shape[::-1], grid.spacing_mm, strict=True)]
    ratio = float(np.prod(sides) / np.prod(card.field_of_view_mm)) ** (1 / 3)
    if SMALLER <= ratio <= LARGER[0]:
        return
    what = "far larger" if ratio > LARGER[1] else "larger" if ratio > 1 else "smaller"
    usual = _millimetres(card.field_of_view_mm)
    yield Doubt(
        f"{name} covers {_millimetres(sorted(sides))}, which is {what} than the {usual} of the scans that "
        f"the model {card.name} was made for.",
        clear=ratio > LARGER[1],
    )


def _is_hounsfield(values: NDArray[np.number]) -> bool:
    """Whether many voxels are air, many are tissue in Hounsfield units, and fewer than air lie between them.

    Padding below -1500 does not count.
    """
    inside = values[values > -1500]
    air, tissue, between = (
        np.count_nonzero((inside >= low) & (inside <= high)) / max(len(inside), 1)
        for low, high in (AIR_HU, TISSUE_HU, BETWEEN_HU)
    )
    return bool(air >= AIR_SHARE and tissue >= TISSUE_SHARE and between < air)


def _sample(voxels: NDArray[Scalar]) -> NDArray[Scalar]:
    step = max(1, round((voxels.size / SAMPLES) ** (1 / 3)))
    return voxels[::step, ::step, ::step].ravel()


def _millimetres(sides: Sequence[float]) -> str:
    return " x ".join(f"{side:.0f}" for side in sides) + " mm"
