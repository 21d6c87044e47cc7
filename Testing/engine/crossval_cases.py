"""Small training datasets in nnU-Net's raw layout, made for the tests of training and cross-validation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

SPACING = (1.0, 1.0, 1.0)


def write_dataset(
    folder: Path,
    references: Mapping[str, NDArray[Any]],
    labels: Mapping[str, Any],
    seed: int = 0,
    **more: Any,
) -> Path:
    """Write cases with images in which each label value has its own intensity, and noise."""
    rng = np.random.default_rng(seed)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for case, reference in references.items():
        image = 100.0 * reference + rng.normal(100.0, 15.0, reference.shape)
        write(folder / "imagesTr" / f"{case}_0000.nii.gz", image.astype(np.float32))
        write(folder / "labelsTr" / f"{case}.nii.gz", reference.astype(np.uint8))
    dataset = {
        "channel_names": {"0": "MRI"},
        "labels": dict(labels),
        "numTraining": len(references),
        "file_ending": ".nii.gz",
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def write(path: Path, voxels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING)
    sitk.WriteImage(image, str(path))


def two_balls(shape: tuple[int, int, int] = (20, 24, 18), shift: int = 0) -> NDArray[np.uint8]:
    """Labels 1 and 2, one ball each."""
    k, j, i = np.indices(shape)
    found = np.zeros(shape, np.uint8)
    for value, center in ((1, (9, 7 + shift, 8)), (2, (10, 16 + shift, 9))):
        radius = (k - center[0]) ** 2 + (j - center[1]) ** 2 + (i - center[2]) ** 2
        found[radius < 20] = value
    return found
