"""Results folders that are incomplete or contradict themselves: refused, with the reason and the way out."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medsegai.errors import ModelError
from medsegai.families import load_model
from medsegai.models.catalogue import find_card
from medsegai.models.nnunet_parts import CT_FIGURES
from medsegai.models.nnunet_plans import card_of_folder, is_nnunet_folder
from nnunet_models import (
    edit,
    in_plans,
    replace_values,
    results_of,
    write_folders,
)
from test_broken_cards import MUTATIONS, SEED, mutated

ALL = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def in_configuration(**changes: Any) -> Callable[[Path], None]:
    return lambda results: edit(
        results / "plans.json",
        lambda data: replace_values(data["configurations"]["3d_fullres"], changes),
    )


def in_dataset(**changes: Any) -> Callable[[Path], None]:
    return lambda results: edit(
        results / "dataset.json", lambda data: replace_values(data, changes)
    )


def labels(**values: Any) -> Callable[[Path], None]:
    return in_dataset(labels=values)


BAD: list[tuple[Callable[[Path], Any], str]] = [
    (lambda r: shutil.rmtree(r / "fold_0"), "does not contain folds"),
    (lambda r: (r / "fold_0" / "checkpoint_final.pth").unlink(), "training did not end"),
    (lambda r: (r / "fold_1").mkdir(), r"fold_1 has neither"),
    (lambda r: (r / "plans.json").unlink(), r"plans\.json is missing"),
    (lambda r: (r / "dataset.json").unlink(), r"dataset\.json is missing"),
    (lambda r: (r / "plans.json").write_text('{"a": '), r"plans\.json cannot be read as JSON"),
    (lambda r: (r / "dataset.json").write_text("[]"), r"dataset\.json must hold a JSON object"),
    (lambda r: (r / "plans.json").write_bytes(b"\xff\xfe\x00"), r"plans\.json cannot be read"),
    (lambda r: (r / "plans.json").write_text("[" * 100_000), r"plans\.json cannot be read"),
    (lambda r: (r / "plans.pkl").touch(), "nnU-Net v1"),
    (in_plans(plans_per_stage={}), "nnU-Net v1"),
    (in_plans(configurations=None), "no 'configurations'"),
    (in_plans(configurations={"2d": {}}), "no configuration '3d_fullres'; it has 2d"),
    (in_plans(transpose_forward=[0, 1, 1]), "transpose_forward"),
    (in_plans(transpose_forward=["a", 1, {}]), "transpose_forward"),
    (in_plans(image_reader_writer=None), "image_reader_writer"),
    (in_plans(dataset_name=5), "dataset_name"),
    (in_plans(label_manager="OurLabels"), "OurLabels"),
    (in_plans(foreground_intensity_properties_per_channel={"0": {"mean": 1}}), "percentile_00_5"),
    (in_configuration(inherits_from="3d_cascade_fullres"), "in a circle"),
    (in_configuration(inherits_from="3d_nowhere"), "3d_nowhere"),
    (in_configuration(patch_size=None), "patch_size"),
    (in_configuration(patch_size=[16, 0, 16]), "patch_size"),
    (in_configuration(spacing=[1.0, 1.0]), "2 or 3 values"),
    (in_configuration(spacing=["1", 1, 1]), "spacing"),
    (in_configuration(preprocessor_name="OurPreprocessor"), "OurPreprocessor"),
    (in_configuration(architecture=None), "UNet_class_name"),
    (in_configuration(architecture={"arch_kwargs": {}}), "network_class_name"),
    (in_configuration(architecture=None, UNet_class_name="UMamba"), "UMamba"),
    (in_configuration(normalization_schemes=["CTNormalization"] * 2), "normalises 2 channels"),
    (in_configuration(resampling_fn_seg=None), "resampling_fn_seg"),
    (in_dataset(labels=None), "no 'labels'"),
    (in_dataset(labels={"0": "background", "1": "liver"}), "nnU-Net v1"),
    (in_dataset(channel_names=None), "channel_names"),
    (in_dataset(channel_names={"0": "T1", "1": "T2"}), "names 2"),
    (in_dataset(channel_names={}), "does not name any channel"),
    (in_dataset(channel_names=["MRI"]), "channel_names"),
    (labels(a=1), "background"),
    (labels(background=1, a=0), "background"),
    (labels(background=0), "nothing but"),
    (labels(background=0, a=1, b=3), "without gaps"),
    (labels(background=0, a=1, b=1), "without gaps"),
    (labels(background=0, a="one"), "'a'"),
    (labels(background=0, a=-1), "'a'"),
    (labels(background=0, a=1.5), "'a'"),
    (labels(background=0, a=[]), "'a'"),
    (labels(background=0, a=1, ignore=3), "must be 2, the highest"),
    (labels(background=0, a=[1, 2], b=2), "regions_class_order"),
    (in_dataset(labels=REGIONS, regions_class_order=[1, 2]), "regions_class_order"),
    (in_dataset(labels=REGIONS, regions_class_order=[1, 2, 2]), "separate value"),
    (lambda r: (r / "postprocessing.json").write_text("{}"), "postprocessing_fns"),
    (lambda r: r.rename(r.parent / "my_model"), "TRAINER__PLANS__CONFIGURATION|give it back"),
    (
        lambda r: r.rename(r.parent / "nnUNetTrainer__nnUNetPlans__4d"),
        "no configuration '4d'; it has 2d",
    ),
]


@pytest.mark.parametrize(("spoil", "words"), BAD)
def test_a_bad_folder_is_refused_with_the_reason(
    spoil: Callable[[Path], Any], words: str, tmp_path: Path
) -> None:
    results = results_of(tmp_path)
    assert card_of_folder(results)
    spoil(results)
    (results,) = results.parent.iterdir()
    assert is_nnunet_folder(results) or not any(results.glob("fold_*"))
    with pytest.raises(ModelError, match=words) as caught:
        card_of_folder(results)
    assert str(results) in str(caught.value)


def test_nan_that_nnunet_writes_for_the_mean_of_nothing_is_read_as_not_known(
    tmp_path: Path,
) -> None:
    """Python's JSON has NaN: scores of structures that no case has, and figures of channels without foreground."""
    results = results_of(tmp_path)
    expected = card_of_folder(results).to_dict()
    nothing = dict.fromkeys((*CT_FIGURES, "median", "min", "max"), float("nan"))
    in_plans(foreground_intensity_properties_per_channel={"0": nothing})(results)
    in_dataset(numTraining=float("nan"))(results)
    found = card_of_folder(results).to_dict()
    assert found["settings"].pop("intensities") == {"0": {}}
    expected["settings"].pop("intensities")
    assert found == expected
    in_configuration(normalization_schemes=["CTNormalization"])(results)
    with pytest.raises(ModelError, match="percentile_00_5 of channel 0, by which CTNormalization"):
        card_of_folder(results)


