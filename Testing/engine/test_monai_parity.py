"""Bundles of MONAI give the labels that MONAI's own `ConfigWorkflow` gives, in float32.

Configurations have the targets and options of bundles of the MONAI Model Zoo, with tiny networks and small images.
Random networks make boundaries everywhere, which is harder than any trained one: to round what lies between two
voxels the other way cost half of the labels, and to place the grid of an oblique scan as is written in MONAI's
documents, and not as its rounding has it, cost seven per cent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from medsegai.engine import segment
from medsegai.families.monai import import_model
from medsegai.families.monai.settings import Inferer
from medsegai.families.monai.window import streaming_order
from medsegai.networks import measured
from medsegai.networks.openvino import OpenVinoRunner
from medsegai.request import SegmentationRequest, SegmentationResult
from monai_bundles import (
    CT,
    LABELS_THEN_BACK,
    LOAD,
    RAS,
    REGIONS_BACK,
    SPACING,
    UNET,
    WINDOW,
    Bundle,
    affine,
    after,
    channels_of,
    monai_answer,
    save_image,
    smooth_image,
    step,
)

pytest.importorskip("ignite", reason="MONAI runs bundles with pytorch-ignite")

LEAST = 0.999
"""Share of voxels that agree."""

NORMALISED = (*LOAD, step("NormalizeIntensity", nonzero=True, channel_wise=True))
GAUSSIAN = {**WINDOW, "mode": "gaussian", "overlap": 0.625}


@dataclass(frozen=True)
class Case:
    """A bundle, and a scan for it: its size along x, y, z, and how it lies."""

    bundle: Bundle
    shape: tuple[int, int, int] = (30, 26, 22)
    lies: NDArray[np.float64] = field(default_factory=lambda: affine((0.9, 1.1, 1.7), flips=(0, 1)))


def segresnet(**arguments: Any) -> dict[str, Any]:
    return {
        "_target_": "SegResNet",
        "spatial_dims": 3,
        "init_filters": 8,
        "blocks_down": [1, 1],
        "blocks_up": [1],
        "dropout_prob": 0.2,
        **arguments,
    }


DYNUNET = {
    "_target_": "monai.networks.nets.DynUNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 4,
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, [2, 2, 1]],
    "upsample_kernel_size": [2, [2, 2, 1]],
    "filters": [4, 8, 8],
    "norm_name": "instance",
    "deep_supervision": False,
    "res_block": True,
}

PLANES = {**UNET, "spatial_dims": 2}
SLICES = {"_target_": "SliceInferer", "roi_size": [16, 20], "spatial_dim": 2, "overlap": 0.5}

CASES: dict[str, Case] = {
    "short axis: a network of planes, slice by slice": Case(
        Bundle(network=PLANES, preprocessing=(*LOAD, step("ScaleIntensity")), inferer=SLICES),
        shape=(30, 26, 5),
    ),
    "planes across another axis, gaussian, resampled": Case(
        Bundle(
            network=PLANES,
            preprocessing=(*LOAD, *RAS, *SPACING, *CT),
            inferer={**SLICES, "spatial_dim": 0, "mode": "gaussian"},
        )
    ),
    "resized, linear inversion": Case(
        Bundle(
            preprocessing=(
                *LOAD,
                *RAS,
                step("Resize", spatial_size=[20, 32, -1], mode="trilinear"),
                *CT,
            )
        ),
        lies=affine((0.9, 1.1, 1.7), 20, (0, 1)),
    ),
    "resized by areas, nearest inversion": Case(
        Bundle(
            preprocessing=(*LOAD, *SPACING, *CT, step("Resize", spatial_size=[18, 18, 24])),
            postprocessing=tuple(LABELS_THEN_BACK),
        )
    ),
    "spleen: softmax, linear inversion": Case(Bundle()),
    "oblique": Case(Bundle(), lies=affine((0.9, 1.1, 1.7), 20, (0, 1))),
    "whole body: gaussian, replicate, nearest inversion": Case(
        Bundle(
            network=segresnet(in_channels=1, out_channels=12),
            preprocessing=(
                *LOAD,
                *RAS,
                step("Spacing", pixdim="@pixdim", mode="bilinear"),
                step("NormalizeIntensity", nonzero=True),
                step("ScaleIntensity", minv=-1.0, maxv=1.0),
            ),
            inferer={**WINDOW, "mode": "gaussian", "padding_mode": "replicate", "overlap": 0.25},
            postprocessing=tuple(LABELS_THEN_BACK),
            more={
                "shown": {"highres": True},
                "pixdim": "$[1.5, 1.5, 1.5] if @shown#highres else [3.0, 3.0, 3.0]",
            },
        ),
    ),
    "nearest inversion of what lies between two voxels": Case(
        Bundle(postprocessing=tuple(LABELS_THEN_BACK)), lies=affine((0.75, 0.75, 1.0), flips=(0,))
    ),
    "BraTS: four channels, overlapping regions": Case(
        Bundle(
            network=segresnet(in_channels=4, out_channels=3),
            preprocessing=NORMALISED,
            inferer={**WINDOW, "roi_size": [24, 24, 16], "overlap": 0.5},
            postprocessing=tuple(REGIONS_BACK),
            names={"0": "Tumor core", "1": "Whole tumor", "2": "Enhancing tumor"},
        ),
        lies=affine((1, 1, 1)),
    ),
    "regions, resampled": Case(
        Bundle(
            network={**UNET, "out_channels": 3},
            postprocessing=tuple(REGIONS_BACK),
            names={"0": "a", "1": "b", "2": "c"},
        )
    ),
    "pediatric: DynUNet, crop after spacing, YAML": Case(
        Bundle(
            network=DYNUNET,
            preprocessing=(
                *LOAD,
                *RAS,
                step("Spacing", pixdim=[1.5, 1.5, 3.0], mode=["bilinear"]),
                *CT,
                step("CropForeground", source_key="image", mode=["minimum"]),
            ),
            inferer={**WINDOW, "overlap": 0.75},
            yaml=True,
        ),
        lies=affine((1.9, 1.9, 3.4), flips=(1,)),
    ),
    "crop before spacing, with a margin": Case(
        Bundle(
            preprocessing=(
                *LOAD,
                *RAS,
                step("CropForeground", source_key="image", margin=2, allow_smaller=True),
                *SPACING,
                *CT,
            ),
            inferer=GAUSSIAN,
        ),
        lies=affine((0.9, 1.1, 1.7), 12, (2,)),
    ),
    "pancreas: overlap 0.625, 1 mm": Case(
        Bundle(
            preprocessing=(*LOAD, *RAS, step("Spacing", pixdim=[1, 1, 1], mode="bilinear"), *CT),
            inferer={**WINDOW, "overlap": 0.625},
        ),
        shape=(22, 20, 10),
        lies=affine((1.3, 1.3, 2.5), flips=(0,)),
    ),
    "prostate: scaled, normalised, largest part, turned to LPS": Case(
        Bundle(
            network={**UNET, "num_res_units": 2, "act": "prelu", "dropout": 0.15},
            preprocessing=(
                *LOAD,
                step("Orientation", axcodes="LPS"),
                step("Spacing", pixdim=[1.0, 1.0, 1.0], mode="bilinear"),
                step("ScaleIntensity", minv=0, maxv=1),
                step("NormalizeIntensity"),
            ),
            postprocessing=(
                after("Activations", softmax=True),
                after(
                    "Invert", transform="@preprocessing", orig_keys="image", nearest_interp=False
                ),
                after("AsDiscrete", argmax=True),
                after("KeepLargestConnectedComponent", applied_labels=[1, 2]),
            ),
        ),
        shape=(24, 22, 12),
        lies=affine((0.8, 0.8, 2.2), 8, (0, 1)),
    ),
    "the image is smaller than the window": Case(
        Bundle(
            inferer={
                **WINDOW,
                "roi_size": [32, 48, 32],
                "padding_mode": "reflect",
                "mode": "gaussian",
            }
        ),
    ),
    "the whole image at once, padded": Case(
        Bundle(
            preprocessing=(*LOAD, step("ScaleIntensity"), step("DivisiblePad", k=8)),
            inferer={"_target_": "SimpleInferer"},
        )
    ),
    "windows of three sizes, the longest axis first": Case(
        Bundle(inferer={**GAUSSIAN, "roi_size": [16, 24, 8], "overlap": [0.25, 0.5, 0.6]}),
        shape=(20, 22, 40),
        lies=affine((1.4, 1.4, 1.1), flips=(2,)),
    ),
    "logits are inverted": Case(
        Bundle(
            postprocessing=(
                after(
                    "Invert", transform="@preprocessing", orig_keys="image", nearest_interp=False
                ),
                after("Activations", softmax=True),
                after("AsDiscrete", argmax=True),
            )
        )
    ),
    "percentiles, padding and a crop": Case(
        Bundle(
            preprocessing=(
                *LOAD,
                step("Orientation", axcodes="PIL"),
                step(
                    "ScaleIntensityRangePercentiles", lower=2, upper=98, b_min=0, b_max=1, clip=True
                ),
                step("SpatialPad", spatial_size=[24, 36, 36]),
                step("CenterSpatialCrop", roi_size=[20, 30, -1]),
            ),
            inferer={
                **WINDOW,
                "overlap": [0.25, 0.5, 0.6],
                "sigma_scale": [0.2, 0.125, 0.3],
                "mode": "gaussian",
            },
        ),
        lies=affine((1.0, 1.2, 1.1), 30, (2,)),
    ),
}

MORE_NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "SwinUNETR": (
        {
            "_target_": "SwinUNETR",
            "in_channels": 1,
            "out_channels": 3,
            "feature_size": 12,
            "norm_name": "batch",
        },
        32,
    ),
    "UNETR": (
        {
            "_target_": "UNETR",
            "in_channels": 1,
            "out_channels": 3,
            "img_size": [32, 32, 32],
            "feature_size": 4,
            "hidden_size": 24,
            "mlp_dim": 32,
            "num_heads": 3,
        },
        32,
    ),
    "VNet": ({"_target_": "VNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3}, 32),
    "BasicUNet": ({"_target_": "BasicUNet", "out_channels": 3, "features": [4, 4, 4, 8, 8, 4]}, 32),
    "AttentionUnet": (
        {
            "_target_": "AttentionUnet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 3,
            "channels": [4, 8],
            "strides": [2],
        },
        16,
    ),
    "HighResNet": (
        {
            "_target_": "HighResNet",
            "out_channels": 3,
            "layer_params": [
                {"name": "conv_0", "n_features": 4, "kernel_size": 3},
                {"name": "res_1", "n_features": 4, "kernels": [3, 3], "repeat": 1},
                {"name": "conv_1", "n_features": 8, "kernel_size": 1},
                {"name": "conv_2", "kernel_size": 1},
            ],
        },
        16,
    ),
    "SegResNetDS": (
        {
            "_target_": "SegResNetDS",
            "init_filters": 8,
            "out_channels": 3,
            "blocks_down": [1, 1],
            "dsdepth": 1,
        },
        16,
    ),
}


def segmented(
    case: Case, tmp_path: Path, **asked: Any
) -> tuple[NDArray[np.uint8], SegmentationResult]:
    """MONAI's answer (x, y, z), or (x, y, z, region), and ours."""
    channels, _ = channels_of(case.bundle.network)
    voxels = smooth_image(case.shape, channels=channels)
    image = save_image(tmp_path / "data" / "image.nii.gz", voxels, case.lies)
    folder = case.bundle.write(tmp_path / "bundle")
    answer = monai_answer(folder, image)
    assert import_model(folder, tmp_path / "models" / "ours") is not None
    inputs = [image]
    if channels > 1:
        matrix = nibabel.load(image).affine
        inputs = [
            save_image(tmp_path / f"channel{n}.nii.gz", voxels[..., n], matrix)
            for n in range(channels)
        ]
    request = SegmentationRequest(
        inputs=tuple(map(str, inputs)),
        models=(str(tmp_path / "models" / "ours"),),
        **{"device": "cpu", "backend": "torch", "precision": "fp32", "overlap": True, **asked},
    )
    return answer, segment(request)


