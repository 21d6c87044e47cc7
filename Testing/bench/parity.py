"""The same labels as nnunetv2, case by case: the table in docs/performance/nnunet-labels.md.

    python Testing/bench/parity.py

Runs the cases of Testing/engine/test_nnunet_parity.py. Weights are random, so that boundaries are everywhere.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "engine"
sys.path.insert(0, str(TESTS))

from nnunet_models import Made  # noqa: E402
from test_nnunet_parity import CASES, agreement, made_image, three_labelmaps  # noqa: E402

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def main() -> None:
    print(
        "| case | voxels | differ from nnunetv2 with float32 sums | agree with nnunetv2 as it comes |"
    )
    print("| --- | --- | --- | --- |")
    for name, made, images, mirroring in cases():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            paths = [
                image if isinstance(image, Path) else made_image(root / image[0], **image[1])
                for image in images
            ]
            found, exact, usual = three_labelmaps(root, made, paths, mirroring)
        everywhere, foreground = agreement(found, usual)
        print(
            f"| {name} | {found.size} | {(found != exact).sum()} "
            f"| {everywhere:.4%}, foreground {foreground:.4%} |",
            flush=True,
        )


Image = Path | tuple[str, dict[str, Any]]


def cases() -> Iterator[tuple[str, Made, Sequence[Image], bool]]:
    """Name, model, images (on disk, or to be made), mirroring."""
    for name, (made, options) in CASES.items():
        yield name, made, [("case_0000.nii.gz", options)], False
    pair = [(f"case_000{n}.nii.gz", {"seed": n, "air": 5 + 2 * n}) for n in range(2)]
    yield "two channels in a mask", Made(channels=("T1", "T2"), mask_norm=True), pair, False
    images = sorted((SHARED / "Dataset004_Hippocampus" / "imagesTr").glob("*.nii.gz"))
    if images:
        made = Made(folds=(0, 1), patch=(24, 32, 24))
        yield "hippocampus, 2 folds, mirrored", made, [images[3]], True
    image = SHARED / "totalsegmentator-examples" / "example_ct_sm.nii.gz"
    if image.exists():
        made = Made(channels=("CT",), spacing=(3.3, 2.9, 3.1), patch=(32, 32, 32))
        yield "CT of TotalSegmentator", made, [image], False


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("parity", main))
