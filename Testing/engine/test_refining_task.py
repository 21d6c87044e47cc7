"""Refinements that the worker does for the panel: what is fixed stays, grids may differ, and it can be stopped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medsegai.errors import Cancelled, RequestError, WorkerError
from medsegai.labels import Label
from medsegai.models.refinement import Refinement
from medsegai.progress import Progress
from medsegai.refinements import Draft, apply_refinement
from medsegai.request import Candidates
from medsegai.volume import Geometry, Volume
from medsegai.worker import protocol
from medsegai.worker.array_transfer import ExchangeFolder
from medsegai.worker.refine_job import kept, on_grid, refine
from medsegai.worker.requests import RefinementRequest, RefinementResult

SHAPE = (8, 11, 14)
LIVER, SPLEEN = Label(1, "Liver", (200, 100, 50)), Label(2, "Spleen", (50, 100, 200))
TURNED = np.array(
    [[0.6, -1.6, 0.0, 10.0], [0.8, 1.2, 0.0, -20.0], [0.0, 0.0, 2.5, 3.0], [0, 0, 0, 1]]
)
ISLANDS = Refinement("islands", {"labels": [1], "smallest_ml": 0.02})


def labels() -> np.ndarray:
    """Liver beside spleen, an island of liver inside of the spleen, and one in the background."""
    found = np.zeros(SHAPE, np.uint8)
    found[1:7, 1:10, 1:6] = 1
    found[1:7, 1:10, 6:11] = 2
    found[3, 5, 8] = 1
    found[6, 9, 12] = 1
    return found


def request(**more: Any) -> RefinementRequest:
    labelmap = Volume(labels(), Geometry(SHAPE, TURNED), "Abdomen segmentation")
    values: dict[str, Any] = {"labelmap": labelmap, "labels": (LIVER, SPLEEN)}
    return RefinementRequest(**(values | {"refinements": (ISLANDS,)} | more))


def test_it_is_what_the_refinement_does() -> None:
    asked = request()
    result = refine(asked, Progress())
    expected = apply_refinement(Draft(asked.labelmap, asked.labels), ISLANDS)
    assert np.array_equal(result.labelmap.voxels, expected.labels)
    assert result.words == tuple(expected.words("islands"))
    assert result.report == (expected.to_dict(ISLANDS),)
    assert result.labelmap.voxels[3, 5, 8] == SPLEEN.value
    assert result.labelmap.voxels[6, 9, 12] == 0


def test_an_island_in_a_fixed_structure_becomes_background_and_is_told() -> None:
    result = refine(request(fixed=(2,)), Progress())
    found = result.labelmap.voxels
    assert np.array_equal(found == 2, labels() == 2)
    assert found[3, 5, 8] == 0
    assert any("1 voxel, 0.005 ml, became background" in text for text in result.words)


def test_a_border_that_would_move_into_a_fixed_structure_stays_without_a_gap() -> None:
    before = labels()
    after = before.copy()
    after[1:7, 1:10, 5] = 2  # liver gives a plane to the spleen,
    after[1:7, 1:10, 0] = 1  # takes one of the background,
    after[1:7, 3, 6] = 1  # and a row of the spleen
    found, cleared = kept(before, after, (2,))
    assert np.array_equal(found == 2, before == 2)
    assert (found[1:7, 1:10, 5] == 1).all()
    assert (found[1:7, 1:10, 0] == 1).all()
    assert cleared == 0


def test_random_changes_never_touch_what_is_fixed() -> None:
    random = np.random.default_rng(3)
    before = random.integers(0, 6, SHAPE).astype(np.uint16) * 70
    after = np.where(random.random(SHAPE) < 0.3, random.integers(0, 6, SHAPE) * 70, before)
    found, cleared = kept(before, after.astype(np.uint16), (70, 350))
    for value in (70, 350):
        assert np.array_equal(found == value, before == value)
    free = ~np.isin(before, (70, 350)) & ~np.isin(after, (70, 350))
    assert np.array_equal(found[free], after[free])
    assert int(((found == 0) & (after != 0)).sum()) - cleared == int(
        ((before == 0) & np.isin(after, (70, 350))).sum()
    )


def test_several_refinements_follow_each_other() -> None:
    hollow = labels()
    hollow[3, 4, 3] = 0
    refinements = (ISLANDS, Refinement("holes", {"labels": [1]}))
    labelmap = Volume(hollow, Geometry(SHAPE, TURNED))
    result = refine(request(labelmap=labelmap, refinements=refinements), Progress())
    assert result.labelmap.voxels[3, 4, 3] == 1
    assert result.labelmap.voxels[6, 9, 12] == 0
    assert [item["settings"]["name"] for item in result.report] == ["islands", "holes"]


def test_freed_voxels_go_to_the_runner_up() -> None:
    first = labels()
    second = np.zeros_like(first)
    second[6, 9, 12] = 2
    p_second = np.where(second > 0, 90, 0).astype(np.uint8)
    candidates = Candidates(first, second, np.full(SHAPE, 150, np.uint8), p_second)
    result = refine(request(candidates=candidates), Progress())
    assert result.labelmap.voxels[6, 9, 12] == 2


def test_it_can_be_stopped_and_tells_how_far_it_is() -> None:
    events = []
    progress = Progress(lambda event: events.append(event.fraction))
    refine(request(), progress)
    assert events == sorted(events)
    assert events[-1] == 1.0
    progress.cancel.set()
    with pytest.raises(Cancelled):
        refine(request(), progress)


def test_a_mistake_is_told() -> None:
    with pytest.raises(RequestError, match="names label 9"):
        refine(request(refinements=(Refinement("islands", {"labels": [9]}),)), Progress())
    with pytest.raises(RequestError, match="image"):
        refine(request(refinements=(Refinement("snap"),)), Progress())


def test_an_image_on_another_grid_lies_where_it_lay() -> None:
    """A ramp in the world is linear on every grid, so interpolation gives it back exactly."""

    def ramp(grid: Geometry) -> np.ndarray:
        k, j, i = np.indices(grid.shape)
        world = np.tensordot(grid.ijk_to_ras[:3], np.stack([i, j, k, np.ones_like(i)]), 1)
        return np.asarray(np.tensordot([1.5, -2.0, 0.7], world, 1))

    grid = Geometry(SHAPE, TURNED)
    fine = grid.resized((20, 24, 30)).permuted((2, 0, 1)).flipped(1)
    found = on_grid(Volume(ramp(fine), fine, "scan"), grid)
    assert found.source == "scan"
    inner = tuple(slice(1, -1) for _ in range(3))
    assert np.allclose(found.voxels[inner], ramp(grid)[inner], atol=1e-3)
    same = Volume(ramp(grid), grid)
    assert on_grid(same, grid) is same


def test_an_image_beside_the_segmentation_is_not_refused() -> None:
    image = Volume(np.full((3, 3, 3), 7, np.int16), Geometry.from_spacing((3, 3, 3), (1, 1, 1)))
    found = on_grid(image, Geometry(SHAPE, TURNED))
    assert found.voxels.shape == SHAPE
    assert (found.voxels == 7).all()


def test_request_and_result_cross_the_pipe_as_they_are() -> None:
    folder = ExchangeFolder()
    candidates = Candidates(*(np.full(SHAPE, n, np.uint8) for n in range(4)))
    image = Volume(np.arange(27, dtype=np.float32).reshape(3, 3, 3), Geometry((3, 3, 3), TURNED))
    refinements = (Refinement("largest_component", {"labels": ((1, 2),)}),)
    asked = request(fixed=(2,), image=image, candidates=candidates, refinements=refinements)
    kind = protocol.kind_of(asked)
    sent = protocol.decode(
        protocol.encode({"type": kind.name, "request": protocol.packed(asked, folder.path)})
    )
    got: Any = protocol.unpacked(kind.asked, sent["request"], folder.path)
    assert isinstance(got, RefinementRequest)
    assert (got.labels, got.fixed) == (asked.labels, (2,))
    assert got.refinements == (Refinement("largest_component", {"labels": [[1, 2]]}),)
    assert np.array_equal(got.labelmap.voxels, labels())
    assert got.image is not None
    assert np.array_equal(got.image.voxels, image.voxels)
    assert got.candidates is not None
    assert int(got.candidates.p_second[0, 0, 0]) == 3
    result = RefinementResult(asked.labelmap, ("One word.",), ({"voxels": 3},), {"refine": 0.5})
    packed = protocol.packed(result, folder.path)
    back = protocol.unpacked(RefinementResult, packed, folder.path)
    assert (back.words, back.report, back.seconds) == (result.words, result.report, result.seconds)
    assert np.array_equal(back.labelmap.voxels, labels())
    del got, back
    folder.remove()


def test_every_kind_of_job_has_somebody_who_does_it() -> None:
    from medsegai.worker.server import WORK

    assert set(WORK) == set(protocol.KINDS)
    with pytest.raises(WorkerError, match="not have a job for a str"):
        protocol.kind_of("segment")


def test_memory_stays_a_few_times_that_of_the_labels() -> None:
    """`kept` makes one copy; besides, it looks at changed voxels and at boxes alone."""
    import tracemalloc

    before = np.zeros((128, 128, 128), np.uint8)
    before[20:100, 20:100, 20:60] = 1
    before[20:100, 20:100, 60:100] = 2
    after = before.copy()
    after[20:100, 20:100, 59] = 2
    tracemalloc.start()
    kept(before, after, (2,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * before.nbytes


def test_without_settings_nothing_changes() -> None:
    asked = request(refinements=())
    result = refine(asked, Progress())
    assert result.labelmap is asked.labelmap
    assert result.words == ()
