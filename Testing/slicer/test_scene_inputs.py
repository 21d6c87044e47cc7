"""Nodes in, volumes and boxes out, on real MRML (slicer-core): every place in the world is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from slicer.util import (
    arrayFromVolume,
    arrayFromVTKMatrix,
    updateVolumeFromArray,
    vtkMatrixFromArray,
)

from medsegai.errors import GeometryError, InputError
from medsegai.models.card import Channel, MemberCard, ModelCard
from medsegai.request import SegmentationRequest
from MedSegAILib.scene import (
    Scene,
)
from scene_images import (
    LEFT,
    MOVED,
    PLACES,
    SHAPE,
    TURNED,
    add_transform,
    add_volume,
    bending_transform,
    world_of,
)
from stand_ins import put_object


@pytest.mark.parametrize("moved", MOVED.values(), ids=MOVED)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_every_voxel_is_read_where_slicer_shows_it(
    mrml: Any, place: np.ndarray, moved: np.ndarray | None
) -> None:
    node = add_volume(mrml, place, moved)
    volume = Scene(mrml).read(node)
    assert volume.voxels.shape == SHAPE
    assert volume.source == "Head"
    for i, j, k in [(0, 0, 0), (13, 10, 8), (5, 3, 7)]:
        world = volume.geometry.ijk_to_ras @ [i, j, k, 1]
        np.testing.assert_allclose(world[:3], world_of(node, i, j, k), atol=1e-9)
        value = node.GetImageData().GetScalarComponentAsDouble(i, j, k, 0)
        assert volume.voxels[k, j, i] == value


def test_nested_transforms_are_applied_in_order(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["oblique"], MOVED["turned"])
    outer = add_transform(mrml, MOVED["shifted"])
    node.GetParentTransformNode().SetAndObserveTransformNodeID(outer.GetID())
    volume = Scene(mrml).read(node)
    world = volume.geometry.ijk_to_ras @ [5, 3, 7, 1]
    np.testing.assert_allclose(world[:3], world_of(node, 5, 3, 7), atol=1e-9)


def test_reading_neither_copies_nor_changes_the_node(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["oblique"], MOVED["turned"])
    before = arrayFromVTKMatrix(_matrix(node))
    volume = Scene(mrml).read(node)
    assert np.shares_memory(volume.voxels, arrayFromVolume(node))
    np.testing.assert_array_equal(arrayFromVTKMatrix(_matrix(node)), before)


def _matrix(node: Any) -> Any:
    out = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(out)
    return out


def test_a_bending_transform_is_refused_with_the_way_out(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["plain"])
    node.SetAndObserveTransformNodeID(bending_transform(mrml).GetID())
    with pytest.raises(GeometryError, match=r"Head .*\(Warp\).*Harden"):
        Scene(mrml).read(node)


def test_a_bending_transform_further_up_is_refused_as_well(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["plain"], MOVED["turned"])
    node.GetParentTransformNode().SetAndObserveTransformNodeID(bending_transform(mrml).GetID())
    with pytest.raises(GeometryError, match="is not linear"):
        Scene(mrml).read(node)


def test_a_transform_that_shears_is_refused(mrml: Any) -> None:
    shear = np.eye(4)
    shear[0, 1] = 0.3
    with pytest.raises(GeometryError, match="right angles"):
        Scene(mrml).read(add_volume(mrml, PLACES["plain"], shear))


def test_no_volume_is_refused(mrml: Any) -> None:
    with pytest.raises(InputError, match="no input volume"):
        Scene(mrml).read(None)


def test_a_volume_without_image_is_refused(mrml: Any) -> None:
    node = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Hollow")
    with pytest.raises(InputError, match="Hollow does not contain an image"):
        Scene(mrml).read(node)


@pytest.mark.parametrize(
    ("kind", "shape", "reason"),
    [
        ("vtkMRMLModelNode", None, "is not a volume"),
        ("vtkMRMLLabelMapVolumeNode", SHAPE, "label map"),
        ("vtkMRMLVectorVolumeNode", (*SHAPE, 3), "3 values per voxel"),
    ],
)
def test_what_is_no_scalar_image_is_refused(
    mrml: Any, kind: str, shape: tuple[int, ...] | None, reason: str
) -> None:
    node = mrml.AddNewNodeByClass(kind, "Thing")
    if shape is not None:
        updateVolumeFromArray(node, np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match=f"Thing .*{reason}"):
        Scene(mrml).read(node)


def test_what_can_be_an_input_is_offered(mrml: Any) -> None:
    scene = Scene(mrml)
    first, second = add_volume(mrml, PLACES["plain"]), add_volume(mrml, PLACES["plain"])
    for kind in ("vtkMRMLLabelMapVolumeNode", "vtkMRMLVectorVolumeNode", "vtkMRMLModelNode"):
        mrml.AddNewNodeByClass(kind, "Thing")
    hidden = add_volume(mrml, PLACES["plain"])
    hidden.HideFromEditorsOn()
    assert scene.volumes() == [first, second]
    assert scene.is_present(first)
    mrml.RemoveNode(first)
    assert scene.volumes() == [second]
    assert not scene.is_present(first)
    assert not scene.is_present(None)


# --- several channels ------------------------------------------------------------------------------


def test_channels_on_one_grid_are_read_in_their_order(mrml: Any) -> None:
    first = add_volume(mrml, PLACES["oblique"], MOVED["turned"])
    second = add_volume(mrml, PLACES["oblique"])
    second.SetName("Second")
    second.SetAndObserveTransformNodeID(first.GetTransformNodeID())
    volumes = Scene(mrml).read_channels([second, first])
    assert [volume.source for volume in volumes] == ["Second", "Head"]
    np.testing.assert_array_equal(volumes[0].geometry.ijk_to_ras, volumes[1].geometry.ijk_to_ras)


def test_channels_may_stand_under_transforms_that_bring_them_together(mrml: Any) -> None:
    """Registered: one volume lies elsewhere, and the transform above it puts it onto the other."""
    moved = MOVED["turned"]
    assert moved is not None
    first = add_volume(mrml, moved @ PLACES["oblique"])
    second = add_volume(mrml, PLACES["oblique"], moved)
    volumes = Scene(mrml).read_channels([first, second])
    assert volumes[0].geometry.matches(volumes[1].geometry)


@pytest.mark.parametrize("moved", ["shifted", "turned"])
def test_channels_on_two_grids_are_refused_by_name(mrml: Any, moved: str) -> None:
    first = add_volume(mrml, PLACES["oblique"])
    second = add_volume(mrml, PLACES["oblique"], MOVED[moved])
    second.SetName("FLAIR")
    with pytest.raises(
        GeometryError, match=r"FLAIR \(.*grid of Head \(.* mm apart.*Resample FLAIR onto Head"
    ):
        Scene(mrml).read_channels([first, second])


def test_channels_of_two_sizes_are_refused(mrml: Any) -> None:
    first, second = add_volume(mrml, PLACES["plain"]), add_volume(mrml, PLACES["plain"])
    second.SetName("FLAIR")
    updateVolumeFromArray(second, np.zeros((2, 3, 4), np.int16))
    with pytest.raises(GeometryError, match=r"FLAIR .4 x 3 x 2 voxels .*14 x 11 x 9 voxels"):
        Scene(mrml).read_channels([first, second])


@pytest.mark.parametrize("moved", MOVED.values(), ids=MOVED)
def test_a_picture_in_colours_is_three_channels(mrml: Any, moved: np.ndarray | None) -> None:
    """As Slicer loads a photograph: a vector volume of one slice."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 9, 12, 3), np.uint8)
    node = mrml.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Tile")
    node.SetIJKToRASMatrix(vtkMatrixFromArray(np.diag([-1.0, -1, 1, 1])))
    updateVolumeFromArray(node, pixels)
    if moved is not None:
        node.SetAndObserveTransformNodeID(add_transform(mrml, moved).GetID())
    channels = Scene(mrml).read_channels([node])
    np.testing.assert_array_equal(np.stack([c.voxels for c in channels], axis=-1), pixels)
    for channel in channels:
        world = channel.geometry.ijk_to_ras @ [7, 4, 0, 1]
        np.testing.assert_allclose(world[:3], world_of(node, 7, 4, 0), atol=1e-9)
    assert [channel.source for channel in channels] == ["Tile"] * 3


