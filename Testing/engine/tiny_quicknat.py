"""A QuickNAT small enough for tests: few filters, made weights, a card like that of any model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from medsegai.models.card import ModelCard, file_sha256, load_card
from medsegai.networks.quicknat import QuickNAT, QuickNATConfig

LEFT, RIGHT, MIDDLE = 2, 41, 16
CLASSES = {
    "axial": [[], [LEFT], [RIGHT], [MIDDLE]],
    "coronal": [[], [LEFT], [RIGHT], [MIDDLE]],
    "sagittal": [[], [LEFT, RIGHT], [MIDDLE]],
}


def network(classes: int, slices: int = 1, seed: int = 0, filters: int = 4) -> QuickNAT:
    """Random weights, scaled so that every class wins somewhere."""
    torch.manual_seed(seed)
    made = QuickNAT(QuickNATConfig(slices, filters, classes, dropout=0.3)).eval()
    with torch.no_grad():
        made.classifier["conv"].weight.mul_(20.0)
    return made


def write_model(
    folder: Path, slices: int = 1, grid: int = 48, spacing_mm: float = 2.0
) -> ModelCard:
    """A model folder with three views."""
    folder.mkdir(parents=True, exist_ok=True)
    members = []
    for seed, (view, classes) in enumerate(CLASSES.items()):
        weights = folder / f"{view}.safetensors"
        save_file(network(len(classes), slices, seed).state_dict(), weights)
        members.append(
            {
                "name": view,
                "weights": weights.name,
                "sha256": file_sha256(weights),
                "weight": 0.2 if view == "sagittal" else 0.4,
                "classes": classes,
                "settings": {"view": view},
            }
        )
    names = {LEFT: "Left part", RIGHT: "Right part", MIDDLE: "Middle part"}
    card = {
        "id": "tiny",
        "name": "Tiny",
        "family": "quicknat",
        "version": "1",
        "channels": [{"name": "MR", "modality": "MR"}],
        "labels": [
            {"value": value, "name": name, "color": [value, 9, 9]} for value, name in names.items()
        ],
        "members": members,
        "spacing_mm": [spacing_mm] * 3,
        "settings": {"filters": 4, "slices": slices, "dropout": 0.3, "grid": [grid] * 3},
    }
    (folder / "card.json").write_text(json.dumps(card))
    return load_card(folder)
