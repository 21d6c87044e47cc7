"""What ITK reads, in a process of its own: run as a script by `decoder`, never imported.

ITK and GDCM are written in C++, and some damaged files end the process that reads them. Requests come as lines of
JSON; an answer is a line of JSON, and the bytes of an array where one was asked for.

Run lengths (RLE) in DICOM are unpacked by pydicom: GDCM divides by the number of their segments, also by 0, and
refuses sound images of few voxels.
"""

import json
import os
import sys
import time
import warnings
from typing import Any, BinaryIO

import numpy as np
import SimpleITK as sitk

KINDS = {
    getattr(sitk, f"sitk{form}{name}"): kind
    for form in ("", "Vector")
    for name, kind in {
        **{
            "UInt8": "u1",
            "Int8": "i1",
            "UInt16": "u2",
            "Int16": "i2",
            "UInt32": "u4",
            "Int32": "i4",
        },
        **{"UInt64": "u8", "Int64": "i8", "Float32": "f4", "Float64": "f8"},
    }.items()
}
"""NumPy's names of the types of components; complex numbers have none."""


def header(path: str, reader_name: str) -> dict[str, Any]:
    """What ITK reads from a header: sizes and spacing (i, j, k...), origin and directions (LPS), type."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO(reader_name)
    reader.SetFileName(path)
    reader.ReadImageInformation()
    pixel_id = reader.GetPixelID()
    return {
        "size": reader.GetSize(),
        "spacing": reader.GetSpacing(),
        "origin": reader.GetOrigin(),
        "direction": reader.GetDirection(),
        "components": reader.GetNumberOfComponents(),
        "kind": KINDS.get(pixel_id, ""),
        "type_name": sitk.GetPixelIDValueAsString(pixel_id),
    }


RUN_LENGTHS = b"1.2.840.10008.1.2.5\0"
"""DICOM's UID of the transfer syntax, as it stands near the beginning of a file."""


def image(path: str, reader_name: str) -> tuple[dict[str, Any], memoryview]:
    """The voxels of a file, in C order."""
    if reader_name == "GDCMImageIO" and has_run_lengths(path):
        voxels = unpacked_run_lengths(path)
    else:
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(path, imageIO=reader_name))
    return {"shape": voxels.shape, "kind": voxels.dtype.str}, voxels.data.cast("B")


def has_run_lengths(path: str) -> bool:
    with open(path, "rb") as file:
        return RUN_LENGTHS in file.read(2048)


def unpacked_run_lengths(path: str) -> np.ndarray[Any, Any]:
    """The voxels of a DICOM file whose pixels are run lengths, with slope and intercept applied as GDCM does."""
    import pydicom

    head = pydicom.dcmread(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "error", message="The decoded RLE segment"
            )  # is longer than the image
            voxels = np.ascontiguousarray(head.pixel_array)
    except (RuntimeError, ValueError) as error:  # whose words name plugins
        raise ValueError("its run lengths do not fit its header") from error
    if head.get("PhotometricInterpretation") == "MONOCHROME1":  # turned round, as by ITK
        voxels = (-1 if head.PixelRepresentation else 2**head.BitsStored - 1) - voxels
    slope, intercept = scale(head)
    if (slope, intercept) == (1, 0):
        return voxels
    whole = slope.is_integer() and intercept.is_integer()
    return (voxels * slope + intercept).astype(np.int32 if whole else np.float64)


def scale(head: Any) -> tuple[float, float]:
    """Slope and intercept of a file; those of its first frame, of which all have the same."""
    places = [head]
    for name in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in (head.get(name) or ())[:1]:
            places = [*(group.get("PixelValueTransformationSequence") or ()), *places]
    found = next((place for place in places if "RescaleSlope" in place), head)
    return float(found.get("RescaleSlope") or 1), float(found.get("RescaleIntercept") or 0)


def limit(memory: int, seconds: float) -> None:
    """Limit memory and processor time beyond what is used already; without effect on Windows."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            in_use = int(file.read().split()[0]) * resource.getpagesize()
        for kind, soft in (
            (resource.RLIMIT_AS, in_use + memory),
            (resource.RLIMIT_CPU, int(time.process_time() + seconds) + 1),
        ):
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (soft if hard < 0 else min(soft, hard), hard))
    except (ImportError, OSError, ValueError):
        return


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    for line in requests:
        asked = json.loads(line)
        data = memoryview(b"")
        limit(asked["memory"], asked["seconds"])
        try:
            if asked["what"] == "header":
                answer = header(asked["path"], asked["reader"])
            else:
                answer, data = image(asked["path"], asked["reader"])
        except Exception as error:  # noqa: BLE001, whatever it is, the next file may be sound
            answer = {"error": f"{type(error).__name__}: {error}"}
            data = memoryview(b"")
        answer["bytes"] = len(data)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(data)
        answers.flush()


if __name__ == "__main__":
    answers_fd = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # what libraries print is not an answer
    os.dup2(nowhere, 2)  # and may quote what stands in a header
    with os.fdopen(answers_fd, "wb") as stream:
        serve(sys.stdin.buffer, stream)
