"""What the benches have in common: the tables that one prints are also kept, with their date and conditions.

Each file in `docs/measurements/` is one run of one bench, so the history of a figure can be plotted. A bench
ends with `measurements.run(NAME, main)`. Tests call the `main` of a bench, which keeps nothing.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from medsegai import __version__
from medsegai.models.card import CARD_NAME, ModelCard
from medsegai.models.catalogue import BUNDLED_MODELS, read_cards
from medsegai.system.machine import total_memory, usable_cores

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "docs" / "measurements"
PACKAGES = ("torch", "openvino", "numpy", "scipy", "SimpleITK", "nnunetv2")
NUMBER = r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?"

Table = list[dict[str, Any]]


def run(bench: str, main: Callable[[], int | None], folder: Path = FOLDER) -> int:
    """Call `main`; where it ends well and printed tables, keep them in a new file in `folder`.

    Returns:
        the exit code of `main`.
    """
    printed = io.StringIO()
    with redirect_stdout(_Both(sys.stdout, printed)):
        code = main() or 0
    tables = tables_of(printed.getvalue())
    if tables and code == 0:
        keep(conditions(bench) | {"tables": tables}, folder)
    return code


def conditions(bench: str) -> dict[str, Any]:
    """What has to be known of a run to compare it with another one."""
    memory = total_memory()
    return {
        "bench": bench,
        "date": date.today().isoformat(),
        "command": _command(sys.argv),
        "version": __version__,
        "commit": _commit(),
        "models": {card.id: card.version for card in _bundled()},
        "computer": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": usable_cores(),
            "memory_gib": None if memory is None else round(memory / 2**30, 1),
        },
        "packages": {"python": platform.python_version()} | dict(_versions()),
    }


def keep(measurement: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Write a measurement as DATE-BENCH.json, or DATE-BENCH-2.json and so on after others of that day."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, number = f"{measurement['date']}-{measurement['bench']}", 1
    path = folder / f"{stem}.json"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    path.write_text(json.dumps(measurement, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"kept: {path}", file=sys.stderr)
    return path


def history(bench: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All measurements of one bench, oldest first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted((item for item in found if item["bench"] == bench), key=lambda item: item["date"])


def tables_of(markdown: str) -> list[Table]:
    """The Markdown tables with rows in a text; a row maps the heading of each column to the value below it."""
    found: list[Table] = []
    for block in re.findall(r"(?:^\|.*\|$\n?){2,}", markdown, re.MULTILINE):
        heading, rule, *lines = [_cells(line) for line in block.splitlines()]
        if lines and all(re.fullmatch(r":?-+:?", cell) for cell in rule):
            names = _distinct(heading)
            found.append([dict(zip(names, map(_value, row), strict=True)) for row in lines])
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def _distinct(heading: list[str]) -> list[str]:
    """Headings that occur twice get a number, so that no column is lost."""
    names: list[str] = []
    for name in heading:
        count = sum(other.split(" #")[0] == name for other in names)
        names.append(name if count == 0 else f"{name} #{count + 1}")
    return names


def _value(cell: str) -> Any:
    """A cell as a number, as a mean with its deviation, or as the text that it is."""
    text = cell.strip("*").strip()
    if re.fullmatch(NUMBER, text):
        return float(text)
    pair = re.fullmatch(rf"({NUMBER}) ± ({NUMBER})", text)
    return {"mean": float(pair[1]), "sd": float(pair[2])} if pair else cell


def _command(arguments: list[str]) -> str:
    """The command as somebody else would type it: without the folders of this computer."""
    words = [Path(word).name if os.path.isabs(word) else word for word in arguments[1:]]
    return " ".join(["python", f"Testing/bench/{Path(arguments[0]).name}", *words])


def _commit() -> str | None:
    asked = subprocess.run(
        ["git", "-C", REPOSITORY, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return asked.stdout.strip() or None


def _bundled() -> Iterator[ModelCard]:
    found = read_cards(sorted(BUNDLED_MODELS.glob(f"*/{CARD_NAME}")))
    return (card for _, card in found if isinstance(card, ModelCard))


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor()


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


class _Both(io.TextIOBase):
    """Text that goes to the screen and is kept as well."""

    def __init__(self, *targets: Any) -> None:
        self.targets = targets

    def write(self, text: str) -> int:
        for target in self.targets:
            target.write(text)
        return len(text)

    def flush(self) -> None:
        for target in self.targets:
            target.flush()
