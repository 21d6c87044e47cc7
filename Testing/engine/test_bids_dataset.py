"""Which images of a BIDS dataset are cases, and what is said of those that are not."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsegai.cli import main
from medsegai.errors import InputError, RequestError
from medsegai.output.bids_dataset import Filter, Scan, find_bids_cases, is_dataset
from medsegai.request import SegmentationRequest


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 200, (9, 7, 8), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return path


def tree(root: Path, names: Iterable[str], suffixes: Iterable[str] = ("T1w",)) -> Path:
    """Images named as in `sub-01_ses-01_run-1`, in the folders that they belong to."""
    for name in names:
        parts = name.split("_")
        sides = [part for part in parts if part.startswith(("sub-", "ses-"))]
        for suffix in suffixes:
            path = root.joinpath(*sides, "anat", f"{name}_{suffix}.nii.gz")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def found(root: Path, *words: str) -> tuple[list[str], list[str]]:
    """Names of the cases, and what was said."""
    told: list[str] = []
    filters = [Filter.parse(words)] if words else []
    return [case.name for case in find_bids_cases(root, filters, ["MR"], told.append)], told


def test_t1_images_of_all_sessions_are_cases(tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01_ses-a", "sub-01_ses-b", "sub-02_ses-a", "sub-02_ses-b"], ["T1w", "T2w"])
    for stranger in ("func/sub-01_ses-a_task-rest_bold.nii.gz", "anat/sub-01_ses-a_T1w.json"):
        path = tmp_path / "sub-01" / "ses-a" / stranger
        path.parent.mkdir(exist_ok=True)
        path.touch()
    tree(tmp_path / "derivatives" / "x", ["sub-01_ses-a"])
    tree(tmp_path / "sourcedata", ["sub-01_ses-a"])
    assert not (tmp_path / "dataset_description.json").exists()
    assert is_dataset(tmp_path)
    names, told = found(tmp_path)
    assert names == ["sub-01_ses-a", "sub-01_ses-b", "sub-02_ses-a", "sub-02_ses-b"]
    assert told == []


def test_a_filter_chooses_suffix_session_and_other_entities(tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01_ses-01", "sub-01_ses-02_run-01", "sub-02_ses-02"], ["T1w", "T2w"])
    assert found(tmp_path, "suffix=T2w", "session=01")[0] == ["sub-01_ses-01"]
    assert found(tmp_path, "ses=ses-02", "subject=02,03")[0] == ["sub-02_ses-02"]
    assert found(tmp_path, "run=1")[0] == ["sub-01_ses-02_run-01"]
    with pytest.raises(
        InputError, match=r"with suffix=FLAIR .* the suffix T1w, T2w .* 01, 02; select"
    ):
        found(tmp_path, "suffix=FLAIR")
    for wrong in ("T2w", "=T2w", "suffix=", "run=1,,2"):
        with pytest.raises(RequestError, match="such as suffix=T2w session=01"):
            Filter.parse([wrong])


def test_what_bidsignore_names_is_passed_over(tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01", "sub-01_acq-bad", "sub-02", "sub-03"])
    (tmp_path / ".bidsignore").write_text("# not good\n*_acq-bad_*\nsub-03/\n")
    assert found(tmp_path)[0] == ["sub-01", "sub-02"]
    (tmp_path / ".bidsignore").write_text("!\n")
    with pytest.raises(InputError, match=r"\.bidsignore cannot be understood"):
        found(tmp_path)
    (tmp_path / ".bidsignore").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"\.bidsignore cannot be understood"):
        found(tmp_path)


def test_two_runs_are_two_cases_and_said(tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01_run-1", "sub-01_run-2", "sub-02"])
    names, told = found(tmp_path)
    assert names == ["sub-01_run-1", "sub-01_run-2", "sub-02"]
    assert len(told) == 1
    assert "sub-01: several images with suffix=T1w, such as sub-01_run-1_T1w.nii.gz" in told[0]
    assert found(tmp_path, "run=1") == (
        ["sub-01_run-1"],
        ["Without an image with suffix=T1w run=1: sub-02."],
    )


def test_missing_sessions_are_named(tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"])
    tree(tmp_path, ["sub-03_ses-1"], ["T2w"])
    (tmp_path / "sub-02" / "ses-3" / "anat").mkdir(parents=True)
    names, told = found(tmp_path)
    assert names == ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"]
    assert told == [
        "Without an image with suffix=T1w: sub-02/ses-3, sub-03/ses-1.",
        "Sessions that other subjects have are missing: sub-02/ses-2.",
    ]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_broken_description_is_named_and_the_images_found(content: bytes, tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01"])
    (tmp_path / "dataset_description.json").write_bytes(content)
    names, told = found(tmp_path)
    assert names == ["sub-01"]
    assert len(told) == 1
    assert "dataset_description.json is not valid JSON" in told[0]


def test_names_that_say_another_place_are_left_out_and_said(tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01"])
    for name in ("sub-02_T1w.nii.gz", "sub-01_ses-1_T1w.nii.gz", "T1w.nii.gz", "sub-01T1w.nii"):
        (tmp_path / "sub-01" / "anat" / name).touch()
    names, told = found(tmp_path)
    assert names == ["sub-01"]
    assert len(told) == 1
    assert all(name in told[0] for name in ("sub-02_T1w", "ses-1_T1w", "/T1w.nii.gz", "01T1w"))


def test_channels_are_put_together_by_session_and_run(tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01_run-1", "sub-01_run-2", "sub-02"], ["T1w", "FLAIR"])
    tree(tmp_path, ["sub-03"])
    filters = [Filter.parse(["suffix=T1w"]), Filter.parse(["suffix=FLAIR"])]
    told: list[str] = []
    cases = find_bids_cases(tmp_path, filters, ["T1", "FLAIR"], told.append)
    assert [[path.name for path in case.inputs] for case in cases] == [
        [f"{name}_T1w.nii.gz", f"{name}_FLAIR.nii.gz"]
        for name in ("sub-01_run-1", "sub-01_run-2", "sub-02")
    ]
    assert (
        "sub-03 was left out, because there is not exactly one image beside it with suffix=FLAIR."
        in told
    )
    with pytest.raises(RequestError, match=r"2 images for each case \(T1, FLAIR\)"):
        find_bids_cases(tmp_path, [], ["T1", "FLAIR"])


def test_two_suffixes_of_one_name_are_refused(tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01"], ["T1w", "T2w"])
    with pytest.raises(InputError, match="would be the same case"):
        found(tmp_path, "suffix=T1w,T2w")


def test_one_image_in_two_formats_is_refused_with_what_helps(tmp_path: Path) -> None:
    """It was told to name one suffix, which both of them have."""
    tree(tmp_path, ["sub-01", "sub-02"])
    (tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii").touch()
    with pytest.raises(
        InputError,
        match=r"sub-01_T1w\.nii.* would be the same case\. Remove one, or name it in \.bids",
    ):
        found(tmp_path)
    (tmp_path / ".bidsignore").write_text("*_T1w.nii\n")
    assert found(tmp_path) == (["sub-01", "sub-02"], [])


@pytest.mark.parametrize(
    "name",
    [
        *("sub-01_x", "sub-ü", "sub-", "sub-a b", "SUB-01", "Sub-02", "sub-03\nx"),
        *("sub-01/ses-a_b", "sub-01/ses-", "sub-01/SES-1", "sub-01/Anat"),
    ],
)
def test_no_folder_is_passed_over_in_silence(name: str, tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01"])
    (tmp_path / name / "anat").mkdir(parents=True)
    (tmp_path / name / "anat" / "sub-01_T1w.nii.gz").touch()
    names, told = found(tmp_path)
    assert names == ["sub-01"]
    assert told == [
        f"{name} in {tmp_path} is left out: folders are named sub-LABEL, ses-LABEL and anat in BIDS, and labels "
        "consist of letters, digits and +."
    ]
    if "\n" in name:
        return  # a .gitignore cannot name it
    (tmp_path / ".bidsignore").write_text(f"/{name}/\n", encoding="utf-8")
    assert found(tmp_path) == (["sub-01"], [])


@pytest.mark.parametrize("name", ["sub-02", "sub-01/ses-1", "sub-01/anat2/../anat"])
def test_a_link_to_a_folder_that_is_not_here_is_named(name: str, tmp_path: Path) -> None:
    """DataLad installs subjects as links or folders; one that is missing is no subject without images."""
    tree(tmp_path, ["sub-03"])
    path = tmp_path / Path(*(part for part in Path(name).parts if part not in ("anat2", "..")))
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("gone")
    names, told = found(tmp_path)
    assert names == ["sub-03"]
    assert (
        f"{path.relative_to(tmp_path)} in {tmp_path} is left out: a link leads to a folder"
        in told[0]
    )
    assert "datalad get" in told[0]


def test_capitals_of_an_ending_do_not_matter_and_hidden_files_are_no_images(tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01", "sub-02", "sub-03"])
    (tmp_path / "sub-01/anat/sub-01_T1w.nii.gz").rename(tmp_path / "sub-01/anat/sub-01_T1w.NII.GZ")
    (tmp_path / "sub-02/anat/sub-02_T1w.nii.gz").rename(tmp_path / "sub-02/anat/sub-02_T1w.Nii")
    (tmp_path / "sub-03/anat/._sub-03_T1w.nii.gz").touch()
    assert found(tmp_path) == (["sub-01", "sub-02", "sub-03"], [])
    (tmp_path / "sub-01/anat/sub-01_T1w.nii.gz").touch()
    with pytest.raises(InputError, match="would be the same case"):
        found(tmp_path)


def test_an_entity_that_is_named_twice_makes_no_case(tmp_path: Path) -> None:
    """One value would be forgotten, and the case be that of another run."""
    tree(tmp_path, ["sub-01_run-1", "sub-01_run-1_run-2"])
    names, told = found(tmp_path)
    assert names == ["sub-01_run-1"]
    assert "sub-01_run-1_run-2_T1w.nii.gz" in told[0]
    assert "each entity once" in told[0]


def test_phase_images_are_left_out_unless_they_are_asked_for(tmp_path: Path) -> None:
    parts = ("mag", "phase", "real", "imag")
    tree(tmp_path, ["sub-01", *(f"sub-02_part-{part}" for part in parts)])
    names, told = found(tmp_path)
    assert names == ["sub-01", "sub-02_part-mag"]
    (words,) = told
    assert words.startswith(
        "sub-02_part-imag_T1w.nii.gz, sub-02_part-phase_T1w.nii.gz, sub-02_part-real"
    )
    assert "part=phase" in words
    assert found(tmp_path, "part=phase")[0] == ["sub-02_part-phase"]
    assert found(tmp_path, "part=mag")[0] == ["sub-02_part-mag"]


def test_echoes_and_acquisitions_are_cases_and_can_be_selected(tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01_acq-a_echo-1", "sub-01_acq-a_echo-02", "sub-01_acq-b"])
    names, told = found(tmp_path)
    assert len(names) == 3
    assert "sub-01: several images" in told[0]
    assert found(tmp_path, "echo=2")[0] == ["sub-01_acq-a_echo-02"]
    assert found(tmp_path, "acquisition=a", "echo=1,2")[0] == sorted(names)[:2]


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ("sub-0[12]/", ["sub-03_ses-1"]),
        ("**/anat/*_ses-1_*\n!sub-02/", ["sub-01_ses-2"]),
        ("/sub-03\nsub-*/ses-2\n", ["sub-01_ses-1", "sub-02_ses-1"]),
        ("*\n!/sub-01/\n!/sub-01/**\n", ["sub-01_ses-1", "sub-01_ses-2"]),
        ("\ufeff*_ses-1_*\r\n\r\n# x\r\n", ["sub-01_ses-2"]),
    ],
)
def test_patterns_of_bidsignore(lines: str, left: list[str], tmp_path: Path) -> None:
    """Also with a byte order mark and the ends of lines of Windows."""
    tree(tmp_path, ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "sub-03_ses-1"])
    (tmp_path / ".bidsignore").write_bytes(lines.encode())
    assert found(tmp_path)[0] == left


def test_the_derivative_of_another_tool_is_a_dataset(tmp_path: Path) -> None:
    """Inside of the derivatives of a dataset, whose own images and other derivatives do not count."""
    tree(tmp_path, ["sub-01"])
    inner = tree(
        tmp_path / "derivatives" / "prep", ["sub-01_desc-preproc", "sub-01_space-MNI_desc-preproc"]
    )
    tree(inner / "derivatives" / "x", ["sub-01_desc-x"])
    names, _ = found(inner)
    assert sorted(names) == ["sub-01_desc-preproc", "sub-01_space-MNI_desc-preproc"]
    assert found(inner, "space=MNI")[0] == ["sub-01_space-MNI_desc-preproc"]


def test_an_ignored_subject_is_not_missed(tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01", "sub-02"])
    (tmp_path / ".bidsignore").write_text("sub-01\n")
    assert found(tmp_path) == (["sub-02"], [])


def test_run_zero_is_not_a_scan_without_a_run(tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01", "sub-02_run-0", "sub-03_run-00"])
    assert found(tmp_path, "run=0")[0] == ["sub-02_run-0", "sub-03_run-00"]


def test_a_filter_in_capitals_is_understood_and_one_key_is_given_once(tmp_path: Path) -> None:
    tree(tmp_path, ["sub-01_run-1", "sub-01_run-2"])
    assert found(tmp_path, "Suffix=T1w", "RUN=2")[0] == ["sub-01_run-2"]
    with pytest.raises(RequestError, match="names run twice"):
        Filter.parse(["run=1", "run=2"])


labels = st.text("abzAZ019", min_size=1, max_size=4)


@given(
    labels,
    st.none() | labels,
    st.lists(st.tuples(st.sampled_from(["acq", "rec"]), labels), max_size=1),
)
def test_a_scan_is_found_by_each_of_its_own_entities(
    subject: str, session: str | None, others: list[tuple[str, str]]
) -> None:
    """What a filter of its own values takes; and another value of one of them does not."""
    entities = {"sub": subject, **({} if session is None else {"ses": session}), **dict(others)}
    scan = Scan(Path("x"), entities, "T1w")
    words = [f"{key}={value}" for key, value in entities.items()]
    assert Filter.parse(words).takes(scan)
    for key, value in entities.items():
        assert not Filter.parse([f"{key}={value}x"]).takes(scan)


# As a user: the command


def states(out: Path) -> dict[str, tuple[str, str]]:
    with (out / "batch.csv").open(newline="") as file:
        return {row["case"]: (row["state"], row["message"]) for row in csv.DictReader(file)}


def test_a_dataset_is_segmented_and_links_into_an_annex_fail_alone(
    model: str,
    requests: list[SegmentationRequest],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The link is the first case; what it points to is got, and the batch resumed."""
    data, out = tmp_path / "data", tmp_path / "out"
    save(data / "sub-02" / "anat" / "sub-02_T1w.nii.gz")
    link = data / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../.git/annex/objects/x.nii.gz")
    (data / "dataset_description.json").write_text(
        json.dumps({"Name": "x", "BIDSVersion": "1.10.0"})
    )
    words = ["batch", str(data), "-o", str(out), "--model", model]
    assert main(words) == 1
    assert "datalad get" in states(out)["sub-01"][1]
    assert states(out)["sub-02"][0] == "done"
    save(data / ".git" / "annex" / "objects" / "x.nii.gz")
    assert main([*words, "--resume"]) == 0
    assert [state for state, _ in states(out).values()] == ["done", "done"]
    capsys.readouterr()
    assert main([*words, "--overwrite", "--bids-filter", "suffix=T2w", "session=01"]) == 3
    assert "not have an image with suffix=T2w ses=01" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        b"/annex/objects/MD5E-s1--x.nii.gz\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
    ],
    ids=["annex", "lfs"],
)
def test_a_file_that_only_names_its_content_fails_with_what_helps(
    content: bytes, model: str, requests: list[SegmentationRequest], tmp_path: Path
) -> None:
    data, out = tree(tmp_path / "data", ["sub-01"]), tmp_path / "out"
    (data / "sub-01" / "anat" / "sub-01_T1w.nii.gz").write_bytes(content)
    assert main(["batch", str(data), "-o", str(out), "--model", model]) == 1
    assert "Get the file first (datalad get, or git lfs pull)" in states(out)["sub-01"][1]


