"""DICOM: which slices make up a volume (headers by pydicom), and their voxels (decoded by GDCM in ITK).

The slices of a series are ordered by their positions, never by file names or instance numbers. Slices that do not
form one regular grid are refused with the reason, because a gap filled by guessing would move structures. Messages
name series by number, description and the end of their UID; no patient data is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsegai.decoding import PARSER_ERRORS
from medsegai.errors import GeometryError, InputError
from medsegai.io.decoder import itk_voxels
from medsegai.io.dicom_files import DicomFile, Slice, is_dicom, read_file
from medsegai.io.files import check_memory, native, placed, unreadable
from medsegai.io.itk import LPS_TO_RAS
from medsegai.system.outside_text import unicode_text
from medsegai.volume import SHEAR_TOLERANCE, Volume

POSITION_TOLERANCE = 0.1
"""The largest distance of a slice from the regular grid, as a fraction of the slice distance."""


@dataclass(frozen=True)
class _Series:
    uid: str
    number: str
    description: str
    modality: str
    frame_of_reference: str
    slices: tuple[Slice, ...]

    def describe(self) -> str:
        rows, columns = self.slices[0].size
        count = f"{len(self.slices)} slices" if len(self.slices) > 1 else "1 slice"
        return (
            f'series {self.number or "without number"} "{self.description}" ({self.modality}, '
            f"{count} of {columns} x {rows}, {self._short_uid()})"
        )

    def _short_uid(self) -> str:
        return f"UID ...{self.uid[-12:]}" if self.uid else "no UID"


def read_dicom(path: Path, wanted: str | None = None) -> Volume:
    """Read one series from a folder (not from its subfolders), or one multi-frame file.

    Args:
        path: the folder or file.
        wanted: the number of the series, or the end of its SeriesInstanceUID; needed if a folder holds several
            series of more than one slice.

    Raises:
        InputError: there is not exactly one series, or slices are damaged or in colour.
        GeometryError: slices are missing, repeated, unevenly spaced, tilted (gantry tilt), or have several
            orientations.
    """
    where, slices, matrix, (series, notes) = _regular(path, wanted)
    voxels = native(_voxels(slices))
    grid = placed(where, voxels.shape, LPS_TO_RAS @ matrix)
    return Volume(voxels, grid, str(path), notes, series.modality, series.frame_of_reference)


def series_frames(path: Path, wanted: str | None = None) -> tuple[tuple[Path, int], ...]:
    """Return the file of each slice that `read_dicom` reads, and its frame in that file, in the order of k.

    Raises:
        InputError, GeometryError: see `read_dicom`.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the name.")
    return tuple((item.path, item.frame) for item in _regular(path, wanted)[1])


def _regular(
    path: Path, wanted: str | None
) -> tuple[Path, list[Slice], NDArray[np.float64], tuple[_Series, tuple[str, ...]]]:
    """Return the name of the chosen series, its slices in order of k, the matrix to LPS, the series and notes."""
    files = sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else [path]
    known = {item: is_dicom(item) for item in files}
    found = [read_file(item) for item in files if known[item]]
    every = _series(found)
    series = _choose(path, found, every, wanted)
    where = path if path.is_file() else Path(f"{path} ({series.describe()})")
    slices, notes = _without_copies(where, series)
    notes += _left_out(where, series, found, [item for item in files if not known[item]])
    _check_space(where, series, found)
    check_memory(where, sum(item.size[0] * item.size[1] * item.voxel_bytes for item in slices))
    slices, matrix = _arranged(where, slices)
    others = [item for item in every if item.uid not in ("", series.uid)]
    notes += _next_to_it(where, slices, matrix[:3, 2], others)
    return where, slices, matrix, (series, tuple(notes))


def _without_copies(where: Path, series: _Series) -> tuple[list[Slice], list[str]]:
    """Return each slice of a series once, and a note about copies."""
    slices = list({item.identity: item for item in series.slices}.values())
    copies = len(series.slices) - len(slices)
    which = f"{copies} copies of slices were" if copies > 1 else "1 copy of a slice was"
    return slices, [f"{where}: {which} left out."] if copies else []


