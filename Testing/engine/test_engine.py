"""The pipeline: results lie where the scan lies, options do what they say, errors leave nothing behind."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import medsegai
import tiny_quicknat
from images import DIRECTIONS
from medsegai import engine
from medsegai.errors import Cancelled, GeometryError, InputError, ModelError, RequestError
from medsegai.families import Inputs, Part, Step
from medsegai.inference.fusion import Ensemble
from medsegai.inference.grid_sampling import Slab, planes_needed
from medsegai.inference.probabilities import Block, Probabilities
from medsegai.inference.result_builder import ResultBuilder
from medsegai.labels import Label
from medsegai.models.card import Channel, MemberCard, ModelCard, file_sha256
from medsegai.networks.backends import Compute
from medsegai.preprocessing.conform import conform, conformed_geometry
from medsegai.progress import Progress, ProgressEvent
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume

LABELS = (Label(7, "Dim", (10, 20, 30)), Label(300, "Bright", (40, 50, 60)))
CARD = ModelCard(
    id="thresholds",
    name="Thresholds",
    family="thresholds",
    version="1",
    channels=(Channel("any", "MR"),),
    labels=LABELS,
    members=(MemberCard("one"), MemberCard("two")),
    spacing_mm=(1.0, 1.0, 1.0),
)


@dataclass
class Thresholds:
    """A member whose answer is known: dim above its threshold, bright above 700, on a conformed grid."""

    name: str
    threshold: float
    weight: float = 1.0
    classes: Sequence[Sequence[int]] = ((), (7,), (300,))

    voxels: np.ndarray | None = None

    def predict(self, compute: Compute, step: Step) -> Iterator[Block]:
        assert self.voxels is not None
        for k, plane in enumerate(self.voxels):
            values = torch.from_numpy(plane)
            index = (values > self.threshold).long() + (values > 700)
            yield Block(
                (k, 0, 0), torch.nn.functional.one_hot(index, 3).movedim(-1, 0)[:, None].float()
            )
            step((k + 1) / len(self.voxels))


class ThresholdModel:
    card = CARD

    def parts(
        self,
        inputs: Inputs,
        output: Geometry,
        request: SegmentationRequest,
        compute: Compute,
        progress: Progress,
    ) -> list[Part]:
        (scan,) = inputs.scans
        grid = conformed_geometry(scan.geometry, (96, 96, 96), (1.0, 1.0, 1.0))
        voxels = conform(scan, grid, antialias=False)
        other = 300.0 if "same" in request.members else 400.0
        members = [
            Thresholds("one", 300.0, voxels=voxels),
            Thresholds("two", other, voxels=voxels),
        ]
        return [Part(grid, members, [], warnings=("a note on the input",))]


@pytest.fixture
def thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    engine._model.cache_clear()
    monkeypatch.setattr(engine, "find_card", lambda name: CARD)
    monkeypatch.setattr(engine, "load_model", lambda card: ThresholdModel())


def scan(directions: str) -> Volume:
    """Two blobs, one bright: not symmetric, on an anisotropic and non-cubic grid."""
    grid = Geometry.from_spacing(
        (40, 52, 44), (1.2, 1.0, 1.6), (-20.0, 11.0, 5.0), DIRECTIONS[directions]
    )
    k, j, i = np.meshgrid(*[np.linspace(-1, 1, size) for size in grid.shape], indexing="ij")
    dim = 600 * np.exp(-8 * ((k + 0.3) ** 2 + (j + 0.3) ** 2 + (i - 0.4) ** 2))
    bright = 1000 * np.exp(-10 * ((k - 0.4) ** 2 + (j - 0.3) ** 2 + 2 * (i + 0.2) ** 2))
    return Volume((dim + bright).astype(np.float32), grid)


@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.usefixtures("thresholds")
def test_labels_lie_where_the_voxels_lie(directions: str) -> None:
    image = scan(directions)
    result = engine.segment(SegmentationRequest((image,), members=("same",)))
    assert result.labelmap.geometry is image.geometry
    expected = np.where(image.voxels > 700, 300, np.where(image.voxels > 300, 7, 0))
    for value in (7, 300):
        ours, truth = result.labelmap.voxels == value, expected == value
        dice = 2 * (ours & truth).sum() / (ours.sum() + truth.sum())
        assert dice > 0.93, value
    assert result.labelmap.voxels.dtype == np.uint16
    for measures in result.structures:
        count = int((result.labelmap.voxels == measures.label.value).sum())
        assert measures.voxels == count
        assert measures.volume_ml == pytest.approx(count * 1.2 * 1.0 * 1.6 / 1000)


@pytest.mark.usefixtures("thresholds")
def test_uncertainty_shows_where_members_disagree() -> None:
    image = scan("oblique")
    result = engine.segment(SegmentationRequest((image,), uncertainty=True))
    assert result.entropy is not None
    disputed = (image.voxels > 310) & (image.voxels < 390)
    settled = (image.voxels < 200) | (image.voxels > 800)
    assert result.entropy.voxels[disputed].mean() > 0.4
    assert result.entropy.voxels[settled].max() < 0.05
    dim, bright = result.structures
    assert bright.pairwise_dice == pytest.approx(1.0)
    assert bright.volume_cv == pytest.approx(0.0)
    assert dim.pairwise_dice is not None
    assert 0.5 < dim.pairwise_dice < 0.95
    assert dim.iou is not None
    assert dim.iou < dim.pairwise_dice


@pytest.mark.usefixtures("thresholds")
def test_probabilities_are_kept_when_asked_for_and_agree_with_the_labels() -> None:
    result = engine.segment(
        SegmentationRequest((scan("LPS"),), probabilities=True, members=("same",))
    )
    assert result.probabilities.shape == (2, *result.labelmap.geometry.shape)
    background = 1 - result.probabilities.astype(np.float32).sum(0)
    winner = np.concatenate([background[None], result.probabilities]).argmax(0)
    agreement = np.array([0, 7, 300])[winner] == result.labelmap.voxels
    assert agreement.mean() > 0.999


@pytest.mark.usefixtures("thresholds")
def test_the_report_names_everything_but_the_patient() -> None:
    image = Volume(scan("LPS").voxels, scan("LPS").geometry, source="/home/user/Jane Doe.nii.gz")
    report = engine.segment(SegmentationRequest((image,))).report()
    assert report["provenance"]["models"][0]["id"] == "thresholds"
    assert report["warnings"][0].startswith("a note on the input")
    assert set(report["seconds"]) == set(engine.STAGES)
    assert len(report["provenance"]["inputs"][0]["sha256"]) == 64
    assert "Jane" not in str(report)


@pytest.mark.usefixtures("thresholds")
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells")
def test_peak_memory_is_that_of_this_program_alone() -> None:
    """Not that of a large program which started it, such as Slicer."""
    asked = "from medsegai.system.machine import peak_memory_mb; keep = b'x' * (64 << 20); print(peak_memory_mb())"
    large = f"""
