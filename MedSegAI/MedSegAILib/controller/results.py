"""The control of the table of results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from medsegai.errors import InputError, MedSegAIError
from medsegai.models.quality import GOOD
from MedSegAILib.controller import texts
from MedSegAILib.panel_values import DONE, Choice, StructureRow
from MedSegAILib.slicer_types import Node, SegmentationNode, VolumeNode
from MedSegAILib.translation import tr as _
from MedSegAILib.uncertain_regions import Step, step_in_words

ANOTHER_SCAN = _(
    "{name} was made from {scan}. Choose {scan} and the other channels of the model, and press the "
    "button again."
)

REMOVED = _(
    "Segments were removed by another module, so the table was updated and nothing else was done. "
    "Please choose again."
)


class ResultsScene(Protocol):
    """See `scene.Scene`."""

    def is_present(self, node: Node) -> bool: ...
    def only_result(self) -> SegmentationNode: ...
    def draw_alone(self, segmentation: SegmentationNode) -> None: ...
    def structures(self, segmentation: SegmentationNode) -> Sequence[StructureRow]: ...
    def report(self, segmentation: SegmentationNode) -> Mapping[str, Any]: ...
    def show_segments(
        self, segmentation: SegmentationNode, segments: Sequence[str], shown: bool
    ) -> None: ...
    def show_only(self, segmentation: SegmentationNode, segments: Sequence[str]) -> None: ...
    def show_in_3d(
        self, segmentation: SegmentationNode, segments: Sequence[str], shown: bool
    ) -> None: ...
    def smooth_surfaces(self, segmentation: SegmentationNode, factor: float) -> None: ...
    def overlays(self, segmentation: SegmentationNode) -> tuple[str, ...]: ...
    def set_review_state(
        self, segmentation: SegmentationNode, segment: str, state: object
    ) -> None: ...
    def next_place(self, segmentation: SegmentationNode, by: int = 1) -> Step | None: ...
    def walk_within(self, segmentation: SegmentationNode, segment: str) -> None: ...
    def walked_within(self, segmentation: SegmentationNode) -> str: ...
    def current_segment(self, segmentation: SegmentationNode) -> str: ...
    def set_current_segment(self, segmentation: SegmentationNode, segment: str) -> None: ...
    def reference_volume(self, segmentation: SegmentationNode) -> VolumeNode: ...
    def channels_of(self, segmentation: SegmentationNode) -> Mapping[str, VolumeNode]: ...
    def jump(self, ras: Sequence[float]) -> None: ...
    def center_of(self, segmentation: SegmentationNode, segment: str) -> Sequence[float] | None: ...
    def show_overlay(self, segmentation: SegmentationNode, kind: str) -> None: ...
    def shown_overlay(self, segmentation: SegmentationNode) -> str: ...
    def overlay_opacity(self, segmentation: SegmentationNode) -> float: ...
    def set_overlay_opacity(self, segmentation: SegmentationNode, opacity: float) -> None: ...
    def show_3d(self, segmentation: SegmentationNode, shown: bool = True) -> None: ...
    def surfaces_are_shown(self, segmentation: SegmentationNode) -> bool: ...
    def complete_surfaces(self, segmentation: SegmentationNode) -> None: ...
    def shown_segments(self, segmentation: SegmentationNode) -> Mapping[str, bool]: ...
    def watch_display(
        self, segmentation: SegmentationNode, changed: Callable[[], None]
    ) -> Callable[[], None]: ...


class Results:
    """Connects the table of results and the scene.

    Args:
        panel: the panel, which shows messages and errors; its part `results` is the table.
        scene: the scene, see `ResultsScene`.
        host: the application, which opens the Segment Editor and keeps cases.
    """

    def __init__(self, panel: Any, scene: ResultsScene, host: Any) -> None:
        self._panel, self._scene, self._host = panel, scene, host
        self._view = panel.results
        self._node: Node = None
        self._rows: dict[str, StructureRow] = {}
        self._is_used = False
        self._stop_watching: Callable[[], None] = _nothing
        view = self._view
        view.segmentation_chosen.connect(self.show)
        view.structure_chosen.connect(self.guarded(self._go_to))
        view.review_chosen.connect(self.guarded(self._review))
        view.shown_chosen.connect(self.guarded(self._show_segments))
        view.only_chosen.connect(self.guarded(self._show_only))
        view.in_3d_chosen.connect(self.guarded(self._show_in_3d))
        view.smoothing_chosen.connect(self.guarded(self._smooth))
        view.good_completed.connect(self.guarded(self._complete_good))
        view.done_requested.connect(self.guarded(self._complete_and_go_on))
        view.next_requested.connect(self.guarded(self._go_to_next))
        view.places_within.connect(self.guarded(self._walk_within))
        view.overlay_chosen.connect(self.guarded(self._choose_overlay))
        view.opacity_chosen.connect(self.guarded(self._choose_opacity))
        view.surfaces_shown.connect(self.guarded(self._show_surfaces))
        view.correct_requested.connect(self.guarded(self._correct))
        view.keep_requested.connect(self.guarded(self._keep))

    def show(self, node: Node) -> None:
        """Show the segments of a segmentation node, with the user's segment selected; None shows nothing.

        Messages about another segmentation are removed.
        """
        if node is not self._node:
            self._panel.show_message("")
            self._watch(node)
            self._is_used = False
        self._node = node
        rows = self._rows_of(node)
        self._rows = {row.segment_id: row for row in rows}
        self._view.show(rows, self._scene.overlays(node) if rows else ())
        self._show_verdict()
        if rows:
            self._show_overlay()
            self._view.show_surfaces(self._scene.surfaces_are_shown(node))
            self._view.show_places_within(self._scene.walked_within(node))
            self._view.select(self._scene.current_segment(node))

    def _rows_of(self, node: Node) -> Sequence[StructureRow]:
        """Return the structures of a segmentation; none, with a message, if it cannot be read."""
        try:
            return () if node is None else self._scene.structures(node)
        except MedSegAIError as error:
            self._panel.show_error(str(error))
            return ()

    def _watch(self, node: Node) -> None:
        """Show a segmentation in the views and follow its display, instead of the previous one's."""
        self._stop_watching()
        self._stop_watching = _nothing
        if node is not None:
            self._scene.draw_alone(node)
            self._stop_watching = self._scene.watch_display(node, self._follow_display)

    def _follow_display(self) -> None:
        """Update the table, because another module may have shown or hidden segments, also in 3D."""
        if not self._scene.is_present(self._node):
            return
        rows = {
            name: replace(self._rows[name], shown=shown)
            for name, shown in self._scene.shown_segments(self._node).items()
            if name in self._rows and self._rows[name].shown != shown
        }
        if rows:
            self._update(rows)
        self._scene.complete_surfaces(self._node)

    def show_chosen(self, node: Node) -> None:
        """Show the result of a job, also in the selector."""
        self._view.choose(node)
        if node is not self._node:  # otherwise the selector has emitted its signal
            self.show(node)
        else:
            self.refresh()

    def is_reviewed_instead_of(self, source: VolumeNode) -> bool:
        """Whether the user works in the table on the result of another scan, since the last job was started."""
        if not self._is_used or self._node is None or not self._scene.is_present(self._node):
            return False
        return self._scene.reference_volume(self._node) not in (None, source)

    def expect(self) -> None:
        """Note that the user has started a job, and expects its result in the table."""
        self._is_used = False

    def show_only_one(self) -> None:
        """If nothing is shown and the scene has one result, show it, because a scene was opened."""
        node = self._scene.only_result()
        if self._node is None and node is not None:
            self.show_chosen(node)

    @property
    def node(self) -> Node:
        """The segmentation node that is shown, or None."""
        return self._node

    def choice(self) -> Choice:
        """Return the user's choice, with the scan of the shown segmentation instead of another one.

        The scan that is chosen at the top of the page may be that of the next patient. For a model of several
        images, all are those from which the segmentation was made.

        Raises:
            InputError: the model takes several images, the chosen ones do not begin with the scan, and it is not
                known which belong to it, or one of them has left the scene.
        """
        choice, scan = self._panel.choice(), self._scene.reference_volume(self._node)
        if scan is None or scan is choice.node:
            return choice
        if len(choice.nodes) == 1:
            return replace(choice, nodes=dict.fromkeys(choice.nodes, scan))
        noted = self._scene.channels_of(self._node)
        if None in noted.values() or next(iter(noted), None) != next(iter(choice.nodes)):
            names = {"name": self._node.GetName(), "scan": scan.GetName()}
            raise InputError(ANOTHER_SCAN.format(**names))
        return replace(choice, nodes={name: noted.get(name) for name in choice.nodes})

    def refresh(self) -> None:
        """Show the segments again, which may have been edited since."""
        if self._node is not None and self._scene.is_present(self._node):
            self.show(self._node)

    def _go_to(self, segment: str) -> None:
        self._scene.set_current_segment(self._node, segment)
        place = self._scene.center_of(self._node, segment)
        if place is None:
            self._panel.show_message(_("This segment is empty."))
        else:
            self._scene.jump(place)

    def _review(self, segments: Sequence[str], state: str) -> None:
        """Set the review state of segments."""
        for segment in segments:
            self._scene.set_review_state(self._node, segment, state)
        self._update({name: replace(self._rows[name], review=state) for name in segments})

    def _complete_good(self) -> None:
        """Complete all segments of good quality, and go to the first other one."""
        good = [row.segment_id for row in self._rows.values() if row.quality == GOOD]
        self._review(good, DONE)
        self._go_on()

    def _complete_and_go_on(self, segments: Sequence[str]) -> None:
        self._review(segments, DONE)
        self._go_on()

    def _go_on(self) -> None:
        segment = self._view.next_to_check()
        if segment:
            self._view.select(segment)
            self._go_to(segment)

    def _show_segments(self, segments: Sequence[str], shown: bool) -> None:
        self._scene.show_segments(self._node, segments, shown)
        self._update({name: replace(self._rows[name], shown=shown) for name in segments})

    def _show_only(self, segments: Sequence[str]) -> None:
        self._scene.show_only(self._node, segments)
        every = self._rows.items()
        self._update({name: replace(row, shown=name in segments) for name, row in every})

    def _show_in_3d(self, segments: Sequence[str], shown: bool) -> None:
        self._scene.show_in_3d(self._node, segments, shown)

    def _smooth(self, factor: float) -> None:
        self._scene.smooth_surfaces(self._node, factor)

    def _update(self, rows: Mapping[str, StructureRow]) -> None:
        """Show changed rows."""
        self._rows.update(rows)
        self._view.update(tuple(rows.values()))
        self._show_verdict()

    def _show_verdict(self) -> None:
        """Show the summary of the present table, so that no summary of an older result stays."""
        report = self._scene.report(self._node) if self._rows else {}
        self._view.show_verdict(texts.verdict(tuple(self._rows.values()), report))

    def _walk_within(self, segment: str) -> None:
        self._scene.walk_within(self._node, segment)

    def _go_to_next(self) -> None:
        step = self._scene.next_place(self._node)
        if step is not None:
            self._scene.jump(step.place.ras)
            self._view.select(step.place.segment_id)
        self._panel.show_message(step_in_words(step))

    def _choose_overlay(self, kind: str) -> None:
        try:
            self._scene.show_overlay(self._node, kind)
        finally:
            self._show_overlay()

    def _choose_opacity(self, opacity: float) -> None:
        self._scene.set_overlay_opacity(self._node, opacity)

    def _show_overlay(self) -> None:
        """Show which map is over the image now."""
        scene, node = self._scene, self._node
        self._view.show_overlay(scene.shown_overlay(node), scene.overlay_opacity(node))

    def _show_surfaces(self, shown: bool) -> None:
        self._scene.show_3d(self._node, shown)

    def _correct(self) -> None:
        image = self._scene.reference_volume(self._node) or self._panel.choice().node
        segment = self._scene.current_segment(self._node)
        self._host.open_editor(self._node, image, segment)

    def _keep(self) -> None:
        """Keep the case; the host asks for the user's consent, without which nothing is kept or shown."""
        message = self._host.keep_case(self.choice(), self._node)
        if message:
            self._panel.show_message(message)

    def guarded(self, action: Callable[..., None]) -> Callable[..., None]:
        """Return a slot for a signal that ignores nodes and segments that were removed, and shows errors."""

        def guarded(*values: object) -> None:
            if self._node is None:
                return
            if not self._scene.is_present(self._node):
                name = self._node.GetName()
                self.show(None)
                self._panel.show_error(
                    _("The segmentation {name} has left the scene.").format(name=name)
                )
                return
            if self._rows.keys() - self._scene.shown_segments(self._node).keys():
                self.refresh()
                self._panel.show_message(REMOVED)
                return
            self._is_used = True
            try:
                action(*values)
            except MedSegAIError as error:
                self._panel.show_error(str(error))

        return guarded


def _nothing() -> None:
    """Do nothing, because nothing is watched."""