def test_one_volume_for_two_channels_is_refused(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["plain"])
    with pytest.raises(InputError, match="Head is chosen for two channels"):
        Scene(mrml).read_channels([node, node])


def test_a_channel_without_volume_is_refused(mrml: Any) -> None:
    with pytest.raises(InputError, match="no input volume"):
        Scene(mrml).read_channels([add_volume(mrml, PLACES["plain"]), None])
    with pytest.raises(InputError, match="no input volume"):
        Scene(mrml).read_channels([])


def card(*channels: tuple[str, str]) -> ModelCard:
    return ModelCard(
        "model",
        "Model",
        "quicknat",
        "1",
        tuple(Channel(name, modality) for name, modality in channels),
        (LEFT,),
        (MemberCard("only"),),
        (1.0, 1.0, 1.0),
    )


BRATS = card(("T1", "MR"), ("T1ce", "MR"), ("T2", "MR"), ("FLAIR", "MR"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("BraTS_001_t1", "BraTS_001_t1ce", "BraTS_001_t2", "BraTS_001_flair"), (0, 1, 2, 3)),
        (("5: AX T2 FLAIR", "3: AX T1", "7: AX T1 POST GD", "4: AX T2 TSE"), (1, 2, 3, 0)),
        (("t2w", "T1w MPRAGE", "t2_flair", "t1_gd"), (1, 3, 0, 2)),
        (("Sag T1 +C", "T1", "T2", "FLAIR"), (1, 0, 2, 3)),
        (("T1 C-spine", "T1+C C-spine", "t2w", "t2f"), (0, 1, 2, 3)),
        (("case-t1n", "case-t1c", "case-t2w", "case-t2f"), (0, 1, 2, 3)),
        (("scan a", "scan b", "scan c", "scan d"), (None, None, None, None)),
        (("T1 first", "T1 second", "T2", "FLAIR"), (None, None, 2, 3)),
        (("FLAIR",), (None, None, None, 0)),
        ((), (None, None, None, None)),
    ],
)
def test_channels_are_guessed_from_names_and_never_at_random(
    mrml: Any, names: tuple[str, ...], expected: tuple[int | None, ...]
) -> None:
    nodes = [mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name) for name in names]
    guess = Scene(mrml).guess_channels(BRATS, nodes)
    assert list(guess) == ["T1", "T1ce", "T2", "FLAIR"]
    found = [nodes.index(node) if node is not None else None for node in guess.values()]
    assert found == list(expected)


