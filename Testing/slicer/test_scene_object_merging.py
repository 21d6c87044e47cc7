"""Objects of a region become part of those of the whole picture, on real MRML; edited ones are never lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from slicer.util import arrayFromVolume, updateVolumeFromArray

from medsegai.labels import Label
from medsegai.measurements.object_rows import object_rows
from medsegai.request import SegmentationResult, StructureMeasures
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.scene import Scene
from MedSegAILib.scene.attachments import OBJECT_TABLE_REFERENCE, OBJECTS_REFERENCE
from MedSegAILib.scene.object_merging import successors
from MedSegAILib.scene.review import ReviewState, set_review_state
from scene_images import mask_on, paint

INSIDE = Label(1, "Inside", (200, 80, 80))
SIDE, STEP, SIZE = 96, 6, 4
CUT = 28
"""The column at which the region ends: within the squares of one column of them."""

KINDS = {"segments": 24, "label map": STEP}
"""Distances of squares, of which there are few or many."""


def squares(step: int, size: int = SIZE) -> np.ndarray:
    """Numbers of squares, row by row."""
    objects = np.zeros((1, SIDE, SIDE), np.uint16)
    starts = range(2, SIDE - SIZE, step)
    corners = [(j, i) for j in starts for i in starts]
    for number, (j, i) in enumerate(corners, 1):
        objects[0, j : j + size, i : i + size] = number
    return objects


class Picture:
    """A picture in a scene, with its objects.

    Args:
        kind: one of `KINDS`.
    """

    def __init__(self, mrml: Any, kind: str) -> None:
        self.node = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Tile")
        pixels = np.random.default_rng(0).integers(0, 255, (1, SIDE, SIDE))
        updateVolumeFromArray(self.node, pixels.astype(np.int16))
        self.node.SetSpacing(0.5, 0.25, 1)
        self.scene, self.step = Scene(mrml), KINDS[kind]
        self.image = self.scene.read(self.node)
        self.segmentation = self.scene.write(self.node, self.result(squares(self.step)))

    def result(self, objects: np.ndarray, columns: int = 0) -> SegmentationResult:
        """What the engine finds; with `columns`, in a region of the first ones."""
        region: tuple[float, ...] = ()
        if columns:
            objects = objects.copy()
            objects[..., columns:] = 0
            ends = np.array([[0, 0, 0, 1], [columns - 1, SIDE - 1, 0, 1]])
            world = (self.image.geometry.ijk_to_ras @ ends.T)[:3]
            spread = (world.min(1) - 1e-3, world.max(1) + 1e-3)
            region = tuple(float(v) for pair in zip(*spread, strict=True) for v in pair)
        _found, numbers = np.unique(objects, return_inverse=True)
        numbers = numbers.reshape(objects.shape).astype(np.uint16)
        labelmap = self.image.with_voxels((numbers > 0).astype(np.uint8))
        return SegmentationResult(
            labelmap,
            (INSIDE,),
            (StructureMeasures(INSIDE, int((numbers > 0).sum()), 1.0),),
            objects=self.image.with_voxels(numbers),
            object_rows=tuple(object_rows(numbers[0], (self.image,), self.image)),
            region=region,
        )

    def update(self, result: SegmentationResult, **output: bool) -> None:
        choice = OutputChoice(OutputMode.UPDATE, self.segmentation, **output)
        self.scene.write(self.node, result, choice)

    @property
    def objects(self) -> Any:
        return self.segmentation.GetNodeReference(OBJECTS_REFERENCE)

    def segment(self, number: int) -> str:
        (name,) = (
            name
            for name in self.objects.GetSegmentation().GetSegmentIDs()
            if name.startswith(f"{number:03d}_")
        )
        return str(name)

    def numbers(self) -> np.ndarray:
        """The objects in the scene as one map of numbers."""
        if not self.objects.IsA("vtkMRMLSegmentationNode"):
            return np.array(arrayFromVolume(self.objects))
        found = np.zeros((1, SIDE, SIDE), int)
        for name in self.objects.GetSegmentation().GetSegmentIDs():
            found[mask_on(self.objects, name, found.shape)] = int(name.split("_")[0])
        return found

    def table(self) -> dict[str, list[float]]:
        table = self.segmentation.GetNodeReference(OBJECT_TABLE_REFERENCE).GetTable()
        return {
            table.GetColumnName(n): [
                table.GetValue(row, n).ToDouble() for row in range(table.GetNumberOfRows())
            ]
            for n in range(table.GetNumberOfColumns())
        }


@pytest.fixture(params=KINDS)
def tile(mrml: Any, request: pytest.FixtureRequest) -> Picture:
    return Picture(mrml, request.param)


@pytest.fixture
def few(mrml: Any) -> Picture:
    return Picture(mrml, "segments")


def test_objects_of_a_region_replace_only_those_in_it(tile: Picture) -> None:
    before, node = squares(tile.step), tile.objects
    smaller = squares(tile.step, SIZE - 1)
    tile.update(tile.result(smaller, CUT))
    expected = before.copy()
    expected[..., :CUT] = smaller[..., :CUT]
    assert len(np.unique(before[..., CUT - 1 : CUT + 1])) > 2, "the border cuts objects"
    np.testing.assert_array_equal(tile.numbers(), expected)
    assert tile.objects is node
    assert "Tile objects has" in " ".join(tile.scene.notes)
    rows = object_rows(expected[0], (tile.image,), tile.image)
    table = tile.table()
    assert table["Object"] == [row["number"] for row in rows]
    assert table["Pixels"] == [row["pixels"] for row in rows]
    for heading, key in (("Area [mm²]", "area_mm2"), ("Column", "column"), ("R [mm]", "r_mm")):
        assert table[heading] == pytest.approx([row[key] for row in rows])
    assert table["Mean of channel 1"] == [row["mean_1"] for row in rows]


def test_objects_that_are_gone_leave_the_region_and_new_ones_get_numbers_of_their_own(
    tile: Picture,
) -> None:
    before = squares(tile.step)
    new = np.zeros_like(before)
    new[0, 0, 0:2] = 1
    tile.update(tile.result(new, CUT))
    found = tile.numbers()
    np.testing.assert_array_equal(found[..., CUT:], before[..., CUT:])
    assert np.flatnonzero(found[..., :CUT]).tolist() == [0, 1]
    assert found[0, 0, 0] > before.max()
    assert sorted(tile.table()["Object"]) == np.unique(found)[1:].tolist()
    tile.update(tile.result(np.zeros_like(before), CUT))
    assert not tile.numbers()[..., :CUT].any()


@pytest.mark.parametrize("columns", [0, CUT])
@pytest.mark.parametrize("how", ["painted", "reviewed"])
def test_objects_that_a_person_edited_or_reviewed_stay(
    few: Picture, how: str, columns: int
) -> None:
    mine = np.zeros((1, SIDE, SIDE), bool)
    mine[0, 2:9, 2:8] = True
    name = few.segment(1)
    paint(few.objects, name, mine, few.node)
    few.objects.GetSegmentation().GetSegment(name).SetName("mitosis")
    if how == "reviewed":
        set_review_state(few.objects, name, ReviewState.COMPLETED)
    few.update(few.result(squares(few.step, SIZE - 1), columns), change_painted=how == "reviewed")
    np.testing.assert_array_equal(few.numbers() == 1, mine)
    assert few.objects.GetSegmentation().GetSegment(name).GetName() == "mitosis"
    below = few.numbers() == 1 + (squares(few.step)[0, 2] > 0).sum() // SIZE
    assert below.sum() == (SIZE - 1) ** 2
    few.update(few.result(squares(few.step), columns), change_painted=True, change_locked=True)
    np.testing.assert_array_equal(few.numbers()[..., :CUT], squares(few.step)[..., :CUT])
    assert few.table()["Pixels"][0] == SIZE**2


def test_objects_on_other_voxels_stay_in_the_scene(few: Picture) -> None:
    older = few.objects
    few.node.SetSpacing(0.4, 0.25, 1)
    few.image = few.scene.read(few.node)
    few.update(few.result(squares(few.step), CUT))
    assert few.objects is not older
    assert older.GetScene() is few.node.GetScene()
    assert older.GetSegmentation().GetNumberOfSegments() == squares(few.step).max()


@given(
    arrays(np.uint16, (1, 5, 6), elements=st.integers(0, 4)),
    arrays(np.uint16, (1, 5, 6), elements=st.integers(0, 4)),
    st.integers(1, 6),
)
def test_each_object_continues_one_that_it_overlaps_in_the_region(
    new: np.ndarray, older: np.ndarray, end: int
) -> None:
    box = (slice(0, 1), slice(0, 5), slice(0, end))
    found = successors(new, [older], box)
    assert len(set(found.values())) == len(found)
    for now, then in found.items():
        assert ((new == now) & (older == then))[box].any()
        assert now
        assert then
    for now, then in zip(new[box].ravel().tolist(), older[box].ravel().tolist(), strict=True):
        if now and then:
            assert now in found or then in found.values()
