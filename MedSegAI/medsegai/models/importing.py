"""Adding a model to the user's own: checked, converted where needed, and moved in as a whole.

An untrusted file is read in a separate process, which can write in the folder of this import only (see
`confinement`), and has limits of time and memory. What it leaves is checked before it is moved in.

A family that can read weights as others released them offers `import_model(path, destination)`, which
writes a model folder at `destination` and returns its card, or returns None if `path` is nothing it knows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image

from medsegai.errors import (
    InputError,
    MedSegAIError,
    ModelError,
    ModelExistsError,
    OutputError,
    UnsafeModelError,
)
from medsegai.io import write_card
from medsegai.io.archives import DAMAGED, Kind, open_zip, unpacked
from medsegai.io.atomic import output_error
from medsegai.io.pictures import read_pixels
from medsegai.models.card import CARD_NAME, PICTURE_NAME, ModelCard, load_card
from medsegai.models.catalogue import BUNDLED_MODELS
from medsegai.models.json_fields import MOST_BYTES
from medsegai.networks.torch_files import check_claims
from medsegai.system.confinement import confine, limit
from medsegai.system.locks import try_lock
from medsegai.system.regular_files import open_regular, read_regular
from medsegai.worker.protocol import pack_error, unpack_error

logger = logging.getLogger(__name__)

Importer = Callable[[Path, Path], ModelCard | None]

SAFE_WEIGHTS = ".safetensors"
ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""The allowed ids, because an id becomes a folder name and an option on the command line."""


CHILD = "medsegai.models.importing"
"""Module whose `main` reads an untrusted file. Neither process loads torch before claims were checked."""

ANSWER, LOG = "answer.json", "log.txt"
"""What the separate process leaves beside the model: null or its error, and what it printed."""

MOST_ANSWER, MOST_FILES = 1 << 16, 100_000

LEAST_MEMORY, MEMORY_OF_SIZE = 2 << 30, 4
"""What a conversion may take beyond what its libraries do: so many bytes, and so many for each byte it reads. It
holds a network, a copy in float32 of weights that may be of 16 bits, and what is written."""

LEAST_SECONDS, BYTES_A_SECOND, START_SECONDS = 300, 5_000_000, 120

LEAST_FILE, FILE_OF_SIZE = 1 << 30, 4

MOST_WEIGHTS, MOST_PICTURE = 16 << 30, 16 << 20
"""Bytes of all weights of a model, and of its picture. The largest of nnU-Net's models have some gigabytes."""

MOST_PIXELS = 4096
"""Along a side of that picture."""

LEAST_FREE = 1 << 20
"""A disk with fewer bytes left is full."""

STAGING = ".import-"
"""Starts the names of folders in which an import is under way."""

ABANDONED_SECONDS = 24 * 3600.0
"""An import that is older was killed; where the system has file locks it is known at once."""


@dataclass(frozen=True)
class Limits:
    """Limits of the process that reads an untrusted file; see `confinement.limit`."""

    memory_bytes: int
    seconds: int
    file_bytes: int