def test_a_dataset_is_only_read(
    model: str, requests: list[SegmentationRequest], tmp_path: Path
) -> None:
    """Broken sidecars and odd tables of participants are nobody's business but the dataset's."""
    data, out = tmp_path / "data", tmp_path / "out"
    save(data / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    (data / "sub-01" / "anat" / "sub-01_T1w.json").write_text("{")
    (data / "participants.tsv").write_bytes(b"participant_id\tage\nsub-09\n\xff\t\t\t\n")
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    assert main(["batch", str(data), "-o", str(out), "--model", model, "--layout", "bids"]) == 0
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_a_filter_needs_a_folder(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "cases.csv"
    table.write_text("case,image\n")
    words = ["batch", str(table), "-o", str(tmp_path / "out"), "--model", model]
    assert main([*words, "--bids-filter", "suffix=T2w"]) == 2
    assert "for a folder that holds a BIDS dataset" in capsys.readouterr().err


def test_a_link_to_nothing_in_a_plain_folder_is_a_case_that_fails(
    model: str, requests: list[SegmentationRequest], tmp_path: Path
) -> None:
    save(tmp_path / "scans" / "b.nii.gz")
    (tmp_path / "scans" / "a.nii.gz").symlink_to("gone.nii.gz")
    out = tmp_path / "out"
    assert main(["batch", str(tmp_path / "scans"), "-o", str(out), "--model", model]) == 1
    assert {name: state for name, (state, _) in states(out).items()} == {"a": "failed", "b": "done"}
