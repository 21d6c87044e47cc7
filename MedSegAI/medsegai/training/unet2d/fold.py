"""One fold: a network that learns from some cases, and is judged on the held-out ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medsegai.errors import ModelError
from medsegai.evaluation.instances import instance_scores
from medsegai.families._sliding import logits_by_planes, window
from medsegai.measurements.instances import SMALLEST, separated
from medsegai.networks.encoder_weights import load_encoder, load_pretrained, read_state
from medsegai.networks.unet2d import UNet2D
from medsegai.progress import Check, Progress, unstoppable
from medsegai.training.data import BATCHES, DROPOUT, TRAINING, seed_for
from medsegai.training.unet2d.augmentation import augmentation, varied
from medsegai.training.unet2d.config import Training2DConfig
from medsegai.training.unet2d.data import PictureCase, fitted_target
from medsegai.training.unet2d.optimisation import Lookahead, PictureLoss, Rates, build_optimiser

logger = logging.getLogger(__name__)

LARGEST_GRADIENT = 10.0
"""The largest norm of the gradient of all weights; longer gradients are clipped."""

WHAT_TO_DO = "Use a smaller optimiser.learning_rate, or look for damaged images."
"""What messages about numbers that are infinite or missing advise."""

MOST_SETTLING = 8
"""The number of batches from which batch norms take their statistics after an epoch."""


@dataclass(frozen=True)
class Ready:
    """A case as the network sees it: the image (channel, j, i) from 0 to 1, and classes int64 (j, i)."""

    case: PictureCase
    image: Tensor
    target: Tensor


def made_ready(config: Training2DConfig, cases: Sequence[PictureCase]) -> list[Ready]:
    """Fit cases to the network's size."""
    return [
        Ready(case, config.image.fitted(case.image), fitted_target(config.image, case.target))
        for case in cases
    ]


