"""Classifiers of pictures and patches that also show where: an encoder with one decision for each of its cells.

The mean of the cells' logits is the logit of the picture, because a linear decision and a mean commute. So the
network that learned from patches runs unchanged over a whole slide, and each cell shows its contribution (M. Lin
et al., "Network In Network", 2014; B. Zhou et al., "Learning Deep Features for Discriminative Localization",
2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medsegai.errors import ModelError
from medsegai.models.json_fields import number
from medsegai.networks.encoders import STRIDES, Encoder, build_encoder

CELL = STRIDES[-1]
"""The number of pixels along one side of a cell."""


class CellClassifier(nn.Module):
    """Pictures (N, channels, H, W) to logits (N, classes), or with `cells` to (N, classes, H / 32, W / 32).

    Args:
        encoder: the encoder of the picture.
        classes: the number of classes.
        dropout: the share of the features that a training step leaves out.
    """

    def __init__(self, encoder: Encoder, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.seen = nn.Identity()  # where heat maps read the features
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(encoder.widths[-1], classes, 1)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def cells(self, images: Tensor) -> Tensor:
        """Return the logits of each cell, (N, classes, H / 32, W / 32)."""
        logits: Tensor = self.head(self.encoder(images)[-1])
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of each picture, (N, classes)."""
        features = self.seen(self.encoder(images)[-1]).mean((2, 3), keepdim=True)
        logits: Tensor = self.head(self.dropout(features))
        return logits[..., 0, 0]


class Cells(nn.Module):
    """A classifier whose `forward` returns the logits of its cells, as backends run it.

    Pictures come with values from 0 to 255 and are normalised here, so that every backend does the same.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: CellClassifier, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1) * 255)
        self.register_buffer("std", std.reshape(1, -1, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes, H / 32, W / 32)."""
        return self.classifier.cells(self.normalise(images))

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images as the encoder expects them."""
        return (images - self.mean) / self.std


class PictureLogits(nn.Module):
    """The same network with one output for the whole picture, (N, classes)."""

    def __init__(self, cells: Cells) -> None:
        super().__init__()
        self.classifier = cells.classifier
        self.normalise = cells.normalise

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of pictures with values from 0 to 255."""
        logits: Tensor = self.classifier(self.normalise(images))
        return logits


def describe_classifier(settings: Mapping[str, Any], classes: int) -> CellClassifier:
    """Build the classifier that the settings of a member describe, without weights, on the meta device.

    Raises:
        ModelError: the settings do not name an encoder, or name an unknown one.
    """
    name = settings.get("encoder")
    if not isinstance(name, str):
        raise ModelError("settings must name an encoder.")
    channels = number(settings.get("channels", 3), "channels", 1, 16)
    if channels != int(channels):
        raise ModelError(f"channels must be a whole number, not {channels}.")
    with torch.device("meta"):
        return CellClassifier(build_encoder(name, int(channels)), classes)
