"""Which file may import what, as functions over source text, so that a test can trip each rule."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath

import parsed

# L0 of the engine: files that import each other, the standard library and NumPy. Slicer's process may import them.
PLAIN = frozenset(
    {
        "correction",
        "errors",
        "labels",
        "measurements.object_rows",
        "models.card",
        "models.catalogue",
        "models.index",
        "models.json_fields",
        "models.limits",
        "models.nnunet_dataset",
        "models.nnunet_parts",
        "models.nnunet_plans",
        "models.quality",
        "models.refinement",
        "models.suitability",
        "progress",
        "request",
        "system.confinement",
        "system.guarding",
        "system.locks",
        "system.machine",
        "system.outside_text",
        "system.private_folders",
        "system.regular_files",
        "system.torch_version",
        "system.user_folders",
        "volume",
        "worker.array_transfer",
        "worker.batch_events",
        "worker.protocol",
        "worker.requests",
    }
)

# What lies above it, from the lowest to the highest: rooms, and files where a room has files at different heights.
# A file imports earlier rows only: neighbours in a row, such as families and refinements, do not know each other.
ROWS: tuple[tuple[str, ...], ...] = (
    ("boxes", "inference.provenance", "networks.memory"),  # L1
    ("decoding",),
    ("io",),
    ("preprocessing",),
    ("networks",),
    ("inference.grid_sampling",),
    ("inference.activation",),
    ("inference.probabilities",),
    ("inference.joint_probabilities",),
    ("inference.fusion",),  # L2
    ("inference.agreement",),
    ("families", "refinements"),
    ("measurements.instances", "measurements.plausibility", "refinements._overlapping"),
    ("inference.result_builder",),
    ("measurements.places", "measurements.structures"),
    ("engine",),  # L3
    (
        "doctor",
        "models.importing",
        "output.object_files",
        "output.picture_preview",
        "output.preview",
        "output.scan_state",
        "worker.refine_job",
    ),  # L4
    ("export", "output.cases", "output.freesurfer_files"),
    ("output.bids_dataset",),
    ("output.bids_files", "output.case_page"),
    ("output.result_files",),
    ("output.layouts",),
    ("evaluation", "worker.measure_and_export_jobs"),
    ("output.batch", "training", "worker.server"),
    ("output.cluster", "output.cohort"),
    ("output.cohort_page",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
RANK = {place: rank for rank, row in enumerate(ROWS) for place in row}

# In these rooms every file or package stands for itself; what they share lies in `__init__` or in `_names`.
INDEPENDENT_FILES = ("families", "refinements")

# What refinements say of themselves: the Slicer side shows it, so that a new refinement appears there without an
# edit. Nothing heavy is imported for it, to which `test_imports` holds them; applying one is the worker's affair.
DESCRIPTIONS = frozenset(
    f"medsegai.refinements.{name}"
    for name in (
        "as_text",
        "option_fields",
        "parse",
        "refinement_names",
        "summary",
        "title",
        "uses_candidates",
    )
)

SLICER_SIDE = frozenset({"MedSegAI", "MedSegAILib"})
APPLICATION = re.compile(r"(slicer|mrml|vtk\w*|qt|ctk|PySide6|PythonQt|qSlicer\w*|qMRML\w*)$")
# Libraries that only some rooms of the engine may use.
CONFINED = {
    "monai": ("networks", "training", "evaluation"),
    "openvino": ("networks",),
    "SimpleITK": ("decoding", "io", "refinements", "measurements", "evaluation"),
    "nibabel": ("io", "refinements", "evaluation"),
}

# What a file of the Slicer side may import besides the standard library, NumPy, L0 and its peers:
# the first line whose pattern is the file's path.
SCENE_NAMES = r"slicer|mrml|vtk\w*"
QT_NAMES = r"qt|ctk"
SLICER_FILES = (
    (r"MedSegAI\.py", rf"{SCENE_NAMES}|SampleData|PyTorchUtils"),
    (r"MedSegAILib/self_test\.py", rf"{SCENE_NAMES}|SampleData|MedSegAI"),
    (r"MedSegAILib/scene/\w+\.py", SCENE_NAMES),
    (r"MedSegAILib/panel/\w+\.py", QT_NAMES),
    (r"MedSegAILib/worker/(client|process|environment_check)\.py", "qt"),
    (r"MedSegAILib/host\.py", rf"{SCENE_NAMES}|SampleData"),
    (r"MedSegAILib/after_event\.py", "qt"),
    (r"MedSegAILib/translation\.py", "slicer"),
    (r"MedSegAILib/install\.py", "slicer|packaging|PyTorchUtils"),
    (
        r"MedSegAILib/correction/(\w+/)?\w+\.py",
        rf"{SCENE_NAMES}|{QT_NAMES}|SegmentEditorEffects|qSlicerSegmentationsEditorEffectsPythonQt",
    ),
    (r".*", r"(?!)"),
)


@dataclass(frozen=True)
class Imported:
    """One name that a file imports, written out in full, and the line it stands on."""

    name: str
    line: int

    @property
    def top(self) -> str:
        return self.name.split(".")[0]


def imported(path: PurePosixPath, source: str) -> Iterator[Imported]:
    """Everything that a file imports, wherever in the file and relative or not.

    `path` is relative to the folder MedSegAI/. `from a import b` gives `a.b`, because b may be a
    module; `importlib.import_module("a.b")` counts as well.
    """
    for node in parsed.nodes(source):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Imported(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            package = path.parts[: len(path.parts) - node.level] if node.level else ()
            base = [*package, *(node.module.split(".") if node.module else ())]
            for alias in node.names:
                yield Imported(".".join([*base, alias.name]), node.lineno)
        elif isinstance(node, ast.Call) and node.args:
            function = ast.unparse(node.func).split(".")[-1]
            name = node.args[0]
            if function in {"import_module", "__import__"} and isinstance(name, ast.Constant):
                yield Imported(str(name.value), node.lineno)


def problems(path: PurePosixPath, source: str) -> list[str]:
    """What is wrong with the imports of one file; `path` is relative to the folder MedSegAI/."""
    check = _engine_problem if path.parts[0] == "medsegai" else _slicer_side_problem
    found = ((item, check(path, item)) for item in imported(path, source))
    return [f"{path}:{item.line}: imports {item.name}: {why}" for item, why in found if why]


def _engine_problem(path: PurePosixPath, item: Imported) -> str | None:
    if APPLICATION.match(item.top) or item.top in SLICER_SIDE:
        return "the engine knows neither Slicer nor Qt"
    place = place_of(path)
    if item.top == "medsegai":
        return _inner_problem(path, place, item)
    if place in PLAIN and not _is_plain(item.top):
        return "L0 is the standard library and NumPy"
    rooms = CONFINED.get(item.top)
    if rooms is not None and path.parts[1] not in rooms:
        return f"only {', '.join(rooms)} may"
    return None


def _inner_problem(path: PurePosixPath, place: str, item: Imported) -> str | None:
    target = _placed(item.name.split(".")[1:])
    if target in PLAIN or target.startswith("__"):
        return None
    if target not in RANK:
        return "unknown place: give it a row in import_rules.ROWS"
    if place in PLAIN or place == "__init__":
        return "L0 imports nothing above it"
    if place not in RANK:
        return f"{place} has no row in import_rules.ROWS"
    if target == place:
        return _sibling_problem(path, place, item)
    if RANK[target] >= RANK[place]:
        return f"{place} may only import what lies below it"
    return None


def _sibling_problem(path: PurePosixPath, place: str, item: Imported) -> str | None:
    """`families/a.py` may use `families` and `families/_shared.py`, never `families/b.py`.

    The modules of a package `families/a/` know each other. A lower-case name is taken for a module:
    what `__init__` gives to all is a class or private.
    """
    own = PurePosixPath(path.parts[2]).stem  # of a file, or of the package it belongs to
    if place not in INDEPENDENT_FILES or own.startswith("_"):
        return None
    sibling = [*item.name.split("."), ""][2]
    if sibling and sibling.islower() and not sibling.startswith("_") and sibling != own:
        return f"the files of {place} do not know each other"
    return None


def _slicer_side_problem(path: PurePosixPath, item: Imported) -> str | None:
    if item.top == "medsegai":
        place = _placed(item.name.split(".")[1:])
        if place in PLAIN or place.startswith("__") or item.name in DESCRIPTIONS:
            return None
        return "the Slicer side imports L0 of the engine only"
    if _is_plain(item.top) or item.top == "MedSegAILib":
        return None
    allowed = next(names for files, names in SLICER_FILES if re.fullmatch(files, str(path)))
    if re.fullmatch(allowed, item.top):
        return None
    return "not in this file (see import_rules.SLICER_FILES)"


def circle(files: dict[str, set[str]]) -> list[str]:
    """Names of files that import each other in a circle, the first once more at the end; empty if there is none.

    `files` gives, for each module, the full names that it imports: modules, or what is in them.
    """

    def module(name: str) -> str:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name

    order = TopologicalSorter(
        {
            importer: {found for name in names if (found := module(name)) and found != importer}
            for importer, names in files.items()
        }
    )
    try:
        order.prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def place_of(path: PurePosixPath) -> str:
    """`medsegai/io/nifti.py` has the place of its room, io; `medsegai/models/card.py` has its own, models.card.

    What `python -m` runs is a way in, whatever folder it stands in.
    """
    if path.name == "__main__.py":
        return "__main__"
    return _placed([*path.parts[1:-1], path.stem])


def _placed(names: list[str]) -> str:
    """The longest beginning of a dotted name that has a place; the first name where none has."""
    for length in range(len(names), 0, -1):
        place = ".".join(names[:length])
        if place in PLAIN or place in RANK:
            return place
    return names[0] if names else ""


def _is_plain(top: str) -> bool:
    return top in sys.stdlib_module_names or top == "numpy"
