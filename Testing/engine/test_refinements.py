"""The contract of refinements: options, what is kept, what is told, and bad input."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsegai.cli import main
from medsegai.errors import Cancelled, GeometryError, RequestError
from medsegai.io import read_labelmap, write_segmentation, write_volume
from medsegai.labels import Label
from medsegai.models.refinement import Refinement
from medsegai.progress import Progress
from medsegai.refinements import (
    Draft,
    apply_refinement,
    option_fields,
    parse,
    refinement_names,
    summary,
)
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume
from refinement_cases import candidates_of, draft_of, grid, image_of, noisy

NAMES = refinement_names()


def settings(name: str, **more: Any) -> Refinement:
    return Refinement(name, more)


def full_draft(voxels: Any, name: str = "oblique") -> Draft:
    second = np.roll(voxels, 1, 2)
    return draft_of(
        voxels, name, image=image_of(voxels, name), candidates=candidates_of(voxels, second)
    )


# Options


def test_the_folder_holds_what_the_request_names() -> None:
    (help_text,) = (
        item.metadata["help"]
        for item in dataclasses.fields(SegmentationRequest)
        if item.name == "refinements"
    )
    assert set(NAMES) == {"holes", "islands", "largest_component", "level_set", "smoothing", "snap"}
    assert all(name in help_text for name in set(NAMES) - {"largest_component"})


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_help_and_a_default_that_it_takes(name: str) -> None:
    assert len(summary(name)) > 20
    found = option_fields(name)
    assert "labels" in {item.name for item in found}
    for item in found:
        assert len(item.metadata["help"]) > 10
        bounds, choices = item.metadata["bounds"], item.metadata["choices"]
        assert bounds is None or bounds[0] <= item.default <= bounds[1]
        assert not choices or item.default in choices


def test_listing_the_options_loads_nothing_heavy() -> None:
    code = (
        "import sys; from medsegai.refinements import option_fields, refinement_names\n"
        "[option_fields(name) for name in refinement_names()]\n"
        "print([name for name in ('scipy', 'SimpleITK', 'nibabel', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_text_is_read_with_the_types_of_the_options() -> None:
    assert parse("islands") == Refinement("islands")
    assert parse(
        " islands: smallest_ml=0.1; keep=2;joined=yes;labels=17+53; connectivity=6"
    ) == Refinement(
        "islands",
        {
            "smallest_ml": 0.1,
            "keep": 2,
            "joined": True,
            "labels": (17, 53),
            "connectivity": "6",
        },
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("island", "no refinement 'island'. Known refinements: .*islands"),
        ("", "no refinement ''"),
        ("_places", "no refinement '_places'"),
        ("islands:size=3", "no option 'size'. Its options: labels, smallest_ml"),
        ("islands:smallest_ml", "as option=value"),
        ("islands:smallest_ml=much", "islands:smallest_ml must be a number, not 'much'"),
        ("islands:smallest_ml=-1", "must lie between 0 and"),
        ("islands:smallest_ml=nan", "must lie between 0 and"),
        ("islands:keep=1.5", "must be a whole number"),
        ("islands:joined=perhaps", "must be yes or no"),
        ("islands:labels=a", r"label values joined by \+"),
        ("islands:labels=0", "must be values of labels, 1 or more"),
        ("islands:connectivity=8", "must be one of 6, 18, 26"),
        ("islands:keep=1;keep=2", "stands twice"),
        ("smoothing:sigma_mm=1000", "smoothing:sigma_mm must lie between"),
        ("level_set:method=magic", "level_set:method must be one of"),
        ("level_set:move_mm=0", "level_set:move_mm must lie between"),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        parse(text)


# What every refinement keeps


@pytest.mark.parametrize("place", ["straight", "oblique and mirrored", "LIA"])
@pytest.mark.parametrize("name", NAMES)
def test_a_refinement_leaves_its_draft_alone_and_tells_every_change(name: str, place: str) -> None:
    voxels = noisy()
    draft, before = full_draft(voxels, place), voxels.copy()
    refined = apply_refinement(draft, settings(name))
    np.testing.assert_array_equal(voxels, before)
    assert refined.labels.dtype == voxels.dtype
    changed = refined.labels != voxels
    assert refined.voxels == changed.sum() > 0
    assert refined.ml == pytest.approx(changed.sum() * draft.labelmap.geometry.voxel_volume_ml)
    for change in refined.changes:
        value = change.label.value
        lost, gained = changed & (voxels == value), changed & (refined.labels == value)
        assert (change.lost, change.gained) == (lost.sum(), gained.sum())
        k, j, i = (index.mean() for index in np.nonzero(lost | gained))
        where = (draft.labelmap.geometry.ijk_to_ras @ [i, j, k, 1])[:3]
        np.testing.assert_allclose(change.where_ras, where)
    assert {c.label.value for c in refined.changes} == (
        set(voxels[changed]) | set(refined.labels[changed])
    ) - {0}
    assert f"{changed.sum()} voxels" in refined.words(name)[0]
    json.dumps(refined.to_dict(settings(name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_label_that_is_not_named_loses_no_voxel(name: str) -> None:
    voxels = noisy()
    found = apply_refinement(full_draft(voxels), settings(name, labels=[2])).labels
    for other in (1, 3, 4):
        assert (found[voxels == other] == other).all()
        if name in ("smoothing", "level_set", "snap"):
            np.testing.assert_array_equal(found == other, voxels == other)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["oblique", "oblique and mirrored", "sagittal slices"])
def test_where_a_head_lies_in_the_world_changes_nothing(name: str, place: str) -> None:
    voxels = noisy(seed=3)
    found = apply_refinement(full_draft(voxels, place), settings(name)).labels
    straight = apply_refinement(full_draft(voxels, "straight"), settings(name)).labels
    np.testing.assert_array_equal(found, straight)


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_stopped(name: str) -> None:
    progress, seen = Progress(), []

    def step(part: float) -> None:
        seen.append(part)
        if len(seen) == 2:
            progress.cancel.set()
        progress.step("refine", part, 1)

    with pytest.raises(Cancelled):
        apply_refinement(full_draft(noisy()), settings(name), step)
    assert len(seen) == 2


# Bad input


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_prediction_stays_empty(name: str) -> None:
    voxels = np.zeros((6, 7, 8), np.uint8)
    refined = apply_refinement(full_draft(voxels), settings(name))
    assert refined.labels is voxels
    assert refined.words(name) == []


@pytest.mark.parametrize("name", NAMES)
def test_structures_of_one_voxel_survive(name: str) -> None:
    voxels = np.zeros((9, 10, 11), np.uint8)
    voxels[4, 5, 6], voxels[0, 0, 0], voxels[8, 9, 10] = 1, 2, 3
    draft = draft_of(voxels, image=image_of(voxels))
    found = apply_refinement(draft, settings(name)).labels
    assert set(np.unique(found)) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", NAMES)
def test_labels_may_fill_the_volume(name: str) -> None:
    voxels = np.ones((6, 7, 8), np.uint8)
    voxels[3:] = 2
    found = apply_refinement(full_draft(voxels), settings(name)).labels
    assert found.min() == 1
    whole = np.ones((5, 6, 7), np.uint8)
    assert (apply_refinement(full_draft(whole), settings(name)).labels == 1).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 9, 8), (7, 1, 6), (1, 1, 1)])
def test_a_single_slice_is_refined_or_left(name: str, shape: tuple[int, int, int]) -> None:
    voxels = np.ones(shape, np.uint8)
    voxels[..., : shape[2] // 2] = 2
    found = apply_refinement(full_draft(voxels), settings(name)).labels
    assert found.shape == shape
    assert set(np.unique(found)) <= set(np.unique(voxels))


@pytest.mark.parametrize("name", NAMES)
def test_three_hundred_labels(name: str) -> None:
    blocks = np.arange(1, 301, dtype=np.uint16).reshape(5, 6, 10)
    voxels = np.kron(blocks, np.ones((3, 3, 3), np.uint16))
    voxels[0, 0, 0] = 300
    chosen = settings(name, labels=[298, 299, 300]) if name == "level_set" else settings(name)
    found = apply_refinement(full_draft(voxels), chosen).labels
    assert found.dtype == np.uint16
    assert set(np.unique(found)) - {0} == set(range(1, 301))


def test_labels_beyond_16_bits_are_found() -> None:
    voxels = np.zeros((5, 6, 7), np.uint32)
    voxels[1:4, 1:4, 1:4] = 70_000
    voxels[4, 5, 6] = 70_000
    refined = apply_refinement(draft_of(voxels), Refinement("islands", {"smallest_ml": 0.01}))
    found = refined.labels
    assert found[4, 5, 6] == 0
    assert (found == 70_000).sum() == 27
    assert "Label 70000" in refined.words("islands")[0]


def test_a_label_that_is_not_there_is_no_error() -> None:
    voxels = noisy()
    assert (
        apply_refinement(full_draft(voxels), Refinement("islands", {"labels": [9]})).labels
        is voxels
    )


def test_a_label_that_nobody_knows_is_an_error() -> None:
    draft = draft_of(noisy(), labels=(Label(1, "One", (9, 9, 9)), Label(2, "Two", (9, 9, 9))))
    with pytest.raises(RequestError, match="'islands' names label 9, which is not one of 1, 2"):
        apply_refinement(draft, Refinement("islands", {"labels": [1, 9]}))


def test_an_image_on_another_grid_is_refused() -> None:
    voxels = noisy()
    other = Volume(voxels.astype(np.float32), Geometry.from_spacing(voxels.shape, (1, 1, 1)), "T1")
    with pytest.raises(GeometryError, match=r"T1 .* does not lie on the grid of the segmentation"):
        draft_of(voxels, image=other)
    with pytest.raises(GeometryError, match="do not fill a grid"):
        draft_of(voxels, candidates=candidates_of(voxels[1:], voxels[1:]))


@pytest.mark.parametrize("name", ["level_set", "snap"])
def test_without_an_image_what_needs_one_says_so(name: str) -> None:
    with pytest.raises(RequestError, match="needs the scan"):
        apply_refinement(draft_of(noisy()), Refinement(name))


# The command


def test_the_command_refines_a_file_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voxels = noisy()
    labelmap = Volume(voxels, grid("oblique"))
    labels = tuple(Label(value, f"Part {value}", (9, 9, value)) for value in range(1, 5))
    source, out, report = tmp_path / "a.seg.nrrd", tmp_path / "b.seg.nrrd", tmp_path / "b.json"
    write_segmentation(source, labelmap, labels)
    words = ["refine", source, "--refinement", "islands:keep=1,holes", "-o", out]
    assert main([str(word) for word in [*words, "--report", report]]) == 0
    said = capsys.readouterr().out
    assert "Remove islands: " in said
    assert "Part " in said
    found, names = read_labelmap(out)
    first = apply_refinement(Draft(labelmap, labels), Refinement("islands", {"keep": 1})).labels
    expected = apply_refinement(
        Draft(labelmap.with_voxels(first), labels), Refinement("holes")
    ).labels
    np.testing.assert_array_equal(found.voxels, expected)
    assert [label.name for label in names] == [label.name for label in labels]
    told = json.loads(report.read_text())["refinements"]
    assert [item["settings"]["name"] for item in told] == ["islands", "holes"]
    assert main([str(word) for word in words]) == 5  # it is there already
    assert main([str(word) for word in [*words[:-1], source, "--overwrite"]]) == 2


def test_the_command_refuses_a_scan_on_another_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voxels = noisy()
    write_volume(tmp_path / "a.nii.gz", Volume(voxels, grid("straight")))
    write_volume(tmp_path / "t1.nii.gz", Volume(voxels, grid("oblique")))
    words = ["refine", "a.nii.gz", "--image", "t1.nii.gz", "--refinement", "snap", "-o", "o.nii.gz"]
    paths = [str(tmp_path / word) if word.endswith(".gz") else word for word in words]
    assert main(paths) == 3
    assert "does not lie on the grid" in capsys.readouterr().err
    assert not (tmp_path / "o.nii.gz").exists()


def test_overlapping_segments_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = (Label(1, "Whole", (9, 9, 9)), Label(2, "Core", (99, 9, 9)))
    regions = np.zeros((2, 5, 6, 7), bool)
    regions[0, 1:4], regions[1, 2:3] = True, True
    labelmap = Volume((regions[0] + 1 * regions[1]).astype(np.uint8), grid("LPS", (5, 6, 7)))
    write_segmentation(tmp_path / "a.seg.nrrd", labelmap, labels, regions)
    out = tmp_path / "b.seg.nrrd"
    words = ["refine", tmp_path / "a.seg.nrrd", "--refinement", "islands", "-o", out]
    assert main([str(word) for word in words]) == 3
    assert "overlap" in capsys.readouterr().err
    assert not out.exists()