def agreement(answer: NDArray[np.uint8], result: SegmentationResult) -> float:
    """Share of voxels with the same label, or the same decision about each region."""
    if result.regions is None:
        ours = np.asarray(result.labelmap.voxels).transpose(2, 1, 0)
        return float((ours == answer.reshape(ours.shape)).mean())
    order = [label.value - 1 for label in result.labels]
    ours = np.stack([result.regions[order.index(n)] for n in range(len(order))], -1)
    return float((ours.transpose(2, 1, 0, 3) == answer.reshape(*answer.shape[:3], -1)).mean())


def check(answer: NDArray[np.uint8], result: SegmentationResult, least: float = LEAST) -> None:
    shares = np.bincount(answer.ravel()) / answer.size
    assert (shares > 0.005).sum() > 1, "the network answers the same everywhere"
    assert agreement(answer, result) >= least


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_labels_are_those_of_monai(case: Case, tmp_path: Path) -> None:
    check(*segmented(case, tmp_path))


def test_a_picture_is_segmented_as_in_monai(tmp_path: Path) -> None:
    """As of endoscopic tools: colours, brought to a size, and one-hot labels without the background."""
    colours = smooth_image((46, 38), channels=3)
    colours = (255 * (colours - colours.min()) / np.ptp(colours)).astype(np.uint8)
    path = tmp_path / "data" / "image.png"
    path.parent.mkdir()
    Image.fromarray(colours.transpose(1, 0, 2)).save(path)
    one_hot = [
        after("Invert", transform="@preprocessing", orig_keys="image", nearest_interp=False),
        after("AsDiscrete", argmax=True, to_onehot=2),
        after("Lambda", func="$lambda x : x[1:]"),
    ]
    bundle = Bundle(
        network={**PLANES, "in_channels": 3, "out_channels": 2},
        preprocessing=(
            step("LoadImage"),
            step("EnsureChannelFirst", channel_dim=-1),
            step("Resize", spatial_size=[32, 48], mode=["bilinear"]),
            step("ScaleIntensity"),
        ),
        inferer={"_target_": "SimpleInferer"},
        postprocessing=one_hot,
        more={"datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.png')))"},
        modality="RGB",
        saved={"output_ext": ".png"},
    )
    folder = bundle.write(tmp_path / "tools")
    answer = monai_answer(folder, path)
    card = import_model(folder, tmp_path / "models" / "ours")
    assert card is not None
    assert card.dimensions == 2
    request = SegmentationRequest(
        inputs=(path,),
        models=(str(tmp_path / "models" / "ours"),),
        **{"device": "cpu", "backend": "torch", "precision": "fp32"},
    )
    check(answer, segment(request))


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_NETWORKS)
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_every_network_answers_as_in_monai(
    name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "PREPARING_SECONDS", 0.0)  # few windows are worth it
    network, roi = MORE_NETWORKS[name]
    bundle = Bundle(network=network, inferer={**WINDOW, "roi_size": [roi] * 3})
    answer, result = segmented(Case(bundle), tmp_path, backend=backend)
    check(answer, result)
    assert not any("PyTorch ran it" in warning for warning in result.warnings)


