"""What the family of QuickNAT prepares, and what it keeps of the answers."""

from pathlib import Path

import numpy as np
import pytest

import tiny_quicknat
from medsegai.engine import segment
from medsegai.families import _head
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume


def small_head() -> Volume:
    """A bright ball, off centre, in clean air."""
    k, j, i = np.indices((70, 80, 90))
    distance = np.sqrt((k - 30) ** 2 + (j - 45) ** 2 + (i - 40) ** 2)
    voxels = np.where(distance < 14, 100 + 20 * np.cos(k) * np.sin(j), 0).astype(np.float32)
    return Volume(voxels, Geometry((70, 80, 90), np.diag([1.5, 1.5, 1.5, 1.0])))


def test_keeping_answers_near_the_head_changes_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_quicknat.write_model(tmp_path, slices=3, grid=96, spacing_mm=1.5)
    head = small_head()
    request = SegmentationRequest(
        (head,), (str(tmp_path),), device="cpu", backend="torch", probabilities=True
    )
    near = segment(request).probabilities
    monkeypatch.setattr(_head, "KEPT_MARGIN_MM", 1000.0)
    whole = segment(request).probabilities
    assert near is not None
    assert whole is not None
    ball = head.voxels > 0
    assert np.ptp(whole[:, ball].astype(np.float32), axis=1).max() > 0.01
    assert np.array_equal(near[:, ball], whole[:, ball])
    far = np.ones(ball.shape, bool)
    far[:60, 10:, 5:75] = False
    assert whole[:, far].any()
    assert not near[:, far].any()
