"""What a long comparison keeps of finished cases, so that it can resume after a stop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medsegai.errors import OutputError, RequestError
from medsegai.io import atomic_path


def claim_folder(
    folder: Path, settings_name: str, settings: Mapping[str, Any], parts: Iterable[Path]
) -> None:
    """Make the folder, or make sure that what it holds was made with the same settings.

    Args:
        folder: where results go.
        settings_name: of the JSON file in it that holds what decides the results.
        settings: what decides them, as JSON values.
        parts: folders within it, to be made.

    Raises:
        OutputError: it cannot be written.
        RequestError: it holds results of other settings.
    """
    try:
        for part in parts:
            part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}. Choose another folder.") from error
    path = folder / settings_name
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else settings
    different = [name for name in settings if before.get(name) != settings[name]]
    if different:
        raise RequestError(
            f"{folder} holds predictions with other {' and '.join(different)}. Name another folder with "
            "-o, or remove that one."
        )
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
