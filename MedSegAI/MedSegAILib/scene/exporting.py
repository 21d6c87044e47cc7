"""Reading of a segmentation for an export: one label map on the voxels of its scan.

Files have the geometry of the scan when it was loaded: its parent transforms in the scene are left out, because
neither the DICOM series nor the NIfTI file has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError
from medsegai.volume import Geometry, Volume
from medsegai.worker.requests import EXPORT_PATHS, ExportRequest
from MedSegAILib.scene.inputs import ijk_to_local, image_at
from MedSegAILib.scene.layers import Layer, boxes, layers_of, on_grid
from MedSegAILib.scene.measuring import (
    field_of_view,
    renumbered,
    scan_of,
    scan_place,
)
from MedSegAILib.scene.reports import report_of
from MedSegAILib.scene.review import is_locked
from MedSegAILib.scene.segments import label_of, label_value, painted, values_of
from MedSegAILib.slicer_types import SegmentationNode, VolumeNode
from MedSegAILib.translation import tr as _

OVERLAP = _(
    "{first} and {second} overlap, but in an export a voxel belongs to one segment. "
    "Export a copy without one of them, or separate them in the Segment Editor."
)


@dataclass(frozen=True, eq=False)
class ExportSource:
    """The request for an export by the worker."""

    request: ExportRequest


def exported(
    segmentation: SegmentationNode,
    outputs: Mapping[str, Any],
    dicom: tuple[str, str] = ("", ""),
    overwrite: bool = False,
) -> ExportSource:
    """Read a segmentation for an export by the worker.

    Args:
        outputs: the outputs, as fields of `medsegai.export.files.Exports`.
        dicom: the folder and SeriesInstanceUID of the DICOM series that was segmented, for a DICOM SEG.
        overwrite: whether existing files are replaced.

    Raises:
        InputError: the segmentation is missing, made of surfaces, does not have voxels, or has overlapping
            segments; or a DICOM SEG is wanted, but its voxels are not those of the scan.
        GeometryError: segmentation or scan have a parent transform that is not linear.
    """
    layers, scan = layers_of(segmentation), scan_of(segmentation)
    names = list(segmentation.GetSegmentation().GetSegmentIDs())
    if not layers:
        raise InputError(_("{name} does not have voxels.").format(name=segmentation.GetName()))
    series = dicom if outputs.get("seg") else ("", "")
    grid = field_of_view(segmentation, layers, scan)
    on_scan = scan is not None and grid.matches(scan_place(segmentation, scan))
    if series[0] and not on_scan:
        raise _not_on_scan(segmentation)
    values = values_of(segmentation, names)
    voxels = _label_map_of(segmentation, grid, values)
    place = Geometry(grid.shape, ijk_to_local(scan)) if on_scan else grid
    made, touched = _predicted(segmentation, layers, names)
    request = ExportRequest(
        Volume(voxels, place, segmentation.GetName()),
        tuple(label_of(segmentation, name, values[name]) for name in names),
        _plain(outputs),
        image_at(scan, np.eye(4), scan.GetName()) if on_scan and not series[0] else None,
        *series,
        run=report_of(segmentation) if made else {},
        touched=tuple(values[name] for name in names if name in touched),
        drawn=tuple(values[name] for name in names if name not in made),
        overwrite=overwrite,
        warnings=() if on_scan else (_no_scan(segmentation, scan),),
    )
    return ExportSource(request)


def _not_on_scan(segmentation: SegmentationNode) -> InputError:
    return InputError(
        _(
            "{name} does not have the voxels of its scan, so it cannot become its DICOM SEG. "
            "Export it to a label map with the scan as reference in the module "
            "Segmentations, and import that."
        ).format(name=segmentation.GetName())
    )


def _predicted(
    segmentation: SegmentationNode, layers: Sequence[Layer], names: Sequence[str]
) -> tuple[set[str], set[str]]:
    """Return the segments that a model predicted, and those of them that a person changed or completed since."""
    by_hand = painted(segmentation, layers)
    made = {name for name in names if label_value(segmentation, name) is not None}
    return made, {name for name in made if name in by_hand or is_locked(segmentation, name)}


def _plain(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outputs as JSON values; paths become absolute, because the worker has another working folder."""
    plain = {name: value for name, value in outputs.items() if value is not None}
    plain |= {name: str(Path(plain[name]).absolute()) for name in EXPORT_PATHS if name in plain}
    if not isinstance(plain.get("formats", ""), str):
        plain["formats"] = list(plain["formats"])
    return plain


def _label_map_of(
    segmentation: SegmentationNode, grid: Geometry, values: Mapping[str, int]
) -> NDArray[np.integer]:
    """Return one label map of all segments.

    Raises:
        InputError: two segments overlap.
    """
    out = np.zeros(grid.shape, np.min_scalar_type(max(values.values())))
    for layer in layers_of(segmentation):
        voxels = on_grid(renumbered(layer, values), layer.geometry, grid)
        for value, box in boxes(voxels).items():
            inside = voxels[box] == value
            other = int(out[box][inside].max())
            if other:
                first, second = (_title(segmentation, values, it) for it in (other, value))
                raise InputError(OVERLAP.format(first=first, second=second))
            out[box][inside] = value
    return out


def _title(segmentation: SegmentationNode, values: Mapping[str, int], value: int) -> str:
    name = next(name for name, item in values.items() if item == value)
    return str(segmentation.GetSegmentation().GetSegment(name).GetName())


def _no_scan(segmentation: SegmentationNode, scan: VolumeNode) -> str:
    if scan is None:
        return _(
            "The scan of {name} is not in the scene, so there are no pictures and no grey values."
        ).format(name=segmentation.GetName())
    return _(
        "{name} does not have the voxels of {scan}, so there are no pictures and no grey values."
    ).format(name=segmentation.GetName(), scan=scan.GetName())
