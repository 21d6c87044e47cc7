"""Tuberculosis against normal on the 100 shared chest radiographs: ten times five folds.

The frozen stage of `medsegai train patches` alone, so that fifty trainings take minutes: its features, those of
the radiographs and of their mirror images, are computed once. With --epochs, the unfrozen stage follows, on the
same folds. Each repetition pools what its five folds held out; mean and standard deviation are over the
repetitions.

    python Testing/bench/tuberculosis.py --size 448
    python Testing/bench/tuberculosis.py --size 224 --epochs 6 --repetitions 1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from medsegai.evaluation.classification import auc
from medsegai.evaluation.folds import stratified_folds
from medsegai.io.picture_sets import Picture, PictureSet, read_rgb
from medsegai.progress import Progress
from medsegai.training import patches
from medsegai.training.patches import Encoded, Fold, FoldTraining, FrozenFeatures
from medsegai.training.patches_options import PatchTraining
from medsegai.training.pictures import SizedPictures

STAGES = ("frozen", "unfrozen")

CLASSES = ("normal", "tuberculosis")


def radiographs(folder: Path) -> PictureSet:
    """The shared radiographs, whose class is the last digit of their name."""
    paths = sorted(folder.glob("*.png"))
    pictures = tuple(
        Picture(path.name, int(path.stem[-1]), path.stem, "", lambda path=path: read_rgb(path))
        for path in paths
    )
    return PictureSet(folder, CLASSES, pictures)


def features_of(frozen: FrozenFeatures, kept: Path | None) -> list[torch.Tensor]:
    """Features of the radiographs and of their mirror images, (N, width) each; from the file where it is there."""
    if kept is not None and kept.is_file():
        with np.load(kept) as file:
            return [torch.from_numpy(file[name]) for name in ("plain", "mirrored")]
    every = np.arange(len(frozen.pictures))
    network, mirrored = frozen.network(), []
    for number in every:
        with torch.inference_mode():
            mirrored.append(network.features(frozen.pictures.batch([int(number)]).flip(3)))
    found = [frozen.of(every, 0, Progress()), torch.cat(mirrored)]
    if kept is not None:
        np.savez(kept, plain=found[0].numpy(), mirrored=found[1].numpy())
    return found


class Mirrored(FrozenFeatures):
    """Features that are known: copy 0 of the radiographs, copy 1 of their mirror images."""

    seen: Sequence[torch.Tensor] = ()

    def of(self, numbers: np.ndarray, copy: int, progress: Progress) -> torch.Tensor:
        return self.seen[copy][torch.from_numpy(numbers)]


def unfrozen(work: FoldTraining) -> np.ndarray:
    """Probabilities (picture, class) of the held-out radiographs after the unfrozen stage."""
    optimiser = work.optimiser()
    schedule = work.schedule(optimiser, work.training.learning_rate)
    for epoch in range(work.training.epochs):
        loss = work.epoch(epoch, optimiser, schedule, Progress())
        print(f"fold {work.fold.name}, epoch {epoch + 1}: loss {loss:.3f}", flush=True)
    return work.held_out()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, default=Path("../shared/data/chest-xray/images"))
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--encoder", default="mobilenet_v2")
    parser.add_argument("--features", type=Path, help="file (.npz) that keeps the features")
    parser.add_argument("--prior", type=float, default=100.0)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=0, help="of the unfrozen stage")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    arguments = parser.parse_args()
    training = PatchTraining(
        arguments.images,
        kind="picture",
        encoder=arguments.encoder,
        size=arguments.size,
        augmentation="radiograph",
        prior=arguments.prior,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
    )
    pictures = radiographs(arguments.images)
    sized = SizedPictures(pictures, (arguments.size, arguments.size))
    patches.VARIANTS = 1
    frozen = Mirrored(training, sized, Encoded.of(training), torch.device("cpu"))
    frozen.seen = seen = features_of(
        FrozenFeatures(training, sized, frozen.encoded, frozen.device), arguments.features
    )
    every = np.arange(len(pictures.pictures))
    labels = pictures.labels
    figures: dict[str, list[tuple[float, float]]] = {}
    for repetition in range(arguments.repetitions):
        fold_of = stratified_folds(labels.tolist(), [str(n) for n in every], 5, repetition)
        held_out = {
            stage: np.zeros((len(every), 2)) for stage in STAGES[: 1 + (training.epochs > 0)]
        }
        for fold in range(5):
            numbers = every[fold_of == fold]
            work = FoldTraining(frozen, Fold(str(fold), every[fold_of != fold], numbers))
            work.to(frozen.device).solve_frozen(Progress())
            head = work.network.classifier.head
            for features in seen:
                logits = features[numbers] @ head.weight[..., 0, 0].T + head.bias
                held_out["frozen"][numbers] += logits.softmax(1).detach().numpy() / 2
            if training.epochs:
                held_out["unfrozen"][numbers] = unfrozen(work)
        for stage, answers in held_out.items():
            right = float((answers.argmax(1) == labels).mean())
            figures.setdefault(stage, []).append((right, auc(labels, answers)))
            print(f"{repetition}, {stage}: accuracy {right:.3f}, AUC {figures[stage][-1][1]:.3f}")
    for stage, found in figures.items():
        mean, deviation = np.mean(found, 0), np.std(found, 0, ddof=int(len(found) > 1))
        print(
            f"{stage}: accuracy {mean[0]:.3f} ± {deviation[0]:.3f}, AUC {mean[1]:.3f} ± {deviation[1]:.3f}"
        )


if __name__ == "__main__":
    main()
