"""The folders of the user's own files."""

from __future__ import annotations

import os
from pathlib import Path


def own_folder(name: str, variable: str) -> Path | None:
    """Return a folder of the user, which may not exist: the value of a variable, or `~/.medsegai/NAME`.

    The result is None if the variable is not set and the user does not have a home folder, as in a container
    without HOME and without an entry in the password file.
    """
    chosen = os.environ.get(variable)
    if chosen:
        return Path(chosen)
    try:
        return Path.home() / ".medsegai" / name
    except RuntimeError:
        return None
