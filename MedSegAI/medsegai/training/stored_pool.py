"""A pool of training volumes on disk, which a separate process fills while the network learns.

A volume depends on its number only, so it does not matter which process makes it: if the file is missing, damaged
or late, the trainer makes the volume itself, and the run stays bit-identical. The size of the folder is bounded:
volumes before those in use are removed, and at most `sampling.ahead` are made in advance.

The name of the folder depends on everything from which volumes are made, so that a run never reads volumes of
another configuration or other data.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medsegai import __version__
from medsegai.models.card import load_card
from medsegai.training.config import TrainingConfig, load_config
from medsegai.training.data import TRAINING, Sample, SampleSource, case_source, find_files

logger = logging.getLogger(__name__)

WANTED = "wanted.txt"
"""The name of the file that holds the number of the volume that the trainer requested last."""

POLL_SECONDS = 0.2


class StoredPool:
    """A `SampleSource` whose training volumes are read from a folder that a maker process fills.

    Args:
        source: the source of volumes that are not in the folder.
        config: the configuration of the run.
        folder: the folder of the pools of this run; pools of other configurations or data are removed.
        rank: the rank of this process; only the first one writes and runs a maker.

    Attributes:
        folder: the folder of the volumes.
    """

    def __init__(
        self, source: SampleSource, config: TrainingConfig, folder: Path, rank: int = 0
    ) -> None:
        self._source = source
        self.folder = folder / made_from(config)
        self._maker: subprocess.Popen[bytes] | None = None
        self._config = config
        self._writes = rank == 0
        if self._writes:
            remove_others(self.folder)

    def sample(self, stream: int, index: int) -> Sample:
        """Return volume `index`, from the folder if it is there."""
        if stream != TRAINING:
            return quantised(self._source.sample(stream, index))
        stored = read_stored(volume_path(self.folder, index))
        if self._writes:
            self._announce(index)
        if stored is not None:
            return stored
        with one_thread():
            made = quantised(self._source.sample(stream, index))
        if self._writes:
            with contextlib.suppress(OSError):  # reported by _announce
                store(volume_path(self.folder, index), made)
        return made

    def target_counts(self) -> NDArray[np.int64]:
        """Return how many voxels each class has in the pool."""
        return self._source.target_counts()

    def close(self) -> None:
        """End the maker; its volumes stay for the next run."""
        if self._maker is not None and self._maker.poll() is None:
            self._maker.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._maker.wait(timeout=10)
        self._maker = None

    def _announce(self, index: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f"{WANTED}.part"
            temporary.write_text(str(index))
            os.replace(temporary, self.folder / WANTED)
        except OSError as error:
            logger.warning(
                "The pool %s cannot be written, so volumes are made when they are needed: %s.",
                self.folder,
                error,
            )
            return
        if self._maker is None or self._maker.poll() is not None:
            self._maker = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        config = self._config
        command = [sys.executable, "-P", "-m", "medsegai.training.stored_pool", str(config.source)]
        command += [str(self.folder), str(config.data_root.resolve()), str(os.getpid())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)


def made_from(config: TrainingConfig) -> str:
    """Return a hash of what volumes depend on besides their numbers: configuration, card, data and version."""
    labels, images = find_files(config)
    states = [path.stat() for path in (*labels, *images) if path is not None]
    described = (
        *(__version__, config.fingerprint(), load_card(config.card_path).fingerprint()),
        *(path.name for path in labels),
        *((state.st_size, state.st_mtime_ns) for state in states),
    )
    return hashlib.sha256(repr(described).encode()).hexdigest()[:16]


def remove_others(folder: Path) -> None:
    """Remove the other pools beside a pool, whose volumes were made from something else."""
    with contextlib.suppress(OSError):
        for path in folder.parent.iterdir():
            if path.is_dir() and path != folder:
                shutil.rmtree(path, ignore_errors=True)
            elif path != folder:
                path.unlink()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Make torch sum in the same order as the maker, which has one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def quantised(sample: Sample) -> Sample:
    """Return the volume with its image in eight bits, as it is stored."""
    return Sample(np.rint(sample.image * 255.0).astype(np.uint8), sample.targets)


def volume_path(folder: Path, index: int) -> Path:
    """Return the file of a volume of the pool."""
    return folder / f"{index:08d}.npy"


def read_stored(path: Path) -> Sample | None:
    """Return the volume in a file of the pool; None if it is missing or damaged."""
    try:
        image, targets = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return Sample(image, targets)


def store(path: Path, sample: Sample) -> None:
    """Write a volume; the file appears complete or not at all."""
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        np.save(file, np.stack([sample.image, sample.targets]), allow_pickle=False)
    os.replace(temporary, path)


def fill(source: SampleSource, config: TrainingConfig, folder: Path, wanted: int) -> bool:
    """Make the next volume that the trainer will request, and remove those that have left its pool.

    Returns:
        Whether there was something to do.
    """
    for number, path in stored_volumes(folder):
        if number <= wanted - config.sampling.pool:
            path.unlink(missing_ok=True)
    for number in range(wanted + 1, wanted + 1 + config.sampling.ahead):
        path = volume_path(folder, number)
        if not path.exists():
            store(path, quantised(source.sample(TRAINING, number)))
            return True
    return False


def stored_volumes(folder: Path) -> Iterator[tuple[int, Path]]:
    """Return numbers and paths of the volumes in a pool."""
    for path in sorted(folder.glob("*.npy")):
        if path.stem.isdigit():
            yield int(path.stem), path


def main(arguments: list[str]) -> None:
    """Fill a pool until the trainer ends: CONFIG POOL_FOLDER DATA_ROOT PID_OF_THE_TRAINER."""
    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(19)
    config = load_config(Path(arguments[0]))
    config = replace(config, data=replace(config.data, root=arguments[2]))
    folder, parent = Path(arguments[1]), int(arguments[3])
    source = case_source(config, load_card(config.card_path), torch.device("cpu"))
    while os.getppid() == parent:
        try:
            wanted = int((folder / WANTED).read_text())
            busy = fill(source, config, folder, wanted)
        except (OSError, ValueError) as error:
            logger.warning("The pool %s cannot be filled: %s.", folder, error)
            busy = False
        if not busy:
            time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
