"""A segmentation of the scene, refined: what changes, where it lies, and above all what must not change."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import slicer
from slicer.util import updateVolumeFromArray, vtkMatrixFromArray

from medsegai.errors import GeometryError, InputError, RequestError
from medsegai.progress import Progress
from medsegai.refinements import parse
from medsegai.request import Candidates
from medsegai.volume import Geometry
from medsegai.worker.refine_job import refine
from medsegai.worker.requests import RefinementResult
from MedSegAILib.scene import REPORT_ATTRIBUTE, Draft, ReviewState, Scene
from MedSegAILib.scene.layers import layers_of
from MedSegAILib.scene.nodes import nodes_of
from MedSegAILib.scene.segments import painted
from scene_images import (
    LEFT,
    LEFT_ID,
    MOVED,
    PLACES,
    SHAPE,
    STEM,
    STEM_ID,
    Room,
    add_volume,
    bending_transform,
    block,
    mask_on,
    node_ids,
    paint,
    result_for,
    two_blocks,
)
from segment_editor import undo_of

CLEAN = parse("islands:keep=1;smallest_ml=0")
INSIDE, OUTSIDE, STRAY = (6, 8, 11), (0, 0, 0), (8, 0, 13)
BESIDE = (4, 7, 10)


def speckled() -> np.ndarray:
    """Specks of the left structure inside of the stem and far away, and one of the stem."""
    labelmap = two_blocks()
    labelmap[INSIDE] = labelmap[OUTSIDE] = LEFT.value
    labelmap[STRAY] = STEM.value
    return labelmap


class Ward(Room):
    """A speckled segmentation in a scene whose Segment Editor can undo."""

    def __init__(
        self, mrml: Any, place: str = "oblique and swapped", moved: str = "turned"
    ) -> None:
        super().__init__(mrml, place, moved)
        self.mrml.RemoveNode(self.node)
        self.node = self.scene.write(self.volume, result_for(self.image, speckled()))
        self.editor.SetAndObserveSourceVolumeNode(self.volume)
        self.editor.SetAndObserveSegmentationNode(self.node)

    def made_scene(self) -> Scene:
        self.editor = self.mrml.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.logic = slicer.vtkSlicerSegmentEditorLogic()
        self.logic.SetMRMLScene(self.mrml)
        self.logic.SetSegmentEditorNode(self.editor)
        return Scene(self.mrml, undo_of(self.logic))

    def draft(self, *segments: str, image: Any = None, **settings: Any) -> Draft:
        return self.scene.draft(self.node, [CLEAN.with_options(**settings)], segments, image)

    def refine(self, *segments: str, **settings: Any) -> RefinementResult:
        draft = self.draft(*segments, **settings)
        result = refine(draft.request, Progress())
        self.scene.write_refined(draft, result)
        return result

    def state(self) -> dict[str, bytes]:
        ids = self.node.GetSegmentation().GetSegmentIDs()
        return {name: self.mask(name).tobytes() for name in ids}

    def complete(self, segment: str) -> None:
        self.scene.set_review_state(self.node, segment, ReviewState.COMPLETED)

    def add(self, name: str, mask: np.ndarray) -> None:
        self.node.GetSegmentation().AddEmptySegment(name, name.capitalize())
        paint(self.node, name, mask, self.volume)


@pytest.fixture
def room(mrml: Any) -> Ward:
    return Ward(mrml)


# --- where it lies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", MOVED)
@pytest.mark.parametrize("place", PLACES)
def test_specks_go_wherever_the_segmentation_lies(mrml: Any, place: str, moved: str) -> None:
    room = Ward(mrml, place, moved)
    draft = room.draft()
    assert draft.request.labelmap.geometry.matches(room.image.geometry)
    result = room.refine()
    np.testing.assert_array_equal(room.mask(LEFT_ID), two_blocks() == LEFT.value)
    np.testing.assert_array_equal(room.mask(STEM_ID), two_blocks() == STEM.value)
    assert room.node.GetSegmentation().GetNumberOfLayers() == 1
    where = result.report[0]["structures"][0]["where_ras"]
    places = [INSIDE, OUTSIDE] if result.report[0]["structures"][0]["value"] == 3 else None
    if places:
        ijk = np.mean([place[::-1] for place in places], axis=0)
        expected = room.image.geometry.ijk_to_ras @ [*ijk, 1]
        assert where == pytest.approx(expected[:3].tolist(), abs=1e-6)


def test_volumes_in_words_are_those_of_the_world(mrml: Any) -> None:
    """A transform that stretches space makes a voxel larger."""
    room = Ward(mrml, "plain", "no transform")
    stretched = np.diag([2.0, 2.0, 5.0, 1.0])
    transform = mrml.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(vtkMatrixFromArray(stretched))
    room.node.SetAndObserveTransformNodeID(transform.GetID())
    result = refine(room.draft().request, Progress())
    assert result.report[0]["ml"] == pytest.approx(3 * 20 / 1000)


def test_a_cropped_segmentation_keeps_its_voxels(room: Ward) -> None:
    """Slicer crops label maps to what they hold; a segmentation is edited on its volume's voxels all the same."""
    room.node.GetSegmentation().RemoveSegment(STEM_ID)
    room.node.GetSegmentation().CollapseBinaryLabelmaps(False)
    paint(room.node, LEFT_ID, block(slice(2, 5), slice(2, 6), slice(3, 8)), room.volume)
    assert layers_of(room.node)[0].geometry.shape != SHAPE
    assert room.draft().request.labelmap.geometry.shape == SHAPE
    before = room.mask(LEFT_ID)
    room.refine()
    np.testing.assert_array_equal(room.mask(LEFT_ID), before)


