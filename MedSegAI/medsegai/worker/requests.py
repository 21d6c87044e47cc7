"""What the worker can be asked for besides a segmentation, and what it answers.

As with `request`, these are plain values of L0: the panel makes and reads them, the worker does the work.
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
    """A segmentation that is there already, whoever made it, to be cleaned and sharpened.

    Attributes:
        labelmap: label values from 0, (k, j, i), an unsigned integer type.
        labels: what the values mean.
        refinements: what to do, in this order.
        fixed: values of labels that may neither lose nor gain a voxel.
        image: the scan, for refinements that look at it; on any grid.
        candidates: the two most probable structures of each voxel, where they are known, on the grid of the
            label map.
    """

    labelmap: Volume
    labels: tuple[Label, ...]
    refinements: tuple[Refinement, ...]
    fixed: tuple[int, ...] = ()
    image: Volume | None = None
    candidates: Candidates | None = None


@dataclass(frozen=True, eq=False)
class RefinementResult:
    """What became of it.

    Attributes:
        labelmap: label values, (k, j, i), on the grid and in the type of the request.
        words: what was changed, in sentences; none where nothing was.
        report: the same for each refinement as JSON values, structure by structure.
        seconds: what each stage took.
    """

    labelmap: Volume
    words: tuple[str, ...] = ()
    report: tuple[Mapping[str, Any], ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Part:
    """Segments that do not overlap, to be measured.

    Attributes:
        labelmap: label values, (k, j, i), on the whole field of view.
        labels: what the values mean; the same value in two parts stands for two structures.
        seen: the same label map on the voxels of the scan, where those are others.
    """

    labelmap: Volume
    labels: tuple[Label, ...]
    seen: Volume | None = None


@dataclass(frozen=True, eq=False)
class MeasurementRequest:
    """Segments to be measured, as `medsegai measure` does.

    Attributes:
        parts: all of them.
        image: the scan, for mean and SD of its grey values.
        models: ids of the models that made the segments, whose cards say what is plausible.
        drawn: values of labels that no model made.
    """

    parts: tuple[Part, ...]
    image: Volume | None = None
    models: tuple[str, ...] = ()
    drawn: tuple[int, ...] = ()


@dataclass(frozen=True)
class MeasurementResult:
    """The numbers of each segment.

    Attributes:
        rows: columns and values of the table of `medsegai measure`, None for what does not exist; in the order
            of the parts and their labels.
    """

    rows: tuple[Mapping[str, Any], ...]


EXPORT_PATHS = ("seg", "sr", "rtstruct", "report", "csv", "json", "surfaces")
"""What of the outputs of an ExportRequest are paths."""


@dataclass(frozen=True, eq=False)
class ExportRequest:
    """A segmentation to export, as `medsegai export` does.

    Attributes:
        labelmap: label values, (k, j, i).
        labels: what the values mean.
        outputs: what to write, as fields of `medsegai.export.files.Exports`; paths as text.
        image: the scan on the same voxels; not needed with `dicom`.
        dicom: folder of the DICOM series that was segmented.
        series: the SeriesInstanceUID, where the folder has several.
        run: the report of the run that made the segmentation, as far as there is one.
        touched: values of labels that a person changed or reviewed.
        drawn: values of labels that no model made.
        warnings: what else is known of the case, in words.
        overwrite: whether files that are there already are replaced.
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
    """What was written.

    Attributes:
        files: paths of all files.
        warnings: in words.
    """

    files: tuple[str, ...]
    warnings: tuple[str, ...] = ()
