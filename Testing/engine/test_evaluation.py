"""Figures against MONAI, SimpleITK, all pairs of distances written out, and boxes done by hand."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist

from medsegai.errors import GeometryError, InputError
from medsegai.evaluation import FIGURES, StructureFigures, evaluate, surface_figures
from medsegai.io import read_labelmap
from medsegai.labels import Label
from medsegai.volume import Geometry, Volume

SPACING = (0.7, 1.3, 3.1)  # i, j, k
TILT = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]


def label(value: int, name: str | None = None) -> Label:
    return Label(value, name or f"structure {value}", (10, 20, 30))


def volume(
    voxels: NDArray[Any],
    spacing: Sequence[float] = SPACING,
    origin: Sequence[float] = (-3.0, 12.0, 7.0),
    directions: NDArray[Any] = TILT,
    source: str = "",
) -> Volume:
    geometry = Geometry.from_spacing(voxels.shape, spacing, origin, directions)
    return Volume(voxels, geometry, source)


def blobs(seed: int, sigma: float = 2.5) -> NDArray[np.uint8]:
    """Smooth label maps whose structures touch each other and the border of the image."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(4, 18, 26, 33)), (0, sigma, sigma, sigma))
    return np.argmax(fields, axis=0).astype(np.uint8)


def pair(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    first = blobs(seed)
    second = np.where(blobs(seed + 50, sigma=1) < 2, first, np.roll(first, (1, -2, 3), (0, 1, 2)))
    return first, second


def faces(index: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    k, j, i = index
    return [
        (k - 1, j, i),
        (k + 1, j, i),
        (k, j - 1, i),
        (k, j + 1, i),
        (k, j, i - 1),
        (k, j, i + 1),
    ]


def one(prediction: NDArray[Any], reference: NDArray[Any], value: int = 1) -> StructureFigures:
    return evaluate(volume(prediction), volume(reference), [label(value)])[0]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("spacing", [SPACING, (1.0, 1.0, 1.0), (4.0, 0.5, 0.9)])
def test_distances_are_monais(seed: int, spacing: tuple[float, float, float]) -> None:
    first, second = pair(seed)
    figures = evaluate(
        volume(first, spacing), volume(second, spacing), [label(value) for value in (1, 2, 3)]
    )
    hot = [
        torch.from_numpy(np.stack([labels == value for value in range(4)]))[None].float()
        for labels in (first, second)
    ]
    options = {"spacing": list(spacing[::-1]), "include_background": False}
    hd95 = compute_hausdorff_distance(*hot, percentile=95, **options)[0].numpy()
    assd = compute_average_surface_distance(*hot, symmetric=True, **options)[0].numpy()
    assert [item.hd95_mm for item in figures] == pytest.approx(hd95, rel=1e-5)
    assert [item.assd_mm for item in figures] == pytest.approx(assd, rel=1e-5)


@pytest.mark.parametrize("seed", [2, 3])
def test_distances_are_those_of_all_pairs(seed: int) -> None:
    first, second = (labels[:7, :12, :14] == 1 for labels in pair(seed))
    points = []
    for mask in (first, second):
        inside = {tuple(index) for index in np.argwhere(mask)}
        surface = [index for index in inside if not all(near in inside for near in faces(index))]
        points.append(np.array(surface) * SPACING[::-1])
    distances = cdist(*points)
    there, back = distances.min(axis=1), distances.min(axis=0)
    hd95, assd, signed = surface_figures(first, second, SPACING)
    assert hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-12)
    backwards = surface_figures(second, first, SPACING)
    assert backwards == pytest.approx((hd95, assd, -signed), rel=1e-12)
    assert assd == pytest.approx((there.sum() + back.sum()) / (len(there) + len(back)), rel=1e-12)


def test_overlap_is_simpleitks() -> None:
    first, second = pair(4)
    found = evaluate(volume(first), volume(second), [label(value) for value in (1, 2, 3)])
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(*(sitk.GetImageFromArray(labels) for labels in (second, first)))
    for item in found:
        value = item.label.value
        assert item.dice == pytest.approx(measure.GetDiceCoefficient(value))
        assert item.iou == pytest.approx(measure.GetJaccardCoefficient(value))
    assert min(item.dice for item in found) < 0.99


def test_boxes_by_hand() -> None:
    prediction, reference = (np.zeros((10, 12, 14), np.uint8) for _ in range(2))
    prediction[2:6, 3:7, 3:7] = 5
    reference[2:6, 3:7, 5:9] = 5  # 2 voxels of 0.7 mm further along i
    figures = one(prediction, reference, 5)
    assert figures.dice == 0.5
    assert figures.iou == pytest.approx(1 / 3)
    assert figures.hd95_mm == pytest.approx(1.4)
    assert figures.prediction_ml == pytest.approx(64 * 0.7 * 1.3 * 3.1 / 1000)
    assert figures.volume_difference_ml == 0
    reference[6:10, 3:7, 5:9] = 5
    figures = one(prediction, reference, 5)
    assert figures.volume_difference_ml == pytest.approx(-64 * 0.7 * 1.3 * 3.1 / 1000)
    assert figures.volume_difference_percent == pytest.approx(-50)


def test_the_slice_spacing_counts() -> None:
    prediction, reference = (np.zeros((9, 4, 4), np.uint8) for _ in range(2))
    prediction[2, 1:3, 1:3] = 1
    reference[4, 1:3, 1:3] = 1
    figures = one(prediction, reference)
    assert (figures.hd95_mm, figures.assd_mm) == pytest.approx((6.2, 6.2))
    assert figures.dice == 0


def test_the_signed_distance_says_by_how_much_a_structure_is_too_large() -> None:
    """Blocks with faces 2 voxels apart along each axis, on a grid of 1 mm."""
    large, small = (np.zeros((24, 24, 24), np.uint8) for _ in range(2))
    large[4:20, 4:20, 4:20], small[6:18, 6:18, 6:18] = 1, 1
    figures = evaluate(volume(large, (1, 1, 1)), volume(small, (1, 1, 1)), [label(1)])[0]
    assert figures.signed_mm == pytest.approx(figures.assd_mm)
    assert 2 < figures.signed_mm < 2.4
    figures = evaluate(volume(small, (1, 1, 1)), volume(large, (1, 1, 1)), [label(1)])[0]
    assert figures.signed_mm == pytest.approx(-figures.assd_mm)
    moved = np.roll(large, 1, axis=2)
    figures = evaluate(volume(moved, (1, 1, 1)), volume(large, (1, 1, 1)), [label(1)])[0]
    assert figures.assd_mm > 0.1
    assert figures.signed_mm == pytest.approx(0), "what is only elsewhere is not too large"


def test_equal_labels_are_perfect_also_at_the_border() -> None:
    for labels in (blobs(6), np.ones((3, 4, 5), np.uint8), np.ones((1, 1, 1), np.uint8)):
        figures = one(labels, labels)
        assert (figures.dice, figures.iou) == (1, 1)
        assert (figures.hd95_mm, figures.assd_mm, figures.signed_mm) == (0, 0, 0)
        assert (figures.volume_difference_ml, figures.volume_difference_percent) == (0, 0)


def test_absent_from_both_has_no_figures() -> None:
    labels = blobs(7)
    figures = one(labels, labels, 77)
    assert figures.label.value == 77
    assert all(math.isnan(value) for value in figures.to_dict().values())
    assert tuple(figures.to_dict()) == FIGURES


def test_absent_from_the_prediction() -> None:
    reference = np.zeros((5, 5, 5), np.uint8)
    reference[2, 2, 2] = 1
    figures = one(np.zeros_like(reference), reference)
    assert (figures.dice, figures.iou, figures.volume_difference_percent) == (0, 0, -100)
    assert math.isnan(figures.hd95_mm)
    assert math.isnan(figures.assd_mm)


def test_absent_from_the_reference() -> None:
    prediction = np.zeros((5, 5, 5), np.uint8)
    prediction[2, 2, 2:4] = 1
    figures = one(prediction, np.zeros_like(prediction))
    assert (figures.dice, figures.iou, figures.reference_ml) == (0, 0, 0)
    assert figures.volume_difference_ml == pytest.approx(2 * 0.7 * 1.3 * 3.1 / 1000)
    assert math.isnan(figures.volume_difference_percent)
    assert math.isnan(figures.hd95_mm)


def test_large_label_values() -> None:
    first, second = pair(8)
    values = np.array([0, 3, 70_000, 2_000_000_000], np.uint32)
    plain = evaluate(volume(first), volume(second), [label(value) for value in (1, 2, 3)])
    large = evaluate(
        volume(values[first]), volume(values[second]), [label(int(value)) for value in values[1:]]
    )
    assert [item.to_dict() for item in large] == [item.to_dict() for item in plain]


def test_types_of_the_two_files_may_differ() -> None:
    first, second = pair(9)
    wide = evaluate(volume(first), volume(second.astype(np.int64)), [label(1), label(300)])
    assert wide[0] == evaluate(volume(first), volume(second), [label(1)])[0]
    assert math.isnan(wide[1].dice)


@pytest.mark.parametrize(
    "other",
    [
        {"spacing": (0.7, 1.3, 3.0)},
        {"origin": (-3.0, 12.0, 7.4)},
        {"directions": TILT[:, [1, 0, 2]]},
        {"directions": TILT * (-1, 1, 1)},
    ],
    ids=["spacing", "origin", "axis order", "flip"],
)
def test_other_grids_are_refused(other: dict[str, Any]) -> None:
    labels = blobs(10)
    here = volume(labels, source="here.nii.gz")
    there = volume(labels, **{"source": "there.nrrd"} | other)
    with pytest.raises(GeometryError, match=r"here\.nii\.gz.*there\.nrrd"):
        evaluate(here, there, [label(1)])


def test_another_size_is_refused() -> None:
    labels = blobs(11)
    with pytest.raises(GeometryError, match=r"33 x 26 x 18 voxels.*33 x 26 x 17 voxels"):
        evaluate(volume(labels), volume(labels[:-1]), [label(1)])


def test_rounding_in_headers_is_no_other_grid() -> None:
    labels = blobs(12)
    near = volume(labels, origin=(-3.0 + 1e-4, 12.0, 7.0))
    assert evaluate(volume(labels), near, [label(1)])[0].dice == 1


@pytest.mark.parametrize("voxels", [np.full((3, 3, 3), 0.5), np.full((3, 3, 3), -1)])
def test_an_image_is_no_label_map(voxels: NDArray[Any]) -> None:
    with pytest.raises(InputError, match=r"image\.nii.*label values"):
        evaluate(volume(voxels, source="image.nii"), volume(blobs(1)[:3, :3, :3]), [label(1)])


def test_hippocampus_against_monai(shared_data: Path) -> None:
    path = min((shared_data / "Dataset004_Hippocampus" / "labelsTr").glob("*.nii.gz"))
    reference, _ = read_labelmap(path)
    prediction = reference.with_voxels(ndimage.median_filter(np.roll(reference.voxels, 1, 2), 3))
    figures = evaluate(prediction, reference, [label(1, "anterior"), label(2, "posterior")])
    hot = [
        torch.from_numpy(np.stack([labels.voxels == value for value in (1, 2)]))[None].float()
        for labels in (prediction, reference)
    ]
    options = {
        "spacing": list(reference.geometry.spacing_mm[::-1]),
        "include_background": True,
    }
    hd95 = compute_hausdorff_distance(*hot, percentile=95, **options)[0].numpy()
    assd = compute_average_surface_distance(*hot, symmetric=True, **options)[0].numpy()
    assert [item.hd95_mm for item in figures] == pytest.approx(hd95, rel=1e-5)
    assert [item.assd_mm for item in figures] == pytest.approx(assd, rel=1e-5)
    assert all(0.5 < item.dice < 1 for item in figures)
