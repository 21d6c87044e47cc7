"""Held-out images for calibrating a brain model: synthetic ones of label maps that its training held out.

    python Testing/bench/calibration.py ../shared/data/brain-label-maps Dataset001_Held --volumes 12
    medsegai calibrate brain Dataset001_Held --cases all --groups Dataset001_Held/maps.csv -o calibration-brain

Images are drawn as those of the training, from the label maps that its `validation` names, but with voxels of 1
mm, as scans of users have, and a wider field of view. Half of the heads are stripped of the skull; a third shows
another contrast than T1. No evaluation scan takes part. The dataset is as nnU-Net v2 has it: dataset.json,
imagesTr, labelsTr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from medsegai.errors import MedSegAIError
from medsegai.io import write_volume
from medsegai.models.card import ModelCard
from medsegai.models.catalogue import find_card
from medsegai.training.config import load_config
from medsegai.training.data import VALIDATION, CaseSource, case_source
from medsegai.volume import Geometry, Volume

VOXEL_MM = 1.0
FIRST = 1000
"""Number of the first volume: far from those that training looked at to choose its best step."""

ENDING = ".nii.gz"


def held_out_source(card: ModelCard, data: Path, voxels: int) -> CaseSource:
    """Volumes of `voxels` voxels of 1 mm along each axis, of the label maps that training held out."""
    config = load_config(card.folder / "training.toml")
    shape = (voxels, voxels, voxels)
    config = replace(config, data=replace(config.data, root=str(data.resolve()), crop_voxels=shape))
    fine = replace(card, spacing_mm=(VOXEL_MM, VOXEL_MM, VOXEL_MM))
    return case_source(config, fine, torch.device("cpu"))


def write_dataset(card: ModelCard, source: CaseSource, count: int, folder: Path) -> None:
    """Images, labels, dataset.json, and a table of the map that each is of. What is there already is left."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        label = folder / "labelsTr" / f"held_{number:02d}{ENDING}"
        if label.is_file():
            continue
        sample = source.sample(VALIDATION, FIRST + number)
        grid = to_anterior_inferior_left(sample.image.shape)
        image = folder / "imagesTr" / f"held_{number:02d}_0000{ENDING}"
        write_volume(image, Volume((1000 * sample.image).astype(np.int16), grid))
        write_volume(label, Volume(sample.targets, grid))
        print(label, file=sys.stderr, flush=True)
    maps = [
        source.held_out[(FIRST + number) % len(source.held_out)].name for number in range(count)
    ]
    rows = [f"held_{number:02d},{name}" for number, name in enumerate(maps)]
    (folder / "maps.csv").write_text("\n".join(["case,patient", *rows]) + "\n", encoding="utf-8")
    numbers = {label.name: number for number, label in enumerate(card.labels, start=1)}
    content = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0} | numbers,
        "numTraining": count,
        "file_ending": ENDING,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def to_anterior_inferior_left(shape: Sequence[int]) -> Geometry:
    """The grid of made images: k, j, i run to A, I, L."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]]) * VOXEL_MM
    return Geometry((shape[0], shape[1], shape[2]), matrix)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of the label maps of the training")
    parser.add_argument("destination", type=Path, help="dataset folder to write")
    parser.add_argument("--model", default="brain", help="a QuickNAT trained here (default: brain)")
    parser.add_argument("--volumes", type=int, default=12)
    parser.add_argument("--voxels", type=int, default=208, help="along each axis, 1 mm each")
    arguments = parser.parse_args(argv)
    try:
        card = find_card(arguments.model)
        source = held_out_source(card, arguments.data, arguments.voxels)
        write_dataset(card, source, arguments.volumes, arguments.destination)
    except MedSegAIError as error:
        print(f"calibration: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
