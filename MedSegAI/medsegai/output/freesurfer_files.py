"""A result for FreeSurfer's programs: its numbers and colours, and `aseg.stats`.

Numbers, names and colours are those of FreeSurferColorLUT.txt for the structures of aseg.mgz (Fischl et al., Whole
brain segmentation, Neuron 33, 2002, 341-355).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medsegai import __version__
from medsegai.boxes import label_boxes
from medsegai.errors import RequestError
from medsegai.io import read_volume
from medsegai.labels import Label
from medsegai.request import NOT_FOR_DIAGNOSIS, SegmentationResult
from medsegai.volume import Volume

Color = tuple[int, int, int]

PAIRED: tuple[tuple[str, int, int, Color, Color], ...] = (
    ("Cerebral-White-Matter", 2, 41, (245, 245, 245), (0, 225, 0)),
    ("Cerebral-Cortex", 3, 42, (205, 62, 78), (205, 62, 78)),
    ("Lateral-Ventricle", 4, 43, (120, 18, 134), (120, 18, 134)),
    ("Inf-Lat-Vent", 5, 44, (196, 58, 250), (196, 58, 250)),
    ("Cerebellum-White-Matter", 7, 46, (220, 248, 164), (220, 248, 164)),
    ("Cerebellum-Cortex", 8, 47, (230, 148, 34), (230, 148, 34)),
    ("Thalamus", 10, 49, (0, 118, 14), (0, 118, 14)),
    ("Caudate", 11, 50, (122, 186, 220), (122, 186, 220)),
    ("Putamen", 12, 51, (236, 13, 176), (236, 13, 176)),
    ("Pallidum", 13, 52, (12, 48, 255), (13, 48, 255)),
    ("Hippocampus", 17, 53, (220, 216, 20), (220, 216, 20)),
    ("Amygdala", 18, 54, (103, 255, 255), (103, 255, 255)),
    ("Accumbens-area", 26, 58, (255, 165, 0), (255, 165, 0)),
    ("VentralDC", 28, 60, (165, 42, 42), (165, 42, 42)),
    ("vessel", 30, 62, (160, 32, 240), (160, 32, 240)),
    ("choroid-plexus", 31, 63, (0, 200, 200), (0, 200, 221)),
)
"""The name without its side, the numbers on the left and right, and the colours on the left and right."""

SINGLE: tuple[tuple[str, int, Color], ...] = (
    ("3rd-Ventricle", 14, (204, 182, 142)),
    ("4th-Ventricle", 15, (42, 204, 164)),
    ("Brain-Stem", 16, (119, 159, 176)),
    ("CSF", 24, (60, 60, 60)),
    ("5th-Ventricle", 72, (120, 190, 150)),
    ("WM-hypointensities", 77, (200, 70, 255)),
    ("non-WM-hypointensities", 80, (164, 108, 226)),
    ("Optic-Chiasm", 85, (234, 169, 30)),
    ("CC_Posterior", 251, (0, 0, 64)),
    ("CC_Mid_Posterior", 252, (0, 0, 112)),
    ("CC_Central", 253, (0, 0, 160)),
    ("CC_Mid_Anterior", 254, (0, 0, 208)),
    ("CC_Anterior", 255, (0, 0, 255)),
)

ALIASES = {
    "inferiorlateralventricle": "inflatvent",
    "cerebellarwhitematter": "cerebellumwhitematter",
    "cerebellarcortex": "cerebellumcortex",
    "thalamusproper": "thalamus",
    "ventraldiencephalon": "ventraldc",
    "accumbens": "accumbensarea",
    "nucleusaccumbens": "accumbensarea",
    "cerebrospinalfluid": "csf",
    "thirdventricle": "3rdventricle",
    "fourthventricle": "4thventricle",
}
"""Other names of the same structures, only letters and digits; the first of each pair is not FreeSurfer's."""

SIDE = re.compile(r"(?i)(?<![a-z])(left|right|lh|rh|l|r)(?![a-z])")

COLUMNS = (
    ("Index", "Index", "NA"),
    ("SegId", "Segmentation Id", "NA"),
    ("NVoxels", "Number of Voxels", "unitless"),
    ("Volume_mm3", "Volume", "mm^3"),
    ("StructName", "Structure Name", "NA"),
    ("normMean", "Intensity normMean", "MR"),
    ("normStdDev", "Intensity normStdDev", "MR"),
    ("normMin", "Intensity normMin", "MR"),
    ("normMax", "Intensity normMax", "MR"),
    ("normRange", "Intensity normRange", "MR"),
)
"""The heading, meaning and unit of each column of aseg.stats; FreeSurfer's readers depend on the order."""


@dataclass(frozen=True)
class _Known:
    """FreeSurfer's number, name and colour."""

    number: int
    name: str
    color: Color


def _table() -> Iterator[tuple[str, _Known]]:
    for name, left, right, left_color, right_color in PAIRED:
        yield f"left {_letters(name)}", _Known(left, f"Left-{name}", left_color)
        yield f"right {_letters(name)}", _Known(right, f"Right-{name}", right_color)
    for name, number, color in SINGLE:
        yield f" {_letters(name)}", _Known(number, name, color)


