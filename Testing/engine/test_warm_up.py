"""A model that was warmed up is not read again for its first case, and answers as one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medsegai import __version__, engine
from medsegai.families.monai import import_model
from medsegai.models.card import ModelCard
from medsegai.output.cluster import worker
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume
from monai_bundles import Bundle, smooth_image
from nnunet_models import Made, make_model
from test_joint_model import conformed_head, write_joint_model

SCAN = Volume(
    smooth_image((30, 28, 26)).transpose(2, 1, 0).copy(),
    Geometry.from_spacing((26, 28, 30), (1.5, 1.5, 2.0), (0.0, 0.0, 0.0)),
)


def joint(folder: Path) -> tuple[str, Volume]:
    write_joint_model(folder / "joint")
    return str(folder / "joint"), conformed_head()


def monai(folder: Path) -> tuple[str, Volume]:
    import_model(Bundle().write(folder / "bundle"), folder / "ours")
    return str(folder / "ours"), SCAN


def nnunet(folder: Path) -> tuple[str, Volume]:
    made = Made()
    return str(make_model(folder, made) / made.results_name("3d_fullres")), SCAN


@pytest.mark.parametrize(
    ("make", "backend"), [(joint, "torch"), (monai, "openvino"), (nnunet, "torch")]
)
def test_the_first_case_of_a_worker_does_not_read_the_model_again(
    make: Callable[[Path], tuple[str, Volume]],
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker looks at itself; then the files of weights are replaced by empty ones."""
    monkeypatch.setattr(ModelCard, "fingerprint", lambda card: card.id)
    model, scan = make(tmp_path)
    request = SegmentationRequest((scan,), models=(model,), backend=backend, device="cpu")
    cold = engine.segment(request)
    engine.forget_models()
    (tmp_path / "token").write_text("seen")
    monkeypatch.setattr(
        worker, "get_worker", lambda: SimpleNamespace(state=SimpleNamespace(nthreads=1))
    )
    expected = worker.Expected(
        __version__, {model: worker.model_hash(model)}, request, (tmp_path / "token", "seen")
    )
    assert worker.CaseWorker("x", expected).problem() == ""
    weights = [
        path for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".pth", ".pt")
    ]
    assert weights
    for path in weights:
        path.unlink()  # the networks map the old one
        path.write_bytes(b"")
    warm = engine.segment(request)
    np.testing.assert_array_equal(warm.labelmap.voxels, cold.labelmap.voxels)
    engine.forget_models()


def test_a_worker_whose_weights_are_damaged_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, scan = joint(tmp_path)
    request = SegmentationRequest((scan,), models=(model,), device="cpu")
    (tmp_path / "joint" / "fast.safetensors").write_bytes(b"other")
    (tmp_path / "token").write_text("seen")
    monkeypatch.setattr(
        worker, "get_worker", lambda: SimpleNamespace(state=SimpleNamespace(nthreads=1))
    )
    expected = worker.Expected(
        __version__, {model: worker.model_hash(model)}, request, (tmp_path / "token", "seen")
    )
    problem = worker.CaseWorker("x", expected).problem()
    assert "cannot get ready for the first case" in problem
    assert "fast.safetensors" in problem
