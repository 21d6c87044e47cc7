"""Models of MONAI's Auto3DSeg: the labels that MONAI's transforms give, and names out of labels.csv."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import monai_bundles
from medsegai.engine import segment
from medsegai.errors import ModelError
from medsegai.families.monai import import_model
from medsegai.models.card import ModelCard
from medsegai.request import SegmentationRequest

NETWORK = {
    "_target_": "SegResNetDS",
    "init_filters": 8,
    "blocks_down": [1, 1],
    "norm": "INSTANCE",
    "in_channels": 1,
    "out_channels": 4,
    "dsdepth": 2,
}

CONFIG: dict[str, Any] = {
    "bundle_root": "./ct/segresnet_0",
    "network": NETWORK,
    "modality": "ct",
    "normalize_mode": "range",
    "intensity_bounds": [-250.0, 300.0],
    "resample": True,
    "resample_resolution": [1.5, 1.5, 2.0],
    "orientation_ras": True,
    "crop_foreground": True,
    "roi_size": [16, 16, 16],
    "sigmoid": False,
    "extra_modalities": {},
    "class_names": None,
}

BRATS = {
    **CONFIG,
    "bundle_root": "./brats23/segresnet_0",
    "network": {**NETWORK, "in_channels": 4, "out_channels": 3},
    "normalize_mode": "meanstd",
    "resample": False,
    "resample_resolution": None,
    "sigmoid": True,
    "extra_modalities": {"t1": "meanstd", "t2": "meanstd", "flair": "meanstd"},
}

PET_CT = {
    **CONFIG,
    "network": {**NETWORK, "in_channels": 2},
    "extra_modalities": {"pet": "pet"},
}


def write_model(folder: Path, config: Mapping[str, Any], **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    network = monai_bundles.made_network(config["network"])
    saved = {"epoch": 3, "best_metric": np.float64(0.81), "state_dict": network.state_dict()}
    torch.save({**saved, "config": dict(config), **more}, folder / "model.pt")
    return folder / "model.pt"


def answer_of_monai(config: Mapping[str, Any], image: Path) -> NDArray[np.uint8]:
    """What the algorithm's own inference does, written out with MONAI's transforms: (x, y, z)."""
    from monai import transforms as t
    from monai.data import decollate_batch, list_data_collate
    from monai.inferers import SlidingWindowInfererAdapt
    from monai.utils import convert_to_dst_type

    chain: list[Any] = [t.LoadImaged("image", ensure_channel_first=True), t.EnsureTyped("image")]
    if config["orientation_ras"]:
        chain.append(t.Orientationd("image", "RAS"))
    if config["crop_foreground"]:
        crop = {"margin": 10, "allow_smaller": True, "channel_indices": [0]}
        chain.append(t.CropForegroundd("image", "image", **crop))
    if config["resample"]:
        wanted = np.array(config["resample_resolution"])
        near = {"min_pixdim": wanted * 0.75, "max_pixdim": wanted * 1.25}
        chain.append(
            t.Spacingd("image", wanted.tolist(), mode="bilinear", dtype=torch.float, **near)
        )
    chain.append(t.Lambdad("image", lambda x: scaled(config, x)))
    prepare = t.Compose(chain)
    case = prepare({"image": str(image)})
    batch = list_data_collate([case])
    network = monai_bundles.made_network(config["network"])
    infer = SlidingWindowInfererAdapt(config["roi_size"], overlap=0.625, mode="gaussian")
    with torch.no_grad():
        logits = infer(batch["image"].as_subclass(torch.Tensor), network)
    found = logits.sigmoid() if config["sigmoid"] else logits.softmax(1)
    batch["pred"] = convert_to_dst_type(found, batch["image"], dtype=found.dtype)[0]
    back = t.Invertd("pred", orig_keys="image", transform=prepare, nearest_interp=False)
    (case,) = (back(item) for item in decollate_batch(batch))
    if not config["sigmoid"]:
        return np.asarray(case["pred"].argmax(0)).astype(np.uint8)
    whole, core, enhancing = np.asarray(case["pred"]) >= 0.5
    return np.select([enhancing, core, whole], [3, 1, 2], 0).astype(np.uint8)


def scaled(config: Mapping[str, Any], image: Any) -> Any:
    """Each channel by its own mode."""
    from monai import transforms as t

    low, high = config["intensity_bounds"]
    channels = []
    modes = [config["normalize_mode"], *config["extra_modalities"].values()]
    for channel, mode in zip(image, modes, strict=True):
        if mode in ("range", "ct"):
            channel = torch.sigmoid(t.ScaleIntensityRange(low, high, -1, 1)(channel[None]))
        elif mode in ("meanstd", "mri", "meanstdtanh"):
            channel = t.NormalizeIntensity(nonzero=True, channel_wise=True)(channel[None])
            channel = 3 * torch.tanh(channel / 3) if mode == "meanstdtanh" else channel
        elif mode == "pet":
            channel = torch.sigmoid((channel - channel.min()) / channel.std())[None]
        else:
            channel = channel[None]
        channels.append(channel)
    return torch.cat(channels)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "CT, resampled": (CONFIG, {}),
    "oblique": (CONFIG, {"turned": 15}),
    "nearly as fine, which is kept": (CONFIG, {"spacing": (1.3, 1.4, 2.1)}),
    "MR": ({**CONFIG, "normalize_mode": "mri", "orientation_ras": False}, {}),
    "tanh, no crop": ({**CONFIG, "normalize_mode": "meanstdtanh", "crop_foreground": False}, {}),
    "as it is": ({**CONFIG, "normalize_mode": "none", "resample": False}, {}),
    "BraTS": (BRATS, {"spacing": (1, 1, 1)}),
    "CT with PET": (PET_CT, {}),
}


@pytest.mark.parametrize(("config", "lies"), CASES.values(), ids=CASES)
def test_labels_are_those_of_the_algorithm(
    config: dict[str, Any], lies: dict[str, Any], tmp_path: Path
) -> None:
    channels = config["network"]["in_channels"]
    voxels = monai_bundles.smooth_image((30, 26, 22), channels=channels)
    matrix = monai_bundles.affine(
        lies.get("spacing", (0.9, 1.1, 1.7)), lies.get("turned", 0), (0, 1)
    )
    image = monai_bundles.save_image(tmp_path / "image.nii.gz", voxels, matrix)
    answer = answer_of_monai(config, image)
    model = write_model(tmp_path / "whole-thing-v1.0.2", config)
    card = import_model(model, tmp_path / "models" / "ours")
    assert card is not None
    inputs = [image]
    if channels > 1:
        inputs = [
            monai_bundles.save_image(tmp_path / f"channel{n}.nii.gz", voxels[..., n], matrix)
            for n in range(channels)
        ]
    request = SegmentationRequest(
        inputs=tuple(inputs),
        models=(str(card.folder),),
        device="cpu",
        backend="torch",
        precision="fp32",
    )
    ours = np.asarray(segment(request).labelmap.voxels).transpose(2, 1, 0)
    assert len(np.unique(answer)) > 2
    assert (ours == answer).mean() >= 0.999


def imported(model: Path) -> ModelCard:
    card = import_model(model, model.parent / "imported")
    assert card is not None
    return card


ROWS = (
    "LabelValue,Name,SegmentedPropertyCategoryCodeSequence.CodingSchemeDesignator,"
    "SegmentedPropertyCategoryCodeSequence.CodeValue,SegmentedPropertyCategoryCodeSequence.CodeMeaning,"
    "SegmentedPropertyTypeCodeSequence.CodingSchemeDesignator,SegmentedPropertyTypeCodeSequence.CodeValue,"
    "SegmentedPropertyTypeCodeSequence.CodeMeaning,"
    "SegmentedPropertyTypeModifierCodeSequence.CodingSchemeDesignator,"
    "SegmentedPropertyTypeModifierCodeSequence.CodeValue,SegmentedPropertyTypeModifierCodeSequence.CodeMeaning\n"
    "1,kidney_l,SCT,123037004,Anatomical Structure,SCT,64033007,Kidney,SCT,7771000,Left\n"
    "2,kidney_r,SCT,123037004,Anatomical Structure,SCT,64033007,Kidney,SCT,24028007,Right\n"
    "3,kidney_l,,,,,,,,,\n"
)


def test_labels_and_their_codes_come_from_the_table(tmp_path: Path) -> None:
    model = write_model(tmp_path / "kidneys-v1.0.2", CONFIG)
    (model.parent / "labels.csv").write_text(ROWS)
    card = imported(model)
    assert (card.id, card.name, card.version) == ("kidneys-v1.0.2", "kidneys", "1.0.2")
    assert [label.name for label in card.labels] == ["kidney_l", "kidney_r", "kidney_l 3"]
    first = card.labels[0].terminology
    assert first is not None
    assert first.type == ("SCT", "64033007", "Kidney")
    assert first.modifier == ("SCT", "7771000", "Left")
    assert card.labels[2].terminology is None
    assert card.channels[0].modality == "CT"
    assert card.performance == {
        "as its training reports": {"mean Dice of its own validation": 0.81}
    }


@pytest.mark.parametrize("inside", ["", "kidneys-v1.0.2/"])
def test_an_archive_as_the_slicer_extension_has_it_is_imported(inside: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "made", CONFIG)
    with zipfile.ZipFile(tmp_path / "kidneys-v1.0.2.zip", "w") as file:
        file.write(model, f"{inside}model.pt")
        file.writestr(f"{inside}labels.csv", ROWS)
    (tmp_path / "models").mkdir()
    card = import_model(tmp_path / "kidneys-v1.0.2.zip", tmp_path / "models" / "new")
    assert card is not None
    assert (card.id, card.labels[1].name) == ("kidneys-v1.0.2", "kidney_r")


def test_the_regions_of_brats_are_merged_as_there(tmp_path: Path) -> None:
    card = imported(write_model(tmp_path / "brats-gli-v1.0.0", BRATS))
    assert [label.value for label in card.labels] == [2, 1, 3]
    assert [channel.name for channel in card.channels] == ["CT", "t1", "t2", "flair"]


SPOILED: dict[str, tuple[dict[str, Any], str]] = {
    "another network": (
        {"network": {"_target_": "DiNTS", "out_channels": 2}},
        "only SegResNetDS is supported",
    ),
    "a program for a network": (
        {"network": {"_target_": "os.system", "command": "x"}},
        "SegResNetDS",
    ),
    "an expression": (
        {"network": {**NETWORK, "init_filters": "$open('canary', 'w')"}},
        "have to be run",
    ),
    "another mode": ({"normalize_mode": "magic"}, "normalize_mode"),
    "no bounds": ({"intensity_bounds": None}, "intensity_bounds"),
    "a window of two sizes": ({"roi_size": [16, 16]}, "roi_size"),
    "a spacing of nothing": ({"resample_resolution": [1, "a", 1]}, "resample_resolution"),
    "modalities unlike the network": ({"extra_modalities": {"pet": "pet"}}, "extra_modalities"),
    "weights of another network": ({"network": {**NETWORK, "init_filters": 16}}, "shape"),
}


@pytest.mark.parametrize(("changes", "words"), SPOILED.values(), ids=SPOILED)
def test_a_configuration_that_is_not_known_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_model(tmp_path / "made", CONFIG)
    saved = torch.load(model, weights_only=False)
    torch.save({**saved, "config": {**CONFIG, **changes}}, model)
    with pytest.raises(ModelError, match=words) as refused:
        import_model(model, tmp_path / "new")
    assert str(model) in str(refused.value)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "text", ["Name\nx", "LabelValue,Name\none,x", "LabelValue,Name\n\x00", "\xff"]
)
def test_a_table_of_labels_that_is_damaged_is_told(text: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "made", CONFIG)
    (model.parent / "labels.csv").write_bytes(text.encode("latin1"))
    with pytest.raises(ModelError, match=r"labels\.csv"):
        import_model(model, tmp_path / "new")


def test_weights_of_other_families_are_left_to_them(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save({"state_dict": {"a": torch.zeros(2)}}, tmp_path / "plain.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for path in tmp_path.iterdir():
        assert import_model(path, tmp_path / "new") is None
