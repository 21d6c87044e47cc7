"""Where the user's own things lie, and where they cannot lie anywhere."""

from __future__ import annotations

import os
from pathlib import Path


def own_folder(name: str, variable: str) -> Path | None:
    """A folder of the user's own, which need not exist: that which a variable names, or `~/.medsegai/NAME`.

    None where no variable names it and the user has no home, as in a container without HOME and without an entry
    in the password file.
    """
    chosen = os.environ.get(variable)
    if chosen:
        return Path(chosen)
    try:
        return Path.home() / ".medsegai" / name
    except RuntimeError:
        return None
