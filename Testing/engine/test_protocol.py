"""What crosses the pipe arrives as it left: messages, arrays, requests, results, errors."""

from __future__ import annotations

import inspect
import json
import math
import uuid
from pathlib import Path

import numpy as np
import pytest

from medsegai import errors
from medsegai.errors import (
    Cancelled,
    DeviceError,
    GeometryError,
    InputError,
    MedSegAIError,
    OutputError,
    WorkerError,
)
from medsegai.labels import Label, Terminology
from medsegai.models.json_fields import from_json, to_json
from medsegai.progress import ProgressEvent
from medsegai.request import SegmentationRequest, SegmentationResult, StructureMeasures
from medsegai.volume import Geometry, Volume
from medsegai.worker import protocol

OBLIQUE = np.array(
    [
        [0.6, -1.6 / 3, 0.0, 10.123456789012345],
        [0.8, 0.4, 0.0, -20.1],
        [0.0, 0.0, 2.5, 1 / 3],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
NAME = "0123456789abcdef" * 2 + ".npy"
LIVER = Label(
    5,
    "Liver",
    (221, 130, 101),
    Terminology(("SCT", "123037004", "Anatomical Structure"), ("SCT", "10200004", "Liver")),
)
SPLEEN = Label(9, "Spleen", (157, 108, 162))


def volume(dtype: str = "int16") -> Volume:
    voxels = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(dtype)
    return Volume(voxels, Geometry((2, 3, 4), OBLIQUE), "scan.nii")


def through_the_pipe(message: protocol.Message) -> protocol.Message:
    line = protocol.encode({"type": "x", "what": message})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    found: protocol.Message = protocol.decode(line)["what"]
    return found


@pytest.mark.parametrize("line", [b"", b"{", b"hello\n", b"3", b"[]", b"null", b"{}", b"\xff"])
def test_a_line_that_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(WorkerError, match="pipe"):
        protocol.decode(line)


def test_a_message_stays_one_line_whatever_the_text() -> None:
    text = 'new\nline "quoted" \u2028 Ä ß 漢'
    assert through_the_pipe({"text": text})["text"] == text


def test_a_number_that_json_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        protocol.encode({"type": "x", "value": math.nan})


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64", ">i2", "bool"])
def test_a_volume_arrives_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    sent = volume(dtype)
    received = protocol.unpack_volume(
        through_the_pipe(protocol.pack_volume(sent, tmp_path)), tmp_path
    )
    assert received.voxels.dtype == sent.voxels.dtype
    np.testing.assert_array_equal(received.voxels, sent.voxels)
    np.testing.assert_array_equal(received.geometry.ijk_to_ras, sent.geometry.ijk_to_ras)
    assert received.source == "scan.nii"


def test_voxels_never_pass_through_json(tmp_path: Path) -> None:
    big = Volume(np.zeros((50, 50, 50)), Geometry.from_spacing((50, 50, 50), (1, 1, 1)))
    assert len(protocol.encode(protocol.pack_volume(big, tmp_path))) < 500


def test_a_view_with_gaps_in_memory_arrives_whole(tmp_path: Path) -> None:
    voxels = np.asfortranarray(np.arange(4 * 6 * 8).reshape(4, 6, 8))[::2, ::3, ::-1]
    sent = Volume(voxels, Geometry.from_spacing(voxels.shape, (1, 1, 1)))
    received = protocol.unpack_volume(protocol.pack_volume(sent, tmp_path), tmp_path)
    np.testing.assert_array_equal(received.voxels, voxels)


def test_writing_into_a_received_array_leaves_the_file_alone(tmp_path: Path) -> None:
    name = protocol.pack_array(np.zeros(3), tmp_path)
    received = protocol.unpack_array(name, tmp_path)
    received[0] = 1
    np.testing.assert_array_equal(np.load(tmp_path / name), np.zeros(3))


def test_a_full_disk_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's own error has numbers of items alone, as the write of a part of an array to a full disk shows."""

    def full(path: Path, array: np.ndarray, allow_pickle: bool) -> None:
        raise OSError(f"{array.size} requested and 7 written")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match="cannot be written: no space is left"):
        protocol.pack_array(np.zeros(9), tmp_path)


def test_an_array_that_would_run_code_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / NAME, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(WorkerError, match=NAME):
        protocol.unpack_array(NAME, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"nothing of the kind"])
def test_a_damaged_array_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(WorkerError, match=NAME):
        protocol.unpack_array(NAME, tmp_path)


def test_an_array_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=NAME):
        protocol.unpack_array(NAME, tmp_path)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../" + "0" * 32 + ".npy", "a.npy", "", "0" * 32, None, 7]
)
def test_an_array_elsewhere_than_in_the_folder_is_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(WorkerError, match="not the name of an array"):
        protocol.unpack_array(name, tmp_path)  # type: ignore[arg-type]


def test_a_folder_that_is_gone_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="gone"):
        protocol.pack_array(np.zeros(3), tmp_path / "gone")


@pytest.mark.parametrize("count", [3, 1_000_000])
def test_a_full_disk_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    name = uuid.uuid4()
    monkeypatch.setattr(uuid, "uuid4", lambda: name)
    (tmp_path / f"{name.hex}.npy").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="Free space"):
        protocol.pack_array(np.zeros(count), tmp_path)


def test_a_volume_that_is_not_3d_is_refused_by_name(tmp_path: Path) -> None:
    name = protocol.pack_array(np.zeros((2, 2, 2, 3)), tmp_path)
    message = {"array": name, "ijk_to_ras": OBLIQUE, "source": "rgb.png"}
    with pytest.raises(InputError, match=r"rgb\.png has 4 dimensions"):
        protocol.unpack_volume(message, tmp_path)


