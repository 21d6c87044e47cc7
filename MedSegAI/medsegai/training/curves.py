"""Curves of loss and Dice over the steps of a run, as a picture and for TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsegai.evaluation.drawing import new_figure, save_figure

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

Entry = Mapping[str, Any]


def series(
    entries: Iterable[Entry], event: str, key: str
) -> dict[str, tuple[list[int], list[float]]]:
    """Return the steps and the values of one quantity in a run's log, by view."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for entry in entries:
        if entry.get("event") == event and entry.get(key) is not None:
            steps, values = found.setdefault(entry["view"], ([], []))
            steps.append(int(entry["step"]))
            values.append(float(entry[key]))
    return found


def draw_curves(
    entries: Sequence[Entry],
    path: Path,
    unit: str = "step",
    measure: tuple[str, str] = ("dice", "mean Dice"),
) -> bool:
    """Draw the training loss and the validation Dice into a PNG file.

    A loss that falls below zero, such as nnU-Net's, is drawn on a linear axis.

    Args:
        entries: the entries of the run's log.
        path: path of the picture.
        unit: the unit that the log counts in, such as steps or epochs.
        measure: the name of the validation figure in the log, and its name in the picture.

    Returns:
        Whether the picture was drawn; without matplotlib it is not, which is logged.
    """
    figure = new_figure(9.0, 3.6)
    if figure is None:
        return False
    left, right = figure.subplots(1, 2)
    losses = series(entries, "train", "loss")
    for view, (steps, values) in losses.items():
        left.plot(steps, values, label=view, linewidth=1.0)
    for event, addition in (("validate", ""), ("corrected", ", corrected cases")):
        for view, (steps, values) in series(entries, event, measure[0]).items():
            right.plot(steps, values, label=view + addition, marker="o", markersize=3)
    positive = all(value > 0 for _, values in losses.values() for value in values)
    scale = "log" if positive else "linear"
    left.set(xlabel=unit, ylabel="loss", yscale=scale, title="Training")
    right.set(xlabel=unit, ylabel=measure[1], ylim=(0.0, 1.0), title="Validation")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    save_figure(figure, path)
    return True


class Board:
    """Writes a run to TensorBoard while it trains, or nothing if TensorBoard is not installed."""

    def __init__(self, folder: Path, resume_at: int) -> None:
        self._writer: SummaryWriter | None = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info(
                "TensorBoard is not installed; the curves are in the log and in the picture."
            )
        else:
            self._writer = SummaryWriter(str(folder), purge_step=resume_at + 1)

    def add(self, entry: Entry) -> None:
        """Write the loss, the learning rate or the Dice of a log entry."""
        if self._writer is None:
            return
        for key in ("loss", "dice_loss", "logistic_loss", "learning_rate", "dice"):
            if key in entry:
                kind = "corrected_dice" if entry["event"] == "corrected" else key
                self._writer.add_scalar(f"{entry['view']}/{kind}", entry[key], entry["step"])

    def close(self) -> None:
        """Close the log of TensorBoard, if there is one."""
        if self._writer is not None:
            self._writer.close()
