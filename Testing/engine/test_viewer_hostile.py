"""Pages over names and scans that nobody wishes for: shown as text, at the right place, without a request."""

from __future__ import annotations

import base64
import gzip
import html.parser
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from chromium import Browser
from images import DIRECTIONS, ORIGIN_RAS, SPACING_MM
from medsegai.cli import main
from medsegai.export import report, viewer
from medsegai.export.case import Case
from medsegai.export.report import Content, case_report
from medsegai.export.viewer import Shown, steps_of
from medsegai.io import write_segmentation, write_volume
from medsegai.labels import Label
from medsegai.measurements.structures import measure
from medsegai.output.cohort import CaseRow, Cohort, write_cohort_table
from medsegai.output.cohort_page import cohort_page, write_cohort_page
from medsegai.volume import Geometry, Volume
from medsegai.worker.batch_events import CaseState, Entry
from test_viewer import case, data_of, niivue, page_of, places_of

__all__ = ["case", "niivue"]

CANARY = "window.canary=1"
HOSTILE = {
    "script": f"</script></style></title><script>{CANARY}</script>",
    "img": f"<img src=x onerror={CANARY}><svg onload={CANARY}>",
    "quotes": f'a"\'`>< onclick={CANARY} x="',
    "request": '<img src="https://example.invalid/x.png"><link rel=stylesheet href=//example.invalid>',
    "comment": "<!-- <script> ]]> &lt;b&gt; &amp;",
    "lines": "a\u2028b\u2029c\nd\re\x85",
    "marks": "\u202eabc\u2066\u200f\u061c",
    "emoji": "\U0001f9e0 مخ \u05de\u05d5\u05d7 a\u0301\u0301\u0301",
    "long": "x" * 5000,
    "words": "long name " * 500,
    "nul": "a\0b\x1b[31m\x9b",
    "surrogate": "a\ud800b\udc80",
    "property": "__proto__",
    "link": f"javascript:{CANARY}",
}
NAMES = {key: text for key, text in HOSTILE.items() if text.isprintable()}
"""Those that a structure may have."""


