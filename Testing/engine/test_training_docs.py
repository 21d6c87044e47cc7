"""The smallest card and training file, as the documents print them: they train, and what they train segments."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medsegai.cli import main
from medsegai.models.card import load_card

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def printed(language: str) -> str:
    """The one block of code in this language."""
    text = DOCUMENT.read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(block)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Both files, and three cases of two bright balls, 2 mm apart in every direction."""
    (tmp_path / "card.json").write_text(printed("json"), encoding="utf-8")
    (tmp_path / "training.toml").write_text(printed("toml"), encoding="utf-8")
    chance = np.random.default_rng(1)
    i, j, k = np.mgrid[:64, :64, :64] - 32
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for number in (1, 2, 3):
        labels = np.zeros((64, 64, 64), np.uint8)
        labels[(i + 14) ** 2 + j**2 + k**2 < (8 + number) ** 2] = (
            1  # the first axis grows to the right
        )
        labels[(i - 14) ** 2 + j**2 + k**2 < (8 + number) ** 2] = 2
        image = (labels > 0) * 300.0 + chance.normal(100, 10, labels.shape)
        for kind, voxels in (("images", image.astype(np.float32)), ("labels", labels)):
            (tmp_path / kind).mkdir(exist_ok=True)
            path = tmp_path / kind / f"case_{number:03}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return tmp_path


def test_the_smallest_files_of_the_documents_train_a_model(folder: Path) -> None:
    run = folder / "run"
    words = ["--data", folder, "-o", run, "--steps", 2, "--device", "cpu"]
    assert main(["train", "quicknat", str(folder / "training.toml"), *map(str, words)]) == 0
    card = load_card(run / "model")
    card.verify()
    assert [label.name for label in card.labels] == ["Left kidney", "Right kidney"]
    scan, out = folder / "images" / "case_001.nii.gz", folder / "out.seg.nrrd"
    words = ["-o", out, "--model", run / "model", "--device", "cpu", "--backend", "torch"]
    assert main(["segment", str(scan), *map(str, words)]) == 0
    assert out.is_file()
