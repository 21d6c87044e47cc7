"""Resampling against nnU-Net's own functions: real images and labels, thick planes, odd shapes, every order."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy import ndimage

from images import DIRECTIONS
from medsegai.errors import ModelError
from medsegai.io import read_volume
from medsegai.preprocessing.resampling import (
    SPLINE,
    TORCH,
    UNCHANGED,
    coordinates,
    header_spacing,
    low_resolution_axis,
    nearest,
    output_interpolation,
    resample,
    resample_labels,
    resampled_shape,
    spline_matrix,
)
from nnunet_models import require_nnunet

Spacing = tuple[float, float, float]

DATA = {"function": SPLINE, "order": 3, "order_z": 0, "force_separate_z": None}
LABELS = {"function": SPLINE, "order": 1, "order_z": 0, "force_separate_z": None}
PARTS_OF_RANGE = 2e-6

SPACINGS: dict[str, tuple[Spacing, Spacing]] = {
    "coarser": ((1.0, 1.0, 1.0), (1.5, 1.5, 1.5)),
    "finer": ((2.0, 1.1, 1.0), (0.8, 0.8, 0.8)),
    "thick planes kept": ((5.0, 1.0, 1.0), (5.0, 0.8, 0.8)),
    "thick planes halved": ((5.0, 1.0, 1.0), (2.5, 1.4, 0.8)),
    "thick along j": ((1.0, 4.0, 1.0), (2.0, 2.0, 2.0)),
    "thick along i": ((1.0, 1.0, 4.0), (1.0, 2.0, 3.0)),
    "thick afterwards": ((1.0, 1.0, 1.0), (1.3, 4.0, 1.2)),
    "thin axis": ((0.24, 1.25, 1.25), (1.0, 1.0, 1.0)),
    "one axis only": ((1.0, 1.0, 1.0), (1.0, 1.0, 1.6)),
}
GRIDS = pytest.mark.parametrize("grids", SPACINGS.values(), ids=list(SPACINGS))


@pytest.fixture(scope="module")
def theirs() -> Any:
    """nnU-Net's functions by the names that plans give them."""
    require_nnunet()
    from nnunetv2.preprocessing.resampling import default_resampling, resample_torch

    class Functions:
        axis = staticmethod(default_resampling.determine_do_sep_z_and_axis)
        shape = staticmethod(default_resampling.compute_new_shape)

        @staticmethod
        def resample(
            image: Any, shape: Any, grids: Any, settings: Any, is_seg: bool = False
        ) -> Any:
            arguments = dict(settings)
            name = arguments.pop("function")
            module = resample_torch if name == TORCH else default_resampling
            function = partial(getattr(module, name), is_seg=is_seg, **arguments)
            return np.asarray(function(image.copy(), shape, *grids))

    return Functions


@pytest.fixture(scope="module")
def made() -> NDArray[np.float32]:
    """Two channels of noise, the hardest to interpolate, on an odd and uneven shape."""
    return np.random.default_rng(0).normal(50, 20, (2, 13, 21, 17)).astype(np.float32)


@pytest.fixture(scope="module")
def made_labels() -> NDArray[np.int8]:
    """Blocks that meet in corners of many labels, the -1 outside the mask among them."""
    blocks = np.random.default_rng(1).integers(-1, 5, (4, 6, 5)).astype(np.int8)
    return blocks.repeat(3, 0).repeat(4, 1).repeat(3, 2)[:-1, :-2]


def read(path: Path) -> NDArray[Any]:
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def part_of_range(found: NDArray[Any], wanted: NDArray[Any], image: NDArray[Any]) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.ptp(image))


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize(
    ("size", "new"), [(10, 7), (7, 13), (1, 4), (2, 5), (3, 1), (30, 60), (61, 41)]
)
def test_the_matrix_is_what_scipy_does_to_impulses(size: int, new: int, order: int) -> None:
    wanted = [
        ndimage.zoom(impulse, new / size, order=order, mode="nearest", grid_mode=True)
        for impulse in np.eye(size)
    ]
    np.testing.assert_allclose(
        spline_matrix(size, new, order), np.stack(wanted, axis=1), rtol=0, atol=1e-14
    )


