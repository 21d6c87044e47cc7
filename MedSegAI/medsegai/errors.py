"""Everything that can go wrong, in one tree.

Each message says what was wrong, with which file or option, and what to do about it. Code that calls
MedSegAI catches `MedSegAIError`; whatever else escapes is a defect of MedSegAI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medsegai.system.outside_text import unicode_text

if TYPE_CHECKING:
    from collections.abc import Sequence


class MedSegAIError(Exception):
    """Base of all errors that a user can cause or mend. Its text is Unicode, whatever files are called."""

    exit_code = 1

    def __init__(self, *details: object) -> None:
        super().__init__(*(unicode_text(it) if isinstance(it, str) else it for it in details))


class InputError(MedSegAIError):
    """An input file or array cannot be used: missing, truncated, not a 3D scalar image, not finite..."""

    exit_code = 3


class MismatchError(InputError):
    """A scan cannot be meant for the model, such as a CT for one of MR. It is segmented if that is asked for."""


class GeometryError(InputError):
    """Voxels cannot be placed in space: singular or sheared matrix, slice gaps, grids that differ."""


class ModelError(MedSegAIError):
    """A model is unknown, or its card or weights are missing, damaged or not what the card says."""

    exit_code = 4


class ModelExistsError(ModelError):
    """A model of this id is there already, and was not to be replaced. Nothing was written."""


class UnsafeModelError(ModelError):
    """A model file asks to run code or to write outside its folder, and was refused."""


class RequestError(MedSegAIError):
    """The options of a request contradict each other, the model or the input."""

    exit_code = 2


class OutputError(MedSegAIError):
    """A result cannot be written: folder missing, not permitted, disk full, unknown file type."""

    exit_code = 5


class OutputExistsError(OutputError):
    """A file is there already, and was not to be replaced. Nothing was written."""


class DeviceError(MedSegAIError):
    """The chosen device or backend is not there, or its memory is not enough."""

    exit_code = 6


class WorkerError(MedSegAIError):
    """The worker process did not start, ended unexpectedly or broke the protocol."""

    exit_code = 7


class Cancelled(MedSegAIError):
    """The user stopped the job. Nothing was written."""

    exit_code = 130


def counted(count: int, one: str, more: str) -> str:
    """A number with the noun that agrees with it, for messages: "1 voxel", "2 voxels"."""
    return f"{count} {one if count == 1 else more}"


def listed(names: Sequence[object], most: int) -> str:
    """The first names and how many more there are, for messages: "a, b and 3 more"."""
    more = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {more} more" if more > 0 else "")