def test_no_mutation_of_what_nnunet_wrote_ends_in_another_error(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    results = results_of(tmp_path)
    files = {
        name: json.loads((results / name).read_text()) for name in ("plans.json", "dataset.json")
    }
    reasons = []
    for _ in range(2 * MUTATIONS):
        for name, data in files.items():
            (results / name).write_text(json.dumps(mutated(data, chance)))
        try:
            load_model(card_of_folder(results))
        except ModelError as error:
            reasons.append(str(error))
    assert not [reason for reason in reasons if len(reason) > 1000]
    assert all(str(results) in reason or "Model " in reason for reason in reasons)
    assert MUTATIONS < len(reasons) < 2 * MUTATIONS, "most are noticed, and some are harmless"


def test_a_renamed_folder_is_refused_with_the_way_out(tmp_path: Path) -> None:
    results = results_of(tmp_path)
    renamed = results.rename(tmp_path / "my_model")
    with pytest.raises(ModelError, match=r"my_model.*nnUNetTrainer__nnUNetPlans__3d_fullres"):
        find_card(str(renamed))


@pytest.mark.parametrize("name", ["fold_7", "fold_all"])
def test_a_fold_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    results = results_of(tmp_path, folds=(0, 2))
    with pytest.raises(ModelError, match=f"no {name}; it has fold_0, fold_2"):
        find_card(str(results / name))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (in_plans(transpose_forward=[2, 0, 1]), "transpose_forward"),
        (in_plans(image_reader_writer="NibabelIO"), "image_reader_writer"),
        (in_plans(dataset_name="Dataset902_Other"), "dataset_name"),
        (in_configuration(patch_size=[32, 32, 32]), "3d_fullres"),
        (labels(background=0, anterior=1), "labels"),
        (in_dataset(channel_names={"0": "CT"}), "channel_names"),
        (
            lambda results: edit(
                results / "plans.json",
                lambda data: data["foreground_intensity_properties_per_channel"]["0"].update(
                    mean=-5.0
                ),
            ),
            "intensities",
        ),
    ],
)
def test_folders_that_do_not_belong_together_are_refused(
    change: Callable[[Path], None], word: str, tmp_path: Path
) -> None:
    folder = write_folders(tmp_path, configurations=("2d", "3d_fullres"))
    change(folder / "nnUNetTrainer__nnUNetPlans__2d")
    with pytest.raises(ModelError, match=f"do not belong together.*{word}"):
        card_of_folder(folder)


def test_a_configuration_that_was_planned_later_is_no_contradiction(tmp_path: Path) -> None:
    folder = write_folders(tmp_path, configurations=("2d", "3d_fullres"))
    plans = folder / "nnUNetTrainer__nnUNetPlans__2d" / "plans.json"
    edit(plans, lambda data: data["configurations"].pop("3d_fullres"))
    assert len(card_of_folder(folder).members) == 2


@pytest.mark.parametrize("text", ["", '{"best_model_or_ensemble": 5}', "[1]"])
def test_damaged_inference_information_is_refused(text: str, tmp_path: Path) -> None:
    folder = write_folders(tmp_path)
    (folder / "inference_information.json").write_text(text)
    with pytest.raises(ModelError, match=r"inference_information\.json"):
        card_of_folder(folder)


def test_a_folder_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    results = results_of(tmp_path)
    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(ModelError, match=r"cannot be read.*Permission denied"):
        find_card(str(results))
