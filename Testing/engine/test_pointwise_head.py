"""The last layer of a network after the blending of windows: it answers as within the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medsegai.families._sliding import Window, logits_by_planes
from medsegai.networks.monai_networks import KINDS, Description
from medsegai.networks.pointwise_head import take_head
from monai_bundles import made_network

FEATURES, CLASSES, SIDE = 8, 11, 32

NETWORKS: dict[str, dict[str, Any]] = {
    "BasicUNet": {"features": [4, 4, 4, 8, 8, FEATURES]},
    "SegResNet": {"init_filters": FEATURES, "blocks_down": [1, 1], "blocks_up": [1]},
    "SegResNetDS": {"init_filters": FEATURES, "blocks_down": [1, 1], "dsdepth": 2},
    "SwinUNETR": {"feature_size": 12, "out_channels": 14, "norm_name": "batch"},
    "UNETR": {
        "img_size": [SIDE] * 3,
        "feature_size": FEATURES,
        "hidden_size": 24,
        "mlp_dim": 32,
        "num_heads": 3,
    },
}
"""A small one of each kind that has such a layer."""


def made(name: str, **arguments: Any) -> tuple[Description, nn.Module]:
    chosen = {"in_channels": 1, "out_channels": CLASSES, **NETWORKS[name], **arguments}
    description = Description.of(name, chosen)
    return description, description.with_weights(
        made_network({"_target_": name, **chosen}).state_dict()
    )


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.head])
def test_a_network_answers_with_features_and_its_head_makes_the_same_logits_of_them(
    name: str,
) -> None:
    image = torch.randn(1, 1, SIDE, SIDE, SIDE)
    description, network = made(name)
    expected = network(image)[0]
    head = description.without_head(network)
    assert head is not None
    features = network(image)[0]
    assert len(features) == head.features < len(expected)
    found = head.into(features, torch.empty_like(expected))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{"out_channels": FEATURES}, {"use_conv_final": False}])
def test_a_network_is_unchanged_where_nothing_is_saved(arguments: dict[str, Any]) -> None:
    image = torch.randn(1, 1, SIDE, SIDE, SIDE)
    description, network = made("SegResNet", **arguments)
    expected = network(image)
    assert description.without_head(network) is None
    torch.testing.assert_close(network(image), expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    "layer", [nn.Conv3d(2, 4, 3, padding=1), nn.Conv3d(2, 4, 1, stride=2), nn.Identity()]
)
def test_only_layers_of_single_voxels_are_taken(layer: nn.Module) -> None:
    network = nn.Sequential(layer)
    assert take_head(network, "0") is None
    assert network[0] is layer


@torch.no_grad()
def test_a_head_after_the_blending_gives_the_blended_answers() -> None:
    """Also where windows differ in what they answer for a voxel."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv3d(3, 7, 1))
    at = Window(
        torch.randn(1, 9, 7, 8),
        (slice(1, 9), slice(0, 7), slice(2, 8)),
        (5, 4, 4),
        rows=[0, 3, 4],
        corners=[(j, i) for j in (0, 2, 3) for i in (0, 3, 4)],
        importance=torch.rand(5, 4, 4) + 0.1,
    )
    expected = list(logits_by_planes(at, [(network, 1.0)], 0, 7, []))
    head = take_head(network, "2")
    assert head is not None
    planes = list(logits_by_planes(at, [(network, 1.0)], 0, head.features, []))
    assert len(planes) == len(expected) == 8
    for features, logits in zip(planes, expected, strict=True):
        found = head.into(features, torch.empty(7, *features.shape[1:]))
        torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_logits_may_lie_in_memory_by_voxel(order: tuple[int, int, int]) -> None:
    """As those of OpenVINO do, in the axes of the network."""
    network = nn.Conv3d(1, 3, 3, padding=1)
    at = Window(
        torch.randn(1, 9, 7, 8),
        (slice(0, 9), slice(0, 7), slice(0, 8)),
        (5, 4, 3),
        rows=[0, 4],
        corners=[(j, i) for j in (0, 3) for i in (0, 3, 5)],
        importance=torch.rand(5, 4, 3) + 0.1,
    )

    def by_voxel(patches: Tensor) -> Tensor:
        turned = [2 + axis for axis in order]
        answer = network(patches).permute(0, *turned, 1).contiguous()
        return answer.permute(0, 4, *(1 + order.index(axis) for axis in range(3)))

    image = torch.zeros(1, 1, 5, 4, 3)
    assert by_voxel(image).stride(1) == 1
    torch.testing.assert_close(by_voxel(image), network(image))
    expected = list(logits_by_planes(at, [(network, 1.0)], 0, 3, []))
    found = list(logits_by_planes(at, [(by_voxel, 1.0)], 0, 3, []))
    torch.testing.assert_close(found, expected)
