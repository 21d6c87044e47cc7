"""Bundles of MONAI become cards; what is not segmentation, or would have to be run, is refused."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import monai_bundles
from medsegai.cli import main
from medsegai.errors import ModelError, UnsafeModelError
from medsegai.families import load_model
from medsegai.families.monai import import_model
from medsegai.families.monai.labels import channel_names, overlapping
from medsegai.models.card import ModelCard, load_card
from medsegai.models.refinement import Refinement
from monai_bundles import LOAD, REGIONS_BACK, UNET, Bundle, after, as_zip, step

Capture = pytest.CaptureFixture[str]


def imported(bundle: Bundle, tmp_path: Path) -> ModelCard:
    card = import_model(bundle.write(tmp_path / "spleen_ct"), tmp_path / "models" / "new")
    assert card is not None
    return card


def test_a_bundle_becomes_a_card_that_says_what_the_configuration_said(tmp_path: Path) -> None:
    card = imported(Bundle(), tmp_path)
    assert (card.id, card.family, card.version) == ("spleen_ct", "monai", "0.1.0")
    assert [(c.name, c.modality) for c in card.channels] == [("CT", "CT")]
    assert [(label.value, label.name) for label in card.labels] == [
        (1, "organ 1"),
        (2, "organ 2"),
        (3, "organ 3"),
    ]
    assert card.spacing_mm == (1.5, 1.5, 2.0)
    read = json.loads((tmp_path / "models" / "new" / "card.json").read_text())["settings"]
    assert read == {
        "network": {
            "class": "UNet",
            "arguments": {name: value for name, value in UNET.items() if name != "_target_"},
        },
        "preprocessing": [
            {"transform": "Orientation", "axcodes": "RAS"},
            {"transform": "Spacing", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
            {
                "transform": "ScaleIntensityRange",
                **{"a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1, "clip": True},
            },
        ],
        "inferer": {
            "roi_size": [16, 16, 16],
            "overlap": [0.5, 0.5, 0.5],
            "sigma_scale": [0.125, 0.125, 0.125],
            "mode": "constant",
            "padding_mode": "constant",
            "cval": 0.0,
        },
        "postprocessing": {"activation": "softmax", "decision": "argmax", "inversion": "linear"},
    }
    card.verify()
    assert {file.name for file in card.folder.iterdir()} == {"card.json", "network.safetensors"}


def test_yaml_and_json_make_the_same_card(tmp_path: Path) -> None:
    first, second = (
        imported(Bundle(yaml=yaml), tmp_path / str(yaml)).to_dict() for yaml in (False, True)
    )
    assert first == second


@pytest.mark.parametrize("inside", ["", "spleen_ct/", "a/b/spleen_ct/"])
def test_an_archive_is_imported_like_its_folder(inside: str, tmp_path: Path) -> None:
    folder = Bundle().write(tmp_path / "spleen_ct")
    for name in ("scripts/net.py", "docs/data_license.txt", "models/model.ts", "large_files.yml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("import os; os.system('touch canary')")
    archive = as_zip(folder, tmp_path / "spleen_ct.zip", inside)
    (tmp_path / "models").mkdir()
    card = import_model(archive, tmp_path / "models" / "new")
    assert card is not None
    assert card.id == "spleen_ct"
    assert not list(tmp_path.rglob("canary"))
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["new"]


def test_an_archive_of_nnunet_is_left_to_its_own_family(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as file:
        file.writestr("Dataset001/plans.json", "{}")
    assert import_model(tmp_path / "model.zip", tmp_path / "new") is None


def with_entry(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one entry; `...` takes it away."""

    def change(configuration: dict[str, Any]) -> None:
        *parts, last = place.split("::")
        target: Any = configuration
        for part in parts:
            target = target[int(part) if isinstance(target, list) else part]
        if value is ...:
            del target[last]
        else:
            target[int(last) if isinstance(target, list) else last] = value

    return change


CANARY = "$open('canary', 'w')"

