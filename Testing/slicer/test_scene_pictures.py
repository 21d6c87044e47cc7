"""Radiographs and pictures in colours in the scene, on real MRML: in, through networks, and back on their grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import torch
from safetensors.torch import save_file
from slicer.util import arrayFromVolume, updateVolumeFromArray, vtkMatrixFromArray

import patch_models
from medsegai.commands.drawn_tissue import drawn_tissue
from medsegai.engine import segment
from medsegai.errors import InputError, MismatchError
from medsegai.io import write_card
from medsegai.labels import Label
from medsegai.models.card import Channel, MemberCard, ModelCard, file_sha256
from medsegai.networks.unet2d import UNet2D, UNet2DConfig
from medsegai.refinements import parse
from medsegai.request import SegmentationRequest, SegmentationResult
from MedSegAILib.scene import Scene, segment_id
from MedSegAILib.scene.attachments import HEAT_REFERENCE, OBJECTS_REFERENCE
from MedSegAILib.scene.inputs import grid_of
from MedSegAILib.uncertain_regions import HEAT, UNCERTAINTY, step_in_words
from scene_images import MOVED, PLACES, add_transform, segment_voxels, world_of

SIDES = (40, 56)
FOUND = Label(1, "Found", (220, 60, 60))


@pytest.fixture(scope="module")
def grey_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for grey images as it is before training: it finds something, and that is enough here."""
    folder = tmp_path_factory.mktemp("untrained")
    config = UNet2DConfig("plain", "unet", 1, 2, (4, 4, 4, 4, 4))
    torch.manual_seed(3)
    network = UNet2D(config).eval()
    with torch.no_grad():
        background, found = network(torch.rand(1, 1, 64, 64))[0]
        network.segmentation_head[0].bias[1] += (background - found).median()
    save_file(network.state_dict(), folder / "net.safetensors")
    sha256 = file_sha256(folder / "net.safetensors")
    card = ModelCard(
        id="untrained",
        name="Untrained",
        family="unet2d",
        version="1",
        channels=(Channel("grey", "DX"),),
        labels=(FOUND,),
        members=(MemberCard("net", "net.safetensors", sha256, classes=((), (1,))),),
        spacing_mm=(1.0, 1.0, 1.0),
        settings=config.settings() | {"patch": [64, 64]},
        dimensions=2,
    )
    write_card(card, folder)
    return folder


def picture_node(mrml: Any, pixels: np.ndarray, place: str = "LPS", moved: str = "turned") -> Any:
    """As Slicer loads a picture: one slice, of scalars or of vectors."""
    kind = "Vector" if pixels.ndim == 3 else "Scalar"
    node = mrml.AddNewNodeByClass(f"vtkMRML{kind}VolumeNode", "Film")
    updateVolumeFromArray(node, pixels[None])
    node.SetIJKToRASMatrix(vtkMatrixFromArray(PLACES[place]))
    if MOVED[moved] is not None:
        node.SetAndObserveTransformNodeID(add_transform(mrml, MOVED[moved]).GetID())
    return node


def run(scene: Scene, node: Any, model: str, **options: Any) -> SegmentationResult:
    request = SegmentationRequest(
        scene.read_channels([node]), (model,), device="cpu", mirroring=False, **options
    )
    return segment(request)


