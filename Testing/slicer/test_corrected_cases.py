"""Cases kept for training: layout, place and values by other libraries' eyes, privacy, and no case ever lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from slicer.util import arrayFromVolume, updateVolumeFromArray

from medsegai.errors import GeometryError, InputError, OutputError, RequestError
from medsegai.evaluation.folds import dataset_cases
from medsegai.io import read_labelmap, read_volume
from medsegai.models.card import Channel, MemberCard, ModelCard
from medsegai.volume import Geometry, Volume
from MedSegAILib.correction import corrected_cases, nifti
from MedSegAILib.correction.corrected_cases import CONSENT, KeptCase, keep_case
from MedSegAILib.correction.nifti import DATATYPES, write_nifti
from MedSegAILib.scene import Scene, segment_id
from nnunet_models import nnunet_folders, require_nnunet
from scene_images import (
    ABSENT,
    LEFT,
    LEFT_ID,
    MOVED,
    PLACES,
    SHAPE,
    STEM,
    add_volume,
    bending_transform,
    paint,
    result_for,
    two_blocks,
    world_of,
)

PATIENT = "Doe^Jane 1960-02-03"
CARD = ModelCard(
    id="head/v2",
    name="Head",
    family="quicknat",
    version="1",
    channels=(Channel("T1", "MR"),),
    labels=(LEFT, STEM, ABSENT),
    members=(MemberCard("one"),),
    spacing_mm=(1.0, 1.0, 1.0),
)


def case(mrml: Any, place: str = "oblique", moved: str = "turned") -> tuple[Any, Any]:
    """A scan whose node bears a patient's name, and its segmentation."""
    node = add_volume(mrml, PLACES[place], MOVED[moved])
    node.SetName(PATIENT)
    node.SetAttribute("DICOM.PatientName", PATIENT)
    node.SetDescription(PATIENT)
    scene = Scene(mrml)
    return node, scene.write(node, result_for(scene.read(node), two_blocks()))


def keep(mrml: Any, folder: Path, **place: str) -> KeptCase:
    node, segmentation = case(mrml, **place)
    return keep_case(folder, CARD, [node], segmentation, consent=True)


def in_list() -> np.ndarray:
    """What the label map must hold: places in the model's list, from 1."""
    blocks = two_blocks()
    return np.where(blocks == LEFT.value, 1, np.where(blocks == STEM.value, 2, 0))


# --- layout and place -----------------------------------------------------------------------------


def test_without_consent_nothing_is_kept(mrml: Any, tmp_path: Path) -> None:
    node, segmentation = case(mrml)
    with pytest.raises(RequestError, match="did not agree"):
        keep_case(tmp_path, CARD, [node], segmentation, consent=False)
    assert not list(tmp_path.iterdir())
    for word in ("this computer", "Nothing is sent", "face", "delete"):
        assert word in CONSENT


@pytest.mark.parametrize("moved", list(MOVED))
@pytest.mark.parametrize("place", list(PLACES))
def test_voxels_come_back_where_they_were(
    place: str, moved: str, mrml: Any, tmp_path: Path
) -> None:
    """Read by nibabel and by SimpleITK; the place by VTK and MRML."""
    node, segmentation = case(mrml, place, moved)
    kept = keep_case(tmp_path, CARD, [node], segmentation, consent=True)
    image = kept.dataset / "imagesTr" / f"{kept.name}_0000.nii.gz"
    label = kept.dataset / "labelsTr" / f"{kept.name}.nii.gz"
    for path, expected in ((image, arrayFromVolume(node)), (label, in_list())):
        seen = nibabel.load(path)
        np.testing.assert_array_equal(np.asarray(seen.dataobj).T, expected)
        found = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), expected)
        for voxel in ((0, 0, 0), (13, 0, 0), (0, 10, 0), (5, 3, 8)):
            world = world_of(node, *voxel)
            np.testing.assert_allclose(seen.affine @ [*voxel, 1], [*world, 1], atol=1e-3)
            lps = found.TransformIndexToPhysicalPoint(voxel)
            np.testing.assert_allclose(np.array(lps) * [-1, -1, 1], world, atol=1e-3)
    assert seen.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(
        seen.header.get_zooms(), Scene(mrml).read(node).geometry.spacing_mm, rtol=1e-6
    )


def test_the_data_set_is_what_training_reads(mrml: Any, tmp_path: Path) -> None:
    kept = [keep(mrml, tmp_path) for _ in range(3)]
    assert len({one.dataset for one in kept}) == 1
    dataset = kept[0].dataset
    assert dataset.name == "Dataset900_Corrected_head_v2"
    assert json.loads((dataset / "dataset.json").read_text()) == {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "Left hippocampus": 1, "Brain-Stem": 2, "Absent": 3},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    cases = dataset_cases(dataset)
    assert {found.name for found in cases} == {one.name for one in kept}
    for found in cases:
        image, labels = read_volume(found.images[0]), read_labelmap(found.label)[0]
        assert image.geometry.matches(labels.geometry)
        assert set(np.unique(labels.voxels)) == {0, 1, 2}