REFUSED: dict[str, tuple[str, Any, str]] = {
    "a call in the network": ("network_def::in_channels", CANARY, "network_def::in_channels"),
    "a call in a transform": (
        "preprocessing::transforms::3::pixdim",
        CANARY,
        "transforms::3::pixdim",
    ),
    "a call for a list": ("preprocessing::transforms", CANARY, "preprocessing::transforms"),
    "a call for a step": ("preprocessing::transforms::2", CANARY, "component"),
    "a call for a class": ("network_def::_target_", CANARY, "network_def::_target_"),
    "a network of the bundle": ("network_def::_target_", "scripts.net.UNesT", "bundle's own"),
    "a function as network": ("network_def::_target_", "os.system", "bundle's own"),
    "a hidden function": (
        "network_def::_target_",
        "monai.networks.nets.os.system",
        "not a supported network",
    ),
    "a transform of the bundle": (
        "preprocessing::transforms::2::_target_",
        "scripts.t.Crop",
        "2::_target_",
    ),
    "a lambda": ("preprocessing::transforms::2::_target_", "Lambdad", "transforms::2::_target_"),
    "an inferer of the bundle": ("inferer::_target_", "scripts.Inferer", "inferer::_target_"),
    "an inferer of slices": ("inferer::_target_", "SliceInferer", "inferer::_target_"),
    "a lambda afterwards": (
        "postprocessing::transforms::0",
        after("Lambda", func="$lambda x: open('canary', 'w')"),
        "transforms::0::func",
    ),
    "an unknown argument": ("network_def::depths", [1, 2], "network_def.*depths"),
    "a missing argument": ("network_def::out_channels", ..., "network_def.*out_channels"),
    "a missing network": ("network_def", ..., "network"),
    "a missing inferer": ("inferer", ..., "inferer"),
    "a missing preprocessing": ("preprocessing", ..., "preprocessing"),
    "a step with an extra key": ("preprocessing::transforms::2::anything", 1, "2::anything"),
    "an argument of a step of the wrong kind": (
        "preprocessing::transforms::3::pixdim",
        ["a", 1, 1],
        "preprocessing::transforms::3",
    ),
    "sides that are not three": ("preprocessing::transforms::2::axcodes", "RRS", "transforms::2"),
    "a reference in a circle": (
        "network_def::in_channels",
        "@network_def::in_channels",
        "refers to itself",
    ),
    "a reference to nothing": ("network_def::in_channels", "@nowhere", "refers to a missing entry"),
    "a network too large": ("network_def::channels", [4, 10**7], "network_def"),
    "blocks without end": ("network_def::num_res_units", 10**9, "network_def"),
    "lists without end": ("network_def::channels", [4] * 1000, "network_def"),
    "strides of zero": ("network_def::strides", [0], "inference.json: This UNet cannot be applied"),
    "negative strides": ("network_def::strides", [-2], "inference.json: .*UNet"),
    "kernels of zero": ("network_def::kernel_size", 0, "inference.json: .*UNet"),
    "negative kernels": ("network_def::kernel_size", -3, "inference.json: .*UNet"),
    "layers without channels": ("network_def::channels", [0, 8], "inference.json: .*UNet"),
    "a window of the wrong size": ("inferer::roi_size", [17, 16, 16], "17 x 16 x 16"),
    "channels unlike the metadata": ("network_def::in_channels", 2, "metadata.json"),
    "classes unlike the metadata": ("network_def::out_channels", 9, "metadata.json"),
    "a network of planes": ("network_def::spatial_dims", 2, "2D networks"),
    "a window without overlap in it": ("inferer::overlap", 1.5, "overlap"),
    "another threshold": (
        "postprocessing::transforms::2",
        after("AsDiscrete", threshold=0.3),
        "threshold",
    ),
    "an inversion of something else": (
        "postprocessing::transforms::1::transform",
        "@inferer",
        "transforms::1::transform",
    ),
    "interaction": (
        "preprocessing::transforms::0::_target_",
        "AddGuidanceSignalDeepEditd",
        "interaction",
    ),
    "detection": ("network_def::_target_", "monai.apps.detection.networks.RetinaNet", "detection"),
    "classification": ("network_def::_target_", "DenseNet121", "classification"),
    "generation": ("network_def::_target_", "DiffusionModelUNet", "generation"),
    "registration": ("network_def::_target_", "LocalNet", "registration"),
    "nuclei": ("network_def::_target_", "HoVerNet", "nuclei"),
}


