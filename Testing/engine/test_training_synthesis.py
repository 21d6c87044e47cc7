"""Synthetic volumes: the same numbers give the same volume, and every voxel lies where it should."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from medsegai.models.card import load_card
from medsegai.training.config import load_config
from medsegai.training.data import TRAINING, VALIDATION, CaseSource, case_source, conform_axes
from medsegai.training.synthesis import (
    AppearanceConfig,
    DeformationConfig,
    Draw,
    LabelTables,
    Origin,
    SpatialGrid,
    Synthesizer,
    TissueClass,
    blur,
    coarsen,
    label_tables,
    paint,
    sample_linear,
    sample_nearest,
)
from medsegai.volume import Geometry, Volume
from training_phantom import LEFT, LIA, MIDDLE, RIGHT, SKIN, head, write_phantom

CODES = (0, LEFT, MIDDLE, RIGHT, SKIN)
STILL = DeformationConfig(
    rotation=0.0,
    scaling=(1.0, 1.0),
    shearing=0.0,
    shift_mm=0.0,
    far_shift_share=0.0,
    elastic_mm=(),
    elastic_nodes=(),
    flip_share=0.0,
)
CLEAN = AppearanceConfig(
    t1_share=1.0,
    t1_jitter=0.0,
    noise_in_tissue=(0.0, 0.0),
    bias=(0.0, 0.0),
    blur_voxels=(0.1, 0.1),
    coarse_share=0.0,
    noise=(0.0, 0.0),
    gamma=0.0,
    stripped_share=0.0,
    cut_share=0.0,
)


def encoded_head() -> torch.Tensor:
    return torch.from_numpy(np.searchsorted(CODES, head().transpose(2, 1, 0)).astype(np.uint8))


def synthesizer(deformation: DeformationConfig, appearance: AppearanceConfig) -> Synthesizer:
    tissues = (
        TissueClass("background", (0,), 0.0),
        TissueClass("hemispheres", (LEFT, RIGHT), 1.0),
        TissueClass("stem", (MIDDLE,), 0.5),
    )
    mirrored = {LEFT: RIGHT, RIGHT: LEFT}
    tables = label_tables(CODES, (LEFT, RIGHT, MIDDLE), tissues, mirrored, {})
    grid = SpatialGrid((48, 48, 48), (1.0, 1.0, 1.0))
    return Synthesizer(tables, grid, deformation, appearance)


def draw(seed: int = 0) -> Draw:
    return Draw(torch.Generator().manual_seed(seed))


ORIGIN = Origin((23.5, 23.5, 23.5), (1.0, 1.0, 1.0))
EXPECTED = {LEFT: 1, RIGHT: 2, MIDDLE: 3}


def expected_targets() -> np.ndarray:
    labels = head().transpose(2, 1, 0)
    return sum(
        ((labels == value) * place for value, place in EXPECTED.items()), np.zeros_like(labels)
    )


def test_without_variation_targets_are_the_label_map() -> None:
    image, targets = synthesizer(STILL, CLEAN).from_labels(encoded_head(), ORIGIN, draw())
    assert np.array_equal(targets, expected_targets())
    assert image[targets == 1] == pytest.approx(image[targets == 2].mean(), abs=1e-6)
    assert image[targets == 3].mean() == pytest.approx(0.5 * image[targets == 1].mean(), abs=1e-3)
    assert image[0, 0, 0] < 0.05


def test_a_flip_mirrors_the_head_and_exchanges_the_sides() -> None:
    flipping = DeformationConfig(**{**vars(STILL), "flip_share": 1.0})
    _, targets = synthesizer(flipping, CLEAN).from_labels(encoded_head(), ORIGIN, draw())
    mirrored = expected_targets()[:, :, ::-1]
    exchanged = np.select([mirrored == 1, mirrored == 2], [2, 1], mirrored)
    assert np.array_equal(targets, exchanged)


def test_left_stays_left_under_every_deformation() -> None:
    maker = synthesizer(DeformationConfig(), AppearanceConfig(cut_share=0.0))
    for seed in range(12):
        _, targets = maker.from_labels(encoded_head(), ORIGIN, draw(seed))
        left, right = (np.nonzero(targets == place)[2].mean() for place in (1, 2))
        assert left > right + 3


def test_shift_moves_by_millimetres() -> None:
    maker = synthesizer(STILL, CLEAN)
    shifted = Origin((23.5, 23.5, 20.5), ORIGIN.spacing_mm)
    _, targets = maker.from_labels(encoded_head(), shifted, draw())
    assert np.array_equal(targets[:, :, 3:], expected_targets()[:, :, :-3])


def test_source_spacing_is_respected() -> None:
    """A map of 2 mm voxels is twice as large on the same grid."""
    maker = synthesizer(STILL, CLEAN)
    _, once = maker.from_labels(encoded_head(), ORIGIN, draw())
    _, twice = maker.from_labels(encoded_head(), Origin(ORIGIN.center, (1.0, 1.0, 2.0)), draw())
    assert (twice[24, 24] > 0).sum() == 48
    assert twice[24, 24, 24:36].tolist() == np.repeat(once[24, 24, 24:30], 2).tolist()


def test_stripped_scans_keep_the_brain_and_lose_the_skin() -> None:
    appearance = AppearanceConfig(**{**vars(CLEAN), "stripped_share": 1.0, "tight_mask_share": 1.0})
    image, targets = synthesizer(STILL, appearance).from_labels(encoded_head(), ORIGIN, draw())
    assert np.array_equal(targets, expected_targets())
    assert (image[targets == 0] == 0.0).all()
    assert (image[targets == 1] > 0.0).all()


def test_structures_that_stripping_may_take_leave_image_and_labels_together() -> None:
    mirrored = {LEFT: RIGHT, RIGHT: LEFT}
    tables = label_tables(CODES, (LEFT, RIGHT, MIDDLE), (), mirrored, {}, not_brain=(MIDDLE,))
    appearance = AppearanceConfig(**{**vars(CLEAN), "stripped_share": 1.0, "tight_mask_share": 1.0})
    maker = Synthesizer(tables, SpatialGrid((48, 48, 48), (1.0, 1.0, 1.0)), STILL, appearance)
    image, targets = maker.from_labels(encoded_head(), ORIGIN, draw())
    gone = expected_targets() == 3
    assert not targets[gone].any()
    assert not image[gone].any()


def test_remapped_labels_are_painted_apart_but_learned_as_one() -> None:
    tables = label_tables(CODES, (LEFT, RIGHT, MIDDLE), (), {}, {SKIN: MIDDLE})
    assert tables.targets.tolist() == [0, 1, 3, 2, 3]
    assert len(set(tables.classes.tolist())) == 5


def test_both_sides_share_an_intensity_also_without_a_tissue() -> None:
    tables = label_tables(CODES, (LEFT, RIGHT), (), {LEFT: RIGHT, RIGHT: LEFT}, {})
    classes = dict(zip(CODES, tables.classes.tolist(), strict=True))
    assert classes[LEFT] == classes[RIGHT]
    assert len(set(classes.values())) == 4
    assert tables.mirrored.tolist() == [0, 3, 2, 1, 4]


def slab_tables(blends: bool) -> LabelTables:
    """A thin slab of bright tissue (1) in dark tissue (2); only the slab may blend."""
    tissues = (
        TissueClass("background", (0,), t1=0.0),
        TissueClass("slab", (1,), t1=1.0, blends=blends),
        TissueClass("around", (2,), t1=0.5),
    )
    return label_tables((0, 1, 2), (1, 2), tissues, {}, {})


def painted(appearance: AppearanceConfig, blends: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.full((32, 32, 32), 2, dtype=torch.uint8)
    codes[15:17] = 1
    return codes, paint(codes, slab_tables(blends), appearance, draw())


def test_thin_tissue_that_blends_takes_on_the_intensity_of_its_neighbours() -> None:
    blending = replace(CLEAN, blending=(1.0, 1.0), blending_voxels=(2.0, 2.0))
    codes, image = painted(blending)
    assert (image[codes == 2] == 0.5).all(), "what does not blend keeps its intensity"
    assert image[codes == 1].max() < 1.0
    assert image[codes == 1].min() > 0.5
    assert image[codes == 1].std() > 0.01, "the share changes from place to place"
    codes, image = painted(blending, blends=False)
    assert (image[codes == 1] == 1.0).all()


def test_a_gradient_changes_tissue_smoothly() -> None:
    codes, image = painted(replace(CLEAN, gradient=(0.1, 0.1), gradient_nodes=4))
    around = image[codes == 2] - 0.5
    assert 0.005 < around.std() < 0.5
    steps = image[18:].diff(dim=1).abs().max()
    assert steps < image[18:].std(), "the change is smooth"


def test_nearest_and_linear_sampling_equal_scipy() -> None:
    generator = torch.Generator().manual_seed(4)
    image = torch.rand(7, 8, 9, generator=generator)
    coordinates = torch.rand(3, 5, 5, 5, generator=generator) * 6.0
    reference = ndimage.map_coordinates(image.numpy(), coordinates.numpy(), order=1)
    assert np.allclose(sample_linear(image, coordinates).numpy(), reference, atol=1e-5)
    codes = (image * 200).to(torch.uint8)
    nearest = ndimage.map_coordinates(codes.numpy(), coordinates.numpy(), order=0)
    assert np.array_equal(sample_nearest(codes, coordinates).numpy(), nearest)
    assert not sample_nearest(codes + 1, coordinates + 100.0).any()


def test_blur_equals_scipy_inside() -> None:
    image = torch.rand(24, 24, 24, generator=torch.Generator().manual_seed(5))
    ours = blur(image, 0.8).numpy()
    reference = ndimage.gaussian_filter(image.numpy(), 0.8, truncate=2.5)
    assert np.allclose(ours[4:-4, 4:-4, 4:-4], reference[4:-4, 4:-4, 4:-4], atol=1e-5)


def test_coarsening_keeps_the_mean_and_loses_detail_along_its_axis() -> None:
    image = torch.zeros(16, 16, 16)
    image[::2] = 1.0
    along, across = coarsen(image, (4.0, 1.0, 1.0)), coarsen(image, (1.0, 4.0, 1.0))
    assert torch.allclose(along, torch.full_like(along, 0.5))
    assert torch.allclose(across, image)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> CaseSource:
    return phantom_source(tmp_path_factory.mktemp("phantom"))


def phantom_source(folder: Path) -> CaseSource:
    config = load_config(write_phantom(folder))
    return case_source(config, load_card(config.card_path), torch.device("cpu"))


def test_the_same_numbers_give_the_same_volume(source: CaseSource) -> None:
    first, again = source.sample(TRAINING, 5), source.sample(TRAINING, 5)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.targets, again.targets)
    for other in (source.sample(TRAINING, 6), source.sample(VALIDATION, 5)):
        assert not np.array_equal(first.image, other.image)


def test_images_are_scaled_and_finite(source: CaseSource) -> None:
    for index in range(8):
        sample = source.sample(TRAINING, index)
        assert sample.image.dtype == np.float32
        assert np.isfinite(sample.image).all()
        assert 0.0 <= sample.image.min() < 0.05
        assert sample.image.max() == 1.0


def test_counts_are_those_of_the_training_maps(source: CaseSource) -> None:
    counts = sum(
        np.array([np.count_nonzero(head(size) == value) for value in (LEFT, RIGHT, MIDDLE)])
        for size in (0.95, 1.05)
    )
    assert source.target_counts()[1:].tolist() == list(counts)


def test_axes_are_turned_to_lia_whatever_their_order() -> None:
    labels = head().transpose(2, 1, 0)
    straight = Volume(labels, Geometry(labels.shape, LIA))
    ras = np.diag([1.0, 1.0, 1.0, 1.0])
    ras[:3, 3] = -23.0, -24.0, -23.0
    turned = labels[:, ::-1, ::-1].transpose(1, 0, 2)
    back = conform_axes(Volume(turned, Geometry(turned.shape, ras)))
    assert np.array_equal(back.voxels, labels)
    assert back.geometry.matches(straight.geometry) or np.allclose(
        back.geometry.ijk_to_ras[:3, :3], straight.geometry.ijk_to_ras[:3, :3]
    )