def test_nnunet_itself_accepts_the_data_set(mrml: Any, tmp_path: Path) -> None:
    require_nnunet()
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    for _ in range(2):
        dataset = keep(mrml, tmp_path).dataset
    with nnunet_folders(tmp_path / "nnunet"):
        verify_dataset_integrity(str(dataset), 1)


def test_several_channels(mrml: Any, tmp_path: Path) -> None:
    node, segmentation = case(mrml)
    second = add_volume(mrml, PLACES["oblique"], MOVED["turned"])
    second.SetName("Contrast")
    voxels = np.linspace(0, 7.5, int(np.prod(SHAPE)), dtype=np.float32).reshape(SHAPE)
    updateVolumeFromArray(second, voxels)
    card = ModelCard(**{**vars(CARD), "channels": (Channel("T1", "MR"), Channel("T2", "MR"))})
    kept = keep_case(tmp_path, card, [node, second], segmentation, consent=True)
    (found,) = dataset_cases(kept.dataset)
    assert read_volume(found.images[1]).voxels.max() == 7.5
    with pytest.raises(RequestError, match="2 images"):
        keep_case(tmp_path, card, [node], segmentation, consent=True)


# --- privacy --------------------------------------------------------------------------------------


def test_no_file_names_the_patient(mrml: Any, tmp_path: Path) -> None:
    kept = keep(mrml, tmp_path)
    files = [path for path in kept.dataset.rglob("*") if path.is_file()]
    assert len(files) == 3
    for path in files:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
        for word in ("Doe", "Jane", "1960", "Head segmentation"):
            assert word not in path.name
            assert word.encode() not in raw
            assert word.encode() not in content
        if path.suffix == ".gz":
            assert raw[3] == 0, "gzip noted a file name"
            assert raw[4:8] == bytes(4), "gzip noted a time"
            header = nibabel.load(path).header
            for field in ("descrip", "aux_file", "intent_name", "db_name"):
                assert header[field].item().strip(b"\0") == b""


# --- other cases ----------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_name_that_is_taken_is_not_used_again(
    mrml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = keep(mrml, tmp_path)
    before = contents(first.dataset)
    tokens = iter([first.name.removeprefix("case_"), "0badcafe"])
    real = corrected_cases.secrets.token_hex
    monkeypatch.setattr(
        corrected_cases.secrets, "token_hex", lambda n: next(tokens) if n == 4 else real(n)
    )
    second = keep(mrml, tmp_path)
    assert second.name == "case_0badcafe"
    after = contents(first.dataset)
    for path, content in before.items():
        assert path.endswith("dataset.json") or after[path] == content


