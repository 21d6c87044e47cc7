"""Regions that overlap are refined one by one, and a group of them as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsegai.engine import segment
from medsegai.errors import Cancelled, RequestError
from medsegai.inference.activation import Activation
from medsegai.inference.fusion import Ensemble, PartPrediction
from medsegai.inference.grid_sampling import Slab
from medsegai.inference.probabilities import Probabilities
from medsegai.inference.result_builder import ResultBuilder
from medsegai.io import read_volume
from medsegai.labels import Label
from medsegai.models.refinement import Refinement
from medsegai.progress import Progress
from medsegai.refinements import Draft, apply_refinement, parse, refinement_names, title
from medsegai.refinements._overlapping import Regions, apply_to_regions
from medsegai.request import Candidates, SegmentationRequest, SegmentationResult
from medsegai.volume import Volume
from nnunet_models import Made, make_model
from refinement_cases import SHAPE, grid, image_of
from test_nnunet_parity import COARSE, REGIONS, made_image

LABELS = (
    Label(1, "whole", (250, 9, 9)),
    Label(2, "core", (9, 250, 9)),
    Label(300, "enhancing", (9, 9, 250)),
)


def nested(seed: int = 0) -> Regions:
    """Three ragged regions, one more or less inside of the other, with islands and cavities."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2.5)
    field = (field - field.mean()) / field.std() + rng.normal(0, 0.25, SHAPE)
    p = 1 / (1 + np.exp(-2 * (field - np.array([0.0, 0.5, 1.0])[:, None, None, None])))
    masks = p > 0.5
    steps = np.rint(255 * p).astype(np.uint8)
    image = image_of(masks.sum(0), noise=20.0)
    return Regions(masks, LABELS, grid(), image, steps)


def alone(regions: Regions, number: int) -> Draft:
    """One region as a separate segmentation, worked out from the definition."""
    value = LABELS[number].value
    assert regions.steps is not None
    p, inside = regions.steps[number], regions.masks[number]
    kind = np.uint16 if value > 255 else np.uint8
    first = np.where(inside, value, 0).astype(kind)
    low = np.where(inside, 255 - p, p).astype(np.uint8)
    second = np.where(~inside & (low > 0), value, 0).astype(kind)
    candidates = Candidates(first, second, (255 - low).astype(np.uint8), low)
    return Draft(Volume(first, grid()), (LABELS[number],), regions.image, candidates)


@pytest.mark.parametrize("name", sorted(set(refinement_names()) - {"largest_component"}))
def test_each_region_is_refined_as_if_there_were_no_other(name: str) -> None:
    regions = nested()
    before = regions.masks.copy()
    refined = apply_to_regions(regions, Refinement(name))
    np.testing.assert_array_equal(regions.masks, before)
    changed = 0
    for number, label in enumerate(LABELS):
        found = apply_refinement(alone(regions, number), Refinement(name))
        np.testing.assert_array_equal(refined.labels[number], found.labels == label.value)
        told = [change for change in refined.changes if change.label is label]
        assert told == list(found.changes)
        changed += found.voxels
    assert refined.voxels == changed > 0
    assert "whole" in refined.words(name)[0]


def test_an_island_of_the_core_stays_in_the_whole() -> None:
    masks = np.zeros((3, 12, 13, 14), bool)
    masks[0, 1:11, 1:12, 1:13] = True
    masks[1, 2:6, 2:6, 2:6] = masks[1, 8, 8, 8] = True
    refined = apply_to_regions(
        Regions(masks, LABELS, grid(shape=(12, 13, 14))),
        Refinement("islands", {"smallest_ml": 0.01}),
    )
    assert not refined.labels[1, 8, 8, 8]
    np.testing.assert_array_equal(refined.labels[0], masks[0])
    assert [(change.label.name, change.lost) for change in refined.changes] == [("core", 1)]


def test_only_regions_that_are_named_change() -> None:
    regions = nested(3)
    refined = apply_to_regions(regions, Refinement("islands", {"labels": [2]}))
    assert (refined.labels[1] != regions.masks[1]).any()
    np.testing.assert_array_equal(refined.labels[[0, 2]], regions.masks[[0, 2]])
    with pytest.raises(RequestError, match="names label 7"):
        apply_to_regions(regions, Refinement("islands", {"labels": [7]}))


def test_the_largest_component_of_each_region_and_of_a_group() -> None:
    regions = nested(5)
    whole, core = regions.masks[0], regions.masks[1]
    settings = Refinement("largest_component", {"labels": [[1, 2, 300], [2]]})
    found = apply_to_regions(regions, settings).labels
    joined = largest(regions.masks.any(0))
    assert (regions.masks.any(0) & ~joined).any()
    np.testing.assert_array_equal(found[0], whole & joined)
    np.testing.assert_array_equal(found[1], largest(core & joined))
    np.testing.assert_array_equal(found[2], regions.masks[2] & joined)


def largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    parts, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    return np.asarray(parts == 1 + np.bincount(parts.ravel())[1:].argmax())


