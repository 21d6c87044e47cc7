"""Siblings of label maps: younger and older heads, narrow sulci, lesions; on a real map and by hand."""

from pathlib import Path

import numpy as np
import pytest

from medsegai.io import read_labelmap
from medsegai.training.anatomy import (
    AnatomyConfig,
    contracted,
    vary,
    with_lesions,
    with_narrow_sulci,
)

SPACING = (1.5, 1.0, 2.0)
VENTRICLES, CORTEX, MATTER, LESION, FLUID = (4, 43), (3, 42), (2, 41), (25, 57), 24
BRAIN = AnatomyConfig(
    variants=1,
    ventricles=VENTRICLES,
    cortex=CORTEX,
    fluid=FLUID,
    white_matter=MATTER,
    lesion=LESION,
    lesion_share=1.0,
)


def ball(radius_mm: float) -> np.ndarray:
    """White matter (2) around a ventricle (4) of this radius, on an anisotropic grid (k, j, i)."""
    shape = (40, 60, 30)
    grid = np.indices(shape).astype(float)
    offsets = [(g - (n - 1) / 2) * s for g, n, s in zip(grid, shape, SPACING, strict=True)]
    distance = np.sqrt(sum(offset**2 for offset in offsets))
    return np.where(distance < radius_mm, 4, 2).astype(np.int16)


def radius_of(labels: np.ndarray) -> float:
    """Radius in mm of a ball of the volume of the ventricle."""
    volume = (labels == 4).sum() * np.prod(SPACING)
    return float((3 * volume / (4 * np.pi)) ** (1 / 3))


@pytest.mark.parametrize("contraction", [3.0, 1.5, -2.0])
def test_a_ventricle_contracts_by_what_was_asked(contraction: float) -> None:
    labels = ball(12.0)
    varied = contracted(labels, SPACING, BRAIN, contraction)
    assert radius_of(varied) == pytest.approx(radius_of(labels) - contraction, abs=0.6)
    corner = (slice(0, 3), slice(0, 5), slice(0, 2))
    assert np.array_equal(varied[corner], labels[corner]), "far away nothing moves"


def test_nothing_to_contract_changes_nothing() -> None:
    labels = np.full((8, 9, 10), 2, np.int16)
    assert np.array_equal(contracted(labels, SPACING, BRAIN, 2.0), labels)
    assert np.array_equal(with_narrow_sulci(labels, SPACING, BRAIN, 2.0), labels)


def test_fluid_near_cortex_becomes_the_nearest_cortex() -> None:
    labels = np.full((5, 20, 5), FLUID, np.int16)
    labels[:, :4], labels[:, 16:] = 3, 42
    varied = with_narrow_sulci(labels, (1.0, 1.0, 1.0), BRAIN, 2.0)
    assert (varied[:, :6] == 3).all()
    assert (varied[:, 14:] == 42).all()
    assert (varied[:, 6:14] == FLUID).all()


def test_lesions_lie_inside_the_white_matter_of_their_side() -> None:
    labels = np.full((30, 30, 30), 2, np.int16)
    labels[:, :, 15:] = 41
    labels[:5] = 3
    for seed in range(5):
        varied = with_lesions(labels, (1.0, 1.0, 1.0), BRAIN, np.random.default_rng(seed))
        assert set(labels[varied == 25]) <= {2}
        assert set(labels[varied == 57]) <= {41}
        assert np.isin(varied, LESION).mean() < 0.05
        rest = ~np.isin(varied, LESION)
        assert np.array_equal(varied[rest], labels[rest])


@pytest.mark.slow
def test_a_real_head_becomes_younger(shared_data: Path) -> None:
    """Lateral ventricles of elderly people (20 ml) come near those of the young (8 ml); the cortex grows."""
    path = sorted((shared_data / "brain-label-maps").glob("*.nii.gz"))[0]
    labels = read_labelmap(path)[0].voxels.astype(np.int16)
    varied = [
        vary(labels, (1.0, 1.0, 1.0), BRAIN, np.random.default_rng(seed)) for seed in (3, 3, 4)
    ]
    assert np.array_equal(varied[0], varied[1]), "the same numbers give the same sibling"
    assert not np.array_equal(varied[0], varied[2])
    for sibling in varied:
        before, after = (np.isin(part, VENTRICLES).sum() for part in (labels, sibling))
        assert 0.2 * before < after < 0.97 * before
        assert np.isin(sibling, CORTEX).sum() > np.isin(labels, CORTEX).sum()
        assert set(np.unique(sibling)) <= set(np.unique(labels)) | set(LESION)
