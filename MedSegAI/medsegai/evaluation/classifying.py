"""Evaluation of a model of the family patches on labelled pictures that it has not seen."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medsegai.errors import OutputError, RequestError
from medsegai.evaluation.classification import (
    ClassificationFigures,
    ClassifiedPictures,
    check_specificity,
    classification_figures,
    write_classified,
    write_figures,
)
from medsegai.evaluation.classification_report import (
    ReportContent,
    ShownPicture,
    write_classification_report,
)
from medsegai.evaluation.heat_maps import heat_maps_of_decision
from medsegai.families import load_model
from medsegai.families.patches import PatchesModel
from medsegai.io.atomic import make_folder
from medsegai.io.picture_sets import PictureSet
from medsegai.models.card import ModelCard
from medsegai.models.catalogue import find_card
from medsegai.networks.backends import Compute, choose_compute
from medsegai.progress import Progress

REPORT, FIGURES, TABLE = "report.html", "evaluation.json", "pictures.csv"


@dataclass(frozen=True)
class Classifying:
    """The model to evaluate, the folder of the results, and the device.

    Attributes:
        model: id of the model, or the path of its folder.
        folder: folder of the results.
        specificity: the specificity at which the sensitivity is computed.
    """

    model: str
    folder: Path
    device: str = "auto"
    specificity: float = 0.9

    def __post_init__(self) -> None:
        """Raises RequestError: the specificity is not between 0 and 1."""
        check_specificity(self.specificity)


@dataclass(frozen=True, eq=False)
class Classified:
    """The figures of an evaluation, and the files that were written."""

    figures: ClassificationFigures
    files: tuple[Path, ...]


def classify(pictures: PictureSet, settings: Classifying, progress: Progress) -> Classified:
    """Classify all pictures, and write the table, the figures and the report.

    Raises:
        InputError, ModelError, DeviceError: a picture, the model or the device cannot be used.
        RequestError: the model is of another family, or has other classes.
        OutputError: the folder cannot be written, or holds such files already.
    """
    card = find_card(settings.model)
    model = _classifier(card)
    order = _class_order(model, pictures)
    files = tuple(settings.folder / name for name in (TABLE, FIGURES, REPORT))
    _check_folder(settings.folder, files)
    compute = choose_compute(settings.device)
    found = _probabilities(model, pictures, compute, progress)[:, order]
    judged = ClassifiedPictures.of(pictures, range(len(found)), found)
    figures = classification_figures(judged, settings.specificity)
    write_classified(files[0], judged)
    write_figures(files[1], figures)
    title = f"{card.name} on {pictures.source.name}"
    facts = {"Model": f"{card.id} {card.version}", "Computed on": compute.describe()}
    show = functools.partial(_shown, model, pictures)
    content = ReportContent(title, judged, figures, show, pictures.notes, facts)
    write_classification_report(files[2], content)
    return Classified(figures, files)


def _classifier(card: ModelCard) -> PatchesModel:
    model = load_model(card)
    if not isinstance(model, PatchesModel):
        raise RequestError(
            f"Model {card.id!r} does not classify pictures; it is not of the family patches."
        )
    return model


def _probabilities(
    model: PatchesModel, pictures: PictureSet, compute: Compute, progress: Progress
) -> NDArray[np.float64]:
    """The probabilities (picture, channel of the model)."""
    found = []
    for number, item in enumerate(pictures.pictures):
        progress.step("classify", number, len(pictures.pictures))
        found.append(model.classify(item.read(), compute))
    return np.stack(found)


def _class_order(model: PatchesModel, pictures: PictureSet) -> list[int]:
    """For each class of the pictures, the output channel of the model that predicts it.

    The channel without a label is the class which means that nothing was found; its name does not matter.
    """
    names = {label.value: label.name for label in model.card.labels}
    targets = model.card.members[0].classes
    channels = {names[values[0]]: number for number, values in enumerate(targets) if values}
    normal = [number for number, values in enumerate(targets) if not values]
    missing = [name for name in pictures.classes if name not in channels]
    if len(pictures.classes) != len(targets) or len(missing) != len(normal):
        wanted = ", ".join([*channels, *["and one for nothing found"] * len(normal)])
        raise RequestError(
            f"{pictures.source} has the classes {', '.join(pictures.classes)}, and the model knows {wanted}."
        )
    return [channels[name] if name in channels else normal[0] for name in pictures.classes]


def _check_folder(folder: Path, files: tuple[Path, ...]) -> None:
    for path in files:
        if path.exists():
            raise OutputError(f"{path} exists already. Name another folder.")
    make_folder(folder)


def _shown(model: PatchesModel, pictures: PictureSet, number: int) -> ShownPicture:
    """A picture with the heat maps of the first member for the class that this member decides for."""
    pixels = model.sized(pictures.pictures[number].read())
    image = torch.from_numpy(np.moveaxis(pixels, -1, 0).astype(np.float32))[None]
    return ShownPicture(pixels, heat_maps_of_decision(model.picture_network(), image))
