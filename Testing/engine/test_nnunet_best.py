"""What `nnUNetv2_find_best_configuration` itself writes, read as a model's choice and post-processing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from medsegai.models.card import ModelCard
from medsegai.models.nnunet_plans import card_of_folder
from nnunet_models import PREPROCESSED, RAW, Made, make_model, nnunet_folders

CASES = {0: ("case_0", "case_1"), 1: ("case_2", "case_3")}
SHAPE = (8, 20, 24)
TRUTH = {1: (slice(2, 6), slice(3, 9), slice(4, 12)), 2: (slice(2, 6), slice(11, 17), slice(4, 12))}
ISLAND = (slice(6, 8), slice(0, 2), slice(20, 23))


def truth() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    for value, box in TRUTH.items():
        labels[box] = value
    return labels


def write_validation(results: Path, missed: int) -> None:
    """Predictions with an island of label 2, that miss a plane of one label."""
    labels = truth()
    labels[ISLAND] = 2
    unsure = np.zeros(SHAPE, bool)
    unsure[2] = labels[2] == missed
    labels[unsure] = 0
    certainty = np.where(unsure, 0.4, 0.9) * (labels == np.arange(3)[:, None, None, None])
    image = sitk.GetImageFromArray(labels)
    properties = {
        "sitk_stuff": {
            "spacing": image.GetSpacing(),
            "origin": image.GetOrigin(),
            "direction": image.GetDirection(),
        }
    }
    from batchgenerators.utilities.file_and_folder_operations import save_pickle

    for fold, cases in CASES.items():
        for case in cases:
            file = results / f"fold_{fold}" / "validation" / f"{case}.nii.gz"
            sitk.WriteImage(image, str(file))
            np.savez(file.with_name(f"{case}.npz"), probabilities=certainty.astype(np.float32))
            save_pickle(properties, str(file.with_name(f"{case}.pkl")))


def found_best(root: Path) -> tuple[ModelCard, dict[str, Any]]:
    """The card of two configurations that are best together, and what nnU-Net found."""
    from nnunetv2.evaluation.find_best_configuration import find_best_configuration

    made = Made(configurations=("2d", "3d_fullres"), folds=(0, 1))
    folder = make_model(root, made)
    for configuration, missed in (("2d", 1), ("3d_fullres", 2)):
        write_validation(folder / made.results_name(configuration), missed)
    reference = root / RAW / made.dataset / "labelsTr"
    prepared = root / PREPROCESSED / made.dataset
    for place in (reference, prepared / "gt_segmentations"):
        place.mkdir(parents=True)
        for case in (case for cases in CASES.values() for case in cases):
            sitk.WriteImage(sitk.GetImageFromArray(truth()), str(place / f"{case}.nii.gz"))
    plans = folder / made.results_name("2d") / "plans.json"
    (prepared / "nnUNetPlans.json").write_text(plans.read_text())
    models = [
        {"plans": made.plans_name, "configuration": name, "trainer": made.trainer}
        for name in made.configurations
    ]
    with nnunet_folders(root):
        find_best_configuration(made.dataset, models, num_processes=1, folds=(0, 1))
    information = json.loads((folder / "inference_information.json").read_text())
    return card_of_folder(folder), information["best_model_or_ensemble"]


@pytest.mark.slow
def test_what_nnunet_finds_best_is_what_the_card_uses(tmp_path: Path) -> None:
    card, best = found_best(tmp_path)
    selected = {model["configuration"] for model in best["selected_model_or_models"]}
    assert selected == {"2d", "3d_fullres"}
    assert {member.settings["configuration"] for member in card.members} == selected
    assert {member.weight for member in card.members} == {1.0}
    file = Path(best["postprocessing_file"]).with_suffix(".json")
    written = json.loads(file.read_text())["postprocessing_kwargs"]
    assert written, "nnU-Net found nothing worth doing: the example does not test this"
    (refinement,) = card.suggested_refinements
    groups = [step["labels_or_regions"] for step in written]
    assert refinement.options["labels"] == tuple(
        tuple(group) if isinstance(group, list) else (group,) for group in groups
    )
