"""What is exported: a segmentation, what its labels mean, and the scan that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medsegai.errors import InputError
from medsegai.io import on_grid, read_labelmap, read_volume
from medsegai.labels import Label
from medsegai.models.catalogue import find_card
from medsegai.models.quality import Reference
from medsegai.volume import Volume


@dataclass(frozen=True)
class Case:
    """A segmentation, on the grid of its scan if there is one.

    Attributes:
        labelmap: label values, (k, j, i).
        labels: what they mean; also those that no voxel has.
        image: the scan on the same grid.
        notes: what the readers found doubtful, in words.
        reference: what is plausible of the structures, if the model that was named tells.
    """

    labelmap: Volume
    labels: tuple[Label, ...]
    image: Volume | None = None
    notes: tuple[str, ...] = ()
    reference: Reference | None = None


def load_case(
    segmentation: Path,
    scan: Path | None = None,
    model: str | None = None,
    series: str | None = None,
) -> Case:
    """Read a segmentation, and the scan that it belongs to.

    The labels may lie on the grid of the scan in another order of the axes, or fill only a part of
    it, as Slicer saves them; nothing is resampled.

    Args:
        segmentation: .seg.nrrd or labelmap.
        scan: image, or folder of a DICOM series.
        model: whose card names the labels, for files that hold only values, and says what is plausible.
        series: which series of a DICOM folder, see `read_volume`.

    Raises:
        InputError: a file cannot be read, has no labels, or values that the model does not have.
        GeometryError: scan and segmentation lie on different grids.
        ModelError: the model is unknown.
    """
    labelmap, labels = read_labelmap(segmentation)
    reference = None
    if model is not None:
        card = find_card(model)
        labels, reference = _named(segmentation, labels, card.labels), card.reference
    if not labels:
        raise InputError(f"{segmentation} is empty, because it has neither a label nor a segment.")
    if scan is None:
        return Case(labelmap, labels, None, labelmap.notes, reference)
    image = read_volume(scan, series)
    placed = on_grid(labelmap, image.geometry, str(scan), image.frame_of_reference)
    return Case(placed, labels, image, (*labelmap.notes, *image.notes), reference)


def _named(path: Path, found: Sequence[Label], known: Sequence[Label]) -> tuple[Label, ...]:
    """The labels of a model for the values of a file."""
    by_value = {label.value: label for label in known}
    strange = [str(label.value) for label in found if label.value not in by_value]
    if strange:
        raise InputError(
            f"{path} has values that the model does not have: {', '.join(strange[:10])}. Name the model that "
            "it was made with."
        )
    return tuple(known)
