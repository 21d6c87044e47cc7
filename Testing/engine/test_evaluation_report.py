"""Means over cases, and the table, CSV and JSON made of them."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medsegai.errors import OutputError
from medsegai.evaluation import FIGURES, CaseFigures, Evaluation, StructureFigures
from medsegai.labels import Label

LEFT, RIGHT, RARE = (
    Label(17, "Left hippocampus", (220, 216, 20)),
    Label(53, "Right hippocampus", (220, 216, 20)),
    Label(99, "Cyst", (0, 0, 255)),
)


def figures(label: Label, dice: float, hd95: float = 1.0) -> StructureFigures:
    distances = (hd95, hd95 / 2, hd95 / 4)
    return StructureFigures(label, dice, dice / (2 - dice), *distances, 3.0, 2.5, 0.5, 20.0)


@pytest.fixture
def evaluation() -> Evaluation:
    return Evaluation(
        (
            CaseFigures("anna", (figures(LEFT, 0.8), figures(RIGHT, 0.6), StructureFigures(RARE))),
            CaseFigures(
                "bert", (figures(LEFT, 0.9), figures(RIGHT, 0.7), figures(RARE, 0.0, math.nan))
            ),
            CaseFigures("cleo", (figures(LEFT, 0.7), figures(RIGHT, 0.2), StructureFigures(RARE))),
        ),
        ("A note.",),
    )


def test_means_are_over_cases_that_have_the_structure(evaluation: Evaluation) -> None:
    left, right, rare = evaluation.structures()
    assert (left.label, right.label, rare.label) == (LEFT, RIGHT, RARE)
    assert left.spreads["dice"].mean == pytest.approx(0.8)
    assert left.spreads["dice"].sd == pytest.approx(np.std([0.8, 0.9, 0.7], ddof=1))
    assert left.spreads["dice"].count == 3
    assert (rare.spreads["dice"].mean, rare.spreads["dice"].count) == (0, 1)
    assert math.isnan(rare.spreads["dice"].sd)
    assert math.isnan(rare.spreads["hd95_mm"].mean)
    assert rare.spreads["hd95_mm"].count == 0


def test_overall_each_structure_counts_alike(evaluation: Evaluation) -> None:
    assert evaluation.overall("dice").mean == pytest.approx((0.8 + 0.5 + 0) / 3)
    assert evaluation.overall("dice").count == 3
    assert evaluation.overall("dice", leave_out=(99,)).mean == pytest.approx(0.65)
    assert evaluation.overall("hd95_mm").count == 2


def test_spread_over_cases(evaluation: Evaluation) -> None:
    means = [0.7, (0.9 + 0.7 + 0) / 3, 0.45]
    spread = evaluation.over_cases("dice")
    assert (spread.mean, spread.sd) == pytest.approx((np.mean(means), np.std(means, ddof=1)))
    assert evaluation.over_cases("dice", leave_out=(99,)).mean == pytest.approx(
        (0.7 + 0.8 + 0.45) / 3
    )


def test_table_of_several_cases(evaluation: Evaluation) -> None:
    lines = evaluation.table().splitlines()
    assert lines[0].split()[:3] == ["Structure", "Dice", "IoU"]
    assert lines[1].startswith("Left hippocampus   0.800 ± 0.100")
    assert lines[1].endswith("3")
    assert lines[2].split()[2:5] == ["0.500", "±", "0.265"]
    assert lines[3].split()[:2] == ["Cyst", "0.000"]
    assert "-" in lines[3].split()
    assert lines[4].split()[:4] == ["Mean", "of", "3", "0.433"]
    assert len({len(line) for line in lines[:5]}) == 1
    cases = [line.split() for line in lines if line.startswith(("anna", "bert", "cleo"))]
    assert cases[0] == ["anna", "0.700", "2", "0.600", "Right", "hippocampus"]
    assert cases[1] == ["bert", "0.533", "3", "0.000", "Cyst"]
    assert lines[-1] == "A note."


def test_table_of_one_case(evaluation: Evaluation) -> None:
    text = Evaluation(evaluation.cases[:1]).table()
    assert "±" not in text
    assert "anna" not in text
    assert "+0.50" in text
    assert "+20.0" in text


def test_json_says_everything(evaluation: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    evaluation.write_json(path)
    data = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    first = data["cases"][0]
    assert (first["case"], first["mean"]["dice"]) == ("anna", pytest.approx(0.7))
    assert first["structures"][0] == {
        "value": 17,
        "name": "Left hippocampus",
        **evaluation.cases[0].structures[0].to_dict(),
    }
    assert first["structures"][2]["dice"] is None
    assert data["structures"][1]["mean"]["dice"] == pytest.approx(0.5)
    assert data["structures"][2]["count"] == {
        name: int(name not in ("hd95_mm", "assd_mm", "signed_mm")) for name in FIGURES
    }
    assert data["mean"]["dice"] == pytest.approx(1.3 / 3)
    assert data["notes"] == ["A note."]


def test_csv_has_a_row_per_case_and_structure_and_the_means(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    path = tmp_path / "figures.csv"
    evaluation.write_csv(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["case", "value", "name", *FIGURES, "cases"]
    assert [row["case"] for row in rows] == [
        *["anna"] * 3, *["bert"] * 3, *["cleo"] * 3, *["mean"] * 3
    ]  # fmt: skip
    assert float(rows[4]["dice"]) == pytest.approx(0.7)
    assert rows[2]["dice"] == ""
    assert [row["cases"] for row in rows] == [*"110111110", "3", "3", "1"]
    assert float(rows[9]["dice"]) == pytest.approx(0.8)


@pytest.mark.parametrize("write", [Evaluation.write_csv, Evaluation.write_json])
def test_a_write_that_fails_leaves_what_was_there(
    evaluation: Evaluation,
    tmp_path: Path,
    write: Callable[[Evaluation, Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "figures"
    path.write_text("before")

    def stop(_: Evaluation) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluation, "structures", stop)
    with pytest.raises(KeyboardInterrupt):
        write(evaluation, path)
    assert [item.name for item in tmp_path.iterdir()] == ["figures"]
    assert path.read_text() == "before"


def test_a_missing_folder_is_named(evaluation: Evaluation, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        evaluation.write_csv(tmp_path / "nowhere" / "figures.csv")


def test_no_cases_have_no_mean() -> None:
    empty = Evaluation(())
    assert empty.structures() == ()
    assert math.isnan(empty.overall("dice").mean)
