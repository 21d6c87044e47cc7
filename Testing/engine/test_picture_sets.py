"""Pictures and their classes, in every layout that is read, and sets that are not in order."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import picture_sets
from medsegai.errors import InputError
from medsegai.evaluation.folds import stratified_folds
from medsegai.io.picture_sets import as_rgb, read_pictures, read_rgb
from medsegai.volume import Geometry, Volume


def test_class_folders(tmp_path: Path) -> None:
    found = read_pictures(picture_sets.write_folders(tmp_path, 3))
    assert found.classes == ("disc", "stripes")
    assert found.counts() == {"disc": 3, "stripes": 3}
    assert found.parts == ()
    assert [item.name for item in found.pictures][:2] == ["disc/0.png", "disc/1.png"]
    np.testing.assert_array_equal(found.pictures[4].read(), picture_sets.drawn(1, 1))


@pytest.mark.parametrize(
    "names", [("train", "valid"), ("training", "val", "test"), ("Train", "Validation")]
)
def test_folders_of_fastai(names: tuple[str, ...], tmp_path: Path) -> None:
    found = read_pictures(picture_sets.write_folders(tmp_path, 2, names))
    assert found.classes == ("disc", "stripes")
    assert found.parts == ("train", "valid", "test")[: len(names)]
    assert found.part("train").counts() == {"disc": 2, "stripes": 2}
    assert len(found.part("train", "valid").pictures) == 8


def test_a_class_may_be_called_like_a_part(tmp_path: Path) -> None:
    """Where nothing is called train, folders are classes."""
    for name in ("test", "retest"):
        (tmp_path / name).mkdir()
        Image.fromarray(picture_sets.drawn(0, len(name))).save(tmp_path / name / "a.png")
    assert read_pictures(tmp_path).classes == ("retest", "test")


@pytest.mark.parametrize("place", ["table", "labels.csv", "train_labels.csv"])
def test_a_table(place: str, tmp_path: Path) -> None:
    """As those of Kaggle, whose files lie in train and are named without their ending."""
    picture_sets.write_folders(tmp_path / "train", 2)
    rows = [
        {"id": f"{name}/{n}", "label": name, "wsi": f"slide {n}", "is_valid": str(n == 1)}
        for name in picture_sets.CLASSES
        for n in range(2)
    ]
    name = "mine.csv" if place == "table" else place
    path = picture_sets.write_table(tmp_path / name, rows)
    found = read_pictures(path if place == "table" else tmp_path)
    assert found.classes == ("disc", "stripes")
    assert found.parts == ("train", "valid")
    assert [item.group for item in found.part("valid").pictures] == ["slide 1", "slide 1"]
    np.testing.assert_array_equal(found.pictures[0].read(), picture_sets.drawn(0, 0))


@pytest.mark.parametrize("slides", [True, False])
def test_patch_camelyon(slides: bool, tmp_path: Path) -> None:
    root = picture_sets.write_patch_camelyon(
        tmp_path, {"train": 8, "valid": 4, "test": 4}, slides=slides
    )
    found = read_pictures(root)
    assert found.classes == ("normal", "tumor")
    assert found.parts == ("train", "valid", "test")
    assert found.part("train").counts() == {"normal": 4, "tumor": 4}
    assert found.pictures[5].group == ("train_slide_1" if slides else "train/5")
    np.testing.assert_array_equal(found.pictures[5].read(), picture_sets.drawn(1, 5))


def test_groups_come_from_a_table_of_patients(tmp_path: Path) -> None:
    root = picture_sets.write_folders(tmp_path / "set", 2)
    rows = [
        {"picture": f"{name}/{n}.png", "patient": f"p{n}"}
        for name in picture_sets.CLASSES
        for n in range(2)
    ]
    found = read_pictures(root, picture_sets.write_table(tmp_path / "patients.csv", rows))
    assert [item.group for item in found.pictures] == ["p0", "p1", "p0", "p1"]
    picture_sets.write_table(tmp_path / "patients.csv", rows[:3])
    with pytest.raises(InputError, match=r"name the patient of the picture stripes/1\.png"):
        read_pictures(root, tmp_path / "patients.csv")


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    picture_sets.write_folders(tmp_path, 2)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"class folder .*nothing does not have pictures"):
        read_pictures(tmp_path)


def test_a_class_in_the_validation_only_is_refused(tmp_path: Path) -> None:
    picture_sets.write_folders(tmp_path, 2, ("train", "valid"))
    (tmp_path / "valid" / "rings").mkdir()
    shutil.copy(tmp_path / "valid" / "disc" / "0.png", tmp_path / "valid" / "rings" / "0.png")
    with pytest.raises(InputError, match=r"'rings' .* only has pictures in valid"):
        read_pictures(tmp_path)


def test_one_picture_in_two_classes_is_refused(tmp_path: Path) -> None:
    picture_sets.write_folders(tmp_path, 2)
    shutil.copy(tmp_path / "disc" / "0.png", tmp_path / "stripes" / "copy.png")
    with pytest.raises(
        InputError, match=r"disc/0\.png of class 'disc' and stripes/copy\.png of class 'stripes'"
    ):
        read_pictures(tmp_path)


def test_copies_of_a_picture_stay_in_one_fold(tmp_path: Path) -> None:
    """Otherwise one is learned from and another held out; a table of patients knows better."""
    picture_sets.write_folders(tmp_path, 3)
    shutil.copy(tmp_path / "disc" / "0.png", tmp_path / "disc" / "copy.png")
    (tmp_path / "disc" / "link.png").symlink_to(tmp_path / "disc" / "0.png")
    group_of = {item.name: item.group for item in read_pictures(tmp_path).pictures}
    assert {group_of[f"disc/{name}.png"] for name in ("0", "copy", "link")} == {"disc/0.png"}
    assert len(set(group_of.values())) == len(group_of) - 2


def test_one_picture_in_training_and_validation_is_noted(tmp_path: Path) -> None:
    picture_sets.write_folders(tmp_path, 2, ("train", "valid"))
    assert not read_pictures(tmp_path).notes
    shutil.copy(tmp_path / "train" / "disc" / "0.png", tmp_path / "valid" / "disc" / "9.png")
    (note,) = read_pictures(tmp_path).notes
    assert "train and valid" in note
    assert "valid/disc/9.png" in note


def test_a_slide_in_training_and_validation_is_noted(tmp_path: Path) -> None:
    picture_sets.write_folders(tmp_path, 2)
    rows = [
        {"image": f"{name}/{n}.png", "label": name, "group": "one slide", "split": part}
        for name in picture_sets.CLASSES
        for n, part in enumerate(("train", "valid"))
    ]
    (note,) = read_pictures(picture_sets.write_table(tmp_path / "a.csv", rows)).notes
    assert "one slide" in note


ONE = {"file": "disc/0.png", "label": "a"}


@pytest.mark.parametrize("delimiter", ",;\t")
def test_tables_of_every_spreadsheet_are_read(delimiter: str, tmp_path: Path) -> None:
    """With semicolons or tabs, a mark of UTF-8, headings in capitals, and empty lines."""
    picture_sets.write_folders(tmp_path, 2)
    lines = [f"{name}/{n}.png,{name},," for name in picture_sets.CLASSES for n in range(2)]
    text = "\r\n".join(["File, Label,,", *lines, ",,,", ""])
    (tmp_path / "a.csv").write_bytes(text.replace(",", delimiter).encode("utf-8-sig"))
    found = read_pictures(tmp_path / "a.csv")
    assert found.counts() == dict.fromkeys(sorted(picture_sets.CLASSES), 2)
    rows = [f"{name}/{n}.png,{n}" for name in picture_sets.CLASSES for n in range(2)]
    groups = "\n".join(["Picture,Patient", *rows]).replace(",", delimiter)
    (tmp_path / "groups.csv").write_text(groups, encoding="utf-8-sig")
    grouped = read_pictures(tmp_path / "a.csv", tmp_path / "groups.csv")
    assert [item.group for item in grouped.pictures] == ["0", "1"] * 2


BAD_TABLES = [
    ([{"image": "disc/0.png", "colour": "red"}], "one of label"),
    ([ONE, ONE | {"label": "b"}], "lines 2 and 3: .* as 'a' and as 'b'"),
    ([ONE, ONE], "listed twice"),
    ([ONE | {"file": "disc/9.png"}], "line 2: .*9.png does not exist"),
    ([ONE | {"file": "9" * 300}], "line 2: .*99 does not exist"),
    ([ONE | {"label": ""}], "line 2: .* is empty"),
    ([ONE], "has one class"),
    ([ONE | {"split": "morning"}], "'morning' is not a part"),
]


@pytest.mark.parametrize(("rows", "words"), BAD_TABLES, ids=[words for _, words in BAD_TABLES])
def test_a_table_that_is_not_in_order(
    rows: list[dict[str, str]], words: str, tmp_path: Path
) -> None:
    picture_sets.write_folders(tmp_path, 1)
    with pytest.raises(InputError, match=words):
        read_pictures(picture_sets.write_table(tmp_path / "a.csv", rows))


def test_a_folder_without_classes_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 class folders"):
        read_pictures(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match="not a table"):
        read_pictures(tmp_path / "a.txt")
    with pytest.raises(InputError, match="does not exist"):
        read_pictures(tmp_path / "none")


def test_damaged_patch_camelyon(tmp_path: Path) -> None:
    root = picture_sets.write_patch_camelyon(tmp_path, {"train": 4, "valid": 4})
    labels = root / "camelyonpatch_level_2_split_valid_y.h5"
    kept = labels.read_bytes()
    labels.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(InputError, match="not an HDF5 file"):
        read_pictures(root)
    labels.unlink()
    with pytest.raises(InputError, match="does not have a partner"):
        read_pictures(root)
    other = picture_sets.write_patch_camelyon(tmp_path / "other", {"valid": 6})
    shutil.copy(other / labels.name, labels)
    with pytest.raises(InputError, match="6 labels"):
        read_pictures(root)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_kinds_of_pictures(mode: str, tmp_path: Path) -> None:
    """All become RGB of 8 bits."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10] = 255
    image, path = Image.fromarray(pixels), tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 100).save(path)
    else:
        image.convert(mode).save(path)
    np.testing.assert_array_equal(read_rgb(path), pixels)


