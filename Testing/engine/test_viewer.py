"""The viewer in a report: one file that holds the scan, goes where a row is clicked, and loads nothing."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from chromium import Browser
from images import DIRECTIONS, ORIGIN_RAS, SPACING_MM
from medsegai.cli import main
from medsegai.errors import GeometryError, MedSegAIError, RequestError
from medsegai.export import viewer
from medsegai.export.case import Case
from medsegai.export.report import Content, case_report
from medsegai.io import write_segmentation, write_volume
from medsegai.labels import Label
from medsegai.measurements.structures import measure
from medsegai.models.json_fields import to_json
from medsegai.volume import Geometry, Volume

LABELS = (
    Label(3, "Left </script><b>lobe</b>", (250, 10, 10)),
    Label(7, "Right lobe", (10, 250, 10)),
    Label(9, "Fluid", (10, 10, 250), opacity_3d=0),
    Label(400, "Absent", (1, 2, 3)),
)
SHAPE = (14, 18, 16)


@pytest.fixture
def case() -> Case:
    """An oblique scan with a structure of the shape of a C, whose centroid lies outside of it."""
    grid = Geometry.from_spacing(SHAPE, SPACING_MM, ORIGIN_RAS, DIRECTIONS["oblique"])
    voxels = np.zeros(SHAPE, np.uint16)
    voxels[2:12, 2:9, 2:9] = 3
    voxels[4:10, 4:9, 4:9] = 0
    voxels[2:12, 10:16, 2:14], voxels[2:4, 2:9, 11:14] = 7, 9
    image = np.random.default_rng(1).normal(100, 20, SHAPE) + voxels % 10 * 40
    return Case(Volume(voxels, grid, "case.nii.gz"), LABELS, Volume(image, grid, "scan.nii.gz"))


@pytest.fixture
def niivue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in the place of NiiVue, where tests need not draw."""
    folder = tmp_path / "niivue"
    folder.mkdir()
    (folder / viewer.SCRIPT).write_text("var niivue = '</script>';")
    (folder / viewer.LICENCE).write_text("Copyright <somebody>")
    monkeypatch.setattr(viewer, "NIIVUE", folder)
    return folder


def page_of(case: Case, entropy: Volume | None = None) -> str:
    rows = measure(case.labelmap, case.labels, case.image)
    return case_report(Content(case, rows, viewer=True, entropy=entropy))


def data_of(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="viewer-data">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[1])


def places_of(page: str) -> dict[int, list[float]]:
    found = re.findall(r'<tr data-mm="([^"]*)" data-value="(\d+)"', page)
    return {int(value): [float(part) for part in mm.split()] for mm, value in found}


def test_a_row_leads_into_its_structure(case: Case, niivue: Path) -> None:
    """Not to the centroid, which may lie outside; and what is absent leads nowhere."""
    places = places_of(page_of(case))
    assert list(places) == [1, 2, 3]
    for label, mm in zip(LABELS[:3], places.values(), strict=True):
        i, j, k = np.rint(np.linalg.inv(case.labelmap.geometry.ijk_to_ras) @ [*mm, 1])[:3].astype(
            int
        )
        assert case.labelmap.voxels[k, j, i] == label.value


def test_the_layers_are_the_scan_and_the_labels(case: Case, niivue: Path) -> None:
    entropy = case.labelmap.with_voxels((case.labelmap.voxels % 5 / 7).astype(np.float32))
    data = data_of(page_of(case, entropy))
    assert data["names"] == ["", *(label.name for label in LABELS)]
    layers = {layer["name"]: layer for layer in data["layers"]}
    assert list(layers) == ["scan", "structures", "uncertainty"]
    images = {}
    for name, layer in layers.items():
        content = gzip.decompress(base64.b64decode(layer["base64"]))
        images[name] = nibabel.Nifti1Image.from_bytes(content)
        expected = case.labelmap.geometry.ijk_to_ras
        np.testing.assert_allclose(images[name].affine, expected, atol=1e-4)
    found = np.asarray(images["structures"].dataobj).T
    for number, label in enumerate(LABELS, 1):
        np.testing.assert_array_equal(found == number, case.labelmap.voxels == label.value)
        colors = layers["structures"]["colors"]
        assert tuple(colors[part][number] for part in "RGB") == label.color
        assert (colors["A"][number] > 0) == (label.opacity_3d > 0)
    assert case.image is not None
    grey = np.asarray(images["scan"].dataobj).T.astype(float)
    assert np.corrcoef(grey.ravel(), case.image.voxels.ravel())[0, 1] > 0.99
    doubt = np.asarray(images["uncertainty"].dataobj).T
    assert doubt.max() == 255
    np.testing.assert_array_equal(doubt == 0, entropy.voxels == 0)


def test_the_page_says_that_it_holds_the_scan_and_whose_viewer_it_is(
    case: Case, niivue: Path
) -> None:
    page = page_of(case)
    assert "This page contains the scan" in page
    assert "Copyright &lt;somebody&gt;" in page
    assert "<b>lobe" not in page, "names from outside are text"
    assert page.count("<script") == page.count("</script>") == 3
    assert "Hidden at first, because it would hide the rest in 3D: Fluid." in page
    assert 'data-layer="2"' not in page, "no uncertainty was measured"


