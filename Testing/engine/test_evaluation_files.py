"""From files and folders to figures: pairing, names, tables, models, and what is refused."""

import csv
import json
import logging
from pathlib import Path
from threading import Event
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from medsegai.errors import Cancelled, GeometryError, InputError, ModelError, OutputError
from medsegai.evaluation import (
    EvaluationFiles,
    evaluate_folders,
    pair_cases,
    run_evaluation,
)
from medsegai.io import write_segmentation
from medsegai.labels import Label
from medsegai.progress import Progress, ProgressEvent
from medsegai.volume import Geometry, Volume

AFFINE = np.array([[-1.5, 0, 0, 30], [0, 1, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1]])
NAMED = (Label(1, "Heart", (200, 0, 0)), Label(2, "Lung", (0, 0, 200)))


def labels(*boxes: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Label map in (i, j, k); each box is (value, first i, last i) at the same j and k."""
    voxels = np.zeros((12, 11, 10), np.uint8)
    for value, start, stop in boxes:
        voxels[start:stop, 3:6, 2:7] = value
    return voxels


def save(path: Path, voxels: NDArray[Any], affine: NDArray[Any] = AFFINE) -> Path:
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    save(predictions / "b.nii.gz", labels((1, 2, 6)))
    save(references / "b.nii.gz", labels((1, 4, 8)))
    save(predictions / "a.nii", labels((1, 2, 6), (3, 8, 9)))
    save(references / "a.nii.gz", labels((1, 2, 6), (3, 8, 10)))
    return predictions, references


def test_two_files(tmp_path: Path) -> None:
    first = save(tmp_path / "mine.nii.gz", labels((1, 2, 6)))
    second = save(tmp_path / "theirs.nii", labels((1, 4, 8)))
    (case,) = run_evaluation(first, second).cases
    assert (case.name, case.prediction, case.reference) == ("mine", str(first), str(second))
    assert case.structures[0].dice == 0.5
    assert case.structures[0].hd95_mm == pytest.approx(3.0)  # two voxels of 1.5 mm along i
    assert case.structures[0].reference_ml == pytest.approx(4 * 3 * 5 * 3 / 1000)


def test_two_folders_are_paired_by_name_whatever_the_type(folders: tuple[Path, Path]) -> None:
    evaluation = run_evaluation(*folders)
    assert [case.name for case in evaluation.cases] == ["a", "b"]
    first, third = evaluation.structures()
    assert (first.label.value, first.spreads["dice"].mean) == (1, 0.75)
    assert (third.label.value, third.spreads["dice"].count) == (3, 1)
    assert third.spreads["dice"].mean == pytest.approx(2 / 3)


def test_every_case_lists_every_structure(folders: tuple[Path, Path]) -> None:
    for case in run_evaluation(*folders).cases:
        assert [item.label.value for item in case.structures] == [1, 3]


def test_results_are_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    table, figures = tmp_path / "figures.csv", tmp_path / "figures.json"
    evaluation = run_evaluation(*folders, files=EvaluationFiles(table, figures))
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["a", "a", "b", "b", "mean", "mean"]
    assert json.loads(figures.read_text()) == evaluation.to_dict()


def test_other_files_are_passed_over(folders: tuple[Path, Path]) -> None:
    (folders[0] / "report.json").write_text("{}")
    (folders[0] / "picture.png").write_bytes(b"")
    (folders[1] / ".b.nii.gz").write_bytes(b"")
    (folders[1] / "subfolder").mkdir()
    assert [name for name, _, _ in pair_cases(*folders)] == ["a", "b"]


def test_names_with_dots_and_capitals(tmp_path: Path) -> None:
    first = save(tmp_path / "one" / "sub-1.ses-2.NII.GZ", labels((1, 2, 6)))
    second = save(tmp_path / "two" / "sub-1.ses-2.nii", labels((1, 2, 6)))
    assert pair_cases(first.parent, second.parent) == [("sub-1.ses-2", first, second)]


def test_cases_without_counterpart_are_all_listed(folders: tuple[Path, Path]) -> None:
    save(folders[0] / "c.nii.gz", labels((1, 2, 6)))
    save(folders[1] / "d.nii.gz", labels((1, 2, 6)))
    save(folders[1] / "e.nii.gz", labels((1, 2, 6)))
    with pytest.raises(InputError) as caught:
        run_evaluation(*folders)
    message = str(caught.value)
    assert f"{folders[1]} has no counterpart of {folders[0] / 'c.nii.gz'}" in message
    assert (
        f"{folders[0]} has no counterpart of {folders[1] / 'd.nii.gz'}, {folders[1] / 'e.nii.gz'}"
        in message
    )


def test_of_many_cases_without_counterpart_the_first_are_named_and_all_counted(
    folders: tuple[Path, Path],
) -> None:
    for number in range(100, 300):
        save(folders[1] / f"{number}.nii.gz", labels((1, 2, 6)))
    with pytest.raises(InputError) as caught:
        run_evaluation(*folders)
    message = str(caught.value)
    assert "no counterpart of 200 files" in message
    assert "and 195 more" in message
    assert message.count(".nii.gz") == 5
    assert "--common evaluates the 2 that are in both" in message


def test_cases_that_are_in_one_folder_alone_can_be_left_out(folders: tuple[Path, Path]) -> None:
    save(folders[0] / "c.nii.gz", labels((1, 2, 6)))
    save(folders[1] / "d.nii.gz", labels((1, 2, 6)))
    assert [case.name for case in run_evaluation(*folders, common=True).cases] == ["a", "b"]
    for path in folders[0].glob("[ab].*"):
        path.unlink()
    with pytest.raises(InputError, match="Rename them"):
        run_evaluation(*folders, common=True)


def test_one_case_in_two_files_is_refused(folders: tuple[Path, Path]) -> None:
    save(folders[0] / "b.nii", labels((1, 2, 6)))
    with pytest.raises(InputError, match=r"b\.nii.*b\.nii\.gz are two files of one case"):
        run_evaluation(*folders)


def test_what_is_not_there_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nowhere does not exist"):
        run_evaluation(tmp_path / "nowhere", folders[1])
    with pytest.raises(InputError, match="empty does not contain label maps"):
        run_evaluation(tmp_path / "empty", folders[1])
    with pytest.raises(InputError, match="one is a file, the other a folder"):
        run_evaluation(folders[0] / "a.nii", folders[1])


def test_damaged_files_are_refused(folders: tuple[Path, Path]) -> None:
    (folders[0] / "b.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"predictions.b\.nii\.gz is empty"):
        run_evaluation(*folders)


def test_other_grids_are_refused_with_both_names(folders: tuple[Path, Path]) -> None:
    moved = AFFINE.copy()
    moved[2, 3] += 2.0
    save(folders[1] / "b.nii.gz", labels((1, 4, 8)), moved)
    with pytest.raises(GeometryError, match=r"predictions.b\.nii\.gz.*references.b\.nii\.gz"):
        run_evaluation(*folders)


def test_the_same_place_in_another_voxel_order_is_refused_too(tmp_path: Path) -> None:
    voxels = labels((1, 2, 6))
    first = save(tmp_path / "one" / "a.nii", voxels)
    image = nibabel.as_closest_canonical(nibabel.load(first))
    nibabel.save(image, tmp_path / "flipped.nii")
    with pytest.raises(GeometryError, match="does not lie on the grid"):
        run_evaluation(first, tmp_path / "flipped.nii")


def test_names_come_from_the_file_that_has_them(tmp_path: Path) -> None:
    voxels = labels((1, 2, 6), (2, 7, 9))
    reference = save(tmp_path / "reference.nii.gz", voxels)
    geometry = Geometry(voxels.T.shape, AFFINE)
    prediction = tmp_path / "prediction.seg.nrrd"
    write_segmentation(prediction, Volume(voxels.T, geometry), NAMED)
    evaluation = run_evaluation(prediction, reference)
    assert [item.label.name for item in evaluation.structures()] == ["Heart", "Lung"]
    assert evaluation.overall("dice").mean == 1
    assert evaluation.notes == ()
    assert evaluation.cases[0].name == "prediction"


def test_names_that_contradict_each_other_are_told(tmp_path: Path) -> None:
    voxels = labels((1, 2, 6), (2, 7, 9))
    volume = Volume(voxels.T, Geometry(voxels.T.shape, AFFINE))
    write_segmentation(tmp_path / "one.seg.nrrd", volume, NAMED)
    swapped = (Label(1, "heart", (1, 2, 3)), Label(2, "Liver", (0, 0, 200)))
    write_segmentation(tmp_path / "two.seg.nrrd", volume, swapped)
    (note,) = run_evaluation(tmp_path / "one.seg.nrrd", tmp_path / "two.seg.nrrd").notes
    assert note.startswith("Value 2 is 'Lung', but 'Liver' in")


def test_a_mapping_is_applied_to_the_references_only(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("reference,evaluated\n1,3\n3,0\n")
    evaluation = run_evaluation(*folders, mapping=table)
    ones, threes = evaluation.structures()
    assert (ones.spreads["dice"].mean, ones.spreads["reference_ml"].mean) == (0, 0)
    assert evaluation.cases[0].structures[1].reference_ml == pytest.approx(0.18)
    assert threes.label.value == 3


def test_labels_of_a_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    card = {
        "id": "toy", "name": "Toy", "family": "quicknat", "version": "1",
        "channels": [{"name": "T1", "modality": "MR"}],
        "labels": [{"value": value, "name": f"Part {value}", "color": [1, 2, 3]} for value in (7, 1)],
        "members": [{"name": "only"}], "spacing_mm": [1, 1, 1],
    }  # fmt: skip
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "card.json").write_text(json.dumps(card))
    evaluation = run_evaluation(*folders, model=str(tmp_path / "toy"))
    assert [item.label.name for item in evaluation.structures()] == ["Part 7", "Part 1"]
    assert [item.spreads["dice"].count for item in evaluation.structures()] == [0, 2]
    assert evaluation.notes == ("Not evaluated, because the model does not have them: values 3.",)
    with pytest.raises(ModelError, match="no-such-model"):
        run_evaluation(*folders, model="no-such-model")


def test_an_unwritable_output_is_found_before_the_work(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsegai.evaluation.cases.read_labelmap", lambda _: pytest.fail("read"))
    with pytest.raises(OutputError, match="nowhere"):
        run_evaluation(*folders, files=EvaluationFiles(json=tmp_path / "nowhere" / "figures.json"))


def test_progress_and_cancel(folders: tuple[Path, Path]) -> None:
    events: list[ProgressEvent] = []
    progress = Progress(events.append, weights={"evaluate": 1})
    evaluate_folders(*folders, progress=progress)
    assert [event.fraction for event in events] == [0, 0.5, 1]
    stopped = Event()
    stopped.set()
    with pytest.raises(Cancelled):
        evaluate_folders(*folders, progress=Progress(cancel=stopped))


def test_each_case_is_logged(folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="medsegai"):
        run_evaluation(*folders)
    assert caplog.messages == [
        "a: mean Dice 0.833 of 2 structures",
        "b: mean Dice 0.500 of 1 structures",
    ]
