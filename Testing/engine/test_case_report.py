"""The report of a case, and what `medsegai export` does with everything together."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from images import DIRECTIONS, ORIGIN_RAS, SPACING_MM
from medsegai import __version__
from medsegai.cli import main
from medsegai.errors import InputError, ModelError, OutputError, RequestError
from medsegai.export import Case, load_case
from medsegai.export import files as export_module
from medsegai.export.files import Work
from medsegai.export.provenance import Provenance, of_report, provenance
from medsegai.export.report import Content, case_report
from medsegai.io import read_labelmap, write_segmentation, write_volume
from medsegai.labels import Label
from medsegai.measurements.structures import measure
from medsegai.progress import Progress
from medsegai.request import NOT_FOR_DIAGNOSIS
from medsegai.volume import Geometry, Volume

LABELS = (
    Label(1, "Left <b>lobe</b> & more", (250, 10, 10)),
    Label(2, "Right <b>lobe</b> & more", (10, 250, 10)),
    Label(3, "Not there", (10, 10, 250)),
)
SHAPE = (20, 24, 28)


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text, of a page; complains of tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data


@pytest.fixture
def case() -> Case:
    grid = Geometry.from_spacing(SHAPE, SPACING_MM, ORIGIN_RAS, DIRECTIONS["oblique"])
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[4:15, 5:18, 3:11], voxels[4:15, 5:18, 14:24] = 1, 2
    image = np.random.default_rng(1).normal(100, 20, SHAPE) + voxels * 40
    return Case(Volume(voxels, grid, "/home/me/case.seg.nrrd"), LABELS, Volume(image, grid))


@pytest.fixture
def files(case: Case, tmp_path: Path) -> tuple[Path, Path]:
    """The case as a segmentation and a scan."""
    assert case.image is not None
    write_segmentation(tmp_path / "case.seg.nrrd", case.labelmap, case.labels)
    write_volume(tmp_path / "scan.nii.gz", case.image)
    return tmp_path / "case.seg.nrrd", tmp_path / "scan.nii.gz"


def test_the_page_says_everything(case: Case) -> None:
    rows = measure(case.labelmap, case.labels, case.image)
    made = {"Model": "brain 0.2.0", "Options": {"fusion": "mean", "folds": ["a", "b"]}}
    page = Page(case_report(Content(case, rows, ["Look at <this>."], made)))
    for words in (
        NOT_FOR_DIAGNOSIS,
        "Left <b>lobe</b> & more",
        "Look at <this>.",
        "brain 0.2.0",
        "fusion: mean; folds: a, b",
        f"MedSegAI {__version__}",
        f"{rows[0].volume_ml:.2f}",
        f"{rows[1].mean:.1f}",
        f"{rows[0].asymmetry_percent:+.1f}",
        "case.seg.nrrd",
    ):
        assert words in page.text
    assert "/home/me" not in page.text
    assert "b" not in [tag for tag, _ in page.tags]
    assert len([tag for tag, _ in page.tags if tag == "tr"]) == 1 + len(LABELS)


def test_the_page_needs_nothing_else(case: Case) -> None:
    text = case_report(Content(case, measure(case.labelmap, case.labels, case.image)))
    page = Page(text)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    sources = [values["src"] or "" for _, values in page.tags if "src" in values]
    assert len(sources) == 1
    assert not re.search(r"https?:|url\(|@import", text)
    kind, _, data = sources[0].partition(",")
    assert kind == "data:image/png;base64"
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).reshape(
        -1, 3
    )
    for label in LABELS[:2]:  # both structures are drawn
        assert (picture == label.color).all(axis=1).any()


def test_pages_on_paper(case: Case, tmp_path: Path) -> None:
    browser, reader = shutil.which("chromium"), shutil.which("pdftotext")
    if browser is None or reader is None:
        pytest.skip("no chromium or pdftotext: apt-get install chromium poppler-utils")
    many = tuple(Label(value, f"Structure {value:03d}", (200, 60, 90)) for value in range(1, 121))
    rows = measure(case.labelmap, many, case.image)
    page, paper = tmp_path / "r.html", tmp_path / "r.pdf"
    page.write_text(case_report(Content(case, rows, ["Look at this."], {"Model": "brain 0.2.0"})))
    how = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    subprocess.run(
        [browser, *how, f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={paper}", page],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    done = subprocess.run([reader, "-layout", paper, "-"], capture_output=True, text=True)
    pages = done.stdout.split("\f")[:-1]
    assert len(pages) >= 3
    for number, text in enumerate(pages, start=1):
        assert NOT_FOR_DIAGNOSIS in text
        assert re.search(rf"{number} ?/ ?{len(pages)}\n", text)
        if "Structure 0" in text or "Structure 1" in text:
            assert "Volume" in text  # the heading of the table
    assert re.findall(r"Structure (\d{3})", done.stdout) == [f"{n:03d}" for n in range(1, 121)]


def test_no_scan_no_pictures(case: Case) -> None:
    alone = Case(case.labelmap, case.labels)
    page = Page(case_report(Content(alone, measure(alone.labelmap, alone.labels))))
    assert "the scan was not named" in page.text
    assert "Mean" not in page.text.split()


def test_everything_at_once(files: tuple[Path, Path], tmp_path: Path) -> None:
    segmentation, scan = files
    out = tmp_path / "out"
    out.mkdir()
    command = ["export", str(segmentation), "--image", str(scan), "-q", "--formats", "stl, OBJ,glb"]
    command += ["--report", str(out / "r.html"), "--csv", str(out / "t.csv")]
    command += ["--json", str(out / "t.json"), "--surfaces", str(out / "parts")]
    assert main(command) == 0
    names = {f"{stem}.{kind}" for stem in ("1_left_b_lobe_b_more", "2_right_b_lobe_b_more")
             for kind in ("stl", "obj", "glb")}  # fmt: skip
    assert {path.name for path in (out / "parts").iterdir()} == names
    structures = json.loads((out / "t.json").read_text())["structures"]
    assert [item["voxels"] for item in structures] == [1144, 1430, 0]
    assert "Not found: Not there." in Page((out / "r.html").read_text()).text
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(command) == OutputError.exit_code
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert main([*command, "--overwrite"]) == 0


def test_a_failure_at_the_end_leaves_nothing(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputError("The disk is full.")

    monkeypatch.setattr(export_module, "write_surface", full)
    out = tmp_path / "out"
    out.mkdir()
    parts = ["--csv", str(out / "t.csv"), "--report", str(out / "r.html")]
    assert main(["export", str(files[0]), *parts, "--surfaces", str(out / "parts")]) == 5
    assert list(out.iterdir()) == []


def test_stopping_leaves_nothing(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    progress = Progress(lambda event: progress.cancel.set() if event.fraction > 0.3 else None)
    exports = export_module.Exports(csv=out / "t.csv", json=out / "t.json", surfaces=out / "parts")
    with pytest.raises(export_module.MedSegAIError):
        export_module.export(export_module.Inputs(files[0]), exports, progress)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], RequestError.exit_code),
        (["--surfaces", "s", "--formats", "ply"], RequestError.exit_code),
        (["--surfaces", "s", "--tolerance", "-1"], RequestError.exit_code),
        (["--surfaces", "s", "--tolerance", "nan"], RequestError.exit_code),
        (["--surfaces", "nowhere/at/all"], OutputError.exit_code),
        (["--surfaces", "scan.nii.gz"], OutputError.exit_code),
        (["--sr", "r.dcm"], RequestError.exit_code),
        (["--report", "r.pdf"], OutputError.exit_code),
        (["--csv", "t.csv", "--run", "scan.nii.gz"], InputError.exit_code),
        (["--csv", "t.csv", "--run", "none.json"], InputError.exit_code),
        (["--csv", "t.csv", "--model", "no such model"], ModelError.exit_code),
        (["--csv", "case.seg.nrrd", "--overwrite"], OutputError.exit_code),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    options: list[str], code: int, files: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["export", str(files[0]), *options]) == code
    assert capsys.readouterr().err.startswith("medsegai: ")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", ["[" * 200_000, '{"outputs": ' + "9" * 5000 + "}", "[]", None])
def test_a_report_that_makes_no_sense_is_refused(
    content: str | None,
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Deep, with numbers without end, of another kind, or a pipe that nobody writes to."""
    run = tmp_path / "run.json"
    os.mkfifo(run) if content is None else run.write_text(content)
    words = ["export", str(files[0]), "--csv", str(tmp_path / "t.csv"), "--run", str(run)]
    assert main(words) == InputError.exit_code
    assert "is not a report of" in capsys.readouterr().err
    assert not (tmp_path / "t.csv").exists()


