"""A made-up scene for tests of the controller, which writes down what it is told."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

import fake_worker
from medsegai.errors import MedSegAIError
from medsegai.models.card import ModelCard
from medsegai.request import SegmentationResult
from medsegai.volume import Geometry, Volume
from medsegai.worker.requests import RefinementRequest
from MedSegAILib.kept_choices import KeptChoices
from MedSegAILib.output_choice import OutputChoice
from MedSegAILib.panel_values import (
    SegmentRow,
    StructureRow,
)
from MedSegAILib.uncertain_regions import UNCERTAINTY, Step, UncertainRegion

HEAD = Volume(np.full((4, 5, 6), 150.0), Geometry.from_spacing((4, 5, 6), (1, 1, 2)), "Head")


class Node:
    def __init__(self, name: str) -> None:
        self.name = name

    def GetName(self) -> str:
        return self.name


DONE_IN_SCENE = (
    "jump",
    "set_review_state",
    "show_segments",
    "show_only",
    "show_in_3d",
    "smooth_surfaces",
    "complete_surfaces",
    "show_overlay",
    "set_overlay_opacity",
    "show_3d",
    "write_csv",
)


class Scene:
    """Nodes are in it until they are put into `gone`."""

    def __init__(self) -> None:
        self.notes: tuple[str, ...] = ()
        self.gone: list[Any] = []
        self.kept: KeptChoices | None = None
        self.closing = False
        self.noted: dict[Any, dict[str, Any]] = {}
        self.saved_previews: list[tuple[str, str]] = []
        self.volume = HEAD
        self.sequence: Sequence[int] = ()
        self.frame, self.checked = 0, 1
        self.following: list[Any] = []
        self.read_error: MedSegAIError | None = None
        self.output_error: MedSegAIError | None = None
        self.write_error: Exception | None = None
        self.written: list[tuple[Any, SegmentationResult, OutputChoice, int | None]] = []
        self.previews: list[Any] = []
        self.rows: list[StructureRow] = []
        self.reported: dict[str, Any] = {}
        self.places: list[UncertainRegion] = []
        self.reference: Any = Node("Head")
        self.overlaid = self.kept_edits = ""
        self.only: Any = None
        self.drawn: list[Any] = []
        self.changed_at: tuple[float, float, float] | None = (1.0, 2.0, 3.0)
        self.walked, self.within, self.current = 0, "", ""
        self.done: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.make_surfaces: Callable[[Any], None] = lambda node: None
        self.segment_count, self.shown_3d = 3, False
        self.drawn_segments: dict[str, bool] = {}
        self.watched: list[tuple[Any, Callable[[], None]]] = []
        self.surface_error: Exception | None = None

    def is_present(self, node: Any) -> bool:
        return node not in self.gone

    def is_closing(self) -> bool:
        return self.closing

    def choices_are_kept(self) -> bool:
        return self.kept is not None

    def kept_choices(self) -> KeptChoices | None:
        return self.kept

    def keep_choices(self, kept: KeptChoices) -> None:
        self.kept = kept

    def forget_choices(self) -> None:
        self.kept = None

    def volumes(self) -> list[Any]:
        return [Node("T1"), Node("FLAIR")]

    def guess_channels(self, card: ModelCard, nodes: Sequence[Any]) -> dict[str, Any]:
        names = {node.GetName(): node for node in nodes}
        return {channel.name: names.get(channel.name) for channel in card.channels}

    def read_channels(self, nodes: Sequence[Any]) -> tuple[Volume, ...]:
        if self.read_error:
            raise self.read_error
        return tuple(replace(self.volume, source=node.GetName()) for node in nodes)

    def region(self, node: Any) -> tuple[float, ...]:
        return (0.0, 1.0, 0.0, 2.0, 0.0, 3.0)

    def new_region(self, volume: Any) -> Any:
        if self.read_error:
            raise self.read_error
        return Node(f"{volume.GetName()} region")

    def settle_saved_previews(self) -> list[tuple[str, str]]:
        return self.saved_previews

    def note_channels(self, segmentation: Any, nodes: Mapping[str, Any]) -> None:
        self.noted[segmentation] = dict(nodes)

    def channels_of(self, segmentation: Any) -> Mapping[str, Any]:
        return self.noted.get(segmentation, {})

    def frames(self, node: Any) -> Sequence[int]:
        return self.sequence

    def check_output(self, output: OutputChoice) -> None:
        if self.output_error and output.node is not None:
            raise self.output_error

    def current_frame(self, node: Any) -> int | None:
        return self.frame if self.sequence else None

    def goes_along(self, node: Any, source: Any) -> bool:
        return node in self.following

    def checksum(self, node: Any) -> int:
        return self.checked

    def read_frame(self, node: Any, number: int) -> Volume:
        return Volume(HEAD.voxels + number, HEAD.geometry, f"Head {number}")

    def write(
        self,
        source: Any,
        result: SegmentationResult,
        output: OutputChoice | None = None,
        frame: int | None = None,
    ) -> Any:
        if self.write_error:
            raise self.write_error
        self.written.append((source, result, output or OutputChoice(), frame))
        self.reported = result.report()
        return output.node if output and output.node else Node("Head segmentation")

    def preview(self, source: Any, result: SegmentationResult, output: OutputChoice) -> Any:
        def accept() -> Any:
            if self.write_error:
                raise self.write_error
            self.done.append(("accept",))
            return Node("Head segmentation")

        def reject() -> None:
            self.done.append(("reject",))

        def withdraw() -> str:
            reject()
            return self.kept_edits

        node = Node(f"Preview {len(self.previews) + 1}")
        made = SimpleNamespace(
            node=node, notes=(), place=None, accept=accept, reject=reject, withdraw=withdraw
        )
        self.previews.append(made)
        return made

    def reference_volume(self, segmentation: Any) -> Any:
        return None if segmentation is None else self.reference

    def segments(self, segmentation: Any) -> list[SegmentRow]:
        return [SegmentRow(row.segment_id, row.name, row.color) for row in self.rows]

    def draft(
        self, segmentation: Any, refinements: Any, segments: Any = (), image: Any = None
    ) -> Any:
        if self.read_error:
            raise self.read_error
        self.done.append(("draft", segmentation, refinements, segments, image))
        labelmap = Volume(np.ones((4, 5, 6), np.uint8), HEAD.geometry, "Head")
        request = RefinementRequest(labelmap, fake_worker.LABELS, tuple(refinements))
        return SimpleNamespace(
            request=request, segmentation=segmentation, notes=("Not changed: Stem.",)
        )

    def write_refined(self, draft: Any, result: Any) -> Any:
        if self.write_error:
            raise self.write_error
        self.done.append(("write_refined", draft.segmentation))
        return draft.segmentation

    def preview_refined(self, draft: Any, result: Any) -> Any:
        made = self.preview(None, result, OutputChoice())

        def accept() -> Any:
            made.accept()
            return draft.segmentation

        return SimpleNamespace(**vars(made) | {"place": self.changed_at, "accept": accept})

    def structures(self, segmentation: Any) -> list[StructureRow]:
        return self.rows

    def report(self, segmentation: Any) -> dict[str, Any]:
        return self.reported

    def overlays(self, segmentation: Any) -> tuple[str, ...]:
        return (UNCERTAINTY,)

    def next_place(self, segmentation: Any, by: int = 1) -> Step | None:
        if not self.places:
            return None
        self.walked += by
        number = (self.walked - 1) % len(self.places)
        self.current = self.places[number].segment_id
        return Step(self.places[number], number + 1, len(self.places))

    def only_result(self) -> Any:
        return self.only

    def draw_alone(self, segmentation: Any) -> None:
        self.drawn.append(segmentation)

    def shown_segments(self, segmentation: Any) -> dict[str, bool]:
        return self.drawn_segments or {row.segment_id: row.shown for row in self.rows}

    def watch_display(self, segmentation: Any, changed: Callable[[], None]) -> Callable[[], None]:
        self.watched.append((segmentation, changed))
        return lambda: self.watched.remove((segmentation, changed))

    def surfaces(self, segmentation: Any) -> Generator[tuple[int, int], None, None]:
        try:
            for number in range(1, self.segment_count + 1):
                if self.surface_error:
                    raise self.surface_error
                self.done.append(("surface", segmentation, number))
                yield number, self.segment_count
        except GeneratorExit:
            self.done.append(("no more surfaces", segmentation))

    def surfaces_are_shown(self, segmentation: Any) -> bool:
        return self.shown_3d

    def shown_overlay(self, segmentation: Any) -> str:
        return self.overlaid

    def overlay_opacity(self, segmentation: Any) -> float:
        return 0.6

    def walked_within(self, segmentation: Any) -> str:
        return self.within

    def walk_within(self, segmentation: Any, segment: str) -> None:
        self.within = segment

    def current_segment(self, segmentation: Any) -> str:
        return self.current

    def set_current_segment(self, segmentation: Any, segment: str) -> None:
        self.current = segment

    def center_of(self, segmentation: Any, segment: str) -> tuple[float, ...] | None:
        return None if segment == "empty" else (1.0, 2.0, 3.0)

    def measurable(self, segmentation: Any) -> Any:
        if self.read_error:
            raise self.read_error
        return SimpleNamespace(segmentation=segmentation, request="measure", note="")

    def statistics(self, measured: Any, result: Any) -> Any:
        if self.error:
            raise self.error
        self.done.append(("statistics", measured.segmentation, result))
        return Node("Table")

    def exported(
        self, segmentation: Any, outputs: Any, dicom: Any = ("", ""), overwrite: bool = False
    ) -> Any:
        if self.read_error:
            raise self.read_error
        return SimpleNamespace(request=(segmentation, outputs, dicom, overwrite))

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in DONE_IN_SCENE:
            raise AttributeError(name)

        def call(*values: Any) -> None:
            if self.error:
                raise self.error
            self.done.append((name, *values))

        return call
