"""Evaluation of files: pairs predictions with references, finds their labels, and computes the figures."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsegai.errors import InputError, listed
from medsegai.evaluation.mapping import LabelMapping, read_mapping
from medsegai.evaluation.measures import StructureFigures, evaluate
from medsegai.evaluation.report import CaseFigures, Evaluation
from medsegai.io import READABLE, check_output, read_labelmap
from medsegai.io.labelmaps import unique_values
from medsegai.labels import Label
from medsegai.models.catalogue import find_card
from medsegai.progress import Progress
from medsegai.volume import Volume

logger = logging.getLogger(__name__)

ENDINGS = sorted({".seg.nrrd", *READABLE} - {".hdr", ".dcm"}, key=len, reverse=True)
"""The endings of label maps in a folder. Of an Analyze pair, the file with the voxels (.img) is listed."""

STAGE = "evaluate"

NAMED_AT_MOST = 5
"""The largest number of files without a counterpart that a message names."""


@dataclass(frozen=True)
class EvaluationFiles:
    """The files that figures are written to; None if a file is not wanted.

    Attributes:
        csv: one row for each case and structure.
        json: all figures and their means, as a JSON object.
    """

    csv: Path | None = None
    json: Path | None = None

    def check(self) -> None:
        """Check before the work begins that the files can be written. Raises OutputError if one cannot."""
        for path in (self.csv, self.json):
            if path is not None:
                check_output(path)

    def write(self, evaluation: Evaluation) -> None:
        """Write the wanted files. Raises OutputError if one cannot be written."""
        if self.csv is not None:
            evaluation.write_csv(self.csv)
        if self.json is not None:
            evaluation.write_json(self.json)


def run_evaluation(
    predictions: Path,
    references: Path,
    *,
    mapping: Path | None = None,
    model: str | None = None,
    common: bool = False,
    files: EvaluationFiles = EvaluationFiles(),
) -> Evaluation:
    """Evaluate predictions against references and write the figures, as `medsegai evaluate` does.

    Args:
        predictions: one label map, or a folder of them.
        references: one label map, or a folder with files of the same names; their types may differ.
        mapping: path of a table that translates reference values, see `read_mapping`.
        model: id or folder of the model whose labels are evaluated; None for every value that occurs.
        common: whether files without a counterpart are left out.
        files: the files that the figures are written to.

    Raises:
        InputError: a file is missing, cannot be read, or has no counterpart.
        GeometryError: a prediction and its reference have different grids.
        ModelError: the model does not exist.
        OutputError: a result cannot be written, which is checked before the work begins.
    """
    files.check()
    labels = None if model is None else find_card(model).labels
    table = None if mapping is None else read_mapping(mapping)
    evaluation = evaluate_folders(
        predictions, references, mapping=table, labels=labels, common=common
    )
    files.write(evaluation)
    return evaluation


def evaluate_folders(
    predictions: Path,
    references: Path,
    *,
    mapping: LabelMapping | None = None,
    labels: Sequence[Label] | None = None,
    progress: Progress | None = None,
    common: bool = False,
) -> Evaluation:
    """Evaluate every case of two folders, or one pair of files.

    Args:
        predictions: one label map, or a folder of them.
        references: one label map, or a folder of them; the cases of two folders are paired by file name.
        mapping: translates the values of the references; None to compare them as they are.
        labels: the labels to evaluate; None for every value that occurs, with the names in the files.
        progress: receives a report after each case.
        common: whether files without a counterpart are left out.

    Raises:
        InputError, GeometryError: see `run_evaluation`.
        Cancelled: the user stopped.
    """
    progress = progress or Progress(weights={STAGE: 1})
    pairs = pair_cases(Path(predictions), Path(references), common)
    names = _Names(labels)
    cases: list[CaseFigures] = []
    for done, (name, prediction, reference) in enumerate(pairs):
        progress.step(STAGE, done, len(pairs))
        first = names.read(prediction, None)
        second = names.read(reference, mapping)
        figures = evaluate(first, second, names.labels())
        cases.append(CaseFigures(name, tuple(figures), str(prediction), str(reference)))
        spread = cases[-1].spread("dice")
        logger.info("%s: mean Dice %.3f of %d structures", name, spread.mean, spread.count)
    progress.step(STAGE, len(pairs), len(pairs))
    return Evaluation(tuple(_completed(cases, names.labels())), names.notes())


def pair_cases(
    predictions: Path, references: Path, common: bool = False
) -> list[tuple[str, Path, Path]]:
    """Find the name, the prediction and the reference of each case, sorted by name.

    Args:
        predictions, references: two files, or two folders.
        common: whether files without a counterpart are left out.

    Raises:
        InputError: the paths are not two files or two folders, or cases are doubled or have no counterpart.
    """
    _check_kinds(predictions, references)
    if predictions.is_file():
        return [(case_name(predictions), predictions, references)]
    found, expected = _label_maps(predictions), _label_maps(references)
    both = sorted(found.keys() & expected.keys())
    if not both or not (common or found.keys() == expected.keys()):
        raise _unpaired({references: (found, expected), predictions: (expected, found)}, both)
    return [(name, found[name], expected[name]) for name in both]


def _check_kinds(predictions: Path, references: Path) -> None:
    """Refuse paths that do not exist, and a file beside a folder."""
    for path in (predictions, references):
        if not path.exists():
            raise InputError(f"{path} does not exist. Check the name.")
    if predictions.is_file() != references.is_file():
        raise InputError(
            f"{predictions} and {references}: one is a file, the other a folder. Name two label "
            "maps, or two folders of label maps."
        )


def _unpaired(
    sides: Mapping[Path, tuple[Mapping[str, Path], Mapping[str, Path]]], both: Sequence[str]
) -> InputError:
    """Return the error about files without counterpart; a folder's name leads to the files of the other folder."""
    lonely = (
        _lonely(folder, [items[name] for name in sorted(items.keys() - others.keys())])
        for folder, (items, others) in sides.items()
        if items.keys() - others.keys()
    )
    advice = f"--common evaluates the {len(both)} that are in both." if both else "Rename them."
    same = "A prediction and its reference have the same file name, apart from the file type."
    return InputError(" ".join([*lonely, same, advice]))


