"""The origin of a segmentation, from the report of its run, for the export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medsegai.errors import InputError, ModelError
from medsegai.export.dicom_seg import Maker
from medsegai.labels import Label
from medsegai.models.card import file_sha256
from medsegai.models.catalogue import find_card
from medsegai.models.json_fields import read_json
from medsegai.models.quality import JUDGED, quality_of

_NO_REPORT = "{} is not a report of `medsegai segment --report`. Name that file, or leave it out."


@dataclass(frozen=True)
class Measured:
    """The measures of a structure in a run: the agreement of members, and whether there were remarks."""

    measures: Mapping[str, float]
    remarked: bool


@dataclass(frozen=True)
class Provenance:
    """Who made a segmentation and how.

    Attributes:
        maker: the maker, for DICOM.
        lines: names and values, for readers.
        warnings: the warnings of the run.
        measured: the measures of each structure's quality in the run, by value and name.
    """

    maker: Maker
    lines: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    measured: Mapping[tuple[int, str], Measured] = field(default_factory=dict)

    def quality(self, label: Label, remarked: bool) -> str:
        """Return the quality of a structure in one word (`quality.quality_of`); "" if it is unknown.

        The agreement of members is ignored for structures that a person changed, as in Slicer.

        Args:
            remarked: whether there are remarks on the present structure.
        """
        known = self.measured.get((label.value, label.name))
        if known is None or self.maker.corrected or label.value in self.maker.touched:
            return quality_of({}, remarked)
        return quality_of(known.measures, remarked or known.remarked)


def provenance(
    segmentation: Path, run: Path | None = None, model: str | None = None, corrected: bool = False
) -> Provenance:
    """Gather the origin of a segmentation.

    Args:
        segmentation: the file, which counts as corrected if the run did not write it.
        run: the report from `medsegai segment --report`.
        model: the model, if a run is not named.
        corrected: whether a person changed the segmentation.

    Raises:
        InputError: `run` is not such a report.
        ModelError: the model is unknown.
    """
    digest = file_sha256(segmentation)
    found = Provenance(Maker())
    if model is not None:
        card = find_card(model)
        found = Provenance(Maker(card.id, card.version))
    written: str | None = None
    if run is not None:
        try:
            report = read_json(run, nan_as_null=True)
            found = of_report(report)
            written = report.get("outputs", {}).get("segmentation", {}).get("sha256")
        except OSError as error:
            raise InputError(f"{run} cannot be opened: {error.strerror or error}.") from error
        except (AttributeError, ValueError, ModelError) as error:
            raise InputError(_NO_REPORT.format(run)) from error
        corrected = corrected or written not in (None, digest)
    known = "yes" if corrected else "no" if written else "not known"
    lines = {"Corrected by a person": known, "Segmentation (SHA-256)": digest}
    return closed(replace(found, maker=replace(found.maker, corrected=corrected)), lines)


def of_report(report: Mapping[str, Any]) -> Provenance:
    """Return the origin that the report of a run states.

    Raises:
        ValueError: the content is not such a report.
    """
    try:
        made = report["provenance"]
        models = [(str(item["id"]), str(item["version"])) for item in made["models"]]
        if not models:
            raise ValueError("no model")
        name, version = ("+".join(parts) for parts in zip(*models, strict=True))
        warnings = tuple(str(item) for item in report["warnings"])
        lines = _lines(made) | _counted(report) | _refined(report)
        return Provenance(Maker(name, version), lines, warnings, _measured(report))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError("not the report of a run") from error


def _measured(report: Mapping[str, Any]) -> dict[tuple[int, str], Measured]:
    return {
        (int(item["value"]), str(item["name"])): Measured(
            {name: float(item[name]) for name in JUDGED if item.get(name) is not None},
            bool(item["remarks"]),
        )
        for item in report.get("structures", ())
    }


def _counted(report: Mapping[str, Any]) -> dict[str, Any]:
    """How many separate objects the run found, and how large they are."""
    found = report.get("objects")
    return {"Objects": f"{found['count']}{_median_size(found)}"} if found else {}


def _median_size(found: Mapping[str, Any]) -> str:
    area, pixels = found["median_area_mm2"], found["median_pixels"]
    if area is not None:
        return f", median {area:.3g} mm²"
    return "" if pixels is None else f", median {pixels:.0f} pixels"


def _refined(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes by refinements after the run, as the panel records them."""
    done = [
        f"{item['settings']['name']} ({item['ml']:.3g} ml)" for item in report.get("refined", ())
    ]
    return {"Refined since": done} if done else {}


def closed(found: Provenance, lines: Mapping[str, Any]) -> Provenance:
    """Return the provenance with the model first, and further values and the time of the export last."""
    maker = found.maker
    model = {"Model": f"{maker.name} {maker.version}"} if maker.name != Maker.name else {}
    now = {"Exported": datetime.now(UTC).isoformat(timespec="seconds")}
    return replace(found, lines={**model, **found.lines, **lines, **now})


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
