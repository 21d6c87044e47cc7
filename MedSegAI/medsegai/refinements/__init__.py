"""Refinements, which clean and sharpen a segmentation: each is a module that is found by its name.

A refinement has a dataclass `Options`, whose fields `_settings.setting` makes, and a function
`apply(draft, options, step) -> Refined`. It never alters the draft that it is given, keeps every label that it was
not asked to refine, and measures in millimetres on the grid of the draft. Refinements never import each other.
Nothing heavy is imported before one is applied, so that options can be listed at once.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from medsegai.boxes import label_boxes
from medsegai.errors import GeometryError, RequestError, counted
from medsegai.labels import Label, made_color
from medsegai.models.limits import Limits
from medsegai.models.refinement import Refinement
from medsegai.request import Candidates
from medsegai.volume import Volume, check_same_grid

Step = Callable[[float], None]
"""Receives the finished share of a refinement, from 0 to 1, in small steps; it may raise `Cancelled`."""

NAMED_AT_MOST = 3
"""The number of structures that a sentence about a refinement names; the report has all."""

NAMED_LABELS = 40
"""The largest number of label values that an error lists."""


@dataclass(frozen=True, eq=False)
class Draft:
    """The input of a refinement; all arrays have the same grid.

    Attributes:
        labelmap: label values from 0, (k, j, i), an unsigned integer type.
        labels: the labels of the values; a value without one is named by its number.
        image: the scan, for refinements that need it.
        candidates: the two most probable structures of each voxel according to the model, (k, j, i).

    Raises:
        GeometryError: the image or the candidates have another grid.
    """

    labelmap: Volume
    labels: tuple[Label, ...] = ()
    image: Volume | None = None
    candidates: Candidates | None = None

    def __post_init__(self) -> None:
        grid = self.labelmap.geometry
        if self.image is not None:
            check_same_grid(
                self.image.geometry,
                grid,
                self.image.source or "The image",
                "the segmentation",
                "Name the scan that was segmented, or resample one onto the other first.",
            )
        if self.candidates is not None and self.candidates.first.shape != grid.shape:
            raise GeometryError(
                f"Candidates of shape {self.candidates.first.shape} do not fill a grid of {grid.shape}."
            )

    def label(self, value: int) -> Label:
        """Return the label of a value; a value without a label gets one that is named by its number."""
        for label in self.labels:
            if label.value == value:
                return label
        return Label(value, f"Label {value}", made_color(value))


@dataclass(frozen=True)
class Change:
    """The change of one structure by a refinement.

    Attributes:
        label: the label of the structure.
        lost: number of voxels that belonged to it before but not after.
        gained: number of voxels that belong to it after but not before.
        ml: volume of the lost and gained voxels together.
        where_ras: centroid of the lost and gained voxels together in RAS, in mm.
        gone: whether the structure has no voxel left.
    """

    label: Label
    lost: int
    gained: int
    ml: float
    where_ras: tuple[float, float, float]
    gone: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The change as JSON values."""
        values = {name: value for name, value in vars(self).items() if name != "label"}
        named = {"value": self.label.value, "name": self.label.name}
        return named | values | {"where_ras": list(self.where_ras)}

    def __str__(self) -> str:
        r, a, s = self.where_ras
        end = ", nothing is left" if self.gone else ""
        return (
            f"{self.label.name} -{self.lost} +{self.gained} voxels ({self.ml:.3g} ml around "
            f"R {r:.0f}, A {a:.0f}, S {s:.0f} mm{end})"
        )


