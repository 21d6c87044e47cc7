"""Which file may import what, as functions over source text, so that a test can trip each rule."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

# L0 of the engine: plain modules that may import each other, the standard library and NumPy.
FLAT = frozenset(
    {
        "card",
        "catalogue",
        "confinement",
        "correction",
        "errors",
        "exchange",
        "labels",
        "locks",
        "machine",
        "nnunet_dataset",
        "nnunet_parts",
        "nnunet_plans",
        "outside_text",
        "places",
        "progress",
        "protocol",
        "quality",
        "regular_files",
        "request",
        "strict",
        "suitability",
        "tasks",
        "torch_version",
        "volume",
    }
)

# The rooms above it, from the lowest to the highest. A room imports rooms of earlier rows only:
# neighbours in one row, such as families and refinements, do not know each other.
ROWS: tuple[tuple[str, ...], ...] = (
    ("boxes",),  # L1
    ("io",),
    ("preprocessing",),
    ("networks",),
    ("grid_points",),
    ("scale",),
    ("probabilities",),
    ("fusion",),  # L2
    ("uncertainty",),
    ("families", "refinements"),
    ("plausibility", "regions"),
    ("answer",),
    ("measurements",),
    ("engine",),  # L3
    ("doctor", "model_import", "preview", "refining"),  # L4
    ("handover", "outputs"),
    ("evaluation",),
    ("batch", "training", "worker"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}

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
    "openvino": ("networks",),
    "SimpleITK": ("io", "refinements", "evaluation"),
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
    (r"MedSegAILib/worker/(client|process|examination)\.py", "qt"),
    (r"MedSegAILib/host\.py", rf"{SCENE_NAMES}|SampleData"),
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
    for node in ast.walk(ast.parse(source)):
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
    room = room_of(path)
    if item.top == "medsegai":
        return _inner_problem(path, room, item)
    if room in FLAT and not _is_plain(item.top):
        return "L0 is the standard library and NumPy"
    rooms = CONFINED.get(item.top)
    if rooms is not None and room not in rooms:
        return f"only {', '.join(rooms)} may"
    return None


def _inner_problem(path: PurePosixPath, room: str, item: Imported) -> str | None:
    target = item.name.split(".")[1] if "." in item.name else ""
    if target in FLAT or target.startswith("__"):
        return None
    if target not in RANK:
        return "unknown room: give it a row in import_rules.ROWS"
    if room in FLAT or room == "__init__":
        return "L0 imports nothing above it"
    if room not in RANK:
        return f"{room} has no row in import_rules.ROWS"
    if target == room:
        return _sibling_problem(path, room, item)
    if RANK[target] >= RANK[room]:
        return f"{room} may only import what lies below it"
    return None


def _sibling_problem(path: PurePosixPath, room: str, item: Imported) -> str | None:
    """`families/a.py` may use `families` and `families/_shared.py`, never `families/b.py`.

    The modules of a package `families/a/` know each other. A lower-case name is taken for a module:
    what `__init__` gives to all is a class or private.
    """
    own = PurePosixPath(path.parts[2]).stem  # of a file, or of the package it belongs to
    if room not in INDEPENDENT_FILES or own.startswith("_"):
        return None
    sibling = [*item.name.split("."), ""][2]
    if sibling and sibling.islower() and not sibling.startswith("_") and sibling != own:
        return f"the files of {room} do not know each other"
    return None


def _slicer_side_problem(path: PurePosixPath, item: Imported) -> str | None:
    if item.top == "medsegai":
        parts = item.name.split(".")
        if len(parts) > 1 and (parts[1] in FLAT or parts[1].startswith("__")):
            return None
        if item.name in DESCRIPTIONS:
            return None
        return "the Slicer side imports L0 of the engine only"
    if _is_plain(item.top) or item.top == "MedSegAILib":
        return None
    allowed = next(names for files, names in SLICER_FILES if re.fullmatch(files, str(path)))
    if re.fullmatch(allowed, item.top):
        return None
    return "not in this file (see import_rules.SLICER_FILES)"


def room_of(path: PurePosixPath) -> str:
    """`medsegai/io/nifti.py` lies in the room io, `medsegai/engine.py` in engine.

    What `python -m` runs is a way in, whatever folder it stands in.
    """
    return "__main__" if path.name == "__main__.py" else path.parts[1].removesuffix(".py")


def _is_plain(top: str) -> bool:
    return top in sys.stdlib_module_names or top == "numpy"