def test_a_network_that_openvino_cannot_run_is_run_by_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(runner: OpenVinoRunner, batch: torch.Tensor) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(OpenVinoRunner, "_compile", refuse)
    answer, result = segmented(Case(Bundle()), tmp_path, backend="openvino")
    check(answer, result)
    assert any("PyTorch ran it" in warning for warning in result.warnings)


def test_a_dints_has_the_topology_of_its_file(tmp_path: Path) -> None:
    """The file is a pickle of arrays, which is read as data; MONAI loads it."""
    path = tmp_path / "bundle/models/search_code.pt"
    path.parent.mkdir(parents=True)
    random = np.random.default_rng(3)
    paths = np.ones((3, 4), dtype=np.int64)
    codes = {"arch_code_a": paths, "arch_code_c": random.integers(0, 4, (3, 4)).astype(np.uint8)}
    torch.save({**codes, "node_a": torch.ones(4, 2, dtype=torch.int64)}, path)
    loaded = "$torch.load(@arch_ckpt_path, map_location=torch.device('cpu'), weights_only=False)"
    bundle = Bundle(
        network={
            "_target_": "monai.networks.nets.DiNTS",
            "dints_space": "@dints_space",
            "in_channels": 1,
            "num_classes": 3,
            "use_downsample": True,
            "node_a": "$@arch_ckpt['node_a']",
        },
        more={
            "arch_ckpt_path": str(path),
            "arch_ckpt": loaded,
            "dints_space": {
                "_target_": "monai.networks.nets.TopologyInstance",
                "channel_mul": 0.125,
                "num_blocks": 3,
                "num_depths": 2,
                "use_downsample": True,
                "arch_code": ["$@arch_ckpt['arch_code_a']", "$@arch_ckpt['arch_code_c']"],
                "device": "$torch.device('cpu')",
            },
        },
    )
    check(*segmented(Case(bundle), tmp_path))