class Fold:
    """A network, its optimiser and their progress."""

    def __init__(self, config: Training2DConfig, number: int, device: torch.device) -> None:
        self.config, self.number, self.device = config, number, device
        torch.manual_seed(seed_for(config.seed, DROPOUT, number))
        self.network = UNet2D(config.network_config())
        self.origin = pretrained(self.network, config)
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = PictureLoss(config.loss).to(device)
        self.optimiser = build_optimiser(self.network, config.optimiser)
        self.rates = Rates(self.optimiser, config.optimiser, config.epochs)
        self.lookahead = Lookahead(self.network, config.optimiser.lookahead)
        patch = config.image.patch if config.image.fit is None else None
        self.transform = augmentation(config.augmentation, patch)
        self.epoch = 0

    @property
    def name(self) -> str:
        """The name of the member of the model."""
        return f"fold_{self.number}"

    def learn(self, ready: Sequence[Ready], progress: Progress) -> float:
        """Train one epoch, and return the mean loss.

        Raises:
            Cancelled: the user stopped the training; the epoch is repeated later.
            ModelError: the loss is not a number.
        """
        config, losses = self.config, []
        self._train_layers()
        batches = self._batches(len(ready), self.epoch)
        for place, batch in enumerate(batches):
            done = self.epoch + place / len(batches)
            progress.step("train", self.number * config.epochs + done, config.folds * config.epochs)
            self.rates.follow(done)
            images, classes = self._drawn(ready, batch)
            losses.append(self._step(images, classes))
        self.settle(ready, progress.check)
        self.epoch += 1
        self._check_finite()
        return float(np.mean(losses))

    def _check_finite(self) -> None:
        """Raise ModelError: a weight, or a mean or variance of a batch norm, is not a number."""
        if not all(values.isfinite().all() for values in self.network.state_dict().values()):
            raise ModelError(
                f"Weights of {self.name} are not numbers after epoch {self.epoch}. {WHAT_TO_DO}"
            )

    def _train_layers(self) -> None:
        """Set the layers to training; those of the encoder stay frozen in the first epochs."""
        frozen = self.epoch < self.config.optimiser.frozen_epochs
        self.network.train()
        self.network.encoder.train(not frozen).requires_grad_(not frozen)

    @torch.no_grad()
    def settle(self, ready: Sequence[Ready], check: Check = unstoppable) -> None:
        """Measure the means and variances of batch norms again, on images that are not augmented.

        The running statistics lag behind weights that change fast, and come from augmented images.
        """
        learning = self._learning_norms()
        momenta = [layer.momentum for layer in learning]
        for layer in learning:
            layer.reset_running_stats()
            layer.momentum = None  # average over all batches
        height, width = self.config.image.tile
        for batch in self._batches(len(ready), self.epoch + 1)[:MOST_SETTLING]:
            check()
            images = torch.stack([ready[n % len(ready)].image[:, :height, :width] for n in batch])
            with self._autocast():
                self.network(self.config.image.normalised(images).to(self.device))
        for layer, momentum in zip(learning, momenta, strict=True):
            layer.momentum = momentum

    def _learning_norms(self) -> list[torch.nn.BatchNorm2d]:
        return [
            layer
            for layer in self.network.modules()
            if isinstance(layer, torch.nn.BatchNorm2d) and layer.training
        ]

    def drawn_batches(self, ready: Sequence[Ready]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the present epoch, without learning from them."""
        for batch in self._batches(len(ready), self.epoch):
            yield self._drawn(ready, batch)

    def _batches(self, count: int, epoch: int) -> list[NDArray[np.int64]]:
        """Return batches of sample numbers in an epoch's own order; a single one at the end is left out."""
        config = self.config
        stream = self.number * 100_000 + epoch
        random = np.random.default_rng(seed_for(config.seed, BATCHES, stream))
        order = random.permutation(count * config.patches_per_image)
        cuts = range(config.batch, len(order), config.batch)
        return [batch for batch in np.split(order, cuts) if len(batch) > 1]

    def _drawn(self, ready: Sequence[Ready], batch: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return augmented images as the network sees them, and their classes."""
        drawn = []
        for number in batch.tolist():
            sample = ready[number % len(ready)]
            index = ((self.number * 100_000 + self.epoch) << 24) + number
            seed = seed_for(self.config.seed, TRAINING, index)
            drawn.append(varied(self.transform, sample.image, sample.target, seed))
        images, classes = (torch.stack(part) for part in zip(*drawn, strict=True))
        return self.config.image.normalised(images).to(self.device), classes.to(self.device)

    def _step(self, images: Tensor, classes: Tensor) -> float:
        images = images.contiguous(memory_format=torch.channels_last)
        self.optimiser.zero_grad()
        with self._autocast():
            answers = self.network.answers(images)
        loss = self.loss.of_all(answers, classes)
        if not bool(torch.isfinite(loss)):
            raise ModelError(
                f"The loss of {self.name} is not a number in epoch {self.epoch + 1}. {WHAT_TO_DO}"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT)
        self.optimiser.step()
        self.lookahead.step()
        return float(loss.detach())

    def _autocast(self) -> torch.autocast:
        mixed = self.config.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed)

    def probabilities(
        self, image: Tensor, shape: tuple[int, int], check: Check = unstoppable
    ) -> NDArray[np.float32]:
        """Return the class probabilities on the grid of an image of `shape` (j, i), float32 (class, j, i).

        `check` is called before each tile.
        """
        self.network.eval()
        inside = self.config.image.fitted_shape(shape)
        wanted = (slice(0, 1), slice(0, inside[0]), slice(0, inside[1]))
        seen = self.config.image.normalised(image)[:, None].to(self.device)

        def predict(batch: Tensor) -> Tensor:
            check()
            with torch.no_grad(), self._autocast():
                return self.network(batch).float()

        at = window(seen, self.config.image.tile, 0.5, wanted)
        (logits,) = logits_by_planes(at, [(predict, 1.0)], 0, self.config.classes, [])
        values = logits[:, 0].softmax(0)
        if inside != shape:
            values = functional.interpolate(
                values[None], shape, mode="bilinear", align_corners=False
            )[0]
        return values.cpu().numpy()

    def judge(self, held_out: Sequence[Ready], check: Check = unstoppable) -> list[dict[str, Any]]:
        """Return the scores of each held-out case on its own grid. Raises `Cancelled` as `check` does."""
        return [
            {
                "case": ready.case.name,
                "group": ready.case.group,
                "fold": self.number,
                **self._scores(ready, check),
            }
            for ready in held_out
        ]

    def _scores(self, ready: Ready, check: Check) -> dict[str, float]:
        case = ready.case
        found = self.probabilities(ready.image, case.target.shape, check).argmax(0)
        scores = overlap(found > 0, case.target > 0)
        if self.config.classes > 2 and case.objects is None:
            for number, label in enumerate(self.config.labels, start=1):
                inner = overlap(found == number, case.target == number)
                scores |= {f"{key} of {label.name}": value for key, value in inner.items()}
        if case.objects is not None:
            objects = separated(found == 1, found == 2, SMALLEST)
            scores |= vars(instance_scores(objects, case.objects))
        return scores

    def state(self) -> dict[str, Any]:
        """Return the state that `restore` takes."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rates": self.rates.state_dict(),
            "lookahead": self.lookahead.state_dict(),
            "epoch": self.epoch,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state` returned."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.rates.load_state_dict(state["rates"])
        self.lookahead.load_state_dict(state["lookahead"])
        self.epoch = int(state["epoch"])


def overlap(found: NDArray[np.bool_], expected: NDArray[np.bool_]) -> dict[str, float]:
    """Return Dice and intersection over union of two masks; 1 if both are empty."""
    both, each = int((found & expected).sum()), int(found.sum()) + int(expected.sum())
    if not each:
        return {"dice": 1.0, "iou": 1.0}
    return {"dice": 2 * both / each, "iou": both / (each - both)}


def pretrained(network: UNet2D, config: Training2DConfig) -> str:
    """Give a network the weights that the training file names; return their origin for the card.

    A file of the same network, such as one of an earlier training, gives all layers; any other gives the encoder.

    Raises:
        ModelError: the weights do not exist, or belong to another encoder.
    """
    wanted = config.network.pretrained
    if not wanted:
        return ""
    if wanted == "package":
        return load_pretrained(network.encoder, config.network.encoder).origin
    path = config.source.parent / Path(wanted)
    state = read_state(path)
    if _fits(network, state):
        network.load_state_dict(state, strict=False)
        return f"All layers began with the weights of {path.name}."
    load_encoder(network.encoder, state, str(path))
    return f"Encoder: {config.network.encoder}, from {path.name}."


def _fits(network: UNet2D, state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has all weights of a network but those that only a training has."""
    wanted = {name: values.shape for name, values in network.state_dict().items()}
    given = {name: values.shape for name, values in state.items() if name in wanted}
    missing = (name for name in wanted.keys() - given.keys() if "num_batches_tracked" not in name)
    same = all(shape == wanted[name] for name, shape in given.items())
    return same and all(name.startswith("deep_heads.") for name in missing)
