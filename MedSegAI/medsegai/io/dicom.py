"""DICOM: which slices make up a volume (headers by pydicom), and their voxels (decoded by GDCM in ITK).

The slices of a series are laid out by their positions, never by file names or instance numbers. What
is not one regular grid is refused with the reason: a gap filled by guessing would move structures.
Messages name series by number, description and the end of their UID; no patient data is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.errors import BytesLengthException, InvalidDicomError

from medsegai.errors import GeometryError, InputError
from medsegai.io.files import PARSER_ERRORS, check_stored_size, native, placed, unreadable
from medsegai.io.itk import LPS_TO_RAS
from medsegai.io.stored import Stored
from medsegai.volume import SHEAR_TOLERANCE, Volume

POSITION_TOLERANCE = 0.1
"""How far a slice may lie from the regular grid, as a fraction of the slice distance."""

_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_DAMAGE = (*PARSER_ERRORS, InvalidDicomError, BytesLengthException)
"""What pydicom raises on damaged headers, on opening or when a value is first looked at."""

_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
"""Transfer syntaxes in which voxels take as many bytes in the file as in memory."""

_SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")


@dataclass(frozen=True, eq=False)
class _Slice:
    """One frame of one file. World is LPS, as in DICOM."""

    path: Path
    uid: str
    frame: int
    size: tuple[int, int]  # rows, columns
    position: NDArray[np.float64]  # (3,) centre of the first voxel, mm
    axes: NDArray[np.float64]  # (3, 2) unit vectors along i and j
    spacing: tuple[float, float]  # along i and j, mm

    @property
    def identity(self) -> tuple[str, int, tuple[float, ...]]:
        """Equal for copies of one file. Anonymisers may have given one UID to all slices."""
        return self.uid or str(self.path), self.frame, tuple(self.position)


@dataclass(frozen=True)
class _Series:
    uid: str
    number: str
    description: str
    modality: str
    slices: tuple[_Slice, ...]

    def describe(self) -> str:
        rows, columns = self.slices[0].size
        count = f"{len(self.slices)} slices" if len(self.slices) > 1 else "1 slice"
        return (
            f'series {self.number or "without number"} "{self.description}" ({self.modality}, '
            f"{count} of {columns} x {rows}, {self._short_uid()})"
        )

    def _short_uid(self) -> str:
        return f"UID ...{self.uid[-12:]}" if self.uid else "no UID"


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does; old files without preamble are known by their ending."""
    with path.open("rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM" or path.suffix.lower() in (".dcm", ".ima")


def read_dicom(path: Path, wanted: str | None = None) -> Volume:
    """Read one series from a folder (not from its subfolders), or one multi-frame file.

    Args:
        path: folder or file.
        wanted: number of the series, or the end of its SeriesInstanceUID; needed where a folder
            holds several series of more than one slice.

    Raises:
        InputError: no series, several, or slices that are damaged or in colour.
        GeometryError: missing or repeated slices, uneven distances, gantry tilt, several
            orientations.
    """
    where, slices, matrix, notes = _regular(path, wanted)
    voxels = native(_voxels(slices))
    return Volume(voxels, placed(where, voxels.shape, LPS_TO_RAS @ matrix), str(path), notes)


def series_frames(path: Path, wanted: str | None = None) -> tuple[tuple[Path, int], ...]:
    """The file of each slice that `read_dicom` reads, and its frame in that file, in the order of k.

    Raises:
        InputError, GeometryError: as `read_dicom`.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the name.")
    return tuple((item.path, item.frame) for item in _regular(path, wanted)[1])


def _regular(
    path: Path, wanted: str | None
) -> tuple[Path, list[_Slice], NDArray[np.float64], tuple[str, ...]]:
    """Name of the chosen series, its slices in the order of k, the matrix to LPS, and notes."""
    files = sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else [path]
    series = _choose(path, _series([item for item in files if is_dicom(item)]), wanted)
    where = path if path.is_file() else Path(f"{path} ({series.describe()})")
    slices = list({item.identity: item for item in series.slices}.values())
    copies = len(series.slices) - len(slices)
    notes = (f"{where}: {copies} copies of slices were left out.",) if copies else ()
    return where, *_arranged(where, slices), notes


def _series(files: Iterable[Path]) -> list[_Series]:
    """The image series among some DICOM files; reports, presentation states and the like are left out."""
    found: dict[str, _Series] = {}
    for path in files:
        try:
            with pydicom.config.disable_value_validation():  # whose warnings quote the header
                one = _one_file(path)
        except _DAMAGE:  # pydicom's words, which may quote the header, are dropped
            raise unreadable(path, "its header is damaged", "a DICOM file") from None
        if one.slices:
            known = found.setdefault(one.uid, replace(one, slices=()))
            found[one.uid] = replace(known, slices=(*known.slices, *one.slices))
    return sorted(found.values(), key=lambda item: (item.number.zfill(12), item.uid))


def _one_file(path: Path) -> _Series:
    """What one file says of its series, with the slices that it holds."""
    without_preamble = path.suffix.lower() in (".dcm", ".ima")
    with path.open("rb") as file:
        head = pydicom.dcmread(
            file, stop_before_pixels=True, specific_tags=_TAGS, force=without_preamble
        )
        stored = path.stat().st_size - file.tell()
    slices = _slices(path, head, stored)
    names = ("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality")
    uid, number, description, modality = (str(head.get(name) or "") for name in names)
    return _Series(uid, number, description, modality, tuple(slices))


def _slices(path: Path, head: Any, stored: int) -> list[_Slice]:
    """The frames of a file that have a place in the patient; none for reports, screenshots and the like.

    `stored` is the number of bytes that follow the header.

    Raises:
        InputError: colour, truncated, or frames whose grey values have scales of their own.
    """
    if "Rows" not in head or str(head.get("SOPClassUID", "")) in _SEGMENTATION_CLASSES:
        return []
    shared, per_frame = _functional_groups(head)
    if per_frame:
        sources = [_merged(frame, shared) for frame in per_frame]
    elif int(head.get("NumberOfFrames") or 1) == 1:
        sources = [head]
    else:
        sources = []  # multi-frame without a position per frame
    if not all(_has_place(source) for source in sources) or not sources:
        return []
    _check_pixels(path, head, sources, stored)
    uid = str(head.get("SOPInstanceUID", ""))
    size = int(head.Rows), int(head.Columns)
    return [_slice(path, uid, frame, size, source) for frame, source in enumerate(sources)]


def _slice(path: Path, uid: str, frame: int, size: tuple[int, int], source: Any) -> _Slice:
    orientation = np.asarray([float(value) for value in source.ImageOrientationPatient])
    axes = orientation.reshape(2, 3).T
    between_rows, between_columns = (float(value) for value in source.PixelSpacing)
    return _Slice(
        path,
        uid,
        frame,
        size,
        np.asarray([float(value) for value in source.ImagePositionPatient]).reshape(3),
        axes / np.maximum(np.linalg.norm(axes, axis=0), 1e-12),
        (between_columns, between_rows),
    )


def _functional_groups(head: Any) -> tuple[Any, Sequence[Any]]:
    shared = head.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    return shared[0], head.get("PerFrameFunctionalGroupsSequence") or ()


def _merged(frame: Any, shared: Any) -> pydicom.Dataset:
    """The macros of one frame in one flat dataset; what the frame says goes before what is shared."""
    flat = pydicom.Dataset()
    for name in (
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
    ):
        macro = frame.get(name) or shared.get(name)
        if macro:
            flat.update(macro[0])
    return flat


def _has_place(source: Any) -> bool:
    names = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    return all(source.get(name) is not None for name in names)


def _check_pixels(path: Path, head: Any, sources: Sequence[Any], stored: int) -> None:
    if int(head.get("SamplesPerPixel") or 1) != 1:
        raise InputError(f"{path} is a colour image. A grey scan is needed.")
    scales = {
        (str(item.get("RescaleSlope")), str(item.get("RescaleIntercept"))) for item in sources
    }
    if len(scales) > 1:
        raise InputError(
            f"{path}: its frames have grey values of different scales, which is not supported. Convert it "
            "to NIfTI with dcm2niix."
        )
    if str(head.file_meta.get("TransferSyntaxUID", _PLAIN[0])) in _PLAIN:
        voxels = int(head.Rows) * int(head.Columns) * len(sources)
        needed = voxels * int(head.get("BitsAllocated") or 8) // 8
        check_stored_size(path, needed, Stored((path,), before=path.stat().st_size - stored))


def _choose(path: Path, found: list[_Series], wanted: str | None) -> _Series:
    if not found:
        raise _nothing_found(path)
    if wanted is not None:
        matches = [item for item in found if wanted == item.number or item.uid.endswith(wanted)]
        if len(matches) == 1:
            return matches[0]
        problem = "several series are" if matches else "no series is"
        raise InputError(f"{path}: {problem} known as {wanted!r}. There are: {_listed(found)}.")
    volumes = [item for item in found if len(item.slices) > 1]
    if len(volumes) == 1:
        return volumes[0]
    if not volumes:
        raise InputError(
            f"{path} holds single slices only: {_listed(found)}. Name the folder that has all slices of "
            "one series."
        )
    raise InputError(
        f"{path} holds {len(volumes)} series: {_listed(volumes)}. Move the wanted one to a folder of its "
        "own, or give its number or the end of its UID: to read_volume(folder, series=...) in Python, or in "
        "the column series of a table for medsegai batch."
    )


def _nothing_found(path: Path) -> InputError:
    if path.is_file():
        return InputError(
            f"{path} is a DICOM file without slices that have a place in the patient (a segmentation, "
            "report, screenshot or cine loop). Name a folder with a CT or MR series."
        )
    folders = sorted(item.name for item in path.iterdir() if item.is_dir())
    hint = f" Its subfolders are not searched: {', '.join(folders[:10])}." if folders else ""
    return InputError(
        f"{path} holds no DICOM images. Name the folder in which the slices lie.{hint}"
    )


def _listed(series: Iterable[_Series]) -> str:
    return "; ".join(item.describe() for item in series)


def _arranged(where: Path, slices: list[_Slice]) -> tuple[list[_Slice], NDArray[np.float64]]:
    """Slices in the order of their positions, and the matrix from (i, j, k) to LPS.

    k grows along the cross product of i and j, as in ITK and Slicer.

    Raises:
        GeometryError, InputError: the slices are no regular grid.
    """
    first = slices[0]
    _check_alike(where, slices)
    normal = np.cross(first.axes[:, 0], first.axes[:, 1])
    order = np.argsort([item.position @ normal for item in slices], kind="stable")
    slices = [slices[index] for index in order]
    matrix = np.eye(4)
    matrix[:3, 0] = first.axes[:, 0] * first.spacing[0]
    matrix[:3, 1] = first.axes[:, 1] * first.spacing[1]
    matrix[:3, 2] = _slice_step(where, slices, normal)
    matrix[:3, 3] = slices[0].position
    return slices, matrix


def _check_alike(where: Path, slices: Sequence[_Slice]) -> None:
    first = slices[0]
    if len(slices) < 2:
        raise InputError(
            f"{where} is a single slice. Name the folder that has all slices of the series."
        )
    if any(item.size != first.size for item in slices):
        raise InputError(f"{where}: slices of different sizes. Separate them into series.")
    if any(not np.allclose(item.axes, first.axes, atol=1e-3) for item in slices):
        raise GeometryError(
            f"{where}: its slices lie in different orientations (a localizer?). Choose a series whose "
            "slices are parallel."
        )
    if any(not np.allclose(item.spacing, first.spacing, rtol=1e-3) for item in slices):
        raise GeometryError(f"{where}: slices of different pixel sizes. Separate them into series.")


def _slice_step(
    where: Path, slices: Sequence[_Slice], normal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The vector from each slice to the next, LPS mm."""
    positions = np.asarray([item.position for item in slices])
    distances = np.diff(positions @ normal)
    same = int(np.count_nonzero(distances < 1e-3))
    if same:
        raise GeometryError(
            f"{where}: {same} of {len(slices)} slices lie where another one lies (several time points, "
            "echoes or reconstructions in one series). Separate them, for example with dcm2niix."
        )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    distance = float(step @ normal)
    aside = float(np.linalg.norm(step - distance * normal))
    if aside > SHEAR_TOLERANCE * distance:
        if aside * (len(slices) - 1) > POSITION_TOLERANCE * min(slices[0].spacing):
            raise GeometryError(
                f"{where}: the slices are stacked at an angle of {np.degrees(np.arctan2(aside, distance)):.1f} "
                "degrees to their normal (gantry tilt). Resample it to a straight grid first, for example "
                "with dcm2niix, or with Slicer's Acquisition Geometry Regularization."
            )
        step = distance * normal
    expected = positions[0] + np.outer(np.arange(len(slices)), step)
    if np.linalg.norm(positions - expected, axis=1).max() > POSITION_TOLERANCE * distance:
        raise _irregular(where, distances)
    return np.asarray(step)


def _irregular(where: Path, distances: NDArray[np.float64]) -> GeometryError:
    """Whether the distances are whole multiples of the smallest one: then slices are missing."""
    usual = float(distances.min())
    multiples = distances / usual
    if np.abs(multiples - np.rint(multiples)).max() <= 2 * POSITION_TOLERANCE:
        missing = int(np.rint(multiples).sum()) - len(distances)
        gap = int(np.argmax(multiples))
        return GeometryError(
            f"{where}: about {missing} slices are missing, such as between slices {gap + 1} and {gap + 2}, "
            f"which lie {distances[gap]:.4g} mm apart where {usual:.4g} mm are usual. Export the whole "
            "series again."
        )
    return GeometryError(
        f"{where}: the slices are unevenly spaced, {usual:.4g} to {distances.max():.4g} mm apart. "
        "Resample it to a regular grid first, for example with Slicer's Acquisition Geometry "
        "Regularization."
    )


def _voxels(slices: Sequence[_Slice]) -> NDArray[Any]:
    """Grey values (k, j, i), rescaled by slope and intercept; float32 where these are fractions."""
    images: list[NDArray[Any]] = []
    path, frames = Path(), np.empty(0)
    for item in slices:
        if item.path != path:
            path, frames = item.path, _frames(item.path)
        if item.frame >= len(frames) or frames[item.frame].shape != item.size:
            raise InputError(
                f"{item.path}: its pixels do not fit its header. Copy or export it again."
            )
        images.append(frames[item.frame])
    kind = np.result_type(*images)
    return np.stack(images).astype(np.float32 if kind.kind == "f" else kind, copy=False)


def _frames(path: Path) -> NDArray[Any]:
    try:
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    except PARSER_ERRORS as error:
        raise unreadable(path, error, "a DICOM image") from error
    voxels = sitk.GetArrayFromImage(image)
    return voxels.reshape(-1, *voxels.shape[-2:])
