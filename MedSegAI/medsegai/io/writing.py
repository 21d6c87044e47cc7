"""Writing of labelmaps, maps and probabilities to files, on their own grid, voxel for voxel."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel
import numpy as np
import SimpleITK as sitk
import slicerio
from numpy.typing import NDArray
from PIL import Image

from medsegai.errors import OutputError, counted
from medsegai.io.atomic import atomic_path, check_output
from medsegai.io.itk import LPS_TO_RAS, to_sitk
from medsegai.io.labelmaps import unique_values
from medsegai.labels import Label
from medsegai.volume import Geometry, Volume

SEGMENTATION_ENDING = ".seg.nrrd"
NIFTI_ENDINGS = (".nii.gz", ".nii")

COLOUR_ENDINGS = (".nrrd", ".mha")
"""The file endings of colour volumes."""
MGZ_ENDING = ".mgz"
WRITABLE = (SEGMENTATION_ENDING, *NIFTI_ENDINGS, ".nrrd", ".mha", MGZ_ENDING)
"""Endings of images that can be written, lower case. Each is one file, so that it can be atomic."""

SEGMENTATION_ENDINGS = (*WRITABLE, ".png")
"""The file endings of label maps; those of a single slice may be pictures."""

COMPRESSION = 6
"""Deflate level: a brain label map is 8 % larger than at level 9, and written five times as fast."""

MGZ_TYPES = tuple(np.dtype(kind) for kind in (np.uint8, np.int16, np.int32))
"""Besides float32."""

PROBABILITY_STEPS = 65535
"""Probabilities are stored as 16-bit fractions of one."""


def write_segmentation(
    path: Path | str,
    labelmap: Volume,
    labels: Sequence[Label],
    regions: NDArray[np.bool_] | None = None,
) -> None:
    """Write labels so that 3D Slicer opens named, coloured, coded segments, or as a plain labelmap.

    Args:
        path: .seg.nrrd for segments; .nii.gz, .nii, .nrrd, .mha or .mgz for label values only; .png for those of a
            single slice, without its place.
        labelmap: label values from 0, (k, j, i), integers.
        labels: the meaning of the values. In .seg.nrrd each becomes a segment, in this order, even without voxels,
            because it stands for a structure that was not found.
        regions: the mask of each label, (label, k, j, i), if labels overlap. In .seg.nrrd each segment then has
            its own layer; a labelmap cannot hold them and gets `labelmap`.

    Raises:
        OutputError: unknown ending, a value without a label, several slices in a picture, or the file cannot be
            written.
    """
    path = Path(path)
    check_output(path, SEGMENTATION_ENDINGS)
    compact = labelmap.with_voxels(_label_values(path, labelmap.voxels, labels))
    if path.name.lower().endswith(".png"):
        _write_picture(path, compact)
        return
    if not path.name.lower().endswith(SEGMENTATION_ENDING):
        write_volume(path, compact)
        return
    with atomic_path(path) as partial:
        partial.write_bytes(_seg_nrrd(compact, labels, regions))


def _write_picture(path: Path, labelmap: Volume) -> None:
    """Write label values as a grey PNG of 8 or 16 bits."""
    if len(labelmap.voxels) > 1:
        raise OutputError(
            f"{path}: the labels have {len(labelmap.voxels)} slices, but a picture has only "
            "one. Name a .seg.nrrd or .nii.gz file."
        )
    with atomic_path(path) as partial:
        Image.fromarray(labelmap.voxels[0]).save(partial, format="PNG")


def write_volume(path: Path | str, volume: Volume) -> None:
    """Write voxels of any scalar type; float16 is written as float32, bool as uint8.

    Args:
        path: .nii.gz, .nii (sform and qform are both set), .nrrd, .mha or .mgz.

    Raises:
        OutputError: unknown ending, or the file cannot be written.
    """
    path = Path(path)
    check_output(path, WRITABLE)
    with atomic_path(path) as partial:
        if path.name.lower().endswith(NIFTI_ENDINGS):
            _write_nifti(partial, volume)
        elif path.name.lower().endswith(MGZ_ENDING):
            _write_mgz(partial, volume)
        else:
            _write_itk(partial, volume)


def write_colours(path: Path | str, channels: Sequence[Volume]) -> None:
    """Write red, green and blue as one colour volume, which 3D Slicer opens as a vector volume.

    Args:
        path: .nrrd or .mha.
        channels: three volumes on one grid.

    Raises:
        OutputError: another ending, or the file cannot be written.
    """
    path = Path(path)
    check_output(path, COLOUR_ENDINGS)
    with atomic_path(path) as partial:
        sitk.WriteImage(sitk.Compose([to_sitk(channel) for channel in channels]), partial, True)


def write_probabilities(
    path: Path | str,
    probabilities: NDArray[np.floating],
    geometry: Geometry,
    labels: Sequence[Label],
) -> None:
    """Write one 4D NIfTI image, a volume per label in the order of `labels`.

    Values are stored as 16-bit fractions of one that every NIfTI reader scales back (error below
    8e-6), at the size of float16, which NIfTI does not have. The header carries the labels as a
    JSON comment (extension code 6): [{"index": 0, "value": 1, "name": ...}, ...].

    Args:
        path: .nii.gz or .nii.
        probabilities: (label, k, j, i), from 0 to 1.
        geometry: grid of each volume.
        labels: one per volume.

    Raises:
        OutputError: other ending, other shape, or the file cannot be written.
    """
    path = Path(path)
    check_output(path, NIFTI_ENDINGS)
    if probabilities.shape != (len(labels), *geometry.shape):
        raise OutputError(
            f"{path}: probabilities of shape {probabilities.shape} do not fit "
            f"{counted(len(labels), 'label', 'labels')} on a grid of {geometry.shape}."
        )
    header = _nifti_header(geometry, np.dtype("<u2"), len(labels))
    header.set_slope_inter(1.0 / PROBABILITY_STEPS, 0.0)
    named = [{"index": n, "value": item.value, "name": item.name} for n, item in enumerate(labels)]
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", json.dumps(named).encode()))
    chunks = (
        np.rint(np.clip(volume, 0, 1).astype(np.float32) * PROBABILITY_STEPS).astype("<u2")
        for volume in probabilities
    )
    with atomic_path(path) as partial:
        _write_stream(partial, header, chunks)


def _write_nifti(path: Path, volume: Volume) -> None:
    voxels = volume.voxels
    kind = np.dtype({"bool": "u1", "float16": "f4"}.get(voxels.dtype.name, voxels.dtype))
    kind = kind.newbyteorder("<")
    header = _nifti_header(volume.geometry, kind)
    _write_stream(path, header, (plane.astype(kind) for plane in voxels))


def _write_mgz(path: Path, volume: Volume) -> None:
    """Write FreeSurfer's format, which has four voxel types; the smallest that holds all values is used."""
    kind = volume.voxels.dtype
    known = next((it for it in MGZ_TYPES if np.can_cast(kind, it)), np.dtype(np.float32))
    image = nibabel.MGHImage(volume.voxels.T.astype(known), volume.geometry.ijk_to_ras)
    path.write_bytes(gzip.compress(image.to_bytes(), COMPRESSION, mtime=0))


