"""Which volumes are plausible: measured from the label maps that a model was trained on, and put to the test.

    python Testing/bench/reference_ranges.py measure brain ../shared/data/brain-label-maps/training_seg_*.nii.gz \
        --source "15 label maps of whole heads" --write
    python Testing/bench/reference_ranges.py alarms brain ../shared/data/malc2012-train/*_glm.nii.gz
    python Testing/bench/reference_ranges.py mistakes brain ../shared/data/malc2012-train/*_glm.nii.gz

`measure` writes the ranges into the model's card. `alarms` counts what is remarked on label maps that are known
to be good, and `mistakes` which of the mistakes that are made in them are remarked. The ranges must not be
measured from the maps that they are put to the test with.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from medsegai.boxes import grown, label_boxes
from medsegai.commands.console import table
from medsegai.errors import InputError, MedSegAIError
from medsegai.evaluation import read_mapping
from medsegai.io import atomic_path, read_labelmap
from medsegai.labels import Label, counterparts
from medsegai.measurements.plausibility import USUAL_LARGEST_PART, border_sides, parts_of, remarks
from medsegai.models.card import CARD_NAME, ModelCard, card_from_dict
from medsegai.models.catalogue import find_card
from medsegai.models.json_fields import to_json
from medsegai.models.quality import Reference
from medsegai.training.config import load_config
from medsegai.volume import Box, Volume

MAPPING = Path(__file__).with_name("neuromorphometrics_to_freesurfer.csv")
DEVIATIONS = 3.0
"""How many standard deviations from the mean are plausible, where the spread is known."""

KINDS = {
    "volume": "ml is plausible",
    "asymmetry": "left minus right",
    "missing": "not found",
    "border": "touches the",
    "parts": "parts, of which",
}
"""What tells the kinds of remarks apart."""


@dataclass(frozen=True)
class Person:
    """One label map, by label value; structures at the border of the map are left out.

    Attributes:
        volumes_ml: of the structures.
        largest_part: share of each volume in its largest connected part.
    """

    volumes_ml: dict[int, float]
    largest_part: dict[int, float]

    @classmethod
    def of(cls, labelmap: Volume, values: Sequence[int]) -> Person:
        boxes = label_boxes(labelmap.voxels, values)
        whole = [value for value, box in boxes.items() if not border_sides(box, labelmap.geometry)]
        parts = {
            value: sizes
            for value, sizes in parts_of(labelmap.voxels, boxes).items()
            if value in whole
        }
        voxel_ml = labelmap.geometry.voxel_volume_ml
        return cls(
            {value: int(sizes.sum()) * voxel_ml for value, sizes in parts.items()},
            {value: int(sizes.max()) / int(sizes.sum()) for value, sizes in parts.items()},
        )


def deviations(people: int) -> float:
    """How many standard deviations of a sample hold what 3 of the true spread would.

    The prediction interval of normal values: 15 people give 3.8, 200 give 3.1, for few people tell little of the
    spread.
    """
    share = stats.norm.cdf(DEVIATIONS)
    return float(stats.t.ppf(share, people - 1) * math.sqrt(1 + 1 / people))


def reference_of(people: Sequence[Person], labels: Sequence[Label], source: str) -> Reference:
    """Ranges of volumes and asymmetries, from mean and deviation of their logarithms; and the least largest parts.

    Left and right share one range, measured from both. Structures that fewer than half of the people have whole
    get none. The largest part may hold less than that of any of the people by as much as is usual.
    """
    sides = [(labels[left].value, labels[right].value) for left, right in counterparts(labels)]
    together = {value: pair for pair in sides for value in pair}
    volumes, parts = {}, {}
    for label in labels:
        same = together.get(label.value, (label.value,))
        found = [
            [person.volumes_ml[value] for value in same if value in person.volumes_ml]
            for person in people
        ]
        found = [values for values in found if values]
        if 2 * len(found) >= len(people) and len(found) > 2:
            logarithms = np.log([ml for values in found for ml in values])
            volumes[label.value] = _rounded(np.exp(_range(logarithms, len(found))))
            parts[label.value] = round(
                USUAL_LARGEST_PART
                * min(p.largest_part[v] for p in people for v in same if v in p.largest_part),
                3,
            )
    asymmetries = {
        left: _whole(200 * np.tanh(_range(ratios, len(ratios)) / 2))
        for left, right in sides
        if len(ratios := _ratios(people, left, right)) > 2
    }
    return Reference(source, volumes, asymmetries, parts)


def _ratios(people: Sequence[Person], left: int, right: int) -> NDArray[np.float64]:
    """Logarithms of left over right volume; 200 tanh of half of one is the asymmetry in per cent."""
    pairs = [
        (person.volumes_ml[left], person.volumes_ml[right])
        for person in people
        if {left, right} <= person.volumes_ml.keys()
    ]
    return np.array([math.log(one / other) for one, other in pairs])


def _range(values: NDArray[np.float64], people: int) -> NDArray[np.float64]:
    reach = deviations(people) * values.std(ddof=1)
    return np.array([values.mean() - reach, values.mean() + reach])


def _rounded(pair: NDArray[np.float64]) -> tuple[float, float]:
    low, high = (float(f"{value:.3g}") for value in pair)
    return low, high


def _whole(pair: NDArray[np.float64]) -> tuple[float, float]:
    """Outwards to whole per cent."""
    return float(math.floor(pair[0])), float(math.ceil(pair[1]))


def people_of(paths: Sequence[Path], card: ModelCard) -> tuple[list[Person], list[Label]]:
    """The people of the label maps, and the labels whose extent does not depend on how the scan was cut."""
    settings = card.folder / "training.toml"
    data = load_config(settings).data if settings.is_file() else None
    remap = data.remap if data else {}
    labels = [label for label in card.labels if not data or label.value not in data.not_brain]
    people = []
    for path in paths:
        labelmap, _ = read_labelmap(path)
        voxels = labelmap.voxels.copy()
        for value, becomes in remap.items():
            voxels[labelmap.voxels == value] = becomes
        people.append(Person.of(labelmap.with_voxels(voxels), [label.value for label in labels]))
        print(f"{path.name}: {len(people[-1].volumes_ml)} structures", file=sys.stderr)
    return people, labels


def write_reference(card: ModelCard, reference: Reference) -> None:
    """Put the reference into the model's card; the rest of the file stays. Raises ModelError, OutputError."""
    path = card.folder / CARD_NAME
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    data["reference"] = to_json(reference)
    card_from_dict(data, card.folder)
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def kind_of(remark: str) -> str:
    (kind,) = (name for name, words in KINDS.items() if words in remark)
    return kind


