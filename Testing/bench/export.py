"""What measuring and exporting take, beside the straightforward way: seconds, sizes, closed surfaces.

    medsegai demo -o demo
    python Testing/bench/export.py demo/segmentation.seg.nrrd --scan T1.nii.gz
    python Testing/bench/export.py SEGMENTATION.nii.gz --scan CT.nii.gz --resample 1

Without --scan, the scan is the one of the demo. It is written as a DICOM series first, because that is what a
DICOM SEG is made from; that part is not counted. Seconds are processor time of one thread, the best of
three runs. The others: SimpleITK's label statistics on the whole volume for `measure`; marching cubes of
scikit-image, and of VTK with the smoothing that 3D Slicer's closed surfaces have, for the surfaces.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import trimesh
import vtk
from numpy.typing import NDArray
from skimage.measure import marching_cubes
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from medsegai.boxes import label_boxes
from medsegai.commands.demo import nilearn_scan
from medsegai.export import Case
from medsegai.export.dicom_seg import ENCODINGS, Maker, read_source, segmentation, stored
from medsegai.export.dicom_sr import measurement_report
from medsegai.export.report import Content, write_report
from medsegai.export.surfaces import FORMATS, file_name, surface_of, write_surface
from medsegai.io import on_grid, read_labelmap, read_volume, to_sitk
from medsegai.measurements.structures import measure
from medsegai.volume import Geometry, Volume

sys.path.append(str(Path(__file__).resolve().parents[1] / "engine"))
from dicom_files import write_series

REPEATS = 3


@dataclass(frozen=True)
class Line:
    """One row of a table: what, seconds, megabytes written."""

    name: str
    seconds: float
    megabytes: float = math.nan

    def markdown(self) -> str:
        size = "" if math.isnan(self.megabytes) else f"{self.megabytes:.1f}"
        return f"| {self.name} | {self.seconds:.2f} | {size} |"


@dataclass(frozen=True)
class Mesh:
    """The surface of a structure as someone made it: points in mm, and triangles."""

    points: NDArray[Any]
    triangles: NDArray[Any]


def read(segmentation_path: Path, scan_path: Path, edge_mm: float | None) -> Case:
    """The case; resampled to cubic voxels if wanted, labels by the smoothest choice that ITK has."""
    labelmap, labels = read_labelmap(segmentation_path)
    scan = read_volume(scan_path)
    placed = on_grid(labelmap, scan.geometry)
    if edge_mm is None:
        return Case(placed, labels, scan)
    like = to_sitk(scan)
    size = [round(n * s / edge_mm) for n, s in zip(like.GetSize(), like.GetSpacing(), strict=True)]

    def resampled(volume: Volume, how: int) -> NDArray[Any]:
        grid = (like.GetOrigin(), [edge_mm] * 3, like.GetDirection())
        image = sitk.Resample(to_sitk(volume), size, sitk.Transform(), how, *grid)
        return sitk.GetArrayFromImage(image)

    matrix = scan.geometry.ijk_to_ras.copy()
    matrix[:3, :3] *= edge_mm / np.array(scan.geometry.spacing_mm)
    grid = Geometry((size[2], size[1], size[0]), matrix)
    values = resampled(placed, sitk.sitkLabelGaussian)
    return Case(Volume(values, grid), labels, Volume(resampled(scan, sitk.sitkLinear), grid))


def with_series(case: Case, folder: Path) -> Case:
    """The scan written as a DICOM series of 16 bits, and the case that it is part of."""
    assert case.image is not None
    low, high = float(case.image.voxels.min()), float(case.image.voxels.max())
    scale = 1.0 if high - low > 255 else 1000 / max(high - low, 1e-6)
    scan = case.image.with_voxels(np.rint(case.image.voxels * scale).astype(np.int16))
    write_series(folder, scan)
    image = read_volume(folder)
    return Case(on_grid(case.labelmap, image.geometry), case.labels, image)


def best_of(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the least processor time of `REPEATS` runs."""
    taken, result = math.inf, None
    for _ in range(REPEATS):
        start = time.process_time()
        result = work()
        taken = min(taken, time.process_time() - start)
    return result, taken


def by_itk(case: Case) -> None:
    """Shape and grey values of all labels on the whole volume."""
    assert case.image is not None
    labels, image = to_sitk(case.labelmap), to_sitk(case.image)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.ComputePerimeterOn()
    shape.Execute(labels)
    sitk.LabelIntensityStatisticsImageFilter().Execute(labels, image)


def dicom_lines(case: Case, folder: Path, out: Path) -> Iterator[Line]:
    maker = Maker("bench", "1")
    source, taken = best_of(lambda: read_source(folder))
    yield Line("headers of the series", taken)
    rows = measure(case.labelmap, case.labels, case.image)
    made: Any = None
    for encoding in reversed(ENCODINGS):  # binary last, for the report refers to it

        def write(kind: str = encoding) -> Any:
            dataset = segmentation(case, source, maker, kind)
            stored(dataset, out / f"{kind}.dcm")
            return dataset

        made, taken = best_of(write)
        yield Line(f"DICOM SEG, {encoding}", taken, megabytes(out / f"{encoding}.dcm"))
    _, taken = best_of(
        lambda: stored(measurement_report(made, source, rows, maker), out / "sr.dcm")
    )
    yield Line("DICOM SR", taken, megabytes(out / "sr.dcm"))


