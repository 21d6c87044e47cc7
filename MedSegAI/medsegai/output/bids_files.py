"""A result as a BIDS derivative: tables of labels and volumes, sidecars, and the description of the dataset.

The files follow the BIDS specification 1.10, "BIDS Derivatives" and "Imaging data types". Files without names in
BIDS (volumes, reports, pictures, maps of uncertainty) are listed in .bidsignore.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medsegai import __version__
from medsegai.errors import OutputError, RequestError
from medsegai.io import atomic_path, write_table
from medsegai.io.atomic import write_json
from medsegai.io.tables import explained
from medsegai.output.bids_dataset import DESCRIPTION, IGNORED, SUBJECT, is_dataset
from medsegai.request import NOT_FOR_DIAGNOSIS, SegmentationResult
from medsegai.volume import Volume
from medsegai.worker.batch_events import OBJECTS_NAME, TABLE_NAME, VOLUMES_NAME

BIDS_VERSION = "1.10.0"
GENERATOR = "MedSegAI"
SOURCE_LINK = "raw"
"""The name of the dataset of the scans in BIDS URIs."""

RESOLUTION = "That of the scan."

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
    """Return the scan as a BIDS URI if it is in the folder of a subject, otherwise its file name.

    BIDS wants words for the resolution wherever the name of a file has the entity res.
    """
    path = scan if isinstance(scan, Path) else Path(scan.source)
    dataset = dataset_of(path)
    if dataset is None:
        return {"SpatialReference": path.name or "the scan", "Resolution": RESOLUTION}
    uri = f"bids:{SOURCE_LINK}:{path.relative_to(dataset).as_posix()}"
    return {"Sources": [uri], "SpatialReference": uri, "Resolution": RESOLUTION}


def dataset_of(scan: Path) -> Path | None:
    """Return the folder that holds the folder of the scan's subject; None if there is no such folder."""
    inside = (path for path in scan.parents if SUBJECT.fullmatch(path.name))
    return next((path.parent for path in inside), None)


def dataset_of_all(scans: Iterable[Path]) -> Path | None:
    """Return the dataset of some scans; None if they are not in one.

    Raises:
        RequestError: they are in several, but a derivative links to one.
    """
    found = {dataset.resolve(): dataset for scan in scans if (dataset := dataset_of(scan))}
    if len(found) > 1:
        first, second, *_ = found.values()
        raise RequestError(
            f"The scans are in several BIDS datasets, such as {first} and {second}, but a derivative belongs to "
            "one. Segment each dataset into a folder of its own."
        )
    return next(iter(found.values()), None)


def check_description(folder: Path, source: Path | None = None) -> None:
    """Raise OutputError if the folder holds a dataset that MedSegAI did not make, or results of another one.

    Args:
        folder: the folder of the derivative.
        source: the dataset of the scans, if they are in one.
    """
    path = folder / DESCRIPTION
    separate = f"Name a separate folder, such as {folder / 'derivatives' / 'medsegai'}."
    if source is not None and folder.is_dir() and folder.samefile(source):
        raise OutputError(f"{folder} is the dataset of the scans. {separate}")
    if not path.exists():
        if is_dataset(folder):
            raise OutputError(f"{folder} holds another dataset (without {DESCRIPTION}). {separate}")
        return
    before = _read(path)
    if not any(item.get("Name") == GENERATOR for item in _generators(before)):
        raise OutputError(f"{folder} holds another dataset ({DESCRIPTION}). {separate}")
    if source is not None:
        _check_link(folder, source, _links(before).get(SOURCE_LINK))


def _check_link(folder: Path, source: Path, link: Any) -> None:
    """Raise OutputError if results of another dataset than `source` are there."""
    linked = folder / link if isinstance(link, str) and ":" not in link else None
    if linked is None or not linked.is_dir() or linked.samefile(source):
        return
    if any(folder.glob("sub-*")):
        raise OutputError(
            f"{folder} holds results of another dataset ({linked.resolve()}), which its files link to. Name a "
            "separate folder."
        )


def _read(path: Path) -> dict[str, Any]:
    """Return the description of a dataset; empty without one that can be understood."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _generators(description: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = description.get("GeneratedBy")
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _links(description: Mapping[str, Any]) -> dict[str, Any]:
    found = description.get("DatasetLinks")
    return found if isinstance(found, dict) else {}


def write_description(
    folder: Path, source: Path | None, models: Sequence[str], kept: bool = False
) -> None:
    """Write the description of a derivative dataset: its name, origin and columns, and files without BIDS names.

    What people added to an earlier description, to README.md and to .bidsignore stays.

    Args:
        folder: the folder of the derivative.
        source: the dataset of the scans; None if they are not in one.
        models: the models with their versions.
        kept: whether results of an earlier batch are kept, which another version may have made.

    Raises:
        OutputError: a file cannot be written.
    """
    before = _read(folder / DESCRIPTION)
    made = {
        "Name": GENERATOR,
        "Version": __version__,
        "Description": f"Segmented with {', '.join(models)}. {NOT_FOR_DIAGNOSIS}",
    }
    others = [
        item
        for item in _generators(before)
        if item != made and (kept or item.get("Name") != GENERATOR)
    ]
    description = {
        "Name": f"Segmentations of {'scans' if source is None else source.name}",
        **before,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [made, *others],
    }
    if source is not None:
        description["DatasetLinks"] = _links(before) | {SOURCE_LINK: _relative(source, folder)}
    write_json(folder / DESCRIPTION, description)
    write_json(folder / "desc-medsegai_volumes.json", explained(VOLUMES_COLUMNS))
    _complete(folder / IGNORED, IGNORED_FILES)
    if not (folder / "README.md").is_file():
        with atomic_path(folder / "README.md") as partial:
            partial.write_text(README, encoding="utf-8")


def _relative(source: Path, folder: Path) -> str:
    try:
        return os.path.relpath(source, folder.resolve()).replace(os.sep, "/")
    except ValueError:  # on another drive of Windows
        return source.as_uri()


def _complete(path: Path, lines: Sequence[str]) -> None:
    """Add the lines that a file lacks."""
    there = path.read_bytes().splitlines() if path.is_file() else []
    wanted = [line.encode() for line in lines]
    with atomic_path(path) as partial:
        partial.write_bytes(b"".join(line + b"\n" for line in dict.fromkeys([*there, *wanted])))