def test_an_image_on_other_voxels_can_be_looked_at(room: Ward) -> None:
    other = room.mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    updateVolumeFromArray(other, np.random.default_rng(0).normal(size=(20, 21, 22)))
    other.SetIJKToRASMatrix(vtkMatrixFromArray(PLACES["mirrored"]))
    draft = room.scene.draft(room.node, [parse("snap")], (LEFT_ID,), other)
    assert draft.request.image is not None
    assert draft.request.image.voxels.shape == (20, 21, 22)
    result = refine(draft.request, Progress())
    assert result.labelmap.voxels.shape == SHAPE


def test_the_volume_of_a_segmentation_is_offered(room: Ward) -> None:
    assert room.scene.reference_volume(room.node) is room.volume
    lonely = room.mrml.AddNewNodeByClass("vtkMRMLSegmentationNode")
    assert room.scene.reference_volume(lonely) is None


# --- what must not change --------------------------------------------------------------------------


def test_segments_that_were_not_chosen_stay_bit_by_bit(room: Ward) -> None:
    before = room.mask(STEM_ID)
    result = room.refine(LEFT_ID)
    np.testing.assert_array_equal(room.mask(STEM_ID), before)
    np.testing.assert_array_equal(room.mask(LEFT_ID), two_blocks() == LEFT.value)
    assert any("became background" in text for text in result.words)


def test_completed_segments_are_never_touched(room: Ward) -> None:
    room.complete(STEM_ID)
    before = room.mask(STEM_ID)
    room.refine()
    np.testing.assert_array_equal(room.mask(STEM_ID), before)
    np.testing.assert_array_equal(room.mask(LEFT_ID), two_blocks() == LEFT.value)
    assert room.scene.notes == ("Not changed, because their review is completed: Brain-Stem.",)
    assert room.scene.review_state(room.node, STEM_ID) is ReviewState.COMPLETED
    room.complete(LEFT_ID)
    for chosen in ((), (LEFT_ID,)):
        with pytest.raises(InputError, match="review of these segments is completed"):
            room.draft(*chosen)


def test_smoothing_one_structure_leaves_its_neighbour_and_opens_no_gap(room: Ward) -> None:
    rugged = block(slice(1, 4), slice(2, 6), slice(8, 12))
    rugged[2, 3, 8] = False
    room.add("neighbour", rugged)
    before, together = room.mask("neighbour"), room.mask("neighbour") | room.mask(LEFT_ID)
    draft = room.scene.draft(room.node, [parse("smoothing:sigma_mm=2")], (LEFT_ID,))
    room.scene.write_refined(draft, refine(draft.request, Progress()))
    np.testing.assert_array_equal(room.mask("neighbour"), before)
    border = block(slice(1, 4), slice(2, 6), slice(7, 9)) & together
    assert not (border & ~(room.mask("neighbour") | room.mask(LEFT_ID))).any()


def test_segments_that_overlap_are_refused_together_and_done_alone(room: Ward) -> None:
    room.add("lesion", block(slice(2, 6), slice(4, 9), slice(5, 9)))
    for chosen in ((), (LEFT_ID, "lesion")):
        with pytest.raises(InputError, match="Left hippocampus and Lesion overlap"):
            room.draft(*chosen)
    before = room.mask("lesion")
    room.refine(LEFT_ID)
    np.testing.assert_array_equal(room.mask("lesion"), before)
    np.testing.assert_array_equal(room.mask(LEFT_ID), two_blocks() == LEFT.value)