def import_model(
    path: Path, models_folder: Path, replace: bool = False, id: str | None = None
) -> ModelCard:
    """Add the model at `path` to `models_folder`, under its id.

    Args:
        path: a folder with card.json and safetensors weights, or a folder or file that a family can convert.
        models_folder: made if it does not exist.
        replace: whether a model of the same id in `models_folder` may be replaced.
        id: the id to give the model, in place of its own.

    Returns:
        The card as it stands in `models_folder`.

    Raises:
        InputError: `path` does not exist.
        ModelError: `path` does not hold a model that MedSegAI can read, it is damaged, or its id is taken.
        UnsafeModelError: the model could run code or reach outside its folder.
        OutputError: `models_folder` cannot be written.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the path.")
    try:
        models_folder.mkdir(parents=True, exist_ok=True)
        with _staging(models_folder) as staged:
            card = _stage_confined(path, staged, id)
            _rewrite_picture(staged)
            _follow_umask(
                staged
            )  # here, because the process of the conversion may not change rights
            return _move_in(card, models_folder, replace)
    except OSError as error:
        raise output_error(models_folder, error) from error


@contextlib.contextmanager
def _staging(models_folder: Path) -> Iterator[Path]:
    """Where the model is made. It goes away after the block, or, if the process is killed, at the next import."""
    for folder in models_folder.glob(f"{STAGING}*"):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
    # One level below a dot folder: the catalogue looks at MODELS/*/card.json and cannot see it.
    with tempfile.TemporaryDirectory(prefix=STAGING, dir=models_folder) as name:
        staged = Path(name) / "models" / "new"
        staged.parent.mkdir()
        with (Path(name) / "lock").open("w") as lock:
            _try_lock(lock)
            yield staged


def _is_abandoned(folder: Path) -> bool:
    try:
        with (folder / "lock").open("r+") as lock:
            if _try_lock(lock):
                return True
    except OSError:
        pass  # it is only just being made, or cannot be read
    try:
        return time.time() - folder.stat().st_mtime > ABANDONED_SECONDS
    except OSError:
        return False


def _try_lock(file: IO[str]) -> bool:
    """Lock a file; False if another process has it, or there are no locks here."""
    try:
        return try_lock(file)
    except OSError:
        return False


def _stage_confined(path: Path, staged: Path, id: str | None) -> ModelCard:
    """Write the model to `staged` in a separate process, and check it there."""
    place = staged.parent
    size = min(_size(path), MOST_WEIGHTS)
    limits = Limits(
        memory_bytes=LEAST_MEMORY + MEMORY_OF_SIZE * size,
        seconds=LEAST_SECONDS + size // BYTES_A_SECOND,
        file_bytes=LEAST_FILE + FILE_OF_SIZE * size,
    )
    ending = _run_child(path, staged, id, limits)
    if not os.path.lexists(place / ANSWER):
        if _is_full(place):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise _fruitless(path, ending)
    error = _answer(path, place / ANSWER)
    if error is not None:
        raise error
    _check_staged(staged)
    return load_card(staged)


def _is_full(place: Path) -> bool:
    """Whether a conversion that gave no answer ended because there was no room for it."""
    said = _last_line(place / LOG)
    return shutil.disk_usage(place).free < LEAST_FREE or "No space left" in said


def _answer(path: Path, file: Path) -> MedSegAIError | None:
    """The error that the conversion met, if any; what it wrote is not believed to make sense."""
    try:
        error = json.loads(read_regular(file, MOST_ANSWER))
        return None if error is None else unpack_error(error)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return _fruitless(path, "gave an answer that cannot be read")


def _fruitless(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path} was not imported: its conversion {why}. The file is damaged or made to do harm; get it again "
        "from its authors."
    )


def _environment(temporary: Path) -> dict[str, str]:
    """Return the variables of the process that imports: few threads, and temporary files in this folder."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path),
        "TMPDIR": os.fspath(temporary.absolute()),
        # Each thread would take address space, and Landlock holds for threads that come later only.
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        "MALLOC_ARENA_MAX": "1",
    }


def _run_child(path: Path, staged: Path, id: str | None, limits: Limits) -> str:
    """Let `main` of this module do it, and say how that ended."""
    request = [os.fspath(path.absolute()), os.fspath(staged.absolute()), id, asdict(limits)]
    with (staged.parent / LOG).open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", CHILD, json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(staged.parent),
        )
        try:
            code = child.wait(limits.seconds + START_SECONDS)
        except subprocess.TimeoutExpired:
            return f"took more than {limits.seconds} seconds"
        finally:
            child.kill()
            child.wait()
    logger.info("The import of %s ended with %s: %s", path, code, _last_line(staged.parent / LOG))
    return _ending(code)


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by signal {-code}"
    return f"ended unexpectedly (exit code {code})"


def main(request: str) -> None:
    """What the separate process does."""
    path, staged, id, limits = json.loads(request)
    path, staged = Path(path), Path(staged)
    confine(staged.parent)
    error: MedSegAIError | None = None
    try:
        check_claims(path, MOST_FILES)
        if not _has_card(path):
            list(_importers())  # what libraries take before they do anything is not counted
        limit(**limits)
        _stage(path, staged, id)
    except MedSegAIError as caught:
        error = caught
    except MemoryError:
        error = _too_large(path, limits["memory_bytes"])
    text = json.dumps(None if error is None else pack_error(error))
    (staged.parent / ANSWER).write_text(text, encoding="utf-8")


