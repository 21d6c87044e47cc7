"""A folder of scans: `medsegai batch` in a process of its own, and what it tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from medsegai.errors import MedSegAIError, RequestError
from MedSegAILib.controller.house import House
from MedSegAILib.controller.models import reason
from MedSegAILib.translation import tr as _
from MedSegAILib.view import CaseRow, Choice
from MedSegAILib.worker.place import PlaceKind

STATES = ("waiting", "running", "done", "failed")


class Batches:
    """Joins the section of the batch with the command, which also runs without Slicer."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._view = house.panel.batch
        self._program: Any = None
        self._stopping = False
        self._cases: dict[str, CaseRow] = {}
        self._view.start_requested.connect(self.start)
        self._view.stop_requested.connect(self.stop)

    @property
    def running(self) -> bool:
        return self._program is not None

    def start(self) -> None:
        """Segment every scan of the folder with the chosen model and options."""
        if self.running:
            return
        try:
            command, environment = self._command()
            if self._house.place_is_here():
                self._house.host.prepare()
        except MedSegAIError as error:
            self._view.show_message(str(error), problem=True)
            return
        self._cases, self._stopping = {}, False
        self._view.clear()
        self._view.show_running(True)
        self._view.show_message(_("Looking for scans …"))
        self._program = self._house.host.run(command, environment, self._ended, self._heard)

    def stop(self) -> None:
        """End it; what is done stays, and another start goes on."""
        if self.running:
            self._stopping = True
            self._house.host.stop(self._program)

    def _command(self) -> tuple[list[str], Mapping[str, str]]:
        asked, choice, place = (
            self._view.choice(),
            self._house.panel.choice(),
            self._house.host.place(),
        )
        if place.kind is PlaceKind.SSH:
            raise RequestError(
                _(
                    "A batch runs on this computer. Choose a Python of this computer in the settings."
                )
            )
        if not asked.folder or not asked.output:
            raise RequestError(_("Choose the folder of scans and the folder of results."))
        models = self._house.models(choice)
        command = [place.command()[0], "-m", "medsegai", "batch", asked.folder, "-o", asked.output]
        command += ["--events", *(["--resume"] if asked.resume else [])]
        for model in models:
            command += ["--model", model]
        return [*command, *_flags(choice)], place.environment()

    def _heard(self, line: str) -> None:
        """One event of the command; what is none is the chatter of a library."""
        try:
            event = json.loads(line)
            case, kind = event["case"], event["event"]
            if kind == "case" and event["state"] in STATES:
                row = CaseRow(case, event["state"], event["seconds"], event["message"])
            elif kind == "progress" and case in self._cases:
                row = replace(self._cases[case], fraction=float(event["fraction"]))
            else:
                return
        except (ValueError, KeyError, TypeError):
            return
        self._cases[case] = row
        self._view.show_case(row)
        self._view.show_message(self._count())

    def _ended(self, answer: Any) -> None:
        self._program = None
        self._view.show_running(False)
        if self._stopping:
            for row in self._cases.values():
                if row.state == "running":
                    self._view.show_case(replace(row, state="waiting", fraction=None))
            self._view.show_message(_("Stopped. {count}").format(count=self._count()))
        elif self._cases and all(row.state in ("done", "failed") for row in self._cases.values()):
            self._view.show_message(self._count())
        else:
            self._view.show_message(reason(answer), problem=True)

    def _count(self) -> str:
        states = [row.state for row in self._cases.values()]
        text = _("{done} of {all} cases are done.").format(
            done=states.count("done"), all=len(states)
        )
        failed = states.count("failed")
        return text + (" " + _("{count} failed.").format(count=failed) if failed else "")


def _flags(choice: Choice) -> list[str]:
    """The options as the command line writes them."""
    flags = []
    for name, value in choice.options.items():
        flag = "--" + name.replace("_", "-")
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