def test_a_segment_on_a_lattice_of_its_own_stays_as_it_is(room: Ward) -> None:
    """As imported from another scan: its label map is not resampled, nor its values changed."""
    other = add_volume(room.mrml, PLACES["mirrored"])
    fine = room.scene.write(other, result_for(room.scene.read(other), two_blocks()))
    segment = fine.GetSegmentation().GetSegment(STEM_ID)
    room.node.GetSegmentation().AddSegment(segment, "imported")
    room.node.GetSegmentation().RemoveSegment(STEM_ID)
    before = {tuple(layer.values): layer.voxels.copy() for layer in layers_of(room.node)}
    room.refine(LEFT_ID)
    after = {tuple(layer.values): layer.voxels for layer in layers_of(room.node)}
    np.testing.assert_array_equal(after[("imported",)], before[("imported",)])


def test_name_colour_code_and_review_stay(room: Ward) -> None:
    segment = room.node.GetSegmentation().GetSegment(LEFT_ID)
    segment.SetName("Hippo L")
    segment.SetColor(0.1, 0.2, 0.3)
    room.scene.set_review_state(room.node, LEFT_ID, ReviewState.IN_PROGRESS)
    result = room.refine()
    segment = room.node.GetSegmentation().GetSegment(LEFT_ID)
    assert (segment.GetName(), segment.GetColor()) == ("Hippo L", (0.1, 0.2, 0.3))
    assert room.scene.review_state(room.node, LEFT_ID) is ReviewState.IN_PROGRESS
    assert "Hippo L -2 +0 voxels" in result.words[0]


def test_what_the_ai_wrote_stays_the_ais_and_what_a_person_painted_stays_theirs(
    room: Ward,
) -> None:
    room.refine()
    assert painted(room.node) == frozenset()
    room.add("mine", block(slice(0, 2), slice(8, 10), slice(1, 4)) | block(*[slice(8, 9)] * 3))
    larger = room.mask(LEFT_ID) | block(slice(0, 3), slice(1, 3), slice(2, 4))
    larger[OUTSIDE] = True
    paint(room.node, LEFT_ID, larger, room.volume)
    room.refine()
    assert painted(room.node) == {"mine", LEFT_ID}
    assert not room.mask("mine")[8, 8, 8]
    assert not room.mask(LEFT_ID)[OUTSIDE]


def test_where_nothing_changes_nothing_is_written(room: Ward) -> None:
    room.refine()
    images = [layer.voxels for layer in layers_of(room.node)]
    room.logic.ClearUndoState()
    result = room.refine()
    assert result.words == ()
    assert not room.logic.CanUndo()
    for before, layer in zip(images, layers_of(room.node), strict=True):
        np.testing.assert_array_equal(before, layer.voxels)


# --- probabilities ---------------------------------------------------------------------------------


def with_candidates(room: Ward, second: int, p_second: int = 100) -> None:
    """The AI thought that the specks could be something else."""
    labelmap = speckled()
    labelmap[BESIDE] = LEFT.value
    specks = labelmap != two_blocks()
    runner_up = np.where(specks, second, 0).astype(np.uint16)
    known = np.where(specks, p_second, 0).astype(np.uint8)
    candidates = Candidates(labelmap, runner_up, np.full(SHAPE, 150, np.uint8), known)
    result = dataclasses.replace(result_for(room.image, labelmap), candidates=candidates)
    room.mrml.RemoveNode(room.node)
    room.node = room.scene.write(room.volume, result)


def test_freed_voxels_go_to_the_next_most_probable_structure(room: Ward) -> None:
    with_candidates(room, STEM.value)
    room.refine()
    assert room.mask(STEM_ID)[INSIDE]
    assert room.mask(STEM_ID)[BESIDE], "although there is background at five of its faces"
    assert not room.mask(STEM_ID)[OUTSIDE], "for it would be an island there too"


def test_candidates_are_read_for_those_that_look_at_them_alone(room: Ward) -> None:
    with_candidates(room, STEM.value)
    for text, wanted in (("largest_component", False), ("islands", True), ("snap", True)):
        draft = room.scene.draft(room.node, [parse("largest_component"), parse(text)])
        assert (draft.request.candidates is not None) is wanted, text


def test_candidates_that_no_segment_stands_for_are_not_believed(room: Ward) -> None:
    with_candidates(room, 4)  # the structure that was not found
    room.refine()
    assert not room.mask(STEM_ID)[BESIDE]
    np.testing.assert_array_equal(room.mask(LEFT_ID), two_blocks() == LEFT.value)
    np.testing.assert_array_equal(room.mask(STEM_ID), two_blocks() == STEM.value)


