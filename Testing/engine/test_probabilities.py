"""Reading probabilities on other grids, against SciPy and against plain interpolation of every class."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

import medsegai
from images import DIRECTIONS
from medsegai.inference import grid_sampling, probabilities
from medsegai.inference.activation import Activation
from medsegai.inference.grid_sampling import Slab, slabs_of
from medsegai.inference.joint_probabilities import JointProbabilities
from medsegai.inference.probabilities import (
    Probabilities,
    StreamedProbabilities,
    read_nearest,
    two_best,
)
from medsegai.volume import Geometry

NATIVE = Geometry.from_spacing(
    (12, 14, 17), (2.0, 2.0, 2.0), (20.0, -12.0, 15.0), DIRECTIONS["LIA"]
)
LABELS = (0, 4, 2, 9)
EVERY = torch.arange(6 * 34 * 21)
"""All voxels of six planes of `target`."""


def organs(seed: int = 0, sharpness: float = 12.0) -> Probabilities:
    """Smooth classes with boundaries, as networks give them."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(len(LABELS), *NATIVE.shape))
    smooth = np.stack([ndimage.gaussian_filter(channel, 2.0) for channel in noise])
    logits = torch.from_numpy(sharpness * smooth / smooth.std())
    return Probabilities(LABELS, NATIVE, logits.softmax(0).half())


def target(directions: str) -> Geometry:
    """A finer, anisotropic, non-cubic grid around the middle of the native one; it reaches outside."""
    matrix = Geometry.from_spacing(
        (30, 34, 21), (1.3, 1.1, 1.7), (0, 0, 0), DIRECTIONS[directions]
    ).ijk_to_ras.copy()
    middle = matrix[:3, :3] @ [10, 17, 15]
    matrix[:3, 3] = NATIVE.center_ras - middle
    return Geometry((30, 34, 21), matrix)