def test_shapes_and_thick_axes_are_found_as_nnunet_finds_them(theirs: Any) -> None:
    generator = np.random.default_rng(2)
    for old, new in [*SPACINGS.values(), *generator.uniform(0.3, 5, (200, 2, 3)).tolist()]:
        shape = generator.integers(1, 200, 3)
        assert resampled_shape(shape, old, new) == tuple(theirs.shape(shape, old, new))
        for forced in (None, False, True):
            apart, axis = theirs.axis(forced, old, new)
            assert low_resolution_axis(old, new, forced) == (axis if apart else None)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", ["nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize(
    "spacing", [(1, 1, 3), (1.25, 1.25, 0.24), (0.8, 0.8, 2.4), (0.7, 1.5, 0.7)]
)
def test_spacing_is_what_nnunets_reader_finds_in_the_header(
    direction: str, kind: str, spacing: Spacing, tmp_path: Path
) -> None:
    """A ratio of exactly 3, or two equal axes: the least error would turn the decision."""
    image = sitk.GetImageFromArray(np.arange(210, dtype=np.float32).reshape(5, 6, 7))
    image.SetSpacing(spacing)
    image.SetDirection((np.diag([-1.0, -1.0, 1.0]) @ DIRECTIONS[direction]).ravel().tolist())
    path = tmp_path / f"image.{kind}"
    sitk.WriteImage(image, path)
    wanted = sitk.ReadImage(path).GetSpacing()
    found = header_spacing(read_volume(path).geometry.spacing_mm)
    np.testing.assert_allclose(found, wanted, rtol=2e-16)
    if kind == "nii.gz":
        assert found == wanted
        new = (1.0, 1.2, 1.5)
        assert low_resolution_axis(found, new) == low_resolution_axis(wanted, new)


def test_spacing_of_many_digits_is_kept() -> None:
    for length in (0.68359375, 0.4882812, float(np.float32(0.9370788)), 1 / 3):
        np.testing.assert_allclose(header_spacing([length]), length, rtol=2e-7)


@GRIDS
@pytest.mark.parametrize("order", [(3, 0), (3, 1), (3, 3), (1, 0), (0, 0), (2, 5), (5, 2)])
@pytest.mark.parametrize("forced", [None, True, False])
def test_made_images_agree(
    grids: tuple[Spacing, Spacing],
    order: tuple[int, int],
    forced: bool | None,
    made: NDArray[np.float32],
    theirs: Any,
) -> None:
    settings = DATA | {"order": order[0], "order_z": order[1], "force_separate_z": forced}
    shape = resampled_shape(made.shape[1:], *grids)
    found = resample(made, shape, *grids, settings)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    wanted = theirs.resample(made, shape, grids, settings)
    assert part_of_range(found.numpy(), wanted, made) < PARTS_OF_RANGE


@pytest.mark.parametrize(
    "grids", [((3.0, 3.0, 3.0), (1.5, 2.0, 2.0)), ((3.0, 3.0, 3.0), (5.0, 1.5, 1.5))], ids=str
)
@pytest.mark.parametrize("name", ["example_ct_sm", "example_mr_sm"])
def test_real_images_agree(
    name: str, grids: tuple[Spacing, Spacing], shared_data: Path, theirs: Any
) -> None:
    image = read(shared_data / "totalsegmentator-examples" / f"{name}.nii.gz")[None]
    image = image.astype(np.float32)
    shape = resampled_shape(image.shape[1:], *grids)
    found = resample(torch.from_numpy(image), shape, *grids, DATA).numpy()
    wanted = theirs.resample(image, shape, grids, DATA)
    assert part_of_range(found, wanted, image) < PARTS_OF_RANGE


def test_real_planes_are_clipped_one_by_one(shared_data: Path, theirs: Any) -> None:
    """A plane of one value stays so: what a spline overshoots is cut at the range of each plane."""
    image = read(shared_data / "totalsegmentator-examples" / "example_ct_sm.nii.gz")[None]
    image = image.astype(np.float32)
    image[:, 3] = 7
    grids = ((9.0, 3.0, 3.0), (9.0, 2.0, 2.0))
    shape = resampled_shape(image.shape[1:], *grids)
    found = resample(image, shape, *grids, DATA).numpy()
    assert part_of_range(found, theirs.resample(image, shape, grids, DATA), image) < PARTS_OF_RANGE
    assert (found[:, 3] == 7).all()
    for plane, original in zip(found[0], image[0], strict=True):
        assert original.min() <= plane.min()
        assert plane.max() <= original.max()


def test_a_view_of_a_larger_image_is_resampled_like_its_copy() -> None:
    large = np.random.default_rng(3).normal(size=(1, 20, 60, 30)).astype(np.float32)
    view = large.transpose(0, 3, 1, 2)[:, 4:, 3:-2, 1:]
    grids = ((1.0, 1.0, 1.0), (1.4, 1.3, 0.7))
    shape = resampled_shape(view.shape[1:], *grids)
    found, copied = (resample(x, shape, *grids, DATA) for x in (view, np.ascontiguousarray(view)))
    torch.testing.assert_close(found, copied)