def test_what_joined_regions_gain_the_outermost_gains() -> None:
    masks = np.zeros((3, 9, 9, 9), bool)
    masks[0, 1:8, 1:8, 1:8] = True
    masks[0, 3:6, 3:6, 3:6] = False
    masks[1, 3:6, 3:6, 3] = masks[1, 3, 3, 4] = True
    regions = Regions(masks, LABELS, grid(shape=(9, 9, 9)))
    found = apply_to_regions(
        regions, Refinement("holes", {"labels": [2, 1], "joined": True})
    ).labels
    hole = ~masks[:2].any(0)
    hole[[0, -1]] = hole[:, [0, -1]] = hole[:, :, [0, -1]] = False
    np.testing.assert_array_equal(found[0], masks[0] | hole)
    np.testing.assert_array_equal(found[1:], masks[1:])


def test_it_can_be_stopped_and_asks_with_a_share_that_grows() -> None:
    shares: list[float] = []
    apply_to_regions(nested(), Refinement("smoothing"), shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0

    def stop(share: float) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        apply_to_regions(nested(), Refinement("smoothing"), stop)


# Within a job


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nnunet")
    made = Made(labels=REGIONS, regions_class_order=(1, 2, 3), spacing=COARSE)
    made_image(folder / "case_0000.nii.gz")
    return make_model(folder, made) / made.results_name("3d_fullres")


def _scan(results: Path) -> Path:
    return next(
        path for folder in results.parents if (path := folder / "case_0000.nii.gz").exists()
    )


def run(results: Path, **options: Any) -> SegmentationResult:
    fixed: dict[str, Any] = {"backend": "torch", "precision": "fp32", "mirroring": False}
    fixed |= {"overlap": True, "device": "cpu"}
    return segment(SegmentationRequest((_scan(results),), (str(results),), **fixed | options))


def innermost(regions: NDArray[np.bool_]) -> NDArray[np.uint8]:
    values = np.arange(1, 4, dtype=np.uint8)[:, None, None, None]
    return np.asarray((regions * values).max(0))


@pytest.mark.parametrize("text", ["islands:smallest_ml=0.2", "smoothing", "snap:doubt=0.2"])
def test_a_job_refines_its_regions(text: str, results: Path) -> None:
    raw = run(results, probabilities=True, candidates=True)
    result = run(results, refinements=(text,), candidates=True)
    steps = np.rint(255 * raw.probabilities.astype(np.float32)).astype(np.uint8)
    scan = read_volume(_scan(results))
    regions = Regions(raw.regions, raw.labels, raw.labelmap.geometry, scan, steps)
    expected = apply_to_regions(regions, parse(text))
    assert expected.voxels > 0
    off = result.regions != expected.labels
    assert off.sum() <= 5e-3 * expected.voxels  # half precision of the probabilities
    np.testing.assert_array_equal(result.labelmap.voxels, innermost(result.regions))
    np.testing.assert_array_equal(raw.labelmap.voxels, innermost(raw.regions))
    assert [item.voxels for item in result.structures] == result.regions.sum((1, 2, 3)).tolist()
    assert result.candidates is not None
    np.testing.assert_array_equal(result.candidates.first, raw.labelmap.voxels)
    sentence = f"{title(parse(text).name)}: "
    assert any(warning.startswith(sentence) for warning in result.warnings)


def test_the_post_processing_of_nnunet_reaches_the_regions() -> None:
    """Of one region alone: what is removed of it stays in the region around it."""
    regions = nested(5)
    p = np.clip(regions.steps.astype(np.float32) / 255, 1e-3, 1 - 1e-3)
    logits = torch.from_numpy(
        np.concatenate([np.zeros((1, *SHAPE), np.float32), np.log(p / (1 - p))])
    )
    readable = Probabilities((0, 1, 2, 300), grid(), logits, Activation.REGIONS)
    ensemble = Ensemble([PartPrediction(readable, 1.0, grid(), ())], readable.labels)
    request = SegmentationRequest((Path("x"),), overlap=True)
    answer = ResultBuilder(request, LABELS, grid(), ensemble)
    answer.add(Slab(answer.grid, 0, SHAPE[0]))
    raw = answer.regions
    assert raw is not None
    settings = Refinement("largest_component", {"labels": [[300], [2, 300]]})
    (told,) = answer.refine([settings], regions.image, Progress())
    enhancing = largest(raw[2])
    core = largest(raw[1] | enhancing)
    expected = np.stack([raw[0], raw[1] & core, enhancing & core])
    assert [(item["name"], item["lost"]) for item in told["structures"]] == [
        ("core", (raw[1] & ~core).sum()),
        ("enhancing", (raw[2] & ~expected[2]).sum()),
    ]
    np.testing.assert_array_equal(answer.regions, expected)
    inner = np.max(expected * np.array([1, 2, 300])[:, None, None, None], 0)
    np.testing.assert_array_equal(answer.labelmap, inner)
    assert [item.voxels for item in answer.structures()] == expected.sum((1, 2, 3)).tolist()