def with_scipy(values: torch.Tensor, grid: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Each class interpolated at every voxel of `grid`, and which voxels lie well inside."""
    k, j, i = np.meshgrid(*[np.arange(size) for size in grid.shape], indexing="ij")
    ijk = NATIVE.ras_to_ijk @ grid.ijk_to_ras @ np.stack([i, j, k, np.ones_like(i)]).reshape(4, -1)
    kji = ijk[2::-1]
    read = [
        ndimage.map_coordinates(channel, kji, order=1, mode="nearest")
        for channel in values.double().numpy()
    ]
    sizes = np.array(NATIVE.shape)[:, None]
    inside = ((kji > -0.499) & (kji < sizes - 0.501)).all(0)
    outside = ((kji < -0.501) | (kji > sizes - 0.499)).any(0)
    sure = np.where(inside, 1, np.where(outside, -1, 0))
    return np.stack(read).reshape(-1, *grid.shape), sure.reshape(grid.shape)


def in_slabs(read, grid: Geometry, axis: int) -> torch.Tensor:
    return torch.cat([read(slab) for slab in slabs_of(grid, 7)], axis)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_read_is_linear_interpolation_and_background_outside(directions: str) -> None:
    probabilities, grid = organs(), target(directions)
    reference, where = with_scipy(probabilities.values, grid)
    ours = in_slabs(probabilities.read, grid, 1).numpy()
    assert (where == 1).mean() > 0.2
    assert (where == -1).any()
    np.testing.assert_allclose(ours[:, where == 1], reference[:, where == 1], atol=2e-3)
    assert (ours[0, where == -1] == 1).all()
    assert (ours[1:, where == -1] == 0).all()


@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("sharpness", [12.0, 1.0])
def test_corner_consensus_gives_the_argmax_of_interpolated_probabilities(
    directions: str, sharpness: float
) -> None:
    probabilities, grid = organs(sharpness=sharpness), target(directions)
    labels = in_slabs(probabilities.argmax, grid, 0).numpy()
    reference, where = with_scipy(probabilities.values, grid)
    best_two = np.sort(reference, axis=0)[-2:]
    decided = (where == 1) & (best_two[1] - best_two[0] > 1e-4)
    assert (labels == reference.argmax(0))[decided].all()
    assert (labels[where == -1] == 0).all()
    assert len(np.unique(labels)) == len(LABELS)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_entropy_is_the_native_entropy_interpolated(directions: str) -> None:
    probabilities, grid = organs(sharpness=2.0), target(directions)
    p = probabilities.values.double().numpy()
    native = -(p * np.log(np.maximum(p, 1e-300))).sum(0)
    reference, where = with_scipy(torch.from_numpy(native)[None], grid)
    ours = in_slabs(probabilities.entropy, grid, 0).numpy()
    np.testing.assert_allclose(ours[where == 1], reference[0][where == 1], atol=5e-3)
    assert (ours[where == -1] == 0).all()


def test_equal_grids_copy_exactly_whatever_their_axes() -> None:
    probabilities = organs()
    ours = probabilities.read(Slab(NATIVE, 0, NATIVE.shape[0]))
    assert torch.equal(ours.half(), probabilities.values)
    flipped = Geometry(
        NATIVE.shape,
        NATIVE.cropped([0, 0, NATIVE.shape[2] - 1], NATIVE.shape).ijk_to_ras
        @ np.diag([-1.0, 1, 1, 1]),
    )
    assert torch.equal(
        probabilities.read(Slab(flipped, 0, 12)).flip(3).half(), probabilities.values
    )


def test_nearest_takes_the_voxel_that_is_nearest() -> None:
    values = torch.arange(np.prod(NATIVE.shape), dtype=torch.float32).reshape(NATIVE.shape)
    grid = target("oblique")
    ours = read_nearest(values, NATIVE, Slab(grid, 0, grid.shape[0])).numpy()
    k, j, i = np.meshgrid(*[np.arange(size) for size in grid.shape], indexing="ij")
    ijk = NATIVE.ras_to_ijk @ grid.ijk_to_ras @ np.stack([i, j, k, np.ones_like(i)]).reshape(4, -1)
    apart = np.abs(ijk[2::-1] - np.round(ijk[2::-1])).max(0).reshape(grid.shape)
    reference = ndimage.map_coordinates(
        values.numpy(), ijk[2::-1], order=0, mode="nearest"
    ).reshape(grid.shape)
    _, where = with_scipy(values[None], grid)
    sure = (where == 1) & (apart < 0.49)
    assert sure.mean() > 0.2
    np.testing.assert_array_equal(ours[sure], reference[sure])
    assert (ours[where == -1] == 0).all()


def test_joint_probabilities_are_the_weighted_mean_on_the_output_grid() -> None:
    first, second, grid = organs(1), organs(2), target("oblique")
    joint = JointProbabilities([first, second], [3.0, 1.0], LABELS)
    expected = 0.75 * first.read(Slab(grid, 3, 9)) + 0.25 * second.read(Slab(grid, 3, 9))
    torch.testing.assert_close(joint.read(Slab(grid, 3, 9)), expected)
    assert torch.equal(joint.argmax(Slab(grid, 3, 9)), expected.argmax(0))
    entropy = Activation.PROBABILITIES.entropy(expected, 0)
    torch.testing.assert_close(joint.entropy(Slab(grid, 3, 9)), entropy)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_joint_uncertainty_is_that_of_every_voxel_though_few_are_read(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sharp answers on two grids, beside what reading everything gives."""
    activation = Activation.PROBABILITIES.at(temperature)
    fine, sharp = NATIVE.resized([2 * size for size in NATIVE.shape]), organs(1, 80.0)
    parts = [
        Probabilities(LABELS, NATIVE, sharp.values, activation),
        Probabilities(LABELS, fine, sharp.read(Slab(fine, 0, fine.shape[0])).half(), activation),
        Probabilities(LABELS, NATIVE, sharp.values.roll(1, 2), activation),
    ]
    joint, grid = JointProbabilities(parts, [3.0, 2.0, 1.0], LABELS), target("oblique")
    answers = torch.stack([part.read_points(Slab(grid, 3, 9), EVERY, raw=True) for part in parts])
    mean = (answers * torch.tensor([3.0, 2.0, 1.0])[:, None, None] / 6.0).sum(0)
    entropy = Activation.PROBABILITIES.entropy(activation.tempered(mean, 0), 0)
    apart = (
        Activation.PROBABILITIES.entropy(answers, 1) * torch.tensor([3.0, 2.0, 1.0])[:, None] / 6.0
    )
    gap = Activation.PROBABILITIES.entropy(mean, 0) - apart.sum(0)
    read: list[int] = []
    whole = JointProbabilities._part_values

    def counted(self: JointProbabilities, slab: Slab, points: torch.Tensor) -> list[torch.Tensor]:
        read.append(points.numel())
        return whole(self, slab, points)

    monkeypatch.setattr(JointProbabilities, "_part_values", counted)
    for measure, expected in ((joint.entropy, entropy), (joint.divergence, gap)):
        found = measure(Slab(grid, 3, 9))
        torch.testing.assert_close(found.reshape(-1), expected, atol=3e-3, rtol=0)
        assert found.max() > 0.3
    assert 0 < sum(read) < 0.7 * EVERY.numel()


@pytest.mark.parametrize("directions", ["LIA", "oblique"])
@pytest.mark.parametrize("kind", ["probabilities", "logits", "regions"])
def test_the_best_of_two_is_the_argmax(kind: str, directions: str) -> None:
    grid, values = target(directions), logits()
    sharp = values.softmax(0).half() if kind == "probabilities" else values
    part = Probabilities(LABELS, NATIVE, sharp, Activation(kind, 0.6))
    first, second, p_first, p_second = two_best(part, Slab(grid, 3, 9))
    assert torch.equal(first, part.argmax(Slab(grid, 3, 9)))
    assert (p_second > 0).float().mean() > 0.02
    assert ((first != second) | (p_second == 0) | (kind == "regions")).all()
    read = 255 * part.read_points(Slab(grid, 3, 9), EVERY).gather(0, first.reshape(1, -1).long())
    if kind != "regions":
        assert ((read.reshape(p_first.shape) - p_first).abs() <= 0.51).all()


def test_a_single_native_plane_can_be_read() -> None:
    native = Geometry.from_spacing((1, 4, 5), (1, 1, 1))
    values = torch.rand(2, 1, 4, 5).softmax(0).half()
    read = Probabilities((0, 1), native, values).read(Slab(native, 0, 1))
    assert torch.equal(read.half(), values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_entropy_is_scipys(dtype: torch.dtype) -> None:
    logits = np.random.default_rng(1).normal(0, 4, (7, 5, 6, 4))
    probabilities = torch.from_numpy(logits).softmax(0)
    expected = stats.entropy(probabilities.numpy(), axis=0)
    ours = Activation.PROBABILITIES.entropy(probabilities.to(dtype), 0).numpy()
    assert np.abs(ours - expected).max() < (2e-2 if dtype == torch.float16 else 1e-5)


def test_entropy_of_certain_and_of_equal_classes() -> None:
    certain, equal = torch.tensor([1.0, 0, 0, 0]), torch.full((4,), 0.25)
    ends = Activation.PROBABILITIES.entropy(torch.stack([certain, equal], 1), 0).numpy()
    np.testing.assert_allclose(ends, [0.0, np.log(4)], rtol=1e-6)


def logits(seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).normal(size=(len(LABELS), *NATIVE.shape))
    smooth = np.stack([ndimage.gaussian_filter(channel, 2.0) for channel in noise])
    return torch.from_numpy(12 * smooth / smooth.std()).float()


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_logits_are_interpolated_before_the_softmax(directions: str) -> None:
    """As nnU-Net does: SciPy interpolates the logits, then argmax, or softmax."""
    values, grid = logits(), target(directions)
    reference, where = with_scipy(values, grid)
    part = Probabilities(LABELS, NATIVE, values, Activation.LOGITS)
    best_two = np.sort(reference, axis=0)[-2:]
    decided = (where == 1) & (best_two[1] - best_two[0] > 1e-2)
    labels = in_slabs(part.argmax, grid, 0).numpy()
    np.testing.assert_array_equal(labels[decided], reference.argmax(0)[decided])
    expected = torch.from_numpy(reference).softmax(0).numpy()
    ours = in_slabs(part.read, grid, 1).numpy()
    np.testing.assert_allclose(ours[:, where == 1], expected[:, where == 1], atol=2e-3)
    assert (ours[0, where == -1] == 1).all()


def test_regions_overlap_and_the_last_one_above_one_half_wins() -> None:
    values, grid = logits(), target("oblique")
    reference, where = with_scipy(values, grid)
    expected = np.zeros(grid.shape, int)
    for region in range(1, len(LABELS)):
        expected[reference[region] > 0] = region
    part = Probabilities(LABELS, NATIVE, values, Activation.REGIONS)
    decided = (where == 1) & (np.abs(reference[1:]).min(0) > 1e-2)
    labels = in_slabs(part.argmax, grid, 0).numpy()
    np.testing.assert_array_equal(labels[decided], expected[decided])
    assert len(np.unique(labels[decided])) == len(LABELS)
    sigmoid = 1 / (1 + np.exp(-reference[1:]))
    ours = in_slabs(part.read, grid, 1)[1:].numpy()
    np.testing.assert_allclose(ours[:, where == 1], sigmoid[:, where == 1], atol=3e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_along_a_thick_axis_the_nearest_voxel_is_taken(axis: int) -> None:
    values = logits()
    grid = NATIVE.resized([size * 2 + 1 for size in NATIVE.shape])
    kji = list(
        np.meshgrid(
            *[
                (np.arange(n) + 0.5) * m / n - 0.5
                for n, m in zip(grid.shape, NATIVE.shape, strict=True)
            ],
            indexing="ij",
        )
    )
    kji[axis] = np.floor(kji[axis] + 0.5)
    reference = np.stack(
        [ndimage.map_coordinates(v, kji, order=1, mode="nearest") for v in values.double().numpy()]
    )
    linear = [n != axis for n in range(3)]
    part = Probabilities(LABELS, NATIVE, values, Activation.LOGITS, linear)
    labels = in_slabs(part.argmax, grid, 0).numpy()
    assert (labels == reference.argmax(0)).mean() > 0.9999
    blurred = Probabilities(LABELS, NATIVE, values, Activation.LOGITS)
    assert (in_slabs(blurred.argmax, grid, 0).numpy() == reference.argmax(0)).mean() < 0.99


@pytest.mark.parametrize("directions", ["LIA", "RAS"])
@pytest.mark.parametrize("thickness", [1, 5, 12])
def test_streamed_slabs_read_the_same_as_the_whole(directions: str, thickness: int) -> None:
    values = logits()
    matrix = NATIVE.cropped((0, 0, 0), NATIVE.shape).resized((31, 20, 23)).ijk_to_ras
    grid = Geometry((40, 20, 23), matrix).cropped((-4, 0, 0), (40, 20, 23))
    whole = Probabilities(LABELS, NATIVE, values, Activation.LOGITS)
    streamed = StreamedProbabilities(
        LABELS, NATIVE, iter(values.split(thickness, 1)), Activation.LOGITS
    )
    for slab in slabs_of(grid, 7):
        assert torch.equal(streamed.argmax(slab), whole.argmax(slab))
        torch.testing.assert_close(streamed.read(slab), whole.read(slab))


def test_streamed_planes_that_are_gone_are_not_made_up() -> None:
    streamed = StreamedProbabilities(LABELS, NATIVE, iter(logits().split(1, 1)), Activation.LOGITS)
    streamed.argmax(Slab(NATIVE, 6, 8))
    with pytest.raises(ValueError, match="gone"):
        streamed.argmax(Slab(NATIVE, 0, 2))


def test_a_part_shares_its_background_among_the_classes_it_does_not_know() -> None:
    """One model knows 4 and 2, the other 9: neither speaks against what it has never heard of."""
    shape = (1, 1, 3)
    grid = Geometry.from_spacing(shape, (1, 1, 1))
    first = torch.tensor([[0.1, 0.1, 0.9], [0.8, 0.1, 0.1], [0.1, 0.8, 0.0]]).reshape(3, *shape)
    second = torch.tensor([[1.0, 1.0, 0.2], [0.0, 0.0, 0.8]]).reshape(2, *shape)
    joint = JointProbabilities(
        [Probabilities((0, 4, 2), grid, first), Probabilities((0, 9), grid, second)],
        [1.0, 1.0],
        (0, 4, 2, 9),
    )
    values = joint.read(Slab(grid, 0, 1))
    torch.testing.assert_close(values.sum(0), torch.ones(shape))
    assert joint.argmax(Slab(grid, 0, 1)).flatten().tolist() == [1, 2, 3]
    third = values[:, 0, 0, 2]  # the first model's background goes to 0 and 9 as 0.2 to 0.8
    expected = [(0.9 * 0.2 + 0.2 * 0.9) / 2, (0.1 + 0.2 * 0.1) / 2, 0.0, (0.9 * 0.8 + 0.8) / 2]
    torch.testing.assert_close(third, torch.tensor(expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("at_once", [100, 5000])
def test_memory_may_be_bounded_without_another_result(
    directions: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few points at a time, among a few rows of two planes, or all by one table."""
    part, grid = Probabilities(LABELS, NATIVE, logits(), Activation.LOGITS), target(directions)
    expected = part.read(Slab(grid, 8, 12)), part.argmax(Slab(grid, 8, 12))
    monkeypatch.setattr(grid_sampling, "VALUES_AT_ONCE", at_once)
    monkeypatch.setattr(probabilities, "VALUES_AT_ONCE", at_once)
    torch.testing.assert_close(part.read(Slab(grid, 8, 12)), expected[0])
    assert torch.equal(part.argmax(Slab(grid, 8, 12)), expected[1])


def test_hundreds_of_classes() -> None:
    values = torch.randn(300, 4, 5, 6)
    native = Geometry.from_spacing((4, 5, 6), (1, 1, 1))
    part = Probabilities(range(300), native, values, Activation.LOGITS)
    assert torch.equal(part.argmax(Slab(native, 0, 4)).long(), values.argmax(0))
    grid = native.resized((7, 9, 5))
    smooth = torch.nn.functional.interpolate(values[None], grid.shape, mode="trilinear")[0]
    assert torch.equal(part.argmax(Slab(grid, 0, 7)).long(), smooth.argmax(0))


def test_equal_classes_go_to_the_first() -> None:
    native = Geometry.from_spacing((2, 3, 4), (1, 1, 1))
    values = torch.zeros(3, 2, 3, 4)
    values[1:] = 1.0
    part = Probabilities((0, 1, 2), native, values, Activation.LOGITS)
    assert (part.argmax(Slab(native.resized((3, 5, 4)), 0, 3)) == 1).all()


PLANES_ONE_AFTER_ANOTHER = """
import resource
import torch
from medsegai.inference.grid_sampling import slabs_of
from medsegai.inference.probabilities import Probabilities
from medsegai.networks.memory import keep_freed_memory
from medsegai.volume import Geometry

def peak_of_reading(planes):
    grid = Geometry.from_spacing((planes, 128, 128), (1.0, 1.0, 1.0))
    organs = Probabilities(range(32), grid, values[:, :planes])
    for slab in slabs_of(grid, 2):
        organs.argmax(slab), organs.unsettled(slab)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

keep_freed_memory()
torch.set_num_threads(1)
values = torch.full((32, 64, 128, 128), 0.0, dtype=torch.float16)
values[3, :, 20:] = 1
print(-peak_of_reading(4) + peak_of_reading(64))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone is told to keep freed memory")
def test_memory_does_not_grow_with_the_planes_that_are_read() -> None:
    """Float32 values of a plane take 2 MB here, and what is kept of 60 planes 2 MB together."""
    environment = os.environ | {"PYTHONPATH": str(Path(medsegai.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", PLANES_ONE_AFTER_ANOTHER],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 40
