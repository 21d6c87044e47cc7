"""The forms of networks that are compiled give what the networks give."""

import pytest
import torch
from torch import Tensor, nn

from medsegai.networks.quicknat import (
    QuickNAT,
    QuickNATConfig,
    pool_with_codes,
    unpool_with_codes,
)
from medsegai.networks.streamlined import pool_with_ranks, streamlined, unpool_with_ranks
from medsegai.networks.unet2d import DECODERS, Joined, UNet2D, UNet2DConfig


def lively(**config: object) -> QuickNAT:
    """A network whose normalisations do something, with random weights."""
    torch.manual_seed(0)
    network = QuickNAT(QuickNATConfig(filters=6, classes=4, **config)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for values in (*network.parameters(), *network.buffers()):
            if values.is_floating_point():
                values.add_(0.3 * torch.rand_like(values))
    return network


@pytest.mark.parametrize("excitation", ["none", "csse"])
@pytest.mark.parametrize("channels", [1, 5])
def test_it_gives_the_logits_of_the_plain_network(excitation: str, channels: int) -> None:
    network = lively(squeeze_excitation=excitation, channels=channels)
    fast = streamlined(network)
    assert type(fast) is not QuickNAT
    slices = torch.rand(2, channels, 48, 32)
    slices[:, :, :16] = 0.0
    with torch.inference_mode():
        plain = network(slices)
        torch.testing.assert_close(fast(slices), plain, rtol=1e-4, atol=1e-4 * plain.abs().max())


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("shape", [(32, 64), (96, 32)])
def test_it_gives_the_logits_of_a_network_for_images(decoder: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    config = UNet2DConfig("resnet18", decoder, 2, 3, widths=(12, 10, 8, 6, 4))
    network = UNet2D(config).eval()
    with torch.no_grad():
        for name, values in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                values.add_(0.3 * torch.rand_like(values))
        before = {name: values.clone() for name, values in network.state_dict().items()}
        fast, images = streamlined(network), torch.randn(2, 2, *shape)
        doubling = sum(isinstance(layer, Joined) for layer in fast.modules())
        assert doubling == 0 < sum(isinstance(layer, Joined) for layer in network.modules())
        plain = network(images)
        assert plain.std() > 1e-3
        torch.testing.assert_close(fast(images), plain, rtol=1e-4, atol=1e-4 * plain.abs().max())
    after = network.state_dict()
    assert all(torch.equal(after[name], values) for name, values in before.items())


@pytest.mark.parametrize("shape", [(2, 6, 8, 12), (1, 6, 4, 6, 8)])
@pytest.mark.parametrize("affine", [True, False])
def test_group_norms_are_those_of_torch_far_from_zero_too(
    shape: tuple[int, ...], affine: bool
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.GroupNorm(3, 6, affine=affine), nn.ReLU()).eval()
    if affine:
        nn.init.normal_(network[0].weight)
        nn.init.normal_(network[0].bias)
    features = 100 + torch.randn(shape) * torch.rand(1, 6, *[1] * (len(shape) - 2))
    fast = streamlined(network)
    assert not any(isinstance(layer, nn.GroupNorm) for layer in fast.modules())
    with torch.inference_mode():
        exact = network.double()(features.double()).float()
        torch.testing.assert_close(fast.float()(features), exact, rtol=1e-4, atol=1e-4)
    other = streamlined(nn.Sequential(nn.GroupNorm(2, 6, affine=affine), nn.ReLU()))
    assert repr(fast) != repr(other)  # or it could be taken for its compiled form


def test_another_network_stays_as_it_is() -> None:
    other = nn.Conv2d(1, 1, 1)
    assert streamlined(other) is other


def awkward() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    few_values = torch.randint(-1, 2, (3, 4, 8, 12), generator=generator).float()
    return [
        torch.randn(2, 3, 16, 8, generator=generator),
        few_values,
        few_values * -0.0,
        torch.full((1, 1, 4, 4), -7.5),
    ]


@pytest.mark.parametrize("number", range(4))
def test_ranks_equal_codes_bit_for_bit(number: int) -> None:
    features = awkward()[number]
    maxima, ranks = pool_with_ranks(features)
    expected, codes = pool_with_codes(features)
    assert torch.equal(maxima, expected)
    assert torch.equal(4 - ranks, codes.float())
    values = torch.rand(maxima.shape)
    assert torch.equal(unpool_with_ranks(values, ranks), unpool_with_codes(values, codes))
