"""nnU-Net models as users run them: channels, regions, post-processing, other models, and no nnunetv2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import slicerio
import torch

import tiny_quicknat
from medsegai import cli, engine
from medsegai.families._sliding import logits_by_planes, window
from medsegai.io import read_volume
from medsegai.models.refinement import Refinement
from medsegai.refinements import Draft, Refined, apply_refinement
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume
from nnunet_models import Made, make_model
from test_nnunet_parity import COARSE, REGIONS, made_image

TWO = Made(channels=("T1", "T2"), spacing=COARSE)


@pytest.fixture
def two_channels(tmp_path: Path) -> tuple[str, Path, Path]:
    results = make_model(tmp_path, TWO) / TWO.results_name("3d_fullres")
    first, second = (
        made_image(tmp_path / f"case_000{number}.nii.gz", seed=number) for number in range(2)
    )
    return str(results), first, second


def segmented(*arguments: object) -> int:
    return cli.main(["segment", *map(str, arguments), "--quiet", "--backend", "torch"])


def test_nothing_of_nnunet_is_imported(tmp_path: Path) -> None:
    """The command line on a model folder, in a process that has neither nnunetv2 nor what it brings."""
    made = Made(spacing=COARSE)
    results = make_model(tmp_path, made) / made.results_name("3d_fullres")
    image, out = made_image(tmp_path / "case_0000.nii.gz"), tmp_path / "out.seg.nrrd"
    absent = (
        "nnunetv2",
        "dynamic_network_architectures",
        "batchgenerators",
        "acvl_utils",
        "timm",
        "skimage",
    )
    code = (
        "import sys\n"
        f"for name in {absent!r}: sys.modules[name] = None\n"
        "from medsegai.cli import main\n"
        f"sys.exit(main({['segment', str(image), '-o', str(out), '--model', str(results), '-q']!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    names = [segment["name"] for segment in slicerio.read_segmentation(str(out))["segments"]]
    assert names == ["anterior", "posterior"]


def test_channels_may_be_named_in_any_order(
    two_channels: tuple[str, Path, Path], tmp_path: Path
) -> None:
    model, first, second = two_channels
    plain, named, swapped = (tmp_path / f"{name}.nii.gz" for name in ("plain", "named", "swapped"))
    assert segmented(first, second, "-o", plain, "--model", model) == 0
    assert segmented(f"T2={second}", f"t1={first}", "-o", named, "--model", model) == 0
    assert segmented(f"T1={second}", f"T2={first}", "-o", swapped, "--model", model) == 0
    labels = [read_volume(path).voxels for path in (plain, named, swapped)]
    assert (labels[0] == labels[1]).all()
    assert (labels[0] != labels[2]).any()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["{first}"], "takes 2 images"),
        (["{first}", "{second}", "{first}"], "takes 2 images"),
        (["{first}", "{first}"], "given for two channels"),
        (["T1={first}", "T1={second}"], "given twice"),
        (["T1={first}", "FLAIR={second}"], "not have the channel 'FLAIR'"),
        (["T1={first}", "{second}"], "Name every channel"),
        (["{first}", "{shifted}"], "does not lie on the grid"),
    ],
)
def test_channels_that_do_not_fit_are_refused(
    inputs: list[str],
    message: str,
    two_channels: tuple[str, Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, first, second = two_channels
    image = sitk.ReadImage(str(second))
    image.SetOrigin((50, 0, 0))
    sitk.WriteImage(image, str(tmp_path / "shifted.nii.gz"))
    files = {"first": first, "second": second, "shifted": tmp_path / "shifted.nii.gz"}
    out = tmp_path / "out.nii.gz"
    given = [item.format(**files) for item in inputs]
    assert segmented(*given, "-o", out, "--model", model) != 0
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_regions_can_be_written_as_segments_that_overlap(tmp_path: Path) -> None:
    made = Made(labels=REGIONS, regions_class_order=(1, 2, 3), spacing=COARSE)
    results = make_model(tmp_path, made) / made.results_name("3d_fullres")
    image, out = made_image(tmp_path / "case_0000.nii.gz"), tmp_path / "out.seg.nrrd"
    options = {"backend": "torch", "precision": "fp32", "probabilities": True}
    request = SegmentationRequest((image,), (str(results),), overlap=True, **options)
    expected = engine.segment(request).probabilities.astype(np.float32)
    assert segmented(image, "-o", out, "--model", results, "--overlap", "--precision", "fp32") == 0
    written = slicerio.read_segmentation(str(out))
    assert [segment["name"] for segment in written["segments"]] == ["whole", "core", "enhancing"]
    sure = np.abs(expected - 0.5) > 1e-3
    overlapping = 0
    for segment, probability, where in zip(written["segments"], expected, sure, strict=True):
        mask = (written["voxels"][segment["layer"]] == segment["labelValue"]).T
        np.testing.assert_array_equal(mask[where], (probability > 0.5)[where])
        overlapping = overlapping + mask.astype(int)
    assert np.max(overlapping) == 3


def largest_components(labelmap: Volume, **options: Any) -> Refined:
    return apply_refinement(Draft(labelmap), Refinement("largest_component", options))


def test_the_models_post_processing_is_that_of_nnunet(tmp_path: Path) -> None:
    from nnunetv2.postprocessing.remove_connected_components import (
        remove_all_but_largest_component_from_segmentation,
    )

    voxels = np.random.default_rng(0).integers(0, 4, (9, 11, 13)) * (
        np.random.default_rng(1).random((9, 11, 13)) > 0.6
    )
    labels = Volume(voxels.astype(np.uint8), Geometry.from_spacing(voxels.shape, (1, 1, 1)))
    for groups in ([[1, 2, 3]], [[1], [3]], [[2, 3], [1]]):
        expected = voxels
        for group in groups:
            expected = remove_all_but_largest_component_from_segmentation(expected, group)
        refined = largest_components(labels, labels=groups)
        np.testing.assert_array_equal(refined.labels, expected)
        (words,) = refined.words("largest_component")
        assert f"{(refined.labels != voxels).sum()} voxels" in words
    each = largest_components(labels).labels
    alone = largest_components(labels, labels=[[1], [2], [3]]).labels
    np.testing.assert_array_equal(each, alone)


def test_post_processing_is_applied_unless_it_is_switched_off(tmp_path: Path) -> None:
    made = Made(spacing=COARSE)
    results = make_model(tmp_path, made) / made.results_name("3d_fullres")
    folder = results / "crossval_results_folds_0"
    folder.mkdir()
    step = {
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"],
        "postprocessing_kwargs": [{"labels_or_regions": [1, 2]}],
    }
    (folder / "postprocessing.json").write_text(json.dumps(step))
    image = made_image(tmp_path / "case_0000.nii.gz")
    raw, clean = (
        engine.segment(
            SegmentationRequest((image,), (str(results),), backend="torch", refine=on)
        ).labelmap.voxels
        for on in (False, True)
    )
    expected = largest_components(read_volume(image).with_voxels(raw), labels=[[1, 2]]).labels
    np.testing.assert_array_equal(clean, expected)


@pytest.mark.parametrize("fusion", ["mean", "vote"])
def test_an_nnunet_and_a_quicknat_are_joined_by_the_names_of_structures(
    fusion: str, tmp_path: Path
) -> None:
    brain = tiny_quicknat.write_model(tmp_path / "tiny", grid=64, spacing_mm=1.5)
    shared = brain.labels[0].name
    made = Made(labels={"background": 0, "lesion": 1, shared: 2}, spacing=COARSE)
    results = make_model(tmp_path, made) / made.results_name("3d_fullres")
    image = made_image(tmp_path / "case_0000.nii.gz")
    models = (str(brain.folder), str(results))
    request = SegmentationRequest((image,), models, backend="torch", fusion=fusion)
    result = engine.segment(request)
    names = [label.name for label in result.labels]
    assert names == [*(label.name for label in brain.labels), "lesion"]
    values = {label.name: label.value for label in result.labels}
    assert values[shared] == brain.labels[0].value
    assert np.isin(np.unique(result.labelmap.voxels), [0, *values.values()]).all()


def test_a_gpu_without_memory_hands_the_sum_of_tiles_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No GPU here: torch is told to fail the first time, and the window to believe it lies on a GPU."""
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 20, 18, 14))).float()
    at = window(image, (8, 8, 8), 0.5, (slice(0, 20), slice(0, 18), slice(0, 14)))

    def logits() -> tuple[torch.Tensor, list[str]]:
        notes: list[str] = []
        networks = [(lambda patch: torch.cat([patch, -patch], 1), 1.0)]
        return torch.cat(list(logits_by_planes(at, networks, 0, 2, notes)), 1), notes

    expected, notes = logits()
    assert notes == []
    torch.testing.assert_close(expected[:1], image, atol=1e-5, rtol=1e-5)
    zeros, failures = torch.zeros, []

    def fail_once(*arguments, **options):
        if not failures:
            failures.append(1)
            raise torch.OutOfMemoryError("no memory")
        return zeros(*arguments, **options)

    monkeypatch.setattr(torch, "zeros", fail_once)
    found, notes = logits()
    assert torch.equal(found, expected)
    assert len(notes) == 1
    assert "CPU" in notes[0]
