"""Everything under MedSegAI/ reaches the user: in Slicer's extension, and in the wheel."""

import importlib.metadata
import os
import re
import shutil
import struct
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from medsegai.families import family_names
from medsegai.models.card import FAMILIES_WITH_EXTRAS

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = REPOSITORY / "MedSegAI"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
# Slicer's own Python has these; the extension must not replace them.
SLICER_BRINGS = {"numpy", "pillow", "pydicom", "scipy", "SimpleITK"}

# Stands in for Slicer's macro of the same name: writes down what it was given, and refuses what
# Slicer would refuse.
WITNESS = """
cmake_minimum_required(VERSION 3.20)
project(Witness LANGUAGES NONE)
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(GIVEN "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(GIVEN_UNPARSED_ARGUMENTS OR NOT GIVEN_NAME STREQUAL "MedSegAI")
    message(FATAL_ERROR "wrong arguments: ${ARGN}")
  endif()
  string(REPLACE ";" "\\n" lines "${GIVEN_SCRIPTS}")
  file(WRITE "${CMAKE_BINARY_DIR}/scripts" "${lines}")
  string(REPLACE ";" "\\n" lines "${GIVEN_RESOURCES}")
  file(WRITE "${CMAKE_BINARY_DIR}/resources" "${lines}")
endmacro()
add_subdirectory("${MODULE_FOLDER}" module)
"""


def files_of(folder: Path) -> set[str]:
    """All files below a folder, as paths relative to it, less what Python and pip leave behind."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__"} & set(path.parts) and ".egg-info" not in str(path)
    }


def cmake_lists(module: Path, work: Path) -> tuple[list[str], list[str]]:
    """The SCRIPTS and RESOURCES that the module's CMakeLists.txt hands to Slicer."""
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
    assert cmake, "cmake is missing: install the extra `test`"
    source, build = work / "source", work / "build"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(WITNESS)
    command = [cmake, "-S", source, "-B", build, f"-DMODULE_FOLDER={module}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (build / "scripts").read_text().split("\n"), (build / "resources").read_text().split(
        "\n"
    )


def test_slicer_gets_every_file(tmp_path: Path) -> None:
    scripts, resources = cmake_lists(MODULE, tmp_path)
    there = files_of(MODULE) - {"CMakeLists.txt"}
    assert "MedSegAI.py" in there
    assert "medsegai/__init__.py" in there
    assert sorted(scripts) == sorted(name for name in there if name.endswith(".py"))
    assert sorted(resources) == sorted(name for name in there if not name.endswith(".py"))


