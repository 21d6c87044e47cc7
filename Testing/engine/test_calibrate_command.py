"""`medsegai calibrate`: which cases count, what is kept, what goes into the card, and what is refused."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from crossval_cases import two_balls, write, write_dataset
from medsegai.cli import main
from medsegai.engine import segment
from medsegai.evaluation.calibration import reliability
from medsegai.evaluation.crossval import Structure, Task
from medsegai.evaluation.held_out import (
    MARGIN_MM,
    Record,
    Truth,
    drawn_decisions,
    figures_of,
    groups_of,
)
from medsegai.evaluation.mapping import LabelMapping
from medsegai.labels import Label
from medsegai.models.card import CARD_NAME, load_card
from medsegai.models.catalogue import BUNDLED_MODELS
from medsegai.models.json_fields import to_json
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Geometry, Volume

CASES = ("019", "035", "037", "041", "050", "097")
"""Cases of fold 0 of nnU-Net's own splits: the bundled network has not seen them."""

QUICK = ["--device", "cpu", "--refinement", "snap"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model names its structures otherwise than the dataset does."""
    path = tmp_path_factory.mktemp("table") / "labels.csv"
    path.write_text("reference,evaluated\n1,1\n2,2\n")
    return path


@pytest.fixture(scope="module")
def dataset(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = shared_data / "Dataset004_Hippocampus"
    folder = tmp_path_factory.mktemp("data") / whole.name
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (folder / part).mkdir(parents=True)
        for case in CASES:
            name = f"hippocampus_{case}{ending}"
            shutil.copyfile(whole / part / name, folder / part / name)
    shutil.copyfile(whole / "dataset.json", folder / "dataset.json")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with nothing known of how good it is."""
    folder = tmp_path_factory.mktemp("model") / "hippocampus"
    shutil.copytree(BUNDLED_MODELS / "hippocampus", folder)
    data = json.loads((folder / CARD_NAME).read_text())
    data.pop("calibration", None)
    data["suggested_refinements"] = []
    (folder / CARD_NAME).write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="module")
