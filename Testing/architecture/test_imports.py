"""Who imports whom: the levels of the engine, and the wall between Slicer and the engine."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest

import import_rules

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = REPOSITORY / "MedSegAI"
# Where the name to import is not the name to install.
DISTRIBUTIONS = {
    "dicomweb_client": "dicomweb-client",
    "PIL": "pillow",
    "SimpleITK": "simpleitk",
    "nrrd": "pynrrd",
    "openslide": "openslide-python",
    "yaml": "pyyaml",
}


def sources() -> list[tuple[PurePosixPath, str]]:
    files = sorted(path for path in MODULE.rglob("*.py") if "__pycache__" not in path.parts)
    return [
        (PurePosixPath(path.relative_to(MODULE).as_posix()), path.read_text()) for path in files
    ]


def test_every_file_imports_only_what_lies_below_it() -> None:
    found = [problem for path, text in sources() for problem in import_rules.problems(path, text)]
    assert not found, "\n".join(found)


def test_every_file_of_the_engine_has_a_level() -> None:
    known = import_rules.PLAIN | import_rules.RANK.keys() | {"__init__"}
    engine = [(path, text) for path, text in sources() if path.parts[0] == "medsegai"]
    places = {import_rules.place_of(path) for path, text in engine if text}
    assert {"volume", "errors"} <= places, "the engine was not found"
    unknown = places - known
    assert not unknown, f"no level for {sorted(unknown)}: add them to import_rules.ROWS"


def test_every_level_has_a_file() -> None:
    places = {import_rules.place_of(path) for path, _ in sources() if path.parts[0] == "medsegai"}
    gone = (import_rules.PLAIN | import_rules.RANK.keys()) - places
    assert not gone, f"no file at {sorted(gone)}: remove them from import_rules"


def test_families_write_imported_weights_in_one_place() -> None:
    """There they are refused if they are not finite numbers."""
    writers = [
        path.name for path, text in sources() if "families" in path.parts and "save_file" in text
    ]
    assert writers == ["_imported_weights.py"]


def test_imports_make_no_circle() -> None:
    """Not even inside of functions. The module's self-test is left out: it runs the module that starts it."""
    files = {".".join(path.with_suffix("").parts): (path, text) for path, text in sources()}
    files = {name.removesuffix(".__init__"): found for name, found in files.items()}
    circle = import_rules.circle(
        {
            name: {item.name for item in import_rules.imported(path, text)}
            for name, (path, text) in files.items()
            if name != "MedSegAILib.self_test"
        }
    )
    assert not circle, " imports ".join(circle)


def test_a_circle_is_found() -> None:
    files = {"m.a": {"m.b.value", "os"}, "m.b": {"m.c"}, "m.c": {"m.a.f"}, "m.d": {"m.a"}}
    assert set(import_rules.circle(files)) == {"m.a", "m.b", "m.c"}
    assert not import_rules.circle({**files, "m.c": {"json"}})


