"""A 2D network by every way to run it, beside segmentation_models_pytorch in eager torch: time, labels and Dice.

Usage: python Testing/bench/two_dimensions.py TRAINING.toml RUN SMP [--data FOLDER]. RUN is the output folder of
`medsegai train unet2d TRAINING.toml [--data FOLDER]`, or the folder of a model that it made; SMP a folder that
this made: `pip install --no-deps --target SMP efficientnet_pytorch segmentation_models_pytorch pretrainedmodels
munch`. Times are those of one thread of the processor, the least of some rounds, so that other programs matter
little.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch counts the processors

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from medsegai.models.card import CARD_NAME, load_card
from medsegai.networks.backends import CPU, Compute, make_runner
from medsegai.training.checkpoint import best_weights_name, load_weights
from medsegai.training.unet2d.config import load_config
from medsegai.training.unet2d.data import folds_of, read_cases
from medsegai.training.unet2d.fold import Fold, made_ready, overlap

ROUNDS, TIMED = 5, 6
"""Rounds, and images in each."""

Runner = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("training", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("smp", type=Path)
    parser.add_argument(
        "--encoder", default="tu-efficientnet_lite0", help="as that library calls it"
    )
    parser.add_argument(
        "--data", type=Path, help="folder of pictures, instead of data.root in TRAINING.toml"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    changes = {"network": {"pretrained": ""}}
    if arguments.data is not None:
        changes["data"] = {"root": str(arguments.data.resolve())}
    config = load_config(arguments.training, changes)
    fold = Fold(config, 0, CPU)
    fold.network.load_state_dict(weights_in(arguments.run, fold.name))
    cases = read_cases(config)
    held_out = set(folds_of(cases, config.folds, config.seed)[0])
    ready = made_ready(config, [case for case in cases if case.name in held_out])
    height, width = (
        int(min(size)) // 32 * 32 for size in zip(*(r.image.shape[1:] for r in ready), strict=True)
    )
    images = torch.stack([config.image.normalised(r.image[:, :height, :width]) for r in ready])
    truth = [r.target[:height, :width].numpy() > 0 for r in ready]
    network = fold.network.eval()
    runners = {"segmentation_models_pytorch": theirs(network, arguments.smp, arguments.encoder)}
    for backend in ("torch", "openvino"):
        for mixed in (False, True):
            compute = Compute(CPU, backend, mixed)
            name = f"MedSegAI, {backend}, {'mixed' if mixed else 'fp32'}"
            runners[name] = make_runner(network, compute, half="network")
    report(runners, images, truth)


def weights_in(folder: Path, fold: str) -> dict[str, Tensor]:
    """The weights of a fold of a run, or of the single network of a model."""
    if not (folder / CARD_NAME).is_file():
        return dict(load_weights(folder / best_weights_name(fold)))
    card = load_card(folder)
    return load_file(card.weights_path(card.members[0]))


def theirs(network: Any, folder: Path, encoder: str) -> Runner:
    """The same network of that library, with the same weights."""
    sys.path.append(str(folder))
    register_fake = torch.library.register_fake
    # torchvision of PyPI beside a torch without CUDA lacks its compiled operations, of which none is needed here.
    torch.library.register_fake = lambda name, *a, **k: (  # type: ignore[assignment]
        (lambda function: function)
        if name.startswith("torchvision::")
        else register_fake(name, *a, **k)
    )
    import segmentation_models_pytorch as smp

    torch.library.register_fake = register_fake
    kinds = {"unet": smp.Unet, "unetplusplus": smp.UnetPlusPlus}
    config = network.config
    model = kinds[config.decoder](
        encoder,
        encoder_weights=None,
        in_channels=config.channels,
        classes=config.classes,
        decoder_channels=config.widths,
    )
    own = network.state_dict()
    wrapped = any(name.startswith("encoder.model.") for name in model.state_dict())
    if wrapped:
        own = {
            name.replace("encoder.", "encoder.model.", 1)
            if name.startswith("encoder.")
            else name: v
            for name, v in own.items()
        }
    model.load_state_dict(own, strict=False)
    return torch.no_grad()(model.eval())


def report(runners: dict[str, Runner], images: Tensor, truth: list[np.ndarray]) -> None:
    """Print a line for each runner; the first is what others are compared with."""
    answers = {
        name: torch.cat([run(image).float() for image in images.split(1)]).argmax(1).numpy()
        for name, run in runners.items()
    }
    least = dict.fromkeys(runners, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runners.items():
            start = time.process_time()
            for image in images[:TIMED].split(1):
                run(image)
            least[name] = min(least[name], (time.process_time() - start) / TIMED)
    first = next(iter(runners))
    for name, found in answers.items():
        dice = np.mean([overlap(a > 0, b)["dice"] for a, b in zip(found, truth, strict=True)])
        print(
            f"{name:32s} {1000 * least[name]:7.1f} ms  {least[first] / least[name]:5.2f}x  "
            f"labels that differ {np.mean(found != answers[first]):.2e}  Dice {dice:.4f}"
        )


if __name__ == "__main__":
    main()
