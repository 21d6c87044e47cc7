"""The purpose of bundles that do not segment a volume with a network of MONAI."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from medsegai.errors import ModelError
from medsegai.families.monai.components import TARGET
from medsegai.families.monai.configuration import Configuration

KINDS: dict[str, str] = {
    "interaction by clicks": r"(?i)guidance|deepedit|deepgrow|click|vista3d|vista2d|\bsam\b|interact",
    "detection of boxes": r"(?i)retina|detect|boxmode|anchor",
    "generation of images": r"(?i)diffusion|autoencoderkl|vqvae|controlnet|generat|\bgan\b|synthesis|maisi|ddpm",
    "registration": r"(?i)registration|globalnet|localnet|voxelmorph|warp|ddf|\breg\b",
    "classification": r"(?i)densenet|efficientnetbn|torchvision|\bresnet\d*|senet|milmodel|classif|vit\b",
    "segmentation of nuclei": r"(?i)hovernet|hover_?net|nuclei|nucle[au]r|cell_?sam",
    "regression": r"(?i)regress|landmark|depth ?map",
}
"""The kinds of bundles, by words in the names of their parts. The first one that fits counts."""

PARTS = ("network_def", "network", "inferer")
"""The entries whose targets show the purpose of a bundle."""

MOST_TARGETS = 300


def check_segments(configuration: Configuration, metadata: Mapping[str, Any]) -> None:
    """Refuse bundles with another purpose, and name that purpose.

    Raises:
        ModelError: the bundle has another purpose, or does not have a network.
    """
    _check_network(configuration)
    told = " ".join(_targets(configuration))
    task = " ".join(str(metadata.get(name, "")) for name in ("task", "name"))
    for text in (told, task):
        for kind, words in KINDS.items():
            found = re.search(words, text)
            if found and not (
                text is task and "segment" in task.lower() and kind != "interaction by clicks"
            ):
                raise ModelError(
                    f"The bundle of {configuration.path} is for {kind} ({found[0]!r}), but MedSegAI only runs "
                    "bundles that segment a volume by themselves. Run it with MONAI."
                )


def _check_network(configuration: Configuration) -> None:
    if not any(configuration.has_value(part) for part in ("network_def", "network")):
        raise configuration.wrong(
            "network_def",
            "it is missing, and so the bundle does not contain a network that segments",
        )


def _targets(configuration: Configuration) -> Iterator[str]:
    """Yield the targets of the parts that show the purpose of a bundle, and of its preprocessing."""
    waiting = [
        configuration.raw(part) for part in (*PARTS, "preprocessing") if part in configuration
    ]
    for _ in range(MOST_TARGETS):
        if not waiting:
            return
        value = waiting.pop(0)
        if isinstance(value, dict):
            if isinstance(value.get(TARGET), str):
                yield value[TARGET]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
