"""Results folders of nnU-Net v2 as model cards, compared with what nnU-Net itself reads from them."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsegai.errors import ModelError
from medsegai.models.card import Channel, ModelCard
from medsegai.models.catalogue import find_card
from medsegai.models.nnunet_plans import card_of_folder, is_nnunet_folder
from nnunet_models import (
    PREPROCESSED,
    RAW,
    RESULTS,
    Made,
    edit,
    in_plans,
    make_model,
    nnunet_folders,
    require_nnunet,
    results_of,
    write_folders,
    write_inference_information,
    write_json,
    write_postprocessing,
)

ALL = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def managers(results: Path, configuration: str) -> tuple[Any, Any, Any]:
    """How nnU-Net reads the folder: plans, configuration and labels."""
    require_nnunet()
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    with redirect_stdout(io.StringIO()):
        plans = PlansManager(str(results / "plans.json"))
        labels = plans.get_label_manager(json.loads((results / "dataset.json").read_text()))
    return plans, plans.get_configuration(configuration), labels


def check_settings(card: ModelCard, results: Path, configuration: str) -> None:
    """The card says of a configuration what nnU-Net reads from its plans."""
    plans, theirs, _ = managers(results, configuration)
    ours = card.settings["configurations"][configuration]
    assert card.settings["transpose"] == plans.transpose_forward
    assert card.settings["reader"] == plans.image_reader_writer_class.__name__
    assert ours["patch_size"] == theirs.patch_size
    assert ours["spacing"] == theirs.spacing
    assert ours["normalization"] == theirs.normalization_schemes
    assert ours["use_mask"] == theirs.use_mask_for_norm
    assert ours["previous_stage"] == theirs.previous_stage_name
    network = ours["network"]
    assert network["class"].split(".")[-1] == theirs.network_arch_class_name.split(".")[-1]
    assert network["arguments"] == theirs.network_arch_init_kwargs
    for kind in ("data", "seg", "probabilities"):
        function = getattr(theirs, f"resampling_fn_{kind}")
        expected = {"function": function.func.__name__} | function.keywords
        expected.pop("is_seg")
        assert ours["resampling"][kind] == expected
    intensities = plans.foreground_intensity_properties_per_channel
    for channel, values in card.settings["intensities"].items():
        assert values.items() <= intensities[channel].items()
        assert len(values) == 4


# what a folder says


@pytest.mark.parametrize("configuration", ALL)
@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_the_card_says_what_nnunet_reads(network: str, configuration: str, tmp_path: Path) -> None:
    folder = write_folders(
        tmp_path,
        configurations=ALL,
        network=network,
        transpose=(1, 2, 0),
        channels=("CT", "FLAIR"),
        mask_norm=True,
        separate_z=True,
    )
    results = folder / f"nnUNetTrainer__nnUNetPlans__{configuration}"
    check_settings(card_of_folder(results), results, configuration)
    check_settings(card_of_folder(folder), results, configuration)


def test_a_folder_that_nnunet_made_is_a_model(tmp_path: Path) -> None:
    folder = make_model(tmp_path, folds=(0, 3))
    card = find_card(str(folder / "nnUNetTrainer__nnUNetPlans__3d_fullres"))
    assert (card.id, card.name, card.family) == ("Dataset901_Made", "Made (nnU-Net)", "nnunet")
    assert card.licence == "CC0-1.0"
    assert [member.name for member in card.members] == ["3d_fullres/fold_0", "3d_fullres/fold_3"]
    assert [member.settings for member in card.members] == [
        {"configuration": "3d_fullres", "fold": "0"},
        {"configuration": "3d_fullres", "fold": "3"},
    ]
    card.verify()
    assert card.channels == (Channel("MRI", "MR"),)
    assert find_card(str(card.folder)) == card


def test_no_torch_is_loaded_for_it(tmp_path: Path) -> None:
    folder = write_folders(tmp_path)
    code = (
        "import sys; from medsegai.models.catalogue import find_card; "
        f"find_card({str(folder)!r}); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "nnunetv2", "scipy", "SimpleITK"} & set(done.stdout.split())


def test_the_spacing_of_the_card_is_that_of_the_image(tmp_path: Path) -> None:
    """Plans have (z, y, x) after transposition; the card has (i, j, k) before it."""
    made = Made(configurations=("2d",), transpose=(2, 0, 1), spacing=(3.0, 1.0, 2.0))
    folder = write_folders(tmp_path, made)
    zyx = np.array(made.spacing)[np.argsort(made.transpose)]
    assert card_of_folder(folder).spacing_mm == tuple(zyx[::-1])


OLD = {
    "num_pool_per_axis": [2, 2, 2],
    "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_conv_per_stage_encoder": [2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2],
    "UNet_base_num_features": 32,
    "unet_max_num_features": 100,
}


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres", "3d_cascade_fullres"])
def test_plans_of_the_first_versions_are_translated_as_nnunet_does(
    name: str, configuration: str, tmp_path: Path
) -> None:
    folder = write_folders(tmp_path, configurations=("3d_lowres", configuration))
    results = folder / f"nnUNetTrainer__nnUNetPlans__{configuration}"

    def age(plans: dict[str, Any]) -> None:
        for values in plans["configurations"].values():
            if values.pop("architecture", None):
                axes = len(values["patch_size"])
                values |= {"UNet_class_name": name} | {
                    key: [size[-axes:] for size in value] if "kernel_sizes" in key else value
                    for key, value in OLD.items()
                }
        old = plans.pop("foreground_intensity_properties_per_channel")
        plans["foreground_intensity_properties_by_modality"] = old

    for file in folder.glob("*/plans.json"):
        edit(file, age)
    with pytest.warns(UserWarning, match="old nnU-Net plans"):
        check_settings(card_of_folder(results), results, configuration)


@pytest.fixture
def planned(tmp_path: Path, shared_data: Path) -> Path:
    """Plans that nnU-Net's planner made for five hippocampi, in a results folder."""
    require_nnunet()
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner,
    )
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    source, name = shared_data / "Dataset004_Hippocampus", "Dataset004_Hippocampus"
    raw, results = tmp_path / RAW / name, tmp_path / RESULTS / name
    cases = sorted((source / "labelsTr").glob("*.nii.gz"))[:5]
    analyzed = []
    for label in cases:
        image = source / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz")
        for file in (image, label):
            (raw / file.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, raw / file.parent.name / file.name)
        extractor = fingerprint_extractor.DatasetFingerprintExtractor
        analyzed.append(extractor.analyze_case([str(image)], str(label), SimpleITKIO))
    intensities = np.concatenate([case[2][0] for case in analyzed])
    low, median, high = np.percentile(intensities, (0.5, 50, 99.5))
    fingerprint = {
        "spacings": [list(case[1]) for case in analyzed],
        "shapes_after_crop": [list(case[0]) for case in analyzed],
        "foreground_intensity_properties_per_channel": {
            "0": {
                "max": float(intensities.max()),
                "mean": float(intensities.mean()),
                "median": float(median),
                "min": float(intensities.min()),
                "percentile_00_5": float(low),
                "percentile_99_5": float(high),
                "std": float(intensities.std()),
            }
        },
        "median_relative_size_after_cropping": 1.0,
    }
    write_json(tmp_path / PREPROCESSED / name / "dataset_fingerprint.json", fingerprint)
    dataset = json.loads((source / "dataset.json").read_text()) | {"numTraining": len(cases)}
    write_json(raw / "dataset.json", dataset)
    with nnunet_folders(tmp_path):
        ExperimentPlanner(name).plan_experiment()
    for configuration in ("2d", "3d_fullres"):
        folder = results / f"nnUNetTrainer__nnUNetPlans__{configuration}"
        (folder / "fold_0").mkdir(parents=True)
        (folder / "fold_0" / "checkpoint_best.pth").touch()
        shutil.copyfile(tmp_path / PREPROCESSED / name / "nnUNetPlans.json", folder / "plans.json")
        write_json(folder / "dataset.json", dataset)
    return results