import subprocess, sys
keep = b"x" * (900 << 20)
print(subprocess.run([sys.executable, "-c", {asked!r}], capture_output=True, text=True, check=True).stdout)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(medsegai.__file__).parents[1])}
    found = subprocess.run(
        [sys.executable, "-c", large], capture_output=True, text=True, check=True, env=environment
    )
    assert 64 < float(found.stdout) < 800


@pytest.mark.usefixtures("thresholds")
def test_predictions_are_gone_before_the_labels_are_refined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are the largest arrays of a job, and refining and writing need memory of their own."""
    gc.collect()
    refine = ResultBuilder.refine
    left: list[object] = []

    def look_first(answer: ResultBuilder, *arguments: Any) -> list[dict[str, Any]]:
        left.extend(item for item in gc.get_objects() if type(item) in (Ensemble, Probabilities))
        return refine(answer, *arguments)

    monkeypatch.setattr(ResultBuilder, "refine", look_first)
    result = engine.segment(SegmentationRequest((scan("LPS"),), uncertainty=True))
    assert result.entropy is not None
    assert left == []


FREED = """
from pathlib import Path
from medsegai.networks.memory import keep_freed_memory, release_freed_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

keep_freed_memory()
before = resident_mb()
blocks = [bytearray(2**20) for _ in range(200)]
del blocks[:-1]  # the last one stands on top of the heap, which therefore keeps what lies below
kept = resident_mb() - before
release_freed_memory()
print(kept, resident_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone is told to keep freed memory")
def test_freed_memory_is_kept_until_it_is_released() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(medsegai.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", FREED], capture_output=True, text=True, check=True, env=environment
    )
    kept, left = map(float, done.stdout.split())
    assert kept > 190
    assert left < 20


@pytest.mark.usefixtures("thresholds")
def test_progress_rises_to_one_and_every_stage_can_be_stopped() -> None:
    events: list[ProgressEvent] = []
    engine.segment(SegmentationRequest((scan("LPS"),)), Progress(events.append))
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    for stage in engine.STAGES:
        cancel = Event()
        progress = Progress(
            lambda event, stage=stage, cancel=cancel: (
                cancel.set() if event.stage == stage else None
            ),
            cancel,
        )
        with pytest.raises(Cancelled):
            engine.segment(SegmentationRequest((scan("LPS"),)), progress)


@pytest.mark.usefixtures("thresholds")
def test_images_on_different_grids_are_refused() -> None:
    first, second = scan("LPS"), scan("oblique")
    with pytest.raises(GeometryError, match="does not lie on the grid"):
        engine.segment(SegmentationRequest((first, second)))


@pytest.mark.usefixtures("thresholds")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused(value: float) -> None:
    image = scan("LPS")
    image.voxels[3, 4, 5] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        engine.segment(SegmentationRequest((image,)))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the networks of these tests are kept as they were compiled, so that each is compiled once."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def tiny(tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MEDSEGAI_CACHE", str(compiled))
    engine._model.cache_clear()
    return str(tiny_quicknat.write_model(tmp_path / "tiny", slices=3).folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_network_that_does_not_answer_with_numbers_is_an_error(
    backend: str, value: float, tiny: str, tmp_path: Path
) -> None:
    """Voxels without a number are no background: the result was empty, and said to look at the image."""
    card = json.loads((Path(tiny) / "card.json").read_text())
    for member in card["members"]:
        path = Path(tiny) / member["weights"]
        weights = load_file(path)
        weights["classifier.conv.bias"][1] = value
        save_file(weights, path)
        member["sha256"] = file_sha256(path)
    (Path(tiny) / "card.json").write_text(json.dumps(card))
    request = SegmentationRequest((scan("oblique"),), (tiny,), backend=backend, precision="fp32")
    with pytest.raises(ModelError, match="predicted values that are not numbers"):
        engine.segment(request)


def labels_of(model: str, **options: object) -> np.ndarray:
    request = SegmentationRequest(
        (scan("oblique"),), (model,), backend="torch", precision="fp32", **options
    )
    return engine.segment(request).labelmap.voxels


def test_views_can_be_chosen_and_change_the_answer(tiny: str) -> None:
    every, axial = labels_of(tiny), labels_of(tiny, members=("axial",))
    assert not np.array_equal(every, axial)
    assert np.array_equal(every, labels_of(tiny, members=("axial", "coronal", "sagittal")))
    with pytest.raises(ModelError, match="it has axial, coronal, sagittal"):
        labels_of(tiny, members=("frontal",))
    with pytest.raises(RequestError, match="cannot tell left from right"):
        labels_of(tiny, members=("sagittal",))


def test_a_model_beside_the_working_directory_is_found(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    beside = labels_of("./tiny", members=("axial",))
    monkeypatch.chdir("/")
    assert np.array_equal(beside, labels_of(tiny, members=("axial",)))


def test_dropout_depends_on_the_seed_and_on_nothing_else(tiny: str) -> None:
    torch.manual_seed(1)
    first = labels_of(tiny, dropout_passes=2, seed=5)
    torch.manual_seed(2)
    assert np.array_equal(first, labels_of(tiny, dropout_passes=2, seed=5))
    assert not np.array_equal(first, labels_of(tiny, dropout_passes=2, seed=6))


def test_weights_that_are_not_the_cards_are_refused(tiny: str) -> None:
    weights = Path(tiny) / "coronal.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(ModelError, match=r"coronal\.safetensors.*SHA-256"):
        labels_of(tiny)


def test_models_are_joined_by_the_names_of_their_structures(tiny: str, tmp_path: Path) -> None:
    """The same value for another structure gets another value, and takes nothing from the first model."""
    other = tiny_quicknat.write_model(tmp_path / "other")
    text = (other.folder / "card.json").read_text().replace("Left part", "Liver")
    (other.folder / "card.json").write_text(text)
    request = SegmentationRequest((scan("LPS"),), (tiny,), backend="torch", precision="fp32")
    first = engine.segment(request)
    joint = engine.segment(replace(request, models=(tiny, str(other.folder))))
    names = {label.name: label.value for label in joint.labels}
    assert {label.name: label.value for label in first.labels}.items() <= names.items()
    assert names["Liver"] not in {label.value for label in first.labels}


def test_a_region_has_the_labels_of_the_whole_and_nothing_lies_outside(tiny: str) -> None:
    image = scan("oblique")
    whole = engine.segment(SegmentationRequest((image,), (tiny,))).labelmap.voxels
    corners = image.geometry.ijk_to_ras @ np.array([[10, 12, 9, 1], [20, 25, 22, 1]]).T
    low, high = corners[:3].min(1), corners[:3].max(1)
    region = tuple(float(value) for pair in zip(low, high, strict=True) for value in pair)
    part = engine.segment(SegmentationRequest((image,), (tiny,), region=region)).labelmap
    box = image.geometry.box_around(region)
    assert box is not None
    assert part.geometry is image.geometry
    np.testing.assert_array_equal(part.voxels[box], whole[box])
    assert part.voxels.any()
    outside = part.voxels.copy()
    outside[box] = 0
    assert not outside.any()


def test_intracranial_volume_is_given_where_the_card_says_what_fills_the_skull(
    tiny: str, tmp_path: Path
) -> None:
    """Not in a region, nor of joined models, where it would be a part or twice."""
    path = Path(tiny) / "card.json"
    card = json.loads(path.read_text())
    request = SegmentationRequest((scan("LPS"),), (tiny,), backend="torch", precision="fp32")
    assert engine.segment(request).intracranial_ml is None
    values = [label["value"] for label in card["labels"]]
    path.write_text(json.dumps(card | {"intracranial": values}))
    found = engine.segment(request)
    ml = np.count_nonzero(found.labelmap.voxels) * found.labelmap.geometry.voxel_volume_ml
    assert found.intracranial_ml == pytest.approx(ml)
    assert found.report()["intracranial_ml"] == found.intracranial_ml
    inside = found.labelmap.voxels[1:-1, 1:-1, 1:-1]
    cut = np.count_nonzero(inside) < np.count_nonzero(found.labelmap.voxels)
    said = [words for words in found.warnings if "The intracranial volume touches" in words]
    assert len(said) == cut
    centre = (found.labelmap.geometry.ijk_to_ras @ [16, 16, 12, 1])[:3]
    region = tuple(float(part + side) for part in centre for side in (-10, 10))
    assert engine.segment(replace(request, region=region)).intracranial_ml is None
    assert engine.segment(replace(request, models=(tiny, tiny))).intracranial_ml is None


def test_a_region_beside_the_image_is_refused(tiny: str) -> None:
    request = SegmentationRequest((scan("LPS"),), (tiny,), region=(900, 910, 900, 910, 900, 910))
    with pytest.raises(RequestError, match="outside"):
        engine.segment(request)


def test_two_models_are_joined(tiny: str, tmp_path: Path) -> None:
    other = str(tiny_quicknat.write_model(tmp_path / "other", grid=64, spacing_mm=1.5).folder)
    request = SegmentationRequest(
        (scan("LPS"),), (tiny, other), backend="torch", precision="fp32", probabilities=True
    )
    joint = engine.segment(request)
    single = [
        engine.segment(
            SegmentationRequest(
                (scan("LPS"),), (name,), backend="torch", precision="fp32", probabilities=True
            )
        )
        for name in (tiny, other)
    ]
    mean = (single[0].probabilities.astype(np.float32) + single[1].probabilities) / 2
    np.testing.assert_allclose(joint.probabilities, mean, atol=3e-3)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_slabs_lie_along_native_planes(directions: str) -> None:
    """Of the three ways to cut the output, the one whose slabs need the fewest native planes."""
    native = Geometry.from_spacing((40, 50, 60), (1.5, 1.5, 1.5), (0, 0, 0), DIRECTIONS["LIA"])
    output = Geometry.from_spacing((50, 60, 40), (1.2, 1.0, 1.6), (5, 5, 5), DIRECTIONS[directions])

    def needed(axes: tuple[int, int, int]) -> float:
        first, last = planes_needed(native, Slab(output.permuted(axes), 0, 1))
        return last - first

    chosen = engine._slab_axes(native, output)
    assert sorted(chosen) == [0, 1, 2]
    assert needed(chosen) == min(needed(axes) for axes in ((0, 1, 2), (1, 0, 2), (2, 0, 1)))