def done(model: Path, dataset: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command left, having written into the card."""
    output = tmp_path_factory.mktemp("done")
    command = ["calibrate", str(model), str(dataset), "--cases", "all", "--mapping", str(table)]
    assert main([*command, *QUICK, "-o", str(output), "--write"]) == 0
    return output


def test_the_report_and_the_diagram_are_written(done: Path) -> None:
    report = json.loads((done / "report.json").read_text())
    assert report["cases"] == len(CASES)
    before, after = report["reliability before"], report["reliability after, cross-fitted"]
    assert before["decisions"] == after["decisions"] == len(CASES) * 30_000
    assert after["negative_log_likelihood"] < before["negative_log_likelihood"]
    assert set(report["correlation with Dice"]) >= {"iou", "pairwise_dice", "volume_cv"}
    assert [item["name"] for item in report["refinements"]] == ["as predicted", "snap"]
    assert (done / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_gets_it_and_the_engine_heeds_it(done: Path, model: Path, dataset: Path) -> None:
    report = json.loads((done / "report.json").read_text())
    card = load_card(model)
    assert card.calibration is not None
    assert to_json(card.calibration) == report["calibration"]
    assert "6 cases of Dataset004_Hippocampus" in card.calibration.source
    assert len(card.calibration.members) == 8
    assert "3d_fullres/fold_0 mirrored 0+1" in card.calibration.members
    image = dataset / "imagesTr" / "hippocampus_019_0000.nii.gz"
    asked = SegmentationRequest(
        (image,), (str(model),), device="cpu", mirroring=False, probabilities=True
    )
    cold, raw = (segment(dataclasses.replace(asked, calibrated=choice)) for choice in (True, False))
    temperature = card.calibration.temperature
    assert temperature > 1.05
    whole = [
        np.concatenate([1 - item.sum(0, keepdims=True), item])
        for item in (result.probabilities.astype(np.float64) for result in (cold, raw))
    ]
    places = np.flatnonzero(np.abs(whole[1].max(0) - 0.6).reshape(-1) < 0.2)
    powers = whole[1].reshape(3, -1)[:, places].clip(1e-9) ** (1 / temperature)
    np.testing.assert_allclose(
        powers / powers.sum(0), whole[0].reshape(3, -1)[:, places], atol=0.01
    )


def test_the_same_command_goes_on_and_other_options_do_not(
    done: Path,
    model: Path,
    dataset: Path,
    table: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(*_: object) -> SegmentationResult:
        raise AssertionError("a case was segmented again")

    monkeypatch.setattr("medsegai.engine.segment", never)
    shutil.copytree(done, done.with_name("again"))
    command = ["calibrate", str(model), str(dataset), "--cases", "all", "--mapping", str(table)]
    again = [*command, *QUICK, "-o", str(done.with_name("again"))]
    suggested = load_card(model).suggested_refinements
    assert main(again) == (0 if not suggested else 2)
    assert main([*again, "--dropout-passes", "3"]) == 2
    assert "predictions with other" in capsys.readouterr().err


def test_a_damaged_case_is_named(done: Path, tmp_path: Path) -> None:
    path = next((done / "cases").iterdir())
    found = Record.load(path)
    assert len(found.decisions.truth) == 30_000
    (tmp_path / path.name).write_bytes(path.read_bytes()[:2000])
    with pytest.raises(Exception, match=f"{path.name} cannot be read"):
        Record.load(tmp_path / path.name)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    references = {f"case_{number}": two_balls(shift=number % 3) for number in range(3)}
    labels = {"background": 0, "Left part": 1, "Right part": 2}
    return write_dataset(tmp_path / "Dataset901_Made", references, labels)


def wrong_options(made: Path) -> Iterator[tuple[list[str], str]]:
    hippocampus, all_cases = ["hippocampus", str(made)], ["--cases", "all"]
    unmapped = made.parent / "unmapped.csv"
    unmapped.write_text("reference,evaluated\n1,77\n2,78\n")
    yield hippocampus, "The cases that the model has not seen are not known"
    yield [*hippocampus, "--fold", "0"], "splits_final.json with --splits"
    yield [*hippocampus, "--cases", "case_7"], "does not have the cases case_7"
    yield [*hippocampus, *all_cases], "none of these names is in the dataset"
    yield [*hippocampus, *all_cases, "--mapping", str(unmapped)], "names none of the labels"
    yield ["model_{fold}", str(made), *all_cases], "needs --fold, not --cases"
    yield [*hippocampus, *all_cases, "--refinement", "magic"], "no refinement 'magic'"
    yield ["nowhere", str(made), *all_cases], "There is no model 'nowhere'"
    yield ["hippocampus", str(made.parent), *all_cases], "is not a training dataset"


@pytest.mark.parametrize("number", range(9))
def test_what_cannot_be_done_is_said(
    number: int, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, words = list(wrong_options(made))[number]
    table = tmp_path / "labels.csv"
    table.write_text("reference,evaluated\n1,1\n2,2\n")
    if "--mapping" not in options and "magic" in options:
        options += ["--mapping", str(table)]
    assert main(["calibrate", *options, "-o", str(tmp_path / "out")]) != 0
    error = capsys.readouterr().err
    assert words in " ".join(error.split())
    assert not (tmp_path / "out").exists()


def splits(made: Path) -> Path:
    path = made / "splits.json"
    names = [f"case_{number}" for number in range(3)]
    path.write_text(json.dumps([{"train": names[1:], "val": names[:1]}] * 2))
    return path


def test_a_fold_that_the_model_lacks_is_refused(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["calibrate", "hippocampus", str(made), "--splits", str(splits(made))]
    assert main([*command, "--fold", "1"]) != 0
    assert "no member 'fold_1'" in capsys.readouterr().err
    assert main([*command, "--fold", "2"]) != 0
    assert "Fold 2 does not exist" in capsys.readouterr().err


def test_nothing_is_written_into_what_has_no_card(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(BUNDLED_MODELS / "hippocampus", tmp_path / "model_0")
    (tmp_path / "labels.csv").write_text("reference,evaluated\n1,1\n2,2\n")
    command = ["calibrate", str(tmp_path / "model_{fold}"), str(made), "--fold", "0", "--write"]
    command += ["--splits", str(splits(made)), "--mapping", str(tmp_path / "labels.csv")]
    assert main([*command, "-o", str(tmp_path / "out")]) != 0
    assert "--write needs one model" in capsys.readouterr().err


def test_a_reference_on_another_grid_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(made / "labelsTr" / "case_0.nii.gz", two_balls((18, 24, 18)))
    (tmp_path / "labels.csv").write_text("reference,evaluated\n0,0\n1,1\n2,2\n")
    command = ["calibrate", "hippocampus", str(made), "--cases", "case_0", "--no-mirroring"]
    command += ["--mapping", str(tmp_path / "labels.csv"), "--refinement", "none"]
    assert main([*command, "--device", "cpu", "-o", str(tmp_path / "out")]) != 0
    assert "does not lie on the grid of" in capsys.readouterr().err


# what counts, and as what


LABELS = (Label(5, "Left part", (9, 9, 9)), Label(6, "Right part", (9, 9, 8)))
GRID = Geometry.from_spacing((40, 30, 20), (1.0, 1.0, 1.0))


def result_of(probabilities: NDArray[np.float16]) -> SegmentationResult:
    first = np.concatenate([1 - probabilities.sum(0, keepdims=True), probabilities]).argmax(0)
    labelmap = np.array([0, 5, 6], np.uint8)[first]
    return SegmentationResult(Volume(labelmap, GRID), LABELS, (), probabilities=probabilities)


def test_voxels_far_from_everything_and_those_to_ignore_do_not_count() -> None:
    truth = Truth(LABELS, ((1,), (2,)), ignored=9)
    reference = np.zeros(GRID.shape, np.uint8)
    reference[2, 10:12, 5], reference[3, 10:12, 5], reference[4, 11, 5] = 1, 2, 9
    probabilities = np.zeros((2, *GRID.shape), np.float16)
    probabilities[0, 2, 10:12, 5] = 0.75
    probabilities[1, 30] = 1.0  # wrong, and far away
    found = drawn_decisions("case", result_of(probabilities), Volume(reference, GRID), truth)
    inside = np.prod([4 + MARGIN_MM, 2 + 2 * MARGIN_MM, 6 + MARGIN_MM]) - 1
    assert np.bincount(found.truth).tolist() == [inside - 4, 2, 2]
    right = reliability([(found, 1.0)])
    assert np.dot(np.nan_to_num(right.accuracy), right.counts) == pytest.approx(inside - 2)


def test_regions_are_decided_and_compared_one_by_one() -> None:
    truth = Truth(LABELS, ((1, 2), (2,)), regions=True)
    reference = np.zeros(GRID.shape, np.uint8)
    reference[10:20, 10:20, 5:15] = 1
    reference[12:18, 12:18, 7:13] = 2
    volume = Volume(reference, GRID)
    inside = truth.masks(reference)
    result = result_of(np.where(inside, 0.8, 0.1).astype(np.float16))
    assert figures_of(result, volume, truth)[:, 0].tolist() == [1.0, 1.0]
    found = drawn_decisions("case", result, volume, truth)
    assert found.probabilities.shape[1] == 2
    assert found.truth.sum() == inside.sum()
    assert reliability([(found, 1.0)]).error == pytest.approx(
        (0.2 * inside.sum() + 0.1 * (~inside).sum() - 0.1 * (inside.size - len(found.truth)))
        / len(found.truth),
        abs=1e-3,
    )


def test_structures_are_matched_by_name_or_as_a_table_says() -> None:
    card = load_card(BUNDLED_MODELS / "hippocampus")
    one = (Structure("posterior HIPPOCAMPUS", (4,)), Structure("Amygdala", (1,)))
    truth = Truth.of_dataset(card, Task(one, ignored=7))
    assert [label.value for label in truth.labels] == [2]
    assert truth.ignored == 7
    reference = Volume(
        np.array([[[0, 1, 4, 7]]], np.uint8), Geometry.from_spacing((1, 1, 4), GRID.spacing_mm)
    )
    assert truth.in_model_values(reference).voxels.tolist() == [[[0, 0, 2, 0]]]
    mapped = Truth.of_mapping(card, LabelMapping({8: (1,), 9: (0,)}, "table"))
    assert [label.value for label in mapped.labels] == [1]


def test_cases_of_one_owner_stay_together() -> None:
    owners = {"a": "Ann", "b": "Bob", "c": "Ann"}
    assert list(groups_of("abcd", owners, 5)) == [0, 1, 0, 2]
    assert list(groups_of("abcdefg", {}, 3)) == [0, 1, 2, 0, 1, 2, 0]