def good_maps(paths: Sequence[Path], card: ModelCard) -> Iterator[tuple[str, Volume]]:
    """Label maps with the values of the model; those of Neuromorphometrics are translated."""
    known = set(card.label_values)
    mapping = read_mapping(MAPPING)
    for path in paths:
        labelmap, labels = read_labelmap(path)
        strange = {label.value for label in labels} - known
        yield path.name, mapping.apply(labelmap) if strange else labelmap


def alarms(paths: Sequence[Path], card: ModelCard) -> str:
    """A table of what is remarked on good label maps."""
    counts: Counter[str] = Counter()
    cases: Counter[str] = Counter()
    lines = []
    names = {label.value: label.name for label in card.labels}
    for case, labelmap in good_maps(paths, card):
        found = remarks(labelmap, card.labels, card.reference)
        said = [(value, kind_of(text), text) for value, texts in found.items() for text in texts]
        counts.update(kind for _, kind, _ in said)
        cases.update({kind for _, kind, _ in said} | ({"any"} if said else set()))
        counts["any"] += len(found)
        lines += [f"- {case}: {names[value]}: {text}" for value, _, text in said]
    judged = len(paths) * len(card.reference.label_values if card.reference else card.labels)
    rows = [
        [kind, f"{counts[kind]} of {judged}", f"{cases[kind]} of {len(paths)}"]
        for kind in (*KINDS, "any")
    ]
    return "\n".join([table(["kind", "structures", "cases"], rows), *lines])


Mistake = Callable[[NDArray[Any], int, Box], None]


def delete(voxels: NDArray[Any], value: int, box: Box) -> None:
    voxels[box][voxels[box] == value] = 0


