"""What is installed, what it can use, and what to do about each problem.

Each finding stands for itself: it says what was looked at, what is there, and, where something is
missing or could be better, one line of what to do.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType

from medsegai import __version__
from medsegai.errors import ModelError, OutputError
from medsegai.models.card import ModelCard
from medsegai.models.catalogue import read_cards, user_models_folder
from medsegai.system.machine import available_memory, usable_cores
from medsegai.system.private_folders import temporary_folder
from medsegai.system.torch_version import is_sound

OLDEST_PYTHON = (3, 11)
LEAST_DISK_BYTES = 1_000_000_000
DEFAULT_MEMORY_MB = 4000.0
"""What a model is taken to need where its card does not say."""

NEEDED = {
    "numpy": "numpy",
    "scipy": "scipy",
    "SimpleITK": "SimpleITK",
    "nibabel": "nibabel",
    "safetensors": "safetensors",
    "slicerio": "slicerio",
    "pillow": "PIL",
}
"""Packages without which the main job does not run, and the modules that they bring."""

FOR_SLIDES = {
    "openslide-python": "openslide",
    "openslide-bin": "openslide_bin",
    "tifffile": "tifffile",
    "imagecodecs": "imagecodecs",
}
"""Packages that slides of microscopes are read with, and the modules that they bring."""

NEWER_TORCH = "Inside 3D Slicer update PyTorch with the PyTorch extension; elsewhere: pip install --upgrade torch"
GET_TORCH = "Inside 3D Slicer install the PyTorch extension; elsewhere: pip install torch"


class Health(StrEnum):
    """`ADVICE` could be better; with a `PROBLEM` the main job cannot run."""

    GOOD = "good"
    ADVICE = "advice"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        cure: what to do, unless it is good.
        package: what pip would have to install for that.
        free_bytes, total_bytes: of a device or a disk, where they are known.
    """

    topic: str
    name: str
    found: str
    health: Health = Health.GOOD
    cure: str = ""
    package: str = ""
    free_bytes: int | None = None
    total_bytes: int | None = None

    def to_dict(self) -> dict[str, str | int | None]:
        """Return the finding as JSON values."""
        return asdict(self)


def check_environment() -> list[Finding]:
    """Look at everything that the main job needs. Takes a few seconds, most of them to load torch."""
    torch = _import("torch")
    findings = [*_packages(), _slides(), *_torch(torch), *_processor(torch)]
    if isinstance(torch, ModuleType):
        findings += _graphics_cards(torch)
    return [*findings, *_memory(), *_models(), *_disk(), *_temporary_folder()]


def can_segment(findings: list[Finding]) -> bool:
    """Whether the main job can run."""
    return not any(finding.health is Health.PROBLEM for finding in findings)


def repairs(findings: list[Finding]) -> list[str]:
    """What would put everything right, each step once, what the main job needs first.

    Packages come in one step: pip then finds versions that go together.
    """
    problems = [finding for finding in findings if finding.health is Health.PROBLEM]
    packages = [finding.package for finding in problems if finding.package]
    steps = [finding.cure for finding in problems if not finding.package]
    if packages and "SLICER_HOME" in os.environ:
        steps.append(
            "In 3D Slicer, press Segment in the module MedSegAI: it installs "
            f"{', '.join(packages)} and leaves what Slicer brings as it is."
        )
    elif packages:
        steps.append(f'"{sys.executable}" -m pip install --upgrade {" ".join(packages)}')
    steps += [finding.cure for finding in findings if finding.health is Health.ADVICE]
    return list(dict.fromkeys(steps))


