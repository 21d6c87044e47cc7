"""A model whose members are of two families, and the class weights that inference undoes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.spatial.transform import Rotation

import tiny_quicknat
from medsegai.engine import segment
from medsegai.errors import ModelError
from medsegai.families import _head
from medsegai.models.card import ModelCard, file_sha256, load_card
from medsegai.networks.compact_unet import CompactUNet, CompactUNetConfig
from medsegai.preprocessing.conform import LIA, conform
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume

LABELS = (tiny_quicknat.LEFT, tiny_quicknat.RIGHT, tiny_quicknat.MIDDLE)
TURNED = Rotation.from_euler("xyz", [12, -8, 20], degrees=True).as_matrix()
OBLIQUE = TURNED @ np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
"""Directions of i, j, k: flipped, permuted and turned."""


def ball(geometry: Geometry) -> Volume:
    """A bright ball, off centre."""
    k, j, i = np.indices(geometry.shape)
    distance = np.sqrt((k - 25) ** 2 + (j - 30) ** 2 + (i - 31) ** 2)
    voxels = np.where(distance < 15, 100 + 20 * np.cos(k / 3) * np.sin(j / 4), 0)
    return Volume(voxels.astype(np.float32), geometry)


def head() -> Volume:
    """On an oblique anisotropic grid that is not a cube."""
    return ball(Geometry.from_spacing((52, 64, 58), (1.3, 1.2, 1.6), (40, 30, -50), OBLIQUE))


def conformed_head() -> Volume:
    """On the very grid that the tiny networks work on, so that nothing is interpolated."""
    return ball(Geometry.from_spacing((64, 64, 64), (2.0, 2.0, 2.0), (0, 0, 0), LIA))


def write_joint_model(folder: Path, **settings: object) -> ModelCard:
    """The tiny QuickNAT with a 3D network beside its views."""
    tiny_quicknat.write_model(folder, slices=3, grid=64)
    torch.manual_seed(7)
    network = CompactUNet(CompactUNetConfig(4, (4, 8), fold=1)).eval()
    with torch.no_grad():
        network.head.weight.mul_(6.0)
    save_file(network.state_dict(), folder / "fast.safetensors")
    card = json.loads((folder / "card.json").read_text())
    for member in card["members"]:
        member["family"] = "quicknat"
    card["members"].append(
        {
            "name": "fast",
            "family": "unet3d",
            "weights": "fast.safetensors",
            "sha256": file_sha256(folder / "fast.safetensors"),
            "weight": 1.5,
            "classes": [[], *([value] for value in LABELS)],
            "settings": {
                "network": "compact",
                "widths": [4, 8],
                "fold": 1,
                "patch": [32, 32, 32],
                "antialias": False,
                **settings,
            },
        }
    )
    (folder / "card.json").write_text(json.dumps(card))
    return load_card(folder)


def request(folder: Path, *members: str, scan: Volume | None = None) -> SegmentationRequest:
    return SegmentationRequest(
        (scan or head(),),
        (str(folder),),
        members=members,
        device="cpu",
        backend="torch",
        precision="fp32",
        probabilities=True,
        refine=False,
    )


def probabilities(folder: Path, *members: str, scan: Volume | None = None) -> np.ndarray:
    found = segment(request(folder, *members, scan=scan)).probabilities
    assert found is not None
    return found.astype(np.float32)


def test_members_of_both_families_are_one_weighted_mean(tmp_path: Path) -> None:
    """Each network alone, averaged here, is what the model answers."""
    write_joint_model(tmp_path)
    views = [probabilities(tmp_path, name) for name in ("axial", "coronal")]
    fast = probabilities(tmp_path, "fast")
    expected = (0.4 * views[0] + 0.4 * views[1] + 1.5 * fast) / 2.3
    found = probabilities(tmp_path, "axial", "coronal", "fast")
    assert np.ptp(fast[:, head().voxels > 0], axis=1).max() > 0.3, "the network says something"
    assert np.abs(fast - views[0]).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=0.006)  # sums are kept in float16


def test_members_are_chosen_by_name_and_by_family(tmp_path: Path) -> None:
    card = write_joint_model(tmp_path)
    names = {word: [m.name for m in card.chosen_members([word])] for word in ("quicknat", "unet3d")}
    assert names == {"quicknat": ["axial", "coronal", "sagittal"], "unet3d": ["fast"]}
    result = segment(request(tmp_path))
    assert result.members == ("axial", "coronal", "fast", "sagittal")
    assert len(result.provenance["native_grids"]) == 1
    assert segment(request(tmp_path, "fast")).members == ("fast",)
    assert load_card(tmp_path).to_dict() == card.to_dict()


def test_a_network_on_a_grid_of_its_own_is_fused_on_the_output_grid(tmp_path: Path) -> None:
    write_joint_model(tmp_path, spacing_mm=[1.5, 1.5, 1.5], grid=[96, 96, 96])
    result = segment(dataclasses.replace(request(tmp_path), uncertainty=True))
    assert len(result.provenance["native_grids"]) == 2
    assert result.mutual_information is not None
    assert result.mutual_information.voxels.max() > 0


@pytest.mark.parametrize(("settings", "grids"), [({}, 1), ({"spacing_mm": [1.5, 1.5, 1.5]}, 2)])
def test_a_scan_is_conformed_once_for_each_grid(
    settings: dict[str, object], grids: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both families take the same head."""
    write_joint_model(tmp_path, intensity="minmax", **settings)
    made: list[Geometry] = []

    def counted(scan: Volume, geometry: Geometry, antialias: bool) -> np.ndarray:
        made.append(geometry)
        return conform(scan, geometry, antialias)

    monkeypatch.setattr(_head, "conform", counted)
    assert segment(request(tmp_path)).labelmap.voxels.any()
    assert len(made) == grids


def test_class_weights_are_undone(tmp_path: Path) -> None:
    """Probabilities are divided by the weights to the power that the card gives."""
    weights, power = [0.2, 3.0, 0.5, 1.0], 0.7
    write_joint_model(tmp_path / "plain")
    write_joint_model(tmp_path / "undone", class_weights=weights, weight_power=power)
    scan = conformed_head()
    plain = probabilities(tmp_path / "plain", "fast", scan=scan)
    undone = probabilities(tmp_path / "undone", "fast", scan=scan)
    plain = np.concatenate([1.0 - plain.sum(0, keepdims=True), plain])
    divided = plain / np.array(weights).reshape(-1, 1, 1, 1) ** power
    divided = (divided / divided.sum(0))[1:]
    inside = scan.voxels > 0
    assert np.abs(undone - plain[1:])[:, inside].max() > 0.1
    np.testing.assert_allclose(undone[:, inside], divided[:, inside], atol=0.004)


@pytest.mark.parametrize(
    "settings",
    [
        {"class_weights": [1.0, 1.0], "weight_power": 1.0},
        {"class_weights": [1.0, 0.0, 1.0, 1.0], "weight_power": 1.0},
        {"class_weights": ["a", 1.0, 1.0, 1.0], "weight_power": 1.0},
        {"class_weights": [1.0, 1.0, 1.0, 1.0], "weight_power": "much"},
        {"patch": [32, 32]},
        {"patch": [33, 32, 32]},
        {"network": "transformer"},
        {"grid": "large"},
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    write_joint_model(tmp_path, **settings)
    with pytest.raises(ModelError):
        segment(request(tmp_path, "fast"))
