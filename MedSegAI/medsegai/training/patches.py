"""Train a classifier of pictures or patches: a frozen stage, then an unfrozen one with one cycle, fold by fold.

In the frozen stage the pre-trained encoder does not change, so only a linear decision is learned: that is a convex
problem, which is solved exactly on features that are computed once. Then all layers are unfrozen; deep layers
learn faster than shallow ones (J. Howard & S. Ruder, "Universal Language Model Fine-tuning", 2018), over one cycle
of the learning rate (L. Smith, "A disciplined approach to neural network hyper-parameters", 2018).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medsegai.errors import InputError, ModelError
from medsegai.evaluation.folds import stratified_folds
from medsegai.io.picture_sets import PictureSet
from medsegai.networks.classifier import CellClassifier
from medsegai.networks.encoder_weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PRETRAINED,
    load_encoder,
    load_pretrained,
    read_state,
)
from medsegai.networks.encoders import build_encoder
from medsegai.progress import Check, Progress, unstoppable
from medsegai.training.learning_rate import FoundRate, find_learning_rate
from medsegai.training.patches_options import PatchTraining
from medsegai.training.pictures import (
    SizedPictures,
    TrainingPictures,
    mixed,
)

logger = logging.getLogger(__name__)

FINDER_STEPS = 60
"""The number of rates that the finder tries."""

SHALLOW = 0.1
"""The learning rate of the shallower half of the encoder, as a share of that of the deeper half."""

VARIANTS = 3
"""The number of augmented copies of each picture that the frozen stage learns from besides the picture itself."""

FROZEN_PICTURES = 20_000
"""The largest number of pictures that the frozen stage learns from."""

FROZEN_STEPS = 200
"""The largest number of steps of L-BFGS."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """An encoder to start from: its weights, and how pictures are normalised for it."""

    name: str
    weights: Mapping[str, Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    origin: str

    @classmethod
    def of(cls, training: PatchTraining) -> Encoded:
        """Raises ModelError: the encoder or the weights are unknown."""
        torch.manual_seed(training.seed)
        encoder = build_encoder(training.encoder)
        mean, std, origin = IMAGENET_MEAN, IMAGENET_STD, "Encoder: random weights."
        if training.weights == "package" and training.encoder in PRETRAINED:
            source = load_pretrained(encoder, training.encoder)
            mean, std, origin = source.mean, source.std, source.origin
        elif training.weights == "package":
            logger.warning(
                "No package carries weights for %s, so it starts from random weights. Use "
                "--weights to start from a file.",
                training.encoder,
            )
        elif training.weights != "none":
            load_encoder(encoder, read_state(Path(training.weights)), training.weights)
            origin = f"Encoder: weights of {Path(training.weights).name}."
        return cls(training.encoder, encoder.state_dict(), mean, std, origin)

    def classifier(self, classes: int) -> CellClassifier:
        encoder = build_encoder(self.name)
        encoder.load_state_dict(dict(self.weights))
        return CellClassifier(encoder, classes, dropout=0.2)


class Normalised(nn.Module):
    """A classifier of pictures with values from 0 to 255."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: CellClassifier, encoded: Encoded) -> None:
        super().__init__()
        self.classifier = classifier
        for name, values in (("mean", encoded.mean), ("std", encoded.std)):
            tensor = torch.tensor(values, dtype=torch.float32).reshape(1, 3, 1, 1) * 255
            self.register_buffer(name, tensor, persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        normalised: Tensor = (images - self.mean) / self.std
        return normalised

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, class)."""
        logits: Tensor = self.classifier(self.normalise(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return the features on which the decision is based, (N, width)."""
        features: Tensor = self.classifier.encoder(self.normalise(images))[-1].mean((2, 3))
        return features


@dataclass(frozen=True, eq=False)
class Fold:
    """The numbers of the pictures to learn from, and of the held-out pictures."""

    name: str
    learned: NDArray[np.int64]
    held_out: NDArray[np.int64]