def test_channels_are_guessed_from_dicom_tags(mrml: Any) -> None:
    """On the node, or on its item in the tree of subjects, where Slicer's DICOM module puts them."""
    tree = slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(mrml)
    nodes = [mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", str(n)) for n in range(4)]
    texts = ("ep2d_diff ADC", "t1_mprage_sag", "t2_space_dark-fluid flair", "t2_tse_tra")
    for node, text in zip(nodes[:2], texts[:2], strict=True):
        node.SetAttribute("DICOM.SeriesDescription", text)
    for node, text in zip(nodes[2:], texts[2:], strict=True):
        item = tree.CreateItem(tree.GetSceneItemID(), node)
        tree.SetItemAttribute(item, "DICOM.SeriesDescription", text)
    guess = Scene(mrml).guess_channels(BRATS, nodes)
    assert [guess["T1"], guess["T2"], guess["FLAIR"]] == [nodes[1], nodes[3], nodes[2]]
    assert guess["T1ce"] is None


@pytest.mark.parametrize(
    ("modality", "tag", "taken"),
    [("MR", "MR", True), ("MR", None, True), ("MR", "CT", False), ("CT", "MR", False)],
)
def test_the_only_volume_is_taken_unless_its_modality_is_another(
    mrml: Any, modality: str, tag: str | None, taken: bool
) -> None:
    node = add_volume(mrml, PLACES["plain"])
    if tag is not None:
        node.SetAttribute("DICOM.Modality", tag)
    guess = Scene(mrml).guess_channels(card(("image", modality)), [node])
    assert guess == {"image": node if taken else None}


def test_pet_and_ct_are_told_apart(mrml: Any) -> None:
    nodes = [mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Vol") for _ in range(2)]
    nodes[0].SetAttribute("DICOM.Modality", "PT")
    nodes[1].SetAttribute("DICOM.Modality", "CT")
    model = card(("CT", "CT"), ("PET", "PT"))
    assert Scene(mrml).guess_channels(model, nodes) == {"CT": nodes[1], "PET": nodes[0]}


def test_a_tag_counts_more_than_a_name(mrml: Any) -> None:
    """A PET series resampled onto the CT, and called after it."""
    nodes = [mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name) for name in ("CT", "3")]
    nodes[0].SetAttribute("DICOM.Modality", "PT")
    nodes[1].SetAttribute("DICOM.Modality", "CT")
    assert Scene(mrml).guess_channels(card(("CT", "CT"), ("PET", "PT")), nodes)["CT"] is nodes[1]


def test_one_volume_that_fits_two_channels_is_given_to_none(mrml: Any) -> None:
    node = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "PET")
    model = card(("early", "PT"), ("late", "PT"))
    assert Scene(mrml).guess_channels(model, [node]) == {"early": None, "late": None}


# --- regions of interest ---------------------------------------------------------------------------


def add_roi(mrml: Any, center: Any, size: Any) -> Any:
    node = mrml.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    node.SetCenter(center)
    node.SetSize(size)
    return node


