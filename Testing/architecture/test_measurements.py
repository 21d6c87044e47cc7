"""Figures keep their date and conditions: what a bench prints becomes a file that others can read."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "docs" / "measurements"
TABLES = """
| case | Dice | HD95, mm |
| --- | ---: | ---: |
| `snap` | **0.8640** | 1.752 ± 0.2 |
| none \\* | | 1.0e-3 |

text | with a bar
"""


@pytest.fixture(scope="module")
def measurements() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "measurements", REPOSITORY / "Testing" / "bench" / "measurements.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_read_as_numbers(measurements: ModuleType) -> None:
    assert measurements.tables_of(TABLES) == [
        [
            {"case": "`snap`", "Dice": 0.864, "HD95, mm": {"mean": 1.752, "sd": 0.2}},
            {"case": "none \\*", "Dice": "", "HD95, mm": 0.001},
        ]
    ]


def test_no_column_is_lost(measurements: ModuleType) -> None:
    ((row,),) = measurements.tables_of("| a | b | b |\n| --- | --- | --- |\n| 1 | 2 | 3 |\n")
    assert list(row.values()) == [1.0, 2.0, 3.0]


def test_a_table_without_rows_is_no_measurement(measurements: ModuleType) -> None:
    assert measurements.tables_of("| a | b |\n| --- | --- |\n") == []


def test_a_run_is_kept_with_its_conditions(
    measurements: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scan = str(tmp_path / "scan.nii.gz")
    monkeypatch.setattr("sys.argv", ["anywhere/bench.py", "--scan", scan, "--rounds", "1"])
    for _ in range(2):
        assert measurements.run("bench", lambda: sys.stdout.write(TABLES) and 0, tmp_path) == 0
    assert "0.8640" in capsys.readouterr().out, "it is printed as always"
    first, second = measurements.history("bench", tmp_path)
    assert first == second
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert first["command"] == "python Testing/bench/bench.py --scan scan.nii.gz --rounds 1"
    assert first["models"]["brain"]
    assert first["tables"][0][0]["Dice"] == 0.864


@pytest.mark.parametrize(("printed", "code"), [(TABLES, 3), ("no table", 0)])
def test_what_failed_or_has_no_figures_is_not_kept(
    measurements: ModuleType, tmp_path: Path, printed: str, code: int
) -> None:
    def main() -> int:
        sys.stdout.write(printed)
        return code

    assert measurements.run("bench", main, tmp_path) == code
    assert not list(tmp_path.iterdir())


def test_every_measurement_says_when_and_how_it_was_made(measurements: ModuleType) -> None:
    paths = sorted(FOLDER.glob("*.json"))
    assert len(paths) > 10
    for path in paths:
        found = json.loads(path.read_text())
        assert {"bench", "date", "command", "computer", "tables"} <= found.keys(), path.name
        assert re.fullmatch(rf"{found['date']}-{found['bench']}(-\d+)?\.json", path.name)
        assert all(table and all(row for row in table) for table in found["tables"])
        assert found in measurements.history(found["bench"])


COMMAND = re.compile(r"^```\n(?:.*\n)*?.*(?:python|medsegai|make) ", re.MULTILINE)
ELSEWHERE = re.compile(
    r"script that was not kept|from the (?:same commands|same runs|commands at the top)"
)


def bare_tables(page: str) -> list[str]:
    """Headings of sections whose tables of figures stand without a command above them."""
    sections = re.split(r"^(?=#+ )", page, flags=re.MULTILINE)
    return [
        section.splitlines()[0]
        for section in sections
        if re.search(r"^\|.*\d\.\d", section, re.MULTILINE)
        and not COMMAND.search(section)
        and not ELSEWHERE.search(section)
    ]


def test_every_figure_stands_below_its_command() -> None:
    pages = sorted((REPOSITORY / "docs" / "performance").glob("*.md"))
    assert len(pages) > 5
    found = {page.name: bare_tables(page.read_text()) for page in pages}
    assert {name: bare for name, bare in found.items() if bare} == {}


def test_a_figure_without_a_command_is_found() -> None:
    table = "| a |\n| --- |\n| 0.5 |\n"
    assert bare_tables(f"# A\n\n{table}\n## B\n\n```\nmake bench\n```\n\n{table}") == ["# A"]