def _nifti_header(geometry: Geometry, kind: np.dtype[Any], volumes: int = 1) -> Any:
    """Return a NIfTI-1 header in mm whose sform and qform both hold the geometry (qform in float32)."""
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_shape((*geometry.shape[::-1], *([volumes] if volumes > 1 else [])))
    header.set_data_dtype(kind)
    header.set_slope_inter(1.0, 0.0)
    header.set_xyzt_units("mm")
    header.set_qform(geometry.ijk_to_ras, code="scanner")
    header.set_sform(geometry.ijk_to_ras, code="scanner")
    return header


def _write_stream(path: Path, header: Any, chunks: Iterable[NDArray[np.generic]]) -> None:
    """Write a header and voxels in chunks, so that probabilities of 100 structures are never copied as a whole.

    nibabel would leave the name of the partial file in the gzip header; here equal voxels give
    equal bytes.
    """
    with path.open("wb") as file, contextlib.ExitStack() as stack:
        stream: BinaryIO = file
        if path.suffix.lower() == ".gz":
            packed = gzip.GzipFile("", "wb", compresslevel=COMPRESSION, fileobj=file, mtime=0)
            stream = cast(BinaryIO, stack.enter_context(packed))
        header.write_to(stream)
        for chunk in chunks:
            stream.write(chunk.tobytes())


def _write_itk(path: Path, volume: Volume) -> None:
    """Write NRRD or MetaImage, and check that it is complete: ITK does not notice a disk that fills up."""
    image = to_sitk(volume)
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise OutputError(_incomplete(path)) from error
    if not np.array_equal(written, sitk.GetArrayViewFromImage(image), equal_nan=True):
        raise OutputError(_incomplete(path))


