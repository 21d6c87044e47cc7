"""What a batch writes beside plain files: a BIDS derivative and FreeSurfer's folders, read by others' rules."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_engine
from medsegai.cli import main
from medsegai.errors import RequestError
from medsegai.io import read_labelmap, read_volume
from medsegai.labels import Label
from medsegai.models.catalogue import find_card
from medsegai.models.json_fields import to_json
from medsegai.output.bids_files import VOLUMES_COLUMNS
from medsegai.output.freesurfer_files import (
    PAIRED,
    SINGLE,
    freesurfer_label,
    freesurfer_labels,
    renumbered,
)
from medsegai.output.layouts import BidsFiles
from medsegai.output.result_files import ENDINGS, WRITERS, Outputs, volume_rows
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult

Batch = Callable[..., int]

BRAIN = (
    Label(1, "Left hippocampus", (30, 60, 220)),
    Label(4, "Brain stem", (230, 40, 40)),
    Label(9, "Right cerebral white matter", (10, 200, 10)),
)
"""What the made-up labels are called where structures must be FreeSurfer's; their values are not its numbers."""


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 200, (9, 7, 8), dtype=np.int16)
    image = nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A BIDS dataset of two subjects, one with two runs."""
    raw = tmp_path / "raw"
    for seed, name in enumerate(
        ["sub-01_ses-a_acq-x_run-1", "sub-01_ses-a_acq-x_run-2", "sub-02_ses-a"]
    ):
        save(raw / name[:6] / "ses-a" / "anat" / f"{name}_T1w.nii.gz", seed)
    (raw / "dataset_description.json").write_text(
        json.dumps({"Name": "x", "BIDSVersion": "1.10.0"})
    )
    return raw


@pytest.fixture
def brain(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The toy model with structures that FreeSurfer has."""
    path = tmp_path / "models" / model / "card.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"labels": to_json(BRAIN)}))
    monkeypatch.setattr(fake_engine, "LABELS", BRAIN)
    return model


@pytest.fixture
def batch(dataset: Path, model: str, requests: list[SegmentationRequest], tmp_path: Path) -> Batch:
    def run(*arguments: object) -> int:
        words = ["batch", dataset, "-o", tmp_path / "out", "--model", model, *arguments]
        return main([str(word) for word in words])

    return run


