"""The two most probable structures of each voxel, against numpy on the full probabilities of the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tiny_quicknat
from images import DIRECTIONS
from medsegai.engine import segment
from medsegai.inference.activation import Activation
from medsegai.labels import Label
from medsegai.request import Candidates, SegmentationRequest, SegmentationResult, StructureMeasures
from medsegai.volume import Geometry, Volume
from medsegai.worker import protocol
from nnunet_models import Made, make_model
from test_nnunet_parity import COARSE, REGIONS, made_image

STEP = 1.0 / 255.0
HALF = 2e-3
"""What half precision loses of the probabilities that are compared with, and of their sum."""


def oblique_head(shape: tuple[int, int, int] = (30, 44, 37)) -> Volume:
    noise = np.random.default_rng(5).normal(0, 30, shape)
    k, j, i = np.indices(shape)
    ball = (k - 14) ** 2 * 2.2 + (j - 22) ** 2 + (i - 18) ** 2 < 14**2
    geometry = Geometry.from_spacing(shape, (1.7, 1.6, 2.4), (-30, -20, 5), DIRECTIONS["oblique"])
    return Volume((ball * (200 + noise)).astype(np.float32), geometry)


def run(model: Path, scan: Volume | Path, **options: Any) -> SegmentationResult:
    fixed: dict[str, Any] = {"device": "cpu", "backend": "torch", "precision": "fp32"}
    wanted = {"probabilities": True, "candidates": True, "refine": False}
    models = {"models": (str(model),)}
    return segment(SegmentationRequest((scan,), **models | fixed | wanted | options))


def with_background(result: SegmentationResult) -> NDArray[np.float32]:
    """Probabilities (class, k, j, i), the background first."""
    assert result.probabilities is not None
    named = result.probabilities.astype(np.float32)
    return np.concatenate([1 - named.sum(0, keepdims=True), named])


def check(result: SegmentationResult, inside: tuple[Any, ...] = (slice(None),)) -> None:
    """The candidates of a model of classes are the two highest of its probabilities."""
    found = result.candidates
    assert found is not None
    values = np.array([0, *(label.value for label in result.labels)])
    full = with_background(result)[(slice(None), *inside)].reshape(len(values), -1)
    highest = np.sort(full, 0)[::-1]
    np.testing.assert_array_equal(found.first, result.labelmap.voxels)
    first, second, p_first, p_second = (array[inside].ravel() for array in vars(found).values())
    tolerance = STEP / 2 + HALF
    np.testing.assert_allclose(p_first * STEP, highest[0], atol=tolerance)
    np.testing.assert_allclose(p_second * STEP, highest[1], atol=tolerance)
    assert p_first.min() > 0
    rows = np.arange(first.size)
    named = p_second > 0
    row_of = np.zeros(values.max() + 1, int)
    row_of[values] = np.arange(len(values))
    own = full[row_of[second[named]], rows[named]]
    np.testing.assert_allclose(own, p_second[named] * STEP, atol=tolerance)
    assert (second[named] != first[named]).all()
    assert not second[~named].any()
    assert named.any(), "nothing was in doubt"


@pytest.fixture(scope="module")
def quicknat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quicknat")
    tiny_quicknat.write_model(folder, slices=3)
    return folder


@pytest.fixture(scope="module")
def plain(quicknat: Path) -> SegmentationResult:
    """What a QuickNAT of three views answers if only probabilities and candidates are asked for."""
    return run(quicknat, oblique_head())


@pytest.fixture(scope="module")
def nnunet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Made(spacing=COARSE)
    return make_model(tmp_path_factory.mktemp("nnunet"), made) / made.results_name("3d_fullres")


def test_a_quicknat_of_three_views(plain: SegmentationResult) -> None:
    check(plain)
    doubted = np.unique(plain.candidates.second) if plain.candidates else ()
    assert len(doubted) > 2


def test_a_quicknat_that_is_read_while_it_predicts(quicknat: Path) -> None:
    """One view answers plane by plane, and its planes are gone once they are read."""
    check(run(quicknat, oblique_head(), members=("coronal",)))


def test_all_that_can_be_asked_for_at_once(quicknat: Path, plain: SegmentationResult) -> None:
    result = run(quicknat, oblique_head(), uncertainty=True)
    assert result.candidates is not None
    assert plain.candidates is not None
    np.testing.assert_array_equal(result.candidates.second, plain.candidates.second)


def test_an_nnunet_answers_with_logits(nnunet: Path, tmp_path: Path) -> None:
    check(run(nnunet, made_image(tmp_path / "case_0000.nii.gz"), mirroring=False))


def test_an_nnunet_and_a_quicknat_together(nnunet: Path, tmp_path: Path) -> None:
    tiny_quicknat.write_model(tmp_path / "tiny", slices=1)
    scan = made_image(tmp_path / "case_0000.nii.gz")
    check(run(nnunet, scan, mirroring=False, models=(str(nnunet), str(tmp_path / "tiny"))))


def test_regions_say_what_the_nearest_decision_would_change(tmp_path: Path) -> None:
    made = Made(labels=REGIONS, regions_class_order=(1, 2, 3), spacing=COARSE)
    results = make_model(tmp_path, made) / made.results_name("3d_fullres")
    result = run(results, made_image(tmp_path / "case_0000.nii.gz"), mirroring=False)
    found = result.candidates
    assert found is not None
    assert result.probabilities is not None
    regions = result.probabilities.astype(np.float32)
    nearest = np.zeros(found.first.shape, np.float32)
    for number, region in enumerate(regions, start=1):
        later, own = found.first < number, found.first == number
        nearest[later] = np.maximum(nearest, region)[later]
        nearest[own] = np.maximum(nearest, 1 - region)[own]
    np.testing.assert_allclose(found.p_second * STEP, nearest, atol=STEP / 2 + HALF)
    np.testing.assert_allclose(found.p_first * STEP, 1 - nearest, atol=STEP / 2 + HALF)
    assert (found.second != found.first)[found.p_second > 0].all()
    entered = (found.second > found.first) & (found.p_second > 0)
    rows = np.nonzero(entered)
    assert entered.any()
    own = regions[(found.second[entered].astype(int) - 1, *rows)]
    np.testing.assert_allclose(own, found.p_second[entered] * STEP, atol=STEP / 2 + HALF)


def test_regions_one_by_one() -> None:
    """Three regions, one inside the other, worked out by hand."""
    columns = torch.tensor(
        [
            [0.0, 0.9, 0.2, 0.1],  # first region: sure; the second might be entered: 0.2
            [0.0, 0.7, 0.6, 0.1],  # second region: leaving it, 0.4, falls back to the first
            [0.0, 0.4, 0.3, 0.1],  # none: the first might be entered: 0.4
            [0.0, 0.3, 0.2, 0.8],  # third region, around which there is none: 0.2 to none
        ]
    ).T
    first = torch.tensor([1, 2, 0, 3])
    second, p_first, p_second = Activation.REGIONS.two_best(columns, first)
    assert second.tolist() == [2, 1, 1, 0]
    torch.testing.assert_close(p_first, torch.tensor([0.8, 0.6, 0.6, 0.8]))
    torch.testing.assert_close(p_second, torch.tensor([0.2, 0.4, 0.4, 0.2]))


def test_outside_of_the_region_nothing_is_known(quicknat: Path) -> None:
    scan = oblique_head()
    center = scan.geometry.center_ras
    region = tuple(float(value) for c in center for value in (c - 12, c + 12))
    result = run(quicknat, scan, region=region)
    found = result.candidates
    assert found is not None
    box = scan.geometry.box_around(region)
    assert box is not None
    check(result, box)
    outside = np.ones(found.first.shape, bool)
    outside[box] = False
    assert outside.any()
    assert not any(array[outside].any() for array in vars(found).values())


def test_they_are_kept_only_on_demand(quicknat: Path) -> None:
    assert run(quicknat, oblique_head(), candidates=False).candidates is None


def test_the_probability_of_one_structure() -> None:
    first, second = np.array([[[4, 4, 0, 0]]], np.uint8), np.array([[[0, 9, 4, 0]]], np.uint8)
    p_first = np.array([[[204, 153, 153, 255]]], np.uint8)
    p_second = np.array([[[51, 102, 102, 0]]], np.uint8)
    found = Candidates(first, second, p_first, p_second)
    np.testing.assert_allclose(found.probability_of(4)[0, 0], [0.8, 0.6, 0.4, 0.0], atol=1e-6)
    np.testing.assert_allclose(found.probability_of(0)[0, 0], [0.2, 0.0, 0.6, 1.0], atol=1e-6)


@pytest.mark.parametrize("there", [True, False])
def test_they_cross_the_pipe(there: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    grid = Geometry.from_spacing((3, 4, 5), (1, 2, 3))
    labels = [rng.integers(0, 400, grid.shape).astype(np.uint16) for _ in range(2)]
    steps = [rng.integers(0, 256, grid.shape).astype(np.uint8) for _ in range(2)]
    label = Label(7, "One", (1, 2, 3))
    sent = SegmentationResult(
        Volume(labels[0], grid),
        (label,),
        (StructureMeasures(label, 1, 0.006),),
        candidates=Candidates(*labels, *steps) if there else None,
    )
    line = protocol.encode({"type": "result", "result": protocol.packed(sent, tmp_path)})
    packed = protocol.decode(line)["result"]
    found = protocol.unpacked(SegmentationResult, packed, tmp_path).candidates
    assert (found is not None) == there
    if found is not None:
        for name, array in vars(found).items():
            assert array.dtype == vars(sent.candidates)[name].dtype
            np.testing.assert_array_equal(array, vars(sent.candidates)[name])
