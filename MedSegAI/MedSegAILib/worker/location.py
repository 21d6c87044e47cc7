"""Where the worker runs: in Slicer's own Python, in another one of this computer, or on another computer.

It uses neither Qt nor MRML. A location knows how its worker and its doctor are started, and in which environment.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from medsegai.errors import RequestError, WorkerError
from medsegai.models.catalogue import find_card
from medsegai.request import SegmentationRequest
from medsegai.volume import Volume
from medsegai.worker.requests import ExportRequest
from MedSegAILib.translation import tr as _

MODULE_FOLDER = Path(__file__).resolve().parents[2]
"""The folder of the package `medsegai`."""

REMOTE_PROGRAM = "medsegai worker"

SSH_OPTIONS = (
    "-T",
    "-x",
    "-oBatchMode=yes",  # a password cannot be entered
    "-oConnectTimeout=15",
    "-oServerAliveInterval=10",
    "-oServerAliveCountMax=3",
    "-oClearAllForwardings=yes",  # no forwarding, whatever the user's ssh configuration is
    "-oPermitLocalCommand=no",
    "-oControlMaster=no",  # a connection that stayed open would outlive the worker
)

HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9_:][A-Za-z0-9._:-]*")
"""The pattern of a host. It excludes everything that ssh or a shell could take for more than a name."""

SSH_FAILED, NOT_FOUND = 255, 127

NO_HOST = _(
    "{host} is not the name of a computer. Write it as for ssh: host, user@host, or a name "
    "of your ssh configuration."
)
NO_PROGRAM = _("The program on {host} must end with the word worker, as in {example}.")
CANNOT_WRITE = _(
    "{host} cannot write files on this computer. To export, choose a Python of this computer in the "
    "settings."
)
CANNOT_READ = _(
    "{host} cannot read {path}, because it is a file of this computer. Load it into Slicer."
)


class PlaceKind(StrEnum):
    """The kind of a worker's location."""

    OWN = "own"
    OTHER = "python"
    SSH = "ssh"
    COMMAND = "command"