def rows(path: Path) -> list[dict[str, str]]:
    """A table as BIDS has it: tabs, no quotes."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


# BIDS


def test_a_derivative_has_the_names_of_bids(batch: Batch, tmp_path: Path) -> None:
    assert batch("--layout", "bids", "--save-probabilities", "--uncertainty", "--preview") == 0
    out = tmp_path / "out"
    stem = "sub-01_ses-a_acq-x_run-2_space-orig_desc-medsegai"
    expected = {
        f"{stem}_{ending}"
        for ending in (
            *(
                "dseg.nii.gz",
                "dseg.tsv",
                "dseg.json",
                "probseg.nii.gz",
                "probseg.json",
                "volumes.tsv",
            ),
            *("uncertainty.nii.gz", "preview.png", "report.json"),
        )
    }
    found = {path.name for path in (out / "sub-01" / "ses-a" / "anat").iterdir()}
    assert found == expected | {name.replace("run-2", "run-1") for name in expected}
    at = out / "sub-01" / "ses-a" / "anat" / stem
    assert rows(Path(f"{at}_dseg.tsv"))[1] == {
        "index": "4",
        "name": "Bright tissue",
        "color": "#e62828",
    }
    values = np.unique(np.asarray(nibabel.load(f"{at}_dseg.nii.gz").dataobj))
    assert set(values) - {0} <= {int(row["index"]) for row in rows(Path(f"{at}_dseg.tsv"))}
    sidecar = json.loads(Path(f"{at}_probseg.json").read_text())
    assert sidecar["LabelMap"] == [label.name for label in fake_engine.LABELS]
    assert nibabel.load(f"{at}_probseg.nii.gz").shape[3] == len(sidecar["LabelMap"])
    (source,) = json.loads(Path(f"{at}_dseg.json").read_text())["Sources"]
    link, _, within = source.removeprefix("bids:").partition(":")
    description = json.loads((out / "dataset_description.json").read_text())
    assert (out / description["DatasetLinks"][link] / within).resolve().is_file()
    assert description["GeneratedBy"][0]["Name"] == "MedSegAI"


def test_scans_of_a_dataset_that_a_table_names_are_linked_too(
    dataset: Path, model: str, requests: list[SegmentationRequest], tmp_path: Path
) -> None:
    """The table lies elsewhere; the link leads from the derivative to the dataset."""
    table, out = tmp_path / "elsewhere" / "cases.csv", tmp_path / "out"
    table.parent.mkdir()
    scan = next((dataset / "sub-02").rglob("*_T1w.nii.gz"))
    table.write_text(f"case,image\nsub-02,{scan}\n")
    assert main(["batch", str(table), "-o", str(out), "--model", model, "--layout", "bids"]) == 0
    link = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]["raw"]
    (source,) = json.loads(next(out.rglob("*_dseg.json")).read_text())["Sources"]
    assert (out / link / source.removeprefix("bids:raw:")).resolve() == scan.resolve()


def test_the_table_of_volumes_is_explained_column_for_column(batch: Batch, tmp_path: Path) -> None:
    batch("--layout", "bids", "--uncertainty")
    table = next((tmp_path / "out").rglob("sub-02*_volumes.tsv"))
    explained = json.loads((tmp_path / "out" / "desc-medsegai_volumes.json").read_text())
    labels = np.asarray(nibabel.load(str(table).replace("volumes.tsv", "dseg.nii.gz")).dataobj)
    for row in rows(table):
        assert list(row) == list(explained)
        assert int(row["voxels"]) == (labels == int(row["index"])).sum()
        assert float(row["volume_ml"]) == pytest.approx(int(row["voxels"]) * 0.006)
    absent = rows(table)[-1]
    assert (absent["voxels"], absent["iou"], absent["remarks"]) == ("0", "n/a", "n/a")
    assert all(item["Description"] for item in explained.values())


def test_every_measure_of_a_structure_has_a_column() -> None:
    """A new one is in the table of BIDS too, or this fails."""
    scan = fake_engine.Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), _grid())
    result = fake_engine.segment(SegmentationRequest((scan,), uncertainty=True))
    assert set(volume_rows(result)[0]) - {"value"} == set(VOLUMES_COLUMNS) - {"index"}


def _grid() -> Any:
    from medsegai.volume import Geometry

    return Geometry.from_spacing((2, 3, 4), (1, 2, 3))


def test_every_part_has_a_writer_and_endings() -> None:
    parts = set(Outputs.__dataclass_fields__)
    assert set(ENDINGS) == parts
    assert set(WRITERS) == parts - {"report"}


def test_a_derivative_is_gone_on_with(
    batch: Batch, dataset: Path, requests: list[SegmentationRequest], tmp_path: Path
) -> None:
    broken = dataset / "sub-02" / "ses-a" / "anat" / "sub-02_ses-a_T1w.nii.gz"
    sound = broken.read_bytes()
    broken.write_bytes(b"no image")
    assert batch("--layout", "bids") == 1
    assert not (tmp_path / "out" / "sub-02").exists(), "nothing is left of a case that failed"
    broken.write_bytes(sound)
    (tmp_path / "out" / "sub-01" / "ses-a" / "anat" / f".{'a' * 16}.tsv").write_text("half")
    requests.clear()
    assert batch("--layout", "bids", "--resume") == 0
    assert [path.name for request in requests for path in request.inputs] == [broken.name]
    assert not list((tmp_path / "out").rglob(".*.tsv"))


@pytest.mark.parametrize("described", [True, False])
def test_a_dataset_of_others_is_not_written_over(
    described: bool,
    dataset: Path,
    model: str,
    requests: list[SegmentationRequest],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not described:
        (dataset / "dataset_description.json").unlink()
    before = sorted(dataset.rglob("*"))
    words = ["batch", str(dataset), "-o", str(dataset), "--model", model, "--layout", "bids"]
    assert main(words) == 5
    assert "is the dataset of the scans. Name a separate folder" in capsys.readouterr().err
    assert sorted(dataset.rglob("*")) == before


def test_images_of_others_make_a_folder_a_dataset(
    batch: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "out" / "sub-9" / "anat" / "sub-9_T1w.nii.gz")
    assert batch("--layout", "bids") == 5
    assert "holds another dataset (without dataset_description.json)" in capsys.readouterr().err


def test_a_table_of_two_datasets_is_refused(
    dataset: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A derivative has one link to its scans, and that of the first would lead to the wrong subject."""
    scan = save(tmp_path / "other" / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    own = next(dataset.rglob("*_T1w.nii.gz"))
    (tmp_path / "cases.csv").write_text(f"case,image\nsub-01,{own}\nsub-02,{scan}\n")
    words = ["batch", f"{tmp_path}/cases.csv", "-o", f"{tmp_path}/out", "--model", model]
    assert main([*words, "--layout", "bids"]) == 2
    assert "are in several BIDS datasets" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def edited(path: Path, **more: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def test_what_people_added_to_a_derivative_stays(batch: Batch, tmp_path: Path) -> None:
    """The authors, for which the validator of BIDS asks, were lost when a batch was resumed."""
    assert batch("--layout", "bids") == 0
    out = tmp_path / "out"
    files = {name: out / name for name in ("README.md", ".bidsignore", "dataset_description.json")}
    whole = {name: path.read_bytes() for name, path in files.items()}
    assert batch("--layout", "bids", "--resume") == 0
    assert {name: path.read_bytes() for name, path in files.items()} == whole
    edited(files["dataset_description.json"], Authors=["A"], Name="Ours", BIDSVersion="1.0.0")
    files["README.md"].write_text("ours")
    files[".bidsignore"].write_text("extra/\n" + files[".bidsignore"].read_text().split("\n")[0])
    assert batch("--layout", "bids", "--resume") == 0
    description = json.loads(files["dataset_description.json"].read_text())
    assert (description["Authors"], description["Name"]) == (["A"], "Ours")
    assert (
        description["BIDSVersion"] == json.loads(whole["dataset_description.json"])["BIDSVersion"]
    )
    assert files["README.md"].read_text() == "ours"
    lines = files[".bidsignore"].read_bytes().splitlines()
    assert lines[0] == b"extra/"
    assert sorted(lines[1:]) == sorted(whole[".bidsignore"].splitlines())


def test_versions_that_made_a_derivative_are_all_named(batch: Batch, tmp_path: Path) -> None:
    assert batch("--layout", "bids") == 0
    path = tmp_path / "out" / "dataset_description.json"
    (now,) = json.loads(path.read_text())["GeneratedBy"]
    before, other = {**now, "Version": "0.0.1"}, {"Name": "Another tool"}
    edited(path, GeneratedBy=[before, other, "odd"])
    assert batch("--layout", "bids", "--resume") == 0
    assert json.loads(path.read_text())["GeneratedBy"] == [now, before, other]
    assert batch("--layout", "bids", "--overwrite") == 0
    assert json.loads(path.read_text())["GeneratedBy"] == [now, other], (
        "nothing is left of the old one"
    )


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"GeneratedBy": 3}', '{"GeneratedBy": [{"Name": "other"}, 3]}', "[" * 99_999],
)
def test_a_folder_with_another_description_is_left_alone(
    content: str, batch: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset_description.json").write_text(content)
    assert batch("--layout", "bids") == 5
    assert "holds another dataset" in capsys.readouterr().err
    assert (out / "dataset_description.json").read_text() == content
    assert [path.name for path in out.iterdir()] == ["dataset_description.json"]


def test_results_of_two_datasets_are_not_mixed(
    batch: Batch,
    dataset: Path,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The URIs of the first would lead into the second. A dataset that was moved is still the same."""
    assert batch("--layout", "bids") == 0
    other = tmp_path / "other"
    save(other / "sub-07" / "anat" / "sub-07_T1w.nii.gz")
    words = ["batch", str(other), "-o", f"{tmp_path}/out", "--model", model, "--layout", "bids"]
    assert main(words) == 5
    assert "holds results of another dataset" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*sub-07*"))
    (tmp_path / "new").mkdir()
    dataset.rename(tmp_path / "new" / "raw")
    words[1] = str(tmp_path / "new" / "raw")
    assert main([*words, "--resume"]) == 0
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert description["DatasetLinks"] == {"raw": "../new/raw"}


@pytest.mark.parametrize("layout", ["plain", "bids"])
def test_a_batch_is_not_resumed_with_other_images_or_models(
    layout: str,
    batch: Batch,
    dataset: Path,
    model: str,
    requests: list[SegmentationRequest],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The cases of T1w and of T2w images have the same names, and one image was taken for the other."""
    for path in list(dataset.rglob("*_T1w.nii.gz")):
        save(path.with_name(path.name.replace("T1w", "T2w")), 9)
    assert batch("--layout", layout) == 0
    requests.clear()
    other = ["--layout", layout, "--bids-filter", "suffix=T2w"]
    assert batch(*other, "--resume") == 2
    said = capsys.readouterr().err
    assert "was made from other files than sub-01_ses-a_acq-x_run-1_T2w.nii.gz" in said
    assert batch("--layout", layout, "--resume") == 0
    assert requests == []
    card = tmp_path / "models" / model / "card.json"
    edited(card, version="2")
    assert batch("--layout", layout, "--resume") == 2
    assert f"with another version of {model}" in capsys.readouterr().err
    assert batch(*other, "--overwrite") == 0
    assert len(requests) == 3


def test_scans_that_are_no_dataset_become_subjects(
    model: str,
    requests: list[SegmentationRequest],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    save(scans / "Head 1.nii.gz")
    words = ["batch", str(scans), "-o", str(out), "--model", model, "--layout", "bids"]
    assert main(words) == 0
    assert (out / "sub-Head1/anat/sub-Head1_space-orig_desc-medsegai_dseg.nii.gz").is_file()
    assert "DatasetLinks" not in json.loads((out / "dataset_description.json").read_text())
    for name in ("sub-7_T1w", "頭", "脳"):
        save(scans / f"{name}.nii.gz")
    assert main([*words, "--overwrite"]) == 0
    assert (out / "sub-7/anat/sub-7_space-orig_desc-medsegai_dseg.nii.gz").is_file()
    assert len(list(out.glob("sub-x*"))) == 2
    save(scans / "Head_1.nii.gz")
    assert main([*words, "--overwrite"]) == 2
    assert "would be the same case in BIDS" in capsys.readouterr().err
    assert main([*words[:-2], "--layout", "freesurfer"]) == 2


labels_of_bids = st.from_regex(r"[A-Za-z0-9]{1,3}", fullmatch=True)


@given(
    st.dictionaries(
        st.sampled_from(["ses", "acq", "run", "space", "desc", "res", "part", "chunk", "echo"]),
        labels_of_bids,
    )
)
def test_names_of_derivatives_keep_what_the_scan_is_called(entities: dict[str, str]) -> None:
    """All of its entities, in the order of BIDS; but desc, which says who made it."""
    case = "_".join(f"{key}-{value}" for key, value in {"sub": "01", **entities}.items())
    path = BidsFiles(Path("out")).outputs(case).segmentation
    pairs = [part.split("-") for part in path.name.removesuffix("_dseg.nii.gz").split("_")]
    expected = {"sub": "01", "space": "orig", **entities, "desc": "medsegai"}
    assert dict(pairs) == expected
    order = ["sub", "ses", "acq", "run", "echo", "part", "space", "chunk", "res", "desc"]
    assert [key for key, _ in pairs] == [key for key in order if key in expected]


def validator() -> Path:
    """The script of bids-validator-deno, wherever its package lies."""
    try:
        files = importlib.metadata.files("bids-validator-deno") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no bids-validator-deno: pip install bids-validator-deno")
    return Path(next(file for file in files if file.stem == "bids-validator-deno").locate())


ENTITIES_OF_IMAGES = (
    *(
        "acq-a_ce-b_rec-c_run-1",
        "run-2_echo-1",
        "run-2_echo-2",
        "acq-a_run-3_part-mag",
        "run-4_chunk-1",
    ),
    *("space-MNI152Lin_res-2", "desc-preproc"),
)
"""Of names of anatomical images, in the order of BIDS."""


@pytest.mark.slow
def test_the_validator_of_bids_finds_no_error(batch: Batch, dataset: Path, tmp_path: Path) -> None:
    """bids-validator-deno of PyPI, which shares no code with us; it must find what is put wrong, too."""
    program = validator()
    wanted = ("--save-probabilities", "--uncertainty", "--preview", "--pages")
    assert batch("--layout", "bids", *wanted) == 0

    def errors() -> set[str]:
        done = subprocess.run(
            [program, "--format", "json", str(tmp_path / "out")],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        issues = json.loads(done.stdout)["issues"]["issues"]
        return {issue["code"] for issue in issues if issue["severity"] == "error"}

    assert errors() == set()
    for entities in ENTITIES_OF_IMAGES:
        save(dataset / "sub-03" / "anat" / f"sub-03_{entities}_T1w.nii.gz")
    assert batch("--layout", "bids", *wanted, "--resume") == 0
    assert len(list((tmp_path / "out").glob("sub-03/anat/*_dseg.nii.gz"))) == len(
        ENTITIES_OF_IMAGES
    )
    assert errors() == set()
    next((tmp_path / "out").rglob("*run-1*_dseg.json")).write_text("{}")
    assert errors() == {"SIDECAR_KEY_REQUIRED"}


# FreeSurfer


def read_statistics(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Volumes by structure, and measures, by the places that asegstats2table looks at: fields 1, 3 and 4."""
    volumes, measures = {}, {}
    for line in path.read_text().splitlines():
        if line.startswith("# Measure "):
            words = line.split(",")
            assert len(words) == 5
            measures[words[1].strip()] = float(words[3])
        elif "#" not in line:
            fields = line.split()
            assert len(fields) == 10
            assert int(fields[0]) == len(volumes) + 1
            int(fields[1])
            volumes[fields[4]] = float(fields[3])
    return volumes, measures


def test_freesurfers_numbers_are_written(
    batch: Batch, dataset: Path, brain: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def segment(request: SegmentationRequest, progress: Progress) -> SegmentationResult:
        return replace(fake_engine.segment(request, progress), intracranial_ml=1.25)

    monkeypatch.setattr(sys.modules["medsegai.engine"], "segment", segment)
    assert batch("--layout", "freesurfer") == 0
    case = tmp_path / "out" / "sub-02_ses-a"
    found = {path.relative_to(case).as_posix() for path in case.rglob("*.*")}
    assert found == {"mri/aseg.mgz", "mri/aseg.ctab", "stats/aseg.stats", "scripts/medsegai.json"}
    aseg = nibabel.load(case / "mri" / "aseg.mgz")
    scan = nibabel.load(dataset / "sub-02" / "ses-a" / "anat" / "sub-02_ses-a_T1w.nii.gz")
    np.testing.assert_allclose(aseg.affine, scan.affine, atol=1e-4)
    values, grey = np.asarray(aseg.dataobj), np.asarray(scan.dataobj)
    assert set(np.unique(values)) == {0, 16, 17}
    np.testing.assert_array_equal(values == 16, grey > grey.mean())
    table = [line.split() for line in (case / "mri" / "aseg.ctab").read_text().splitlines()]
    assert ["17", "Left-Hippocampus", "220", "216", "20", "0"] in table
    volumes, measures = read_statistics(case / "stats" / "aseg.stats")
    assert measures == {"ICV": 1250.0}
    assert volumes == {
        "Brain-Stem": 6.0 * (values == 16).sum(),
        "Left-Hippocampus": 6.0 * (values == 17).sum(),
        "Right-Cerebral-White-Matter": 0.0,
    }
    line = next(
        line for line in (case / "stats/aseg.stats").read_text().splitlines() if "Stem" in line
    )
    expected = grey[values == 16]
    assert float(line.split()[5]) == pytest.approx(expected.mean(), abs=1e-3)
    assert float(line.split()[8]) == expected.max()
    assert batch("--layout", "freesurfer", "--resume") == 0


def test_structures_that_freesurfer_lacks_are_named_before_anything_runs(
    batch: Batch,
    requests: list[SegmentationRequest],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert batch("--layout", "freesurfer") == 2
    assert "not have a number for Dark tissue, Bright tissue" in capsys.readouterr().err
    assert requests == []
    assert not list((tmp_path / "out").glob("sub-*"))
    assert batch("--layout", "freesurfer", "--format", ".nii.gz") == 2
    assert "--format is only for the plain layout" in capsys.readouterr().err


def test_the_brain_model_has_freesurfers_numbers() -> None:
    """Its label maps came from FreeSurfer: where names are matched, the numbers must be the same ones."""
    labels = find_card("brain").labels
    assert [label.value for label in freesurfer_labels(labels)] == [label.value for label in labels]


def test_numbers_and_names_are_each_given_once() -> None:
    numbers = [number for _, *both, _, _ in PAIRED for number in both] + [row[1] for row in SINGLE]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("Left-Cerebral-White-Matter", 2),
        ("right_thalamus_proper", 49),
        ("Hippocampus right", 53),
        ("lh hippocampus", 17),
        ("Hippocampus L", 17),
        ("3rd ventricle", 14),
        ("Hippocampus", None),
        ("Left brain stem", None),
        ("Liver", None),
    ],
)
def test_structures_are_known_by_their_names(name: str, number: int | None) -> None:
    found = freesurfer_label(Label(1, name, (1, 2, 3)))
    assert (None if found is None else found.value) == number


def test_two_names_of_one_structure_are_refused() -> None:
    labels = [Label(1, "Left thalamus", (0, 0, 0)), Label(2, "Left-Thalamus-Proper", (0, 0, 0))]
    with pytest.raises(RequestError, match=r"correspond to FreeSurfer's Left-Thalamus"):
        freesurfer_labels(labels)


def test_renumbering_keeps_every_voxel_and_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_engine, "LABELS", BRAIN)
    scan = fake_engine.Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), _grid())
    before = fake_engine.segment(SegmentationRequest((scan,)))
    after = renumbered(before)
    for one, other in zip(before.structures, after.structures, strict=True):
        np.testing.assert_array_equal(
            before.labelmap.voxels == one.label.value, after.labelmap.voxels == other.label.value
        )
        assert replace(other, label=one.label) == one


def test_a_label_map_in_freesurfers_format_is_read_back(
    tmp_path: Path, brain: str, batch: Batch
) -> None:
    batch("--layout", "freesurfer")
    path = tmp_path / "out" / "sub-02_ses-a" / "mri" / "aseg.mgz"
    labelmap, _ = read_labelmap(path)
    np.testing.assert_array_equal(labelmap.voxels, read_volume(path).voxels)
    assert re.fullmatch(
        r"uint8|int16|int32", nibabel.load(path).get_data_dtype().newbyteorder("=").name
    )
