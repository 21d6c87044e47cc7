"""What members differ in, beyond the doubt that each has: against sums over whole volumes with SciPy's entropy."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats

from medsegai import engine
from medsegai.families import Inputs, load_model
from medsegai.inference.activation import Activation
from medsegai.inference.fusion import Accumulator, Ensemble, PartPrediction
from medsegai.inference.grid_sampling import Slab
from medsegai.inference.probabilities import Block
from medsegai.io import read_volume
from medsegai.models.catalogue import find_card
from medsegai.networks.backends import choose_compute
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry

LABELS = (0, 5, 7)
FEEDS = [[], [5], [7]]
GRID = Geometry.from_spacing((4, 5, 6), (1.0, 1.0, 1.0))
WEIGHTS = (0.5, 0.2, 0.3)


def answers(seed: int, classes: int = 3) -> torch.Tensor:
    numbers = np.random.default_rng(seed).normal(size=(classes, *GRID.shape)) * 3
    return torch.from_numpy(numbers).float()


def accumulated(
    values: Sequence[torch.Tensor],
    activation: Activation,
    weights: Sequence[float] = WEIGHTS,
    **options: bool,
) -> Accumulator:
    total = Accumulator(
        LABELS, GRID, torch.device("cpu"), keep_members=True, activation=activation, **options
    )
    for member, weight in zip(values, weights, strict=False):
        total.begin_member(FEEDS, weight)
        for k in range(GRID.shape[0]):
            total.add(Block((k, 0, 0), member[:, k : k + 1]))
    return total


def found(*parts: tuple[Accumulator, float]) -> NDArray[np.float32]:
    answers = []
    for total, weight in parts:
        joined = total.result()
        information = total.information(joined)
        answers.append(PartPrediction(joined, weight, GRID, (), information=information))
    ensemble = Ensemble(answers, LABELS)
    slabs = [ensemble.disagreement(Slab(GRID, *planes)) for planes in ((0, 1), (1, 4))]
    return torch.cat(slabs).numpy()


def expected(
    probabilities: Sequence[NDArray[np.floating]], weights: Sequence[float]
) -> NDArray[np.floating]:
    """Entropy of the mean less mean of the entropies, classes along the first axis."""
    mean = np.average(probabilities, axis=0, weights=weights)
    apart = [stats.entropy(member, axis=0) for member in probabilities]
    return stats.entropy(mean, axis=0) - np.average(apart, axis=0, weights=weights)


@pytest.mark.parametrize("vote", [False, True])
def test_of_probabilities(vote: bool) -> None:
    members = [answers(seed).softmax(0) for seed in range(3)]
    ours = found((accumulated(members, Activation.PROBABILITIES, vote=vote), 1.0))
    theirs = expected([member.numpy() for member in members], WEIGHTS)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)  # the mean is kept in half precision
    assert theirs.max() > 0.3


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_of_logits_it_is_that_of_their_probabilities(temperature: float) -> None:
    """Though logits are averaged; and at temperature 1, whatever that of the result is."""
    members = [answers(seed) for seed in range(3)]
    ours = found((accumulated(members, Activation.LOGITS.at(temperature)), 1.0))
    theirs = expected([special.softmax(member.numpy(), 0) for member in members], WEIGHTS)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_of_regions_it_is_the_sum_over_them() -> None:
    members = [answers(seed) for seed in range(3)]
    ours = found((accumulated(members, Activation.REGIONS), 1.0))
    theirs = 0.0
    for region in (1, 2):
        inside = [special.expit(member.numpy()[region]) for member in members]
        theirs = theirs + expected([np.stack([part, 1 - part]) for part in inside], WEIGHTS)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_parts_on_grids_of_their_own_differ_from_each_other_too() -> None:
    """All four members together, though two by two they were fused before."""
    members = [answers(seed).softmax(0) for seed in range(4)]
    first = accumulated(members[:2], Activation.PROBABILITIES, (0.25, 0.75))
    second = accumulated(members[2:], Activation.PROBABILITIES, (0.5, 0.5))
    ours = found((first, 2.0), (second, 1.0))
    weights = [2 / 3 * 0.25, 2 / 3 * 0.75, 1 / 6, 1 / 6]
    theirs = expected([member.numpy() for member in members], weights)
    np.testing.assert_allclose(ours, theirs, atol=3e-3)


def test_members_that_say_the_same_share_all_their_doubt() -> None:
    member = answers(0).softmax(0)
    assert found((accumulated([member] * 3, Activation.PROBABILITIES), 1.0)).max() < 5e-3


def test_mirrored_passes_are_the_members_of_a_fold_alone(shared_data: Path) -> None:
    """On a real scan, against the passes one by one; and the labels are those of their mean."""
    path = shared_data / "Dataset004_Hippocampus" / "imagesTr" / "hippocampus_099_0000.nii.gz"
    plainly = SegmentationRequest(
        (path,), ("hippocampus",), device="cpu", precision="fp32", refine=False
    )
    request = replace(plainly, uncertainty=True)
    result, plain = engine.segment(request), engine.segment(plainly)
    np.testing.assert_array_equal(result.labelmap.voxels, plain.labelmap.voxels)
    assert plain.mutual_information is None

    scan, compute = read_volume(path), choose_compute("cpu", "auto", "fp32")
    model = load_model(find_card("hippocampus"))
    (part,) = model.parts(Inputs([scan]), scan.geometry, request, compute, Progress())
    assert len(part.members) == 8
    assert len({member.name for member in part.members}) == 8
    assert part.geometry.matches(scan.geometry)  # 1 mm already: no voxel is interpolated
    logits = [
        torch.cat([block.values for block in member.predict(compute, lambda done: None)], 1)
        for member in part.members
    ]
    probabilities = [special.softmax(values.numpy().astype(float), 0) for values in logits]
    theirs = expected(probabilities, [1.0] * 8)
    assert result.mutual_information is not None
    np.testing.assert_allclose(result.mutual_information.voxels, theirs, atol=3e-3)
    assert theirs.max() > 0.1
    for value, measures in zip((1, 2), result.structures, strict=True):
        inside = result.labelmap.voxels == value
        assert measures.mutual_information == pytest.approx(theirs[inside].mean(), abs=1e-3)
        masks = np.stack([values.numpy().argmax(0) == value for values in logits])
        assert measures.iou == pytest.approx(masks.all(0).sum() / masks.any(0).sum())


def test_one_member_alone_differs_from_nobody(shared_data: Path) -> None:
    path = shared_data / "Dataset004_Hippocampus" / "imagesTr" / "hippocampus_099_0000.nii.gz"
    result = engine.segment(
        SegmentationRequest(
            (path,), ("hippocampus",), device="cpu", mirroring=False, uncertainty=True
        )
    )
    assert result.entropy is not None
    assert result.mutual_information is None
    assert all(np.isnan(measures.mutual_information) for measures in result.structures)
