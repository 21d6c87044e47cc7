"""Members joined: against plain NumPy, with merged classes, votes and a device that runs out of memory."""

import numpy as np
import pytest
import torch

from medsegai.inference.fusion import Accumulator, Ensemble, PartPrediction, fuse
from medsegai.inference.grid_sampling import Slab
from medsegai.inference.joint_probabilities import JointProbabilities
from medsegai.inference.probabilities import Block
from medsegai.networks.mapped_memory import mapped_zeros
from medsegai.volume import Geometry
from process_memory import resident_bytes

LABELS = (0, 2, 41, 16)
FULL = [[], [2], [41], [16]]
MERGED = [[], [2, 41], [16]]
GRID = Geometry.from_spacing((4, 5, 6), (1, 1, 1))
WHOLE = Slab(GRID, 0, GRID.shape[0])
CPU = torch.device("cpu")


def answers(classes: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).normal(size=(classes, *GRID.shape)) * 3
    ).softmax(0)


def accumulated(members, device: torch.device = CPU, **options) -> Accumulator:
    total = Accumulator(LABELS, GRID, device, **options)
    for classes, weight, values in members:
        total.begin_member(classes, weight)
        for k in range(GRID.shape[0]):
            total.add(Block((k, 0, 0), values[:, k : k + 1]))
    return total


def test_weighted_mean_of_probabilities() -> None:
    first, second = answers(4, 0), answers(4, 1)
    result = accumulated([(FULL, 0.4, first), (FULL, 0.2, second)]).result()
    expected = (2 * first + second) / 3
    np.testing.assert_allclose(result.values.float(), expected, atol=2e-3)
    np.testing.assert_allclose(result.values.float().sum(0), 1, atol=3e-3)


def test_a_channel_that_does_not_know_the_side_is_shared_as_the_others_share() -> None:
    full, merged = answers(4, 0), answers(3, 1)
    result = accumulated([(FULL, 0.8, full), (MERGED, 0.2, merged)]).result()
    left = full[1] / (full[1] + full[2])
    spread = torch.stack([merged[0], merged[1] * left, merged[1] * (1 - left), merged[2]])
    np.testing.assert_allclose(result.values.float(), 0.8 * full + 0.2 * spread, atol=2e-3)
    np.testing.assert_allclose(result.values.float().sum(0), 1, atol=3e-3)


def test_what_is_surely_left_is_certain_though_one_member_does_not_know_the_side() -> None:
    left = torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None, None, None].expand(4, *GRID.shape)
    either = torch.tensor([0.0, 1.0, 0.0])[:, None, None, None].expand(3, *GRID.shape)
    result = accumulated([(FULL, 0.6, left), (MERGED, 0.4, either)]).result()
    assert (result.argmax(WHOLE) == 1).all()
    assert result.entropy(WHOLE).max() < 0.01


def test_what_nobody_spoke_about_is_background() -> None:
    total = Accumulator(LABELS, GRID, CPU)
    total.begin_member(FULL, 1.0)
    total.add(Block((1, 2, 3), answers(4, 0)[:, :2, :2, :2]))
    values = total.result().values
    assert (values[0, 0] == 1).all()
    assert (values[1:, 3] == 0).all()
    np.testing.assert_allclose(
        values[:, 1:3, 2:4, 3:5].float(), answers(4, 0)[:, :2, :2, :2], atol=2e-3
    )


def test_majority_vote_counts_heads_not_probabilities() -> None:
    sure = torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None, None, None].expand(4, *GRID.shape)
    doubtful = torch.tensor([0.2, 0.3, 0.1, 0.4])[:, None, None, None].expand(4, *GRID.shape)
    members = [(FULL, 1.0, sure), (FULL, 1.0, doubtful), (FULL, 1.0, doubtful)]
    assert (accumulated(members).result().argmax(WHOLE) == 1).all()
    assert (accumulated(members, vote=True).result().argmax(WHOLE) == 3).all()