def _incomplete(path: Path) -> str:
    return (
        f"{path} could not be written completely. The disk may be full: free some space, or write to "
        "another disk."
    )


def _label_values(
    path: Path, voxels: NDArray[np.generic], labels: Sequence[Label]
) -> NDArray[np.unsignedinteger]:
    """Return label values in the smallest unsigned type that holds all labels.

    Raises:
        OutputError: values are not integers, are negative, or do not have a label.
    """
    _check_labels(path, voxels, labels)
    known = np.asarray([0, *(label.value for label in labels)])
    unknown = np.setdiff1d(unique_values(voxels), known)
    if unknown.size:
        shown = ", ".join(str(value) for value in unknown[:10])
        raise OutputError(
            f"{path}: the labelmap has values without a label: {shown}. Add labels for them."
        )
    return voxels.astype(np.min_scalar_type(int(known.max())), copy=False)


def _check_labels(path: Path, voxels: NDArray[np.generic], labels: Sequence[Label]) -> None:
    """Refuse values that cannot be written, and labels that share a value."""
    if voxels.dtype.kind not in "iub":
        raise OutputError(
            f"{path}: a labelmap of type {voxels.dtype} cannot be written. Use integers."
        )
    if len({label.value for label in labels}) != len(labels):
        raise OutputError(f"{path}: two labels have the same value. Give each label its own value.")


def _seg_nrrd(
    labelmap: Volume, labels: Sequence[Label], regions: NDArray[np.bool_] | None
) -> bytes:
    """Return the file that 3D Slicer reads as a segmentation. Its header is UTF-8, as in Slicer's own files."""
    array, layers = labelmap.voxels.T, [0] * len(labels)
    if regions is not None:
        kind, layers = labelmap.voxels.dtype, list(range(len(labels)))
        values = zip(regions, labels, strict=True)
        array = np.stack([region.T * kind.type(label.value) for region, label in values])
    return _nrrd_bytes(
        {
            "voxels": array,
            "ijkToLPS": LPS_TO_RAS @ labelmap.geometry.ijk_to_ras,
            "containedRepresentationNames": ["Binary labelmap"],
            "conversionParameters": [_reference_geometry(labelmap.geometry)],
            "segments": [
                _segment(label, layer) for label, layer in zip(labels, layers, strict=True)
            ],
        }
    )


def _nrrd_bytes(segmentation: dict[str, object]) -> bytes:
    """Return a segmentation as slicerio writes it, with characters instead of their codes.

    The comment with the time is left out, so that equal segmentations are equal files.
    """
    file = io.BytesIO()
    slicerio.write_segmentation(file, segmentation, compression_level=COMPRESSION)
    header, separator, voxels = file.getvalue().partition(b"\n\n")
    header = re.sub(rb"\x01(..)", lambda code: bytes.fromhex(code.group(1).decode()), header)
    header = re.sub(rb"(?m)^# on .*\n", b"", header)
    return header + separator + voxels


def _segment(label: Label, layer: int) -> dict[str, Any]:
    segment: dict[str, Any] = {
        "id": f"Segment_{label.value}",
        "name": _ascii(label.name),
        "nameAutoGenerated": False,
        "color": [part / 255 for part in label.color],
        "colorAutoGenerated": False,
        "labelValue": label.value,
        "layer": layer,
    }
    if label.terminology is not None:
        segment["tags"] = {"TerminologyEntry": _ascii(label.terminology.to_slicer())}
    return segment


def _ascii(text: str) -> str:
    """Escape text for pynrrd, which writes only ASCII; `_seg_nrrd` restores the bytes."""
    codes = ("".join(f"\x01{byte:02x}" for byte in letter.encode()) for letter in text)
    return "".join(
        letter if letter.isascii() else code for letter, code in zip(text, codes, strict=True)
    )


def _reference_geometry(geometry: Geometry) -> dict[str, str]:
    """Return Slicer's conversion parameter that keeps edited segments on the whole grid of the scan."""
    matrix = [f"{number:.17g}" for number in geometry.ijk_to_ras.ravel()]
    extent = [str(bound) for size in geometry.shape[::-1] for bound in (0, size - 1)]
    return {
        "name": "Reference image geometry",
        "value": "".join(f"{part};" for part in (*matrix, *extent)),
        # Slicer ends each parameter with "&", slicerio only joins them with it.
        "description": "Geometry of the labelmaps that are created in course of conversion.&",
    }
