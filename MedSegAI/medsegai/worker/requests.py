"""The requests to the worker besides segmentation, and their results.

Like those of `request`, they are plain values: the panel makes and reads them, and the worker does the jobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medsegai.labels import Label
from medsegai.models.refinement import Refinement
from medsegai.request import Candidates
from medsegai.volume import Volume


@dataclass(frozen=True, eq=False)
class RefinementRequest:
    """An existing segmentation, whoever made it, to be cleaned and sharpened.

    Attributes:
        labelmap: label values from 0, (k, j, i), an unsigned integer type.
        labels: the meaning of the values.
        refinements: the refinements, in this order.
        fixed: the values of labels that must neither lose nor gain a voxel.
        image: the scan, for refinements that use it; on any grid.
        candidates: the two most probable structures of each voxel, if they are known, on the grid of the label
            map.
    """

    labelmap: Volume
    labels: tuple[Label, ...]
    refinements: tuple[Refinement, ...]
    fixed: tuple[int, ...] = ()
    image: Volume | None = None
    candidates: Candidates | None = None


@dataclass(frozen=True, eq=False)
class RefinementResult:
    """The result of a refinement.

    Attributes:
        labelmap: label values, (k, j, i), on the grid and in the type of the request.
        words: the changes as sentences; empty if there were none.
        report: the changes of each refinement as JSON values, structure by structure.
        seconds: the time of each stage in seconds.
    """

    labelmap: Volume
    words: tuple[str, ...] = ()
    report: tuple[Mapping[str, Any], ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Part:
    """Segments that do not overlap and are measured together.

    Attributes:
        labelmap: label values, (k, j, i), on the whole field of view.
        labels: the meaning of the values; the same value in two parts stands for two structures.
        seen: the same label map on the voxels of the scan, if these differ.
    """

    labelmap: Volume
    labels: tuple[Label, ...]
    seen: Volume | None = None


@dataclass(frozen=True, eq=False)
class MeasurementRequest:
    """Segments to be measured as by `medsegai measure`.

    Attributes:
        parts: all segments, in parts without overlap.
        image: the scan, for mean and SD of its grey values.
        models: the ids of the models that made the segments, whose cards have the plausible ranges.
        drawn: the values of labels that were not made by a model.
    """

    parts: tuple[Part, ...]
    image: Volume | None = None
    models: tuple[str, ...] = ()
    drawn: tuple[int, ...] = ()


@dataclass(frozen=True)
class MeasurementResult:
    """The numbers of each segment.

    Attributes:
        rows: columns and values of the table of `medsegai measure`, None for missing values; in the order of the
            parts and their labels.
    """

    rows: tuple[Mapping[str, Any], ...]


EXPORT_PATHS = ("seg", "sr", "rtstruct", "report", "csv", "json", "surfaces")
"""The outputs of an ExportRequest that are paths."""


@dataclass(frozen=True, eq=False)
class ExportRequest:
    """A segmentation to be exported as by `medsegai export`.

    Attributes:
        labelmap: label values, (k, j, i).
        labels: the meaning of the values.
        outputs: the outputs to write, as fields of `medsegai.export.files.Exports`; paths are text.
        image: the scan on the same voxels; unnecessary with `dicom`.
        dicom: the folder of the DICOM series that was segmented.
        series: the SeriesInstanceUID, if the folder has several series.
        run: the report of the run that made the segmentation, if there is one.
        touched: the values of labels that a person changed or reviewed.
        drawn: the values of labels that were not made by a model.
        warnings: further remarks on the case, in words.
        overwrite: whether existing files are replaced.
    """

    labelmap: Volume
    labels: tuple[Label, ...]
    outputs: Mapping[str, Any]
    image: Volume | None = None
    dicom: str = ""
    series: str = ""
    run: Mapping[str, Any] = field(default_factory=dict)
    touched: tuple[int, ...] = ()
    drawn: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    overwrite: bool = False


@dataclass(frozen=True)
class ExportResult:
    """The result of an export.

    Attributes:
        files: the paths of all files.
        warnings: the warnings, in words.
    """

    files: tuple[str, ...]
    warnings: tuple[str, ...] = ()