def test_members_own_labels_take_the_side_from_the_fused_answer() -> None:
    full, merged = answers(4, 0), answers(3, 1)
    total = accumulated([(FULL, 0.8, full), (MERGED, 0.2, merged)], keep_members=True)
    fused = total.result()
    first, second = total.member_values(fused)
    values = np.array(LABELS)
    np.testing.assert_array_equal(first, values[full.argmax(0)])
    side = torch.where(fused.values[1] >= fused.values[2], 1, 2)
    expected = torch.where(merged.argmax(0) == 1, side, torch.tensor([0, 0, 3])[merged.argmax(0)])
    np.testing.assert_array_equal(second, values[expected])
    part = PartPrediction(fused, 1.0, GRID, ("full", "merged"), (first, second))
    read = Ensemble([part], LABELS).member_labels(Slab(GRID, 1, 3))
    np.testing.assert_array_equal(read, torch.stack([first, second])[:, 1:3])


def test_parts_on_one_grid_stay_as_they_are_and_others_are_joined() -> None:
    part = accumulated([(FULL, 1.0, answers(4, 0))]).result()
    assert fuse([part], [1.0], LABELS) is part
    assert isinstance(fuse([part, part], [1.0, 2.0], LABELS), JointProbabilities)


def test_a_gpu_without_memory_hands_the_sum_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here: another device stands for one, and torch is told to fail the first time."""
    members = [(FULL, 0.4, answers(4, 0)), (FULL, 0.2, answers(4, 1))]
    expected = accumulated(members).result().values
    zeros, failures = torch.zeros, []

    def fail_once(*arguments, **options):
        if not failures:
            failures.append(1)
            raise torch.OutOfMemoryError("no memory")
        return zeros(*arguments, **options)

    monkeypatch.setattr(torch, "zeros", fail_once)
    total = accumulated(members, torch.device("meta"))
    assert torch.equal(total.result().values, expected)
    assert len(total.notes) == 1
    assert "CPU" in total.notes[0]


def test_improbable_classes_take_no_memory_and_change_no_class() -> None:
    """Of 30 classes, each is in a part of the planes and rows of its own, and improbable elsewhere."""
    shape, classes = (120, 96, 96), 30
    grid = Geometry.from_spacing(shape, (1, 1, 1))
    labels = tuple(range(classes))
    total = Accumulator(labels, grid, CPU)
    total.begin_member([[], *([value] for value in labels[1:])], 1.0)
    before = resident_bytes()
    for k in range(shape[0]):
        plane = torch.full((classes, 1, *shape[1:]), 3e-6)
        plane[0] = 1.0 - 3e-6 * (classes - 1)
        inside = 1 + k // 5
        plane[inside, 0, 40:60, 20:50], plane[0, 0, 40:60, 20:50] = 0.75, 0.25
        total.add(Block((k, 0, 0), plane))
    fused = total.result()
    assert resident_bytes() - before < 0.25 * fused.values.nbytes
    found = fused.values.argmax(0)
    assert [int(found[k, 50, 30]) for k in range(0, 120, 5)] == list(range(1, 25))
    assert int((found > 0).sum()) == shape[0] * 20 * 30
    np.testing.assert_allclose(fused.values.float().sum(0), 1.0, atol=2e-3)


def test_what_a_row_lacks_of_improbable_classes_goes_to_the_background() -> None:
    values = torch.zeros(4, *GRID.shape)
    values[0], values[1], values[2] = 0.5, 0.5 - 9e-6, 9e-6
    fused = accumulated([(FULL, 1.0, values)]).result().values.float()
    assert not fused[2].any()
    np.testing.assert_allclose(fused[0] + fused[1], 1.0, atol=1e-3)


def test_more_than_the_memory_is_a_memory_error() -> None:
    """As an OSError it would be reported as a file that cannot be opened."""
    with pytest.raises(MemoryError):
        mapped_zeros((2**40, 2**10), torch.float16)
