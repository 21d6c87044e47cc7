"""Label tables: rules, nearness in mm, refusals, and the table for the Neuromorphometrics labels."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from medsegai.errors import InputError
from medsegai.evaluation import LabelMapping, read_mapping
from medsegai.io import read_labelmap
from medsegai.volume import Geometry, Volume

TABLE = Path(__file__).parents[1] / "bench" / "neuromorphometrics_to_freesurfer.csv"
QUICKNAT_VALUES = {2, 3, 4, 5, 7, 8, *range(10, 19), 24, 26, 28} | {
    *range(41, 45),
    46,
    47,
    *range(49, 55),
    58,
    60,
}


def line(values: Sequence[int]) -> Volume:
    """A row of voxels along i, 1 mm apart."""
    voxels = np.array(values, np.uint8).reshape(1, 1, -1)
    return Volume(voxels, Geometry.from_spacing(voxels.shape, (1, 1, 1)), "made.nii.gz")


def table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_become_others(tmp_path: Path) -> None:
    text = "comment,evaluated,reference\nboth to one,9,1\n,9,2\ngone,0,3\nlarge,300,200\n"
    mapped = read_mapping(table(tmp_path, text)).apply(line([0, 1, 2, 3, 200, 1]))
    assert mapped.voxels.ravel().tolist() == [0, 9, 9, 0, 300, 9]
    assert mapped.voxels.dtype == np.uint16


def test_the_nearest_wins_and_ties_go_to_the_first() -> None:
    rules = LabelMapping({1: (8,), 2: (47,), 7: (8, 47)})
    mapped = rules.apply(line([1, 7, 7, 7, 0, 7, 2]))
    assert mapped.voxels.ravel().tolist() == [8, 8, 8, 8, 0, 47, 47]
    turned = LabelMapping({1: (8,), 2: (47,), 7: (47, 8)}).apply(line([1, 7, 7, 7, 0, 7, 2]))
    assert turned.voxels.ravel().tolist() == [8, 8, 8, 47, 0, 47, 47]


def test_nearness_is_in_mm() -> None:
    voxels = np.zeros((4, 1, 5), np.uint8)
    voxels[1, 0, 1] = 7
    voxels[3, 0, 1] = 1  # 2 voxels along k
    voxels[1, 0, 4] = 2  # 3 voxels along i
    rules = LabelMapping({1: (8,), 2: (47,), 7: (8, 47)})
    for spacing, expected in (((1, 1, 1), 8), ((1, 1, 2), 47), ((3, 1, 4), 8)):
        grid = Geometry.from_spacing(voxels.shape, spacing)
        assert rules.apply(Volume(voxels, grid)).voxels[1, 0, 1] == expected


def test_undecided_voxels_do_not_attract_each_other() -> None:
    rules = LabelMapping({1: (8,), 2: (47,), 5: (8, 47), 7: (47, 8)})
    mapped = rules.apply(line([1, 0, 7, 5, 5, 5, 0, 2]))
    assert mapped.voxels.ravel().tolist() == [8, 0, 8, 8, 47, 47, 0, 47]


def test_one_candidate_missing_leaves_the_other() -> None:
    rules = LabelMapping({1: (8,), 7: (8, 47)})
    assert rules.apply(line([1, 7])).voxels.ravel().tolist() == [8, 8]


def test_no_candidate_at_all_is_refused() -> None:
    rules = LabelMapping({1: (3,), 7: (8, 47)}, "table.csv")
    with pytest.raises(InputError, match=r"made\.nii\.gz.*\[7\].*table\.csv.*\[8, 47\]"):
        rules.apply(line([1, 7]))
    assert rules.apply(line([1, 0])).voxels.ravel().tolist() == [3, 0]


def test_values_without_a_row_are_named() -> None:
    rules = LabelMapping({1: (1,), 5: (5,)}, "table.csv")
    with pytest.raises(InputError, match=r"made\.nii\.gz.*\[3, 6, 255\].*table\.csv"):
        rules.apply(line([0, 1, 6, 3, 255, 5]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns"),
        ("reference,evaluated\n", "columns"),
        ("value,evaluated\n1,2\n", "columns"),
        ("reference,evaluated\n1,2\n1,3\n", r"line 3.*1 stands twice"),
        ("reference,evaluated\n1,left\n", r"line 2.*'left'"),
        ("reference,evaluated\n1,\n", r"line 2.*''"),
        ("reference,evaluated\n1\n", r"line 2.*''"),
        ("reference,evaluated\n-1,2\n", r"line 2.*'-1'"),
        ("reference,evaluated\n1,2|\n", r"line 2.*'2\|'"),
        ("reference,evaluated\n1,70000\n", r"line 2.*65535"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        read_mapping(path)
    assert str(path) in str(caught.value)


def test_unreadable_tables_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00reference")
    for path in (tmp_path / "missing.csv", tmp_path, binary):
        with pytest.raises(InputError, match="cannot be read"):
            read_mapping(path)


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes("reference,evaluated\r\n1,2\r\n".encode("utf-8-sig"))
    assert read_mapping(path).rules == {1: (2,)}


def test_the_neuromorphometrics_table_gives_the_quicknat_structures() -> None:
    rules = read_mapping(TABLE).rules
    given = {candidates[0] for candidates in rules.values() if len(candidates) == 1} - {0}
    assert given == QUICKNAT_VALUES
    assert {value for candidates in rules.values() for value in candidates} - {0} == given


def test_the_neuromorphometrics_table_names_what_the_challenge_names(shared_data: Path) -> None:
    with (shared_data / "malc2012-train" / "label_information.csv").open(newline="") as file:
        names = {
            int(row["Label Number"]): " ".join(row["Label Name"].split())
            for row in csv.DictReader(file)
        }
    with TABLE.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["reference"] != "0"]
    for row in rows:
        assert row["reference_name"] == names[int(row["reference"])]
        for side in ("Left", "Right"):
            if row["reference_name"].startswith(side) and row["evaluated"] != "0":
                assert side in row["evaluated_name"].replace("left", "Left").replace(
                    "right", "Right"
                )


@pytest.mark.parametrize("case", ["1000", "1012"])
def test_the_neuromorphometrics_table_maps_real_scans(shared_data: Path, case: str) -> None:
    """Every value has a row, all 32 structures come out, and right is at the right in RAS."""
    reference, _ = read_labelmap(shared_data / "malc2012-train" / f"{case}_glm.nii.gz")
    mapped = read_mapping(TABLE).apply(reference)
    assert set(np.unique(mapped.voxels).tolist()) == QUICKNAT_VALUES | {0}
    right = {
        value: (
            reference.geometry.ijk_to_ras @ [*np.argwhere(mapped.voxels == value).mean(0)[::-1], 1]
        )[0]
        for value in (2, 41, 3, 42, 8, 47, 17, 53, 12, 51)
    }
    for left_value, right_value in ((2, 41), (3, 42), (8, 47), (17, 53), (12, 51)):
        assert right[right_value] > right[left_value] + 20
    vermis = np.isin(reference.voxels, (71, 72, 73))
    sides = np.unique(mapped.voxels[vermis], return_counts=True)
    assert sides[0].tolist() == [8, 47]
    assert 0.4 < sides[1][0] / vermis.sum() < 0.6


@pytest.mark.slow
def test_the_neuromorphometrics_table_maps_every_scan(shared_data: Path) -> None:
    mapping = read_mapping(TABLE)
    paths = sorted((shared_data / "malc2012-train").glob("*_glm.nii.gz"))
    assert len(paths) == 15
    for path in paths:
        mapped = mapping.apply(read_labelmap(path)[0])
        assert set(np.unique(mapped.voxels).tolist()) == QUICKNAT_VALUES | {0}
