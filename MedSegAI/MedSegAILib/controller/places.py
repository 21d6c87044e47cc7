"""Where the worker runs: kept as a setting, tested by the doctor there."""

from __future__ import annotations

from typing import Any

from medsegai.errors import MedSegAIError
from MedSegAILib.controller.devices import Devices, read_devices
from MedSegAILib.controller.house import House
from MedSegAILib.translation import tr as _
from MedSegAILib.view import PlaceChoice
from MedSegAILib.worker.place import Place, PlaceKind

PLACE = "place"
"""Name of the setting."""


class Places:
    """Joins the settings with the worker.

    Args:
        changed: called when the devices are known, or another place was chosen.
    """

    def __init__(self, house: House, changed: Any) -> None:
        self._house, self._changed = house, changed
        self._asked = 0
        settings = house.panel.settings
        settings.place_changed.connect(self.apply)
        settings.test_requested.connect(self.test)
        settings.show(_shown(house.host.place()))

    def apply(self) -> None:
        """Use what the settings show from the next job on, and keep it."""
        house = self._house
        try:
            place = self._chosen()
        except MedSegAIError as error:
            house.panel.settings.show_answer(str(error))
            return
        try:
            house.host.set_place(place)
        except MedSegAIError as error:
            house.panel.settings.show_answer(str(error))
            return
        house.host.set_setting(PLACE, place.to_text())
        house.devices = Devices()
        house.panel.show_devices(house.devices.choices())
        self._changed()

    def ask_devices(self) -> None:
        """Ask the doctor, and say nothing but which devices there are."""
        self._ask(shown=False)

    def test(self) -> None:
        """Ask the doctor, and show everything that it says."""
        self._house.panel.settings.show_answer(_("Asking …"), busy=True)
        self._ask(shown=True)

    def _ask(self, shown: bool) -> None:
        house = self._house
        self._asked += 1
        number = self._asked
        try:
            place = self._chosen() if shown else house.host.place()
            command, environment = place.doctor_command(), place.environment()
        except MedSegAIError as error:
            if shown:
                house.panel.settings.show_answer(str(error))
            return

        def done(answer: Any) -> None:
            if number == self._asked:  # else another place was asked meanwhile
                self._hear(place, answer, shown)

        house.host.run(command, environment, done)

    def _hear(self, place: Place, answer: Any, shown: bool) -> None:
        house = self._house
        try:
            devices = read_devices(answer.output)
        except MedSegAIError as error:
            if shown:
                reason = place.explain(answer.code) or answer.errors.strip() or str(error)
                house.panel.settings.show_answer(reason)
            return
        house.devices = devices
        house.panel.show_devices(devices.choices())
        if shown:
            house.panel.settings.show_answer(devices.text())
        self._changed()

    def _chosen(self) -> Place:
        choice = self._house.panel.settings.choice()
        if choice.kind == "ssh":
            return Place.ssh(choice.host, choice.command)
        if choice.kind == "other":
            return Place.other(choice.python)
        return Place.own(self._house.host.own_python())


def _shown(place: Place) -> PlaceChoice:
    if place.kind is PlaceKind.SSH:
        return PlaceChoice("ssh", host=place.target, command=place.program)
    if place.kind is PlaceKind.OTHER:
        return PlaceChoice("other", python=place.target)
    return PlaceChoice()
