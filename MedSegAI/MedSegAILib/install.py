"""Installs what the worker needs into Slicer's Python, when the first job needs it.

PyTorch comes from the PyTorch extension, which knows the right build for the graphics card; the rest
comes through Slicer's package tools. What Slicer brings itself is never replaced.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import slicer
import slicer.util
from packaging.requirements import Requirement

from medsegai.errors import WorkerError
from MedSegAILib.translation import tr as _

REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"
TORCH = Requirement("torch>=2.6")

# Slicer brings these, or another extension does: an installation must leave them as they are.
PROTECTED = ("numpy", "SimpleITK", "scipy", "pillow", "torch", "torchvision", "vtk")


def ensure(interactive: bool) -> None:
    """Install what is missing, and return at once where nothing is.

    Args:
        interactive: ask before; without a window nobody could answer.

    Raises:
        WorkerError: the user declined, the PyTorch extension is missing, or the installation failed.
    """
    if not _is_installed(TORCH):
        _install_torch(interactive)
    missing = [requirement for requirement in _requirements() if not _is_installed(requirement)]
    if missing:
        _install(missing, interactive)


def _requirements() -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def _is_installed(requirement: Requirement) -> bool:
    version = _version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _version(name: str) -> str | None:
    """The version as pip knows it; nothing is imported for that."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _install_torch(interactive: bool) -> None:
    if _version(TORCH.name) is not None:
        raise WorkerError(
            _(
                "PyTorch {version} is too old; {needed} is needed. Uninstall it with Slicer's module "
                "PyTorch Utils, restart Slicer, and press Segment again."
            ).format(version=_version(TORCH.name), needed=TORCH)
        )
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
            askConfirmation=interactive, torchVersionRequirement=str(TORCH.specifier)
        )
    except (OSError, ValueError, ImportError, subprocess.CalledProcessError) as error:
        raise WorkerError(_failure("PyTorch", error)) from error
    if torch is None:
        raise WorkerError(_("MedSegAI cannot run without PyTorch, which was not installed."))


def _install(missing: Sequence[Requirement], interactive: bool) -> None:
    names = ", ".join(str(requirement) for requirement in missing)
    with tempfile.TemporaryDirectory(prefix="medsegai-") as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{line}\n" for line in _pins()))
        try:
            _run_pip(missing, constraints, interactive)
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            raise WorkerError(_failure(names, error)) from error


def _pins() -> list[str]:
    """Constraints that hold what Slicer brings at the version it has."""
    versions = {name: _version(name) for name in PROTECTED}
    return [f"{name}=={version}" for name, version in versions.items() if version is not None]


def _run_pip(missing: Sequence[Requirement], constraints: Path, interactive: bool) -> None:
    try:
        from slicer import packaging
    except ImportError:  # Slicer before 5.13
        _run_old_pip(missing, constraints, interactive)
        return
    packaging.pip_ensure(
        [str(requirement) for requirement in missing],
        constraints=constraints,
        prompt_install=interactive,
        prompt_restart=interactive,
        requester="MedSegAI",
        show_progress=interactive,
    )


def _run_old_pip(missing: Sequence[Requirement], constraints: Path, interactive: bool) -> None:
    names = [str(requirement) for requirement in missing]
    question = _("MedSegAI needs these Python packages: {names}. Install them now?")
    if interactive and not slicer.util.confirmOkCancelDisplay(
        question.format(names=", ".join(names)), "MedSegAI"
    ):
        raise RuntimeError(_("the installation was declined"))
    slicer.util.pip_install([*names, "--constraint", str(constraints)])


def _failure(what: str, error: Exception) -> str:
    return _(
        "{what} could not be installed: {error}. Without internet access, install it from a folder "
        "of wheels; Slicer's Python console has the log."
    ).format(what=what, error=error)
