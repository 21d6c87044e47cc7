"""Ten minutes on a GPU: train a wider brain network, then time heads and a CT, labels compared with the CPU's.

    python Testing/bench/gpu_sprint.py DATA -o sprint --minutes 7
    python Testing/bench/gpu_sprint.py DATA -o sprint --minutes 0.2 --small --device cpu

DATA is the folder of the label maps of BBillot/SynthSeg. Volumes are made on the GPU as well. What comes back is
`sprint/run/model` (weights in half precision, below 16 MiB) and `sprint/times.json`. On any machine
`medsegai train unet3d sprint/training.toml --from sprint/run/model` continues from these weights. `--small` makes
everything tiny, to try the script itself.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from medsegai.engine import segment
from medsegai.labels import Label
from medsegai.models.card import Channel, MemberCard, ModelCard, card_from_dict, file_sha256
from medsegai.models.catalogue import find_card
from medsegai.networks.unet import build_unet
from medsegai.preprocessing.tiles import gaussian, tile_starts
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.training.config import TrainingConfig, load_config
from medsegai.training.run import RunOptions, TimeLimit, train
from medsegai.training.unet3d import build_trainers
from medsegai.volume import Geometry, Volume

Size = tuple[int, int, int]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    config = sprint_config(arguments.output, arguments.data, arguments.small)
    limit = TimeLimit.of(arguments.minutes, None)
    options = RunOptions(arguments.output / "run", device=arguments.device, limit=limit)
    print("trained:", train(build_trainers, config, options, Progress()), flush=True)
    figures = {
        "device": _device_name(arguments.device),
        "head": head_times(arguments.device, arguments.small),
        "ct25": ct_times(arguments.output, arguments.device, arguments.small),
    }
    text = json.dumps(figures, indent=1)
    (arguments.output / "times.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def sprint_config(folder: Path, data: Path, small: bool) -> TrainingConfig:
    """The training file of `brain`, with a wide network at 1 mm and larger batches."""
    brain = find_card("brain")
    widths, patch = ([4, 8], 16) if small else ([48, 96, 192, 256], 128)
    settings = {"network": "compact", "widths": widths, "fold": 2, "patch": [patch] * 3}
    axial = brain.member("axial")
    member = MemberCard("fine", "fine.safetensors", classes=axial.classes, settings=settings)
    card = replace(
        brain,
        id="brain-sprint",
        family="unet3d",
        members=(member,),
        spacing_mm=(1.0, 1.0, 1.0),
        settings={"grid": [256, 256, 256], "intensity": "percentile", "antialias": True},
        calibration=None,
        reference=None,
        suggested_refinements=(),
        performance={},
    )
    (folder / "card.json").write_text(json.dumps(card.to_dict()), encoding="utf-8")
    config = load_config(brain.folder / "training.toml")
    (folder / "training.toml").write_text(config.source.read_text(encoding="utf-8"))
    sampling = replace(config.sampling, batch=1 if small else 4, pool=4 if small else 48)
    return replace(
        config,
        source=folder / "training.toml",
        card="card.json",
        members=("fine",),
        steps=4 if small else 100_000,
        compile=not small,
        checkpoint_every=100,
        data=replace(
            config.data,
            root=str(data.resolve()),
            crop_voxels=(32, 32, 32) if small else (192, 160, 160),
        ),
        sampling=replace(sampling, refresh=3, ahead=0, patch=(patch, patch, patch)),
        optimiser=replace(
            config.optimiser,
            name="muon",
            learning_rate=5e-3,
            weight_decay=0.01,
            schedule="trapezoid",
            warm_up=60,
            gradient_limit=2.0,
            ema=0.999,
        ),
        validation=replace(config.validation, every=2 if small else 500, volumes=2),
    )


def head_times(device: str, small: bool) -> dict[str, Any]:
    """A head of 256³ voxels of 1 mm through the bundled brain model, warm: seconds, memory, labels of the CPU."""
    edge = 48 if small else 256
    axes = [np.linspace(-1.3, 1.3, edge)] * 3
    k, j, i = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt(k**2 + j**2 + i**2)
    voxels = np.where(radius < 1, 600 + 300 * np.sin(9 * k) * np.cos(7 * j) * np.sin(8 * i), 0)
    spacing = 256.0 / edge
    grid = Geometry.from_spacing((edge, edge, edge), (spacing,) * 3, (0.0, 0.0, 0.0))
    scan = Volume(voxels.astype(np.float32), grid)
    members = {"all": (), "axial": ("axial",)} if not small else {"axial": ("axial",)}
    return {name: _compared(scan, "brain", chosen, device) for name, chosen in members.items()}


def ct_times(folder: Path, device: str, small: bool) -> dict[str, Any]:
    """A CT of 256 x 256 x 200 voxels with 25 classes, random weights, beside plain eager torch."""
    shape: Size = (24, 32, 32) if small else (200, 256, 256)
    card = ct_card(folder / "ct25", small)
    random = np.random.default_rng(0)
    voxels = random.normal(0.0, 300.0, shape).astype(np.float32)
    scan = Volume(voxels, Geometry.from_spacing(shape, (1.0, 1.0, 1.5), (0.0, 0.0, 0.0)))
    ours = _compared(scan, str(folder / "ct25"), (), device)
    plain = _warm(lambda: plain_eager(card, voxels, device), device)
    return ours | {"plain_seconds": plain[1], "faster": plain[1] / ours["seconds"]}


def ct_card(folder: Path, small: bool) -> ModelCard:
    """A model card of nnU-Net's family with random weights."""
    stages = 3 if small else 6
    features = [4, 8, 8] if small else [32, 64, 128, 256, 320, 320]
    arguments = {
        "n_stages": stages,
        "features_per_stage": features,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    network = build_unet("PlainConvUNet", arguments, 1, 25).to_empty(device="cpu")
    torch.manual_seed(0)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / "fold_0.safetensors")
    hippocampus = find_card("hippocampus")
    settings = json.loads(json.dumps(dict(hippocampus.settings)))
    full = settings["configurations"]["3d_fullres"]
    full["network"]["arguments"] = arguments
    full |= {"patch_size": [16] * 3 if small else [128] * 3, "spacing": [1.5, 1.5, 1.5]}
    settings["configurations"] = {"3d_fullres": full}
    classes = ((), *((value,) for value in range(1, 25)))
    made = replace(
        hippocampus,
        id="ct25",
        name="CT of 25 classes",
        channels=(Channel("CT", "CT"),),
        labels=tuple(Label(value, f"organ {value}", (value, 9, 9)) for value in range(1, 25)),
        members=(
            MemberCard(
                "3d_fullres/fold_0",
                "fold_0.safetensors",
                file_sha256(folder / "fold_0.safetensors"),
                classes=classes,
                settings={"configuration": "3d_fullres", "fold": "0", "mirror_axes": []},
            ),
        ),
        settings=settings,
        calibration=None,
        reference=None,
        suggested_refinements=(),
        performance={},
    )
    (folder / "card.json").write_text(json.dumps(made.to_dict()), encoding="utf-8")
    return card_from_dict(made.to_dict(), folder)