def _check_space(where: Path, series: _Series, files: Sequence[DicomFile]) -> None:
    """Refuse slices of several frames of reference: their positions cannot be compared.

    Raises:
        GeometryError: the files of the series name more than one.
    """
    named = [
        (file.frame_of_reference, file.path.name)
        for file in files
        if file.uid == series.uid and file.slices and file.frame_of_reference
    ]
    frames = Counter(frame for frame, _ in named)
    if len(frames) > 1:
        few = min(frames, key=lambda frame: frames[frame])
        name = next(name for frame, name in named if frame == few)
        raise GeometryError(
            f"{where}: its slices name {len(frames)} frames of reference, and "
            f"{unicode_text(name)} names another one than most slices, so their positions "
            "cannot be compared. Separate them, or export the whole series again."
        )


def _is_alike(one: Slice, other: Slice) -> bool:
    """Whether two slices have the same size, orientation and pixel size."""
    same = one.size == other.size and np.allclose(one.axes, other.axes, atol=1e-3)
    return bool(same and np.allclose(one.spacing, other.spacing, rtol=1e-3))


def _next_to_it(
    where: Path, slices: Sequence[Slice], step: NDArray[np.float64], others: Sequence[_Series]
) -> list[str]:
    """Return a note about single slices of other series at the position of the next slice of this series.

    `step` is the vector from each slice to the next, in LPS mm.

    Programs that replace identifiers may put one slice into another series. A slice without an identifier of its
    series is damaged, and `_left_out` reports it.
    """
    first, last = slices[0], slices[-1]
    tolerance = POSITION_TOLERANCE * float(np.linalg.norm(step))
    places = (first.position - step, last.position + step)
    single = [other.slices[0] for other in others if len(other.slices) == 1]
    found = [
        item.path.name
        for item in single
        if _is_alike(item, first)
        and any(np.linalg.norm(item.position - place) < tolerance for place in places)
    ]
    if not found:
        return []
    return [
        f"{where}: {unicode_text(found[0])} is at the position of its next slice, but belongs "
        "to another series, so it was left out. Check that the series is complete."
    ]


def _left_out(
    where: Path, series: _Series, files: Sequence[DicomFile], others: Sequence[Path]
) -> list[str]:
    """Return notes about files that may belong to the series and cannot be read.

    Raises:
        InputError: a file that cannot be used belongs to the series.
    """
    problems = [file for file in files if file.problem is not None]
    for file in problems:
        if file.uid == series.uid and file.problem is not None:
            raise file.problem
    # a truncated header may hold the beginning of the UID
    unknown = [file.path for file in problems if series.uid.startswith(file.uid)]
    unknown += [file.path for file in files if file.slices and not file.uid and series.uid]
    unknown += _named_alike(series, others)
    return [_damaged(where, unknown)] if unknown else []


def _damaged(where: Path, files: Sequence[Path]) -> str:
    which = f"{len(files)} files were" if len(files) > 1 else "1 file was"
    which += f" left out because of damage, such as {unicode_text(files[0].name)}"
    return f"{where}: {which}. Check that no slice is missing at the ends."


def _named_alike(series: _Series, others: Sequence[Path]) -> list[Path]:
    """Return files that are named like slices but are not DICOM: a slice truncated in its preamble is zeros."""

    def ending(path: Path) -> str:
        return "" if path.suffix[1:].isdecimal() else path.suffix.lower()

    endings = {ending(item.path) for item in series.slices}
    return [path for path in others if ending(path) in endings and not path.name.startswith(".")]


def _series(files: Iterable[DicomFile]) -> list[_Series]:
    """Return the series that have slices; reports, presentation states and similar objects do not."""
    found: dict[str, _Series] = {}
    for file in files:
        if file.slices:
            one = _Series(
                *(file.uid, file.number, file.description, file.modality),
                file.frame_of_reference,
                (),
            )
            known = found.setdefault(file.uid, one)
            found[file.uid] = replace(known, slices=(*known.slices, *file.slices))
    return sorted(found.values(), key=lambda item: (item.number.zfill(12), item.uid))