def test_more_planes_than_are_worked_on_at_once(theirs: Any) -> None:
    image = np.random.default_rng(4).normal(size=(1, 150, 140, 9)).astype(np.float32)
    grids = ((1.0, 1.0, 1.0), (0.9, 0.6, 0.7))
    shape = resampled_shape(image.shape[1:], *grids)
    found = resample(image, shape, *grids, DATA).numpy()
    assert part_of_range(found, theirs.resample(image, shape, grids, DATA), image) < PARTS_OF_RANGE


@GRIDS
@pytest.mark.parametrize("forced", [None, False])
def test_pytorchs_interpolation_is_used_where_plans_name_it(
    grids: tuple[Spacing, Spacing],
    forced: bool | None,
    made: NDArray[np.float32],
    made_labels: NDArray[np.int8],
    theirs: Any,
) -> None:
    settings = {"function": TORCH, "force_separate_z": forced}
    shape = resampled_shape(made.shape[1:], *grids)
    found = resample(made, shape, *grids, settings)
    np.testing.assert_array_equal(found, theirs.resample(made, shape, grids, settings))
    shape = resampled_shape(made_labels.shape, *grids)
    labels = resample_labels(made_labels, shape, *grids, settings)
    wanted = theirs.resample(made_labels[None], shape, grids, settings, is_seg=True)[0]
    np.testing.assert_array_equal(labels, wanted)


@GRIDS
@pytest.mark.parametrize("function", [SPLINE, TORCH])
def test_what_plans_leave_out_is_as_in_nnunet(
    grids: tuple[Spacing, Spacing], function: str, made: NDArray[np.float32], theirs: Any
) -> None:
    settings = {"function": function}
    shape = resampled_shape(made.shape[1:], *grids)
    found = resample(made, shape, *grids, settings).numpy()
    assert (
        part_of_range(found, theirs.resample(made, shape, grids, settings), made) < PARTS_OF_RANGE
    )


@pytest.mark.parametrize("name", UNCHANGED)
def test_plans_that_do_not_resample_give_the_image_back(
    name: str, made: NDArray[np.float32], made_labels: NDArray[np.int8]
) -> None:
    grids = SPACINGS["coarser"]
    assert resample(made, (5, 5, 5), *grids, {"function": name}).shape == made.shape
    assert resample_labels(made_labels, (5, 5, 5), *grids, {"function": name}) is made_labels
    assert output_interpolation({"function": name}, *grids) == ("linear",) * 3


@GRIDS
@pytest.mark.parametrize("forced", [None, True, False])
@pytest.mark.parametrize("order", [0, 1])
def test_made_labels_agree_in_every_voxel(
    grids: tuple[Spacing, Spacing],
    forced: bool | None,
    order: int,
    made_labels: NDArray[np.int8],
    theirs: Any,
) -> None:
    settings = LABELS | {"order": order, "force_separate_z": forced}
    shape = resampled_shape(made_labels.shape, *grids)
    found = resample_labels(made_labels, shape, *grids, settings)
    assert found.dtype == made_labels.dtype
    wanted = theirs.resample(made_labels[None], shape, grids, settings, is_seg=True)[0]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("shape", [(2, 3, 4), (24, 18, 20), (6, 36, 5), (1, 1, 1)])
def test_labels_that_weigh_the_same_are_settled_alike(shape: tuple[int, ...], theirs: Any) -> None:
    """Even factors put samples right between voxels, where up to eight labels share the top weight."""
    labels = np.random.default_rng(5).integers(0, 4, (12, 9, 10)).astype(np.int16)
    grids = ((1.0, 1.0, 1.0), (1.1, 1.1, 1.1))
    found = resample_labels(labels, shape, *grids, LABELS)
    wanted = theirs.resample(labels[None], shape, grids, LABELS, is_seg=True)[0]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("new", [(2.0, 2.0, 2.0), (1.5, 2.2, 2.2), (6.0, 1.5, 1.5)], ids=str)
def test_real_labels_agree_in_every_voxel(new: Spacing, shared_data: Path, theirs: Any) -> None:
    labels = read(shared_data / "totalsegmentator-examples" / "example_seg.nii.gz").astype(np.int16)
    grids = ((3.0, 3.0, 3.0), new)
    shape = resampled_shape(labels.shape, *grids)
    found = resample_labels(labels, shape, *grids, LABELS)
    wanted = theirs.resample(labels[None], shape, grids, LABELS, is_seg=True)[0]
    np.testing.assert_array_equal(found, wanted)


def test_a_real_hippocampus_agrees_in_every_voxel(shared_data: Path, theirs: Any) -> None:
    for path in sorted((shared_data / "Dataset004_Hippocampus" / "labelsTr").glob("*.nii.gz"))[:5]:
        labels = read(path).astype(np.int8)
        for new in ((2.0, 2.0, 2.0), (0.5, 0.5, 0.5), (0.7, 1.1, 1.3)):
            grids = ((1.0, 1.0, 1.0), new)
            shape = resampled_shape(labels.shape, *grids)
            found = resample_labels(labels, shape, *grids, LABELS)
            wanted = theirs.resample(labels[None], shape, grids, LABELS, is_seg=True)[0]
            np.testing.assert_array_equal(found, wanted)


