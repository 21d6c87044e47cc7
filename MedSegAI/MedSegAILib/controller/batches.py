"""Batches: `medsegai batch` in a separate process, and its events."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medsegai.errors import MedSegAIError, RequestError
from medsegai.worker.batch_events import (
    EVENTS_FLAG,
    OVERWRITE_FLAG,
    RESUME_FLAG,
    TABLE_NAME,
    CaseProgress,
    CaseState,
    Entry,
    flags_of,
    read_event,
)
from MedSegAILib.controller.context import Context
from MedSegAILib.controller.models import reason
from MedSegAILib.panel_values import BatchChoice, CaseRow, Choice, SeriesRow
from MedSegAILib.translation import tr as _
from MedSegAILib.worker.location import PlaceKind, WorkerLocation

REPLACE_QUESTION = _(
    "{folder} already holds results of a batch. They will be replaced, and your corrections "
    "will be lost. Continue?"
)

ONE_IMAGE = _(
    "{model} takes several images for each case, but a series is a case of "
    "one image. Choose a folder whose files are named after case and "
    "channel."
)


class Batches:
    """Connects the section of the batch with the command, which also runs without Slicer."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._view = context.panel.batch
        self._program: Any = None
        self._stopping = False
        self._cases: dict[str, CaseRow] = {}
        self._titles: dict[str, str] = {}
        self._view.start_requested.connect(self.start)
        self._view.stop_requested.connect(self.stop)
        self._view.series_requested.connect(self.choose_series)

    @property
    def running(self) -> bool:
        """Whether a batch is running."""
        return self._program is not None

    def start(self) -> None:
        """Segment every chosen scan with the chosen model and options."""
        if self.running:
            return
        try:
            asked, place = self._view.choice(), self._place()
            command, table = self._command(asked, place), self._table(asked)
            if self._context.place_is_here():
                cards = self._context.panel.choice().cards
                self._context.host.prepare([extra for card in cards for extra in card.extras()])
        except MedSegAIError as error:
            self._view.show_message(str(error), problem=True)
            return
        if not self._may_replace(command, asked):
            return
        self._begin()
        self._program = self._context.host.run(
            command, place.environment(), self._ended, self._heard, table
        )

    def _may_replace(self, command: Sequence[str], asked: BatchChoice) -> bool:
        question = REPLACE_QUESTION.format(folder=asked.output)
        return OVERWRITE_FLAG not in command or self._context.host.confirm(question)

    def _begin(self) -> None:
        self._cases, self._stopping = {}, False
        self._view.clear()
        self._view.show_running(True)
        self._view.show_message(_("Looking for scans …"))

    def stop(self) -> None:
        """Stop the batch; finished cases are kept, and another start resumes."""
        if self.running:
            self._stopping = True
            self._context.host.stop(self._program)

    def choose_series(self) -> None:
        """Let the user choose among the series of the DICOM database."""
        try:
            rows = self._context.host.dicom_series()
        except MedSegAIError as error:
            self._view.show_message(str(error), problem=True)
            return
        self._view.show_message("")
        self._view.ask_series(rows)

    def _place(self) -> WorkerLocation:
        place = self._context.host.place()
        if place.kind is PlaceKind.SSH:
            raise RequestError(
                _(
                    "A batch runs only on this computer. Choose a Python of this computer in "
                    "the settings."
                )
            )
        return place

    def _command(self, asked: BatchChoice, place: WorkerLocation) -> list[str]:
        if asked.series is None and not (asked.folder and asked.output):
            raise RequestError(_("Choose the folder of scans and the folder of results."))
        if asked.series is not None and not (asked.series and asked.output):
            raise RequestError(_("Choose series of the DICOM database and the folder of results."))
        choice = self._context.panel.choice()
        models = self._context.models(choice)
        source = asked.folder if asked.series is None else "-"
        command = [place.command()[0], "-m", "medsegai", "batch", source, "-o", asked.output]
        command.append(EVENTS_FLAG)
        if asked.resume:
            command.append(RESUME_FLAG)
        elif (Path(asked.output) / TABLE_NAME).is_file():
            command.append(OVERWRITE_FLAG)
        for model in models:
            command += ["--model", model]
        return [*command, *_flags(choice)]

    def _table(self, asked: BatchChoice) -> str:
        """Return the cases for the command's standard input, so that a file is never left behind."""
        self._titles = {case_name(row): row.title for row in asked.series or ()}
        if asked.series is None:
            return ""
        card = self._context.panel.choice().card
        several = card is not None and sum(channel.required for channel in card.channels) > 1
        if card is not None and several and not card.takes_one_picture:
            raise RequestError(ONE_IMAGE.format(model=card.name))
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(("case", "image_0000", "series_0000"))
        for row in asked.series:
            table.writerow((case_name(row), self._context.host.dicom_folder(row), row.uid))
        return text.getvalue()

    def _heard(self, line: str) -> None:
        """Show one event of the command; other lines are the output of libraries."""
        event = read_event(line)
        if isinstance(event, Entry):
            row = CaseRow(**vars(event), title=self._titles.get(event.case, ""))
        elif isinstance(event, CaseProgress) and event.case in self._cases:
            row = replace(self._cases[event.case], fraction=event.fraction)
        else:
            return
        self._cases[event.case] = row
        self._view.show_case(row)
        self._view.show_message(self._count())

    def _ended(self, answer: Any) -> None:
        self._program = None
        self._view.show_running(False)
        if self._stopping:
            for row in self._cases.values():
                if row.state == CaseState.RUNNING:
                    self._view.show_case(replace(row, state=CaseState.WAITING, fraction=None))
            self._view.show_message(_("Stopped. {count}").format(count=self._count()))
        elif self._cases and all(row.state.is_over for row in self._cases.values()):
            self._view.show_message(self._count())
        else:
            self._view.show_message(reason(answer), problem=True)

    def _count(self) -> str:
        states = [row.state for row in self._cases.values()]
        text = _("{done} of {all} cases are done.").format(
            done=states.count(CaseState.DONE), all=len(states)
        )
        failed = states.count(CaseState.FAILED)
        return text + (" " + _("{count} failed.").format(count=failed) if failed else "")


def case_name(row: SeriesRow) -> str:
    """Return a name for a series without patient data, always the same, so that a batch can be resumed."""
    words = re.findall(r"[^\W_]+", row.description)
    of_patient = {name.casefold() for name in re.findall(r"[^\W_]+", row.patient)}
    plain = "_".join(word for word in words if word.casefold() not in of_patient)[:40]
    digest = hashlib.sha256(row.uid.encode()).hexdigest()[:8]
    return f"{plain or 'series'}_{digest}"


def _flags(choice: Choice) -> list[str]:
    """Return the options as the command line writes them."""
    flags = []
    for name, value in choice.options.items():
        flag = flags_of(name)[0]
        if name == "members":
            flags += [f"--members={','.join(value)}"] if value and len(choice.cards) == 1 else []
        elif name == "uncertainty":
            flags += [flag] if value else []
        elif isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, tuple):
            flags += [f"{flag}={','.join(map(str, value))}"] if value else []
        else:
            flags.append(f"{flag}={value}")
    return flags