def file_lines(case: Case, out: Path) -> Iterator[Line]:
    rows, taken = best_of(lambda: measure(case.labelmap, case.labels, case.image))
    yield Line("`measure`", taken)
    yield Line("SimpleITK's label statistics", best_of(lambda: by_itk(case))[1])
    page = out / "report.html"
    taken = best_of(lambda: write_report(page, Content(case, rows)))[1]
    yield Line("report", taken, megabytes(page))
    surfaces = dict(our_surfaces(case))
    for ending in FORMATS:
        folder = out / ending[1:]
        folder.mkdir()

        def write(ending: str = ending, folder: Path = folder) -> None:
            for label in case.labels:
                if label.value in surfaces:
                    path = folder / file_name(label, ending)
                    write_surface(path, surfaces[label.value], label)

        taken = best_of(write)[1]
        size = sum(megabytes(path) for path in folder.iterdir())
        yield Line(f"{len(surfaces)} files {ending}, less making the surfaces", taken, size)


def megabytes(path: Path) -> float:
    return path.stat().st_size / 1e6


def our_surfaces(case: Case) -> Iterator[tuple[int, Any]]:
    voxels, grid = case.labelmap.voxels, case.labelmap.geometry
    boxes = label_boxes(voxels, [label.value for label in case.labels])
    for value, box in boxes.items():
        mask = voxels[box] == value
        yield value, surface_of(mask, grid.cropped([side.start for side in box], mask.shape))


def skimage_surfaces(case: Case) -> Iterator[tuple[int, Mesh]]:
    """Marching cubes (Lewiner) of every indicator, padded, so that structures at the border are closed."""
    voxels = case.labelmap.voxels
    for value in np.unique(voxels)[1:].tolist():
        points, triangles, _, _ = marching_cubes(
            np.pad(voxels == value, 1).astype(np.float32), 0.5,
            spacing=case.labelmap.geometry.spacing_mm[::-1],
        )  # fmt: skip
        yield value, Mesh(points, triangles)


def vtk_surfaces(case: Case) -> Iterator[tuple[int, Mesh]]:
    """Discrete flying edges and windowed sinc, 20 iterations at a pass band of 0.0316: Slicer's 0.5."""
    padded = np.pad(case.labelmap.voxels, 1)
    image = vtk.vtkImageData()
    image.SetDimensions(*padded.shape[::-1])
    image.SetSpacing(*case.labelmap.geometry.spacing_mm)
    image.GetPointData().SetScalars(numpy_to_vtk(padded.ravel(), deep=True))
    for value in np.unique(padded)[1:].tolist():
        edges = vtk.vtkDiscreteFlyingEdges3D()
        edges.SetInputData(image)
        edges.SetValue(0, value)
        smooth = vtk.vtkWindowedSincPolyDataFilter()
        smooth.SetInputConnection(edges.GetOutputPort())
        smooth.SetNumberOfIterations(20)
        smooth.SetPassBand(0.0316)
        smooth.BoundarySmoothingOff()
        smooth.FeatureEdgeSmoothingOff()
        smooth.NonManifoldSmoothingOn()
        smooth.NormalizeCoordinatesOn()
        smooth.Update()
        body = smooth.GetOutput()
        triangles = vtk_to_numpy(body.GetPolys().GetConnectivityArray()).reshape(-1, 3)
        yield value, Mesh(vtk_to_numpy(body.GetPoints().GetData()), triangles)


def surface_table(case: Case) -> list[str]:
    """Seconds, how many surfaces are closed, how far their volumes are off, and how many triangles they have."""
    lines = [
        "| surfaces | s | closed | volume off, % | triangles |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    counts = np.bincount(case.labelmap.voxels.ravel())
    voxel = case.labelmap.geometry.voxel_volume_ml * 1000
    ways: dict[str, Callable[[Case], Iterator[tuple[int, Any]]]] = {
        "ours, tolerance 0.1 mm": our_surfaces,
        "scikit-image, marching cubes": skimage_surfaces,
        "VTK, flying edges and windowed sinc": vtk_surfaces,
    }
    for name, way in ways.items():
        made, taken = best_of(lambda way=way: dict(way(case)))
        bodies = {
            value: trimesh.Trimesh(item.points, item.triangles) for value, item in made.items()
        }
        closed = sum(manifold(body) for body in bodies.values())
        off = [
            abs(abs(body.volume) / (counts[value] * voxel) - 1) for value, body in bodies.items()
        ]
        triangles = sum(len(item.triangles) for item in made.values())
        lines.append(
            f"| {name} | {taken:.1f} | {closed} of {len(bodies)} | {100 * np.mean(off):.2f}, at most "
            f"{100 * max(off):.1f} | {triangles:,} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def manifold(body: trimesh.Trimesh) -> bool:
    """Each edge between exactly two triangles, turned alike, once points at one place are joined."""
    return bool(body.is_watertight and body.is_winding_consistent)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("segmentation", type=Path)
    parser.add_argument(
        "--scan", type=Path, help="the scan that was segmented (default: the demo's)"
    )
    parser.add_argument("--resample", type=float, metavar="MM", help="to cubic voxels of this edge")
    arguments = parser.parse_args(argv)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    case = read(arguments.segmentation, arguments.scan or nilearn_scan(), arguments.resample)
    with tempfile.TemporaryDirectory() as folder:
        series, out = Path(folder) / "series", Path(folder) / "out"
        out.mkdir()
        case = with_series(case, series)
        found = np.unique(case.labelmap.voxels).size - 1
        shape = "×".join(str(size) for size in case.labelmap.geometry.shape[::-1])
        lines = [
            f"{shape} voxels, {found} structures.",
            "",
            "| | s | MB |",
            "| --- | ---: | ---: |",
        ]
        for line in (*file_lines(case, out), *dicom_lines(case, series, out)):
            lines.append(line.markdown())
            print(lines[-1], file=sys.stderr, flush=True)
        print("\n".join([*lines, "", *surface_table(case)]))
    return 0


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("export", main))
