"""What is fuzzed: for each way in from outside, sound files to begin with, and the code that reads them.

A target gets the bytes of one file and a separate folder. It may raise an error of MedSegAI; anything else is a
finding, and so is what `fuzz_child` sees from outside: time, memory, files that were written elsewhere, the end of
the process.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import RLELossless

import dicom_files
import slide_files
from medsegai.labels import Label
from medsegai.models.catalogue import BUNDLED_MODELS
from medsegai.volume import Geometry, Volume
from monai_bundles import REGIONS_BACK, Bundle

LABELS = [Label(1, "Liver", (9, 9, 9)), Label(2, "Spleen", (90, 9, 9))]


@dataclass(frozen=True)
class Target:
    """One way in.

    Attributes:
        name: of the target, and of its folder in the corpus.
        seeds: makes sound files.
        run: reads one.
        text: whether it is JSON or CSV, of which values are changed as well as bytes.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes, Path], object]
    text: bool = False


def scan() -> Volume:
    matrix = np.array([[0, -2, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 2], [0, 0, 0, 1.0]])
    voxels = np.random.default_rng(0).integers(-50, 200, (5, 6, 7)).astype(np.int16)
    return Volume(voxels, Geometry((5, 6, 7), matrix))


def written(ending: str) -> Callable[[], list[bytes]]:
    """A scan as we write it."""

    def seeds() -> list[bytes]:
        from medsegai.io import write_volume

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"x{ending}"
            write_volume(path, scan())
            return [path.read_bytes()]

    return seeds


def image(ending: str) -> Callable[[bytes, Path], object]:
    def run(content: bytes, folder: Path) -> object:
        from medsegai.io import read_volume

        path = folder / f"x{ending}"
        path.write_bytes(content)
        volume = read_volume(path)
        assert np.isfinite(volume.geometry.ijk_to_ras).all()
        return volume.voxels.sum()  # reads every voxel

    return run


def segmentations() -> list[bytes]:
    from medsegai.io import write_segmentation

    voxels = (np.abs(scan().voxels) % 3).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.seg.nrrd"
        write_segmentation(path, scan().with_voxels(voxels), LABELS)
        return [path.read_bytes()]


def segmentation(content: bytes, folder: Path) -> object:
    from medsegai.io import read_labelmap

    path = folder / "x.seg.nrrd"
    path.write_bytes(content)
    labelmap, labels = read_labelmap(path)
    assert set(np.unique(labelmap.voxels)) <= {0, *(label.value for label in labels)}
    return labels


