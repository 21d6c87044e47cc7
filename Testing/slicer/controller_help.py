"""A made-up panel, scene, application and worker, for tests of what happens when.

Each writes down what it is told; the queue between them is the real one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_worker
from controller_scene import HEAD, Node, Scene
from medsegai.errors import MedSegAIError, WorkerError
from medsegai.models.card import Channel, MemberCard, ModelCard
from medsegai.progress import ProgressEvent
from medsegai.request import SegmentationRequest, SegmentationResult
from MedSegAILib.controller import Controller
from MedSegAILib.kept_choices import KeptChoices
from MedSegAILib.panel.batch import BatchView
from MedSegAILib.panel.models import ModelBrowser
from MedSegAILib.panel.output import PreviewBar
from MedSegAILib.panel.queue_table import QueueTable
from MedSegAILib.panel.refining import RefineView
from MedSegAILib.panel.results import ResultsView
from MedSegAILib.panel.settings import SettingsWidgets
from MedSegAILib.panel.surfaces import SurfacesBar
from MedSegAILib.panel_values import (
    Choice,
    PlaceChoice,
    RefineChoice,
    SeriesRow,
)
from MedSegAILib.signals import Signal
from MedSegAILib.worker.location import WorkerLocation
from MedSegAILib.worker.queue import JobQueue


def brain(folder: Path, **more: Any) -> ModelCard:
    """A model whose card lies in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.json").touch()
    values: dict[str, Any] = {
        "id": "brain",
        "name": "Brain",
        "family": "quicknat",
        "version": "1.2",
        "channels": (Channel("MR", "MR"),),
        "labels": fake_worker.LABELS,
        "members": (MemberCard("axial"), MemberCard("coronal")),
        "spacing_mm": (1, 1, 1),
        "memory_mb": 1500,
        "folder": folder,
    }
    return ModelCard(**(values | more))


class Part:
    """A part of the panel: the methods of this class, of which every call is written down, and these signals."""

    def __init__(self, kind: type, *signals: str) -> None:
        self._kind = kind
        self.told: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {}
        for name in signals:
            setattr(self, name, Signal())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real = None if name.startswith("_") else getattr(self._kind, name, None)
        if real is None:
            raise AttributeError(f"{self._kind.__name__} has no {name}")
        signature = inspect.signature(real)

        def call(*values: Any, **named: Any) -> Any:
            signature.bind(self, *values, **named)
            self.told.append((name, *values, *named.values()))
            return self.answers.get(name)

        return call

    def last(self, name: str) -> tuple[Any, ...]:
        """What the last call of this name was given."""
        return next(values[1:] for values in reversed(self.told) if values[0] == name)