def test_candidates_are_laid_on_the_voxels_of_the_segmentation(room: Ward) -> None:
    """They lie where the volume does, also where the segmentation is edited on more voxels than that."""
    with_candidates(room, STEM.value)
    own = Geometry(SHAPE, PLACES["oblique and swapped"])
    wide = own.cropped((-2, 0, -1), (SHAPE[0] + 2, SHAPE[1], SHAPE[2] + 3))
    larger = add_volume(room.mrml, wide.ijk_to_ras, MOVED["turned"])
    updateVolumeFromArray(larger, np.zeros(wide.shape, np.int16))
    room.node.SetAndObserveTransformNodeID(larger.GetTransformNodeID())
    room.node.SetReferenceImageGeometryParameterFromVolumeNode(larger)
    request = room.draft().request
    assert request.labelmap.voxels.shape == wide.shape
    assert request.candidates is not None
    there = (slice(2, None), slice(None), slice(1, -2))
    first, p_second = request.candidates.first, request.candidates.p_second
    np.testing.assert_array_equal(request.labelmap.voxels[there], first[there])
    assert first[there][BESIDE] == LEFT.value
    assert int((first > 0).sum()) == int((first[there] > 0).sum())
    np.testing.assert_array_equal(p_second[there] > 0, first[there] != two_blocks())


# --- undo and preview ------------------------------------------------------------------------------


def test_one_step_takes_all_of_it_back_and_another_brings_it_again(room: Ward) -> None:
    before = room.state()
    room.refine()
    after = room.state()
    assert after != before
    room.logic.Undo()
    assert room.state() == before
    assert not room.logic.CanUndo(), "one step was enough"
    assert painted(room.node) == frozenset()
    room.logic.Redo()
    assert room.state() == after


def test_without_an_editor_a_note_says_that_there_is_no_undo(room: Ward) -> None:
    scene, draft = Scene(room.mrml), room.draft()
    scene.write_refined(draft, refine(draft.request, Progress()))
    assert any("cannot undo" in note for note in scene.notes)


def preview(room: Ward) -> Any:
    draft = room.draft()
    return room.scene.preview_refined(draft, refine(draft.request, Progress()))


def test_a_preview_shows_the_change_and_changes_nothing(room: Ward) -> None:
    before = room.state()
    shown = preview(room)
    assert room.state() == before
    assert "preview" in shown.node.GetName()
    np.testing.assert_array_equal(mask_on(shown.node, LEFT_ID), two_blocks() == LEFT.value)
    assert shown.node.GetTransformNodeID() == room.node.GetTransformNodeID()
    assert shown.node.GetDisplayNode().GetVisibility()
    assert not room.node.GetDisplayNode().GetVisibility(), "two of them would hide each other"


def test_a_rejected_preview_leaves_the_scene_as_it_was(room: Ward) -> None:
    nodes, before = node_ids(room.mrml), room.state()
    preview(room).reject()
    assert (node_ids(room.mrml), room.state()) == (nodes, before)
    assert room.node.GetDisplayNode().GetVisibility()
    assert not room.logic.CanUndo()


def test_an_accepted_preview_is_the_change_in_one_step_with_what_was_edited(room: Ward) -> None:
    before, shown = room.state(), preview(room)
    drawn = block(slice(2, 4), slice(3, 5), slice(4, 6))
    paint(shown.node, LEFT_ID, drawn, room.volume)
    assert shown.accept() is room.node
    np.testing.assert_array_equal(room.mask(LEFT_ID), drawn)
    np.testing.assert_array_equal(room.mask(STEM_ID), two_blocks() == STEM.value)
    assert not room.mrml.IsNodePresent(shown.node)
    room.logic.Undo()
    assert room.state() == before


def test_a_preview_of_what_was_changed_meanwhile_is_refused(room: Ward) -> None:
    shown = preview(room)
    paint(room.node, LEFT_ID, block(slice(2, 4), slice(3, 5), slice(4, 6)), room.volume)
    before = room.state()
    with pytest.raises(InputError, match="changed while it was refined"):
        shown.accept()
    assert room.state() == before
    assert not room.mrml.IsNodePresent(shown.node)
    assert room.node.GetDisplayNode().GetVisibility()