def read_back(
    logits: NDArray[np.float32], shape: tuple[int, ...], ways: tuple[str, ...]
) -> NDArray[np.float64]:
    """Logits as this package reads them: along each axis linear, or the nearest voxel, clamped at the edges."""
    values = logits.astype(np.float64)
    for axis, (way, new) in enumerate(zip(ways, shape, strict=True), start=1):
        size = values.shape[axis]
        where = (np.arange(new) + 0.5) * (size / new) - 0.5
        if way == "nearest":
            where = np.floor(where + 0.5)
        where = np.clip(where, 0, size - 1)
        low = np.floor(where).astype(int)
        part = (where - low).reshape([-1 if n == axis else 1 for n in range(4)])
        high = np.minimum(low + 1, size - 1)
        values = values.take(low, axis) * (1 - part) + values.take(high, axis) * part
    return values


@GRIDS
@pytest.mark.parametrize("forced", [None, True, False])
@pytest.mark.parametrize("function", [SPLINE, TORCH])
def test_logits_read_back_as_nnunet_resamples_them(
    grids: tuple[Spacing, Spacing], forced: bool | None, function: str, theirs: Any
) -> None:
    settings: dict[str, Any] = {"function": function, "force_separate_z": forced}
    if function == SPLINE:
        settings |= {"order": 1, "order_z": 0}
    logits = np.random.default_rng(6).normal(0, 5, (4, 14, 11, 18)).astype(np.float32)
    native, network = grids
    shape = resampled_shape(logits.shape[1:], network, native)
    wanted = theirs.resample(logits, shape, (network, native), settings)
    found = read_back(logits, shape, output_interpolation(settings, network, native))
    assert part_of_range(found, wanted, logits) < PARTS_OF_RANGE
    np.testing.assert_array_equal(found.argmax(0), wanted.argmax(0))


def test_the_higher_of_two_equally_near_planes_is_read(theirs: Any) -> None:
    """Half as many thick planes lie right between two: nnU-Net takes the higher one."""
    settings = LABELS | {"order": 1}
    logits = np.random.default_rng(7).normal(size=(2, 12, 8, 8)).astype(np.float32)
    grids = ((2.5, 0.5, 0.5), (5.0, 0.5, 0.5))
    wanted = theirs.resample(logits, (6, 8, 8), grids, settings)
    np.testing.assert_array_equal(nearest(12, 6), [1, 3, 5, 7, 9, 11])
    np.testing.assert_array_equal(wanted, logits[:, nearest(12, 6)])
    np.testing.assert_array_equal(resample(logits, (6, 8, 8), *grids, settings), wanted)


def test_grids_share_their_outer_edges() -> None:
    np.testing.assert_allclose(coordinates(6, 3), [0.5, 2.5, 4.5])
    np.testing.assert_allclose(coordinates(3, 6), [-0.25, 0.25, 0.75, 1.25, 1.75, 2.25])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"function": "my_resampling"}, "'my_resampling'.*resample_data_or_seg_to_shape"),
        ({"function": SPLINE, "order": 7}, "order 7.*0 to 5"),
        ({"function": SPLINE, "order": None}, "order None"),
    ],
)
def test_unknown_resampling_is_named(settings: dict[str, Any], named: str) -> None:
    image = np.zeros((1, 4, 4, 4), dtype=np.float32)
    grids = SPACINGS["coarser"]
    with pytest.raises(ModelError, match=named):
        resample(image, (3, 3, 3), *grids, settings)
    with pytest.raises(ModelError, match=named):
        resample_labels(image[0].astype(int), (3, 3, 3), *grids, settings)
    with pytest.raises(ModelError, match=named):
        output_interpolation(settings, *grids)


def test_resampling_of_labels_and_output_that_is_not_known_is_refused() -> None:
    labels = np.zeros((4, 4, 4), dtype=np.int8)
    grids = SPACINGS["coarser"]
    with pytest.raises(ModelError, match="splines of order 3"):
        resample_labels(labels, (3, 3, 3), *grids, LABELS | {"order": 3})
    settings = {"function": TORCH, "memefficient_seg_resampling": True}
    with pytest.raises(ModelError, match="memefficient_seg_resampling"):
        resample_labels(labels, (3, 3, 3), *grids, settings)
    with pytest.raises(ModelError, match="output by splines of order 3"):
        output_interpolation(DATA, *grids)