@dataclass(frozen=True, eq=False)
class Refined:
    """The result of a refinement: the new labels, (k, j, i) in the type of the draft, the changes, and notes.

    Attributes:
        notes: sentences about anything else the user should know, such as a structure that was left unchanged.
    """

    labels: NDArray[Any]
    changes: tuple[Change, ...] = ()
    voxels: int = 0
    ml: float = 0.0
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, draft: Draft, labels: NDArray[np.integer], notes: Sequence[str] = ()) -> Refined:
        """Compare the new labels with the draft, so that every change is reported.

        If nothing changed, the result has the draft's own array.
        """
        before, geometry = draft.labelmap.voxels, draft.labelmap.geometry
        places = np.flatnonzero(before != labels)
        if not len(places):
            return cls(before, notes=tuple(notes))
        old, new = before.reshape(-1)[places], labels.reshape(-1)[places]
        ijk = np.stack(np.unravel_index(places, geometry.shape)[::-1])
        changes, left = [], label_boxes(labels)
        for value in np.union1d(old, new):
            if value:
                places_of = (ijk[:, old == value], ijk[:, new == value])
                changes.append(_change(draft, int(value), *places_of, int(value) not in left))
        changes.sort(key=lambda change: -change.ml)
        ml = len(places) * geometry.voxel_volume_ml
        return cls(labels, tuple(changes), len(places), ml, tuple(notes))

    def words(self, name: str) -> list[str]:
        """The changes in sentences; an empty list if nothing changed."""
        sentences = list(self.notes)
        if self.changes:
            named = [
                *self.changes[:NAMED_AT_MOST],
                *(item for item in self.changes[NAMED_AT_MOST:] if item.gone),
            ]
            more = len(self.changes) - len(named)
            end = f"; and {more} more, listed in the report" if more else ""
            sentences.insert(
                0,
                f"{title(name)}: {counted(self.voxels, 'voxel', 'voxels')} changed, {self.ml:.3g} ml: "
                f"{'; '.join(str(item) for item in named)}{end}.",
            )
        return sentences

    def losses(self, name: str) -> list[str]:
        """What is always reported to the user: the notes, and structures that have no voxel left."""
        gone = "; ".join(str(item) for item in self.changes if item.gone)
        return [*self.notes, *([f"{title(name)} took away {gone}."] if gone else [])]

    def to_dict(self, refinement: Refinement) -> dict[str, Any]:
        """Return the changes and the refinement that made them as JSON values."""
        return {
            "settings": refinement.to_dict(),
            "voxels": self.voxels,
            "ml": self.ml,
            "structures": [change.to_dict() for change in self.changes],
            "notes": list(self.notes),
        }


def _change(
    draft: Draft, value: int, lost: NDArray[np.int64], gained: NDArray[np.int64], gone: bool
) -> Change:
    """Describe the change of a label, from the voxels (i, j, k) that it lost and gained."""
    geometry = draft.labelmap.geometry
    counts = lost.shape[1], gained.shape[1]
    middle = [*np.concatenate([lost, gained], 1).mean(1), 1.0]
    r, a, s = (geometry.ijk_to_ras @ middle)[:3].tolist()
    ml = sum(counts) * geometry.voxel_volume_ml
    return Change(draft.label(value), *counts, ml, (r, a, s), gone)