@pytest.mark.parametrize(("place", "value", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_run_is_refused_by_its_place(
    place: str, value: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Bundle().write(tmp_path / "bundle")
    configuration = Bundle().configuration()
    with_entry(place, value)(configuration)
    (folder / "configs/inference.json").write_text(json.dumps(configuration))
    with pytest.raises(ModelError, match=words) as refused:
        import_model(folder, tmp_path / "models" / "new")
    assert str(folder / "configs") in str(refused.value)
    if value == CANARY or "scripts" in str(value):
        assert isinstance(refused.value, UnsafeModelError) or "component" in words
    assert not list(tmp_path.rglob("canary"))
    assert not (tmp_path / "models").exists()


UNEST = {
    "_target_": "scripts.networks.unest_base_patch_4.UNesT",
    **{"in_channels": 1, "out_channels": 133, "patch_size": 4},
    **{"depths": [2, 2, 8], "embed_dim": [128, 256, 512], "num_heads": [4, 8, 16]},
}


@pytest.mark.usefixtures("imports_here")
@pytest.mark.parametrize("as_archive", [False, True])
def test_a_bundle_whose_network_is_its_own_code_is_refused_by_its_place(
    as_archive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """As wholeBrainSeg_Large_UNEST_segmentation is: MONAI has no UNesT, and the scripts beside it never run."""
    monkeypatch.chdir(tmp_path)
    folder = Bundle().write(tmp_path / "wholeBrainSeg_Large_UNEST_segmentation")
    configuration = Bundle().configuration()
    configuration["network_def"] = UNEST
    (folder / "configs/inference.json").write_text(json.dumps(configuration))
    for name in ("__init__", "networks/__init__", "networks/unest_base_patch_4"):
        script = folder / "scripts" / f"{name}.py"
        script.parent.mkdir(exist_ok=True)
        script.write_text("open('canary', 'w')\nclass UNesT: ...\n")
    source = as_zip(folder, tmp_path / "unest.zip", "unest/") if as_archive else folder
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "models"))
    assert main(["models", "import", str(source)]) != 0
    said = capsys.readouterr().err
    for words in ("network_def::_target_", UNEST["_target_"], "bundle's own", "with MONAI itself"):
        assert words in said
    assert not list(tmp_path.rglob("canary"))
    assert not list((tmp_path / "models").rglob("card.json"))


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("inferer::spatial_dim", 3, "inferer::spatial_dim"),
        ("inferer::roi_size", [16, 16, 16], "inferer::roi_size"),
        ("network_def::spatial_dims", 3, "inferer::_target_"),
        ("preprocessing::transforms::2::size_mode", "longest", "2::size_mode"),
        ("preprocessing::transforms::2::anti_aliasing", True, "2::anti_aliasing"),
        ("preprocessing::transforms::2::align_corners", True, "2::align_corners"),
        ("preprocessing::transforms::2::mode", "bicubic", "bilinear, nearest or area"),
        ("preprocessing::transforms::2::spatial_size", [0.5, 1, 1], "transforms::2"),
    ],
)
def test_what_slices_and_sizes_cannot_be_is_refused(
    place: str, value: Any, words: str, tmp_path: Path
) -> None:
    bundle = Bundle(
        network={**UNET, "spatial_dims": 2},
        preprocessing=(*LOAD, step("Resize", spatial_size=[16, 16, -1], mode="bilinear")),
        inferer={"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 2},
    )
    folder = bundle.write(tmp_path / "bundle")
    assert import_model(folder, tmp_path / "models" / "good") is not None
    configuration = bundle.configuration()
    with_entry(place, value)(configuration)
    (folder / "configs/inference.json").write_text(json.dumps(configuration))
    with pytest.raises(ModelError, match=words):
        import_model(folder, tmp_path / "models" / "new")


def test_what_is_not_needed_may_hold_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bundles of the zoo import modules, make devices and load data; none of that is looked at."""
    monkeypatch.chdir(tmp_path)
    bundle = Bundle(
        more={"imports": [CANARY], "initialize": [CANARY], "run": [CANARY], "device": CANARY},
        inferer={**monai_bundles.WINDOW, "device": CANARY, "sw_device": "@device"},
        network={**UNET, "_requires_": [CANARY], "_desc_": CANARY},
    )
    folder = Bundle().write(tmp_path / "bundle")
    (folder / "configs/inference.json").write_text(json.dumps(bundle.configuration()))
    assert import_model(folder, tmp_path / "models" / "new") is not None
    assert not list(tmp_path.rglob("canary"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "models/model.pt").rename(f / "models/model.ts"), "TorchScript"),
        (lambda f: (f / "models/model.pt").unlink(), r"has no model\.pt"),
        (lambda f: (f / "models/model.pt").write_bytes(b"PK\x03\x04 and so on"), r"model\.pt"),
        (
            lambda f: torch.jit.script(torch.nn.Linear(2, 2)).save(f / "models/model.pt"),
            "TorchScript",
        ),
        (lambda f: torch.save(torch.nn.Linear(2, 2), f / "models/model.pt"), "Linear"),
        (lambda f: torch.save({"a": torch.zeros(3)}, f / "models/model.pt"), "does not have"),
        (lambda f: torch.save([1, 2], f / "models/model.pt"), "does not contain the weights"),
        (lambda f: (f / "configs/inference.json").unlink(), r"inference\.json"),
        (lambda f: (f / "configs/metadata.json").write_text("{"), r"metadata\.json"),
        (lambda f: (f / "configs/metadata.json").write_text("[" * 10_000), r"metadata\.json"),
    ],
)
def test_a_damaged_bundle_is_told_by_the_file(
    spoil: Callable[[Path], Any], words: str, tmp_path: Path
) -> None:
    folder = Bundle().write(tmp_path / "bundle")
    spoil(folder)
    with pytest.raises(ModelError, match=words):
        import_model(folder, tmp_path / "models" / "new")
    assert not (tmp_path / "models").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    folder = Bundle().write(tmp_path / "bundle")
    other = monai_bundles.made_network({**UNET, "channels": [4, 16]})
    torch.save(other.state_dict(), folder / "models/model.pt")
    with pytest.raises(ModelError, match="shape"):
        import_model(folder, tmp_path / "models" / "new")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_weights_that_are_no_fractions_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = Bundle().write(tmp_path / "spleen_ct")
    weights = torch.load(folder / "models/model.pt")
    name = next(name for name, values in weights.items() if values.is_floating_point())
    torch.save({**weights, name: weights[name].to(dtype)}, folder / "models/model.pt")
    with pytest.raises(ModelError, match=f"{name}.*type {dtype}.*floating-point"):
        import_model(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    folder = Bundle().write(tmp_path / "bundle")
    state = torch.load(folder / "models/model.pt", weights_only=True)
    name = next(name for name, values in state.items() if values.is_floating_point())
    state[name].flatten()[-1] = value
    torch.save(state, folder / "models/model.pt")
    with pytest.raises(ModelError, match=f"model.pt has weights.*finite.*{name}"):
        import_model(folder, tmp_path / "models" / "new")


@pytest.mark.parametrize("inside", ["model", "state_dict", "network"])
def test_weights_beside_other_things_are_found(inside: str, tmp_path: Path) -> None:
    folder = Bundle().write(tmp_path / "bundle")
    state = torch.load(folder / "models/model.pt", weights_only=True)
    torch.save({"epoch": 3, inside: state, "best": 0.5}, folder / "models/model.pt")
    card = import_model(folder, tmp_path / "models" / "new")
    assert card is not None
    load_model(card)


def test_the_file_that_the_configuration_loads_is_taken(tmp_path: Path) -> None:
    bundle = Bundle(
        more={
            "shown": {"highres": False},
            "modelname": "$'model.pt' if @shown#highres else 'low.pt'",
            "checkpointloader": {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/' + @modelname",
            },
        }
    )
    folder = bundle.write(tmp_path / "bundle")
    low = monai_bundles.made_network(UNET, seed=9).state_dict()
    torch.save(low, folder / "models/low.pt")
    card = import_model(folder, tmp_path / "models" / "new")
    assert card is not None
    from safetensors.torch import load_file

    found = load_file(card.folder / "network.safetensors")
    assert all(torch.equal(values, low[name]) for name, values in found.items())


@pytest.mark.parametrize("named", ["models", "configs", "models/model.pt", "configs/metadata.json"])
def test_a_part_of_a_bundle_is_told_to_be_one(named: str, tmp_path: Path) -> None:
    folder = Bundle().write(tmp_path / "bundle")
    with pytest.raises(ModelError, match=f"Name its folder: {folder}"):
        import_model(folder / named, tmp_path / "models" / "new")


def test_several_images_become_channels(tmp_path: Path) -> None:
    keys = ["artery", "vein"]
    bundle = Bundle(
        network={**UNET, "in_channels": 2},
        preprocessing=(
            {"_target_": "LoadImaged", "keys": keys},
            {"_target_": "Spacingd", "keys": keys, "pixdim": 2, "mode": ["bilinear", "bilinear"]},
            {"_target_": "NormalizeIntensityd", "keys": "artery", "nonzero": "True"},
            {"_target_": "ConcatItemsd", "keys": keys, "name": "image"},
            step("ScaleIntensity"),
        ),
    )
    card = imported(bundle, tmp_path)
    assert len(card.channels) == 2
    assert card.settings["preprocessing"] == [
        {"transform": "Spacing", "pixdim": [2, 2, 2], "mode": "bilinear"},
        {"transform": "NormalizeIntensity", "nonzero": True, "groups": [[0]]},
        {"transform": "ScaleIntensity"},
    ]


def test_images_that_are_turned_apart_are_refused(tmp_path: Path) -> None:
    keys = ["artery", "vein"]
    transforms = (
        {"_target_": "LoadImaged", "keys": keys},
        {"_target_": "Orientationd", "keys": "vein", "axcodes": "RAS"},
        {"_target_": "ConcatItemsd", "keys": keys, "name": "image"},
    )
    bundle = Bundle(network={**UNET, "in_channels": 2}, preprocessing=transforms)
    with pytest.raises(ModelError, match="transforms::1::keys"):
        imported(bundle, tmp_path)


BRATS = {"0": "Tumor core", "1": "Whole tumor", "2": "Enhancing tumor"}


def test_regions_come_from_the_whole_to_what_lies_within(tmp_path: Path) -> None:
    bundle = Bundle(
        network={**UNET, "out_channels": 3}, names=BRATS, postprocessing=tuple(REGIONS_BACK)
    )
    card = imported(bundle, tmp_path)
    assert [(label.value, label.name) for label in card.labels] == [
        (2, "Whole tumor"),
        (1, "Tumor core"),
        (3, "Enhancing tumor"),
    ]
    assert card.settings["postprocessing"]["order"] == [1, 0, 2]


def test_the_merge_of_a_bundle_decides_values_and_rank(tmp_path: Path) -> None:
    merge = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
    bundle = Bundle(
        network={**UNET, "out_channels": 3},
        names=BRATS,
        postprocessing=(*REGIONS_BACK, after("Lambda", func=merge)),
    )
    card = imported(bundle, tmp_path)
    assert [(label.value, label.name) for label in card.labels] == [
        (2, "Whole tumor"),
        (1, "Tumor core"),
        (4, "Enhancing tumor"),
    ]


def test_the_largest_part_becomes_a_refinement_of_the_card(tmp_path: Path) -> None:
    keep = after("KeepLargestConnectedComponent", applied_labels=[1, 2])
    card = imported(Bundle(postprocessing=(*monai_bundles.SOFTMAX_THEN_BACK, keep)), tmp_path)
    assert card.suggested_refinements == (Refinement("largest_component", {"labels": [1, 2]}),)


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({"0": "background", "1": "spleen"}, {0: "background", 1: "spleen"}),
        ({"background": 0, "spleen": 1}, {0: "background", 1: "spleen"}),
        ({"background": "0", "spleen": "1"}, {0: "background", 1: "spleen"}),
        (["background", "spleen"], {0: "background", 1: "spleen"}),
        ({"0": "background", "1": " left\nkidney. "}, {0: "background", 1: "left kidney"}),
        ({"0": "background", "1": "", "2": "liver"}, {0: "background", 2: "liver"}),
        ({}, {}),
        (None, {}),
        ("nonsense", {}),
        ({"0": None, "1": 3.5}, {}),
    ],
)
def test_definitions_of_channels_are_read_in_every_spelling(
    metadata: Any, names: dict[int, str]
) -> None:
    data = {"network_data_format": {"outputs": {"pred": {"channel_def": metadata}}}}
    assert channel_names(data, 3) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            "single channel data, 1 is spleen, 0 is everything else",
            {0: "everything else", 1: "spleen"},
        ),
        (
            "3 channel data, channel 0 for Tumor core, channel 1 for Whole tumor, channel 2 for Enhancing tumor",
            {0: "Tumor core", 1: "Whole tumor", 2: "Enhancing tumor"},
        ),
        (
            "singe channel data, 1 central gland, 2 periheral zone",
            {1: "central gland", 2: "periheral zone"},
        ),
        ("1: liver; 2: portal vein", {1: "liver", 2: "portal vein"}),
    ],
)
def test_sentences_about_labels_are_read(text: str, names: dict[int, str]) -> None:
    assert channel_names({"label_classes": text}, 3) == names


def test_labels_without_names_are_numbered_and_that_is_said(tmp_path: Path) -> None:
    folder = Bundle().write(tmp_path / "bundle")
    (folder / "configs/metadata.json").write_text("{}")
    card = import_model(folder, tmp_path / "models" / "new")
    assert card is not None
    assert [label.name for label in card.labels] == ["label 1", "label 2", "label 3"]
    assert "does not say what its labels are" in card.description


def test_names_that_are_given_twice_are_told_apart() -> None:
    named, order = overlapping({0: "lesion", 1: "Lesion"}, 2, None)
    assert [label.name for label in named.labels] == ["lesion", "Lesion 2"]
    assert order == [0, 1]


def test_the_command_imports_a_bundle_and_shows_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    request: pytest.FixtureRequest,
) -> None:
    """In the process that every import has; that nothing of a bundle runs is tried without confinement."""
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "own"))
    folder = Bundle().write(tmp_path / "spleen_ct")
    assert main(["models", "import", str(folder)]) == 0
    assert "Imported spleen_ct" in capsys.readouterr().out
    assert main(["models", "show", "spleen_ct"]) == 0
    assert "organ 3" in capsys.readouterr().out
    evil = shutil.copytree(folder, tmp_path / "evil")
    configuration = json.loads((evil / "configs/inference.json").read_text())
    configuration["network_def"]["in_channels"] = f"$open('{tmp_path}/canary', 'w')"
    (evil / "configs/inference.json").write_text(json.dumps(configuration))
    request.getfixturevalue("imports_here")
    assert main(["models", "import", str(evil)]) == 4
    assert "network_def::in_channels" in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["spleen_ct"]


SPOILED_SETTINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an unknown network": lambda s: s["network"].update({"class": "os.system"}),
    "arguments without end": lambda s: s["network"]["arguments"].update(channels=[4] * 99),
    "no arguments": lambda s: s["network"].pop("arguments"),
    "a wrong step": lambda s: s["preprocessing"].append({"transform": "Lambda"}),
    "a step with too much": lambda s: s["preprocessing"][0].update(more=1),
    "a channel that is not there": lambda s: s["preprocessing"].append(
        {"transform": "ScaleIntensity", "groups": [[7]]}
    ),
    "an overlap of one": lambda s: s["inferer"].update(overlap=[1.0, 1.0, 1.0]),
    "a window of text": lambda s: s["inferer"].update(roi_size="all"),
    "an order of classes": lambda s: s["postprocessing"].update(order=[0, 1]),
    "no postprocessing": lambda s: s.pop("postprocessing"),
}


@pytest.mark.parametrize("spoil", SPOILED_SETTINGS.values(), ids=SPOILED_SETTINGS)
def test_a_card_that_says_what_cannot_be_is_refused(
    spoil: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    card = imported(Bundle(), tmp_path)
    data = json.loads((card.folder / "card.json").read_text())
    spoil(data["settings"])
    (card.folder / "card.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match="settings of model"):
        load_model(load_card(card.folder))


def test_a_card_with_other_channels_or_classes_is_refused(tmp_path: Path) -> None:
    card = imported(Bundle(), tmp_path)
    with pytest.raises(ModelError, match="channels"):
        load_model(replace(card, channels=card.channels * 2))
    member = replace(card.members[0], classes=card.members[0].classes[:-1])
    with pytest.raises(ModelError, match="classes"):
        load_model(replace(card, members=(member,)))


def test_steps_that_change_nothing_are_left_out(tmp_path: Path) -> None:
    card = imported(Bundle(preprocessing=(*LOAD, step("EnsureType"), step("ToTensor"))), tmp_path)
    assert card.settings["preprocessing"] == []