def folds_of(pictures: PictureSet, training: PatchTraining) -> list[Fold]:
    """Return the folds of a set: one if the set has a validation part, otherwise as many as are configured.

    Raises:
        InputError: there are too few patients or slides for so many folds, or a class has too few pictures.
    """
    parts = np.array([item.part for item in pictures.pictures])
    if "valid" in pictures.parts:
        return [Fold("0", np.flatnonzero(parts == "train"), np.flatnonzero(parts == "valid"))]
    kept = np.flatnonzero(parts != "test")
    labels = [int(label) for label in pictures.labels[kept]]
    groups = [pictures.pictures[number].group for number in kept]
    fold_of = stratified_folds(labels, groups, training.folds, training.seed)
    folds = [
        Fold(str(number), kept[fold_of != number], kept[fold_of == number])
        for number in range(training.folds)
    ]
    _check_classes(pictures, folds)
    return folds


def _check_classes(pictures: PictureSet, folds: Sequence[Fold]) -> None:
    """Refuse folds whose networks would not see all classes."""
    for fold in folds:
        missing = set(range(len(pictures.classes))) - set(pictures.labels[fold.learned].tolist())
        if missing:
            raise InputError(
                f"The class {pictures.classes[min(missing)]!r} of {pictures.source} has all "
                f"of its pictures in one of {len(folds)} folds, so the network of this "
                "fold cannot learn it. Add pictures, or choose fewer folds."
            )