def _import(name: str) -> ModuleType | ImportError | OSError:
    """The module, or why it cannot be loaded; OSError is what a broken shared library gives."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        return error


def _packages() -> Iterator[Finding]:
    python = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] >= OLDEST_PYTHON:
        yield Finding("software", "python", python)
    else:
        cure = "Install Python 3.11 or 3.12."
        yield Finding("software", "python", python, Health.PROBLEM, cure)
    yield Finding("software", "medsegai", __version__)
    for package, module in NEEDED.items():
        loaded = _import(module)
        if isinstance(loaded, ModuleType):
            yield Finding("software", package, _version(package))
        else:
            cure = f"pip install --upgrade {package}"
            yield Finding("software", package, _reason(loaded), Health.PROBLEM, cure, package)


def _slides() -> Finding:
    """What slides are read with. Its absence is not a fault, because other images do not need it."""
    there = [name for name, module in FOR_SLIDES.items() if isinstance(_import(module), ModuleType)]
    missing = [name for name in FOR_SLIDES if name not in there]
    found = ", ".join(f"{name} {_version(name)}" for name in there)
    if not missing:
        return Finding("software", "slides", found)
    cure = "To read slides of microscopes: pip install 'medsegai[slides]'"
    if not there:
        return Finding("software", "slides", f"cannot be read. {cure}")
    found += f"; without {', '.join(missing)}"
    return Finding("software", "slides", found, Health.ADVICE, cure)


def _torch(torch: ModuleType | ImportError | OSError) -> Iterator[Finding]:
    """torch, and OpenVINO, which stands in for it on a processor."""
    if not isinstance(torch, ModuleType):
        yield Finding("software", "torch", _reason(torch), Health.PROBLEM, GET_TORCH)
        return
    if is_sound(torch.__version__):
        yield Finding("software", "torch", torch.__version__)
    else:
        found = f"{torch.__version__}, in which a checkpoint can run a program (CVE-2026-24747)"
        yield Finding("software", "torch", found, Health.ADVICE, NEWER_TORCH)
    openvino = _version("openvino")
    if openvino or torch.cuda.is_available():
        yield Finding("software", "openvino", openvino or "not installed, not needed with this GPU")
    else:
        cure = "pip install 'medsegai[cpu]' makes segmentation on this processor faster."
        yield Finding("software", "openvino", "not installed", Health.ADVICE, cure)


def _processor(torch: ModuleType | ImportError | OSError) -> Iterator[Finding]:
    cores = usable_cores()
    found = f"{platform.machine()}, {cores} core{'s' * (cores > 1)}"
    flags = _processor_flags(torch)
    features = [name for name in ("avx2", "avx512_bf16", "amx_bf16") if name in flags]
    yield Finding("device", "cpu", ", ".join([found, *features]))


def _processor_flags(torch: ModuleType | ImportError | OSError) -> set[str]:
    """The instruction sets that matter for networks, where torch or the system tells."""
    if isinstance(torch, ModuleType) and hasattr(torch.cpu, "get_capabilities"):
        return {name for name, there in torch.cpu.get_capabilities().items() if there is True}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _graphics_cards(torch: ModuleType) -> Iterator[Finding]:
    count = torch.cuda.device_count()
    if count == 0 and shutil.which("nvidia-smi") and torch.version.cuda is None:
        cure = "This torch cannot use it: install a CUDA build, see https://pytorch.org/get-started"
        yield Finding("device", "cuda", "an NVIDIA card is there", Health.ADVICE, cure)
    elif count == 0:
        yield Finding("device", "cuda", "none: networks run on the processor")
    for index in range(count):
        yield _graphics_card(torch, index)


def _graphics_card(torch: ModuleType, index: int) -> Finding:
    """Compute something on the card: only then is it known that this torch has code for it."""
    name = f"cuda:{index}"
    found = str(torch.cuda.get_device_name(index))
    try:
        torch.ones(1, device=name).add_(1).cpu()
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        cure = "Install a torch build made for this card and driver, or use --device cpu."
        reason = str(error).splitlines()[0]
        return Finding("device", name, f"{found}: {reason}", Health.ADVICE, cure)
    found = f"{found}, {_gb(free)} free of {_gb(total)}"
    return Finding("device", name, found, free_bytes=free, total_bytes=total)


def _memory() -> Iterator[Finding]:
    available = available_memory()
    if available is None:
        return
    cards = [card for _, card in read_cards() if isinstance(card, ModelCard)]
    needed = max((card.memory_mb for card in cards), default=0.0) or DEFAULT_MEMORY_MB
    found = f"{_gb(available)} available"
    if available >= needed * 1e6:
        yield Finding("memory", "ram", found, free_bytes=available)
    else:
        cure = f"The models here need up to {needed / 1000:.1f} GB: close other programs."
        yield Finding("memory", "ram", found, Health.ADVICE, cure, free_bytes=available)


def _models() -> Iterator[Finding]:
    usable = 0
    for source, card in read_cards():
        try:
            if isinstance(card, ModelError):
                raise card
            card.verify()
        except ModelError as error:
            cure = f"Import it again, or remove {source.parent}."
            yield Finding("models", source.parent.name, str(error), Health.ADVICE, cure)
            continue
        usable += 1
        yield Finding("models", card.id, f"version {card.version}, weights as its card says")
    if not usable:
        cure = (
            "Install medsegai again, which brings the model brain, or: medsegai models import PATH"
        )
        yield Finding("models", "models", "no usable model", Health.PROBLEM, cure)


def _disk() -> Iterator[Finding]:
    folder = user_models_folder()
    if folder is None:
        cure = "Models cannot be imported: set HOME, or MEDSEGAI_MODELS to a folder of your own."
        found = "none, because this user does not have a home folder"
        yield Finding("disk", "models folder", found, Health.ADVICE, cure)
        return
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    found = f"{folder}, {_gb(free)} free"
    if not os.access(there, os.W_OK):
        cure = "Models cannot be imported: set MEDSEGAI_MODELS to a folder of your own."
        yield Finding("disk", "models folder", f"{found}, read-only", Health.ADVICE, cure)
    elif free < LEAST_DISK_BYTES:
        cure = "Free some space, or set MEDSEGAI_MODELS to a folder on another disk."
        yield Finding("disk", "models folder", found, Health.ADVICE, cure)
    else:
        yield Finding("disk", "models folder", found, free_bytes=free)


def _temporary_folder() -> Iterator[Finding]:
    """Write into it: whether that works is more than its permissions tell."""
    name, cure = "temporary folder", "Free space there, or name another folder in TMPDIR."
    try:
        folder = temporary_folder()
        with tempfile.TemporaryFile(prefix="medsegai-", dir=folder) as file:
            file.write(bytes(1 << 16))
        free = shutil.disk_usage(folder).free
    except (OutputError, OSError) as error:
        yield Finding("disk", name, str(error), Health.PROBLEM, cure)
        return
    found, health = f"{folder}, {_gb(free)} free", Health.GOOD
    if free < LEAST_DISK_BYTES:
        health = Health.ADVICE
    yield Finding(
        "disk", name, found, health, "" if health is Health.GOOD else cure, free_bytes=free
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return "not installed"
    return f"cannot be loaded: {str(error).splitlines()[0]}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