@pytest.mark.parametrize("ended_by", ["apply", "another choice"])
def test_a_preview_that_was_edited_is_never_thrown_away_unasked(room: Ward, ended_by: str) -> None:
    shown, drawn = preview(room), block(slice(2, 4), slice(3, 5), slice(4, 6))
    paint(shown.node, LEFT_ID, drawn, room.volume)
    if ended_by == "apply":
        paint(room.node, STEM_ID, block(slice(0, 1), slice(3, 5), slice(4, 6)), room.volume)
        with pytest.raises(InputError, match=r"Refine it again\. The preview had been edited"):
            shown.accept()
    else:
        assert f"stays in the scene as {room.node.GetName()} preview" in shown.withdraw()
    np.testing.assert_array_equal(mask_on(shown.node, LEFT_ID), drawn)
    assert room.node.GetDisplayNode().GetVisibility()
    assert not shown.node.GetDisplayNode().GetVisibility()
    found = nodes_of(room.mrml, "vtkMRMLSegmentationNode")
    assert found == [room.node, shown.node], "the marks are gone"


def test_an_answer_to_what_was_completed_or_deleted_meanwhile_is_refused(room: Ward) -> None:
    draft = room.draft()
    result = refine(draft.request, Progress())
    room.complete(LEFT_ID)
    before = room.state()
    with pytest.raises(InputError, match="changed while it was refined"):
        room.scene.write_refined(draft, result)
    assert room.state() == before
    room.mrml.RemoveNode(room.node)
    for action in (room.scene.write_refined, room.scene.preview_refined):
        with pytest.raises(InputError, match="has left the scene"):
            action(draft, result)


def test_a_preview_that_was_deleted_cannot_be_accepted(room: Ward) -> None:
    before, shown = room.state(), preview(room)
    room.mrml.RemoveNode(shown.node)
    with pytest.raises(InputError, match="preview has left"):
        shown.accept()
    assert room.state() == before
    assert room.node.GetDisplayNode().GetVisibility()


# --- what is told, and what is refused -------------------------------------------------------------


def test_the_report_of_the_segmentation_tells_of_it(room: Ward) -> None:
    room.refine()
    room.refine(LEFT_ID)
    report = json.loads(room.node.GetAttribute(REPORT_ATTRIBUTE))
    assert [item["voxels"] for item in report["refined"]] == [3]
    assert report["structures"], "what the AI told is still there"
    assert report["refined"][0]["settings"]["labels"] == [LEFT.value, STEM.value]


def test_surfaces_follow_the_label_maps(room: Ward) -> None:
    room.scene.show_3d(room.node)
    before = room.node.GetClosedSurfaceInternalRepresentation(LEFT_ID).GetNumberOfPoints()
    room.refine()
    after = room.node.GetClosedSurfaceInternalRepresentation(LEFT_ID).GetNumberOfPoints()
    assert 0 < after < before


def test_what_cannot_be_refined_is_refused_with_a_reason(room: Ward) -> None:
    with pytest.raises(InputError, match="There is no segmentation"):
        room.scene.draft(None, [CLEAN])
    with pytest.raises(RequestError, match="Name the segments"):
        room.draft(labels=[3])
    with pytest.raises(InputError, match="no longer has the segment nobody"):
        room.draft("nobody")
    empty = room.mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Nothing")
    with pytest.raises(InputError, match="Nothing does not have voxels"):
        room.scene.draft(empty, [CLEAN])
    room.node.GetSegmentation().AddEmptySegment("empty", "Empty")
    with pytest.raises(InputError, match="are empty"):
        room.draft("empty")
    room.node.SetAndObserveTransformNodeID(bending_transform(room.mrml).GetID())
    with pytest.raises(GeometryError, match="is not linear"):
        room.draft()


def test_surfaces_alone_are_refused(room: Ward) -> None:
    segments = room.node.GetSegmentation()
    room.node.CreateClosedSurfaceRepresentation()
    segments.SetSourceRepresentationName(
        slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    )
    with pytest.raises(InputError, match="made of surfaces"):
        room.draft()


def test_many_segments_have_values_of_their_own(mrml: Any) -> None:
    """Those that the AI gave, and free ones for what a person drew."""
    room = Ward(mrml, "plain", "no transform")
    segments = room.node.GetSegmentation()
    for number in range(60):
        name = f"drawn{number}"
        segments.AddEmptySegment(name, name)
        j, i = number % 10, number // 10
        mask = block(slice(8, 9), slice(j, j + 1), slice(i, i + 1))
        paint(room.node, name, mask, room.volume)
    draft = room.draft()
    assert len(draft.segments) == 62
    assert draft.segments[LEFT.value] == LEFT_ID
    assert draft.segments[STEM.value] == STEM_ID
    assert len(np.unique(draft.request.labelmap.voxels)) == 63