def test_plans_of_nnunets_own_planner_are_read(planned: Path) -> None:
    card = card_of_folder(planned)
    for configuration in ("2d", "3d_fullres"):
        results = planned / f"nnUNetTrainer__nnUNetPlans__{configuration}"
        check_settings(card, results, configuration)
    assert [label.name for label in card.labels] == ["Anterior", "Posterior"]
    assert card.id == "Dataset004_Hippocampus"
    assert card.members[0].weights == "nnUNetTrainer__nnUNetPlans__2d/fold_0/checkpoint_best.pth"


# labels and channels


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ({"background": 0, "a": 1, "b": 2, "c": 3}, None),
        ({"c": 3, "background": 0, "a": 1, "b": 2}, None),
        ({"background": 0, "a": [1], "b": 2}, None),
        ({"background": "0", "a": "1", "b": "2"}, None),
        ({"background": 0, "a": 1, "b": 2, "ignore": 3}, None),
        (REGIONS, (1, 2, 3)),
        (REGIONS | {"ignore": 4}, (1, 2, 3)),
        ({"background": [0], "kidney": [1, 2, 3], "mass": [2, 3], "tumor": 2}, (1, 3, 2)),
    ],
)
def test_labels_are_those_of_nnunet(
    labels: dict[str, Any], order: tuple[int, ...] | None, tmp_path: Path
) -> None:
    results = results_of(tmp_path, labels=labels, regions_class_order=order)
    if labels["background"] == [0]:
        with pytest.raises(RuntimeError, match="must be 0"):  # nnU-Net wants a number here
            managers(results, "3d_fullres")
        edit(results / "dataset.json", lambda data: data["labels"].update(background=0))
    _, _, theirs = managers(results, "3d_fullres")
    card = card_of_folder(results)
    outputs = card.members[0].classes
    assert len(outputs) == theirs.num_segmentation_heads
    if order is None:
        assert not theirs.has_regions
        assert card.settings["regions"] is None
        assert [label.value for label in card.labels] == theirs.foreground_labels
        assert outputs == ((), *((value,) for value in theirs.foreground_labels))
    else:
        regions = [r if isinstance(r, tuple) else (r,) for r in theirs.foreground_regions]
        assert [tuple(region) for region in card.settings["regions"]] == regions
        assert card.settings["regions_class_order"] == theirs.regions_class_order
        assert outputs == tuple(regions)
        assert [label.value for label in card.labels] == list(order)
    names = {name for name in labels if name not in ("background", "ignore")}
    assert {label.name for label in card.labels} == names
    colors = [label.color for label in card.labels]
    assert len(set(colors)) == len(colors)