OFFENCES = [
    ("medsegai/volume.py", "import torch"),
    ("medsegai/volume.py", "def f():\n    import scipy.ndimage"),
    ("medsegai/labels.py", "from medsegai.io import read"),
    ("medsegai/models/card.py", "from .families import quicknat"),
    ("medsegai/models/nnunet_plans.py", "import torch"),
    ("medsegai/io/nifti.py", "from medsegai.engine import segment"),
    ("medsegai/io/nifti.py", "from ..networks import quicknat"),
    ("medsegai/networks/quicknat.py", "from medsegai.inference.probabilities import Probabilities"),
    ("medsegai/networks/quicknat.py", "import nibabel as nib"),
    ("medsegai/inference/fusion.py", "from medsegai import cli"),
    ("medsegai/inference/fusion.py", "import openvino"),
    ("medsegai/families/monai/model.py", "import monai.networks.nets"),
    ("medsegai/inference/fusion.py", "from SimpleITK import ReadImage"),
    ("medsegai/families/quicknat.py", "from medsegai.families import nnunet"),
    ("medsegai/families/quicknat.py", "from medsegai.families.nnunet import load"),
    ("medsegai/families/quicknat.py", "from . import nnunet"),
    ("medsegai/families/quicknat.py", "from medsegai.refinements import islands"),
    ("medsegai/families/nnunet/model.py", "from medsegai.families.quicknat import load"),
    ("medsegai/families/nnunet/__init__.py", "from medsegai.families import quicknat"),
    ("medsegai/refinements/islands.py", "from .level_set import Options"),
    ("medsegai/engine.py", "from medsegai.worker.server import serve"),
    ("medsegai/engine.py", "def f():\n    import slicer"),
    ("medsegai/engine.py", "try:\n    import vtk\nexcept ImportError:\n    pass"),
    ("medsegai/engine.py", "import vtkmodules.util"),
    ("medsegai/engine.py", "import qt"),
    ("medsegai/engine.py", "from MedSegAILib import scene"),
    ("medsegai/engine.py", "import importlib\nimportlib.import_module('slicer.util')"),
    ("medsegai/engine.py", "from medsegai.nowhere import f"),
    ("medsegai/nowhere.py", "from medsegai.io import read"),
    ("medsegai/worker/protocol.py", "from medsegai.worker import server"),
    ("medsegai/output/preview.py", "from medsegai.output.batch import run"),
    ("MedSegAILib/panel/options.py", "from medsegai.worker import server"),
    ("medsegai/training/loop.py", "from medsegai.commands import train"),
    ("medsegai/evaluation/metrics.py", "from medsegai.training import loop"),
    ("MedSegAI.py", "from medsegai.engine import segment"),
    ("MedSegAI.py", "import medsegai"),
    ("MedSegAI.py", "def f():\n    import torch"),
    ("MedSegAI.py", "import qt"),
    ("MedSegAILib/controller.py", "import slicer"),
    ("MedSegAILib/controller.py", "import SimpleITK"),
    ("MedSegAILib/controller.py", "import vtk"),
    ("MedSegAILib/panel/__init__.py", "import slicer"),
    ("MedSegAILib/panel/__init__.py", "import torch"),
    ("MedSegAILib/scene/__init__.py", "import qt"),
    ("MedSegAILib/scene/__init__.py", "from medsegai.io.nifti import read"),
    ("MedSegAILib/panel/options.py", "from medsegai.refinements import apply"),
    ("MedSegAILib/panel/options.py", "from medsegai.refinements import islands"),
    ("MedSegAILib/panel/options.py", "from medsegai import refinements"),
    ("MedSegAILib/worker/client.py", "import vtk"),
    ("MedSegAILib/panel/options.py", "import slicer"),
    ("MedSegAILib/translation.py", "import qt"),
    ("MedSegAILib/install.py", "import torch"),
]


@pytest.mark.parametrize(("path", "source"), OFFENCES)
def test_an_offence_is_found(path: str, source: str) -> None:
    assert import_rules.problems(PurePosixPath(path), source)


CUSTOMS = [
    (
        "medsegai/volume.py",
        "import json\nimport numpy as np\nfrom medsegai.errors import GeometryError",
    ),
    ("medsegai/io/nifti.py", "import nibabel\nfrom medsegai.volume import Volume"),
    ("medsegai/io/__init__.py", "from medsegai.io.nifti import read\nfrom . import dicom"),
    (
        "medsegai/families/quicknat.py",
        "import torch\nfrom medsegai.networks.quicknat import QuickNAT",
    ),
    (
        "medsegai/families/quicknat.py",
        "from medsegai.families import Family\nfrom ._shared import crop",
    ),
    ("medsegai/families/nnunet/__init__.py", "from medsegai.families.nnunet.model import load"),
    ("medsegai/families/nnunet/model.py", "from medsegai.families import Member"),
    ("medsegai/families/__init__.py", "from medsegai.families.quicknat import load"),
    ("medsegai/refinements/level_set.py", "import SimpleITK as sitk"),
    (
        "medsegai/engine.py",
        "from medsegai import __version__\nfrom medsegai.families import catalogue",
    ),
    ("medsegai/cli.py", "from medsegai.commands import segment, train"),
    ("medsegai/training/__main__.py", "from medsegai.cli import main"),
    ("MedSegAI.py", "import slicer\nimport vtk\nfrom MedSegAILib.panel import Panel"),
    ("MedSegAILib/panel/options.py", "import qt\nfrom medsegai.refinements import option_fields"),
    ("MedSegAI.py", "from slicer.ScriptedLoadableModule import *"),
    (
        "MedSegAILib/scene/__init__.py",
        "import slicer\nimport vtk\nimport numpy\nfrom medsegai.labels import Label",
    ),
    ("MedSegAILib/panel/__init__.py", "import qt\nimport ctk\nfrom medsegai.request import option"),
    ("MedSegAILib/worker/client.py", "import qt\nfrom medsegai.worker import protocol"),
]


