"""Label maps and Slicer segmentations come in with their values and meanings."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import slicerio

import images
from medsegai.errors import GeometryError, InputError
from medsegai.io import read_labelmap, to_sitk
from medsegai.labels import Terminology, made_color
from medsegai.volume import Geometry, Volume

STRAIGHT = images.geometry("straight")


def save(path: Path, voxels: np.ndarray) -> Path:
    """A NIfTI with these voxels (k, j, i) on the identity."""
    nibabel.Nifti1Image(voxels.T, np.eye(4), dtype=voxels.dtype).to_filename(path)
    return path


WIDE = ("int32", "uint32", "int64", "float32", "float64")


@pytest.mark.parametrize(
    ("dtype", "largest", "kept"),
    [
        *((dtype, 3, "uint8") for dtype in ("uint8", "int16", *WIDE)),
        *((dtype, 300, "uint16") for dtype in ("int16", *WIDE)),
        *((dtype, 70000, "uint32") for dtype in WIDE),
    ],
)
def test_values_are_kept_in_the_smallest_type(
    tmp_path: Path, dtype: str, largest: int, kept: str
) -> None:
    voxels = np.zeros((3, 4, 5), dtype=dtype)
    voxels[1, 1:3, 2] = 2
    voxels[2, 2, 2] = largest
    labelmap, labels = read_labelmap(save(tmp_path / "labels.nii.gz", voxels))
    assert labelmap.voxels.dtype == kept
    np.testing.assert_array_equal(labelmap.voxels, voxels)
    assert [label.value for label in labels] == sorted({2, largest})
    assert [label.name for label in labels] == [f"Label {value}" for value in sorted({2, largest})]
    assert len({label.color for label in labels}) == 2


def test_an_empty_labelmap_is_a_labelmap(tmp_path: Path) -> None:
    labelmap, labels = read_labelmap(save(tmp_path / "labels.nii", np.zeros((3, 4, 5), np.uint8)))
    assert labelmap.voxels.max() == 0
    assert labels == ()


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mgz", ".nii"])
@pytest.mark.parametrize("name", images.DIRECTIONS)
def test_labels_lie_where_they_were_put(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"labels{ending}"
    expected = images.blobs(images.geometry(name))
    if ending == ".mgz":
        nibabel.MGHImage(expected.voxels.T, images.matrix_ras(name)).to_filename(path)
    else:
        sitk.WriteImage(to_sitk(expected), str(path))
    labelmap, _ = read_labelmap(path)
    np.testing.assert_array_equal(labelmap.voxels, expected.voxels)
    assert labelmap.geometry.matches(expected.geometry, 1e-4)


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        (np.full((2, 3, 4), 0.5, np.float32), "not whole numbers"),
        (np.full((2, 3, 4), np.nan, np.float32), "not whole numbers"),
        (np.full((2, 3, 4), np.inf, np.float32), "values from inf to inf"),
        (np.full((2, 3, 4), -1, np.int16), "values from -1 to -1"),
        (np.full((2, 3, 4), 2**31, np.int64), "labels are between 0 and"),
    ],
)
def test_what_is_no_labelmap_is_refused(tmp_path: Path, voxels: np.ndarray, reason: str) -> None:
    path = save(tmp_path / "labels.nii", voxels)
    with pytest.raises(InputError, match=rf"labels\.nii has {reason}|labels\.nii has .*{reason}"):
        read_labelmap(path)


def write_segments(path: Path, layers: np.ndarray, segments: list[dict[str, Any]]) -> Path:
    """A Slicer segmentation by slicerio; `layers` is (layer, i, j, k) or (i, j, k)."""
    colours = {"color": [0.2, 0.4, 0.6]}
    slicerio.write_segmentation(
        str(path),
        {"voxels": layers, "ijkToLPS": np.eye(4), "segments": [colours | s for s in segments]},
    )
    return path


def two_layers(overlap: bool) -> np.ndarray:
    """Layers as Slicer writes them: every layer counts from 1."""
    layers = np.zeros((2, 5, 6, 7), dtype=np.uint8)
    layers[0, 1, 1, 1], layers[0, 2, 2, 2] = 1, 2
    layers[1, 3, 3, 3] = 1
    layers[1, 2, 2, 2] = 1 if overlap else 0
    return layers


SEGMENTS: list[dict[str, Any]] = [
    {"id": "A", "name": "Liver", "labelValue": 1, "layer": 0},
    {"id": "B", "name": "Spleen", "labelValue": 2, "layer": 0},
    {"id": "C", "name": "Tumour", "labelValue": 1, "layer": 1},
]


def test_layers_that_share_no_voxel_are_joined(tmp_path: Path) -> None:
    path = write_segments(tmp_path / "a.seg.nrrd", two_layers(overlap=False), SEGMENTS)
    labelmap, labels = read_labelmap(path)
    assert [(label.value, label.name) for label in labels] == [
        (1, "Liver"),
        (2, "Spleen"),
        (3, "Tumour"),
    ]
    assert labelmap.voxels.shape == (7, 6, 5)
    found = [labelmap.voxels[place] for place in ((1, 1, 1), (2, 2, 2), (3, 3, 3), (0, 0, 0))]
    assert found == [1, 2, 3, 0]
    assert np.count_nonzero(labelmap.voxels) == 3


def test_segments_that_share_a_voxel_are_refused_by_name(tmp_path: Path) -> None:
    path = write_segments(tmp_path / "a.seg.nrrd", two_layers(overlap=True), SEGMENTS)
    with pytest.raises(InputError, match=r"a\.seg\.nrrd: segment 'Tumour' overlaps"):
        read_labelmap(path)


def test_codes_and_colours_come_in(tmp_path: Path) -> None:
    entry = {
        "contextName": "list",
        "category": ["SCT", "123037004", "Anatomical Structure"],
        "type": ["SCT", "10200004", "Liver"],
    }
    segments = [
        SEGMENTS[0] | {"terminology": entry, "name": "  Liver  "},
        SEGMENTS[1] | {"name": ""},
    ]
    path = write_segments(tmp_path / "a.seg.nrrd", two_layers(overlap=False)[0], segments)
    _, (liver, nameless) = read_labelmap(path)
    assert liver.color == (51, 102, 153)
    assert liver.name == "Liver"
    assert liver.terminology == Terminology(
        ("SCT", "123037004", "Anatomical Structure"), ("SCT", "10200004", "Liver")
    )
    assert nameless.name == "B"


def test_values_without_a_segment_are_not_dropped(tmp_path: Path) -> None:
    path = write_segments(tmp_path / "a.seg.nrrd", two_layers(overlap=False)[0], SEGMENTS[:1])
    labelmap, labels = read_labelmap(path)
    assert [(label.value, label.name) for label in labels] == [(1, "Liver"), (2, "Label 2")]
    assert labelmap.voxels[2, 2, 2] == 2


def test_a_segment_of_the_background_is_refused(tmp_path: Path) -> None:
    segments = [SEGMENTS[0] | {"labelValue": 0}]
    path = write_segments(tmp_path / "a.seg.nrrd", two_layers(overlap=False)[0], segments)
    with pytest.raises(InputError, match="the background value 0"):
        read_labelmap(path)


def test_fractional_segments_are_refused(tmp_path: Path) -> None:
    """Their voxels are parts of 216, not labels."""
    path = write_segments(tmp_path / "a.seg.nrrd", two_layers(overlap=False)[0], SEGMENTS[:2])
    data = path.read_bytes()
    assert b"MasterRepresentation:=Binary labelmap" in data
    path.write_bytes(data.replace(b":=Binary labelmap", b":=Fractional labelmap"))
    with pytest.raises(InputError, match="fractional segments"):
        read_labelmap(path)


def test_a_plain_nrrd_needs_no_segments(tmp_path: Path) -> None:
    sitk.WriteImage(to_sitk(images.blobs(STRAIGHT)), str(tmp_path / "a.seg.nrrd"))
    labelmap, labels = read_labelmap(tmp_path / "a.seg.nrrd")
    np.testing.assert_array_equal(labelmap.voxels, images.blobs(STRAIGHT).voxels)
    assert [label.name for label in labels] == ["Label 1", "Label 2", "Label 3"]


def test_a_sheared_segmentation_is_refused(tmp_path: Path) -> None:
    path = write_segments(tmp_path / "a.seg.nrrd", two_layers(overlap=False)[0], SEGMENTS[:2])
    path.write_bytes(path.read_bytes().replace(b"(0,1,0)", b"(1,1,0)"))
    with pytest.raises(GeometryError, match=r"a\.seg\.nrrd.*right angles"):
        read_labelmap(path)


@pytest.mark.parametrize("keep", [0, 40, 300, -20])
def test_a_truncated_segmentation_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_segments(tmp_path / "a.seg.nrrd", two_layers(overlap=False), SEGMENTS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.seg\.nrrd"):
        read_labelmap(path)


@pytest.mark.parametrize(
    "name", ["totalsegmentator-examples/example_seg.nii.gz", "malc2012-train/1000_glm.nii.gz"]
)
def test_real_labelmaps_equal_what_itk_reads(shared_data: Path, name: str) -> None:
    labelmap, labels = read_labelmap(shared_data / name)
    witness = sitk.GetArrayFromImage(sitk.ReadImage(str(shared_data / name)))
    assert np.array_equal(labelmap.voxels, witness)
    assert [label.value for label in labels] == sorted(set(np.unique(witness).astype(int)) - {0})


def test_float_brain_labels_are_read(shared_data: Path) -> None:
    path = next(
        path
        for path in sorted((shared_data / "brain-label-maps").glob("*.nii.gz"))
        if nibabel.load(path).get_data_dtype().kind == "f"
    )
    labelmap, labels = read_labelmap(path)
    assert labelmap.voxels.dtype == np.uint16
    assert {2, 41, 17, 53} <= {label.value for label in labels}


def test_labels_written_by_dcmqi_are_read(shared_data: Path) -> None:
    """Plain label images with one value each."""
    folder = shared_data / "dicom-seg-examples"
    labelmap, labels = read_labelmap(folder / "liver_seg.nrrd")
    witness = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "liver_seg.nrrd")))
    np.testing.assert_array_equal(labelmap.voxels, witness)
    assert len(labels) == 1


def in_a_box(path: Path, labelmap: Volume, scan: Geometry, box: tuple[slice, ...]) -> Path:
    """A segmentation as Slicer writes it: the box around the segments, and the grid of the scan as a parameter."""
    part = labelmap.geometry.cropped([side.start for side in box], labelmap.voxels[box].shape)
    matrix = ";".join(f"{number:.17g}" for number in scan.ijk_to_ras.ravel())
    extent = ";".join(f"0;{size - 1}" for size in scan.shape[::-1])
    slicerio.write_segmentation(
        str(path),
        {
            "voxels": labelmap.voxels[box].T,
            "ijkToLPS": np.diag([-1.0, -1.0, 1.0, 1.0]) @ part.ijk_to_ras,
            "conversionParameters": [
                {"name": "Smoothing factor", "value": "0.5", "description": "Some words.&"},
                {
                    "name": "Reference image geometry",
                    "value": f"{matrix};{extent};",
                    "description": "More words.&",
                },
            ],
            "segments": [
                {
                    "id": f"S{value}",
                    "name": f"Part {value}",
                    "color": [0, 0, 1],
                    "labelValue": value,
                }
                for value in (1, 2, 3)
            ],
        },
    )
    return path


@pytest.mark.parametrize("flips", [(), (0,), (1, 2)])
@pytest.mark.parametrize("name", ["straight", "oblique and mirrored"])
def test_the_box_around_segments_is_put_back_on_the_grid_of_its_scan(
    tmp_path: Path, name: str, flips: tuple[int, ...]
) -> None:
    labelmap = images.blobs(images.geometry(name))
    scan = labelmap.geometry.flipped(*flips)
    box = (slice(1, 7), slice(1, 5), slice(0, 5))
    path = in_a_box(tmp_path / "a.seg.nrrd", labelmap, scan, box)
    found, labels = read_labelmap(path)
    assert found.geometry.matches(scan, 1e-6)
    np.testing.assert_array_equal(found.voxels, np.flip(labelmap.voxels, flips))
    assert [label.name for label in labels] == ["Part 1", "Part 2", "Part 3"]


def test_segments_with_voxels_of_their_own_stay_in_their_box(tmp_path: Path) -> None:
    labelmap = images.blobs(STRAIGHT)
    box = (slice(1, 7), slice(1, 5), slice(0, 5))
    for scan in (STRAIGHT.resized((9, 9, 9)), STRAIGHT.cropped((3, 3, 3), (3, 3, 3))):
        path = in_a_box(tmp_path / "a.seg.nrrd", labelmap, scan, box)
        assert read_labelmap(path)[0].voxels.shape == (6, 4, 5)


def test_a_scan_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    scan = STRAIGHT.cropped((0, 0, 0), (10**6, 10**6, 10**6))
    box = (slice(1, 7), slice(1, 5), slice(0, 5))
    path = in_a_box(tmp_path / "a.seg.nrrd", images.blobs(STRAIGHT), scan, box)
    with pytest.raises(InputError, match="of memory"):
        read_labelmap(path)


FIELDS = [
    "Name",
    "ID",
    "Color",
    "LabelValue",
    "Layer",
    "Tags",
    "Extent",
    "ColorAutoGenerated",
    "NameAutoGenerated",
]


@pytest.mark.parametrize(
    "missing", [(name,) for name in FIELDS] + [("Name", "ID", "Color"), ("Layer", "LabelValue")]
)
@pytest.mark.parametrize("list_axis", [0, 3])
def test_a_segmentation_lacks_a_field_that_slicer_does_without(
    tmp_path: Path, missing: tuple[str, ...], list_axis: int
) -> None:
    """Before Slicer 4.11 there were no layers and values: every segment lay in a separate one, as 1."""
    layers = two_layers(overlap=False)[:, :, :, :]
    layers[0, 2, 2, 2] = 0
    segments = [
        f"Segment{n}_{field}:={value}"
        for n, name in enumerate(("Liver", "Spleen"))
        for field, value in {
            "Name": name,
            "ID": f"Segment_{n + 1}",
            "Color": "0.5 0.25 1",
            "LabelValue": "1",
            "Layer": str(n),
            "Tags": "Note:see http://x.y/z:8080|Broken|TerminologyEntry:list~SCT^1^A~SCT^2^B~^^~~^^~^^|",
            "Extent": "0 4 0 5 0 6",
            "ColorAutoGenerated": "1",
            "NameAutoGenerated": "0",
        }.items()
        if field not in missing
    ]
    sizes, kinds = ["5", "6", "7"], ["domain"] * 3
    directions = ["(1,0,0)", "(0,1,0)", "(0,0,1)"]
    for values, layer in ((sizes, "2"), (kinds, "list"), (directions, "none")):
        values.insert(list_axis, layer)
    header = [
        "NRRD0004\ntype: unsigned char\ndimension: 4\nspace: left-posterior-superior\nencoding: gzip",
        f"sizes: {' '.join(sizes)}\nspace directions: {' '.join(directions)}\nkinds: {' '.join(kinds)}",
        "space origin: (0,0,0)",
        *segments,
    ]
    data = np.moveaxis(layers, 0, list_axis).tobytes(order="F")
    path = tmp_path / "a.seg.nrrd"
    path.write_bytes("\n".join(header).encode() + b"\n\n" + gzip.compress(data))
    labelmap, labels = read_labelmap(path)
    assert labelmap.voxels[1, 1, 1] == 1
    assert labelmap.voxels[3, 3, 3] == 2
    assert np.count_nonzero(labelmap.voxels) == 2
    expected = ["Liver", "Spleen"] if "Name" not in missing else ["Segment_1", "Segment_2"]
    assert [label.name for label in labels] == expected
    if "Tags" not in missing:
        assert labels[0].terminology is not None
    if "Color" not in missing:
        assert labels[0].color == (128, 64, 255)


@pytest.mark.parametrize(
    "color", ["", "0,5 0 1", "#ff8000", "nan nan nan", "1 0", "1 0 0 1", "red"]
)
def test_a_colour_that_cannot_be_read_is_made(tmp_path: Path, color: str) -> None:
    """Nothing depends on it."""
    path = write_segments(tmp_path / "a.seg.nrrd", two_layers(overlap=False)[0], SEGMENTS[:1])
    plain = read_labelmap(path)[0]
    content = re.sub(rb"Segment0_Color:=.*", f"Segment0_Color:={color}".encode(), path.read_bytes())
    path.write_bytes(content)
    found, (label, *_others) = read_labelmap(path)
    assert np.array_equal(found.voxels, plain.voxels)
    assert label.color == made_color(1)


def test_control_characters_in_a_name_are_left_out(tmp_path: Path) -> None:
    path = write_segments(tmp_path / "a.seg.nrrd", two_layers(overlap=False)[0], SEGMENTS[:1])
    content = re.sub(
        rb"Segment0_Name:=.*", b"Segment0_Name:=\x1b[31mred\x07 one", path.read_bytes()
    )
    path.write_bytes(content)
    assert read_labelmap(path)[1][0].name == "[31mred one"


def test_two_segments_of_one_value_are_refused(tmp_path: Path) -> None:
    segments = [SEGMENTS[0], SEGMENTS[1] | {"labelValue": 1}]
    path = write_segments(tmp_path / "a.seg.nrrd", two_layers(overlap=False)[0], segments)
    with pytest.raises(InputError, match="two segments have the same value in one layer"):
        read_labelmap(path)