def test_the_axis_with_most_windows_is_worked_off_first() -> None:
    window = Inferer((96, 96, 48))
    assert streaming_order((200, 300, 100), window) == (1, 0, 2)
    assert streaming_order((200, 300, 250), window) == (2, 0, 1)
    assert streaming_order((90, 96, 40), window) == (0, 1, 2)
    assert streaming_order((90, 96, 40), Inferer()) == (0, 1, 2)


def test_openvino_gives_the_same_labels(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    check(*segmented(CASES["spleen: softmax, linear inversion"], tmp_path, backend="openvino"))


@pytest.mark.parametrize("dropout", [0, 3])
def test_uncertainty_changes_no_label_but_by_dropout(dropout: int, tmp_path: Path) -> None:
    case = Case(Bundle(network=segresnet(in_channels=1, out_channels=3)))
    answer, result = segmented(case, tmp_path, uncertainty=True, dropout_passes=dropout)
    assert result.entropy is not None
    assert result.entropy.voxels.max() > 0.1
    if dropout:
        assert result.mutual_information is not None
        assert result.mutual_information.voxels.max() > 1e-4
        assert agreement(answer, result) > 0.5
    else:
        check(answer, result)


def test_a_region_of_the_scan_has_the_labels_of_the_whole(tmp_path: Path) -> None:
    """Windows that do not touch it are left out."""
    case = CASES["oblique"]
    _, whole = segmented(case, tmp_path)
    grid = whole.labelmap.geometry
    k, j, i = (slice(size // 3, 2 * size // 3) for size in grid.shape)
    part = grid.cropped((k.start, j.start, i.start), [axis.stop - axis.start for axis in (k, j, i)])
    low, high = part.center_ras - 2.0, part.center_ras + 2.0
    bounds: Sequence[float] = [side for pair in zip(low, high, strict=True) for side in pair]
    _, cut = segmented(case, tmp_path / "again", region=tuple(map(float, bounds)))
    found = np.asarray(cut.labelmap.voxels)
    assert found.any()
    assert (found[found > 0] == np.asarray(whole.labelmap.voxels)[found > 0]).all()
