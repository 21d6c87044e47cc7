"""The MRML side: volume nodes become `Volume`s, results become segmentation nodes.

Nothing here needs a window. `Scene` is the interface; behind it, each file has one purpose. Errors do not leave
half-made changes, because everything is planned before the scene changes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medsegai.models.card import ModelCard
from medsegai.models.refinement import Refinement
from medsegai.request import Candidates, SegmentationResult
from medsegai.volume import Volume
from medsegai.worker.requests import MeasurementResult, RefinementResult
from MedSegAILib.kept_choices import KeptChoices
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.panel_values import SegmentRow, StructureRow
from MedSegAILib.scene import (
    attachments,
    channels,
    copies,
    drawing,
    exporting,
    inputs,
    kept_choices,
    measuring,
    overlay,
    refining,
    review,
    sequences,
    statistics,
    structures,
    surfaces,
    uncertainty,
    views,
    visibility,
)
from MedSegAILib.scene.attachments import (
    CANDIDATES_REFERENCE,
    ENTROPY_REFERENCE,
    candidates_of,
)
from MedSegAILib.scene.exporting import ExportSource
from MedSegAILib.scene.inputs import transform_to_world
from MedSegAILib.scene.layers import check_labelmaps
from MedSegAILib.scene.measuring import Measurable
from MedSegAILib.scene.refining import Draft, RefinedPreview
from MedSegAILib.scene.reports import REPORT_ATTRIBUTE, report_of
from MedSegAILib.scene.review import ReviewState
from MedSegAILib.scene.segments import label_value, segment_id
from MedSegAILib.scene.surfaces import MakeSurfaces
from MedSegAILib.scene.uncertainty import Walk
from MedSegAILib.scene.undo import SaveUndo, no_undo
from MedSegAILib.scene.writing import Preview, Writer
from MedSegAILib.slicer_types import MRMLScene, Node, SegmentationNode, TableNode, VolumeNode
from MedSegAILib.uncertain_regions import Step, UncertainRegion

__all__ = [
    "CANDIDATES_REFERENCE",
    "ENTROPY_REFERENCE",
    "REPORT_ATTRIBUTE",
    "Draft",
    "ExportSource",
    "Measurable",
    "Preview",
    "RefinedPreview",
    "ReviewState",
    "Scene",
    "segment_id",
]


class Scene:
    """Reads inputs from a scene and writes results into it.

    Args:
        mrml_scene: the vtkMRMLScene.
        save_undo: the function that keeps the state of a segmentation before it changes; see
            `MedSegAILib.scene.undo`.
    """

    def __init__(self, mrml_scene: MRMLScene, save_undo: SaveUndo = no_undo) -> None:
        self._scene = mrml_scene
        self._writer = Writer(mrml_scene, save_undo)
        self._walk = Walk()

    @property
    def make_surfaces(self) -> MakeSurfaces:
        """The function that makes missing surfaces of segments; by default, at once."""
        return self._writer.make_surfaces

    @make_surfaces.setter
    def make_surfaces(self, make: MakeSurfaces) -> None:
        self._writer.make_surfaces = make

    # --- inputs ------------------------------------------------------------------------------------

    def is_present(self, node: Node) -> bool:
        """Whether a node is still in the scene."""
        return bool(self._scene.IsNodePresent(node))

    def is_closing(self) -> bool:
        """Whether the nodes are being removed, because the scene is closed."""
        return bool(self._scene.IsClosing())

    def choices_are_kept(self) -> bool:
        """Whether the scene has the panel's choices: see `kept_choices.are_kept`."""
        return kept_choices.are_kept(self._scene)

    def kept_choices(self) -> KeptChoices | None:
        """Return the panel's choices that the scene has, None if it has none."""
        return kept_choices.kept_choices(self._scene)

    def keep_choices(self, kept: KeptChoices) -> None:
        """Write the panel's choices into the scene, with which they are saved."""
        kept_choices.keep_choices(self._scene, kept)

    def forget_choices(self) -> None:
        """Remove the panel's choices from the scene."""
        kept_choices.forget_choices(self._scene)

    def volumes(self) -> list[VolumeNode]:
        """Return the volume nodes that can be inputs, in the order of the scene, without hidden ones."""
        return inputs.volumes(self._scene)

    def read(self, node: Node) -> Volume:
        """The image of a volume node at its place in the world: see `inputs.read`."""
        return inputs.read(node)

    def read_channels(self, nodes: Sequence[Node]) -> tuple[Volume, ...]:
        """One image per channel, all on one grid: see `inputs.read_channels`."""
        return inputs.read_channels(nodes)

    def guess_channels(self, card: ModelCard, nodes: Sequence[Node]) -> dict[str, Node]:
        """Return the node of each channel by its name, None if it is unknown: see `channels.guess`."""
        return channels.guess(card, nodes)

    def note_channels(self, segmentation: SegmentationNode, nodes: Mapping[str, Node]) -> None:
        """Note from which volumes a segmentation was made: see `channels.note`."""
        channels.note(segmentation, nodes)

    def channels_of(self, segmentation: SegmentationNode) -> dict[str, Node]:
        """Return the volumes from which a segmentation was made: see `channels.noted`."""
        return channels.noted(segmentation)

    def region(self, node: Node) -> tuple[float, ...]:
        """The box of a region of interest, for `SegmentationRequest.region`: see `inputs.region`."""
        return inputs.region(node)

    def new_region(self, volume: VolumeNode) -> Node:
        """A region of interest in the middle of a volume: see `inputs.new_region`."""
        return inputs.new_region(self._scene, volume)

    def frames(self, node: Node) -> Sequence[int]:
        """Return the frame numbers of a volume that shows a sequence; empty for others."""
        return sequences.frames(node)

    def current_frame(self, node: Node) -> int | None:
        """The frame that is shown now."""
        return sequences.current_frame(node)

    def checksum(self, node: Node) -> int:
        """Return a number that differs for other voxels: see `inputs.checksum`."""
        return inputs.checksum(node)

    def goes_along(self, node: Node, source: VolumeNode) -> bool:
        """Whether a node shows a sequence of the browser that shows the source."""
        return node is not None and sequences.goes_along(node, source)

    def read_frame(self, node: Node, number: int) -> Volume:
        """One frame of a sequence; the browser stays where it is: see `sequences.read_frame`."""
        return sequences.read_frame(node, number)

    # --- results -----------------------------------------------------------------------------------

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what the last result did not change, or where it went instead of the chosen output, in words."""
        return tuple(self._writer.notes)

    def write(
        self,
        source: VolumeNode,
        result: SegmentationResult,
        output: OutputChoice | None = None,
        frame: int | None = None,
    ) -> SegmentationNode:
        """Write a result into the scene, on the grid and under the transform of its source volume node.

        If the chosen segmentation has left the scene, or none of its segments matches, the result becomes a new
        one instead of being lost; `notes` says so.

        Args:
            output: the output; a new segmentation if None. With a frame, its node is the segmentation that an
                earlier frame of the job returned, or None for the first.
            frame: the frame of a sequence that was segmented.

        Returns:
            The segmentation node, which refers to the volumes of entropy and candidates, if there are any.

        Raises:
            InputError: the source has left the scene or has another size, or the segmentation is made of surfaces.
                The scene is not changed.
            GeometryError: source or segmentation have a parent transform that is not linear.
        """
        return self._writer.write(source, result, output or OutputChoice(), frame)

    def check_output(self, output: OutputChoice) -> None:
        """Find before a job what `write` would refuse after it.

        Raises:
            InputError: the chosen segmentation is not made of label maps.
            GeometryError: it has a parent transform that is not linear.
        """
        if output.mode is not OutputMode.NEW and output.node is not None:
            check_labelmaps(output.node)
            transform_to_world(output.node)

    def draw_alone(self, segmentation: SegmentationNode) -> None:
        """Draw a segmentation, and no other result that shows the same: see `drawing.draw_alone`."""
        drawing.draw_alone(self._scene, segmentation)

    def only_result(self) -> SegmentationNode:
        """Return the only result, or the only one that is shown; None if there is no such result."""
        return drawing.only_result(self._scene)

    def preview(
        self, source: VolumeNode, result: SegmentationResult, output: OutputChoice
    ) -> Preview:
        """Show what a result would change, before it is written.

        Raises:
            InputError, GeometryError: see `write`.
        """
        return Preview(self._writer, source, result, output)

    def settle_saved_previews(self) -> list[tuple[str, str]]:
        """Make the previews that a scene was saved with segmentations of their own: see `copies.settled`."""
        return copies.settled(self._scene)

    def show_3d(self, segmentation: SegmentationNode, shown: bool = True) -> None:
        """Show surfaces in the 3D views, which `make_surfaces` makes, or hide them."""
        segmentation.CreateDefaultDisplayNodes()
        segmentation.GetDisplayNode().SetVisibility3D(shown)
        if shown:
            self._writer.make_surfaces(segmentation)

    def surfaces(self, segmentation: SegmentationNode) -> Generator[tuple[int, int], None, None]:
        """Make missing surfaces, one with each step: see `surfaces.surfaces`."""
        return surfaces.surfaces(segmentation)

    def surfaces_are_shown(self, segmentation: SegmentationNode) -> bool:
        """Whether the 3D views show surfaces of a segmentation."""
        return surfaces.are_shown(segmentation)

    def candidates_of(self, segmentation: SegmentationNode) -> Candidates | None:
        """Return the candidates of each voxel, see `attachments.candidates_of`."""
        return candidates_of(segmentation)

    def report(self, segmentation: SegmentationNode) -> dict[str, Any]:
        """Return the origin of a segmentation, see `SegmentationResult.report`; empty if it is not the AI's."""
        return report_of(segmentation)

    def label_value(self, segmentation: SegmentationNode, segment: str) -> int | None:
        """The label that the AI wrote into a segment."""
        return label_value(segmentation, segment)

    # --- refinement --------------------------------------------------------------------------------

    def reference_volume(self, segmentation: SegmentationNode) -> VolumeNode:
        """Return the volume from which a segmentation was made, or None."""
        if segmentation is None:
            return None
        role = segmentation.GetReferenceImageGeometryReferenceRole()
        node = segmentation.GetNodeReference(role)
        return node if node is not None and node.IsA("vtkMRMLScalarVolumeNode") else None

    def segment_ids(self, segmentation: SegmentationNode, names: Sequence[str]) -> list[str]:
        """Return the ids of segments that are given by id or name; other texts are unchanged."""
        return structures.segment_ids(segmentation, names)

    def segments(self, segmentation: SegmentationNode) -> list[SegmentRow]:
        """Return the segments to choose from, without reading their voxels."""
        return structures.segments(segmentation)

    def draft(
        self,
        segmentation: SegmentationNode,
        refinements: Sequence[Refinement],
        segments: Sequence[str] = (),
        image: VolumeNode = None,
    ) -> Draft:
        """Read a segmentation for the worker, see `refining.draft`."""
        return refining.draft(segmentation, refinements, segments, image)

    def write_refined(self, draft: Draft, result: RefinementResult) -> SegmentationNode:
        """Write the refined draft into its segmentation, as one undo step.

        Returns:
            the segmentation node.

        Raises:
            InputError: it has left the scene, or was changed since it was read. It is not changed.
        """
        refining.apply_refinement(self._writer, draft, result)
        return draft.segmentation

    def preview_refined(self, draft: Draft, result: RefinementResult) -> RefinedPreview:
        """Show what a refinement would change, before it is written.

        Raises:
            InputError: see `write_refined`.
        """
        return RefinedPreview(self._writer, draft, result)

    # --- uncertainty, review, statistics -----------------------------------------------------------

    def uncertain_regions(self, segmentation: SegmentationNode) -> list[UncertainRegion]:
        """Return the uncertain regions, the most uncertain first: see `uncertainty.Walk.places`."""
        return self._walk.places(segmentation)

    def next_place(self, segmentation: SegmentationNode, by: int = 1) -> Step | None:
        """Continue the walk through the uncertain regions: see `uncertainty.Walk.step`."""
        return self._walk.step(segmentation, by)

    def walk_within(self, segmentation: SegmentationNode, segment: str) -> None:
        """Only walk the uncertain regions of one segment; "" for all segments."""
        uncertainty.walk_within(segmentation, segment)

    def walked_within(self, segmentation: SegmentationNode) -> str:
        """The segment whose uncertain regions are walked; "" for all."""
        return uncertainty.within(segmentation)

    def current_segment(self, segmentation: SegmentationNode) -> str:
        """The segment that the user is at, wherever it was chosen; "" for none."""
        return uncertainty.current_segment(segmentation)

    def set_current_segment(self, segmentation: SegmentationNode, segment: str) -> None:
        """Remember the segment that the user is at."""
        uncertainty.set_current_segment(segmentation, segment)

    def overlays(self, segmentation: SegmentationNode) -> tuple[str, ...]:
        """Return the kinds of maps that can be shown over the slices; the regions of the first are walked."""
        return tuple(attachments.maps_of(segmentation))

    def structures(self, segmentation: SegmentationNode) -> list[StructureRow]:
        """The segments as a table shows them: see `structures.rows`."""
        return structures.rows(segmentation)

    def jump(self, ras: Sequence[float]) -> None:
        """Show a place of the world in all slice views, and mark it: see `views.jump`."""
        views.jump(self._scene, ras)

    def center_of(
        self, segmentation: SegmentationNode, segment: str
    ) -> tuple[float, float, float] | None:
        """Return a position in the middle of a segment; None if it does not have voxels."""
        return uncertainty.center_of(segmentation, segment)

    def show_overlay(self, segmentation: SegmentationNode, kind: str) -> None:
        """Show a map over the slices, with a legend; "" removes it: see `overlay.show`."""
        overlay.show(self._scene, segmentation, kind)

    def shown_overlay(self, segmentation: SegmentationNode) -> str:
        """The map of a segmentation that a slice view shows, or "" if there is none."""
        return overlay.shown(self._scene, segmentation)

    def overlay_opacity(self, segmentation: SegmentationNode) -> float:
        """How opaque the maps of a segmentation are, from 0 to 1: see `overlay.opacity`."""
        return overlay.opacity(segmentation)

    def set_overlay_opacity(self, segmentation: SegmentationNode, opacity: float) -> None:
        """Set the opacity of the maps of a segmentation."""
        overlay.set_opacity(self._scene, segmentation, opacity)

    def review_state(self, segmentation: SegmentationNode, segment: str) -> ReviewState:
        """Return the review state of a segment."""
        return review.review_state(segmentation, segment)

    def set_review_state(
        self, segmentation: SegmentationNode, segment: str, state: ReviewState | str
    ) -> None:
        """Set the review state of a segment; a state may be given by its name."""
        review.set_review_state(segmentation, segment, ReviewState(state))

    def show_segments(
        self, segmentation: SegmentationNode, segments: Sequence[str], shown: bool
    ) -> None:
        """Show or hide segments in the views: see `visibility.set_shown`."""
        visibility.set_shown(segmentation, segments, shown)

    def show_only(self, segmentation: SegmentationNode, segments: Sequence[str]) -> None:
        """Show only these segments: see `visibility.show_only`."""
        visibility.show_only(segmentation, segments)

    def show_in_3d(
        self, segmentation: SegmentationNode, segments: Sequence[str], shown: bool
    ) -> None:
        """Show or hide surfaces of segments in 3D: see `visibility.show_in_3d`."""
        visibility.show_in_3d(segmentation, segments, shown)
        self.complete_surfaces(segmentation)

    def complete_surfaces(self, segmentation: SegmentationNode) -> None:
        """Call `make_surfaces` for missing surfaces in the 3D views, such as those of newly shown segments."""
        if surfaces.are_missing(segmentation):
            self._writer.make_surfaces(segmentation)

    def shown_segments(self, segmentation: SegmentationNode) -> dict[str, bool]:
        """Whether each segment is drawn, by id: see `visibility.is_shown`."""
        names = segmentation.GetSegmentation().GetSegmentIDs()
        return {name: visibility.is_shown(segmentation, name) for name in names}

    def watch_display(
        self, segmentation: SegmentationNode, changed: Callable[[], None]
    ) -> Callable[[], None]:
        """Report changes of a segmentation's display; the returned function ends it: see `visibility.watch`."""
        return visibility.watch(segmentation, changed)

    def smooth_surfaces(self, segmentation: SegmentationNode, factor: float) -> None:
        """Set the smoothing of surfaces, from 0 to 1; shown surfaces are made again.

        Raises:
            InputError: the segmentation is made of surfaces.
        """
        shown = self.surfaces_are_shown(segmentation)
        surfaces.set_smoothing(segmentation, factor)
        if shown:
            self._writer.make_surfaces(segmentation)

    def measurable(self, segmentation: SegmentationNode) -> Measurable:
        """Read the present segments for a measurement: see `measuring.measurable`."""
        return measuring.measurable(segmentation)

    def statistics(self, measured: Measurable, result: MeasurementResult) -> TableNode:
        """Make a table of the measurements, with a plot: see `statistics.table`."""
        found = statistics.rows(measured, result)
        return statistics.table(self._scene, measured.segmentation, found)

    def write_csv(self, measured: Measurable, result: MeasurementResult, path: Path | str) -> None:
        """Write the measurements to a file: see `statistics.write_csv`."""
        statistics.write_csv(statistics.rows(measured, result), path)

    def exported(
        self,
        segmentation: SegmentationNode,
        outputs: Mapping[str, object],
        dicom: tuple[str, str] = ("", ""),
        overwrite: bool = False,
    ) -> ExportSource:
        """Read a segmentation for an export by the worker: see `exporting.exported`."""
        return exporting.exported(segmentation, outputs, dicom, overwrite)
