"""Cross-validation: who answers for which case, what is kept, what is compared, and what becomes of the best."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import medsegai.engine
from crossval_cases import two_balls, write, write_dataset
from medsegai.cli import main
from medsegai.errors import Cancelled, GeometryError, InputError, RequestError
from medsegai.evaluation.crossval import (
    Candidate,
    CrossValidation,
    Figures,
    Structure,
    Task,
    best_of,
    candidates_of,
    count,
    read_parts,
    restricted_cards,
)
from medsegai.evaluation.folds import dataset_cases
from medsegai.io import read_volume
from medsegai.labels import Label
from medsegai.models.card import load_card
from medsegai.models.catalogue import find_card
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult
from nnunet_models import make_model
from tiny_quicknat import write_model

LABELS = {"background": 0, "Left part": 1, "Right part": 2}
TASK = Task((Structure("Left part", (1,)), Structure("Right part", (2,))))
OPTIONS = {"device": "cpu", "precision": "fp32", "mirroring": False}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    references = {f"case_{number}": two_balls(shift=number % 3) for number in range(4)}
    return write_dataset(tmp_path / "Dataset901_Made", references, LABELS)


class FakeSegment:
    """In place of the engine: gives the reference, in the values of the model, and remembers what was asked.

    Attributes:
        requests: all of them.
        members: of each request, the members of its models.
        stop_at: the request at which the user stops.
    """

    def __init__(self) -> None:
        self.requests: list[SegmentationRequest] = []
        self.members: list[list[str]] = []
        self.labels = (Label(7, "Right part", (9, 9, 9)), Label(8, "Left part", (9, 9, 9)))
        self.stop_at: int | None = None

    def __call__(self, request: SegmentationRequest, progress: Progress) -> SegmentationResult:
        self.requests.append(request)
        cards = [load_card(model) for model in request.models]
        self.members.append([member.name for card in cards for member in card.members])
        if self.stop_at == len(self.requests):
            raise Cancelled("Stopped by the user.")
        (image,) = request.inputs
        assert isinstance(image, Path)
        label = image.parents[1] / "labelsTr" / image.name.replace("_0000", "")
        reference = read_volume(label)
        own = np.array([0, 8, 7], np.uint8)[reference.voxels]
        return SegmentationResult(reference.with_voxels(own), self.labels, ())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSegment:
    made = FakeSegment()
    monkeypatch.setattr(medsegai.engine, "segment", made)
    return made


def validation(dataset: Path, candidates: list[Candidate], folder: Path) -> CrossValidation:
    cases = {case.name: case for case in dataset_cases(dataset)}
    folds = {"0": ["case_0", "case_2"], "1": ["case_1", "case_3"]}
    return CrossValidation(Task.of(dataset), cases, folds, candidates, folder, OPTIONS)


# candidates


def test_singles_and_pairs_in_nnunets_order(tmp_path: Path) -> None:
    configurations = ("3d_cascade_fullres", "3d_lowres", "3d_fullres", "2d")
    folder = make_model(tmp_path, configurations=configurations, folds=(0, 1))
    parts = read_parts([str(folder)], ["0", "1"])
    assert [part.name for part in parts] == ["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]
    names = [candidate.name for candidate in candidates_of(parts)]
    assert names[:5] == [*(part.name for part in parts), "2d+3d_fullres"]
    assert len(names) == 4 + 6  # all four together is none that nnU-Net looks at


def test_a_fold_answers_with_its_own_first_stage(tmp_path: Path) -> None:
    configurations = ("3d_lowres", "3d_cascade_fullres")
    folder = make_model(tmp_path, configurations=configurations, folds=(0, 1))
    parts = read_parts([str(folder)], ["0", "1"])
    (cascade,) = [item for item in candidates_of(parts) if item.name == "3d_cascade_fullres"]
    (card,) = restricted_cards(cascade, "1")
    members = {member.name: member.weight for member in card.members}
    assert members == {"3d_cascade_fullres/fold_1": 1.0, "3d_lowres/fold_1": 0.0}
    (stage,) = [item for item in candidates_of(parts) if item.name == "3d_lowres"]
    assert [m.weight for m in restricted_cards(stage, "0")[0].members] == [1.0]


def test_a_view_without_sides_stands_with_others_only(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny")
    names = [item.name for item in candidates_of(read_parts([str(tmp_path / "tiny")], ["0"]))]
    assert "sagittal" not in names
    assert names == [
        "axial",
        "coronal",
        "axial+coronal",
        "axial+sagittal",
        "coronal+sagittal",
        "axial+coronal+sagittal",
    ]


def test_members_of_several_models_say_whose_they_are(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny")
    folder = make_model(tmp_path, folds=(0,))
    parts = read_parts([str(tmp_path / "tiny"), str(folder)], ["0"])
    names = [item.name for item in candidates_of(parts)]
    assert "tiny:axial+Dataset901_Made:3d_fullres" in names
    folders = {item.folder_name for item in candidates_of(parts)}
    assert len(folders) == len(names)
    assert not any(set(name) & set('/\\:*?"<>|') for name in folders)


def test_a_model_for_each_fold(tmp_path: Path) -> None:
    for fold in ("0", "1"):
        write_model(tmp_path / f"run-{fold}")
    parts = read_parts([str(tmp_path / "run-{fold}")], ["0", "1"])
    assert [part.name for part in parts] == ["axial", "coronal", "sagittal"]
    assert all(list(part.folds) == ["0", "1"] for part in parts)
    axial = candidates_of(parts)[0]
    folders = [restricted_cards(axial, fold)[0].members[0].weights for fold in ("0", "1")]
    assert folders == [str(tmp_path / f"run-{fold}" / "axial.safetensors") for fold in ("0", "1")]


def test_a_missing_fold_is_named(tmp_path: Path) -> None:
    folder = make_model(tmp_path, folds=(0, 1))
    candidate = candidates_of(read_parts([str(folder)], ["0", "1", "2"]))[0]
    with pytest.raises(RequestError, match="3d_fullres has no fold 2, only 0, 1"):
        restricted_cards(candidate, "2")


def test_a_model_of_all_cases_cannot_be_validated(tmp_path: Path) -> None:
    folder = make_model(tmp_path, folds=("all",))
    with pytest.raises(RequestError, match="trained on all cases"):
        read_parts([str(folder)], ["0"])


# predictions


def test_each_case_is_segmented_by_the_fold_that_has_not_seen_it(
    tmp_path: Path, dataset: Path, fake: FakeSegment
) -> None:
    folder = make_model(tmp_path, configurations=("2d", "3d_fullres"), folds=(0, 1))
    candidates = candidates_of(read_parts([str(folder)], ["0", "1"]))
    run = validation(dataset, candidates, tmp_path / "out")
    run.predict(Progress())
    asked = {
        (Path(str(request.inputs[0])).name[:6], tuple(sorted(members)))
        for request, members in zip(fake.requests, fake.members, strict=True)
    }
    assert asked == {
        (f"case_{case}", members)
        for case in range(4)
        for members in (
            (f"2d/fold_{case % 2}",),
            (f"3d_fullres/fold_{case % 2}",),
            (f"2d/fold_{case % 2}", f"3d_fullres/fold_{case % 2}"),
        )
    }
    assert all(not request.refine and not request.mirroring for request in fake.requests)
    figures = [run.figures(candidate) for candidate in candidates]
    assert all(item.mean_dice() == 1.0 for item in figures), "values are not matched by name"


def test_what_is_finished_is_kept(tmp_path: Path, dataset: Path, fake: FakeSegment) -> None:
    folder = make_model(tmp_path, folds=(0, 1))
    candidates = candidates_of(read_parts([str(folder)], ["0", "1"]))
    run = validation(dataset, candidates, tmp_path / "out")
    fake.stop_at = 3
    with pytest.raises(Cancelled):
        run.predict(Progress())
    kept = sorted(path.name for path in (tmp_path / "out" / "predictions" / "3d_fullres").iterdir())
    assert kept == ["case_0.nii.gz", "case_2.nii.gz"]
    fake.stop_at = None
    run.predict(Progress())
    assert len(fake.requests) == 3 + 2
    run.predict(Progress())
    assert len(fake.requests) == 3 + 2


def test_predictions_of_something_else_are_not_taken(
    tmp_path: Path, dataset: Path, fake: FakeSegment
) -> None:
    folder = make_model(tmp_path, folds=(0, 1))
    candidates = candidates_of(read_parts([str(folder)], ["0", "1"]))
    run = validation(dataset, candidates, tmp_path / "out")
    run.predict(Progress())
    dataclasses.replace(run, options={**OPTIONS, "device": "auto"}).predict(Progress())
    mirrored = dataclasses.replace(run, options={**OPTIONS, "mirroring": True})
    with pytest.raises(RequestError, match="with other options"):
        mirrored.predict(Progress())
    other = dataclasses.replace(run, folds={"0": ["case_0"], "1": ["case_1"]})
    with pytest.raises(RequestError, match="with other folds"):
        other.predict(Progress())
    retrained = make_model(tmp_path / "again", folds=(0, 1), seed=5)
    candidates = candidates_of(read_parts([str(retrained)], ["0", "1"]))
    with pytest.raises(RequestError, match="with other weights"):
        dataclasses.replace(run, candidates=candidates).predict(Progress())


def test_a_model_of_other_structures_is_refused(
    tmp_path: Path, dataset: Path, fake: FakeSegment
) -> None:
    folder = make_model(tmp_path, folds=(0, 1))
    candidates = candidates_of(read_parts([str(folder)], ["0", "1"]))
    fake.labels = (Label(7, "Heart", (1, 2, 3)), Label(8, "Lung", (1, 2, 3)))
    with pytest.raises(RequestError, match="finds Heart, Lung; none of them is in the dataset"):
        validation(dataset, candidates, tmp_path / "out").predict(Progress())


def test_a_reference_on_another_grid_is_refused(
    tmp_path: Path, dataset: Path, fake: FakeSegment
) -> None:
    folder = make_model(tmp_path, folds=(0, 1))
    candidates = candidates_of(read_parts([str(folder)], ["0", "1"]))
    run = validation(dataset, candidates, tmp_path / "out")
    run.predict(Progress())
    write(dataset / "labelsTr" / "case_1.nii.gz", two_balls((20, 24, 19)))
    with pytest.raises(GeometryError, match="case_1"):
        run.figures(candidates[0])


# figures


def test_dice_as_nnunet_defines_it() -> None:
    first, second = np.zeros((2, 4, 4, 4), np.uint8)
    first[0], second[0, :2] = 1, 1
    absent = np.zeros((4, 4, 4), np.uint8)
    figures = Figures(
        "a",
        TASK,
        {
            "half": count(first, second, TASK),
            "absent": count(absent, absent, TASK),
            "missed": count(absent, second, TASK),
        },
    )
    dice = figures.dice()
    assert dice["Left part"] == pytest.approx((2 * 8 / (16 + 8) + 0.0) / 2)
    assert np.isnan(dice["Right part"])
    assert figures.mean_dice() == dice["Left part"]
    assert figures.to_dict()["dice"]["Right part"] is None


def test_ignored_voxels_count_nowhere() -> None:
    task = dataclasses.replace(TASK, ignored=3)
    predicted, reference = np.ones((2, 2, 2), np.uint8), np.ones((2, 2, 2), np.uint8)
    reference[0] = 3
    assert count(predicted, reference, task).tolist() == [[4, 4, 4], [0, 0, 0]]
    assert count(predicted, reference, TASK).tolist() == [[4, 8, 4], [0, 0, 0]]


def test_regions_and_ignore_are_read_from_the_dataset(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    folder = write_dataset(
        tmp_path / "Dataset902_Regions", {"a": two_balls()}, labels, regions_class_order=[1, 2]
    )
    task = Task.of(folder)
    assert task.structures == (Structure("whole", (1, 2)), Structure("core", (2,)))
    assert (task.ignored, task.regions, task.values) == (3, True, (1, 2))


def _figures(name: str, both: int) -> Figures:
    counts = np.array([[both, 100, 100], [both, 100, 100]], np.int64)
    return Figures(name, TASK, {"a": counts})


def test_of_equal_candidates_the_first_is_best() -> None:
    assert best_of([_figures("a", 50), _figures("b", 60), _figures("c", 60)]) == 1
    empty = Figures("a", TASK, {"a": np.zeros((2, 3), np.int64)})
    assert best_of([empty, _figures("b", 1)]) == 1
    with pytest.raises(InputError, match="cannot be compared"):
        best_of([empty])


# the recipe


def test_best_writes_a_model_that_segments(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"background": 0, "Left part": 1, "Right part": 2}
    folder = make_model(tmp_path, configurations=("2d", "3d_fullres"), folds=(0, 1), labels=labels)
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"val": ["case_0", "case_2"]}, {"val": ["case_1", "case_3"]}]))
    command = ["best", dataset, "--model", folder, "-o", tmp_path / "out", "--splits", splits]
    command += ["--precision", "fp32", "--no-mirroring", "--device", "cpu"]
    assert main([str(word) for word in command]) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert list(figures) == ["2d", "3d_fullres", "2d+3d_fullres"]
    best = max(figures, key=lambda name: figures[name]["mean_dice"])
    assert f"Best: {best}" in printed
    model = tmp_path / "out" / "model"
    card = find_card(str(model))
    card.verify()
    wanted = {f"{name}/fold_{fold}" for name in best.split("+") for fold in (0, 1)}
    assert {member.name for member in card.members} == wanted
    said = card.performance["cross-validation"]
    assert (said["cases"], said["folds"]) == (4, 2)
    assert said["candidates"] == {name: figures[name]["mean_dice"] for name in figures}
    assert said["mean_dice"] >= figures[best]["mean_dice"]
    scan = dataset / "imagesTr" / "case_0_0000.nii.gz"
    words = ["segment", scan, "--model", model, "-o", tmp_path / "x.nii.gz", "-q"]
    assert main([str(word) for word in [*words, "--device", "cpu"]]) == 0


def test_best_of_two_models_is_two_folders(
    tmp_path: Path,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_model(tmp_path / "tiny")
    folder = make_model(tmp_path, folds=(0,), labels=LABELS)
    fake, winner = FakeSegment(), ["axial", "3d_fullres/fold_0"]

    def segment(request: SegmentationRequest, progress: Progress) -> SegmentationResult:
        result = fake(request, progress)
        voxels = result.labelmap.voxels.copy()
        if fake.members[-1] != winner:
            voxels[8] = 0
        return dataclasses.replace(result, labelmap=result.labelmap.with_voxels(voxels))

    monkeypatch.setattr(medsegai.engine, "segment", segment)
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"val": ["case_0", "case_1"]}]))
    models = ["--model", f"{tmp_path / 'tiny'},{folder}"]
    command = ["best", dataset, *models, "-o", tmp_path / "out", "--splits", splits]
    assert main([str(word) for word in command]) == 0
    assert "Best: tiny:axial+Dataset901_Made:3d_fullres" in capsys.readouterr().out
    cards = [find_card(str(tmp_path / "out" / "model" / number)) for number in ("0", "1")]
    assert [card.id for card in cards] == ["tiny", "Dataset901_Made"]
    assert [member.name for card in cards for member in card.members] == winner
    for card in cards:
        card.verify()


def test_each_fold_of_its_own_becomes_a_member(
    tmp_path: Path, dataset: Path, fake: FakeSegment
) -> None:
    for fold in ("0", "1"):
        write_model(tmp_path / f"run-{fold}")
    splits = [{"val": ["case_0"]}, {"val": ["case_1"]}]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    command = ["best", dataset, "--model", tmp_path / "run-{fold}", "-o", tmp_path / "out"]
    assert main([str(word) for word in [*command, "--splits", tmp_path / "splits.json"]]) == 0
    card = find_card(str(tmp_path / "out" / "model"))
    assert [member.name for member in card.members] == ["axial/fold_0", "axial/fold_1"]
    card.verify()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["nowhere", "--model", "brain"], 3),
        (["{dataset}", "--model", "brian"], 4),
        (["{dataset}", "--model", "brain", "--folds", "7"], 2),
        (["{dataset}", "--model", "brain", "--splits", "{dataset}/dataset.json"], 3),
    ],
)
def test_wrong_input_is_an_exit_code(
    tmp_path: Path, dataset: Path, words: list[str], code: int
) -> None:
    given = [word.replace("{dataset}", str(dataset)) for word in words]
    if "--splits" not in given:
        (tmp_path / "s.json").write_text(json.dumps([{"val": ["case_0"]}]))
        given += ["--splits", str(tmp_path / "s.json")]
    assert main(["crossval", *given, "-o", str(tmp_path / "out")]) == code
    assert not (tmp_path / "out" / "figures.json").exists()