def test_a_volume_of_many_slices_is_not_a_picture() -> None:
    volume = Volume(np.zeros((2, 4, 4), np.uint8), Geometry((2, 4, 4), np.eye(4)))
    with pytest.raises(InputError, match="2 slices and 1 channel"):
        as_rgb([volume])


@pytest.mark.parametrize("part", [0.0, 0.5])
def test_a_damaged_picture_is_named(part: float, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture_sets.drawn(0, 0)).save(path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(InputError, match=r"a\.png"):
        read_rgb(path)


@given(data=st.data(), count=st.integers(2, 5), seed=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_folds_keep_groups_together_and_classes_apart_alike(
    data: st.DataObject, count: int, seed: int
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=count, max_size=30))
    groups = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    labels = data.draw(st.lists(st.integers(0, 2), min_size=len(groups), max_size=len(groups)))
    found = stratified_folds(labels, groups, count, seed)
    assert set(found) == set(range(count))
    for group in set(groups):
        assert len({int(f) for f, g in zip(found, groups, strict=True) if g == group}) == 1
    if max(sizes) == 1:
        for label in set(labels):
            shares = np.bincount(found[np.array(labels) == label], minlength=count)
            assert shares.max() - shares.min() <= 2


def test_folds_of_single_pictures_share_each_class_evenly() -> None:
    labels = [0] * 49 + [1] * 51
    found = stratified_folds(labels, [str(n) for n in range(100)], 5, 1)
    for label, most in ((0, 10), (1, 11)):
        shares = np.bincount(found[np.array(labels) == label], minlength=5)
        assert shares.max() <= most
        assert shares.min() >= 9
    with pytest.raises(InputError, match="1 patient or slide"):
        stratified_folds([0, 1], ["a", "a"], 2, 1)