def slices() -> list[bytes]:
    """One of a series, one of a series packed as run lengths, and an image of several frames."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dicom_files.write_series(folder / "series", scan())
        dicom_files.write_series(
            folder / "packed", scan(), lambda head, k: head.compress(RLELossless)
        )
        dicom_files.write_multiframe(folder / "x.dcm", scan(), range(5))
        first = (sorted((folder / series).iterdir())[0] for series in ("series", "packed"))
        return [path.read_bytes() for path in (*first, folder / "x.dcm")]


def dicom(content: bytes, folder: Path) -> object:
    """As a file alone, and as the first slice of a series."""
    from medsegai.errors import MedSegAIError
    from medsegai.io import read_volume

    (folder / "alone").mkdir()
    (folder / "alone" / "x.dcm").write_bytes(content)
    series = folder / "series"
    dicom_files.write_series(series, scan())
    sorted(series.iterdir())[0].write_bytes(content)
    try:
        read_volume(folder / "alone")
    except MedSegAIError:
        return read_volume(series)
    return None


def pictures() -> list[bytes]:
    """Grey and colours, of 8 and 16 bits, in each format."""
    import imagecodecs
    from PIL import Image

    chance = np.random.default_rng(0)
    colours = chance.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    deep = chance.integers(0, 65536, (9, 11, 3), dtype=np.uint16)
    made = [imagecodecs.png_encode(deep), imagecodecs.png_encode(deep[..., 0].copy())]
    for picture in (Image.fromarray(colours), Image.fromarray(colours[..., 0])):
        for kind in ("png", "jpeg", "tiff", "bmp"):
            stream = io.BytesIO()
            picture.save(stream, kind)
            made.append(stream.getvalue())
    return made


def picture(content: bytes, folder: Path) -> object:
    from medsegai.io import read_picture

    path = folder / "x.png"
    path.write_bytes(content)
    return [channel.voxels.sum() for channel in read_picture(path)]


def slides() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        made = [
            slide_files.write_pyramid(
                Path(name) / f"{ome}.tif", slide_files.placed_pixels(150, 170), 2, ome=ome
            )
            for ome in (False, True)
        ]
        return [path.read_bytes() for path in made]


def slide(content: bytes, folder: Path) -> object:
    from medsegai.io.slides import open_slide

    path = folder / "x.tif"
    path.write_bytes(content)
    with open_slide(path) as opened:
        return opened.overview(opened.overview_grid(64)).sum()


def checkpoints() -> list[bytes]:
    import torch

    state = {"encode1.conv1.weight": torch.ones(2, 1, 3, 3), "step": torch.tensor(3)}
    start = {"configuration": "2d", "fold": 0, "plans": {"a": [1, {"b": None}]}, "dataset_json": {}}
    content = {
        "network_weights": state,
        "init_args": start,
        "trainer_name": "nnUNetTrainer",
        "logging": {"dice": [np.float64(0.5), np.float32(1)]},
        "inference_allowed_mirroring_axes": (0, 1),
    }
    made = []
    for saved in (content, {"state_dict": state}):
        for zipped in (True, False):
            stream = io.BytesIO()
            torch.save(saved, stream, _use_new_zipfile_serialization=zipped)
            made.append(stream.getvalue())
    return made


def checkpoint(content: bytes, folder: Path) -> object:
    from medsegai.errors import ModelError
    from medsegai.networks.checkpoints import read_checkpoint
    from medsegai.networks.quicknat_checkpoints import read_quicknat_checkpoint

    path = folder / "x_axial.pth"
    path.write_bytes(content)
    read: Any
    for read in (read_checkpoint, read_quicknat_checkpoint):
        try:
            weights = read(path)
        except ModelError:
            continue
        weights = getattr(weights, "weights", weights)
        assert sum(values.nbytes for values in weights.values()) <= 8 * len(content)
        [values.double().sum() for values in weights.values()]  # reads every number
    return None


def pickles() -> list[bytes]:
    """The program within a checkpoint."""
    with zipfile.ZipFile(io.BytesIO(checkpoints()[0])) as archive:
        return [archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))]


def pickle_within(content: bytes, folder: Path) -> object:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoints()[0])) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    return checkpoint(stream.getvalue(), folder)


def archives() -> list[bytes]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("dataset.json", "plans.json", "fold_0/checkpoint_final.pth"):
            archive.writestr(f"nnUNetTrainer__nnUNetPlans__3d_fullres/{name}", b"{}" * 50)
        archive.writestr("nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0/progress.png", b"x")
    return [stream.getvalue()]


def archive(content: bytes, folder: Path) -> object:
    from medsegai.families.nnunet.importing import _kind_of
    from medsegai.io.archives import unpacked

    path = folder / "x.zip"
    path.write_bytes(content)
    with unpacked(path, _kind_of, folder) as inside:
        return [file.read_bytes() for file in inside.rglob("*") if file.is_file()]


def cards() -> list[bytes]:
    return [(BUNDLED_MODELS / name / "card.json").read_bytes() for name in ("brain", "hippocampus")]


def card(content: bytes, folder: Path) -> object:
    from medsegai.commands.models import describe_card
    from medsegai.models.card import load_card

    (folder / "card.json").write_bytes(content)
    found = load_card(folder)
    json.dumps(found.to_dict(), allow_nan=False)
    return describe_card(found), found.fingerprint()


NO_HASH = b"0" * 64
"""Stands in a made card where the hash of its weights belongs."""


def models() -> list[bytes]:
    """What `models import` takes: an archive of nnU-Net's, and a card in one line with its weights after it."""
    return [_nnunet_archive(), _model_folder()]


