"""The exported case: a segmentation, its labels, and the scan from which it was made."""

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
        labels: the meaning of the values, including labels without voxels.
        image: the scan on the same grid.
        notes: the remarks of the readers, in words.
        reference: the plausible ranges of the structures, if the named model has them.
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
    """Read a segmentation and its scan.

    The labels may have the axes of the scan in another order, or only fill a part of its grid, as Slicer saves
    them; nothing is resampled.

    Args:
        segmentation: the path of a .seg.nrrd file or labelmap.
        scan: the path of an image, or the folder of a DICOM series.
        model: the model whose card names the labels, for files that only hold values, and has the plausible
            ranges.
        series: the series of a DICOM folder, see `read_volume`.

    Raises:
        InputError: a file cannot be read, does not have labels, or has values that the model does not have.
        GeometryError: scan and segmentation have different grids.
        ModelError: the model is unknown.
    """
    labelmap, labels = read_labelmap(segmentation)
    reference = None
    if model is not None:
        card = find_card(model)
        labels, reference = _named(segmentation, labels, card.labels), card.reference
    if not labels:
        raise InputError(
            f"{segmentation} is empty, because it has neither a label nor a segment. Name another file."
        )
    if scan is None:
        return Case(labelmap, labels, None, labelmap.notes, reference)
    image = read_volume(scan, series)
    placed = on_grid(labelmap, image.geometry, str(scan), image.frame_of_reference)
    return Case(placed, labels, image, (*labelmap.notes, *image.notes), reference)


def _named(path: Path, found: Sequence[Label], known: Sequence[Label]) -> tuple[Label, ...]:
    """Return the labels of a model for the values of a file."""
    by_value = {label.value: label for label in known}
    strange = [str(label.value) for label in found if label.value not in by_value]
    if strange:
        raise InputError(
            f"{path} has values that the model does not have: {', '.join(strange[:10])}. Name the model that "
            "it was made with."
        )
    return tuple(known)
