"""A batch as a whole: the table with a row for each case, and the page that says what to look at first."""

from __future__ import annotations

import csv
import html.parser
import json
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_engine
from medsegai.cli import main
from medsegai.output.cohort import (
    FAR,
    CaseRow,
    Cohort,
    read_cohort,
    scores,
    write_cohort_table,
)
from medsegai.output.cohort_page import MOST_POINTS, cohort_page
from medsegai.output.layouts import BatchFiles
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.worker.batch_events import CaseState, Entry

Batch = Callable[..., int]


class Page(html.parser.HTMLParser):
    """Text and links of a page; complains of tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text, self._open = "", []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data


def row(case: str, volume: float = 1.0, remarks: tuple[str, ...] = (), **more: object) -> CaseRow:
    structure = {
        "name": "Left <lobe>",
        "voxels": 5,
        "volume_ml": volume,
        "expected_dice": 0.875,
        "remarks": list(remarks),
    }
    absent = {"name": "Absent", "voxels": 0, "volume_ml": 0.0, "expected_dice": None, "remarks": []}
    entry = Entry(case, CaseState.DONE, 2.0, len(remarks), "")
    return CaseRow(entry, (structure, absent), **more)  # type: ignore[arg-type]


def cohort_of(volumes: list[float]) -> Cohort:
    return Cohort(tuple(row(f"c{number}", volume) for number, volume in enumerate(volumes)))


# What stands out


def test_a_volume_that_stands_out_is_found_whatever_the_others_are() -> None:
    cohort = cohort_of([10, 11, 9, 10.5, 9.5, 30, 1])
    assert set(cohort.outliers()) == {"c5", "c6"}
    assert cohort.outliers()["c5"]["Left <lobe>"] > FAR
    assert cohort.outliers()["c6"]["Left <lobe>"] < -FAR
    assert cohort_of([10, 10, 10, 10, 30]).outliers() == {}, "equal volumes have no spread"
    assert cohort_of([10, 11, 9, 300]).outliers() == {}, "too few to say"


@given(st.lists(st.floats(0.001, 1000), min_size=5, max_size=30))
def test_scores_do_not_depend_on_the_unit_and_less_than_half_stand_out(values: list[float]) -> None:
    by_case = {str(number): value for number, value in enumerate(values)}
    found = scores(by_case)
    assert sum(abs(score) > FAR for score in found.values()) <= len(values) / 2
    middle = statistics.median(values)
    for case, score in found.items():
        assert score * (by_case[case] - middle) >= 0
    other = scores({case: 1024 * value for case, value in by_case.items()})
    assert other == pytest.approx(found)


# The table


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def test_the_table_has_a_row_for_each_case_and_explains_its_columns(tmp_path: Path) -> None:
    failed = CaseRow(Entry("bad", CaseState.FAILED, message="not a scan"))
    some = row("a", 2.5, ("too small",), intracranial_ml=1400.25)
    write_cohort_table(tmp_path / "cohort.tsv", Cohort((some, failed)))
    first, second = rows_of(tmp_path / "cohort.tsv")
    assert first["left_lobe_ml"] == "2.5"
    assert first["left_lobe_expected_dice"] == "0.875"
    assert (first["flags"], first["flagged"], first["outliers"]) == ("1", "Left <lobe>", "n/a")
    assert first["intracranial_ml"] == "1400.25"
    assert (second["state"], second["message"], second["left_lobe_ml"]) == (
        "failed",
        "not a scan",
        "n/a",
    )
    explained = json.loads((tmp_path / "cohort.json").read_text())
    assert list(explained) == list(first)
    assert explained["left_lobe_ml"] == {"Description": "Volume of: Left <lobe>.", "Units": "mL"}


def test_structures_whose_names_come_to_one_heading_have_columns_of_their_own(
    tmp_path: Path,
) -> None:
    one, other = (
        {**item, "name": name}
        for item, name in zip(row("a").structures, ("A b", "a-B"), strict=True)
    )
    cohort = Cohort((CaseRow(Entry("a", CaseState.DONE), (one, other)),))
    write_cohort_table(tmp_path / "cohort.csv", cohort)
    (found,) = rows_of(tmp_path / "cohort.csv")
    assert (found["a_b_ml"], found["a_b_ml_2"]) == ("1.0", "0.0")


# The page


def test_cases_with_most_remarks_come_first_and_nothing_is_left_out_in_silence(
    tmp_path: Path,
) -> None:
    quiet = [row(f"q{number}", 1 + number / 10) for number in range(6)]
    loud = row("loud <1>", 90, ("in 3 parts",), page=tmp_path / "a b" / "loud?.html")
    failed = CaseRow(Entry("bad", CaseState.FAILED, message="x.nii is <damaged>."))
    waiting = CaseRow(Entry("later"))
    page = Page(
        cohort_page(Cohort((*quiet, loud, failed, waiting), ("sub-09 was left out.",)), tmp_path)
    )
    for words in (
        "7 of 9 cases are done, 1 failed, 1 waiting.",
        "Left <lobe>: in 3 parts",
        "Left <lobe>: large",
        "x.nii is <damaged>.",
        "later: waiting",
        "sub-09 was left out.",
        "loud <1>: 90.00 ml",
    ):
        assert words in page.text
    assert page.text.index("loud <1>") < page.text.index("q0")
    assert set(page.links) == {"a%20b/loud%3F.html"}
    assert page.tags.count("circle") == 7
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_a_page_over_many_cases_stays_small() -> None:
    volumes = list(np.random.default_rng(1).normal(10, 1, MOST_POINTS + 50))
    page = Page(cohort_page(cohort_of([*volumes, 90.0]), Path()))
    assert 1 <= page.tags.count("circle") < 20
    assert "c350: 90.00 ml" in page.text


def test_an_empty_batch_has_a_page() -> None:
    assert "0 of 1 case is done" in Page(cohort_page(Cohort((CaseRow(Entry("a")),)), Path())).text


def test_objects_of_all_cases_are_counted() -> None:
    sizes = {"median_pixels": 40.0, "median_area_mm2": None}
    rows = [row(f"c{n}", objects={"count": n, **sizes}) for n in (3, 9, 0)]
    failed = CaseRow(Entry("bad", CaseState.FAILED))
    page = Page(cohort_page(Cohort((*rows, failed)), Path()))
    for words in (
        "12 objects in 3 cases.",
        "c9: 9 objects",
        "c9: 40 pixels",
        "Median size (pixels)",
    ):
        assert words in page.text
    assert "mm²" not in page.text
    assert "Objects" not in Page(cohort_page(cohort_of([1.0]), Path())).text


STRUCTURE = {"name": "A", "voxels": 5, "volume_ml": 1.0, "expected_dice": 0.9, "remarks": []}
FIGURES = ("voxels", "volume_ml", "expected_dice", "remarks")
ODD = (None, float("nan"), float("inf"), "<script>", [], {}, 10**400, True, -1)


@pytest.mark.parametrize(
    "report",
    [
        *({"structures": [{**STRUCTURE, key: value}]} for key in FIGURES for value in ODD),
        *({"structures": [{**STRUCTURE, "name": value}]} for value in (None, [], "<script>")),
        *({"structures": [STRUCTURE], "intracranial_ml": value} for value in ODD),
        *({"structures": [STRUCTURE], "objects": {"count": value}} for value in ODD),
        *({"structures": [STRUCTURE], "objects": value} for value in ODD),
        *({"structures": value} for value in (None, 3, "<script>", [[]], [{}], [1])),
        *ODD,
    ],
    ids=lambda report: str(report)[:90],
)
def test_a_report_that_makes_no_sense_ends_no_batch(report: object, tmp_path: Path) -> None:
    """The other cases have their figures; what is not a number is not shown as one."""
    files = BatchFiles(tmp_path)
    cases = [f"c{number}" for number in range(6)]
    for number, case in enumerate(cases):
        made = {"structures": [{**STRUCTURE, "volume_ml": 1.0 + number}]} if number else report
        files.report(case).write_text(json.dumps(made))
    cohort = read_cohort([Entry(case, CaseState.DONE) for case in cases], files)
    write_cohort_table(tmp_path / "cohort.tsv", cohort)
    text = cohort_page(cohort, tmp_path)
    assert not re.search(r"[>\s](nan|inf)[<\s]", text)
    page = Page(text)
    assert "c5: 6.00 ml" in page.text
    assert "script" not in page.tags
    assert len(cohort.rows[0].structures) == 1 or "c0: its report cannot be read" in page.text


# As a user: the command


def test_a_batch_writes_pages_that_lead_to_each_other(
    model: str, requests: list[SegmentationRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def segment(request: SegmentationRequest, progress: Progress) -> SegmentationResult:
        result = fake_engine.segment(request, progress)
        first, *others = result.structures
        return replace(
            result,
            structures=(replace(first, remarks=("too small",)), *others),
            intracranial_ml=1.5,
        )

    monkeypatch.setattr(sys.modules["medsegai.engine"], "segment", segment)
    data, out = tmp_path / "data", tmp_path / "out"
    for seed, name in enumerate(("sub-01", "sub-02")):
        path = data / name / "anat" / f"{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        voxels = np.random.default_rng(seed).integers(0, 200, (9, 7, 8), dtype=np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    (data / "sub-03" / "anat").mkdir(parents=True)
    (data / "sub-03" / "anat" / "sub-03_T1w.nii.gz").write_bytes(b"no image")
    (data / "sub-04" / "anat").mkdir(parents=True)
    words = ["batch", str(data), "-o", str(out), "--model", model, "--layout", "bids", "--pages"]
    assert main(words) == 1
    page = Page((out / "cohort.html").read_text())
    assert "2 of 3 cases are done, 1 failed." in page.text
    assert re.search(r"sub-03: failed\. .*sub-03_T1w\.nii\.gz", page.text)
    assert "Without an image with suffix=T1w: sub-04." in page.text
    (link,) = {link for link in page.links if "sub-01" in link}
    case = Page((out / link).read_text())
    assert "Dark tissue" in case.text
    assert "toy 1" in case.text
    table = {row["case"]: row for row in rows_of(out / "cohort.tsv")}
    assert table["sub-01"]["intracranial_ml"] == "1.5"
    assert table["sub-01"]["flagged"] == "Dark tissue"
    assert (out / "cohort.json").is_file()