def _choose(
    path: Path, files: Sequence[DicomFile], found: Sequence[_Series], wanted: str | None
) -> _Series:
    if wanted is not None:
        matches = [item for item in found if wanted == item.number or item.uid.endswith(wanted)]
        if len(matches) == 1:
            return matches[0]
        problem = "several series are" if matches else "no series is"
        raise InputError(f"{path}: {problem} named {wanted!r}. The folder holds: {_listed(found)}.")
    volumes = [item for item in found if len(item.slices) > 1]
    if len(volumes) == 1:
        return volumes[0]
    if not volumes:
        raise _nothing_found(path, files, found)
    raise InputError(
        f"{path} holds {len(volumes)} series: {_listed(volumes)}. Move the wanted one to a separate "
        "folder, or give its number or the end of its UID: to read_volume(folder, series=...) in Python, or in "
        "the column series of a table for medsegai batch."
    )


def _nothing_found(path: Path, files: Sequence[DicomFile], single: Sequence[_Series]) -> InputError:
    """Return why there is no series of several slices; problems with the files come first."""
    problems = [file.problem for file in files if file.problem is not None]
    if problems and path.is_file():
        return problems[0]
    if problems:
        others = f" {len(problems) - 1} more files cannot be used." if len(problems) > 1 else ""
        return InputError(f"{path} does not hold a series that can be read. {problems[0]}{others}")
    if single:
        return InputError(
            f"{path} only holds single slices: {_listed(single)}. Name the folder that has "
            "all slices of one series."
        )
    if any(file.is_segmentation for file in files):
        return InputError(
            f"{path} is a DICOM segmentation (SEG), not a scan. Where a scan is wanted, name the series that was "
            "segmented; where labels are wanted, name the file itself."
        )
    return _without_images(path)


def _without_images(path: Path) -> InputError:
    """Return what to do about a file without slices, or a folder without files of them."""
    if path.is_file():
        return InputError(
            f"{path} is a DICOM file without slices that have a position in the patient (such "
            "as a report or a presentation state). Name a folder with a CT or MR series."
        )
    folders = sorted(item.name for item in path.iterdir() if item.is_dir())
    hint = f" Its subfolders are not searched: {', '.join(folders[:10])}." if folders else ""
    return InputError(
        f"{path} does not hold DICOM images. Name the folder that holds the slices.{hint}"
    )


def _listed(series: Iterable[_Series]) -> str:
    return "; ".join(item.describe() for item in series)


def _arranged(where: Path, slices: list[Slice]) -> tuple[list[Slice], NDArray[np.float64]]:
    """Return slices in the order of their positions, and the matrix from (i, j, k) to LPS.

    k grows along the cross product of i and j, as in ITK and Slicer.

    Raises:
        GeometryError, InputError: the slices do not form a regular grid.
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


def _check_alike(where: Path, slices: Sequence[Slice]) -> None:
    first = slices[0]
    if len(slices) < 2:
        raise InputError(
            f"{where} is a single slice. Name the folder that has all slices of the series."
        )
    _check_scales(where, slices)
    if any(item.size != first.size for item in slices):
        raise InputError(f"{where}: slices of different sizes. Separate them into series.")
    if any(not np.allclose(item.axes, first.axes, atol=1e-3) for item in slices):
        raise GeometryError(
            f"{where}: its slices have different orientations (a localizer?). Choose a series "
            "whose slices are parallel."
        )
    if any(not np.allclose(item.spacing, first.spacing, rtol=1e-3) for item in slices):
        raise GeometryError(f"{where}: slices of different pixel sizes. Separate them into series.")


def _check_scales(where: Path, slices: Sequence[Slice]) -> None:
    """Refuse a series in which only some slices say how their grey values are scaled."""
    scaled = sum(item.is_scaled for item in slices)
    if 0 < scaled < len(slices):
        odd = scaled <= len(slices) / 2
        name = next(item.path.name for item in slices if item.is_scaled == odd)
        raise InputError(
            f"{where}: {unicode_text(name)} {'has' if odd else 'lacks'} RescaleSlope, unlike "
            "other slices, so grey values do not have the same scale. Export the whole "
            "series again."
        )


def _slice_step(
    where: Path, slices: Sequence[Slice], normal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the vector from each slice to the next, in LPS mm."""
    positions = np.asarray([item.position for item in slices])
    distances = np.diff(positions @ normal)
    _check_separate(where, distances)
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    step = _straightened(where, slices, step, normal)
    distance = float(step @ normal)
    expected = positions[0] + np.outer(np.arange(len(slices)), step)
    if np.linalg.norm(positions - expected, axis=1).max() > POSITION_TOLERANCE * distance:
        raise _irregular(where, distances)
    return np.asarray(step)