@dataclass(frozen=True)
class WorkerLocation:
    """The location of a worker, made by `own`, `other`, `ssh`, `running` or `from_text`.

    Attributes:
        kind: the kind of location.
        target: the path of the Python or of its environment's folder, or the host.
        program: the command that starts the worker on another computer.
        words: the whole command, only for `running`.
        variables: additional environment variables, only for `running`.
    """

    kind: PlaceKind
    target: str
    program: str = REMOTE_PROGRAM
    words: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def own(cls, python: str) -> WorkerLocation:
        """Return the location in Slicer's own Python, such as PythonSlicer."""
        return cls(PlaceKind.OWN, python)

    @classmethod
    def other(cls, path: str | Path) -> WorkerLocation:
        """Return the location in another Python of this computer: its program, or its environment's folder."""
        if not str(path).strip():
            raise WorkerError(_("Name a Python program, or the folder of a Python environment."))
        return cls(PlaceKind.OTHER, str(path).strip())

    @classmethod
    def ssh(cls, host: str, program: str = REMOTE_PROGRAM) -> WorkerLocation:
        """Return the location on another computer, which `ssh host` reaches.

        Args:
            host: a name, an address, or a name of the ssh configuration, perhaps as `user@host`.
            program: the command that starts the worker there, which ends with the word `worker`.

        Raises:
            WorkerError: the text is not the name of a host, or the program is not valid.
        """
        host, program = host.strip(), program.strip() or REMOTE_PROGRAM
        if not HOST.fullmatch(host):
            raise WorkerError(NO_HOST.format(host=repr(host)))
        if program.split()[-1] != "worker" or not program.isprintable():
            raise WorkerError(NO_PROGRAM.format(host=host, example=REMOTE_PROGRAM))
        return cls(PlaceKind.SSH, host, program)

    @classmethod
    def running(
        cls, command: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> WorkerLocation:
        """Return a location on this computer with the caller's own command."""
        return cls(PlaceKind.COMMAND, command[0], words=tuple(command), variables=variables or {})

    @property
    def shares_files(self) -> bool:
        """Whether the worker sees the files of this computer."""
        return self.kind is not PlaceKind.SSH

    @property
    def name(self) -> str:
        """For messages."""
        return _("Slicer's own Python") if self.kind is PlaceKind.OWN else self.target

    def to_text(self) -> str:
        """Return the text for settings, without Slicer's own Python, which may change with an update."""
        if self.kind is PlaceKind.OWN:
            return str(self.kind)
        more = f" {self.program}" if self.kind is PlaceKind.SSH else ""
        return f"{self.kind}:{self.target}{more}"

    @classmethod
    def from_text(cls, text: str, own_python: str) -> WorkerLocation:
        """Return the location from the text of `to_text`; `own_python` is Slicer's.

        Raises:
            WorkerError: the text is damaged.
        """
        kind, _colon, target = text.strip().partition(":")
        if kind in ("", PlaceKind.OWN):
            return cls.own(own_python)
        if kind == PlaceKind.OTHER:
            return cls.other(target)
        if kind == PlaceKind.SSH:
            host, _space, program = target.partition(" ")
            return cls.ssh(host, program)
        raise WorkerError(
            _(
                "The setting {text} does not say where the worker runs. Choose a place in the settings."
            ).format(text=repr(text))
        )

    def command(self) -> list[str]:
        """Return program and arguments that start the worker.

        Raises:
            WorkerError: the path is not a Python, or this computer does not have ssh.
        """
        if self.kind is PlaceKind.COMMAND:
            return list(self.words)
        if self.kind is PlaceKind.SSH:
            return self._ssh_command(self.program)
        return worker_command(self._python())

    def doctor_command(self) -> list[str]:
        """Return program and arguments of the doctor, which prints JSON.

        Raises:
            WorkerError: see `command`.
        """
        if self.kind is PlaceKind.SSH:
            return self._ssh_command(self.program.removesuffix("worker") + "doctor --json")
        python = self.words[0] if self.kind is PlaceKind.COMMAND else self._python()
        return [python, "-m", "medsegai.commands.doctor", "--json"]

    def environment(self, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return all environment variables of the new process.

        Slicer's launcher sets search paths for libraries and Python that other programs must not inherit.
        """
        inherited = os.environ if inherited is None else inherited
        if self.kind is PlaceKind.COMMAND:
            return {**inherited, **self.variables}
        if self.kind is PlaceKind.OWN:
            return {**inherited, **worker_environment(MODULE_FOLDER, inherited)}
        startup = startup_environment(inherited)
        if self.kind is PlaceKind.SSH:
            return startup
        return {**startup, **worker_environment(MODULE_FOLDER, startup)}

    def explain(self, code: int) -> str | None:
        """Return why the process ended, if the exit code has a special meaning for this location."""
        if self.kind is not PlaceKind.SSH:
            return None
        if code == SSH_FAILED:
            return _(
                "The computer {host} cannot be reached through ssh, or the connection broke "
                "off. Try `ssh {host}` in a terminal, where it must connect without any "
                "question."
            ).format(host=self.target)
        if code == NOT_FOUND:
            return _(
                "The program {program} was not found on {host}. Install MedSegAI there (`pip install "
                "medsegai[torch]`), or give the full path of the program in the settings."
            ).format(program=self.program.split()[0], host=self.target)
        return None

    def _python(self) -> str:
        path = Path(self.target).expanduser()
        if self.kind is PlaceKind.OWN or (path.is_file() and os.access(path, os.X_OK)):
            return str(path)
        for inside in ("bin/python", "bin/python3", "Scripts/python.exe", "python.exe"):
            if (path / inside).is_file():
                return str(path / inside)
        raise WorkerError(
            _(
                "No Python was found at {path}. Name a Python program or the folder of its environment in "
                "the settings."
            ).format(path=path)
        )

    def _ssh_command(self, remote: str) -> list[str]:
        program = shutil.which("ssh", path=self.environment().get("PATH"))
        if program is None:
            raise WorkerError(
                _(
                    "The program ssh was not found on this computer. Install OpenSSH, or run the worker on this "
                    "computer."
                )
            )
        return [program, *SSH_OPTIONS, "--", self.target, remote]


def worker_command(python: str) -> list[str]:
    """Return the command that starts the worker with this Python."""
    return [python, "-m", "medsegai.worker"]


def worker_environment(
    module_folder: Path, inherited: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment in which any Python finds the package `medsegai` in `module_folder`.

    The safe path prevents a file of the current folder from being imported as a library.
    """
    known = (os.environ if inherited is None else inherited).get("PYTHONPATH")
    paths = [str(module_folder)] + ([known] if known else [])
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def startup_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables as they were before Slicer's launcher changed them.

    The launcher keeps each under its name with the prefix APPLAUNCHER_0_ (ctkAppLauncherEnvironment).
    """
    if "APPLAUNCHER_LEVEL" not in environment:
        return dict(environment)
    kept = "APPLAUNCHER_0_"
    return {
        name.removeprefix(kept): value
        for name, value in environment.items()
        if name.startswith(kept)
    }


def for_elsewhere(request: Any, place: WorkerLocation) -> Any:
    """Return the request for another computer: the folder of a model is replaced by its id.

    Only segmentation and export jobs name files.

    Raises:
        RequestError: an input is a file, which the other computer cannot read, or files are to be written.
        ModelError: a model's card cannot be read.
    """
    if isinstance(request, ExportRequest):
        raise RequestError(CANNOT_WRITE.format(host=place.name))
    if not isinstance(request, SegmentationRequest):
        return request
    for item in request.inputs:
        if not isinstance(item, Volume):
            raise RequestError(CANNOT_READ.format(host=place.name, path=item))
    models = tuple(
        find_card(model).id if Path(model).is_absolute() else model for model in request.models
    )
    return replace(request, models=models)
