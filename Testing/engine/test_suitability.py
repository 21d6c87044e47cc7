"""A scan that cannot be meant for a model is refused before anything runs; a doubtful one is told of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dicom_files import write_series
from medsegai.cli import main
from medsegai.errors import MismatchError
from medsegai.io import read_volume
from medsegai.models.card import Channel, ModelCard, card_from_dict
from medsegai.models.catalogue import find_card
from medsegai.models.suitability import check_suits, doubts
from medsegai.volume import Geometry, Volume

BRAIN, HIPPOCAMPUS = find_card("brain"), find_card("hippocampus")
HEAD = (180.0, 210.0, 240.0)
CROP = (36.0, 40.0, 52.0)


def scan(
    sides_mm: tuple[float, ...], kind: str, modality: str = "", spacing: float = 6.0
) -> Volume:
    """A scan of these sides (k, j, i): soft tissue with noise in air, or as an MR shows it."""
    shape = [round(side / spacing) for side in sides_mm]
    chance = np.random.default_rng(0)
    inside = np.ones(shape, bool)
    inside[: shape[0] // 5], inside[:, : shape[1] // 6] = False, False
    tissue = {"CT": chance.normal(40, 30, shape), "MR": chance.normal(400, 90, shape)}[kind]
    air = {"CT": chance.normal(-1000, 10, shape), "MR": np.abs(chance.normal(0, 20, shape))}[kind]
    voxels = np.where(inside, tissue, air).astype(np.int16)
    grid = Geometry.from_spacing(shape, (spacing,) * 3)
    return Volume(voxels, grid, "scan", modality=modality)


def for_ct(card: ModelCard) -> ModelCard:
    return replace(card, channels=(Channel("CT", "CT"),))


@pytest.mark.parametrize("modality", ["", "MR", "OT"])
def test_a_fitting_scan_is_not_spoken_of(modality: str) -> None:
    assert check_suits([BRAIN], [scan(HEAD, "MR", modality)]) == ()
    assert check_suits([HIPPOCAMPUS], [scan(CROP, "MR", modality, 2.0)]) == ()
    ct = "CT" if modality == "MR" else modality
    assert check_suits([for_ct(BRAIN)], [scan(HEAD, "CT", ct)]) == ()


@pytest.mark.parametrize(
    ("card", "volume", "reason"),
    [
        (BRAIN, scan(HEAD, "MR", "CT"), "is a scan of CT, but the model .* was made for MR"),
        (BRAIN, scan(HEAD, "MR", "PT"), "is a scan of PET"),
        (BRAIN, scan(HEAD, "CT"), r"has the values of a CT \(air at -1000\)"),
        (for_ct(BRAIN), scan(HEAD, "MR", "MR"), "is a scan of MR, but .* made for CT"),
        (
            HIPPOCAMPUS,
            scan(HEAD, "MR", "MR"),
            "covers 180 x 210 x 240 mm, which is far larger than",
        ),
        (for_ct(HIPPOCAMPUS), scan((350, 350, 300), "CT", "CT"), "covers .* far larger than"),
    ],
)
def test_what_cannot_be_meant_is_refused_unless_it_is_asked_for(
    card: ModelCard, volume: Volume, reason: str
) -> None:
    with pytest.raises(MismatchError, match=rf"scan {reason}.*segment it anyway \(--anyway;"):
        check_suits([card], [volume])
    (warning,) = check_suits([card], [volume], anyway=True)
    assert "anyway" not in warning
    with pytest.raises(MismatchError):
        check_suits([BRAIN if card is not BRAIN else HIPPOCAMPUS, card], [volume])


@pytest.mark.parametrize(
    ("card", "volume", "words"),
    [
        (BRAIN, scan(CROP, "MR", "MR", 2.0), "smaller than the 207 x 210 x 228 mm"),
        (BRAIN, scan((500, 400, 800), "MR", "MR"), "which is larger than"),
        (for_ct(BRAIN), scan(HEAD, "MR"), "has no values below 0, as a CT"),
    ],
)
def test_what_is_doubtful_is_told(card: ModelCard, volume: Volume, words: str) -> None:
    (warning,) = check_suits([card], [volume])
    assert words in warning


def test_mr_with_negative_values_is_no_ct() -> None:
    """Phase images, normalised images, and subtractions."""
    chance = np.random.default_rng(1)
    grid = scan(HEAD, "MR").geometry
    for voxels in (
        chance.integers(-4096, 4096, grid.shape),
        chance.normal(0, 1, grid.shape),
        chance.normal(0, 300, grid.shape),
        chance.normal(-500, 500, grid.shape),
    ):
        assert check_suits([BRAIN], [Volume(voxels, grid, "scan")]) == ()


def test_every_channel_is_looked_at() -> None:
    card = replace(BRAIN, channels=(Channel("T1", "MR"), Channel("PET", "PT")))
    assert check_suits([card], [scan(HEAD, "MR", "MR"), scan(HEAD, "MR", "PT")]) == ()
    with pytest.raises(MismatchError, match=r"is a scan of MR, but .* made for PET"):
        check_suits([card], [scan(HEAD, "MR", "MR"), scan(HEAD, "MR", "MR")])


@pytest.mark.parametrize("folder", ["malc2012-train/*_SS.nii.gz", "t1-head/t1_crop.nii.gz"])
def test_real_heads_are_not_spoken_of(shared_data: Path, folder: str) -> None:
    paths = sorted(shared_data.glob(folder))[:3]
    assert paths
    for path in paths:
        assert list(doubts(BRAIN, [read_volume(path)])) == []


def test_real_scans_of_a_body_are_told_apart(shared_data: Path) -> None:
    """A CT of the body, as NIfTI and as DICOM, and an MR of it."""
    folder = shared_data / "totalsegmentator-examples"
    ct, dicom, mr = (
        read_volume(folder / name)
        for name in ("example_ct_sm.nii.gz", "example_ct_dicom", "example_mr_sm.nii.gz")
    )
    for volume, reason in ((ct, "values of a CT"), (dicom, "is a scan of CT")):
        with pytest.raises(MismatchError, match=reason):
            check_suits([BRAIN], [volume])
        assert check_suits([replace(for_ct(BRAIN), field_of_view_mm=None)], [volume]) == ()
    assert check_suits([BRAIN], [mr]) == ()
    with pytest.raises(MismatchError, match="far larger"):
        check_suits([HIPPOCAMPUS], [mr])


def test_the_card_of_the_hippocampus_has_the_sides_of_the_median_case(shared_data: Path) -> None:
    paths = (shared_data / "Dataset004_Hippocampus" / "imagesTr").glob("*.nii.gz")
    sides = [
        sorted(np.multiply(image.shape, image.header.get_zooms()))
        for image in map(nibabel.load, paths)
    ]
    assert HIPPOCAMPUS.field_of_view_mm == tuple(np.median(sides, axis=0))


def test_a_card_keeps_the_field_of_view() -> None:
    data = BRAIN.to_dict()
    assert card_from_dict(data).field_of_view_mm == BRAIN.field_of_view_mm
    for wrong in ([3, 2, 1], [0, 1, 2], [1, 2], "abc", [1, 2, float("inf")]):
        with pytest.raises(Exception, match="card"):
            card_from_dict(data | {"field_of_view_mm": wrong})


def test_the_command_refuses_before_it_loads_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DICOM tells the modality; nothing is loaded, and nothing written."""
    monkeypatch.setattr("medsegai.engine.load_model", lambda card: pytest.fail("was loaded"))

    def as_ct(head: object, k: int) -> None:
        head.Modality = "CT"  # type: ignore[attr-defined]

    write_series(tmp_path / "ct", scan(HEAD, "MR"), as_ct)
    assert main(["segment", str(tmp_path / "ct"), "-o", str(tmp_path / "x.seg.nrrd")]) == 3
    assert "is a scan of CT" in capsys.readouterr().err
    assert not (tmp_path / "x.seg.nrrd").exists()