def _nnunet_archive() -> bytes:
    import torch

    import test_checkpoints
    from medsegai.networks.unet import build_unet

    network = build_unet(test_checkpoints.NETWORK, test_checkpoints.ARCHITECTURE, 1, 2)
    start = {"plans": sound_plans(), "dataset_json": test_checkpoints.DATASET}
    checkpoint = {
        "network_weights": {name: torch.ones(v.shape) for name, v in network.state_dict().items()},
        "init_args": {"configuration": "2d", "fold": 0, **start},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    saved, stream = io.BytesIO(), io.BytesIO()
    torch.save(checkpoint, saved)
    with zipfile.ZipFile(stream, "w") as archive:
        inside = "Dataset999_Tiny/nnUNetTrainer__nnUNetPlans__2d"
        archive.writestr(f"{inside}/plans.json", json.dumps(start["plans"]))
        archive.writestr(f"{inside}/dataset.json", json.dumps(start["dataset_json"]))
        archive.writestr(f"{inside}/fold_0/checkpoint_final.pth", saved.getvalue())
    return stream.getvalue()


def _model_folder() -> bytes:
    from safetensors.torch import save

    from medsegai.networks.compact_unet import CompactUNet, CompactUNetConfig

    weights = save(CompactUNet(CompactUNetConfig(2, (4, 8), fold=1)).state_dict())
    member = {
        "name": "fast",
        "weights": "fast.safetensors",
        "sha256": NO_HASH.decode(),
        "classes": [[], [1]],
        "settings": {"widths": [4, 8], "fold": 1, "patch": [16, 16, 16], "grid": [32, 32, 32]},
    }
    card = {
        "id": "made",
        "name": "Made",
        "family": "unet3d",
        "version": "1",
        "channels": [{"name": "T1", "modality": "MR"}],
        "labels": [{"value": 1, "name": "Liver", "color": [9, 9, 9]}],
        "members": [member],
        "spacing_mm": [2, 2, 2],
    }
    return json.dumps(card).encode() + b"\n" + weights


def import_of_a_model(content: bytes, folder: Path) -> object:
    """What the confined process of `models import` does; then its networks are read, as the engine does."""
    from medsegai.families import load_model
    from medsegai.families._member_network import NetworkModel
    from medsegai.models.importing import _check_staged, _stage

    source, staged = folder / "model.zip", folder / "staged"
    if content.startswith(b"{"):
        source = folder / "model"
        source.mkdir()
        card_line, _, weights = content.partition(b"\n")
        digest = hashlib.sha256(weights).hexdigest().encode()
        (source / "card.json").write_bytes(card_line.replace(NO_HASH, digest))
        (source / "fast.safetensors").write_bytes(weights)
    else:
        source.write_bytes(content)
    found = _stage(source, staged, None)
    _check_staged(staged)
    assert sum(path.stat().st_size for path in staged.iterdir()) <= 8 * len(content) + (1 << 20)
    model = load_model(found)
    assert isinstance(model, NetworkModel)
    return [network.load() for network in model.networks.values()]


def bundles() -> list[bytes]:
    """Configuration and metadata of bundles of MONAI, a line each."""
    made = (
        Bundle(),
        Bundle(postprocessing=REGIONS_BACK),
        Bundle(more={"out": 4, "wide": "$(2 + @out) * 2 if @out > 1 else [1, 'a'][0]"}),
    )
    return [
        b"\n".join(json.dumps(part).encode() for part in (one.configuration(), one.metadata()))
        for one in made
    ]


@functools.cache
def bundle_weights() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        return (Bundle().write(Path(name)) / "models" / "model.pt").read_bytes()


def bundle(content: bytes, folder: Path) -> object:
    """Every entry of the configuration is followed too, not only those that are needed."""
    from medsegai.errors import ModelError
    from medsegai.families import load_model
    from medsegai.families.monai import import_model
    from medsegai.families.monai.configuration import Configuration

    source = folder / "made"
    for name in ("configs", "models"):
        (source / name).mkdir(parents=True)
    configuration, _, metadata = content.partition(b"\n")
    (source / "configs" / "inference.json").write_bytes(configuration)
    (source / "configs" / "metadata.json").write_bytes(metadata)
    (source / "models" / "model.pt").write_bytes(bundle_weights())
    with contextlib.suppress(ModelError):
        entries = Configuration.read(source / "configs" / "inference.json")
        for name in list(json.loads(configuration)):
            with contextlib.suppress(ModelError):
                entries.value(name)
    card = import_model(source, folder / "new")
    return None if card is None else load_model(card)


def sound_plans() -> dict[str, Any]:
    """Plans from which a card can be made; those of the tests of checkpoints lack what only a card needs."""
    import test_checkpoints

    made = test_checkpoints.plans()
    made["original_median_spacing_after_transp"] = [1.0, 1.0, 1.0]
    made["original_median_shape_after_transp"] = [8, 8, 8]
    for what in ("data", "seg", "probabilities"):
        options = {"is_seg": what == "seg", "order": 1, "order_z": 0, "force_separate_z": None}
        made["configurations"]["2d"] |= {
            f"resampling_fn_{what}": "resample_data_or_seg_to_shape",
            f"resampling_fn_{what}_kwargs": options,
        }
    return made


def plans() -> list[bytes]:
    return [json.dumps(sound_plans()).encode()]


def nnunet_folder(content: bytes, folder: Path) -> object:
    import test_checkpoints
    from medsegai.models.nnunet_plans import card_of_folder

    results = folder / "Dataset999_Tiny" / "nnUNetTrainer__nnUNetPlans__2d"
    (results / "fold_0").mkdir(parents=True)
    (results / "fold_0" / "checkpoint_final.pth").touch()
    (results / "plans.json").write_bytes(content)
    (results / "dataset.json").write_text(json.dumps(test_checkpoints.DATASET))
    return card_of_folder(results)


def lines() -> list[bytes]:
    messages = [
        {"type": "warm"},
        {
            "type": "array",
            "job": "a",
            "name": "0" * 32 + ".npy",
            "data": "eJwDAAAAAAE=",
            "done": 1,
            "total": 1,
        },
        {
            "type": "segment",
            "job": "a",
            "exchange": None,
            "request": {"inputs": ["x.nii"]},
        },
        {"type": "cancel", "job": "a"},
        {"type": "quit"},
    ]
    return [b"\n".join(json.dumps(message).encode() for message in messages)]


def pipe(content: bytes, folder: Path) -> object:
    """Every line is answered in JSON or obeyed, and the worker stays."""
    from medsegai.worker.protocol import decode
    from medsegai.worker.server import Worker

    outgoing = io.BytesIO()
    worker = Worker({"segment": lambda request, progress: None}, io.BytesIO(content), outgoing)
    worker._read()
    for exchange in worker._arriving.values():
        exchange.close()
    for job in worker._jobs.values():
        job.exchange.close()
    return [decode(line) for line in outgoing.getvalue().splitlines()]


def tables() -> list[bytes]:
    stream = io.StringIO()
    rows = csv.writer(stream)
    rows.writerows([["case", "image", "series"], ["a", "x.nii", ""], ["b", "x.nii", "1.2.3"]])
    return [stream.getvalue().encode()]


def table(content: bytes, folder: Path) -> object:
    from medsegai.models.card import Channel
    from medsegai.output.cases import read_cases

    (folder / "x.nii").touch()
    return read_cases(content, "table", folder, [Channel("MR", "MR")])


TARGETS = {
    target.name: target
    for target in (
        *(
            Target(ending.strip("."), written(ending), image(ending))
            for ending in (".nii", ".nii.gz", ".nrrd", ".mha")
        ),
        Target("seg.nrrd", segmentations, segmentation),
        Target("dcm", slices, dicom),
        Target("picture", pictures, picture),
        Target("slide", slides, slide),
        Target("checkpoint", checkpoints, checkpoint),
        Target("pickle", pickles, pickle_within),
        Target("zip", archives, archive),
        Target("card", cards, card, text=True),
        Target("import", models, import_of_a_model),
        Target("bundle", bundles, bundle, text=True),
        Target("plans", plans, nnunet_folder, text=True),
        Target("pipe", lines, pipe, text=True),
        Target("table", tables, table, text=True),
    )
}
