"""Folders in which long comparisons keep finished cases, so that they can be resumed after a stop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medsegai.errors import RequestError
from medsegai.io.atomic import make_folder, write_json


def claim_folder(
    folder: Path, settings_name: str, settings: Mapping[str, Any], parts: Iterable[Path]
) -> None:
    """Create the folder, or check that its contents were made with the same settings.

    Args:
        folder: the folder of the results.
        settings_name: name of the JSON file in the folder that holds the settings.
        settings: the settings that the results depend on, as JSON values.
        parts: folders within the folder that are created.

    Raises:
        OutputError: the folder cannot be written.
        RequestError: the folder holds results of other settings.
    """
    for part in parts:
        make_folder(part)
    path = folder / settings_name
    _check_same(folder, path, settings)
    write_json(path, settings)


def _check_same(folder: Path, path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse results whose settings, in a file at `path`, are others."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else settings
    different = [name for name in settings if before.get(name) != settings[name]]
    if different:
        raise RequestError(
            f"{folder} holds predictions with other {' and '.join(different)}. Name another folder with "
            "-o, or remove that one."
        )