class Tags(html.parser.HTMLParser):
    """The tags of a page with the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))


def report_of(text: str) -> dict[str, object]:
    """A report of a run, each of whose texts is `text`."""
    model = {"id": text, "version": text, "weights_sha256": {text: text}}
    made = {"medsegai": text, "created": text, "device": text, "options": {text: [text]}}
    return {
        "provenance": made | {"models": [model], "inputs": [{"sha256": text}]},
        "warnings": [text],
        "structures": [{"value": 3, "name": "Left", "remarks": [text], "expected_dice": 0.9}],
        "refined": [{"settings": {"name": text}, "ml": 1}],
    }


def hostile_cohort(text: str, folder: Path) -> Cohort:
    def row(number: int) -> CaseRow:
        remarks = [text] if number == 3 else []
        measures = {"voxels": 5, "volume_ml": 1.0 + number**3, "expected_dice": 0.9}
        structure = {"name": text, **measures, "remarks": remarks}
        entry = Entry(f"{text} {number}", CaseState.DONE, 1.0, 0, text)
        return CaseRow(
            entry, (structure,), 1500.0, folder / f"{text.partition(chr(0xD800))[0]}.html"
        )

    failed = CaseRow(Entry(text, CaseState.FAILED, message=text))
    return Cohort((*map(row, range(7)), failed), (text,))


# Without a browser


def pages_over(text: str, name: str, case: Case, folder: Path) -> tuple[str, str]:
    """The page of a case and that of a cohort, which have the same tags whatever the texts are."""
    labels = (Label(3, name, (1, 2, 3)), Label(7, f"{name} 2", (1, 2, 3), opacity_3d=0))
    labels = (*labels, *case.labels[2:])
    named = Case(replace(case.labelmap, source=text), labels, case.image)
    rows = measure(named.labelmap, labels, named.image)
    more = {"warnings": (text,), "provenance": {text: {text: [text]}}, "title": text}
    page = case_report(Content(named, rows, **more, viewer=True))  # type: ignore[arg-type]
    assert data_of(page)["names"] == ["", *(label.name for label in labels)]
    return page, cohort_page(hostile_cohort(text, folder), folder)


@pytest.mark.parametrize("name", HOSTILE)
def test_texts_of_a_page_are_text(
    name: str, case: Case, niivue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "render_preview", lambda *_: Image.new("RGB", (1, 1)))
    text = HOSTILE[name]
    harmless = pages_over("text", "name", case, tmp_path)
    hostile = pages_over(text, NAMES.get(name, "name"), case, tmp_path)
    for page, other in zip(hostile, harmless, strict=True):
        page.encode()
        assert Tags(page).found == Tags(other).found
        assert not re.search("[\x00\x1b\x9b\u200f\u061c\u202a-\u202e\u2066-\u2069]", page)
    cohort = hostile_cohort(text, tmp_path)
    write_cohort_page(tmp_path / "cohort.html", cohort)
    for ending in ("csv", "tsv"):
        write_cohort_table(tmp_path / f"cohort.{ending}", cohort)


def test_the_name_of_a_file_is_no_content(case: Case, niivue: Path, tmp_path: Path) -> None:
    """pynrrd takes a path with a line break for the lines of a header."""
    path, page = tmp_path / "a\nb.seg.nrrd", tmp_path / "a\nb.html"
    write_segmentation(path, case.labelmap, case.labels)
    assert main(["export", str(path), "--report", str(page), "--quiet"]) == 0
    assert "<p" in page.read_text()


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_model_may_be_certain_everywhere(
    value: float, case: Case, niivue: Path, tmp_path: Path
) -> None:
    """A map of uncertainty may have one value, which a scan may not."""
    words = command(case, tmp_path, np.full(case.labelmap.voxels.shape, value))
    assert main(words) == 0
    assert 'data-layer="2"' in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("value", [-0.1, 400.0, math.nan, math.inf])
def test_another_image_is_no_map_of_uncertainty(
    value: float, case: Case, niivue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voxels = np.full(case.labelmap.voxels.shape, 0.5)
    voxels[1, 2, 3] = value
    assert main(command(case, tmp_path, voxels)) == 3
    said = capsys.readouterr().err
    assert "entropy.nii.gz has " in said
    assert "1 voxel that is NaN" in said or "not uncertainties in nats" in said
    assert not (tmp_path / "page.html").exists()


def command(case: Case, folder: Path, entropy: np.ndarray | None = None, *more: str) -> list[str]:
    """Write a case, and return the command that makes its page with a viewer."""
    assert case.image is not None
    write_segmentation(folder / "case.seg.nrrd", case.labelmap, case.labels)
    write_volume(folder / "scan.nii.gz", case.image)
    words = ["export", str(folder / "case.seg.nrrd"), "--image", str(folder / "scan.nii.gz")]
    if entropy is not None:
        path = folder / "entropy.nii.gz"
        write_volume(path, case.image.with_voxels(entropy.astype(np.float32)))
        words += ["--uncertainty", str(path)]
    page = str(folder / "page.html")
    return [*words, *more, "--report", page, "--viewer", "--quiet", "--overwrite"]


def nifti_of(layer: dict[str, str]) -> nibabel.Nifti1Image:
    content = gzip.decompress(base64.b64decode(layer["base64"]))
    image: nibabel.Nifti1Image = nibabel.Nifti1Image.from_bytes(content)
    return image


@pytest.mark.parametrize(("most", "along"), [(500, 2048), (10**6, 9), (60, 5)])
def test_a_scan_that_no_browser_can_hold_is_thinned_and_the_page_says_so(
    most: int, along: int, case: Case, niivue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shown stays where it is, and a row still leads into its structure."""
    assert "Browsers cannot" not in page_of(case)
    voxels = case.labelmap.voxels.copy()
    voxels[13, 17, 15] = 400  # no voxel of it is shown
    case = Case(case.labelmap.with_voxels(voxels), case.labels, case.image)
    monkeypatch.setattr(viewer, "MOST_VOXELS", most)
    monkeypatch.setattr(viewer, "MOST_ALONG", along)
    assert case.image is not None
    entropy = case.image.with_voxels(voxels / 1000)
    page = page_of(case, entropy)
    assert "Browsers cannot show a scan of this size (16 x 18 x 14 voxels" in page
    layers = [nifti_of(layer) for layer in data_of(page)["layers"]]  # type: ignore[attr-defined]
    assert len({image.shape for image in layers}) == 1
    assert math.prod(layers[0].shape) <= most
    assert max(layers[0].shape) <= along
    shown = np.asarray(layers[1].dataobj)
    for place in ((0, 0, 0), tuple(n - 1 for n in shown.shape), (1, 2, 0)):
        mm = layers[1].affine @ [*place, 1]
        i, j, k = np.rint(np.linalg.inv(case.labelmap.geometry.ijk_to_ras) @ mm)[:3].astype(int)
        number = shown[place]
        assert voxels[k, j, i] == ([0, *(label.value for label in case.labels)])[number]
    found = places_of(page)
    assert set(found) == {1, 2, 3, 4}
    for number, mm in found.items():
        nearest = np.rint(np.linalg.inv(layers[1].affine) @ [*mm, 1])[:3].astype(int)
        if (shown == number).any():
            assert shown[tuple(nearest)] == number


@pytest.mark.parametrize("shape", [(600, 512, 512), (3000, 2, 2), (2, 20_000, 9000)])
def test_voxels_that_are_left_out_are_those_that_lie_closest(shape: tuple[int, int, int]) -> None:
    grid = Geometry.from_spacing(shape, (0.5, 0.5, 1.0))
    steps = steps_of(grid)
    thinned = grid.thinned(steps)
    assert math.prod(thinned.shape) <= viewer.MOST_VOXELS
    assert max(thinned.shape) <= viewer.MOST_ALONG
    assert min(thinned.shape) >= 2
    if shape[0] == 600:
        assert steps == (2, 2, 2)
    assert steps_of(Geometry.from_spacing((256, 256, 256), (1, 1, 1))) == (1, 1, 1)


