"""A picture of what a training sees: made images of held-out label maps, and what is to be learned from each.

    python Testing/bench/synthesis_pictures.py CONFIG DATA docs/images/synthesis.png

CONFIG is a training file, DATA the folder of its label maps. Each column is a volume of the training: the middle
coronal slice, and the same with the labels in the colours of the card.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from medsegai.models.card import load_card
from medsegai.training.config import load_config
from medsegai.training.data import TRAINING, case_source

GREY_SHARE = 0.45
"""Of the image that shines through the labels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--volumes", type=int, default=8)
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    config = replace(config, data=replace(config.data, root=str(arguments.data.resolve())))
    card = load_card(config.card_path)
    source = case_source(config, card, torch.device("cpu"))
    colors = np.array([(0, 0, 0), *(label.color for label in card.labels)], np.float32)
    columns = []
    for number in range(arguments.volumes):
        sample = source.sample(TRAINING, number)
        middle = sample.image.shape[0] // 2
        grey = np.repeat(sample.image[middle][..., None] * 255.0, 3, axis=2)
        targets = sample.targets[middle]
        mixed = GREY_SHARE * grey + (1.0 - GREY_SHARE) * colors[targets]
        shown = np.where((targets > 0)[..., None], mixed, grey)
        columns.append(np.concatenate([grey, shown]))
    Image.fromarray(np.concatenate(columns, axis=1).astype(np.uint8)).save(arguments.output)


if __name__ == "__main__":
    main()