def _check_separate(where: Path, distances: NDArray[np.float64]) -> None:
    """Refuse slices at one position; `distances` lead from each to the next."""
    same = int(np.count_nonzero(distances < 1e-3))
    if same:
        raise GeometryError(
            f"{where}: {same} of {len(distances) + 1} slices have the same position as another one (several time "
            "points, echoes or reconstructions in one series). Separate them, for example with dcm2niix."
        )


def _straightened(
    where: Path,
    slices: Sequence[Slice],
    step: NDArray[np.float64],
    normal: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the step along the normal, from one that deviates by rounding; a larger deviation is refused."""
    distance = float(step @ normal)
    aside = float(np.linalg.norm(step - distance * normal))
    if aside <= SHEAR_TOLERANCE * distance:
        return step
    if aside * (len(slices) - 1) > POSITION_TOLERANCE * min(slices[0].spacing):
        raise GeometryError(
            f"{where}: the slices are stacked at an angle of {np.degrees(np.arctan2(aside, distance)):.1f} "
            "degrees to their normal (gantry tilt). Resample it to a straight grid first, for example "
            "with dcm2niix, or with Slicer's Acquisition Geometry Regularization."
        )
    return distance * normal


def _irregular(where: Path, distances: NDArray[np.float64]) -> GeometryError:
    """Return the error for uneven distances: if they are whole multiples of the smallest, slices are missing."""
    usual = float(distances.min())
    multiples = distances / usual
    if np.abs(multiples - np.rint(multiples)).max() <= 2 * POSITION_TOLERANCE:
        missing = int(np.rint(multiples).sum()) - len(distances)
        which = (
            f"about {missing} slices are missing, such as" if missing > 1 else "a slice is missing"
        )
        gap = int(np.argmax(multiples))
        return GeometryError(
            f"{where}: {which} between slices {gap + 1} and {gap + 2}, which are {distances[gap]:.4g} mm apart "
            f"instead of {usual:.4g} mm. Export the whole series again."
        )
    return GeometryError(
        f"{where}: the slices are unevenly spaced, {usual:.4g} to {distances.max():.4g} mm apart. "
        "Resample it to a regular grid first, for example with Slicer's Acquisition Geometry "
        "Regularization."
    )


def _voxels(slices: Sequence[Slice]) -> NDArray[np.number]:
    """Return grey values (k, j, i), rescaled or looked up; float32 if slope or intercept are fractions."""
    images: list[NDArray[np.number]] = []
    path = Path()
    frames: NDArray[np.number] = np.empty(0)
    in_file = Counter(item.path for item in slices)
    for item in slices:
        if item.path != path:
            path = item.path
            size = item.size[0] * item.size[1] * item.voxel_bytes * in_file[path]
            frames = _frames(item, size)
        if item.frame >= len(frames) or frames[item.frame].shape != item.size:
            raise InputError(
                f"{item.path}: its pixels do not fit its header. Copy or export it again."
            )
        images.append(frames[item.frame])
    kind = np.result_type(*images)
    return np.stack(images).astype(np.float32 if kind.kind == "f" else kind, copy=False)


def _frames(item: Slice, size: int) -> NDArray[np.number]:
    """Return all frames of a file, (frame, j, i)."""
    try:
        voxels = itk_voxels(item.path, "GDCMImageIO", size)
        if item.lut is not None:
            voxels = item.lut(voxels)
    except PARSER_ERRORS as error:
        raise unreadable(item.path, error, "a DICOM image") from error
    return voxels.reshape(-1, *voxels.shape[-2:])
