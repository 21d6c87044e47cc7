"""Bundles of MONAI made for tests, with random weights that MONAI saved, and MONAI's own answer to them.

`Bundle.write` makes a folder as the MONAI Bundle Specification describes it; `monai_answer` runs it with MONAI's
`ConfigWorkflow`, as `python -m monai.bundle run` does. Networks are tiny, and images small.
"""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

UNET = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 4,
    "channels": [4, 8],
    "strides": [2],
    "norm": "batch",
}

Steps = list[dict[str, Any]]


def step(name: str, **arguments: Any) -> dict[str, Any]:
    """A transform for the image."""
    return {"_target_": f"{name}d", "keys": "image", **arguments}


def after(name: str, **arguments: Any) -> dict[str, Any]:
    """A transform for the prediction."""
    return {"_target_": f"{name}d", "keys": "pred", **arguments}


LOAD: Steps = [step("LoadImage"), step("EnsureChannelFirst")]

RAS: Steps = [step("Orientation", axcodes="RAS")]
SPACING: Steps = [step("Spacing", pixdim=[1.5, 1.5, 2.0], mode="bilinear")]
CT: Steps = [step("ScaleIntensityRange", a_min=-57, a_max=164, b_min=0, b_max=1, clip=True)]
WINDOW = {
    "_target_": "SlidingWindowInferer",
    "roi_size": [16, 16, 16],
    "sw_batch_size": 4,
    "overlap": 0.5,
}
INVERT = {"transform": "@preprocessing", "orig_keys": "image", "to_tensor": True}
SOFTMAX_THEN_BACK: Steps = [
    after("Activations", softmax=True),
    after("Invert", nearest_interp=False, **INVERT),
    after("AsDiscrete", argmax=True),
]
LABELS_THEN_BACK: Steps = [
    after("Activations", softmax=True),
    after("AsDiscrete", argmax=True),
    after("Invert", nearest_interp=True, **INVERT),
]
REGIONS_BACK: Steps = [
    after("Activations", sigmoid=True),
    after("Invert", nearest_interp=False, **INVERT),
    after("AsDiscrete", threshold=0.5),
]


@dataclass(frozen=True)
class Bundle:
    """What a bundle consists of; a spleen-like CT model unless told otherwise.

    Attributes:
        network: `network_def`.
        preprocessing, postprocessing: transforms.
        more: further entries of the configuration.
        names: `channel_def` of the prediction.
        seed: of the weights.
        yaml: whether the configuration is written as YAML.
        saved: further arguments of the step that saves the labels.
    """

    network: Mapping[str, Any] = field(default_factory=lambda: dict(UNET))
    preprocessing: Sequence[Mapping[str, Any]] = (*LOAD, *RAS, *SPACING, *CT)
    inferer: Mapping[str, Any] = field(default_factory=lambda: dict(WINDOW))
    postprocessing: Sequence[Mapping[str, Any]] = tuple(SOFTMAX_THEN_BACK)
    more: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] | None = None
    modality: str = "CT"
    seed: int = 0
    yaml: bool = False
    saved: Mapping[str, Any] = field(default_factory=dict)

    def configuration(self) -> dict[str, Any]:
        """`configs/inference.json`, with the entries around it that MONAI needs to run it."""
        save = after(
            "SaveImage",
            output_dir="@output_dir",
            output_postfix="trans",
            output_dtype="uint8",
            separate_folder=False,
            resample=False,
            **self.saved,
        )
        entries = {
            "imports": ["$import glob", "$import os"],
            "bundle_root": ".",
            "output_dir": "$@bundle_root + '/eval'",
            "dataset_dir": "$@bundle_root + '/data'",
            "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
            "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
            "network_def": dict(self.network),
            "network": "$@network_def.to(@device)",
            "preprocessing": {"_target_": "Compose", "transforms": list(self.preprocessing)},
            "dataset": {
                "_target_": "Dataset",
                "data": "$[{'image': i} for i in @datalist]",
                "transform": "@preprocessing",
            },
            "dataloader": {
                "_target_": "DataLoader",
                "dataset": "@dataset",
                "batch_size": 1,
                "num_workers": 0,
            },
            "inferer": dict(self.inferer),
            "postprocessing": {"_target_": "Compose", "transforms": [*self.postprocessing, save]},
            "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@dataloader",
                "network": "@network",
                "inferer": "@inferer",
                "postprocessing": "@postprocessing",
                "amp": False,
            },
            "checkpointloader": {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
            },
            "initialize": ["$@checkpointloader(@evaluator)"],
            "run": ["$@evaluator.run()"],
            **self.more,
        }
        return copy.deepcopy(entries)

    def metadata(self) -> dict[str, Any]:
        channels, classes = channels_of(self.network)
        names = self.names or {
            str(n): "background" if not n else f"organ {n}" for n in range(classes)
        }
        return {
            "version": "0.1.0",
            "monai_version": "1.6.1",
            "task": "Segmentation made for a test",
            "network_data_format": {
                "inputs": {"image": {"modality": self.modality, "num_channels": channels}},
                "outputs": {"pred": {"num_channels": classes, "channel_def": dict(names)}},
            },
        }

    def write(self, folder: Path) -> Path:
        """The folder of the bundle."""
        for name in ("configs", "models"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "configs/metadata.json").write_text(json.dumps(self.metadata()))
        if self.yaml:
            import yaml

            text = yaml.safe_dump(self.configuration(), sort_keys=False)
            (folder / "configs/inference.yaml").write_text(text)
        else:
            (folder / "configs/inference.json").write_text(json.dumps(self.configuration()))
        network = made_network(self.network, self.seed, self.more)
        torch.save(network.state_dict(), folder / "models/model.pt")
        return folder