def _too_large(path: Path, memory_bytes: int) -> ModelError:
    size = memory_bytes / 1e9
    return ModelError(f"{path} was not imported: its conversion needs more than {size:.1f} GB.")


def _size(path: Path) -> int:
    """Bytes of the regular files at `path`, as far as they are counted."""
    if not path.is_dir():
        return path.stat().st_size if path.is_file() else 0
    files = itertools.islice(path.rglob("*"), MOST_FILES)
    return sum(file.stat().st_size for file in files if file.is_file())


def _last_line(log: Path) -> str:
    if not log.is_file():
        return "nothing was said"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - MOST_ANSWER))
        lines = file.read(MOST_ANSWER).decode(errors="replace").strip().splitlines()
    return repr(lines[-1]) if lines else "nothing was said"


def _check_staged(staged: Path) -> None:
    """A model is a folder of plain files; whoever could run code in the other process may have made others."""
    for file in staged.iterdir():
        if file.is_symlink() or not file.is_file():
            raise UnsafeModelError(
                f"The conversion left {file.name!r}, which is not a plain file. The model was not imported."
            )


def _rewrite_picture(staged: Path) -> None:
    """Replace the picture of a model by its pixels, written again: Slicer shows it in its own process, by Qt.

    Raises:
        ModelError: it cannot be read, or is larger than a picture of a model has to be.
    """
    path = staged / PICTURE_NAME
    if not path.exists():
        return
    try:
        pixels = read_pixels(path).pixels
    except InputError as error:
        raise ModelError(f"The picture of the model cannot be read: {error}") from error
    if pixels.dtype != np.uint8 or max(pixels.shape) > MOST_PIXELS:
        raise ModelError(
            f"The picture of the model, {PICTURE_NAME}, has {pixels.shape[1]} x {pixels.shape[0]} pixels of type "
            f"{pixels.dtype}. At most {MOST_PIXELS} x {MOST_PIXELS} of 8 bits are taken."
        )
    Image.fromarray(pixels).save(path)


def _has_card(path: Path) -> bool:
    return path.name == CARD_NAME or (path / CARD_NAME).is_file()