def _letters(name: str) -> str:
    """Return only letters and digits, in lower case."""
    return "".join(re.findall(r"[a-z0-9]+", name.casefold()))


def _key(name: str) -> str:
    """Return the side and structure that a name means."""
    side = SIDE.search(name)
    rest = _letters(name if side is None else name[: side.start()] + name[side.end() :])
    which = "" if side is None else "left" if side[1][0] in "lL" else "right"
    return f"{which} {ALIASES.get(rest, rest)}"


_KNOWN = dict(_table())


def freesurfer_label(label: Label) -> Label | None:
    """Return the label with FreeSurfer's number, name and colour, by its name; None if aseg.mgz lacks it."""
    known = _KNOWN.get(_key(label.name))
    if known is None:
        return None
    return replace(label, value=known.number, name=known.name, color=known.color)


def freesurfer_labels(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Return the labels with FreeSurfer's numbers, names and colours.

    Raises:
        RequestError: FreeSurfer does not have a number for a label, or has the same number for two labels.
    """
    found = [freesurfer_label(label) for label in labels]
    missing = [label.name for label, known in zip(labels, found, strict=True) if known is None]
    if missing:
        raise RequestError(
            f"FreeSurfer's aseg does not have a number for {', '.join(missing[:6])}. Choose a model of the "
            "structures of aseg, such as brain, or another --layout."
        )
    known = tuple(label for label in found if label is not None)
    _check_different(known)
    return known


def _check_different(labels: Sequence[Label]) -> None:
    numbers = [label.value for label in labels]
    double = [label.name for label in labels if numbers.count(label.value) > 1]
    if double:
        raise RequestError(
            f"Two structures of the model correspond to FreeSurfer's {double[0]}. Choose another --layout."
        )


def renumbered(result: SegmentationResult) -> SegmentationResult:
    """Return the result with FreeSurfer's numbers, names and colours. Raises: see `freesurfer_labels`."""
    labels = freesurfer_labels(result.labels)
    largest = max(label.value for label in (*labels, *result.labels))
    numbers = np.zeros(largest + 1, np.min_scalar_type(largest))
    for before, after in zip(result.labels, labels, strict=True):
        numbers[before.value] = after.value
    by_value = dict(zip((label.value for label in result.labels), labels, strict=True))
    return replace(
        result,
        labelmap=result.labelmap.with_voxels(numbers[result.labelmap.voxels]),
        labels=labels,
        structures=tuple(
            replace(item, label=by_value[item.label.value]) for item in result.structures
        ),
    )


def write_color_table(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    """Write a colour table for FreeSurfer: number, name, red, green, blue, transparency."""
    rows = [(0, "Unknown", 0, 0, 0), *((it.value, it.name, *it.color) for it in result.labels)]
    lines = (f"{row[0]:>3}  {row[1]:<30} {row[2]:>3} {row[3]:>3} {row[4]:>3}   0" for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_statistics(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    """Write volumes and grey values in the form of FreeSurfer's aseg.stats, which asegstats2table reads.

    The grey values are those of the scan, whereas FreeSurfer uses its norm.mgz.
    """
    image = scan if isinstance(scan, Volume) else read_volume(scan)
    lines = [
        "# Title Segmentation Statistics ",
        "#",
        f"# generating_program MedSegAI {__version__}",
        f"# {NOT_FOR_DIAGNOSIS}",
        "# anatomy_type volume",
        "#",
        *_measures(result),
        f"# VoxelVolume_mm3 {1000 * result.labelmap.geometry.voxel_volume_ml:g}",
        *_headings(),
        f"# NRows {len(result.structures)}",
        f"# NTableCols {len(COLUMNS)}",
        f"# ColHeaders  {' '.join(name for name, _, _ in COLUMNS)}",
        *_rows(result, image),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _measures(result: SegmentationResult) -> Iterator[str]:
    if result.intracranial_ml is not None:
        volume = f"{1000 * result.intracranial_ml:.6f}"
        yield f"# Measure IntraCranialVol, ICV, Intracranial Volume, {volume}, mm^3"


def _headings() -> Iterator[str]:
    for number, (heading, name, unit) in enumerate(COLUMNS, 1):
        yield f"# TableCol {number:>2} ColHeader {heading} "
        yield f"# TableCol {number:>2} FieldName {name} "
        yield f"# TableCol {number:>2} Units     {unit} "


def _rows(result: SegmentationResult, image: Volume) -> Iterator[str]:
    boxes = label_boxes(result.labelmap.voxels, [label.value for label in result.labels])
    for number, item in enumerate(sorted(result.structures, key=lambda it: it.label.value), 1):
        grey = np.zeros(1)
        box = boxes.get(item.label.value)
        if box is not None:
            grey = image.voxels[box][result.labelmap.voxels[box] == item.label.value].astype(float)
        deviation = grey.std(ddof=1) if grey.size > 1 else 0.0
        low, high = grey.min(), grey.max()
        yield (
            f"{number:>3} {item.label.value:>3}  {item.voxels:>8} {1000 * item.volume_ml:>12.3f}  "
            f"{item.label.name:<30}  {grey.mean():>10.4f} {deviation:>10.4f} {low:>10.4f} {high:>10.4f} "
            f"{high - low:>10.4f} "
        )
