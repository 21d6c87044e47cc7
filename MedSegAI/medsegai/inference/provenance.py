"""What a report records of the software, the models and the scans that a result was made from."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Container
from importlib import metadata
from typing import Any

import numpy as np

from medsegai import __version__
from medsegai.models.card import ModelCard
from medsegai.volume import Volume

PACKAGES = ("torch", "numpy", "scipy", "openvino")
"""The packages whose versions are recorded."""


def software() -> dict[str, Any]:
    """The versions of MedSegAI, of Python, and of the packages that are installed."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "medsegai": __version__,
        "python": platform.python_version(),
        "packages": {name: version for name, version in versions.items() if version},
    }


def model_record(card: ModelCard, members: Container[str]) -> dict[str, Any]:
    """A model, and the hashes of the weights of those members that ran."""
    hashes = {
        member.name: card.weights_sha256(member)
        for member in card.members
        if member.name in members
    }
    return {
        "id": card.id,
        "family": card.family,
        "version": card.version,
        "weights_sha256": hashes,
    }


def scan_record(volume: Volume) -> dict[str, Any]:
    """The grid of a scan, and a hash of its voxels and their place: it names a scan and not a patient."""
    digest = hashlib.sha256(np.ascontiguousarray(volume.voxels).data)
    digest.update(volume.geometry.ijk_to_ras.tobytes())
    return {"sha256": digest.hexdigest(), "grid": volume.geometry.describe()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
