"""The bundled hippocampus model: small, licensed, credited, and as good as its card says."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from medsegai.boxes import label_boxes
from medsegai.engine import segment
from medsegai.evaluation import evaluate
from medsegai.io import read_labelmap, read_volume
from medsegai.models.card import ModelCard, load_card
from medsegai.models.catalogue import BUNDLED_MODELS
from medsegai.request import SegmentationRequest
from medsegai.volume import Volume

HIPPOCAMPUS = BUNDLED_MODELS / "hippocampus"
HELD_OUT = ("hippocampus_019", "hippocampus_035", "hippocampus_037")
"""Cases of fold 0 of nnU-Net's own splits: the network has not seen them."""


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return load_card(HIPPOCAMPUS)


def test_weights_are_small_and_as_the_card_says(card: ModelCard) -> None:
    card.verify()
    assert sum(path.stat().st_size for path in HIPPOCAMPUS.iterdir()) < 20e6


def test_the_card_carries_the_licence_and_the_credit(card: ModelCard) -> None:
    assert card.licence.startswith("CC-BY-SA 4.0")
    assert "Medical Segmentation Decathlon" in card.origin
    assert "Antonelli" in card.citation
    assert "epochs" in card.origin


def test_structures_have_codes_of_their_own(card: ModelCard) -> None:
    codes = {
        (label.terminology.type, label.terminology.modifier)
        for label in card.labels
        if label.terminology is not None
    }
    assert len(codes) == len(card.labels) == 2


def test_held_out_cases_are_as_good_as_the_card_says(card: ModelCard, shared_data: Path) -> None:
    (promised,) = (
        figures for name, figures in card.performance.items() if name.startswith("held-out")
    )
    dataset = shared_data / "Dataset004_Hippocampus"
    found = []
    for case in HELD_OUT:
        image = dataset / "imagesTr" / f"{case}_0000.nii.gz"
        result = segment(SegmentationRequest((image,), ("hippocampus",), device="cpu"))
        reference, _ = read_labelmap(dataset / "labelsTr" / f"{case}.nii.gz")
        found += [item.dice for item in evaluate(result.labelmap, reference, card.labels)]
    assert statistics.fmean(found) > promised["mean_dice"] - 0.05


def test_a_scan_that_cuts_the_hippocampus_is_remarked(shared_data: Path) -> None:
    """And nothing of the whole scan."""
    folder = shared_data / "Dataset004_Hippocampus"
    scan = read_volume(folder / "imagesTr" / "hippocampus_019_0000.nii.gz")
    labels, _ = read_labelmap(folder / "labelsTr" / "hippocampus_019.nii.gz")
    (_, posterior_to_anterior, _) = label_boxes(labels.voxels, [1])[1]
    middle = (posterior_to_anterior.start + posterior_to_anterior.stop) // 2
    k, _, i = scan.geometry.shape
    cut = Volume(scan.voxels[:, :middle], scan.geometry.cropped((0, 0, 0), (k, middle, i)))
    whole, part = (
        segment(SegmentationRequest((image,), ("hippocampus",), device="cpu", mirroring=False))
        for image in (scan, cut)
    )
    assert not any(structure.remarks for structure in whole.structures)
    assert not any("plausible" in warning for warning in whole.warnings)
    (remark,) = part.structures[0].remarks
    assert remark.startswith(f"volume {part.structures[0].volume_ml:.3g} ml, where 0.976 to 2.94")
    assert part.structures[1].remarks == ()
    assert f"Anterior hippocampus: {remark}." in part.warnings
    assert "200 hippocampi" in part.warnings[-1]