def check_place(scene: Scene, node: Any, result: SegmentationResult, label: Label) -> Any:
    """Put a result into the scene; each voxel of a segment lies where the volume has it."""
    written = scene.write(node, result)
    expected = np.argwhere(result.labelmap.voxels == label.value)[:, ::-1]
    assert 0 < len(expected) < result.labelmap.voxels.size
    ijk, world = segment_voxels(written, label)
    assert {tuple(voxel) for voxel in ijk} == {tuple(voxel) for voxel in expected}
    some = slice(None, None, max(len(ijk) // 50, 1))
    wanted = [world_of(node, *voxel) for voxel in ijk[some]]
    np.testing.assert_allclose(world[some], wanted, atol=1e-6)
    return written


@pytest.mark.parametrize("place", ["LPS", "oblique and swapped"])
def test_a_radiograph_is_a_volume_of_one_slice(mrml: Any, grey_model: Path, place: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, SIDES).astype(np.int16)
    scene, node = Scene(mrml), picture_node(mrml, pixels, place)
    result = run(scene, node, str(grey_model), uncertainty=True)
    written = check_place(scene, node, result, FOUND)
    assert scene.overlays(written)
    assert written.GetSegmentation().GetSegment(segment_id(FOUND)).GetName() == "Found"
    assert scene.reference_volume(written) is node
    assert result.entropy is not None


@pytest.mark.parametrize("transparency", [False, True])
def test_a_picture_in_colours_is_a_volume_of_vectors(mrml: Any, transparency: bool) -> None:
    """The bundled model of nuclei; what is transparent is seen as it is."""
    pixels, _ = drawn_tissue()
    pixels = pixels[:96, :128]
    if transparency:
        pixels = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    scene, node = Scene(mrml), picture_node(mrml, pixels)
    result = run(scene, node, "nuclei")
    written = check_place(scene, node, result, result.labels[0])
    nuclei = written.GetNodeReference(OBJECTS_REFERENCE).GetSegmentation()
    assert nuclei.GetNumberOfSegments() == len(result.object_rows) > 5
    assert not grid_of(node).difference(scene.read_channels([node])[0].geometry)


def test_grey_and_colours_serve_each_other_as_in_files(mrml: Any, grey_model: Path) -> None:
    scene = Scene(mrml)
    colours, _ = drawn_tissue()
    colours = colours[:64, :64]
    in_colours = picture_node(mrml, colours)
    with pytest.raises(MismatchError, match="in colour, but the model takes grey"):
        run(scene, in_colours, str(grey_model))
    assert run(scene, in_colours, str(grey_model), anyway=True).labelmap.voxels.shape[0] == 1
    result = run(scene, picture_node(mrml, colours[..., 0]), "nuclei")
    assert any(
        "is grey, but the model was made for colour images" in each for each in result.warnings
    )


def test_vectors_that_are_not_colours_are_refused(mrml: Any) -> None:
    node = picture_node(mrml, np.zeros((4, 5, 2), np.float32))
    with pytest.raises(InputError, match="2 values per voxel"):
        Scene(mrml).read_channels([node])
    with pytest.raises(InputError, match="2 values per voxel"):
        grid_of(node)


def test_a_region_is_drawn_in_a_picture_in_colours(mrml: Any) -> None:
    scene, node = (
        Scene(mrml),
        picture_node(mrml, np.zeros((*SIDES, 3), np.uint8), moved="no transform"),
    )
    low_r, high_r, low_a, high_a, low_s, high_s = scene.region(scene.new_region(node))
    across, along, _ = grid_of(node).spacing_mm
    assert low_s < grid_of(node).ijk_to_ras[2, 3] < high_s, "the slice lies in it"
    assert high_r - low_r == pytest.approx(across * (SIDES[1] - 1) / 2)
    assert high_a - low_a == pytest.approx(along * (SIDES[0] - 1) / 2)


def test_segments_of_a_picture_in_colours_can_be_refined(mrml: Any) -> None:
    scene, node = Scene(mrml), picture_node(mrml, drawn_tissue()[0][:96, :128])
    written = scene.write(node, run(scene, node, "nuclei"))
    draft = scene.draft(written, [parse("islands")], (), node)
    assert draft.request.image is None, "which has no single grey value"


TUMOUR = (128, 128, 448, 448)
"""Box (top, left, bottom, right) in pixels of a micrometre."""


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patch_models.trained(tmp_path_factory.mktemp("patches"))


def test_a_classifier_brings_a_heat_map_and_suspicious_places(mrml: Any, classifier: Path) -> None:
    """A part of a slide: tumour is found as a segment, on the map, and by the next step."""
    side = 768
    pixels = patch_models.slide_pixels(side, (0, 0, side, side), TUMOUR)
    node = picture_node(mrml, pixels, moved="shifted")
    node.SetIJKToRASMatrix(vtkMatrixFromArray(np.diag([-0.001, -0.001, 0.001, 1])))
    scene = Scene(mrml)
    result = run(scene, node, str(classifier), candidates=True)
    written = check_place(scene, node, result, result.labels[0])
    heat = written.GetNodeReference(HEAT_REFERENCE)
    assert heat.GetName() == "Film heat map"
    assert not heat.GetHideFromEditors(), "to be laid over the picture"
    values = arrayFromVolume(heat)[0]
    inside = np.zeros((side, side), bool)
    inside[TUMOUR[0] : TUMOUR[2], TUMOUR[1] : TUMOUR[3]] = True
    assert values.min() >= 0
    assert values.max() <= 1
    assert values[inside].mean() > values[~inside].mean() + 0.3
    found = result.labelmap.voxels[0] > 0
    assert values[found].min() >= 0.49, "the segments are what is probable"
    np.testing.assert_allclose(world_of(heat, 7, 5, 0), world_of(node, 7, 5, 0))
    display = heat.GetDisplayNode()
    assert display.GetColorNode().GetName() == "MedSegAI uncertainty"
    assert display.GetApplyThreshold()
    assert scene.overlays(written) == (HEAT,), "doubt was not asked for"
    view = slicer.vtkMRMLSliceCompositeNode()
    view.SetLayoutName("Red")
    mrml.AddNode(view)
    scene.show_overlay(written, HEAT)
    assert view.GetForegroundVolumeID() == heat.GetID()
    with pytest.raises(InputError, match="was not measured"):
        scene.show_overlay(written, UNCERTAINTY)
    step = scene.next_place(written)
    assert step.place.suspicious
    assert step_in_words(step).startswith(f"Suspicious place 1 of {step.count}: tumor")
    i, j, _k = step.place.voxel
    assert inside[j, i]
    scores = [place.score for place in scene.uncertain_regions(written)]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) > 1


def test_other_models_have_no_heat_map(mrml: Any, grey_model: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, SIDES).astype(np.int16)
    scene, node = Scene(mrml), picture_node(mrml, pixels)
    written = scene.write(node, run(scene, node, str(grey_model), candidates=True))
    assert written.GetNodeReference(HEAT_REFERENCE) is None
    assert not scene.overlays(written)