def _lonely(folder: Path, files: Sequence[Path]) -> str:
    """A sentence that says which files have no counterpart in `folder`; it names the first ones."""
    names = listed(files, NAMED_AT_MOST)
    if len(files) > NAMED_AT_MOST:
        names = f"{len(files)} files: {names}"
    return f"{folder} has no counterpart of {names}."


def case_name(path: Path) -> str:
    """The file name without the ending of its type: `sub-1.nii.gz` gives `sub-1`."""
    ending = next((item for item in ENDINGS if path.name.lower().endswith(item)), path.suffix)
    return path.name[: len(path.name) - len(ending)] or path.name


class _Names:
    """The labels of the cases that were read so far, with the names in their files.

    A name in a file has priority over one made from the value; of several names, the first is kept.
    """

    def __init__(self, fixed: Sequence[Label] | None) -> None:
        self._fixed = fixed
        self._found: dict[int, Label] = {}
        self._contradictions: dict[int, str] = {}
        self._left_out: set[int] = set()

    def read(self, path: Path, mapping: LabelMapping | None) -> Volume:
        """Read and map the label map in a file, and add its labels."""
        volume, labels = read_labelmap(path)
        if mapping is not None:
            volume = mapping.apply(volume)
            labels = tuple(_unnamed(int(value)) for value in unique_values(volume.voxels) if value)
        if self._fixed is not None:
            known = {label.value for label in self._fixed}
            self._left_out |= {label.value for label in labels} - known
        else:
            self._take_in(labels, path)
        return volume

    def labels(self) -> list[Label]:
        """The labels to evaluate, in the given order if there is one, else sorted by value."""
        if self._fixed is not None:
            return list(self._fixed)
        return [self._found[value] for value in sorted(self._found)]

    def notes(self) -> tuple[str, ...]:
        notes = list(self._contradictions.values())
        if self._left_out:
            values = ", ".join(str(value) for value in sorted(self._left_out))
            notes.append(f"Not evaluated, because the model does not have them: values {values}.")
        return tuple(notes)

    def _take_in(self, labels: Iterable[Label], path: Path) -> None:
        for label in labels:
            known = self._found.setdefault(label.value, label)
            if _is_made(known):
                self._found[label.value] = label
            elif not _is_made(label) and label.name.casefold() != known.name.casefold():
                self._contradictions.setdefault(
                    label.value,
                    f"Value {label.value} is {known.name!r}, but {label.name!r} in {path}. Values "
                    "were compared; if numbers mean different things, map them with a table.",
                )


def _label_maps(folder: Path) -> Mapping[str, Path]:
    """The label maps of a folder by case name; hidden files and other types are skipped."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.lower().endswith(tuple(ENDINGS)):
            continue
        name = case_name(path)
        if name in found:
            raise InputError(
                f"{found[name]} and {path} are two files of one case. Move one of them away."
            )
        found[name] = path
    if not found:
        raise InputError(
            f"{folder} does not contain label maps. Their names end with {', '.join(ENDINGS)}."
        )
    return found


def _completed(cases: Iterable[CaseFigures], labels: Sequence[Label]) -> Iterable[CaseFigures]:
    """Give every case an entry for each label, including labels that first occur in later cases."""
    for case in cases:
        known = {item.label.value: item.to_dict() for item in case.structures}
        structures = (StructureFigures(label, **known.get(label.value, {})) for label in labels)
        yield CaseFigures(case.name, tuple(structures), case.prediction, case.reference)


def _unnamed(value: int) -> Label:
    return Label(value, f"Label {value}", (128, 128, 128))


def _is_made(label: Label) -> bool:
    return label.name == f"Label {label.value}"
