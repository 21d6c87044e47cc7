"""A tiny head to train on: label maps of ellipsoids, a card, and a training file."""

import json
from pathlib import Path

import nibabel
import numpy as np

LIA = np.array([[-1.0, 0, 0, 24], [0, 0, 1, -24], [0, -1, 0, 24], [0, 0, 0, 1]])
LEFT, RIGHT, MIDDLE, SKIN = 2, 41, 16, 500

TRAINING_FILE = """
card = "card.json"
views = ["coronal", "sagittal"]
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