@torch.inference_mode()
def plain_eager(card: ModelCard, voxels: np.ndarray, device: str) -> torch.Tensor:
    """What a plain script does: tiles that overlap by half, all logits in memory, interpolated, argmax."""
    settings = card.settings["configurations"]["3d_fullres"]
    network = build_unet("PlainConvUNet", settings["network"]["arguments"], 1, 25)
    network.load_state_dict(load_file(card.folder / "fold_0.safetensors"), assign=True)
    network = network.to(device).eval()
    image = torch.from_numpy((voxels - voxels.mean()) / voxels.std())[None, None].to(device)
    size = [voxels.shape[0], *(round(extent / 1.5) for extent in voxels.shape[1:])]
    image = torch.nn.functional.interpolate(image, size, mode="trilinear")
    patch = tuple(settings["patch_size"])
    weights = torch.tensor(gaussian(patch), device=device)
    total = torch.zeros(25, *size, device=device)
    count = torch.zeros(size, device=device)
    k_starts, j_starts, i_starts = tile_starts(size, patch, 0.5)
    for k, j, i in ((k, j, i) for k in k_starts for j in j_starts for i in i_starts):
        box = (slice(k, k + patch[0]), slice(j, j + patch[1]), slice(i, i + patch[2]))
        half = torch.float16 if device != "cpu" else torch.bfloat16
        with torch.autocast(device.split(":")[0], dtype=half):
            logits = network(image[(..., *box)])[0]
        total[(slice(None), *box)] += logits.float() * weights
        count[box] += weights
    full = torch.nn.functional.interpolate((total / count)[None], voxels.shape, mode="trilinear")
    return full[0].argmax(0).cpu()


def _compared(scan: Volume, model: str, members: tuple[str, ...], device: str) -> dict[str, Any]:
    """Warm seconds and peak memory on the device, and the share of voxels with the labels of the CPU."""
    request = SegmentationRequest((scan,), (model,), members=members, device=device, refine=False)
    result, seconds, gigabytes = _warm(lambda: segment(request), device)
    cpu = segment(replace(request, device="cpu", precision="fp32"))
    same = float((result.labelmap.voxels == cpu.labelmap.voxels).mean())
    return {
        "seconds": seconds,
        "gigabytes": gigabytes,
        "stages": dict(result.seconds),
        "labels_of_the_cpu": same,
    }


def _warm(work: Callable[[], Any], device: str) -> tuple[Any, float, float]:
    """The result of the second run, its seconds, and the peak of the device's memory in GiB."""
    work()
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return result, seconds, torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the label maps of the training")
    parser.add_argument("-o", "--output", type=Path, default=Path("sprint"))
    parser.add_argument("--minutes", type=float, default=7.0, help="of training (default: 7)")
    parser.add_argument("--small", action="store_true", help="everything tiny, to try the script")
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    return parser


if __name__ == "__main__":
    main()