def test_what_is_shown_of_a_small_case_is_the_case(case: Case, niivue: Path) -> None:
    shown = Shown.of(case, None)
    assert shown.case.image is case.image
    assert shown.resolution() == ""


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not viewer.viewer_is_here():
        pytest.skip("no NiiVue: run .ci/niivue")
    with Browser(tmp_path_factory.mktemp("profile")) as shown:
        yield shown


def opened(browser: Browser, page: Path, has_viewer: bool = True) -> None:
    """Open a page: no foreign script runs, nothing is asked of anybody, and it is not wider than the window."""
    browser.events.clear()
    browser("Page.navigate", url=page.as_uri())
    browser.wait_for(
        f"location.href === {json.dumps(page.as_uri())} && document.readyState === 'complete'"
    )
    if has_viewer:
        browser.wait_for("document.getElementById('viewer').dataset.ready === 'yes'")
        rows = list(places_of(page.read_text()).items())
        for value, mm in rows[:2] + rows[-1:]:
            browser.click(f'tr[data-value="{value}"] td')
            near = f"(part, axis) => Math.abs(part - {mm}[axis]) < 0.02"
            browser.wait_for(f"medsegaiViewer.where().every({near})")
            here = "[...document.querySelectorAll('tr.here')].map(row => row.dataset.value).join()"
            assert browser.evaluate(here) == str(value)
    assert browser.evaluate("window.canary") is None
    assert browser.evaluate(
        "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )
    assert {url for url in browser.requests() if not url.startswith(("data:", "blob:"))} == {
        page.as_uri()
    }
    assert browser.complaints() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_is_obeyed(name: str, browser: Browser, case: Case, tmp_path: Path) -> None:
    text = HOSTILE[name]
    run = tmp_path / "run.json"
    run.write_text(json.dumps(report_of(text.encode(errors="replace").decode())))
    if name in NAMES:
        labels = (Label(3, text, (1, 2, 3)), Label(7, f"Right {text}", (9, 2, 3)), *case.labels[2:])
        case = Case(case.labelmap, labels, case.image)
    words = command(case, tmp_path, None, "--run", str(run))
    assert main(words) == 0
    opened(browser, tmp_path / "page.html")
    assert main([word for word in words if word != "--viewer"]) == 0
    opened(browser, tmp_path / "page.html", has_viewer=False)
    write_cohort_page(tmp_path / "cohort.html", hostile_cohort(text, tmp_path))
    opened(browser, tmp_path / "cohort.html", has_viewer=False)


def of_shape(voxels: np.ndarray, directions: str = "oblique") -> Case:
    grid = Geometry.from_spacing(voxels.shape, SPACING_MM, ORIGIN_RAS, DIRECTIONS[directions])
    values = [int(value) for value in np.unique(voxels) if value] or [1]
    labels = tuple(Label(value, f"Part {value}", (250, value % 250, 9)) for value in values)
    image = np.random.default_rng(1).normal(100, 20, voxels.shape) + voxels % 10 * 40
    return Case(Volume(voxels, grid), labels, Volume(image, grid))


def blocks(low: int = 3, high: int = 7) -> np.ndarray:
    voxels = np.zeros((14, 18, 16), np.uint16)
    voxels[2:12, 2:9, 2:9], voxels[2:12, 10:16, 2:14] = low, high
    return voxels


def many(count: int) -> np.ndarray:
    voxels = np.zeros((20, 24, 28), np.uint16)
    voxels.ravel()[500 : 500 + 5 * count] = np.repeat(np.arange(1, count + 1), 5)
    return voxels


ODD = {
    **{f"grid {name}": of_shape(blocks(), name) for name in DIRECTIONS},
    "two voxels": of_shape(np.arange(8, dtype=np.uint16).reshape(2, 2, 2) % 2),
    "high values": of_shape(blocks(300, 65535)),
    "three hundred": of_shape(many(300)),
    "empty": of_shape(blocks(0, 0)),
    "full": of_shape(np.ones((5, 6, 7), np.uint16)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_a_click_leads_to_the_place(name: str, browser: Browser, tmp_path: Path) -> None:
    assert main(command(ODD[name], tmp_path)) == 0
    opened(browser, tmp_path / "page.html")


@pytest.mark.slow
def test_a_click_leads_to_the_place_in_a_thinned_scan(
    browser: Browser, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer, "MOST_VOXELS", 500)
    assert main(command(case, tmp_path, np.zeros(case.labelmap.voxels.shape))) == 0
    opened(browser, tmp_path / "page.html")