def test_a_sheared_matrix_is_refused_on_arrival(tmp_path: Path) -> None:
    message = protocol.pack_volume(volume(), tmp_path)
    message["ijk_to_ras"][0][1] = 5.0
    with pytest.raises(GeometryError, match="right angles"):
        protocol.unpack_volume(message, tmp_path)


def test_a_request_arrives_with_all_its_options(tmp_path: Path) -> None:
    sent = SegmentationRequest(
        (volume(), Path("/data/t2.nii.gz")),
        models=("brain", "other"),
        members=("axial",),
        fusion="vote",
        device="cuda:1",
        precision="fp32",
        dropout_passes=7,
        uncertainty=True,
        seed=3,
    )
    received = protocol.unpacked(
        SegmentationRequest, through_the_pipe(protocol.packed(sent, tmp_path)), tmp_path
    )
    assert received.options() == sent.options()
    first, second = received.inputs
    assert isinstance(first, Volume)
    np.testing.assert_array_equal(first.voxels, volume().voxels)
    assert second == Path("/data/t2.nii.gz")


def test_a_relative_path_means_the_same_file_to_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = protocol.packed(SegmentationRequest((Path("a.nii"),)), tmp_path)
    assert message["inputs"] == [str(tmp_path / "a.nii")]


def test_a_request_with_an_unknown_option_is_refused(tmp_path: Path) -> None:
    message = protocol.packed(SegmentationRequest((volume(),)), tmp_path)
    message["colour"] = "blue"
    with pytest.raises(WorkerError, match="colour"):
        protocol.unpacked(SegmentationRequest, message, tmp_path)


def result(**more: object) -> SegmentationResult:
    labelmap = volume().with_voxels(np.full((2, 3, 4), 5, np.uint8))
    measures = (
        StructureMeasures(LIVER, 24, 0.5, 0.1, 0.9, 0.8, 0.05, remarks=("small", "in parts")),
        StructureMeasures(SPLEEN, 0, 0.0, math.nan, None, None, None),
    )
    values = {
        "seconds": {"read": 0.1, "predict": 2.0},
        "peak_memory_mb": 512.0,
        "intracranial_ml": 1450.5,
        "provenance": {"device": "cpu"},
        "warnings": ("thick slices",),
    }
    return SegmentationResult(labelmap, (LIVER, SPLEEN), measures, **(values | more))


def test_a_result_arrives_whole(tmp_path: Path) -> None:
    sent = result(
        entropy=volume("float32"),
        probabilities=np.full((2, 2, 3, 4), 0.5, dtype=np.float16),
        regions=np.arange(48).reshape(2, 2, 3, 4) % 3 == 0,
    )
    message = through_the_pipe(protocol.packed(sent, tmp_path))
    received = protocol.unpacked(SegmentationResult, message, tmp_path)
    np.testing.assert_array_equal(received.labelmap.voxels, sent.labelmap.voxels)
    np.testing.assert_array_equal(received.labelmap.geometry.ijk_to_ras, OBLIQUE)
    assert received.labels == sent.labels
    assert received.structures[0] == sent.structures[0]
    assert received.structures[1].volume_cv is None, "JSON has no NaN"
    assert received.entropy is not None
    assert received.entropy.voxels.dtype == np.float32
    assert received.probabilities is not None
    assert received.probabilities.dtype == np.float16
    assert received.regions is not None
    assert sent.regions is not None
    np.testing.assert_array_equal(received.regions, sent.regions)
    assert received.report() == sent.report()


def test_a_plain_result_has_neither_entropy_nor_probabilities(tmp_path: Path) -> None:
    message = protocol.packed(result(), tmp_path)
    received = protocol.unpacked(SegmentationResult, message, tmp_path)
    assert received.entropy is None
    assert received.probabilities is None
    assert received.regions is None


@pytest.mark.parametrize("seconds_left", [None, 12.5])
def test_progress_arrives(seconds_left: float | None) -> None:
    event = ProgressEvent("predict", 0.25, seconds_left)
    message = through_the_pipe({"event": to_json(event)})
    assert from_json(ProgressEvent, message["event"]) == event


def every_error() -> list[type[MedSegAIError]]:
    members = vars(errors).values()
    return [item for item in members if inspect.isclass(item) and issubclass(item, MedSegAIError)]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_arrives_as_what_it_was(kind: type[MedSegAIError]) -> None:
    received = protocol.unpack_error(through_the_pipe(protocol.pack_error(kind("why"))))
    assert type(received) is kind
    assert str(received) == "why"


def test_the_errors_above_are_the_errors_there_are() -> None:
    assert {MedSegAIError, GeometryError, DeviceError, Cancelled} <= set(every_error())


@pytest.mark.parametrize("kind", ["KeyError", "", "str", "__class__"])
def test_an_unknown_error_is_a_worker_error(kind: str) -> None:
    received = protocol.unpack_error({"kind": kind, "message": "why"})
    assert type(received) is WorkerError


def test_the_words_are_told_in_the_docstring() -> None:
    words = {
        value for name, value in vars(protocol).items() if name.isupper() and isinstance(value, str)
    }
    to_worker = {"warm", "segment", "refine", "measure", "export", "cancel", "quit"}
    from_worker = {"ready", "alive", "progress", "result", "error"}
    assert words == {"array"} | to_worker | from_worker
    assert protocol.__doc__ is not None
    assert words <= set(protocol.__doc__.split())


def test_an_encoded_message_is_plain_json() -> None:
    assert json.loads(protocol.encode({"type": "quit"})) == {"type": "quit"}