@pytest.mark.parametrize("which", [1, 2])
def test_a_full_disk_leaves_the_data_set_as_it_was(
    which: int, mrml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = keep(mrml, tmp_path).dataset
    before = contents(dataset)
    calls = iter(range(1, 10))

    def full(path: Path, volume: Volume) -> None:
        if next(calls) == which:
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        write_nifti(path, volume)

    monkeypatch.setattr(corrected_cases, "write_nifti", full)
    with pytest.raises(OutputError, match=r"Nothing was kept.*No space left on device"):
        keep(mrml, tmp_path)
    assert contents(dataset) == before


def test_a_data_set_that_cannot_be_described_gets_no_case(
    mrml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = keep(mrml, tmp_path).dataset
    before = contents(dataset)

    flush = corrected_cases._flush

    def broken(path: Path) -> None:
        if path.suffix == ".json":
            raise OSError(5, "Input/output error")
        flush(path)

    monkeypatch.setattr(corrected_cases, "_flush", broken)
    with pytest.raises(OutputError, match="Input/output error"):
        keep(mrml, tmp_path)
    assert contents(dataset) == before


def test_another_data_set_is_left_alone(mrml: Any, tmp_path: Path) -> None:
    dataset = keep(mrml, tmp_path).dataset
    described = json.loads((dataset / "dataset.json").read_text())
    for key, value in (("labels", {"background": 0, "Liver": 1}), ("channel_names", {"0": "CT"})):
        (dataset / "dataset.json").write_text(json.dumps(described | {key: value}))
        before = contents(tmp_path)
        with pytest.raises(OutputError, match="another folder"):
            keep(mrml, tmp_path)
        assert contents(tmp_path) == before
    (dataset / "dataset.json").write_text("{half")
    with pytest.raises(OutputError, match="damaged"):
        keep(mrml, tmp_path)


def test_numbers_of_other_data_sets_are_not_taken(mrml: Any, tmp_path: Path) -> None:
    (tmp_path / "Dataset900_Liver").mkdir()
    (tmp_path / "Dataset004_Hippocampus").mkdir()
    assert keep(mrml, tmp_path).dataset.name == "Dataset901_Corrected_head_v2"
    for number in range(900, 1000):
        (tmp_path / "all" / f"Dataset{number}_Other").mkdir(parents=True)
    with pytest.raises(OutputError, match="all numbers"):
        keep(mrml, tmp_path / "all")


# --- what is in the labels ------------------------------------------------------------------------


def test_a_correction_is_kept_as_it_stands(mrml: Any, tmp_path: Path) -> None:
    """Renamed segments keep their label; segments of the user's own are left out, and it is said."""
    node, segmentation = case(mrml)
    segments = segmentation.GetSegmentation()
    segments.GetSegment(segment_id(LEFT)).SetName("Renamed by the user")
    segments.RemoveSegment(segment_id(STEM))
    own = segmentation.GetSegmentation().AddEmptySegment("own", "A cyst")
    mask = np.zeros(SHAPE, np.uint8)
    mask[0, 0, 0] = 1
    import slicer

    image = slicer.vtkSlicerSegmentationsModuleLogic.CreateOrientedImageDataFromVolumeNode(
        node, node.GetParentTransformNode()
    )
    image.UnRegister(None)
    values = slicer.vtkOrientedImageData()
    values.DeepCopy(image)
    values.AllocateScalars(3, 1)
    from vtk.util import numpy_support

    numpy_support.vtk_to_numpy(values.GetPointData().GetScalars())[...] = mask.ravel()
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(
        values, segmentation, own, slicer.vtkSlicerSegmentationsModuleLogic.MODE_REPLACE
    )
    kept = keep_case(tmp_path, CARD, [node], segmentation, consent=True)
    assert kept.notes == ("Left out, because the model does not have them: A cyst.",)
    labels = read_labelmap(kept.dataset / "labelsTr" / f"{kept.name}.nii.gz")[0]
    np.testing.assert_array_equal(labels.voxels, in_list() * (in_list() == 1))


def test_a_segmentation_of_something_else_is_not_kept(mrml: Any, tmp_path: Path) -> None:
    node, _segmentation = case(mrml)
    empty = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Empty")
    with pytest.raises(InputError, match="not have a segment that is a structure"):
        keep_case(tmp_path, CARD, [node], empty, consent=True)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_kept_is_said(mrml: Any, tmp_path: Path) -> None:
    node, segmentation = case(mrml)
    with pytest.raises(OutputError, match="is not a folder"):
        keep_case(tmp_path / "nowhere", CARD, [node], segmentation, consent=True)
    (tmp_path / "Dataset900_Corrected_head_v2").write_text("a file in the way")
    with pytest.raises(OutputError, match="Nothing was kept"):
        keep_case(tmp_path, CARD, [node], segmentation, consent=True)
    segmentation.SetAndObserveTransformNodeID(bending_transform(mrml).GetID())
    with pytest.raises(GeometryError, match="is not linear"):
        keep_case(tmp_path, CARD, [node], segmentation, consent=True)


# --- the files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(DATATYPES))
def test_every_type_of_voxel(name: str, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 100, (3, 4, 5)).astype(name)
    volume = Volume(voxels[:, ::-1], Geometry.from_spacing((3, 4, 5), (1, 2, 3), (4, 5, 6)))
    write_nifti(tmp_path / "a.nii.gz", volume)
    seen = nibabel.load(tmp_path / "a.nii.gz")
    assert seen.header.get_data_dtype() == np.dtype(name)
    np.testing.assert_array_equal(np.asarray(seen.dataobj).T, volume.voxels)
    np.testing.assert_allclose(seen.affine, volume.geometry.ijk_to_ras)
    assert nifti.HEADER.itemsize == 348


def test_a_type_that_nifti_lacks_is_refused(tmp_path: Path) -> None:
    volume = Volume(np.zeros((2, 2, 2), np.float16), Geometry.from_spacing((2, 2, 2), (1, 1, 1)))
    with pytest.raises(InputError, match="does not fit into a NIfTI file"):
        write_nifti(tmp_path / "a.nii.gz", volume)
    assert not list(tmp_path.iterdir())


def test_an_image_that_is_kept_again_is_said_to_be_there(mrml: Any, tmp_path: Path) -> None:
    """Both have labels of a person, but no model may learn from one and be tested on the other."""
    node, segmentation = case(mrml)
    first = keep_case(tmp_path, CARD, [node], segmentation, consent=True)
    assert first.notes == ()
    paint(segmentation, LEFT_ID, two_blocks() == STEM.value, node)
    second = keep_case(tmp_path, CARD, [node], segmentation, consent=True)
    assert second.notes[-1].startswith(f"The same image was kept before: {first.name}. Delete")
    assert len(dataset_cases(first.dataset)) == 2
    other = keep(mrml, tmp_path, place="LPS")
    assert not any("kept before" in note for note in other.notes)