def refinement_names() -> tuple[str, ...]:
    """Return the names of all refinements, in alphabetical order."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(name for name in names if not name.startswith("_"))


def option_fields(name: str) -> tuple[Field[Any], ...]:
    """The options of a refinement as fields; `metadata` holds their help texts, bounds and choices.

    Raises:
        RequestError: the refinement does not exist.
    """
    return fields(_module(name).Options)


def title(name: str) -> str:
    """The name of a refinement on the screen and in messages."""
    return str(getattr(_module(name), "TITLE", "") or name.replace("_", " ").capitalize())


def summary(name: str) -> str:
    """A one-line description of a refinement."""
    return (_module(name).__doc__ or "").partition("\n")[0]


def parse(text: str) -> Refinement:
    """Read `name` or `name:option=value;option=value`; several labels are written as in `labels=17+53`.

    Raises:
        RequestError: there is no such refinement or option, or an option does not take that value.
    """
    name, _, rest = text.strip().partition(":")
    known = {item.name: item for item in option_fields(name)}
    options: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in rest.split(";"))):
        option, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise RequestError(f"Write {part!r} in {text!r} as option=value.")
        _require_option(name, option, known)
        if option in options:
            raise RequestError(f"Option {option!r} stands twice in {text!r}.")
        options[option] = _from_text(f"{name}:{option}", value, known[option].default)
    refinement = Refinement(name, options)
    options_of(refinement)
    return refinement


def as_text(refinement: Refinement) -> str:
    """Return the text that `parse` reads as this refinement; labels in groups have no such text."""
    parts = [f"{name}={value_as_text(value)}" for name, value in refinement.options.items()]
    return ":".join(filter(None, (refinement.name, ";".join(parts))))


def options_of(refinement: Refinement, labels: Sequence[Label] = ()) -> Any:
    """Return the `Options` of a refinement, each value checked.

    Args:
        refinement: a refinement from anywhere, such as a card or a message.
        labels: the labels that exist; labels are not checked if none is given.

    Raises:
        RequestError: there is no such refinement, option or label, or a value is out of bounds.
    """
    name, module = refinement.name, _module(refinement.name)
    known = {item.name: item for item in fields(module.Options)}
    values = {}
    for option, value in refinement.options.items():
        _require_option(name, option, known)
        values[option] = _checked(f"{name}:{option}", value, known[option])
    options = module.Options(**values)
    if labels:
        _require_labels(name, options.labels, labels)
    return options


def _require_labels(name: str, named: Sequence[Any], labels: Sequence[Label]) -> None:
    known = {label.value for label in labels}
    for item in named:
        for value in item if isinstance(item, tuple) else (item,):
            if value not in known:
                raise RequestError(
                    f"Refinement {name!r} names label {value}, which is not one of "
                    f"{', '.join(str(number) for number in sorted(known)[:NAMED_LABELS])}"
                    f"{', …' if len(known) > NAMED_LABELS else ''}."
                )


def apply_refinement(
    draft: Draft, refinement: Refinement, step: Step = lambda part: None
) -> Refined:
    """Apply one refinement, and report everything that it changed.

    Raises:
        RequestError: there is no such refinement, option or label, a value is out of bounds, or an image is needed
            and there is none.
        Cancelled: `step` asked to stop.
    """
    options = options_of(refinement, draft.labels)
    step(0.0)
    refined: Refined = _module(refinement.name).apply(draft, options, step)
    step(1.0)
    return refined


def uses_candidates(refinement: Refinement) -> bool:
    """Return whether the refinement uses the candidates of the voxels, for example to reassign freed voxels."""
    return bool(getattr(_module(refinement.name), "USES_CANDIDATES", True))


def _module(name: str) -> ModuleType:
    if name not in refinement_names():
        raise RequestError(
            f"There is no refinement {name!r}. Known refinements: {', '.join(refinement_names())}."
        )
    return importlib.import_module(f"{__name__}.{name}")


def _require_option(name: str, option: str, known: Mapping[str, Any]) -> None:
    if option not in known:
        raise RequestError(
            f"Refinement {name!r} has no option {option!r}. Its options: {', '.join(known)}."
        )


def _from_text(where: str, text: str, default: Any) -> Any:
    """Convert a text to a value of the type of the default."""
    switches = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
    try:
        if isinstance(default, bool):
            return switches[text.lower()]
        if isinstance(default, tuple):
            return tuple(int(number) for number in text.split("+"))
        return type(default)(text)
    except (KeyError, ValueError):
        kind = {bool: "yes or no", int: "a whole number", float: "a number"}.get(type(default))
        kind = kind or "label values joined by +"
        raise RequestError(f"{where} must be {kind}, not {text!r}.") from None


def value_as_text(value: object) -> str:
    """The text of an option's value that `parse` reads: yes or no, numbers, or labels joined by +."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _checked(where: str, value: object, item: Field[Any]) -> Any:
    default, bounds, choices = item.default, item.metadata["bounds"], item.metadata["choices"]
    if isinstance(default, tuple):
        return _checked_labels(where, value)
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise RequestError(f"{where} must be a {type(default).__name__}, not {value!r}.")
    if choices and value not in choices:
        raise RequestError(f"{where} must be one of {', '.join(choices)}, not {value!r}.")
    problem = None if bounds is None else Limits(*bounds).problem(cast(float, value))
    if problem is not None:
        raise RequestError(f"{where} {problem}.")
    return value


def _checked_labels(where: str, value: Any) -> tuple[Any, ...]:
    """Check label values, or groups of them, and return them as tuples."""
    several = isinstance(value, tuple)
    found: tuple[Any, ...] = value if several else ()
    numbers = [
        number for item in found for number in (item if isinstance(item, tuple) else (item,))
    ]
    if not several or not all(type(number) is int and number > 0 for number in numbers):
        raise RequestError(f"{where} must be values of labels, 1 or more, not {value!r}.")
    return found
