"""All exported files of one case, which are checked before the work and written together or not at all."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medsegai.boxes import label_boxes
from medsegai.errors import MedSegAIError, ModelError, OutputError, OutputExistsError, RequestError
from medsegai.export import dicom_seg
from medsegai.export.case import Case, load_case
from medsegai.export.dicom_sr import measurement_report
from medsegai.export.provenance import Provenance, provenance
from medsegai.export.report import Content, write_report
from medsegai.export.rtstruct import structure_set
from medsegai.export.surfaces import FORMATS, SPACES, file_name, surface_of, write_surface
from medsegai.export.viewer import check_viewer
from medsegai.io import FilesTogether, check_output, files_together, on_grid, read_entropy
from medsegai.labels import Label
from medsegai.measurements import structures
from medsegai.models.catalogue import find_card
from medsegai.progress import Check, Progress, unstoppable
from medsegai.volume import Volume

ENDINGS = {
    "seg": (".dcm",),
    "sr": (".dcm",),
    "rtstruct": (".dcm",),
    "report": (".html",),
    "csv": (".csv",),
    "json": (".json",),
}
"""The file types of the outputs that are one file."""

STAGES = {"read": 1.0, "write": 9.0}
"""The stages of an export, with their approximate relative times."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of an export.

    Attributes:
        segmentation: the path of a .seg.nrrd file or labelmap.
        dicom: the folder or file of the DICOM series that was segmented.
        image: the scan as another file; pictures and grey values need either this or `dicom`.
        run: the report of the run that made the segmentation (`medsegai segment --report`).
        model: the model whose card names the values of a labelmap.
        corrected: whether a person changed the segmentation.
        uncertainty: the entropy map of the run, for the viewer.
    """

    segmentation: Path
    dicom: Path | None = None
    image: Path | None = None
    run: Path | None = None
    model: str | None = None
    corrected: bool = False
    uncertainty: Path | None = None

    def paths(self) -> tuple[Path, ...]:
        """Return the files that are read."""
        named = (self.segmentation, self.dicom, self.image, self.run, self.uncertainty)
        return tuple(path for path in named if path is not None)

    def check(self) -> None:
        """Check the inputs. Raises RequestError: the scan is named twice."""
        if self.dicom is not None and self.image is not None:
            raise RequestError(
                "The scan is named twice. Name it once, with --dicom or with --image."
            )


@dataclass(frozen=True)
class Exports:
    """The paths of the outputs; None for those that are not wanted.

    Attributes:
        seg, sr: DICOM segmentation, and the report of its measurements; .dcm.
        rtstruct: contours for radiotherapy; .dcm.
        report: .html.
        csv, json: tables of measurements.
        surfaces: folder for a file per structure; made if missing.
        encoding: the encoding of `seg`, one of `dicom_seg.ENCODINGS`.
        formats: the formats of `surfaces`, from `surfaces.FORMATS`.
        tolerance_mm: the tolerance of `surfaces` in mm.
        space: the coordinate system of `surfaces`, LPS or RAS.
        viewer: whether `report` contains the scan and an interactive viewer.
    """

    seg: Path | None = None
    sr: Path | None = None
    report: Path | None = None
    csv: Path | None = None
    json: Path | None = None
    surfaces: Path | None = None
    encoding: str = dicom_seg.ENCODINGS[0]
    formats: tuple[str, ...] = FORMATS[:1]
    tolerance_mm: float = 0.1
    space: str = "LPS"
    viewer: bool = False
    rtstruct: Path | None = None

    def files(self) -> dict[str, Path]:
        """Return the wanted outputs that are one file."""
        named = {name: getattr(self, name) for name in ENDINGS}
        return {name: path for name, path in named.items() if path is not None}

    def check(
        self, dicom: Path | None, taken: Sequence[Path] = (), overwrite: bool = False
    ) -> None:
        """Find mistakes before any file is read.

        Args:
            dicom: the series that was segmented, if there is one.
            taken: the files that are read, and therefore cannot be written.
            overwrite: whether existing files are replaced.

        Raises:
            RequestError: no output is wanted, an output lacks its inputs, an option is out of range, or a file is
                named twice.
            OutputError: a folder is missing, or a file type is unknown.
            OutputExistsError: a file exists already.
            MedSegAIError: a library is not installed.
        """
        self._check_options(dicom)
        seen = {path.resolve() for path in taken}
        for name, path in self.files().items():
            check_output(path, ENDINGS[name])
            if path.resolve() in seen:
                raise RequestError(f"{path} is named twice. Name another file to write.")
            seen.add(path.resolve())
            _check_free(path, overwrite)
        if self.surfaces is not None and not self.surfaces.is_dir():
            if self.surfaces.exists():
                raise OutputError(
                    f"{self.surfaces} is not a folder. Name a folder for the surfaces."
                )
            check_output(self.surfaces)

    def _check_options(self, dicom: Path | None) -> None:
        if not self.files() and self.surfaces is None:
            raise RequestError("Name at least one output, such as --report OUT.html.")
        if dicom is None and (self.seg is not None or self.rtstruct is not None):
            raise RequestError(
                "A DICOM SEG or RTSTRUCT needs the patient, study and frame of reference of "
                "the DICOM series that was segmented. Name the series with --dicom FOLDER."
            )
        if self.sr is not None and self.seg is None:
            raise RequestError("The DICOM SR refers to a DICOM SEG. Name it with --seg.")
        if self.viewer and self.report is None:
            raise RequestError("The viewer is a part of the report. Name it with --report.")
        if self.encoding not in dicom_seg.ENCODINGS:
            raise RequestError(f"encoding must be one of {', '.join(dicom_seg.ENCODINGS)}.")
        self._check_surfaces()
        for wanted, module in ((self.seg, "highdicom"), (self.surfaces, "manifold3d")):
            if wanted is not None and importlib.util.find_spec(module) is None:
                raise MedSegAIError(
                    f"The export needs {module}, which is not installed. Run pip install 'medsegai[export]'."
                )

    def _check_surfaces(self) -> None:
        if self.space not in SPACES or not self.formats or not set(self.formats) <= set(FORMATS):
            raise RequestError(
                f"Surfaces must be {', '.join(FORMATS)} in {' or '.join(SPACES)}, not "
                f"{', '.join(self.formats)} in {self.space}."
            )
        if not 0 <= self.tolerance_mm < math.inf:
            raise RequestError(f"The tolerance must be at least 0 mm, not {self.tolerance_mm:g}.")


@dataclass(frozen=True)
class Work:
    """The data from which the outputs are made.

    Attributes:
        case: the labels and the scan.
        rows: its measurements.
        made: who made the segmentation and how.
        warnings: the warnings of all three, in words.
        source: the DICOM series, for DICOM SEG and SR.
        entropy: the uncertainty, for the viewer.
    """

    case: Case
    rows: Sequence[structures.Measurement]
    made: Provenance
    warnings: tuple[str, ...]
    source: dicom_seg.Source | None = None
    entropy: Volume | None = None

    @classmethod
    def of(
        cls,
        case: Case,
        made: Provenance,
        source: dicom_seg.Source | None = None,
        check: Check = unstoppable,
    ) -> Work:
        """Measure a case. `check` is called before each structure."""
        rows = structures.measure(case.labelmap, case.labels, case.image, case.reference, check)
        said = (*made.warnings, *case.notes, *structures.warnings_of(rows, case.reference))
        return cls(case, rows, made, tuple(dict.fromkeys(said)), source)

    def content(self, viewer: bool = False) -> Content:
        """Return the content of the report."""
        qualities = tuple(self.made.quality(row.label, bool(row.remarks)) for row in self.rows)
        return Content(
            self.case,
            self.rows,
            self.warnings,
            self.made.lines,
            qualities=qualities,
            viewer=viewer,
            entropy=self.entropy,
        )


def export(
    inputs: Inputs, exports: Exports, progress: Progress, overwrite: bool = False
) -> tuple[str, ...]:
    """Make every output and, when all are complete, move them to their paths.

    Returns:
        The warnings, in words.

    Raises:
        MedSegAIError: an output cannot be made; nothing was written.
        Cancelled: the user stopped the export; nothing was written.
    """
    inputs.check()
    exports.check(inputs.dicom, inputs.paths(), overwrite)
    if exports.viewer:
        check_viewer(inputs.dicom is not None or inputs.image is not None)
    progress.plan(STAGES)
    progress.step("read", 0, 1)
    source = None
    if inputs.dicom is not None and (exports.seg is not None or exports.rtstruct is not None):
        source = dicom_seg.read_source(inputs.dicom)
    case = load_case(inputs.segmentation, inputs.dicom or inputs.image, inputs.model)
    made = provenance(inputs.segmentation, inputs.run, inputs.model, inputs.corrected)
    work = Work.of(_as_in_the_card(case, made), made, source, progress.check)
    if inputs.uncertainty is not None:
        entropy = read_entropy(inputs.uncertainty)
        work = replace(
            work, entropy=on_grid(entropy, case.labelmap.geometry, str(inputs.segmentation))
        )
    write(work, exports, progress, overwrite)
    return work.warnings


def _as_in_the_card(case: Case, made: Provenance) -> Case:
    """Return the case with the opacity of structures in 3D, which only the card of its model has.

    A file of segments does not have it. It is unknown if the model is not installed, or if there are several.
    """
    try:
        known = {(it.value, it.name): it for it in find_card(made.maker.name).labels}
    except ModelError:
        return case
    labels = tuple(
        replace(label, opacity_3d=known.get((label.value, label.name), label).opacity_3d)
        for label in case.labels
    )
    return replace(case, labels=labels)


def write(
    work: Work, exports: Exports, progress: Progress, overwrite: bool = False
) -> tuple[Path, ...]:
    """Do the second half of `export`: write all outputs of a case, or none.

    Returns:
        The paths that were written.

    Raises:
        MedSegAIError, Cancelled: see `export`.
    """
    if exports.seg or exports.rtstruct or exports.surfaces:
        dicom_seg.present(work.case)
    planned = _planned_surfaces(exports, work.case)
    for _, path in planned:
        _check_free(path, overwrite)
    total = len(exports.files()) + len(planned)
    folder = nullcontext() if exports.surfaces is None else _Folder(exports.surfaces)
    with folder, files_together() as files:
        for done, _ in enumerate(_written(exports, work, planned, files, progress.check)):
            progress.step("write", done, total)
        progress.step("write", total, total)
    return (*exports.files().values(), *(path for _, path in planned))


def _written(
    exports: Exports,
    work: Work,
    planned: Sequence[tuple[Label, Path]],
    files: FilesTogether,
    check: Check,
) -> Iterator[str]:
    """Write the outputs one after another beside their paths; yield the name of each before it is made."""
    segmentation: Any = None
    for name, path in exports.files().items():
        yield name
        with files.path(path) as partial:
            if name == "seg" and work.source is not None:
                segmentation = dicom_seg.segmentation(
                    work.case, work.source, work.made.maker, exports.encoding
                )
                dicom_seg.stored(segmentation, partial)
            elif name == "sr" and work.source is not None:
                maker = work.made.maker
                document = measurement_report(segmentation, work.source, work.rows, maker)
                dicom_seg.stored(document, partial)
            elif name == "rtstruct" and work.source is not None:
                contours = structure_set(work.case, work.source, work.made.maker, check)
                dicom_seg.stored(contours, partial)
            elif name == "report":
                write_report(partial, work.content(exports.viewer))
            else:
                structures.WRITERS[path.suffix.lower()](partial, work.rows)
    yield from _written_surfaces(exports, work.case, planned, files)


def _planned_surfaces(exports: Exports, case: Case) -> list[tuple[Label, Path]]:
    if exports.surfaces is None:
        return []
    endings = tuple(dict.fromkeys(exports.formats))
    return [
        (label, exports.surfaces / file_name(label, ending))
        for label in dicom_seg.present(case)
        for ending in endings
    ]


def _written_surfaces(
    exports: Exports, case: Case, planned: Sequence[tuple[Label, Path]], files: FilesTogether
) -> Iterator[str]:
    voxels = case.labelmap.voxels
    boxes = label_boxes(voxels, [label.value for label, _ in planned])
    made: tuple[int, Any] = (0, None)
    for label, path in planned:
        yield path.name
        if made[0] != label.value:
            box = boxes[label.value]
            mask = voxels[box] == label.value
            part = case.labelmap.geometry.cropped([side.start for side in box], mask.shape)
            made = label.value, surface_of(mask, part, exports.tolerance_mm)
        with files.path(path) as partial:
            write_surface(partial, made[1], label, exports.space)


class _Folder:
    """A folder that is made if it is missing, and removed again if the block fails."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made = False

    def __enter__(self) -> None:
        if not self._path.is_dir():
            try:
                self._path.mkdir()
            except OSError as error:
                raise OutputError(f"{self._path} cannot be made: {error.strerror}.") from error
            self._made = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._made:
            with suppress(OSError):
                self._path.rmdir()


def _check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists already. Name another file, or add --overwrite.")
