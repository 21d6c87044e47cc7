"""A part of a slide in colours with the segments of the whole slide over it, on real MRML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slicer.util import arrayFromVolume

import slide_files
from medsegai.cli import main
from medsegai.io import write_segmentation
from medsegai.io.slides import open_slide, slide_channels
from medsegai.labels import Label
from scene_images import mask_on

PIXELS = slide_files.placed_pixels(200, 160)
TUMOUR = (slice(60, 120), slice(40, 100))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The slide, a region of it at full size, its overview, and segments on the grid of a coarser level."""
    slide = slide_files.write_pyramid(tmp_path / "slide.tif", PIXELS)
    part, overview = tmp_path / "part.nrrd", tmp_path / "overview.nrrd"
    assert main(["slide", str(slide), "-o", str(part), "--region=-0.05,-0.02,-0.06,-0.03"]) == 0
    assert main(["slide", str(slide), "-o", str(overview), "--level", "2"]) == 0
    with open_slide(slide) as opened:
        red, _, _ = slide_channels(opened, opened.grid(2.0))
    labels = np.zeros(red.voxels.shape, np.uint8)
    labels[
        0, TUMOUR[0].start // 2 : TUMOUR[0].stop // 2, TUMOUR[1].start // 2 : TUMOUR[1].stop // 2
    ] = 1
    segments = tmp_path / "tumour.seg.nrrd"
    write_segmentation(segments, red.with_voxels(labels), (Label(1, "tumor", (220, 60, 60)),))
    return {"part": part, "overview": overview, "segments": segments}


def loaded(mrml: Any, kind: str, path: Path) -> Any:
    storage = mrml.AddNewNodeByClass(
        "vtkMRMLSegmentationStorageNode"
        if kind == "vtkMRMLSegmentationNode"
        else "vtkMRMLNRRDStorageNode"
    )
    storage.SetFileName(str(path))
    node = mrml.AddNewNodeByClass(kind)
    assert storage.ReadData(node)
    return node


@pytest.mark.parametrize("which", ["part", "overview"])
def test_a_slide_is_a_volume_in_colours_with_its_segments_over_it(
    mrml: Any, files: dict[str, Path], which: str
) -> None:
    """Under each pixel of the segment, the colours say that it lies in the tumour."""
    volume = loaded(mrml, "vtkMRMLVectorVolumeNode", files[which])
    segmentation = loaded(mrml, "vtkMRMLSegmentationNode", files["segments"])
    pixels = arrayFromVolume(volume)
    assert pixels.shape[0] == 1
    assert pixels.shape[-1] == 3
    segments = segmentation.GetSegmentation()
    assert segments.GetNumberOfSegments() == 1
    identifier = segments.GetNthSegmentID(0)
    assert segments.GetSegment(identifier).GetName() == "tumor"
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    mask = mask_on(segmentation, identifier)
    rows, columns = (pixels[..., channel].astype(float) for channel in (0, 1))
    inside = (rows >= TUMOUR[0].start) & (rows < TUMOUR[0].stop)
    inside &= (columns >= TUMOUR[1].start) & (columns < TUMOUR[1].stop)
    differing = mask != inside
    assert inside.any()
    assert differing.mean() < (0.02 if which == "part" else 0.08)