def halve(voxels: NDArray[Any], value: int, box: Box) -> None:
    """Take away what lies beyond the middle of the longest side."""
    sizes = [part.stop - part.start for part in box]
    axis = int(np.argmax(sizes))
    half = list(box)
    half[axis] = slice(box[axis].start + sizes[axis] // 2, box[axis].stop)
    delete(voxels, value, (half[0], half[1], half[2]))


def split(voxels: NDArray[Any], value: int, box: Box) -> None:
    """Take away the third in the middle of the longest side."""
    sizes = [part.stop - part.start for part in box]
    axis = int(np.argmax(sizes))
    third = list(box)
    third[axis] = slice(box[axis].start + sizes[axis] // 3, box[axis].stop - sizes[axis] // 3)
    delete(voxels, value, (third[0], third[1], third[2]))


def double(voxels: NDArray[Any], value: int, box: Box) -> None:
    """A second one, at the far end of the longest axis of the volume, one voxel from its border."""
    mask = voxels[box] == value
    sides = list(box)
    axis = int(np.argmax(voxels.shape))
    length, size = mask.shape[axis], voxels.shape[axis]
    far = box[axis].start + length / 2 < size / 2
    sides[axis] = slice(size - 1 - length, size - 1) if far else slice(1, 1 + length)
    voxels[tuple(sides)][mask] = value


def shift(voxels: NDArray[Any], value: int, box: Box) -> None:
    """Move it along the first axis until it touches the border."""
    mask = voxels[box] == value
    delete(voxels, value, box)
    voxels[(slice(0, mask.shape[0]), *box[1:])][mask] = value


def thicken(voxels: NDArray[Any], value: int, box: Box) -> None:
    """Three voxels more all around."""
    wide = grown(box, (3, 3, 3), voxels.shape)
    mask = ndimage.binary_dilation(voxels[wide] == value, iterations=3)
    voxels[wide][mask] = value


MISTAKES: Mapping[str, Mistake] = {
    "taken away": delete,
    "half taken away": halve,
    "middle third taken away": split,
    "doubled elsewhere": double,
    "moved to the border": shift,
    "3 voxels thicker": thicken,
}


def mistakes(paths: Sequence[Path], card: ModelCard) -> str:
    """A table of how often a mistake in one structure is remarked on it, or on its counterpart."""
    judged = [
        label
        for label in card.labels
        if card.reference is None or label.value in card.reference.label_values
    ]
    caught: Counter[str] = Counter()
    made: Counter[str] = Counter()
    for case, labelmap in good_maps(paths, card):
        boxes = label_boxes(labelmap.voxels, [label.value for label in judged])
        before = remarks(labelmap, judged, card.reference)
        for name, spoil in MISTAKES.items():
            for value, box in boxes.items():
                voxels = labelmap.voxels.copy()
                spoil(voxels, value, box)
                after = remarks(labelmap.with_voxels(voxels), judged, card.reference)
                made[name] += 1
                caught[name] += after.get(value) not in (None, before.get(value))
        print(f"{case}: {dict(caught)}", file=sys.stderr)
    rows = [
        [name, f"{caught[name]} of {made[name]}", f"{caught[name] / made[name]:.0%}"]
        for name in made
    ]
    return table(["mistake", "remarked", ""], rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    actions = parser.add_subparsers(required=True, dest="action")
    for name in ("measure", "alarms", "mistakes"):
        action = actions.add_parser(name)
        action.add_argument("model", help="id or folder of the model")
        action.add_argument("maps", nargs="+", type=Path, help="label maps")
        if name == "measure":
            action.add_argument("--source", required=True, help="whose maps these are, in words")
            action.add_argument("--write", action="store_true", help="write into the model's card")
    arguments = parser.parse_args(argv)
    try:
        print(_answer(arguments))
    except MedSegAIError as error:
        print(f"reference_ranges: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def described(maps: str, people: int) -> str:
    """The source, as a clinician reads it."""
    reach = deviations(people)
    widened = (
        f" ({reach:.1f}, because {people} cases say little about the spread)"
        if reach > 1.1 * DEVIATIONS
        else ""
    )
    return (
        f"within {DEVIATIONS:g} standard deviations{widened} of {maps.rstrip('.')}, by the logarithm of the "
        "volume. This is not a norm population"
    )


def _answer(arguments: argparse.Namespace) -> str:
    card = find_card(arguments.model)
    paths = sorted(arguments.maps)
    if arguments.action != "measure":
        return (alarms if arguments.action == "alarms" else mistakes)(paths, card)
    people, labels = people_of(paths, card)
    if len(people) < 3:
        raise InputError("Name the label maps of at least three people.")
    reference = reference_of(people, labels, described(arguments.source, len(people)))
    if arguments.write:
        write_reference(card, reference)
    return json.dumps(to_json(reference), indent=1)


if __name__ == "__main__":
    sys.exit(main())
