"""Siblings of label maps: younger and older heads, narrow sulci, lesions; on a real map and by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsegai.errors import RequestError
from medsegai.io import read_labelmap
from medsegai.training.anatomy import (
    AnatomyConfig,
    contracted,
    vary,
    with_claustrum,
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
    putamen=(12, 51),
    claustrum=(138, 169),
    claustrum_share=1.0,
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


def test_a_claustrum_is_a_sheet_between_putamen_and_cortex_of_its_side() -> None:
    """From k = 4 on, putamen and cortex are 7 mm apart on the left; on the right they are too far apart."""
    labels = np.full((30, 20, 40), 2, np.int16)
    labels[4:12], labels[19:24] = 12, 3
    labels[:, :, 20:] = 41
    labels[4:12, :, 20:], labels[26:, :, 20:] = 51, 42
    config = replace(BRAIN, claustrum_mm=(2.0, 2.0), claustrum_gap_mm=(9.0, 9.0))
    varied = with_claustrum(labels, (1.0, 1.0, 1.0), config, np.random.default_rng(1))
    sheet = varied == 138
    assert set(labels[sheet]) == {2}, "only white matter of this side changes"
    assert not (varied == 169).any(), "nothing lies between structures that are far apart"
    assert np.array_equal(varied[~sheet], labels[~sheet])
    thickness = sheet[:, 5:15, 5:12].sum(axis=0)
    assert thickness.min() >= 1
    assert thickness.max() <= 2
    assert not sheet[12].any(), "white matter stays beside the putamen"
    assert not sheet[18].any(), "white matter stays beside the cortex"


@pytest.mark.parametrize("sides", [{"white_matter": (2,)}, {"cortex": ()}, {"putamen": (12,)}])
def test_what_is_added_needs_labels_of_both_sides(sides: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(
        RequestError, match=rf"needs as many labels as anatomy\.{next(iter(sides))}"
    ):
        replace(BRAIN, **sides)


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
        assert set(np.unique(sibling)) <= set(np.unique(labels)) | {*LESION, 138, 169}
        for claustrum in (138, 169):
            assert 200 < (sibling == claustrum).sum() < 3000, "mm³ of a side"
