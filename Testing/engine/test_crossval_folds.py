"""Which cases a fold holds out: as nnU-Net has it, and never a patient on both sides."""

import json
from pathlib import Path

import pytest

from crossval_cases import two_balls, write_dataset
from medsegai.errors import InputError
from medsegai.evaluation.folds import (
    dataset_cases,
    default_folds,
    patient_folds,
    read_groups,
    read_splits,
    splits_json,
)
from nnunet_models import require_nnunet

CASES = [f"case_{number:03d}" for number in range(23)]


@pytest.mark.parametrize("count", [5, 17, 23, 200])
def test_default_folds_are_those_of_nnunet(count: int) -> None:
    require_nnunet()
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    cases = [f"hippocampus_{number:03d}" for number in range(count)]
    theirs = generate_crossval_split(cases, seed=12345, n_splits=5)
    ours = json.loads(splits_json(default_folds(cases), cases))
    assert [sorted(split["val"]) for split in theirs] == [split["val"] for split in ours]
    assert [sorted(split["train"]) for split in theirs] == [split["train"] for split in ours]


def test_no_patient_is_on_both_sides() -> None:
    groups = {case: f"patient {number // 3}" for number, case in enumerate(CASES)}
    folds = patient_folds(groups, count=4)
    assert sorted(case for fold in folds for case in fold) == CASES
    owners = [{groups[case] for case in fold} for fold in folds]
    assert sum(len(owner) for owner in owners) == len(set(groups.values()))
    sizes = [len(fold) for fold in folds]
    assert max(sizes) - min(sizes) <= 3
    assert folds == patient_folds(dict(reversed(groups.items())), count=4)


def test_too_few_patients_or_cases_are_an_error() -> None:
    with pytest.raises(InputError, match="2 patients cannot be held out in 5 folds"):
        patient_folds({"a": "one", "b": "one", "c": "two"})
    with pytest.raises(InputError, match="3 cases"):
        default_folds(["a", "b", "c"])


def test_the_table_of_patients_is_read(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("case,side,patient\na,left,one\nb,right,one\nc,left,two\nunused,left,three\n")
    assert read_groups(table, ["a", "b", "c"]) == {"a": "one", "b": "one", "c": "two"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,name\na,one\n", "columns case and patient"),
        ("case,patient\n", "needs rows"),
        ("case,patient\na,one\nb,\n", "line 3: case or patient is empty"),
        ("case,patient\na,one\na,two\nb,one\n", "line 3: a is in two groups"),
        ("case,patient\na,one\n", "does not say whose the cases b are"),
    ],
)
def test_a_wrong_table_of_patients_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "groups.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=message):
        read_groups(table, ["a", "b"])
    with pytest.raises(InputError, match="cannot be read"):
        read_groups(tmp_path / "nowhere.csv", ["a", "b"])


@pytest.mark.parametrize("content", ["[" * 200_000, "[" + "9" * 5000 + "]", '{"val": 1}', "3"])
def test_splits_that_make_no_sense_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text(content)
    with pytest.raises(InputError, match="cannot be read as nnU-Net's splits"):
        read_splits(tmp_path / "splits_final.json", ["a"])


def test_splits_are_read(tmp_path: Path) -> None:
    file = tmp_path / "splits_final.json"
    file.write_text(splits_json([["a"], ["b", "c"]], ["a", "b", "c"]))
    assert read_splits(file, ["a", "b", "c"]) == [["a"], ["b", "c"]]
    with pytest.raises(InputError, match="the dataset lacks: c"):
        read_splits(file, ["a", "b"])
    file.write_text('[{"train": []}]')
    with pytest.raises(InputError, match="cannot be read"):
        read_splits(file, ["a"])


def test_cases_of_a_dataset(tmp_path: Path) -> None:
    labels = {"background": 0, "one": 1, "two": 2}
    folder = write_dataset(
        tmp_path / "Dataset901_Made", {"b": two_balls(), "a": two_balls()}, labels
    )
    cases = dataset_cases(folder)
    assert [case.name for case in cases] == ["a", "b"]
    assert cases[0].images == (folder / "imagesTr" / "a_0000.nii.gz",)
    cases[0].images[0].unlink()
    with pytest.raises(InputError, match=r"a_0000\.nii\.gz is missing"):
        dataset_cases(folder)
    with pytest.raises(InputError, match="not a training dataset"):
        dataset_cases(tmp_path)
    for label in (folder / "labelsTr").iterdir():
        label.unlink()
    with pytest.raises(InputError, match="does not contain label maps"):
        dataset_cases(folder)