class Panel:
    """Writes down the last thing it was told of each kind."""

    def __init__(self) -> None:
        self.segment_requested, self.cancel_requested = Signal(), Signal()
        self.choice_changed, self.model_changed = Signal(), Signal()
        self.log_requested = Signal()
        self.sample_requested, self.region_requested = Signal(), Signal()
        self.chosen_input: Any = None
        self.chosen_region: Any = None
        self.preview = Part(PreviewBar, "accepted", "rejected")
        self.results = Part(
            ResultsView,
            "segmentation_chosen",
            "structure_chosen",
            "review_chosen",
            "shown_chosen",
            "only_chosen",
            "in_3d_chosen",
            "smoothing_chosen",
            "good_completed",
            "done_requested",
            "next_requested",
            "places_within",
            "overlay_chosen",
            "opacity_chosen",
            "surfaces_shown",
            "statistics_shown",
            "csv_requested",
            "export_requested",
            "correct_requested",
            "slab_requested",
            "keep_requested",
        )
        self.results.answers["next_to_check"] = ""
        self.refine = Part(
            RefineView,
            "segmentation_chosen",
            "choice_changed",
            "preview_requested",
            "apply_requested",
            "cancel_requested",
        )
        self.refine.answers["choice"] = RefineChoice()
        self.queue = Part(
            QueueTable,
            "move_requested",
            "again_requested",
            "cancel_requested",
            "remove_requested",
            "clear_requested",
        )
        self.surfaces = Part(SurfacesBar, "step_requested", "cancel_requested")
        self.batch = Part(BatchView, "start_requested", "stop_requested", "series_requested")
        self.settings = Part(SettingsWidgets, "place_changed", "test_requested")
        self.settings.answers["choice"] = PlaceChoice()
        self.browser = Part(
            ModelBrowser,
            "card_chosen",
            "import_requested",
            "verify_requested",
            "index_requested",
            "fetch_requested",
        )
        self.chosen = Choice()
        self.restored: list[KeptChoices] = []
        self.state = "idle"
        self.plan: tuple[str, bool] = ("", False)
        self.details = self.message = self.error = ""
        self.log_offered = False
        self.models: list[ModelCard] = []
        self.chosen_model: ModelCard | None = None
        self.guess: Mapping[str, Any] = {}
        self.frames = 0
        self.devices: list[str] = []
        self.progress: list[float] = []

    def choice(self) -> Choice:
        return self.chosen

    def kept(self) -> KeptChoices:
        """A few of the choices, as a real panel has them."""
        nodes, cards = tuple(self.chosen.nodes.values()), self.chosen.cards
        return KeptChoices(
            model=cards[0].id if cards else "",
            output=self.chosen.output.mode.value,
            options=self.chosen.options,
            inputs=nodes,
        )

    def restore(self, kept: KeptChoices) -> None:
        self.restored.append(kept)
        self.chosen = replace(self.chosen, options=kept.options)
        self.choice_changed.emit()

    def choose_model(self, card: ModelCard) -> None:
        self.chosen_model = card

    def choose_input(self, node: Any) -> None:
        self.chosen_input = node

    def choose_region(self, node: Any) -> None:
        self.chosen_region = node

    def show_models(self, cards: Sequence[ModelCard]) -> None:
        self.models = list(cards)
        self.choice_changed.emit()

    def show_devices(self, devices: Sequence[Any]) -> None:
        self.devices = [device.value for device in devices]

    def show_frames(self, count: int) -> None:
        self.frames = count

    def show_guess(self, nodes: Mapping[str, Any]) -> None:
        self.guess = nodes

    def show_plan(self, text: str, ready: bool, details: str = "") -> None:
        self.plan, self.details = (text, ready), details

    def show_running(self) -> None:
        self.state = "running"

    def show_cancelling(self) -> None:
        self.state = "cancelling"

    def show_progress(self, event: ProgressEvent) -> None:
        self.progress.append(event.fraction)

    def show_idle(self) -> None:
        self.state = "idle"

    def show_message(self, text: str) -> None:
        self.message, self.error = text, ""

    def show_error(self, text: str, log: bool = False) -> None:
        self.error, self.log_offered = text, log


class Client:
    """A worker whose answers the test gives."""

    def __init__(self) -> None:
        self.freed, self.stalled = Signal(), Signal()
        self.busy = False
        self.start_error: MedSegAIError | None = None
        self.requests: list[SegmentationRequest] = []
        self.listener: Any = None
        self.cancelled = 0

    def start(self, request: SegmentationRequest, listener: Any) -> None:
        if self.start_error:
            raise self.start_error
        self.busy, self.listener = True, listener
        self.requests.append(request)

    def cancel(self) -> None:
        self.cancelled += 1

    def answer(self, tell: Callable[[Any], None]) -> None:
        self.busy = False
        tell(self.listener)
        self.freed.emit()


