"""A tiny head to train on: label maps of ellipsoids, a card, and a training file."""

import json
from pathlib import Path

import nibabel
import numpy as np

LIA = np.array([[-1.0, 0, 0, 24], [0, 0, 1, -24], [0, -1, 0, 24], [0, 0, 0, 1]])
LEFT, RIGHT, MIDDLE, SKIN = 2, 41, 16, 500

TRAINING_FILE = """
card = "card.json"
members = ["coronal", "sagittal"]
steps = 6
seed = 3
precision = "fp32"
compile = false
checkpoint_every = 2
log_every = 1

[data]
root = "maps"
maps = "*.nii.gz"
validation = ["head2.nii.gz"]
crop_voxels = [32, 32, 32]
mirrored = [[2, 41]]

[sampling]
batch = 4
pool = 3
refresh = 2

[optimiser]
warm_up = 2

[validation]
every = 3
volumes = 1
slice_step = 4

[deformation]
shift_mm = 3.0
far_shift_mm = 6.0

[[tissues]]
name = "hemispheres"
labels = [2, 41]
t1 = 1.0
"""


def head(size: float = 1.0) -> np.ndarray:
    """Label map (x, y, z) of 48³ voxels, axes LIA: x grows to the left, so `LEFT` lies at high x."""
    x, y, z = np.meshgrid(*(np.arange(48) - 23.5,) * 3, indexing="ij")
    labels = np.zeros((48, 48, 48), dtype=np.int16)
    labels[x**2 + y**2 + z**2 < (20 * size) ** 2] = SKIN
    brain = (x / 15) ** 2 + (y / 11) ** 2 + (z / 17) ** 2 < size**2
    labels[brain & (x > 0)] = LEFT
    labels[brain & (x < 0)] = RIGHT
    labels[(x / 4) ** 2 + ((y - 5) / 5) ** 2 + (z / 4) ** 2 < size**2] = MIDDLE
    return labels


def phantom_card() -> dict[str, object]:
    names = {LEFT: "Left hemisphere", RIGHT: "Right hemisphere", MIDDLE: "Brain stem"}
    apart = [[], [LEFT], [RIGHT], [MIDDLE]]
    members = [
        {"name": "coronal", "weights": "coronal.safetensors", "classes": apart},
        {
            "name": "sagittal",
            "weights": "sagittal.safetensors",
            "classes": [[], [LEFT, RIGHT], [MIDDLE]],
        },
    ]
    return {
        "id": "phantom",
        "name": "Phantom",
        "family": "quicknat",
        "version": "1",
        "channels": [{"name": "MR", "modality": "MR"}],
        "labels": [{"value": v, "name": n, "color": [255, 0, 0]} for v, n in names.items()],
        "spacing_mm": [1.5, 1.5, 1.5],
        "members": members,
        "settings": {"filters": 4, "slices": 3, "grid": [32, 32, 32], "intensity": "percentile"},
    }


def write_phantom(folder: Path) -> Path:
    """Three label maps, card and training file in ``folder``; gives the training file."""
    (folder / "maps").mkdir()
    for number, size in enumerate((0.95, 1.05, 1.0)):
        nibabel.save(nibabel.Nifti1Image(head(size), LIA), folder / "maps" / f"head{number}.nii.gz")
    (folder / "card.json").write_text(json.dumps(phantom_card()))
    path = folder / "training.toml"
    path.write_text(TRAINING_FILE)
    return path


def volumetric_card() -> dict[str, object]:
    """The phantom for 3D networks: one that folds, on its way to the labels, and one as nnU-Net plans them."""
    apart = [[], [LEFT], [RIGHT], [MIDDLE]]
    plain = {
        "class": "PlainConvUNet",
        "arguments": {
            "n_stages": 2,
            "features_per_stage": [4, 8],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [2, 2, 2]],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
    }
    settings = {
        "fine": {"network": "compact", "widths": [4, 8], "fold": 2, "patch": [16, 16, 16]},
        "plain": {"network": plain, "patch": [16, 16, 16]},
    }
    members = [
        {
            "name": name,
            "weights": f"{name}.safetensors",
            "classes": apart,
            "settings": settings[name],
        }
        for name in settings
    ]
    return phantom_card() | {
        "family": "unet3d",
        "members": members,
        "settings": {"grid": [32, 32, 32], "intensity": "percentile", "antialias": True},
    }


OPTIMISER = """
name = "muon"
learning_rate = 5e-3
schedule = "trapezoid"
gradient_limit = 2.0
ema = 0.9
"""

ANATOMY = """
[anatomy]
variants = 2
ventricles = [16]
contraction_mm = [1.0, 3.0]
cortex = [2, 41]
fluid = 500
white_matter = [2, 41]
lesion = [25, 57]
lesion_share = 0.5
"""


def write_volumetric_phantom(folder: Path) -> Path:
    """As `write_phantom`, for 3D networks."""
    path = write_phantom(folder)
    (folder / "card.json").write_text(json.dumps(volumetric_card()))
    text = TRAINING_FILE.replace('["coronal", "sagittal"]', '["fine", "plain"]')
    text = text.replace("batch = 4", "batch = 2\nahead = 2\npatch = [16, 16, 16]")
    text = text.replace("[optimiser]", "[optimiser]\n" + OPTIMISER) + ANATOMY
    path.write_text(text)
    return path
