"""The files of a result, which are checked before the work begins and written together or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from medsegai.errors import OutputError, RequestError
from medsegai.io import (
    SEGMENTATION_ENDINGS,
    WRITABLE,
    check_output,
    files_together,
    read_channels,
    read_volume,
    write_probabilities,
    write_segmentation,
    write_table,
    write_volume,
)
from medsegai.measurements.places import PLACE_COLUMNS, suspicious_places
from medsegai.models.card import file_sha256
from medsegai.output import bids_files, case_page, freesurfer_files
from medsegai.output.object_files import write_object_map, write_object_table
from medsegai.output.picture_preview import render_picture
from medsegai.output.preview import render_preview
from medsegai.progress import Progress
from medsegai.request import SegmentationResult
from medsegai.system.locks import reserved
from medsegai.volume import Volume

WRITE_STAGE = "write"

ENDINGS = {
    "segmentation": SEGMENTATION_ENDINGS,
    "uncertainty": WRITABLE,
    "mutual_information": WRITABLE,
    "probabilities": (".nii.gz", ".nii"),
    "volumes": (".csv", ".tsv"),
    "places": (".csv",),
    "objects": SEGMENTATION_ENDINGS,
    "object_table": (".csv", ".tsv"),
    "preview": (".png",),
    "page": (".html",),
    "viewer": (".html",),
    "label_table": (".tsv",),
    "sidecar": (".json",),
    "probabilities_sidecar": (".json",),
    "color_table": (".ctab", ".txt"),
    "statistics": (".stats",),
    "report": (".json",),
}
"""The file types of each part."""

MAPS = ("uncertainty", "mutual_information")
"""The parts that are images with a number for each voxel."""


@dataclass(frozen=True)
class Outputs:
    """The paths of the parts of a result; None for parts that are not wanted.

    Attributes:
        segmentation: .seg.nrrd with named segments, or a labelmap as .nii.gz, .nrrd or .mha.
        uncertainty: entropy map, as an image.
        mutual_information: map of how much members disagree, as an image.
        probabilities: 4D NIfTI with one volume per structure.
        volumes: table of structures, .csv, or .tsv as in BIDS.
        places: table of connected regions with their sizes and probabilities, the most probable first, .csv.
        objects: map of the numbers of separate objects, such as nuclei, like a segmentation.
        object_table: table of these objects, .csv, or .tsv as in BIDS.
        preview: picture of three planes, .png.
        page: report of the case for readers, .html.
        viewer: the same report with an interactive viewer, which contains the scan.
        label_table, sidecar, probabilities_sidecar: the files beside an image in BIDS, see `bids_files`.
        color_table, statistics: the files that belong to aseg.mgz in FreeSurfer, see `freesurfer_files`.
        report: everything but the voxels, .json.
    """

    segmentation: Path
    uncertainty: Path | None = None
    mutual_information: Path | None = None
    probabilities: Path | None = None
    volumes: Path | None = None
    places: Path | None = None
    objects: Path | None = None
    object_table: Path | None = None
    preview: Path | None = None
    page: Path | None = None
    viewer: Path | None = None
    label_table: Path | None = None
    sidecar: Path | None = None
    probabilities_sidecar: Path | None = None
    color_table: Path | None = None
    statistics: Path | None = None
    report: Path | None = None

    def paths(self) -> dict[str, Path]:
        """Return the wanted parts by name, in the order in which they are written (the report is last)."""
        named = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: path for name, path in named.items() if path is not None}

    def check(self, inputs: Sequence[Path], overwrite: bool = False) -> None:
        """Check that a result can be written, before hours of work are spent on it.

        Raises:
            RequestError: two parts have the same path, or a path is one of the inputs.
            OutputError: a folder is missing or not writable, a file type is unknown, or a file exists and
                `overwrite` is false, because it may hold manual corrections.
        """
        seen: dict[Path, str] = {path.resolve(): "input" for path in inputs}
        for name, path in self.paths().items():
            other = seen.setdefault(path.resolve(), name)
            if other != name:
                raise RequestError(f"{path} is named as {name} and as {other}. Name another file.")
            check_output(path, ENDINGS[name])
            if name in MAPS and path.name.lower().endswith(".seg.nrrd"):
                raise OutputError(
                    f"{path}: .seg.nrrd files hold segments, not maps. Use the ending .nrrd."
                )
            if path.exists() and not overwrite:
                raise _exists(path)

    def write(self, result: SegmentationResult, scan: Path | Volume, progress: Progress) -> None:
        """Write every part beside its path and, when all are complete, move all to their paths, the report last.

        The report has the SHA-256 of every other part. So a case is done if its report says so: if the process
        ends between two moves, the report is still missing, or is an old one with other hashes.

        Args:
            result: the result of the engine.
            scan: the first input, which the picture shows.
            progress: the progress of the job, which may stop it before each file.

        Raises:
            OutputError: a file cannot be written, for example because the disk is full.
            Cancelled: the user stopped the job; no file was changed.
        """
        paths = self.paths()
        with files_together() as files:
            hashes: dict[str, str] = {}
            for number, (name, path) in enumerate(paths.items()):
                progress.step(WRITE_STAGE, number, len(paths))
                with files.path(path) as partial:
                    if name == "report":
                        _write_report(partial, result, scan, paths, hashes)
                    else:
                        WRITERS[name](partial, result, scan)
                        hashes[name] = file_sha256(partial)
            progress.step(WRITE_STAGE, len(paths), len(paths))

    def reserved(self) -> AbstractContextManager[None]:
        """Prevent other runs from writing these files within the block.

        Raises:
            OutputError: another run is writing one of them.
        """
        return reserved(self.paths().values())

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of the existing parts, by name, without the report."""
        return {
            name: file_sha256(path)
            for name, path in self.paths().items()
            if name != "report" and path.is_file()
        }


