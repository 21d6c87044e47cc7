"""What made a segmentation, from the report of its run, in the words of the hand-over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medsegai.card import file_sha256
from medsegai.catalogue import find_card
from medsegai.errors import InputError
from medsegai.handover.dicom_seg import Maker


@dataclass(frozen=True)
class Provenance:
    """Who made a segmentation and how.

    Attributes:
        maker: for DICOM.
        lines: for people: names and values.
        warnings: what the run warned of.
    """

    maker: Maker
    lines: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def provenance(
    segmentation: Path, run: Path | None = None, model: str | None = None, corrected: bool = False
) -> Provenance:
    """Gather what is known.

    Args:
        segmentation: the file. If it is not the one that the run wrote, it counts as corrected.
        run: from `medsegai segment --report`.
        model: named instead of a run.
        corrected: a person changed the segmentation.

    Raises:
        InputError: `run` is no such report.
        ModelError: the model is unknown.
    """
    digest = file_sha256(segmentation)
    lines: dict[str, Any] = {}
    name, version = Maker.name, Maker.version
    warnings: tuple[str, ...] = ()
    if model is not None:
        card = find_card(model)
        name, version = card.id, card.version
    written: str | None = None
    if run is not None:
        made, warnings, written = _read(run)
        name = "+".join(item["id"] for item in made["models"])
        version = "+".join(item["version"] for item in made["models"])
        corrected = corrected or written not in (None, digest)
        lines = _lines(made)
    if name != Maker.name:
        lines = {"Model": f"{name} {version}"} | lines
    lines["Corrected by a person"] = "yes" if corrected else "no" if written else "not known"
    lines["Segmentation (SHA-256)"] = digest
    lines["Handed over"] = datetime.now(UTC).isoformat(timespec="seconds")
    return Provenance(Maker(name, version, corrected), lines, warnings)


def _read(run: Path) -> tuple[dict[str, Any], tuple[str, ...], str | None]:
    """Provenance, warnings and the hash of the segmentation, from the report of a run."""
    try:
        report = json.loads(run.read_text(encoding="utf-8"))
        made = report["provenance"]
        named = [
            {"id": str(item["id"]), "version": str(item["version"])} for item in made["models"]
        ]
        if not named:
            raise ValueError("no model")
        written = report.get("outputs", {}).get("segmentation", {}).get("sha256")
        return made, tuple(str(item) for item in report["warnings"]), written
    except OSError as error:
        raise InputError(f"{run} cannot be opened: {error.strerror or error}.") from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{run} is not a report of `medsegai segment --report`. Name that file, or leave it out."
        ) from error


def _lines(made: Mapping[str, Any]) -> dict[str, Any]:
    weights = [item.get("weights_sha256", {}) for item in made["models"]]
    named = {
        "Segmented": made.get("created"),
        "Segmented with": f"MedSegAI {made.get('medsegai', '?')}",
        "Device": made.get("device"),
        "Options": made.get("options"),
        "Scan (SHA-256)": [item.get("sha256") for item in made.get("inputs", [])],
        "Weights (SHA-256)": weights[0] if len(weights) == 1 else weights,
    }
    return {name: value for name, value in named.items() if value}