def test_a_missing_library_is_named(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda _: None)
    assert main(["export", str(files[0]), "--surfaces", str(tmp_path / "s")]) == 1
    assert "pip install 'medsegai[export]'" in capsys.readouterr().err


def test_what_the_run_says(files: tuple[Path, Path], tmp_path: Path) -> None:
    from medsegai.models.card import file_sha256

    run = tmp_path / "run.json"
    report = {
        "provenance": {
            "medsegai": "0.1.0",
            "created": "2026-01-02T03:04:05+00:00",
            "models": [{"id": "a", "version": "1"}, {"id": "b", "version": "2"}],
        },
        "warnings": ["Thick slices."],
        "outputs": {"segmentation": {"sha256": file_sha256(files[0])}},
    }
    run.write_text(json.dumps(report))
    made = provenance(files[0], run)
    assert (made.maker.name, made.maker.version, made.maker.corrected) == ("a+b", "1+2", False)
    assert made.warnings == ("Thick slices.",)
    assert made.lines["Segmented"] == "2026-01-02T03:04:05+00:00"
    assert made.lines["Corrected by a person"] == "no"
    labelmap, labels = read_labelmap(files[0])
    labelmap.voxels[0, 0, 0] = 1
    write_segmentation(files[0], labelmap, labels)
    assert provenance(files[0], run).maker.corrected
    assert provenance(files[0]).lines["Corrected by a person"] == "not known"