def _follow_umask(folder: Path) -> None:
    """Let those read the files who may read any new file; safetensors keeps its own to the user."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)


def _stage(path: Path, staged: Path, id: str | None) -> ModelCard:
    """Write the model to `staged` and check it there."""
    if _has_card(path):
        _copy_folder(load_card(path), staged)
    elif _is_archive_of_card(path):
        with unpacked(path, _kind_of, staged.parent) as folder:
            _copy_folder(load_card(next(folder.rglob(CARD_NAME)).parent), staged)
    elif not any(importer(path, staged) for importer in _importers()):
        raise ModelError(
            f"{path} is not a model that MedSegAI knows. A model is a folder with {CARD_NAME} and "
            f"{SAFE_WEIGHTS} weights, or a zip archive of it; a folder that nnU-Net v2 trained, or the zip "
            "archive that it exports; the folder or zip archive of a MONAI bundle; a model.pt of MONAI "
            "Auto3DSeg; or weights as the authors of a family or segmentation_models_pytorch saved them."
        )
    card = load_card(staged)
    if id is not None:
        card = dataclasses.replace(card, id=id)
        write_card(card, staged)
    card.verify()
    return card


def _is_archive_of_card(path: Path) -> bool:
    """Whether this is a zip archive of a model folder, with or without the folder itself."""
    if not path.is_file() or path.suffix.lower() != ".zip":
        return False
    try:
        with open_regular(path) as file, open_zip(file, MOST_FILES) as opened:
            names = [PurePosixPath(name) for name in opened.namelist()]
    except (OSError, *DAMAGED):
        return False  # others say what is wrong with it
    return sum(name.name == CARD_NAME and len(name.parts) <= 2 for name in names) == 1


def _kind_of(path: PurePosixPath) -> Kind:
    """The kind of a file in an archive of a model folder, which may contain notes as well."""
    wanted = path.name in (CARD_NAME, PICTURE_NAME) or path.suffix == SAFE_WEIGHTS
    return Kind.WANTED if wanted and len(path.parts) <= 2 else Kind.KNOWN


def _copy_folder(card: ModelCard, staged: Path) -> None:
    """Copy the card, its picture and the weights it names, and nothing else that lies in the folder.

    Nothing is copied before the weights are known to be those of the card.
    """
    names = {member.weights for member in card.members if member.weights is not None}
    for name in names:
        _check_weights_name(card, name)
        if not (card.folder / name).is_file():
            raise ModelError(
                f"{card.folder / name} is missing, but the card of {card.id!r} names it."
            )
    _check_room(card, sum((card.folder / name).stat().st_size for name in names), staged.parent)
    card.verify()
    staged.mkdir()
    for name, most in ((CARD_NAME, MOST_BYTES), (PICTURE_NAME, MOST_PICTURE)):
        if (card.folder / name).is_file():
            (staged / name).write_bytes(_content(card.folder / name, most))
    for name in names:
        shutil.copyfile(card.folder / name, staged / name)


def _content(path: Path, most: int) -> bytes:
    try:
        return read_regular(path, most)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error


def _check_room(card: ModelCard, size: int, place: Path) -> None:
    """Refuse weights that no model has, or that do not fit: a file with holes can have any size."""
    if size > MOST_WEIGHTS:
        raise ModelError(
            f"The weights of {card.id!r} in {card.folder} have {size / 1e9:.0f} GB, and at most "
            f"{MOST_WEIGHTS / 1e9:.0f} GB are imported. The files are damaged or made to do harm."
        )
    free = shutil.disk_usage(place).free
    if size > free:
        raise OutputError(
            f"The weights of {card.id!r} have {size / 1e9:.1f} GB, and the disk of the folder of models has "
            f"{free / 1e9:.1f} GB free. Make room, or set MEDSEGAI_MODELS to another folder."
        )


def _check_weights_name(card: ModelCard, name: str) -> None:
    if Path(name).name != name or "\\" in name:
        raise UnsafeModelError(
            f"The card of {card.id!r} names the weights {name!r}, which lie outside its folder. "
            "The model was not imported."
        )
    if not name.endswith(SAFE_WEIGHTS):
        raise UnsafeModelError(
            f"{card.folder / name} is not a {SAFE_WEIGHTS} file. Other formats can run code when they are "
            f"opened; the model was not imported. Ask its authors for {SAFE_WEIGHTS} weights."
        )


def _importers() -> Iterator[Importer]:
    """What the families offer to read released weights with; last those that look at endings only."""
    from medsegai.families import family, family_names  # loads torch

    modules = [family(name) for name in family_names()]
    for module in sorted(modules, key=lambda module: hasattr(module, "TAKES_EVERY_CHECKPOINT")):
        importer = getattr(module, "import_model", None)
        if importer is not None:
            yield importer


def _move_in(card: ModelCard, models_folder: Path, replace: bool) -> ModelCard:
    """Give the staged model its place under its id, in one step."""
    _check_id(card)
    place = models_folder / card.id
    if (BUNDLED_MODELS / card.id).exists():
        raise ModelExistsError(
            f"{card.id!r} comes with MedSegAI. Give the model another id with --id."
        )
    if place.exists() and not replace:
        raise ModelExistsError(
            f"There is a model {card.id!r} in {place}. Add --replace to replace it, or --id to keep both."
        )
    old = card.folder.parent / "old"  # goes away with the staging folder
    if place.exists():
        place.rename(old)
    try:
        card.folder.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    return load_card(place)


def _check_id(card: ModelCard) -> None:
    if not ID_PATTERN.fullmatch(card.id):
        raise ModelError(
            f"A model id has letters, digits, dots, dashes and underscores, unlike {card.id!r}. "
            "Give the model another with --id."
        )


if __name__ == "__main__":
    main(sys.argv[1])
