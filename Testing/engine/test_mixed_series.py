"""One slice that differs from the rest of its series in what makes slices comparable: refused, or reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

import images
from dicom_files import write_series
from medsegai.errors import GeometryError, InputError
from medsegai.io import read_volume
from medsegai.io.dicom import read_dicom, series_frames
from medsegai.volume import Volume

SCAN = images.numbered(images.geometry("oblique"))
LAST = SCAN.voxels.shape[0] - 1
STRAY = "1.2.826.0.1.3680043.8.498.77"

Change = Callable[[Dataset], None]


def scaled(head: Dataset) -> None:
    head.RescaleSlope, head.RescaleIntercept = 2, -1024


def looked_up(head: Dataset) -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [400, 0, 16], bytes(800)
    head.ModalityLUTSequence = [table]


def write_mixed(folder: Path, odd: set[int], change: Change, usual: Change | None = None) -> None:
    """The slices `odd` are changed by `change`, and all others by `usual`."""

    def each(head: Dataset, k: int) -> None:
        if k in odd:
            change(head)
        elif usual is not None:
            usual(head)

    write_series(folder, SCAN, each)


@given(
    odd=st.sets(st.integers(0, LAST), min_size=1, max_size=LAST),
    kinds=st.sampled_from([(scaled, None), (None, scaled), (looked_up, None)]),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_slices_of_which_some_have_no_scale_are_refused(
    odd: set[int],
    kinds: tuple[Change | None, Change | None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """They were read with the stored values of some beside the Hounsfield units of others."""
    folder = tmp_path_factory.mktemp("series")
    change, usual = (kind or (lambda head: None) for kind in kinds)
    write_mixed(folder, odd, change, usual)
    with pytest.raises(InputError, match=r"\.dcm (has|lacks) RescaleSlope, unlike other slices"):
        read_volume(folder)


def test_slices_with_scales_of_their_own_are_read(tmp_path: Path) -> None:
    """As of PET, where every slice has its own."""

    def each(head: Dataset, k: int) -> None:
        head.RescaleSlope, head.RescaleIntercept = k + 1, 0

    write_series(tmp_path / "s", SCAN, each)
    factors = np.arange(1, LAST + 2)[:, None, None]
    np.testing.assert_array_equal(read_volume(tmp_path / "s").voxels, SCAN.voxels * factors)


@pytest.mark.parametrize("k", [0, 3, LAST])
def test_a_slice_of_another_frame_of_reference_is_refused(tmp_path: Path, k: int) -> None:
    def elsewhere(head: Dataset) -> None:
        head.FrameOfReferenceUID = STRAY

    write_mixed(tmp_path / "s", {k}, elsewhere)
    with pytest.raises(GeometryError, match=r"2 frames of reference, and .*dcm names another one"):
        read_volume(tmp_path / "s")


@pytest.mark.parametrize("k", [0, LAST])
def test_the_file_that_is_named_is_one_of_the_series(tmp_path: Path, k: int) -> None:
    """A series beside it has the same frame of reference as the odd slice, and names that come first."""

    def elsewhere(head: Dataset, _number: int) -> None:
        head.FrameOfReferenceUID = STRAY

    write_series(tmp_path, SCAN, elsewhere, series=2)
    for path in tmp_path.iterdir():
        path.rename(path.with_name(f"another-{path.name}"))
    write_series(tmp_path, SCAN, lambda head, at: elsewhere(head, at) if at == k else None)
    with pytest.raises(
        GeometryError,
        match=r"2 frames of reference, and (?!another-)\S+ names another one than most slices",
    ):
        read_dicom(tmp_path, "1")


@pytest.mark.parametrize("skipped", [range(1, LAST + 1), range(LAST)])
def test_a_series_of_one_slice_that_is_chosen_is_refused(tmp_path: Path, skipped: range) -> None:
    """Also beside whole series, where nobody would take it without being asked."""
    write_series(tmp_path, SCAN, series=1, skip=skipped)
    write_series(tmp_path, SCAN, series=2)
    for choose in (read_dicom, series_frames):
        with pytest.raises(InputError, match=r"single slice.*Name the folder"):
            choose(tmp_path, "1")
        choose(tmp_path, "2")


def test_slices_that_name_no_frame_of_reference_are_read(tmp_path: Path) -> None:
    write_mixed(tmp_path / "s", {2, 3}, lambda head: delattr(head, "FrameOfReferenceUID"))
    np.testing.assert_array_equal(read_volume(tmp_path / "s").voxels, SCAN.voxels)


@pytest.mark.parametrize("k", [0, LAST])
def test_an_end_slice_that_belongs_to_another_series_is_reported(tmp_path: Path, k: int) -> None:
    """The others make up a regular grid, so nothing else shows that the series is not whole."""

    def stray(head: Dataset) -> None:
        head.SeriesInstanceUID = STRAY

    write_mixed(tmp_path / "s", {k}, stray)
    volume = read_volume(tmp_path / "s")
    assert len(volume.voxels) == LAST
    (note,) = volume.notes
    assert "is at the position of its next slice, but belongs to another series" in note


@pytest.mark.parametrize("k", range(1, LAST))
def test_a_slice_between_that_belongs_to_another_series_is_missed(tmp_path: Path, k: int) -> None:
    def stray(head: Dataset) -> None:
        head.SeriesInstanceUID = STRAY

    write_mixed(tmp_path / "s", {k}, stray)
    with pytest.raises(GeometryError, match="a slice is missing"):
        read_volume(tmp_path / "s")


def test_single_slices_elsewhere_are_not_reported(tmp_path: Path) -> None:
    """A scout beside a series is usual."""
    write_series(tmp_path / "s", SCAN)
    grid = SCAN.geometry
    far = grid.ijk_to_ras.copy()
    far[:3, 3] += 5 * far[:3, 2]
    scout = Volume(SCAN.voxels[:1], type(grid)((1, *grid.shape[1:]), far))
    write_series(tmp_path / "s", scout, series=9)
    assert read_volume(tmp_path / "s").notes == ()
