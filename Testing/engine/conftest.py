"""What tests of several commands share: a made-up engine, and a model for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import fake_engine
from medsegai.models import importing
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult


@pytest.fixture
def imports_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert models in this process, because another starts in seconds. `test_confinement` does what users do."""
    monkeypatch.setattr(importing, "_stage_confined", importing._stage)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of the user's own with members axial and coronal; the fake engine needs no weights."""
    models = tmp_path / "models"
    fake_engine.write_model(models)
    monkeypatch.setenv("MEDSEGAI_MODELS", str(models))
    return "toy"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[SegmentationRequest]:
    """Puts the fake engine in place; the list receives the requests that reach it."""
    seen: list[SegmentationRequest] = []

    def segment(
        request: SegmentationRequest, progress: Progress | None = None
    ) -> SegmentationResult:
        seen.append(request)
        return fake_engine.segment(request, progress)

    module = fake_engine.as_module()
    module.segment = segment  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "medsegai.engine", module)
    return seen
