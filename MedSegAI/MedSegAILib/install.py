"""Installation of the worker's packages into Slicer's Python, when the first job needs them.

PyTorch comes from the PyTorch extension, which knows the right build for the graphics card; the other packages are
installed by Slicer's package tools. Slicer's own packages are never replaced. Without a network, all packages can
come from a folder of wheels.
"""

from __future__ import annotations

import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import slicer
import slicer.util
from packaging.requirements import Requirement

from medsegai.errors import WorkerError
from MedSegAILib.translation import tr as _

REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"
TORCH = Requirement("torch>=2.10")

# Packages of Slicer or another extension, which an installation must not change.
PROTECTED = ("numpy", "SimpleITK", "scipy", "pillow", "torch", "torchvision", "vtk")

SIZES = {
    "torch": _("0.2 to 3 GB"),
    "nibabel": "4 MB",
    "safetensors": "1 MB",
    "highdicom": "1 MB",
    "manifold3d": "1 MB",
    "monai": "3 MB",
}
"""The approximate sizes of downloads; torch depends on the graphics card. The others are smaller than 1 MB."""


@dataclass(frozen=True)
class Plan:
    """The packages to install, and their folder.

    Attributes:
        packages: the packages with their bounds, as pip writes them.
        folder: the folder that gets them.
        needs_torch: whether PyTorch is among them, which the PyTorch extension installs.
    """

    packages: tuple[Requirement, ...]
    folder: Path
    needs_torch: bool

    def lines(self) -> list[tuple[str, str, str]]:
        """Return for each package its name, source and size."""
        return [
            (
                str(package),
                _("the PyTorch extension") if package.name == TORCH.name else "pypi.org",
                SIZES.get(package.name, _("below 1 MB")),
            )
            for package in self.packages
        ]


@dataclass(frozen=True)
class Consent:
    """The user agrees; `wheels` is the folder that everything comes from, or None for the network."""

    wheels: Path | None = None


Ask = Callable[[Plan], "Consent | None"]


TOO_OLD = _(
    "PyTorch {version} is too old, because {needed} is needed. Uninstall it with "
    "Slicer's module PyTorch Utils, restart Slicer, and press Segment again."
)


def ensure(ask: Ask | None, extras: Sequence[str] = ()) -> None:
    """Install missing packages; return at once if there are none.

    Args:
        ask: the function that shows the plan and returns the user's consent, or None if the user refused; None
            without a window.
        extras: further extras: "export" for DICOM SEG and SR and surfaces, or those of a card.

    Raises:
        WorkerError: the user declined, the PyTorch extension is missing, or the installation failed.
    """
    plan = missing(extras)
    if plan is None:
        return
    consent = Consent() if ask is None else ask(plan)
    if consent is None:
        raise WorkerError(
            _("Nothing was installed. MedSegAI cannot run without {names}.").format(
                names=_names(plan.packages)
            )
        )
    if consent.wheels is not None:
        _from_wheels(plan.packages, consent.wheels)
        return
    if plan.needs_torch:
        _install_torch()
    others = [package for package in plan.packages if package.name != TORCH.name]
    if others:
        _install(others, interactive=ask is not None)


def missing(extras: Sequence[str] = ()) -> Plan | None:
    """Return the missing packages; None if there are none.

    Raises:
        WorkerError: the installed PyTorch is too old; it is not replaced without the user.
    """
    needs_torch = not _is_installed(TORCH)
    if needs_torch and _version(TORCH.name) is not None:
        version = _version(TORCH.name)
        raise WorkerError(TOO_OLD.format(version=version, needed=TORCH))
    files = [REQUIREMENTS, *(REQUIREMENTS.with_name(f"requirements-{name}.txt") for name in extras)]
    wanted = [requirement for file in files for requirement in _requirements(file)]
    packages = [requirement for requirement in wanted if not _is_installed(requirement)]
    if needs_torch:
        packages.insert(0, TORCH)
    if not packages:
        return None
    return Plan(tuple(packages), Path(sysconfig.get_paths()["purelib"]), needs_torch)


def _requirements(path: Path = REQUIREMENTS) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def _is_installed(requirement: Requirement) -> bool:
    version = _version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _version(name: str) -> str | None:
    """Return the version according to pip, without an import."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _install_torch() -> None:
    try:
        import PyTorchUtils
    except ImportError as error:
        raise WorkerError(
            _(
                "MedSegAI needs the PyTorch extension. Install it with Slicer's Extensions Manager, "
                "restart Slicer, and press Segment again."
            )
        ) from error
    try:
        torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(
            askConfirmation=False, torchVersionRequirement=str(TORCH.specifier)
        )
    except (OSError, ValueError, ImportError, subprocess.CalledProcessError) as error:
        raise WorkerError(_failure("PyTorch", error)) from error
    if torch is None:
        raise WorkerError(_("MedSegAI cannot run without PyTorch, which was not installed."))


def _install(packages: Sequence[Requirement], interactive: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="medsegai-") as folder:
        constraints = _write_constraints(Path(folder))
        try:
            _run_pip(packages, constraints, interactive)
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            raise WorkerError(_failure(_names(packages), error)) from error


def _from_wheels(packages: Sequence[Requirement], wheels: Path) -> None:
    """Install only from a folder, without the network."""
    if not any(wheels.glob("*.whl")):
        raise WorkerError(
            _("{folder} does not contain wheels (*.whl). Choose another folder.").format(
                folder=wheels
            )
        )
    with tempfile.TemporaryDirectory(prefix="medsegai-") as folder:
        constraints = _write_constraints(Path(folder))
        options = ["--no-index", "--find-links", str(wheels), "--constraint", str(constraints)]
        try:
            slicer.util.pip_install([*(str(package) for package in packages), *options])
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            raise WorkerError(_failure(_names(packages), error)) from error


def _write_constraints(folder: Path) -> Path:
    """Write a constraints file with the versions of Slicer's packages."""
    versions = {name: _version(name) for name in PROTECTED}
    lines = [f"{name}=={version}\n" for name, version in versions.items() if version is not None]
    path = folder / "constraints.txt"
    path.write_text("".join(lines))
    return path


def _run_pip(packages: Sequence[Requirement], constraints: Path, interactive: bool) -> None:
    names = [str(package) for package in packages]
    try:
        from slicer import packaging
    except ImportError:  # Slicer before 5.13
        slicer.util.pip_install([*names, "--constraint", str(constraints)])
        return
    packaging.pip_ensure(
        names,
        constraints=constraints,
        prompt_install=False,  # the user has already agreed
        prompt_restart=interactive,
        requester="MedSegAI",
        show_progress=interactive,
    )


def _names(packages: Sequence[Requirement]) -> str:
    return ", ".join(str(package) for package in packages)


def _failure(what: str, error: Exception) -> str:
    return _(
        "{what} could not be installed: {error}. Without internet access, install it from a folder "
        "of wheels; Slicer's Python console has the log."
    ).format(what=what, error=error)