class FrozenFeatures:
    """The features that the untrained encoder computes from pictures, once for all folds.

    Args:
        training: the settings.
        pictures: the pictures in one size.
        encoded: the encoder.
        device: the device that computes.
    """

    def __init__(
        self,
        training: PatchTraining,
        pictures: SizedPictures,
        encoded: Encoded,
        device: torch.device,
    ) -> None:
        self.training, self.pictures, self.encoded = training, pictures, encoded
        self.device = device
        self._known: dict[tuple[int, int], Tensor] = {}
        self._network: Normalised | None = None

    def of(self, numbers: NDArray[np.int64], copy: int, progress: Progress) -> Tensor:
        """Return features (N, width) of pictures; copy 0 is the original pictures, other copies are augmented.

        Features depend a little on the other pictures of their batch. So batches are the same in each fold, also
        if a training was stopped before it; in a set of which a fold uses a part, each fold has its own.
        """
        if len(self.pictures) > FROZEN_PICTURES:
            self._known.clear()
            batches = np.split(
                numbers, range(self.training.batch, len(numbers), self.training.batch)
            )
        else:
            batches = [self._batch(first) for first in np.unique(numbers // self.training.batch)]
        for place, batch in enumerate(batches):
            progress.step("train", place, len(batches))
            part = batch.tolist()
            if (part[0], copy) not in self._known:
                for number, features in zip(part, self._computed(part, copy), strict=True):
                    self._known[number, copy] = features.clone()
        return torch.stack([self._known[int(number), copy] for number in numbers])

    def _batch(self, place: int) -> NDArray[np.int64]:
        """Return the numbers of a batch of all pictures but those that are kept for a test."""
        first = place * self.training.batch
        pictures = self.pictures.pictures.pictures[first : first + self.training.batch]
        return np.array([first + n for n, item in enumerate(pictures) if item.part != "test"])

    def network(self) -> Normalised:
        """Return the initial encoder in evaluation mode; its decision is not trained."""
        if self._network is None:
            classes = len(self.pictures.pictures.classes)
            self._network = Normalised(self.encoded.classifier(classes), self.encoded)
            self._network.to(self.device).eval()
        return self._network

    def _computed(self, numbers: list[int], copy: int) -> Tensor:
        images = self.pictures.batch(numbers)
        if copy:
            dataset = TrainingPictures(
                self.pictures, numbers, self.training.augmentation, self.training.seed
            )
            dataset.epoch = copy
            images = torch.stack([dataset[place][0] for place in range(len(numbers))])
        with torch.inference_mode():
            return self.network().features(images.to(self.device)).float().cpu()


class FoldTraining:
    """One fold: its network and the stages of its training."""

    def __init__(self, frozen: FrozenFeatures, fold: Fold) -> None:
        training, pictures, encoded = frozen.training, frozen.pictures, frozen.encoded
        self.frozen, self.fold = frozen, fold
        self.training, self.pictures = training, pictures
        self.classes = len(pictures.pictures.classes)
        self.device = torch.device("cpu")
        torch.manual_seed(training.seed)
        self.network = Normalised(encoded.classifier(self.classes), encoded)
        self.loss = nn.CrossEntropyLoss(self._weights(), label_smoothing=training.label_smoothing)

    def to(self, device: torch.device) -> FoldTraining:
        self.device = device
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss.to(device)
        return self

    def _weights(self) -> Tensor | None:
        """Return the class weights in the loss, float32 (class,) of mean 1; None if all pictures count alike."""
        if not self.training.balance:
            return None
        labels = self.pictures.pictures.labels[self.fold.learned]
        counts = np.bincount(labels, minlength=self.classes)
        return torch.tensor(len(labels) / (self.classes * counts), dtype=torch.float32)

    def dataset(self) -> TrainingPictures:
        return TrainingPictures(
            self.pictures,
            self.fold.learned.tolist(),
            self.training.augmentation,
            self.training.seed,
        )

    def loader(self, dataset: TrainingPictures, epoch: int) -> DataLoader[Any]:
        """Return the batches of an epoch in its own order; a last batch that is too small is left out."""
        dataset.epoch = epoch
        generator = torch.Generator().manual_seed(self.training.seed * 1000 + epoch)
        size = min(self.training.batch, len(dataset))
        return DataLoader(
            dataset,
            size,
            shuffle=True,
            drop_last=True,
            num_workers=self.training.processes,
            generator=generator,
        )

    # frozen

    def solve_frozen(self, progress: Progress) -> float:
        """Solve the decision exactly, without training the encoder, and return its loss."""
        self.network.eval()
        features, labels = self._features(progress)
        mean, deviation = features.mean(0), features.std(0).clamp(min=1e-6)
        scaled = (features - mean) / deviation
        weight, bias, loss = self._solved(scaled, labels, progress.check)
        head = self.network.classifier.head
        with torch.no_grad():
            head.weight.copy_((weight / deviation)[..., None, None])
            assert head.bias is not None
            head.bias.copy_(bias - (weight / deviation) @ mean)
        return loss

    def _features(self, progress: Progress) -> tuple[Tensor, Tensor]:
        """Return features (N, width) of the pictures and their augmented copies, and their classes."""
        random = np.random.default_rng(self.training.seed)
        learned = random.permutation(self.fold.learned)[:FROZEN_PICTURES]
        plain = self.training.augmentation == "none" or len(learned) == FROZEN_PICTURES
        copies = 1 if plain else 1 + VARIANTS
        labels = torch.from_numpy(self.pictures.pictures.labels[learned]).repeat(copies)
        found = [self.frozen.of(learned, copy, progress) for copy in range(copies)]
        return torch.cat(found).to(self.device), labels.to(self.device)

    def _solved(
        self, features: Tensor, labels: Tensor, check: Check
    ) -> tuple[Tensor, Tensor, float]:
        """Return weight (class, width) and bias (class) of the least loss with a normal prior, and that loss."""
        weight = torch.zeros(
            self.classes, features.shape[1], device=self.device, requires_grad=True
        )
        bias = torch.zeros(self.classes, device=self.device, requires_grad=True)
        pictures = len(self.fold.learned)
        solver = torch.optim.LBFGS(
            [weight, bias], max_iter=FROZEN_STEPS, line_search_fn="strong_wolfe"
        )
        losses: list[float] = []

        def closure() -> Tensor:
            check()
            solver.zero_grad()
            fit: Tensor = self.loss(features @ weight.T + bias, labels)
            total = fit + self.training.prior / pictures * weight.square().sum() / 2
            total.backward()
            losses.append(float(fit.detach()))
            return total

        solver.step(closure)
        return weight.detach(), bias.detach(), losses[-1]

    # unfrozen

    def optimiser(self) -> torch.optim.Optimizer:
        """Return AdamW with three groups: the shallow half and the deep half of the encoder, and the decision."""
        from monai.optimizers import generate_param_groups

        names = [name for name, _ in self.network.named_parameters()]
        inside = [name for name in names if ".encoder." in name]
        shallow, deep = set(inside[: len(inside) // 2]), set(inside[len(inside) // 2 :])
        groups = generate_param_groups(
            self.network,
            layer_matches=[lambda item: item[0] in shallow, lambda item: item[0] in deep],
            match_types=["filter", "filter"],
            lr_values=[SHALLOW, 1.0],
        )
        for group in groups:
            group["params"] = list(group["params"])
        return torch.optim.AdamW(groups, lr=1.0, weight_decay=0.01)

    def find_rate(self, check: Check = unstoppable) -> FoundRate:
        """Return the highest rate of the cycle; what was computed before does not change it."""
        self.network.train()
        torch.manual_seed(self.training.seed)
        batches = self.loader(self.dataset(), 10_000)
        return find_learning_rate(
            self.network, self.optimiser(), self.loss, batches, FINDER_STEPS, check
        )

    def schedule(
        self, optimiser: torch.optim.Optimizer, rate: float
    ) -> torch.optim.lr_scheduler.LRScheduler:
        steps = max(1, len(self.loader(self.dataset(), 0))) * self.training.epochs
        rates = [group["lr"] * rate for group in optimiser.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=steps + 1)

    def epoch(
        self,
        number: int,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        progress: Progress,
    ) -> float:
        """Learn from all pictures once, and return the mean loss."""
        self.network.train()
        torch.manual_seed(self.training.seed * 1000 + number)
        loader, losses = self.loader(self.dataset(), number), []
        for step, (images, labels) in enumerate(loader):
            progress.step("train", number * len(loader) + step, self.training.epochs * len(loader))
            targets = nn.functional.one_hot(labels, self.classes).float()
            images, targets = images.to(self.device), targets.to(self.device)
            seed = self.training.seed + 1000 * number + step
            images, targets = mixed(images, targets, self.training.mixup, seed)
            losses.append(self._learn(images, targets, optimiser))
            schedule.step()
        return float(np.mean(losses))

    def _learn(self, images: Tensor, targets: Tensor, optimiser: torch.optim.Optimizer) -> float:
        optimiser.zero_grad()
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda"):
            loss = self.loss(self.network(images), targets)
        if not bool(torch.isfinite(loss)):
            raise ModelError(
                f"The loss of fold {self.fold.name} is not a number. Use a smaller --learning-rate, or look for "
                "damaged pictures."
            )
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        optimiser.step()
        return float(loss.detach())

    # held out

    def held_out(self, check: Check = unstoppable) -> NDArray[np.float64]:
        """Return probabilities (picture, class) of the held-out pictures, averaged over mirror images.

        `check` is called before each batch.
        """
        self.network.eval()
        found = []
        numbers = self.fold.held_out.tolist()
        for start in range(0, len(numbers), self.training.batch):
            check()
            images = self.pictures.batch(numbers[start : start + self.training.batch])
            images = images.to(self.device)
            with torch.inference_mode():
                answers = [
                    self.network(image).float().softmax(1) for image in (images, images.flip(3))
                ]
            found.append((answers[0] + answers[1]) / 2)
        return torch.cat(found).cpu().numpy().astype(np.float64)
