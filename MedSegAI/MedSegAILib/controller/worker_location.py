"""The location of the worker, which is kept as a setting and tested by the doctor there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from medsegai.errors import MedSegAIError
from MedSegAILib.controller.context import Context
from MedSegAILib.controller.devices import Devices
from MedSegAILib.panel_values import PlaceChoice
from MedSegAILib.translation import tr as _
from MedSegAILib.worker.location import PlaceKind, WorkerLocation

if TYPE_CHECKING:
    from MedSegAILib.worker.environment_check import Report

PLACE, AGREED = "place", "agreed_hosts"
"""The names of settings: the location, and the computers to which images may be sent, one per line."""

TRAVEL_QUESTION = _(
    "The AI will run on {host}: images are sent there through ssh, and are kept in a private "
    "temporary folder while a job runs. May images of your patients be sent there?"
)


class Places:
    """Connects the settings with the worker.

    Args:
        changed: the function that is called when the devices are known, or another location was chosen.
    """

    def __init__(self, context: Context, changed: Callable[[], None]) -> None:
        self._context, self._changed = context, changed
        self._asked = 0
        self._asking = False
        settings = context.panel.settings
        settings.place_changed.connect(self.apply)
        settings.test_requested.connect(self.test)
        settings.show(_shown(context.host.place()))

    def apply(self) -> None:
        """Use the shown settings from the next job on, and save them.

        Images are sent to another computer only after the user agreed, once for each computer.
        """
        if self._asking:  # the question took the focus of a field, which emits its signal again
            return
        context = self._context
        try:
            place = self._chosen()
            if not self._may_be_used(place):
                context.panel.settings.show(_shown(context.host.place()))
                return
            context.host.set_place(place)
        except MedSegAIError as error:
            context.panel.settings.show_answer(str(error))
            return
        context.host.set_setting(PLACE, place.to_text())
        self._forget_devices()

    def _forget_devices(self) -> None:
        self._context.devices = Devices()
        self._context.panel.show_devices(self._context.devices.choices())
        self._changed()

    def _may_be_used(self, place: WorkerLocation) -> bool:
        agreed = self._context.host.setting(AGREED).split("\n")
        if place.shares_files or place.target in agreed:
            return True
        self._asking = True
        try:
            answer = self._context.host.confirm(TRAVEL_QUESTION.format(host=place.target))
        finally:
            self._asking = False
        if answer:
            self._context.host.set_setting(AGREED, "\n".join(filter(None, [*agreed, place.target])))
        return answer

    def ask_devices(self) -> None:
        """Run the doctor, and only show the devices."""
        self._ask(shown=False)

    def test(self) -> None:
        """Run the doctor, and show its whole report."""
        self._context.panel.settings.show_answer(_("Asking …"), busy=True)
        self._ask(shown=True)

    def _ask(self, shown: bool) -> None:
        context = self._context
        self._asked += 1
        number = self._asked
        try:
            place = self._chosen() if shown else context.host.place()
        except MedSegAIError as error:
            context.panel.settings.show_answer(str(error))
            return

        def told(report: Report) -> None:
            if number == self._asked:  # otherwise another location was chosen meanwhile
                self._hear(report, shown)

        context.host.check_environment(place, told)

    def _hear(self, report: Report, shown: bool) -> None:
        context = self._context
        if shown:
            context.panel.settings.show_answer(report.text())
        if report.findings and report.place == context.host.place():
            context.devices = Devices(report.findings)
            context.panel.show_devices(context.devices.choices())
            self._changed()

    def _chosen(self) -> WorkerLocation:
        choice = self._context.panel.settings.choice()
        if choice.kind == "ssh":
            return WorkerLocation.ssh(choice.host, choice.command)
        if choice.kind == "other":
            return WorkerLocation.other(choice.python)
        return WorkerLocation.own(self._context.host.own_python())


def _shown(place: WorkerLocation) -> PlaceChoice:
    if place.kind is PlaceKind.SSH:
        return PlaceChoice("ssh", host=place.target, command=place.program)
    if place.kind is PlaceKind.OTHER:
        return PlaceChoice("other", python=place.target)
    return PlaceChoice()