def test_the_card_names_the_values_of_a_labelmap(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "labels.nii.gz"
    voxels = np.where(case.labelmap.voxels == 2, 17, 0).astype(np.uint8)
    write_volume(path, case.labelmap.with_voxels(voxels))
    named = {label.value: label for label in load_case(path, model="brain").labels}
    assert named[17].name == "Left hippocampus"
    assert named[17].terminology is not None
    write_volume(path, case.labelmap.with_voxels(voxels + 200))
    with pytest.raises(InputError, match="values that the model does not have: 200, 217"):
        load_case(path, model="brain")


def test_quality_stands_in_the_table_in_one_word(case: Case) -> None:
    """As the run measured it, of structures that nobody changed and that are still those of the run."""
    measured = {"expected_dice": 0.9, "iou": None}
    items = [
        {"value": label.value, "name": label.name, "remarks": [], **measured} for label in LABELS
    ]
    items[0]["expected_dice"] = 0.5
    run = {
        "provenance": {"models": [{"id": "brain", "version": "1"}]},
        "warnings": [],
        "structures": items,
    }
    made = of_report(run)

    def words(made: Provenance, labels: tuple[Label, ...] = LABELS) -> list[str]:
        other = dataclasses.replace(case, labels=labels)
        page = case_report(Work.of(other, made).content())
        assert page.count("<th>Quality</th>") <= 1
        assert ("<th>Quality</th>" in page) == ("Quality: poor where" in page)
        return re.findall("</span>[^<]*(?:<[^t/][^<]*)*</td><td>([a-z–]+)</td>", page)

    assert words(made)[:2] == ["poor", "good"]
    renamed = (dataclasses.replace(LABELS[0], name="Another"), *LABELS[1:])
    assert words(made, renamed)[:2] == ["–", "good"]
    touched = dataclasses.replace(made.maker, touched=frozenset({LABELS[1].value}))
    assert words(dataclasses.replace(made, maker=touched))[:2] == ["poor", "–"]
    corrected = dataclasses.replace(made.maker, corrected=True)
    assert words(dataclasses.replace(made, maker=corrected)) == []
    items[1]["remarks"] = ["look at it"]
    assert words(of_report(run))[:2] == ["poor", "check"]
    items[1]["expected_dice"] = "much"
    with pytest.raises(ValueError, match="not the report"):
        of_report(run)
