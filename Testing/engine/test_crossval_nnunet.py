"""Choices agree with nnU-Net's own: post-processing and the best configuration, on the same predictions."""

import itertools
import json
import multiprocessing.pool
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossval_cases import two_balls, write, write_dataset
from medsegai.evaluation.crossval import Figures, Task, best_of, candidates_of, count, read_parts
from medsegai.evaluation.folds import dataset_cases
from medsegai.evaluation.postprocessing import Decision, determine_postprocessing
from medsegai.io import read_labelmap
from medsegai.progress import Progress
from medsegai.volume import Volume
from nnunet_models import Made, make_model, nnunet_folders, plans_json, require_nnunet
from test_crossval import validation

PLAIN = {"background": 0, "one": 1, "two": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net starts a pool of processes for each of its steps; threads do the same in a tenth of the time."""
    require_nnunet()
    from nnunetv2.ensembling import ensemble
    from nnunetv2.evaluation import evaluate_predictions
    from nnunetv2.postprocessing import remove_connected_components

    pool = SimpleNamespace(Pool=lambda count: multiprocessing.pool.ThreadPool(1))
    stand_in = SimpleNamespace(get_context=lambda method: pool)
    for module in (ensemble, evaluate_predictions, remove_connected_components):
        monkeypatch.setattr(module, "multiprocessing", stand_in)


def with_islands(reference: NDArray[Any], where: Mapping[int, int], seed: int) -> NDArray[Any]:
    """The reference with single voxels of `value` scattered, `where[value]` of them."""
    rng = np.random.default_rng(seed)
    found = reference.copy()
    for value, number in where.items():
        free = np.argwhere(reference == 0)
        found[tuple(rng.permutation(free)[:number].T)] = value
    return found


def theirs(folder: Path, labels: Mapping[str, Any], regions: bool) -> dict[str, Any]:
    """What nnU-Net determines on the predictions in `folder`."""
    from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing as own

    made = Made(labels=labels, regions_class_order=(1, 2) if regions else None)
    dataset = json.loads((folder / "dataset" / "dataset.json").read_text())
    with nnunet_folders(folder / "nnunet"):
        own(
            str(folder / "found"),
            str(folder / "dataset" / "labelsTr"),
            plans_json(made),
            dataset,
            1,
        )
    return json.loads((folder / "found" / "postprocessing.json").read_text())


def ours(folder: Path) -> Decision:
    task = Task.of(folder / "dataset")

    def pairs() -> Iterator[tuple[str, Volume, Volume]]:
        for path in sorted((folder / "found").glob("*.nii.gz")):
            reference = folder / "dataset" / "labelsTr" / path.name
            yield path.name, read_labelmap(path)[0], read_labelmap(reference)[0]

    counts = {
        name: count(found.voxels, reference.voxels, task) for name, found, reference in pairs()
    }
    return determine_postprocessing(pairs, Figures("made", task, counts))


def flat(labels: Any) -> tuple[int, ...]:
    """A label, a region, or a list of labels as a group."""
    return (labels,) if isinstance(labels, int) else tuple(labels)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize(
    ("islands", "split"),
    [
        ({1: 6, 2: 5}, False),  # both better
        ({1: 6}, True),  # the second one is in two pieces in truth, so cleaning it does harm
        ({2: 4}, False),
        ({}, False),  # nothing to gain
    ],
)
def test_postprocessing_is_that_of_nnunet(
    tmp_path: Path, islands: dict[int, int], split: bool, regions: bool
) -> None:
    references = {f"case_{number}": two_balls(shift=number) for number in range(3)}
    if split:
        for reference in references.values():
            reference[10][reference[10] == 2] = 0
    labels = REGIONS if regions else PLAIN
    more = {"regions_class_order": [1, 2]} if regions else {}
    write_dataset(tmp_path / "dataset", references, labels, **more)
    for seed, (name, reference) in enumerate(references.items()):
        found = with_islands(reference, islands, seed)
        write(tmp_path / "found" / f"{name}.nii.gz", found)
    expected = theirs(tmp_path, labels, regions)
    decision = ours(tmp_path)
    groups = [flat(kwargs["labels_or_regions"]) for kwargs in expected["postprocessing_kwargs"]]
    assert [tuple(sorted(group)) for group in groups] == [tuple(g) for g in decision.groups]
    after = expected["postprocessed"]
    assert decision.figures.mean_dice() == pytest.approx(after["foreground_mean"]["Dice"], abs=1e-9)
    assert list(decision.figures.dice().values()) == pytest.approx(
        [values["Dice"] for values in after["mean"].values()], abs=1e-9
    )


def test_something_helps_in_these_tests(tmp_path: Path) -> None:
    """Otherwise agreement would be easy: here islands of both labels go, and figures rise."""
    reference = two_balls()
    write_dataset(tmp_path / "dataset", {"case_0": reference}, PLAIN)
    write(tmp_path / "found" / "case_0.nii.gz", with_islands(reference, {1: 6, 2: 5}, 0))
    decision = ours(tmp_path)
    assert decision.groups
    assert decision.figures.mean_dice() > 0.99


# the best configuration


def predict_with_nnunet(root: Path, made: Made, cases: Mapping[int, list[str]]) -> None:
    """What nnU-Net's training leaves in fold_X/validation when it is asked for npz files."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    images = root / "nnUNet_raw" / made.dataset / "imagesTr"
    with nnunet_folders(root):
        for configuration, fold in itertools.product(made.configurations, made.folds):
            folder = root / "nnUNet_results" / made.dataset / made.results_name(configuration)
            predictor = nnUNetPredictor(
                use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
            )
            predictor.initialize_from_trained_model_folder(str(folder), (fold,))
            target = folder / f"fold_{fold}" / "validation"
            (target / "summary.json").unlink()
            names = cases[int(fold)]
            predictor.predict_from_files_sequential(
                [[str(images / f"{name}_0000.nii.gz")] for name in names],
                [str(target / name) for name in names],
                save_probabilities=True,
            )


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("winner", ["2d", "3d_fullres", "2d+3d_fullres"])
def test_the_best_configuration_is_that_of_nnunet(tmp_path: Path, winner: str) -> None:
    from nnunetv2.evaluation.find_best_configuration import find_best_configuration

    made = Made(configurations=("2d", "3d_fullres"), folds=(0, 1), labels=PLAIN)
    cases = {0: ["case_0", "case_2"], 1: ["case_1", "case_3"]}
    make_model(tmp_path, made)
    raw = tmp_path / "nnUNet_raw" / made.dataset
    references = {f"case_{number}": two_balls(shift=number % 3) for number in range(4)}
    write_dataset(raw, references, PLAIN)
    predict_with_nnunet(tmp_path, made, cases)

    # The truth is what one of the candidates found: so it is sure to win.
    results = tmp_path / "nnUNet_results" / made.dataset
    parts = read_parts([str(results)], ["0", "1"])
    run = validation(raw, candidates_of(parts), tmp_path / "out")
    run.predict(Progress())
    (chosen,) = [item for item in run.candidates if item.name == winner]
    for name in references:
        truth, _ = read_labelmap(run.prediction(chosen, name))
        write(raw / "labelsTr" / f"{name}.nii.gz", truth.voxels)

    _preprocessed(tmp_path, made, raw)
    with nnunet_folders(tmp_path):
        found = find_best_configuration(made.dataset, _models(made), num_processes=1, folds=(0, 1))
    scores = [score for _, score in sorted(found["all_results"].items(), key=_order)]
    selected = found["best_model_or_ensemble"]["selected_model_or_models"]
    after = found["best_model_or_ensemble"]["result_on_crossval_post_pp"]

    figures = [run.figures(candidate) for candidate in run.candidates]
    # Random weights make every voxel a boundary, and nnU-Net adds up tiles in half precision.
    assert [item.mean_dice() for item in figures] == pytest.approx(scores, abs=0.03)
    assert run.candidates[best_of(figures)].name == winner
    assert "+".join(item["configuration"] for item in selected) == winner

    for candidate, folders in zip(run.candidates, _their_predictions(results, made), strict=True):
        for path in (path for folder in folders for path in folder.glob("*.nii.gz")):
            shutil.copyfile(path, run.prediction(candidate, path.name.removesuffix(".nii.gz")))
    figures = [run.figures(candidate) for candidate in run.candidates]
    assert [item.mean_dice() for item in figures] == pytest.approx(scores, abs=1e-9)
    number = best_of(figures)
    decision = determine_postprocessing(lambda: run.pairs(run.candidates[number]), figures[number])
    assert decision.figures.mean_dice() == pytest.approx(after, abs=1e-9)


def _their_predictions(results: Path, made: Made) -> list[list[Path]]:
    """Folders of nnU-Net's predictions, of each configuration and of their ensemble."""
    singles = [
        [results / made.results_name(name) / f"fold_{fold}" / "validation" for fold in made.folds]
        for name in made.configurations
    ]
    return [*singles, list((results / "ensembles").iterdir())]


def _preprocessed(root: Path, made: Made, raw: Path) -> None:
    """What nnU-Net looks up there when it compares configurations."""
    folder = root / "nnUNet_preprocessed" / made.dataset
    for case in dataset_cases(raw):
        target = folder / "gt_segmentations" / case.label.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(case.label.read_bytes())
    (folder / f"{made.plans_name}.json").write_text(json.dumps(plans_json(made)))


def _models(made: Made) -> list[dict[str, str]]:
    return [
        {"plans": made.plans_name, "configuration": name, "trainer": made.trainer}
        for name in made.configurations
    ]


def _order(item: tuple[str, float]) -> int:
    """2d, 3d_fullres, both."""
    return 2 if item[0].startswith("ensemble") else int("3d" in item[0])


def test_the_order_of_candidates_is_that_of_nnunet() -> None:
    require_nnunet()
    from nnunetv2.evaluation.find_best_configuration import default_trained_models

    from medsegai.evaluation.crossval import NNUNET_ORDER

    assert [model["configuration"] for model in default_trained_models] == list(NNUNET_ORDER)