class Host:
    """The application; programs answer when the test says so."""

    def __init__(self) -> None:
        self.settings: dict[str, str] = {}
        self.where = WorkerLocation.own("/slicer/python")
        self.prepared = 0
        self.prepared_for: list[str] = []
        self.prepare_error: MedSegAIError | None = None
        self.ran: list[tuple[list[str], Callable[[Any], None]]] = []
        self.heard: Callable[[str], None] | None = None
        self.stopped: list[str] = []
        self.shown: list[tuple[str, str]] = []
        self.tables: list[Any] = []
        self.status: list[str] = []
        self.sample_error: MedSegAIError | None = None
        self.edited: list[tuple[Any, Any, str]] = []
        self.kept: list[tuple[Any, Any]] = []
        self.kept_where = ""
        self.path = ""
        self.asked: list[tuple[WorkerLocation, Callable[[Any], None]]] = []
        self.given = ""
        self.questions: list[str] = []
        self.consent = True
        self.series: Sequence[SeriesRow] = ()
        self.dicom_error: MedSegAIError | None = None

    def prepare(self, extras: Sequence[str] = ()) -> None:
        self.prepared += 1
        self.prepared_for = list(extras)
        if self.prepare_error:
            raise self.prepare_error

    def setting(self, name: str) -> str:
        return self.settings.get(name, "")

    def set_setting(self, name: str, value: str) -> None:
        self.settings[name] = value

    def own_python(self) -> str:
        return "/slicer/python"

    def place(self) -> WorkerLocation:
        return self.where

    def set_place(self, place: WorkerLocation) -> None:
        if place.target == "/nowhere":
            raise WorkerError("No Python was found at /nowhere.")
        self.where = place

    def check_environment(self, place: WorkerLocation, told: Callable[[Any], None]) -> None:
        self.asked.append((place, told))

    def log(self) -> str:
        return "what the worker said"

    def show_text(self, title: str, text: str) -> None:
        self.shown.append((title, text))

    def open_editor(self, segmentation: Any, source: Any, segment: str) -> None:
        self.edited.append((segmentation, source, segment))

    def slab(self, volume: Any) -> tuple[float, ...]:
        return (0.0, 9.0, 0.0, 9.0, 0.0, 2.0)

    def keep_case(self, choice: Choice, segmentation: Any) -> str:
        self.kept.append((choice.node, segmentation))
        return self.kept_where

    def load_sample(self, name: str) -> Any:
        if self.sample_error:
            raise self.sample_error
        return Node(name)

    def show_table(self, table: Any) -> None:
        self.tables.append(table)

    def hide_table(self) -> None:
        self.tables.append(None)

    def show_status(self, text: str) -> None:
        self.status.append(text)

    def ask_save_file(self, title: str, name: str) -> str:
        return self.path

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        done: Callable[[Any], None],
        heard: Callable[[str], None] | None = None,
        given: str = "",
    ) -> str:
        self.ran.append((list(command), done))
        self.heard, self.given = heard, given
        return "program"

    def confirm(self, question: str) -> bool:
        self.questions.append(question)
        return self.consent

    def dicom_series(self) -> Sequence[SeriesRow]:
        if self.dicom_error:
            raise self.dicom_error
        return self.series

    def dicom_folder(self, row: SeriesRow) -> str:
        if self.dicom_error:
            raise self.dicom_error
        return f"/database/{row.uid}"

    def dicom_source(self, volume: Any) -> tuple[str, str]:
        if self.dicom_error:
            raise self.dicom_error
        return ("/database/head", "1.2.3")

    def stop(self, program: str) -> None:
        self.stopped.append(program)

    def answer(self, code: int = 0, output: str = "", errors: str = "") -> None:
        """Let the program that was started last end."""
        _command, done = self.ran[-1]
        done(SimpleNamespace(code=code, output=output, errors=errors))


class House:
    """All of it, joined."""

    def __init__(self, folder: Path) -> None:
        self.card = brain(folder / "brain")
        self.head = Node("Head")
        self.panel, self.scene, self.client, self.host = Panel(), Scene(), Client(), Host()
        self.scene.reference = self.head
        self.panel.chosen = Choice({"MR": self.head}, (self.card,))
        self.queue = JobQueue(self.client)
        self.controller = Controller(self.panel, self.scene, self.queue, self.host)

    def choose(self, **changes: Any) -> None:
        """Change the choice as the user would."""

        self.panel.chosen = replace(self.panel.chosen, **changes)
        self.panel.choice_changed.emit()

    def press_segment(self) -> None:
        self.panel.segment_requested.emit()

    def finish(self, result: SegmentationResult | None = None) -> None:
        made = fake_worker.halves(HEAD) if result is None else result
        self.client.answer(lambda listener: listener.finished(made))

    def fail(self, error: MedSegAIError) -> None:
        self.client.answer(lambda listener: listener.failed(error))