def test_slicer_gets_new_files_and_no_leftovers(tmp_path: Path) -> None:
    module = tmp_path / "MedSegAI"
    new = ["MedSegAI.py", "MedSegAILib/new.py", "medsegai/new/deep.py"]
    data = ["medsegai/models/new/card.json", "Resources/UI/new.ui", "medsegai/py.typed"]
    leftovers = [
        "medsegai/__pycache__/new.pyc",
        "Resources/.DS_Store",
        "medsegai.egg-info/PKG-INFO",
    ]
    for name in [*new, *data, *leftovers]:
        (module / name).parent.mkdir(parents=True, exist_ok=True)
        (module / name).touch()
    shutil.copy(MODULE / "CMakeLists.txt", module)
    scripts, resources = cmake_lists(module, tmp_path)
    assert (sorted(scripts), sorted(resources)) == (sorted(new), sorted(data))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` builds first."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, so that no build folder appears in the checkout
    left_out = shutil.ignore_patterns("*.egg-info", "__pycache__")  # which others may be writing
    shutil.copytree(MODULE, source / "MedSegAI", ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "-w", folder, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_whole_engine(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name.removeprefix("medsegai/") for name in archive.namelist()}
        (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "medsegai = medsegai.cli:main" in archive.read(points).decode()
    assert files_of(MODULE / "medsegai") == {name for name in packed if ".dist-info/" not in name}


def test_the_installation_of_the_documents_walked_through(wheel: Path, tmp_path: Path) -> None:
    """`pip install '.[torch,cpu]'`, less what is downloaded: that is here already, in the versions asked for."""
    assert "pip install '.[torch,cpu]'" in (REPOSITORY / "docs" / "install.md").read_text()
    place = tmp_path / "installed"
    installing = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", place, wheel]
    done = subprocess.run(installing, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (metadata,) = importlib.metadata.distributions(name="medsegai", path=[str(place)])
    asked = [Requirement(line) for line in metadata.requires or ()]
    for extra in ("", "torch", "cpu"):
        wanted = [
            item for item in asked if not item.marker or item.marker.evaluate({"extra": extra})
        ]
        assert extra == "" or {item.name for item in wanted} & {"torch", "openvino"}
        for item in wanted:
            assert importlib.metadata.version(item.name) in item.specifier, item
    elsewhere = {"PYTHONPATH": str(place), "MEDSEGAI_MODELS": str(tmp_path / "none")}
    where = "import medsegai; print(medsegai.__file__)"
    for command in (
        [sys.executable, "-c", where],
        [sys.executable, place / "bin" / "medsegai", "--version"],
        [sys.executable, place / "bin" / "medsegai", "models", "verify"],
        [sys.executable, place / "bin" / "medsegai", "doctor"],
    ):
        done = subprocess.run(
            command, env=os.environ | elsewhere, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if where in command:
            assert str(place) in done.stdout, "it is the installed package that runs"
    assert "Ready to segment." in done.stdout


def base_requirements() -> dict[str, str]:
    """Name to bound of the dependencies that every installation has."""
    return dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in PROJECT["dependencies"])


def test_slicer_installs_what_it_does_not_bring_and_nothing_else() -> None:
    lines = (MODULE / "Resources" / "requirements.txt").read_text().splitlines()
    asked = {line.split("#")[0].strip() for line in lines} - {""}
    base = base_requirements()
    assert base.keys() > SLICER_BRINGS
    assert asked == {name + bound for name, bound in base.items() if name not in SLICER_BRINGS}


@pytest.mark.parametrize("extra", ["export", *FAMILIES_WITH_EXTRAS])
def test_slicer_installs_for_a_hand_over_or_a_model_what_the_extra_names(extra: str) -> None:
    lines = (MODULE / "Resources" / f"requirements-{extra}.txt").read_text().splitlines()
    asked = {line.split("#")[0].strip() for line in lines} - {""}
    assert asked == set(PROJECT["optional-dependencies"][extra])


def test_families_with_extras_are_families() -> None:
    assert set(FAMILIES_WITH_EXTRAS) <= set(family_names())


def test_installing_the_package_never_installs_torch() -> None:
    assert "torch" not in base_requirements()
    assert not {"monai", "openvino", "nilearn", "torchvision"} & base_requirements().keys()


def test_dependencies_have_no_upper_bound_and_a_reason() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    lines = [line for line in text.splitlines() if re.match(r' +"[\w-]+[<>=~]', line)]
    extras = PROJECT["optional-dependencies"]
    assert len(lines) == len(PROJECT["dependencies"]) + sum(map(len, extras.values()))
    unexplained = [line.strip() for line in lines if "#" not in line]
    assert not unexplained
    shipped = [
        *PROJECT["dependencies"],
        *(x for name in extras if name not in {"test", "docs", "dev"} for x in extras[name]),
    ]
    assert not [line for line in shipped if re.search(r"<|==|~=", line)]


def test_the_extension_needs_pytorch_and_shows_its_icon() -> None:
    text = (REPOSITORY / "CMakeLists.txt").read_text()
    given = dict(re.findall(r'set\((EXTENSION_\w+) "([^"]*)"\)', text))
    assert given["EXTENSION_DEPENDS"] == "PyTorch"
    assert not [name for name, value in given.items() if ";" in value], "CMake would cut it there"
    assert all(
        given[f"EXTENSION_{name}"]
        for name in ("HOMEPAGE", "CATEGORY", "CONTRIBUTORS", "DESCRIPTION")
    )
    assert (REPOSITORY / given["EXTENSION_ICONURL"].partition("/raw/main/")[2]).is_file()


@pytest.mark.parametrize(
    "path", ["Resources/MedSegAI.png", "MedSegAI/Resources/Icons/MedSegAI.png"]
)
def test_the_icon_is_a_png_of_128_pixels(path: str) -> None:
    head = (REPOSITORY / path).read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (128, 128)