def recorded_hashes(report: Path) -> dict[str, str]:
    """Return the SHA-256 of the parts that a report lists; empty if it is not a report of a segmentation.

    Raises:
        OSError: the report cannot be read.
    """
    try:
        outputs = json.loads(report.read_text(encoding="utf-8"))["outputs"]
        return {str(name): str(part["sha256"]) for name, part in outputs.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def volume_rows(result: SegmentationResult) -> list[dict[str, Any]]:
    """Return one row per structure: value, name, voxels, volume_ml, and the measures of uncertainty."""
    return [measures.to_dict() for measures in result.structures]


def _write_segmentation(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    write_segmentation(path, result.labelmap, result.labels, result.regions)


def _write_uncertainty(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    _write_map(path, result.entropy, "did not measure uncertainty")


def _write_information(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    _write_map(
        path,
        result.mutual_information,
        "ran a single member, although mutual information compares several",
    )


def _write_map(path: Path, volume: Volume | None, missing: str) -> None:
    if volume is None:
        raise OutputError(f"{path} was requested, but the engine {missing}.")
    write_volume(path, volume)


def _write_probabilities(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    if result.probabilities is None:
        raise OutputError(f"{path} was requested, but the engine did not keep probabilities.")
    write_probabilities(path, result.probabilities, result.labelmap.geometry, result.labels)


def _write_volumes(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    if path.suffix.lower() == ".tsv":
        bids_files.write_volumes(path, result, scan)
        return
    rows = volume_rows(result)
    write_table(path, list(rows[0]), rows)


def _exists(path: Path) -> OutputError:
    return OutputError(
        f"{path} exists already and may hold manual corrections. Name another "
        "file, or add --overwrite."
    )


def _write_places(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    write_table(path, PLACE_COLUMNS, [place.to_dict() for place in suspicious_places(result)])


def _write_objects(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    write_object_map(path, _objects(path, result))


def _write_object_table(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    _objects(path, result)
    write_object_table(path, result.object_rows)


def _objects(path: Path, result: SegmentationResult) -> Volume:
    if result.objects is None:
        raise OutputError(f"{path} was asked for, but the model does not separate objects.")
    return result.objects


def _write_preview(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    if len(result.labelmap.voxels) == 1:
        channels = (scan,) if isinstance(scan, Volume) else read_channels(scan)
        picture = render_picture(channels, result.labelmap, result.labels)
    else:
        image = scan if isinstance(scan, Volume) else read_volume(scan)
        picture = render_preview(image, result.labelmap, result.labels, result.entropy)
    picture.save(path, format="PNG")


def _write_report(
    path: Path,
    result: SegmentationResult,
    scan: Path | Volume,
    paths: dict[str, Path],
    hashes: dict[str, str],
) -> None:
    outputs = {
        name: {"path": str(paths[name]), "sha256": digest} for name, digest in hashes.items()
    }
    report = {"outputs": outputs, **result.report()}
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


# The report is not among them, because it needs the hashes of the others.
WRITERS: dict[str, Callable[[Path, SegmentationResult, Path | Volume], None]] = {
    "segmentation": _write_segmentation,
    "uncertainty": _write_uncertainty,
    "mutual_information": _write_information,
    "probabilities": _write_probabilities,
    "volumes": _write_volumes,
    "places": _write_places,
    "objects": _write_objects,
    "object_table": _write_object_table,
    "preview": _write_preview,
    "page": case_page.write_page,
    "viewer": case_page.write_viewer_page,
    "label_table": bids_files.write_label_table,
    "sidecar": bids_files.write_sidecar,
    "probabilities_sidecar": bids_files.write_probabilities_sidecar,
    "color_table": freesurfer_files.write_color_table,
    "statistics": freesurfer_files.write_statistics,
}