def test_a_value_that_no_region_writes_is_no_label(tmp_path: Path) -> None:
    labels = {"background": 0, "all": [1, 2, 3], "some": [2, 3]}
    card = card_of_folder(results_of(tmp_path, labels=labels, regions_class_order=(1, 2)))
    assert card.members[0].classes == ((1, 2), (2,))
    assert card.settings["regions"] == [[1, 2, 3], [2, 3]]


def test_a_label_without_a_proper_name_gets_one(tmp_path: Path) -> None:
    card = card_of_folder(results_of(tmp_path, labels={"background": 0, " ": 1, "a\nb": 2}))
    assert [label.name for label in card.labels] == ["Label 1", "a b"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("CT",), [("CT", "CT")]),
        (("T1w", "T2-FLAIR"), [("T1w", "MR"), ("T2-FLAIR", "MR")]),
        (("CT", "PET SUV"), [("CT", "CT"), ("PET SUV", "PT")]),
        (("zscore", "zscore"), [("zscore 1", "OT"), ("zscore 2", "OT")]),
        (("ultrasound",), [("ultrasound", "US")]),
    ],
)
def test_channels_have_names_and_a_modality(
    names: tuple[str, ...], expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    card = card_of_folder(results_of(tmp_path, channels=names))
    assert [(channel.name, channel.modality) for channel in card.channels] == expected


@pytest.mark.parametrize("keys", [("0000", "0001"), ("1", "2"), ("1", "0"), ("a", "b")])
def test_channels_are_taken_as_nnunet_takes_them(keys: tuple[str, str], tmp_path: Path) -> None:
    """It counts them and does not look at their numbers."""
    results = results_of(tmp_path, channels=("T1", "T2"))
    edit(
        results / "dataset.json",
        lambda d: d.update(channel_names=dict(zip(keys, "xy", strict=True))),
    )
    card = card_of_folder(results)
    expected = "yx" if keys == ("1", "0") else "xy"
    assert "".join(channel.name for channel in card.channels) == expected


def test_channels_of_the_first_versions_are_read(tmp_path: Path) -> None:
    results = results_of(tmp_path)
    edit(results / "dataset.json", lambda d: d.update(modality=d.pop("channel_names")))
    assert card_of_folder(results).channels == (Channel("MRI", "MR"),)


# which configurations and folds


def shares(card: ModelCard) -> dict[str, float]:
    return {member.name: member.weight for member in card.members}


def test_the_first_stage_of_a_cascade_is_not_fused(tmp_path: Path) -> None:
    card = card_of_folder(write_folders(tmp_path, configurations=ALL))
    assert shares(card) == {
        "2d/fold_0": 1,
        "3d_cascade_fullres/fold_0": 1,
        "3d_fullres/fold_0": 1,
        "3d_lowres/fold_0": 0,
    }
    assert all(card.weights_path(member).is_file() for member in card.members)


def test_without_the_cascade_the_coarse_configuration_is_fused(tmp_path: Path) -> None:
    card = card_of_folder(write_folders(tmp_path, configurations=("3d_lowres", "3d_fullres")))
    assert shares(card) == {"3d_fullres/fold_0": 1, "3d_lowres/fold_0": 1}
    assert card.spacing_mm == (1, 1, 1)


def test_a_cascade_by_itself_finds_its_first_stage_beside_it(tmp_path: Path) -> None:
    folder = write_folders(tmp_path, configurations=ALL, folds=(0, 1))
    card = card_of_folder(folder / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres")
    assert list(shares(card).values()) == [1, 1, 0, 0]
    assert set(card.settings["configurations"]) == {"3d_cascade_fullres", "3d_lowres"}
    assert all(card.weights_path(member).is_file() for member in card.members)


def test_a_cascade_without_its_first_stage_is_refused(tmp_path: Path) -> None:
    results = results_of(tmp_path, configurations=("3d_cascade_fullres",))
    for path in (results, results.parent):
        with pytest.raises(ModelError, match=r"first is missing.*__3d_lowres"):
            card_of_folder(path)


def test_what_nnunet_found_best_is_used(tmp_path: Path) -> None:
    made = Made(configurations=ALL)
    folder = write_folders(tmp_path, made)
    write_inference_information(folder, made, ["3d_lowres", "3d_cascade_fullres"], "ensembles/x")
    expected = {"3d_cascade_fullres/fold_0": 1, "3d_lowres/fold_0": 1}
    assert shares(card_of_folder(folder)) == expected
    write_inference_information(folder, made, ["3d_cascade_fullres"], "x/y")
    expected = {"3d_cascade_fullres/fold_0": 1, "3d_lowres/fold_0": 0}
    assert shares(card_of_folder(folder)) == expected


def test_a_network_of_the_best_ensemble_that_is_not_here_is_told(tmp_path: Path) -> None:
    made = Made(configurations=("2d", "3d_fullres"))
    folder = write_folders(tmp_path, made)
    write_inference_information(folder, made, ["3d_fullres", "3d_lowres"], "ensembles/x")
    card = card_of_folder(folder)
    assert shares(card) == {"3d_fullres/fold_0": 1}
    assert "3d_lowres, not here" in card.description


def test_best_networks_of_one_configuration_are_two_models(tmp_path: Path) -> None:
    one, two = Made(), Made(plans_name="nnUNetResEncUNetMPlans")
    folder = write_folders(tmp_path, one)
    write_folders(tmp_path, two)
    with pytest.raises(ModelError, match="several trainers or plans"):
        card_of_folder(folder)
    file = write_inference_information(folder, one, ["3d_fullres"], "x/y")
    assert shares(card_of_folder(folder)) == {"3d_fullres/fold_0": 1}

    def add(data: dict[str, Any]) -> None:
        models = data["best_model_or_ensemble"]["selected_model_or_models"]
        models.append(models[0] | {"plans_identifier": two.plans_name})

    edit(file, add)
    with pytest.raises(ModelError, match=r"--model .*nnUNetPlans__3d_fullres,.*MPlans__3d_fullres"):
        card_of_folder(folder)


def test_folds_that_are_there_are_used(tmp_path: Path) -> None:
    results = results_of(tmp_path, folds=(0, 1, 2, 10, "all"))
    shutil.rmtree(results / "fold_1")
    assert list(shares(card_of_folder(results))) == [
        f"3d_fullres/fold_{fold}" for fold in (0, 2, 10)
    ]
    assert list(shares(card_of_folder(results / "fold_2"))) == ["3d_fullres/fold_2"]
    only = card_of_folder(results / "fold_all")
    assert list(shares(only)) == ["3d_fullres/fold_all"]
    assert only.weights_path(only.members[0]).is_file()
    assert find_card(str(only.folder)) == only


def test_the_network_of_all_cases_is_used_where_it_is_alone(tmp_path: Path) -> None:
    card = card_of_folder(results_of(tmp_path, folds=("all",)))
    assert list(shares(card)) == ["3d_fullres/fold_all"]


def test_the_final_checkpoint_comes_before_the_best(tmp_path: Path) -> None:
    results = results_of(tmp_path)
    (results / "fold_0" / "checkpoint_best.pth").touch()
    assert card_of_folder(results).members[0].weights == "fold_0/checkpoint_final.pth"
    (results / "fold_0" / "checkpoint_final.pth").unlink()
    assert card_of_folder(results).members[0].weights == "fold_0/checkpoint_best.pth"


# post-processing


def steps(card: ModelCard) -> list[list[int]]:
    (refinement,) = card.suggested_refinements
    assert refinement.name == "largest_component"
    return [list(group) for group in refinement.options["labels"]]


def test_postprocessing_is_suggested_in_its_order(tmp_path: Path) -> None:
    results = results_of(tmp_path, folds=(0, 1), labels=REGIONS, regions_class_order=(1, 2, 3))
    assert card_of_folder(results).suggested_refinements == ()
    write_postprocessing(
        results / "crossval_results_folds_0_1", [[1, 2, 3], [2, 3], 3, [[1, 2], 3]]
    )
    assert steps(card_of_folder(results)) == [[1, 2, 3], [2, 3], [3], [1, 2, 3]]
    assert steps(card_of_folder(results.parent)) == [[1, 2, 3], [2, 3], [3], [1, 2, 3]]


def test_the_postprocessing_of_these_folds_is_taken(tmp_path: Path) -> None:
    results = results_of(tmp_path, folds=(0, 1, 2))
    for number, folds in enumerate(("0", "0_1_2", "0_1_2_3_4"), start=1):
        write_postprocessing(results / f"crossval_results_folds_{folds}", [number])
    assert steps(card_of_folder(results)) == [[2]]


def test_the_postprocessing_of_an_ensemble_is_its_own(tmp_path: Path) -> None:
    made = Made(configurations=("2d", "3d_fullres"))
    folder = write_folders(tmp_path, made)
    for configuration in made.configurations:
        results = folder / made.results_name(configuration)
        write_postprocessing(results / "crossval_results_folds_0", [1])
    assert card_of_folder(folder).suggested_refinements == ()
    both = "___".join(map(made.results_name, made.configurations))
    write_postprocessing(folder / "ensembles" / f"ensemble___{both}___0", [2])
    assert steps(card_of_folder(folder)) == [[2]]


def test_the_postprocessing_that_nnunet_names_lies_in_this_folder(tmp_path: Path) -> None:
    made = Made(configurations=("2d", "3d_fullres"))
    folder = write_folders(tmp_path, made)
    place = f"{made.results_name('2d')}/crossval_results_folds_0_1_2"
    write_inference_information(folder, made, ["2d"], place)
    write_postprocessing(folder / place, [[1, 2]])
    assert steps(card_of_folder(folder)) == [[1, 2]]
    edit(
        folder / "inference_information.json",
        lambda data: data["best_model_or_ensemble"].update(
            postprocessing_file="D:\\results\\" + place.replace("/", "\\") + "\\postprocessing.pkl"
        ),
    )
    assert steps(card_of_folder(folder)) == [[1, 2]]


def test_a_pickle_of_postprocessing_is_told_and_not_opened(tmp_path: Path) -> None:
    results = results_of(tmp_path)
    trap = tmp_path / "trap"
    pickle = b"cos\nmkdir\n(V" + str(trap).encode() + b"\ntR."
    (results / "postprocessing.pkl").write_bytes(pickle)
    card = card_of_folder(results)
    assert card.suggested_refinements == ()
    assert "only as postprocessing.pkl" in card.description
    assert not trap.exists()


def test_unknown_postprocessing_is_told(tmp_path: Path) -> None:
    results = results_of(tmp_path)
    file = write_postprocessing(results, [1, 2])
    edit(file, lambda data: data["postprocessing_fns"].__setitem__(0, "fill_holes"))
    card = card_of_folder(results)
    assert steps(card) == [[2]]
    assert "'fill_holes' is unknown" in card.description


# what is such a folder


def test_other_folders_are_none(tmp_path: Path) -> None:
    folder = write_folders(tmp_path)
    results = folder / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    for path in (folder, results, results / "fold_0", results / "fold_5"):
        assert is_nnunet_folder(path)
    raw = tmp_path / "raw" / "Dataset004_Hippocampus"
    write_json(raw / "dataset.json", {})
    (raw / "imagesTr").mkdir()
    for path in (tmp_path, raw, results / "plans.json", tmp_path / "nowhere", tmp_path / "fold_0"):
        assert not is_nnunet_folder(path)
    with pytest.raises(ModelError, match="does not hold a model"):
        find_card(str(raw))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Dataset004_Hippocampus", "Dataset004_Hippocampus"),
        ("Dataset5 Große Leber/Milz", "Dataset5-Gro-e-Leber-Milz"),
        ("../..", "nnunet"),
        ("x" * 200, "x" * 64),
    ],
)
def test_the_id_is_made_fit_for_a_folder(name: str, expected: str, tmp_path: Path) -> None:
    results = results_of(tmp_path)
    in_plans(dataset_name=name)(results)
    assert card_of_folder(results).id == expected