def as_zip(folder: Path, archive: Path, inside: str) -> Path:
    """An archive of a folder, whose files lie below `inside`."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, f"{inside}{path.relative_to(folder).as_posix()}")
    return archive


def channels_of(network: Mapping[str, Any]) -> tuple[int, int]:
    """Channels of the input and of the answer."""
    defaults = {"VNet": (1, 1)}.get(network["_target_"], (1, 2))
    return (
        network.get("in_channels", defaults[0]),
        network.get("out_channels", network.get("num_classes", defaults[1])),
    )


def made_network(
    definition: Mapping[str, Any], seed: int = 0, more: Mapping[str, Any] | None = None
) -> torch.nn.Module:
    """A network of MONAI with random weights, whose answers differ from place to place.

    `more` are entries that its definition refers to.
    """
    from monai.bundle import ConfigParser

    torch.manual_seed(seed)
    parser = ConfigParser({**(more or {}), "network": dict(definition)})
    network: torch.nn.Module = parser.get_parsed_content("network")
    with torch.no_grad():
        for name, values in network.state_dict().items():
            if name.endswith("running_mean"):
                values.normal_(0, 0.1)
            elif name.endswith("running_var"):
                values.uniform_(0.5, 1.5)
            elif values.is_floating_point() and values.ndim > 1:
                values.mul_(2.0)
    return network.eval()


def smooth_image(shape: Sequence[int], seed: int = 1, channels: int = 1) -> NDArray[np.float32]:
    """A blob with soft structures in it, around it zeros: (x, y, z), or (x, y, z, channel)."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(seed)
    images = []
    for _ in range(channels):
        noise = gaussian_filter(random.normal(size=tuple(shape)), 2.0)
        images.append(300 * noise / noise.std() / 3 + 60)
    grid = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    inside = sum(axis**2 for axis in grid) < 0.8
    stacked = np.stack([np.where(inside, image, 0) for image in images], -1).astype(np.float32)
    return stacked[..., 0] if channels == 1 else stacked


def affine(
    spacing: Sequence[float], turned: float = 0.0, flips: Sequence[int] = ()
) -> NDArray[np.float64]:
    """Of a NIfTI: spacings along x, y, z, turned by degrees about two axes, some axes reversed."""
    angle = np.deg2rad(turned)
    about_z = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    about_x = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    signs = [-1.0 if axis in flips else 1.0 for axis in range(3)]
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_x @ np.diag(np.array(spacing) * signs)
    matrix[:3, 3] = [12.0, -7.0, 31.0]
    return matrix


def save_image(path: Path, voxels: NDArray[np.float32], matrix: NDArray[np.float64]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, matrix), path)
    return path


def run_monai(folder: Path, image: Path, **given: str) -> None:
    """Let MONAI run a bundle on the folder of an image; `given` goes to its workflow."""
    from monai.bundle import ConfigWorkflow

    (config,) = [
        path for path in (folder / "configs").iterdir() if path.stem.lower() == "inference"
    ]
    workflow = ConfigWorkflow(
        config_file=str(config),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(folder),
        dataset_dir=str(image.parent),
        **given,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def monai_answer(folder: Path, image: Path) -> NDArray[np.uint8]:
    """What MONAI saves for one image: (x, y, z), or (x, y, z, region); (x, y) for a picture."""
    run_monai(folder, image, meta_file=str(folder / "configs/metadata.json"))
    (saved,) = (path for path in (folder / "eval").rglob("*") if path.is_file())
    is_picture = saved.suffix == ".png"
    answer = np.asarray(Image.open(saved)).T if is_picture else nibabel.load(saved).get_fdata()
    saved.unlink()
    return answer.astype(np.uint8)
