"""A model segments a scan as it is or with inverted intensities, whichever its card's member is surer of."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medsegai.engine import forget_models, segment
from medsegai.errors import ModelError
from medsegai.families import Inputs, _contrast, load_model
from medsegai.families._contrast import NOTE, surer_contrast
from medsegai.io import read_volume
from medsegai.models.card import load_card
from medsegai.models.catalogue import find_card
from medsegai.networks.backends import choose_compute
from medsegai.preprocessing.contrast import inverted
from medsegai.preprocessing.intensity import scale_intensity
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Volume
from test_joint_model import head, write_joint_model

CPU = choose_compute("cpu", "auto", "auto")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "joint"
    write_joint_model(folder)
    return folder


def named(folder: Path, member: str, target: Path) -> Path:
    """The model with this `contrast_member`."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    card = json.loads((target / "card.json").read_text())
    (target / "card.json").write_text(json.dumps(card | {"contrast_member": member}))
    return target


def run(folder: Path, scan: Volume) -> SegmentationResult:
    forget_models()
    return segment(SegmentationRequest((scan,), (str(folder),), refine=False, device="cpu"))


@pytest.mark.parametrize(("surer", "is_inverted"), [(float("inf"), True), (0.0, False)])
def test_all_members_see_the_contrast_of_which_one_is_surer(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    surer: float,
    is_inverted: bool,
) -> None:
    scan = head()
    monkeypatch.setattr(_contrast, "SURER", surer)
    found = run(named(folder, "fast", tmp_path / "judging"), scan)
    plain = run(folder, scan)
    other = run(folder, scan.with_voxels(inverted(scan.voxels)))
    assert (plain.labelmap.voxels != other.labelmap.voxels).mean() > 0.01
    expected = other if is_inverted else plain
    np.testing.assert_array_equal(found.labelmap.voxels, expected.labelmap.voxels)
    assert found.warnings.count(NOTE) == is_inverted


def test_the_bundled_model_knows_an_inverted_head(shared_data: Path) -> None:
    scan = read_volume(shared_data / "t1-head" / "t1_crop.nii.gz")
    model = load_model(find_card("brain"))
    assert surer_contrast(model, Inputs([scan]), CPU)[1] == ()
    looks_like_t2 = scan.with_voxels(100 * inverted(scan.voxels) - 20)
    seen, notes = surer_contrast(model, Inputs([looks_like_t2]), CPU)
    assert notes == (NOTE,)
    scaled = scale_intensity(scan.voxels)
    tissue = (scaled > 0.15) & (scaled < 0.85)
    again = np.corrcoef(seen.scans[0].voxels[tissue], scan.voxels[tissue])[0, 1]
    assert again > 0.95


def test_a_scan_in_which_nothing_is_found_stays_as_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(load_card(named(folder, "fast", tmp_path / "judging")))
    network = model.model_of("fast").networks["fast"]
    filled = network.load()
    filled.head.weight.data.zero_()
    filled.head.bias.data = torch.tensor([5.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr(network, "load", lambda: filled)
    inputs = Inputs([head()])
    assert surer_contrast(model, inputs, CPU) == (inputs, ())


@pytest.mark.parametrize("member", ["sagittal", "slow"])
def test_only_a_member_that_can_compare_contrasts_can_be_named(
    folder: Path, tmp_path: Path, member: str
) -> None:
    with pytest.raises(
        ModelError,
        match=f"{member!r}.*(cannot compare contrasts|has no member)|has no member {member!r}",
    ):
        run(named(folder, member, tmp_path / "judging"), head())


def test_a_card_keeps_the_name_of_the_member(folder: Path, tmp_path: Path) -> None:
    card = load_card(named(folder, "fast", tmp_path / "judging"))
    assert card.contrast_member == "fast"
    assert card.to_dict()["contrast_member"] == "fast"
    assert "contrast_member" not in dataclasses.replace(card, contrast_member="").to_dict()


def test_tissue_is_exchanged_and_air_stays_dark() -> None:
    scan = head()
    scan.voxels[:3] = 0.02 * scan.voxels.max()
    found = inverted(scan.voxels)
    tissue = scan.voxels > 0.2 * scan.voxels.max()
    order = np.argsort(scan.voxels[tissue])
    assert (np.diff(found[tissue][order]) <= 1e-6).all()
    assert found.min() == 0.0
    assert found.max() == 1.0
    assert not found[scan.voxels < 0.05 * scan.voxels.max()].any()
    np.testing.assert_allclose(inverted(3 * scan.voxels - 500), found, atol=1e-4)
    assert not inverted(np.full((4, 4, 4), 7.0)).any()