def bounds_of_corners(local: np.ndarray, size: Any) -> np.ndarray:
    corners = [
        local @ [x * size[0] / 2, y * size[1] / 2, z * size[2] / 2, 1]
        for x in (-1, 1)
        for y in (-1, 1)
        for z in (-1, 1)
    ]
    return np.array([np.min(corners, axis=0)[:3], np.max(corners, axis=0)[:3]]).T.ravel()


@pytest.mark.parametrize("moved", MOVED)
@pytest.mark.parametrize("turned", [False, True])
def test_a_region_is_the_box_around_the_roi_in_the_world(
    mrml: Any, turned: bool, moved: str
) -> None:
    size = (10.0, 20.0, 30.0)
    node = add_roi(mrml, (1.0, 2.0, 3.0), size)
    local = np.eye(4)
    local[:3, 3] = (1, 2, 3)
    if turned:
        local[:3, :3] = np.array(TURNED)[[2, 0, 1]][:, [2, 0, 1]]
        node.SetAndObserveObjectToNodeMatrix(vtkMatrixFromArray(local))
    above = MOVED[moved]
    if above is not None:
        node.SetAndObserveTransformNodeID(add_transform(mrml, above).GetID())
        local = above @ local
    region = Scene(mrml).region(node)
    np.testing.assert_allclose(region, bounds_of_corners(local, size), atol=1e-9)
    assert SegmentationRequest((Path("a.nii"),), region=region).region == region


def test_an_roi_of_an_old_scene_is_read(mrml: Any) -> None:
    node = slicer.vtkMRMLAnnotationROINode()
    mrml.AddNode(node)
    node.SetXYZ(1, 2, 3)
    node.SetRadiusXYZ(5, 10, 15)
    assert Scene(mrml).region(node) == pytest.approx((-4, 6, -8, 12, -12, 18))


def test_what_is_no_region_is_refused(mrml: Any) -> None:
    scene = Scene(mrml)
    with pytest.raises(InputError, match="There is no region of interest"):
        scene.region(None)
    with pytest.raises(InputError, match="Skin is not a region"):
        scene.region(mrml.AddNewNodeByClass("vtkMRMLModelNode", "Skin"))
    with pytest.raises(InputError, match="Box does not have a box yet"):
        scene.region(mrml.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box"))
    node = add_roi(mrml, (0, 0, 0), (1, 1, 1))
    node.SetAndObserveTransformNodeID(bending_transform(mrml).GetID())
    with pytest.raises(GeometryError, match=r"is not linear \(Warp\)"):
        scene.region(node)


class Database:
    """What of ctkDICOMDatabase is used to tell the modality of one instance."""

    def fileForInstance(self, instance: str) -> str:
        return {"1.2.3": "/ct/1.dcm"}.get(instance, "")

    def seriesForFile(self, file: str) -> str:
        return {"/ct/1.dcm": "9.9"}[file]

    def fieldForSeries(self, name: str, series: str) -> str:
        return {("Modality", "9.9"): "CT"}[name, series]


@pytest.mark.parametrize(
    ("instances", "modality"), [("1.2.3 4.5.6", "CT"), ("7.8.9", ""), (None, "")]
)
def test_a_volume_from_the_dicom_database_says_what_scanner_it_came_from(
    mrml: Any, monkeypatch: pytest.MonkeyPatch, instances: str | None, modality: str
) -> None:
    node = add_volume(mrml, PLACES["plain"])
    assert Scene(mrml).read_channels([node])[0].modality == ""
    put_object(monkeypatch, "dicomDatabase", "ctkDICOMDatabase", Database())
    node.SetAttribute("DICOM.instanceUIDs", instances)
    assert Scene(mrml).read_channels([node])[0].modality == modality


@pytest.mark.parametrize("place", PLACES)
def test_a_new_region_lies_in_the_middle_of_the_volume(mrml: Any, place: str) -> None:
    scene = Scene(mrml)
    volume = add_volume(mrml, PLACES[place])
    node = scene.new_region(volume)
    box = np.array(scene.region(node)).reshape(3, 2)
    corners = np.array(
        [world_of(volume, i, j, k) for k, j, i in np.ndindex(*scene.read(volume).geometry.shape)]
    )
    low, high = corners.min(0), corners.max(0)
    np.testing.assert_allclose(box.mean(1), (low + high) / 2, atol=1e-6)
    np.testing.assert_allclose(box[:, 1] - box[:, 0], (high - low) / 2, atol=1e-6)
    assert node.GetDisplayNode() is not None
    assert scene.new_region(volume).GetName() != node.GetName()