@pytest.mark.parametrize(("path", "source"), CUSTOMS)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert import_rules.problems(PurePosixPath(path), source) == []


def shipped_dependencies() -> set[str]:
    """Names of the packages that users install, in small letters: the base and the extras for them."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    used = [
        line
        for extra in (
            "cluster",
            "completion",
            "torch",
            "cpu",
            "demo",
            "dicomweb",
            "encoders",
            "export",
            "monai",
            "slides",
            "train",
        )
        for line in extras[extra]
    ]
    lines = [*project["dependencies"], *used]
    return {re.split(r"[<>=!~;\[ ]", line)[0].lower() for line in lines}


def engine_sources() -> list[tuple[PurePosixPath, str]]:
    return [(path, text) for path, text in sources() if path.parts[0] == "medsegai"]


def test_what_the_engine_imports_is_a_declared_dependency() -> None:
    imported = {
        item.top
        for path, text in engine_sources()
        for item in import_rules.imported(path, text)
        if item.top not in sys.stdlib_module_names and item.top != "medsegai"
    }
    assert "numpy" in imported
    wanted = {DISTRIBUTIONS.get(name, name).lower() for name in imported}
    assert not wanted - shipped_dependencies(), "imported, but not in pyproject.toml"


def test_every_declared_dependency_is_used() -> None:
    text = "\n".join(text for _, text in engine_sources())
    names = {DISTRIBUTIONS.get(word, word).lower() for word in set(re.findall(r"\w+", text))}
    named = {name for name in shipped_dependencies() if f'"{name}"' in text}  # carries files only
    assert not shipped_dependencies() - names - named, "in pyproject.toml, but not used"


def imports_of_a_fresh_process(statement: str) -> set[str]:
    code = f"import sys; sys.path.insert(0, {str(MODULE)!r}); {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.split()}


ALL_OF_L0 = ", ".join(f"medsegai.{name}" for name in sorted(import_rules.PLAIN))


HEAVY = {"torch", "monai", "SimpleITK", "nibabel", "scipy", "openvino", "matplotlib", "nilearn"}


@pytest.mark.parametrize("modules", [ALL_OF_L0, "medsegai.cli"], ids=["L0", "cli"])
def test_no_heavy_library_is_loaded_before_it_is_needed(modules: str) -> None:
    assert not HEAVY & imports_of_a_fresh_process(f"import {modules}")


def test_refinements_describe_themselves_without_a_heavy_library() -> None:
    """As the panel asks them, inside of Slicer."""
    statement = (
        "from medsegai.refinements import *; from medsegai import refinements as r; "
        "found = [(r.summary(name), r.option_fields(name), r.parse(name), r.as_text(r.parse(name))) "
        "for name in r.refinement_names()]; assert len(found) > 4"
    )
    assert not HEAVY & imports_of_a_fresh_process(statement)


def test_a_model_is_imported_without_torch_here() -> None:
    """What a stranger's file claims is compared with what it has before anything takes seconds."""
    assert "torch" not in imports_of_a_fresh_process("import medsegai.models.importing")


def test_a_heavy_library_would_be_seen() -> None:
    assert "scipy" in imports_of_a_fresh_process("import scipy.ndimage")