def test_without_niivue_or_the_scan_it_is_refused(
    case: Case, niivue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RequestError, match="--image or --dicom"):
        page_of(Case(case.labelmap, case.labels))
    other = Geometry.from_spacing(SHAPE, (1, 1, 1))
    with pytest.raises(GeometryError):
        page_of(case, Volume(np.zeros(SHAPE, np.float32), other))
    write_segmentation(tmp_path / "case.seg.nrrd", case.labelmap, case.labels)
    words = ["export", f"{tmp_path}/case.seg.nrrd", "--viewer"]
    assert main([*words, "--csv", f"{tmp_path}/x.csv"]) == 2
    assert "Name it with --report" in capsys.readouterr().err
    assert main([*words, "--report", f"{tmp_path}/x.html"]) == 2
    (niivue / viewer.SCRIPT).unlink()
    with pytest.raises(MedSegAIError, match=r"Run \.ci/niivue"):
        page_of(case)
    assert main([*words, "--report", f"{tmp_path}/x.html"]) == 1
    assert not (tmp_path / "x.html").exists()


def test_what_would_hide_the_rest_is_known_from_the_model_of_the_run(
    case: Case, niivue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of segments does not say it; the card of the model that the report of the run names does."""
    card = {
        **{"id": "toy", "name": "Toy", "family": "none", "version": "1", "spacing_mm": [1, 1, 1]},
        **{"channels": [{"name": "any", "modality": "MR"}], "members": [{"name": "axial"}]},
        "labels": to_json(LABELS),
    }
    (tmp_path / "models" / "toy").mkdir(parents=True)
    (tmp_path / "models" / "toy" / "card.json").write_text(json.dumps(card))
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "models"))
    assert case.image is not None
    write_segmentation(tmp_path / "case.seg.nrrd", case.labelmap, case.labels)
    write_volume(tmp_path / "scan.nii.gz", case.image)
    run = {"provenance": {"models": [{"id": "toy", "version": "1"}]}, "warnings": []}
    (tmp_path / "run.json").write_text(json.dumps(run))
    page = tmp_path / "page.html"
    words = [
        "export",
        f"{tmp_path}/case.seg.nrrd",
        "--image",
        f"{tmp_path}/scan.nii.gz",
        "--viewer",
    ]
    hint = "because it would hide the rest in 3D: Fluid"
    for more, known in ((["--run", f"{tmp_path}/run.json"], True), ([], False)):
        assert main([*words, *more, "--report", str(page), "--overwrite", "--quiet"]) == 0
        assert (hint in page.read_text()) == known


@pytest.mark.slow
def test_a_click_on_a_row_moves_the_crosshair_and_nothing_is_asked_of_anybody(
    case: Case, tmp_path: Path
) -> None:
    """In a real browser, from file://; the picture is kept for a person to look at."""
    if not viewer.viewer_is_here():
        pytest.skip("no NiiVue: run .ci/niivue")
    assert case.image is not None
    write_segmentation(tmp_path / "case.seg.nrrd", case.labelmap, case.labels)
    write_volume(tmp_path / "scan.nii.gz", case.image)
    write_volume(tmp_path / "doubt.nii.gz", case.image.with_voxels(case.image.voxels / 100))
    words = ["export", "case.seg.nrrd", "--image", "scan.nii.gz", "--uncertainty", "doubt.nii.gz"]
    paths = [f"{tmp_path}/{word}" if "." in word else word for word in words]
    page = tmp_path / "page.html"
    assert main([*paths, "--report", str(page), "--viewer", "--quiet"]) == 0
    with Browser(tmp_path / "profile") as browser:
        browser("Page.navigate", url=page.as_uri())
        browser.wait_for("document.getElementById('viewer')?.dataset.ready === 'yes'")
        for value, mm in places_of(page.read_text()).items():
            browser.click(f'tr[data-value="{value}"] td')
            near = f"(part, axis) => Math.abs(part - {mm}[axis]) < 0.01"
            browser.wait_for(f"medsegaiViewer.where().every({near})")
            assert browser.evaluate('document.querySelector("tr.here").dataset.value') == str(value)
            name = LABELS[value - 1].name
            assert name in browser.evaluate("document.getElementById('viewer-place').textContent")
        (here, *_), shown = browser.evaluate("medsegaiViewer.where()"), "medsegaiViewer.isShown(1)"
        for pressed in ("false", "true"):
            browser.click('tr[data-value="1"] button.eye')
            browser.wait_for(f'document.querySelector("[aria-pressed={pressed}]") !== null')
            browser.wait_for(f"{shown} === {pressed}")
            assert browser.evaluate("medsegaiViewer.where()[0]") == here, "the crosshair stays"
        browser.evaluate(
            "(() => { const slider = document.querySelector('[data-layer=\"2\"]'); slider.value = 1; "
            "slider.dispatchEvent(new Event('input')); document.getElementById('viewer').scrollIntoView(); })()"
        )
        picture = browser.picture()
        asked = {url.partition(":")[0] for url in browser.requests()}
        assert asked <= {"file", "data", "blob"}
        assert [url for url in browser.requests() if url.startswith("file")] == [page.as_uri()]
        assert browser.complaints() == []
    output = Path(__file__).resolve().parents[1] / "output"
    output.mkdir(exist_ok=True)
    (output / "viewer.png").write_bytes(picture)
    colors = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).reshape(-1, 3).astype(int)
    assert (colors.max(1) - colors.min(1) > 60).mean() > 0.005, "there is colour in the picture"
