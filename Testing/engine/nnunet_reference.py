"""nnunetv2's own predictor, to compare with; sums in float16 as it comes, or in float32."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from medsegai.io import read_labelmap
from nnunet_models import find_trainer, nnunet_folders


class _TorchWithWideHalf:
    """torch as nnunetv2's predictor sees it, but its half is float32."""

    half = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def sums_in_float32() -> Iterator[None]:
    """nnunetv2 adds tiles up in float16, also on the CPU; here it takes float32."""
    from nnunetv2.inference import predict_from_raw_data as module

    wide = partial(module.compute_gaussian, dtype=torch.float32)
    wide.cache_clear = module.compute_gaussian.cache_clear  # type: ignore[attr-defined]
    with (
        mock.patch.object(module, "torch", _TorchWithWideHalf()),
        mock.patch.object(module, "compute_gaussian", wide),
    ):
        yield


def predict(
    root: Path,
    results: Path,
    images: Sequence[Path],
    folds: Sequence[int | str] = (0,),
    *,
    mirroring: bool = False,
    step: float = 0.5,
    stage_before: NDArray[Any] | None = None,
    probabilities: bool = False,
    exact: bool = True,
) -> NDArray[Any]:
    """Labels (k, j, i) that nnunetv2 gives; with `probabilities` its float array (class, k, j, i) instead.

    Args:
        root: holds nnU-Net's three folders; files are written below it.
        stage_before: for a cascade, labels of the stage before on the grid of the images.
        exact: sums in float32.
    """
    out = root / "predicted" / "case"
    out.parent.mkdir(parents=True, exist_ok=True)
    before = None
    if stage_before is not None:
        before = root / "before"
        before.mkdir(exist_ok=True)
        _write_like(images[0], stage_before, before / images[0].name.replace("_0000", ""))
    with nnunet_folders(root), warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        from nnunetv2.inference import predict_from_raw_data
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        stack.enter_context(
            mock.patch.object(
                predict_from_raw_data, "recursive_find_trainer_class_by_name", find_trainer
            )
        )
        if exact:
            stack.enter_context(sums_in_float32())
        predictor = nnUNetPredictor(
            step, True, mirroring, False, torch.device("cpu"), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(
            str(results), tuple(folds), "checkpoint_final.pth"
        )
        predictor.predict_from_files_sequential(
            [[str(image) for image in images]],
            [str(out)],
            probabilities,
            True,
            None if before is None else str(before),
        )
    if probabilities:
        return np.load(out.with_suffix(".npz"))["probabilities"]
    ending = next(
        ending for ending in (".nii.gz", ".png", ".tif") if images[0].name.endswith(ending)
    )
    return read_labelmap(Path(f"{out}{ending}"))[0].voxels


def _write_like(image: Path, labels: NDArray[Any], path: Path) -> None:
    import SimpleITK as sitk

    written = sitk.GetImageFromArray(labels.astype(np.uint8))
    written.CopyInformation(sitk.ReadImage(str(image)))
    sitk.WriteImage(written, str(path))
