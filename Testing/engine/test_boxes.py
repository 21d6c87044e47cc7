"""Boxes of labels, against SciPy and by hand."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medsegai.boxes import grown, label_boxes, numbered
from medsegai.volume import joined_box


@pytest.mark.parametrize(
    ("kind", "by"),
    [(kind, 1) for kind in (np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64)]
    + [(kind, 7000) for kind in (np.int32, np.uint32, np.int64)],
)
def test_boxes_are_where_the_labels_are(kind: Any, by: int) -> None:
    rng = np.random.default_rng(2)
    voxels = np.zeros((9, 11, 13), kind)
    for value in (12, 3, 5):
        voxels[tuple(rng.integers(0, size, 6) for size in voxels.shape)] = value * by
    found = label_boxes(voxels)
    assert list(found) == [3 * by, 5 * by, 12 * by]
    for value, box in found.items():
        assert box == ndimage.find_objects((voxels == value).astype(np.uint8))[0]
    assert label_boxes(voxels, [5 * by, 4, 5 * by]) == {5 * by: found[5 * by]}
    assert label_boxes(voxels, [99_999]) == {}


@pytest.mark.parametrize("highest", [1, 70_000])
def test_without_voxels_there_are_no_boxes(highest: int) -> None:
    assert label_boxes(np.zeros((2, 3, 4), np.uint32)) == {}
    assert label_boxes(np.zeros((0, 3, 4), np.uint32)) == {}
    full = np.full((2, 3, 4), highest, np.uint32)
    assert label_boxes(full, []) == {}
    assert label_boxes(full) == {highest: (slice(0, 2), slice(0, 3), slice(0, 4))}


def test_boxes_are_joined_and_grown_up_to_the_edge() -> None:
    boxes = [(slice(1, 3), slice(4, 5), slice(0, 2)), (slice(2, 6), slice(1, 2), slice(7, 8))]
    joined = joined_box(boxes)
    assert joined == (slice(1, 6), slice(1, 5), slice(0, 8))
    assert grown(joined, (2, 1, 3), (7, 9, 9)) == (slice(0, 7), slice(0, 6), slice(0, 9))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 300, 70_000, 2**31 - 1]), min_size=12, max_size=12))
def test_labels_are_numbered_whatever_their_values(found: list[int]) -> None:
    """A table of all values up to the largest one would take gigabytes."""
    labels = np.array(found, np.int64).reshape(2, 2, 3)
    values = [70_000, 1, 2**31 - 1, 5]
    tracemalloc.start()
    result = numbered(labels, values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected = [values.index(value) + 1 if value in values else 0 for value in found]
    assert result.ravel().tolist() == expected
    assert peak < 1_000_000
