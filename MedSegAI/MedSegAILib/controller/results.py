"""What the table of results shows and does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from medsegai.errors import MedSegAIError
from MedSegAILib.translation import tr as _
from MedSegAILib.view import StructureRow


class ResultsScene(Protocol):
    """See `scene.Scene`."""

    def is_present(self, node: Any) -> bool: ...
    def structures(self, segmentation: Any) -> Sequence[StructureRow]: ...
    def knows_uncertainty(self, segmentation: Any) -> bool: ...
    def set_review_state(self, segmentation: Any, segment: str, state: Any) -> None: ...
    def doubtful_places(self, segmentation: Any) -> Sequence[Any]: ...
    def jump(self, ras: Sequence[float]) -> None: ...
    def center_of(self, segmentation: Any, segment: str) -> Sequence[float] | None: ...
    def show_uncertainty(self, segmentation: Any, shown: bool) -> None: ...
    def show_3d(self, segmentation: Any, shown: bool) -> None: ...


class Results:
    """Joins the table of results and the scene.

    Args:
        panel: shows messages and errors; its part `results` is the table.
        scene: see `ResultsScene`.
        host: opens the Segment Editor, and keeps cases.
    """

    def __init__(self, panel: Any, scene: ResultsScene, host: Any) -> None:
        self._panel, self._scene, self._host = panel, scene, host
        self._view = panel.results
        self._node: Any = None
        self._places: list[Any] | None = None
        self._next = 0
        view = self._view
        view.segmentation_chosen.connect(self.show)
        view.structure_chosen.connect(self.guarded(self._go_to))
        view.review_chosen.connect(self.guarded(self._review))
        view.next_requested.connect(self.guarded(self._go_to_next))
        view.uncertainty_shown.connect(self.guarded(self._show_uncertainty))
        view.surfaces_shown.connect(self.guarded(self._show_surfaces))
        view.correct_requested.connect(self.guarded(self._correct))
        view.keep_requested.connect(self.guarded(self._keep))

    def show(self, node: Any) -> None:
        """Show the segments of a segmentation node; None shows nothing."""
        self._node, self._places, self._next = node, None, 0
        if node is None:
            self._view.show((), False)
            return
        try:
            rows = self._scene.structures(node)
        except MedSegAIError as error:
            self._view.show((), False)
            self._panel.show_error(str(error))
        else:
            self._view.show(rows, self._scene.knows_uncertainty(node))

    def show_chosen(self, node: Any) -> None:
        """Show what a job made, and let the selector say so."""
        self._view.choose(node)
        if node is not self._node:  # else the selector has told already
            self.show(node)
        else:
            self.refresh()

    @property
    def node(self) -> Any:
        """The segmentation node that is shown, or None."""
        return self._node

    def refresh(self) -> None:
        """Segments may have been edited since."""
        if self._node is not None and self._scene.is_present(self._node):
            self.show(self._node)

    def _go_to(self, segment: str) -> None:
        place = self._scene.center_of(self._node, segment)
        if place is None:
            self._panel.show_message(_("This segment is empty."))
        else:
            self._scene.jump(place)

    def _review(self, segment: str, state: str) -> None:
        self._scene.set_review_state(self._node, segment, state)
        self._view.show_review(segment, state)

    def _go_to_next(self) -> None:
        if self._places is None:
            self._places = list(self._scene.doubtful_places(self._node))
        if not self._places:
            self._panel.show_message(_("There is no doubtful place in this segmentation."))
            return
        number = self._next % len(self._places)
        place = self._places[number]
        self._next = number + 1
        self._scene.jump(place.ras)
        self._view.select(place.segment_id)
        self._panel.show_message(
            _("Doubtful place {number} of {count}: {name}.").format(
                number=number + 1,
                count=len(self._places),
                name=place.name or _("outside of all segments"),
            )
        )

    def _show_uncertainty(self, shown: bool) -> None:
        self._scene.show_uncertainty(self._node, shown)

    def _show_surfaces(self, shown: bool) -> None:
        self._scene.show_3d(self._node, shown)

    def _correct(self) -> None:
        self._host.open_editor(self._node, self._panel.choice().node)

    def _keep(self) -> None:
        """The host asks for the user's consent; without it nothing is kept, and nothing said."""
        message = self._host.keep_case(self._panel.choice(), self._node)
        if message:
            self._panel.show_message(message)

    def guarded(self, action: Callable[..., None]) -> Callable[..., None]:
        """What a signal calls: nothing is done to a node that has left the scene; what goes wrong is said."""

        def guarded(*values: Any) -> None:
            if self._node is None:
                return
            if not self._scene.is_present(self._node):
                name = self._node.GetName()
                self.show(None)
                self._panel.show_error(
                    _("The segmentation {name} has left the scene.").format(name=name)
                )
                return
            try:
                action(*values)
            except MedSegAIError as error:
                self._panel.show_error(str(error))

        return guarded
