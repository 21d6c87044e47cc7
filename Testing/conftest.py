"""What every test shares: the folder of real images that stands beside the checkout."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Thousands of modules are imported while tests are collected, and none of them is ever garbage: looking through
# them again and again took a fourteenth of the processor time.
gc.disable()

# A test that asks for OpenVINO before the engine does would let it report each network that it converts, which
# also takes it seconds where nothing can be reached.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def pytest_collection_finish() -> None:
    """Look for garbage from here on, more rarely than by default, and not in what is there already."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk() -> Iterator[None]:
    """No test cuts the power, and each of thousands of files would wait some milliseconds for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images and labels: ``MEDSEGAI_SHARED_DATA``, or ``../shared/data``.

    Skips the test where the folder is missing; fails it where ``CI`` is set, because there it
    is always present.
    """
    folder = Path(
        os.environ.get("MEDSEGAI_SHARED_DATA", REPOSITORY.parent / "shared" / "data")
    ).resolve()
    if not folder.is_dir():
        reason = (
            f"no shared data at {folder}: put the images there, or name their folder in "
            "MEDSEGAI_SHARED_DATA"
        )
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
