"""A result as a BIDS derivative: tables of labels and volumes, sidecars, and the description of the dataset.

The files follow the BIDS specification 1.10, "BIDS Derivatives" and "Imaging data types". Files without names in
BIDS (volumes, reports, pictures, maps of uncertainty) are listed in .bidsignore.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsegai import __version__
from medsegai.errors import OutputError
from medsegai.io import atomic_path, write_table
from medsegai.io.atomic import write_json
from medsegai.io.tables import explained
from medsegai.output.bids_dataset import DESCRIPTION, IGNORED, SUBJECT
from medsegai.request import NOT_FOR_DIAGNOSIS, SegmentationResult
from medsegai.volume import Volume
from medsegai.worker.batch_events import OBJECTS_NAME, TABLE_NAME, VOLUMES_NAME

BIDS_VERSION = "1.10.0"
GENERATOR = "MedSegAI"
SOURCE_LINK = "raw"
"""The name of the dataset of the scans in BIDS URIs."""

VOLUMES_COLUMNS = {
    "index": ("Label value of the structure in the _dseg image.", None),
    "name": ("Name of the structure.", None),
    "voxels": ("Number of its voxels.", None),
    "volume_ml": ("Its volume: voxels times the volume of one.", "mL"),
    "volume_cv": (
        "Standard deviation over mean of the volume among the networks; n/a unless uncertainty was measured.",
        "1",
    ),
    "pairwise_dice": ("Mean Dice coefficient over all pairs of networks.", "1"),
    "iou": (
        "Number of voxels that all networks found, over the number that any of them found.",
        "1",
    ),
    "mean_entropy": (
        "Mean entropy of the fused probabilities inside the structure, in nats.",
        "1",
    ),
    "mutual_information": (
        "Mean mutual information of the networks inside the structure, in nats: how much "
        "they disagree, beyond the uncertainty of each.",
        "1",
    ),
    "expected_dice": (
        "Dice coefficient with a manual segmentation that is expected from the agreement of the networks.",
        "1",
    ),
    "remarks": ("Why a person should look at the structure; n/a if there is no reason.", None),
}
"""The description and the unit of each column in the table of volumes."""

IGNORED_FILES = (
    TABLE_NAME,
    VOLUMES_NAME,
    OBJECTS_NAME,
    "cohort.*",
    "*volumes.*",
    "*_objects.*",
    "*_report.*",
    "*_uncertainty.*",
    "*_preview.*",
)

README = f"""# Segmentations by MedSegAI

Labels of the structures are in `_dseg.nii.gz`, on the grid of the scan, and names and colours of their values in
the `_dseg.tsv` beside it. Volumes and measures of uncertainty are in `_volumes.tsv`; `desc-medsegai_volumes.json`
explains its columns. The `_report.json` of a case says how it was made. {NOT_FOR_DIAGNOSIS}
"""


def write_label_table(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    """Write the table of a _dseg image: index, name and colour of each label."""
    rows = (
        {
            "index": label.value,
            "name": label.name,
            "color": "#{:02x}{:02x}{:02x}".format(*label.color),
        }
        for label in result.labels
    )
    write_table(path, ("index", "name", "color"), rows)


def write_sidecar(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    """Write the sidecar of a _dseg image: its sources, and that it was not drawn by a person."""
    what = "Label values of structures; their names and colours are in the _dseg.tsv."
    write_json(path, {"Description": what, "Manual": False, **_sources(scan)})


def write_probabilities_sidecar(
    path: Path, result: SegmentationResult, scan: Path | Volume
) -> None:
    """Write the sidecar of a _probseg image, with the names of its volumes in order."""
    what = "Probability of each structure, one volume each in the order of LabelMap."
    names = [label.name for label in result.labels]
    write_json(path, {"Description": what, "Manual": False, "LabelMap": names, **_sources(scan)})


def write_volumes(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    """Write the structures with their volumes and uncertainty, in the columns of `VOLUMES_COLUMNS`."""
    rows = (item.to_dict() for item in result.structures)
    named = ({"index": row["value"], **row, "remarks": row["remarks"] or None} for row in rows)
    write_table(
        path, list(VOLUMES_COLUMNS), ({key: row[key] for key in VOLUMES_COLUMNS} for row in named)
    )


def _sources(scan: Path | Volume) -> Mapping[str, Any]:
    """Return the scan as a BIDS URI if it is in the folder of a subject, otherwise its file name."""
    path = scan if isinstance(scan, Path) else Path(scan.source)
    dataset = dataset_of(path)
    if dataset is None:
        return {"SpatialReference": path.name or "the scan"}
    uri = f"bids:{SOURCE_LINK}:{path.relative_to(dataset).as_posix()}"
    return {"Sources": [uri], "SpatialReference": uri}


def dataset_of(scan: Path) -> Path | None:
    """Return the folder that holds the folder of the scan's subject; None if there is no such folder."""
    inside = (path for path in scan.parents if SUBJECT.fullmatch(path.name))
    return next((path.parent for path in inside), None)


def check_description(folder: Path) -> None:
    """Raise OutputError if the folder holds a dataset that MedSegAI did not make."""
    path = folder / DESCRIPTION
    if not path.exists():
        return
    try:
        makers = json.loads(path.read_text(encoding="utf-8"))["GeneratedBy"]
        ours = any(item["Name"] == GENERATOR for item in makers)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise OutputError(
            f"{folder} holds another dataset ({DESCRIPTION}). Name a separate folder, such as "
            f"{folder / 'derivatives' / 'medsegai'}."
        )


def write_description(folder: Path, source: str, link: str | None, models: Sequence[str]) -> None:
    """Write the description of a derivative dataset: its name, origin and columns, and files without BIDS names.

    Args:
        folder: the folder of the derivative.
        source: the name of the dataset of the scans.
        link: the path of that dataset, relative to `folder`; None if the scans are not a BIDS dataset.
        models: the models with their versions.

    Raises:
        OutputError: a file cannot be written.
    """
    description = _description(source, models)
    if link is not None:
        description["DatasetLinks"] = {SOURCE_LINK: link}
    write_json(folder / DESCRIPTION, description)
    write_json(folder / "desc-medsegai_volumes.json", explained(VOLUMES_COLUMNS))
    for name, text in ((IGNORED, "\n".join(IGNORED_FILES) + "\n"), ("README.md", README)):
        with atomic_path(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def _description(source: str, models: Sequence[str]) -> dict[str, object]:
    generator = {
        "Name": GENERATOR,
        "Version": __version__,
        "Description": f"Segmented with {', '.join(models)}. {NOT_FOR_DIAGNOSIS}",
    }
    return {
        "Name": f"Segmentations of {source}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generator],
    }
