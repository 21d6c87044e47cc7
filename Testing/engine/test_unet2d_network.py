"""U-Net and U-Net++ for images: shapes, nested skips, and what a card may ask for."""

import pytest
import torch

from medsegai.errors import ModelError
from medsegai.networks.unet2d import DECODERS, UNet2D, UNet2DConfig

WIDTHS = (32, 16, 16, 8, 8)


def network(decoder: str, **settings: object) -> UNet2D:
    torch.manual_seed(0)
    return UNet2D(UNet2DConfig("plain", decoder, 1, 3, WIDTHS, **settings)).eval()


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_pixel_is_answered(decoder: str) -> None:
    with torch.no_grad():
        assert network(decoder)(torch.zeros(2, 1, 64, 32)).shape == (2, 3, 64, 32)


def test_nested_networks_answer_in_training_and_change_nothing_else() -> None:
    deep = network("unetplusplus", deep_supervision=True)
    image = torch.randn(1, 1, 32, 64)
    with torch.no_grad():
        answers = deep.answers(image)
        assert [tuple(answer.shape) for answer in answers] == [(1, 3, 32, 64)] * 4
        plain = network("unetplusplus")
        plain.load_state_dict(deep.state_dict(), strict=False)
        torch.testing.assert_close(plain(image), answers[0])


def test_the_deepest_nested_network_sees_one_level_only() -> None:
    """The first of the nested answers is that of the deepest network; the last of the one with a single skip."""
    deep = network("unetplusplus", deep_supervision=True)
    image = torch.randn(1, 1, 32, 32, requires_grad=True)
    shallow = deep.answers(image)[-1]
    (gradient,) = torch.autograd.grad(shallow[0, 0, 16, 16], image)
    reached = gradient[0, 0].abs().amax(0).nonzero()
    assert reached.numel() < 32, "a network of two levels does not see the whole image"


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_card_describes_the_network(decoder: str) -> None:
    config = UNet2DConfig("resnet18", decoder, 3, 2, WIDTHS)
    again = UNet2DConfig.of({"patch": [64, 64], **config.settings()}, 3, 2)
    assert again == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"encoder": "resnet19"}, "encoder 'resnet19' is unknown"),
        ({"decoder": "fpn"}, "decoder 'fpn' is unknown"),
        ({"widths": [8, 8]}, "widths must be 5 numbers"),
        ({"widths": [8, 8, 8, 8, 0]}, "widths must lie between 1 and"),
        ({"deep_supervision": True}, "for the decoder 'unetplusplus'"),
        ({"encoder": 3}, "encoder must be text"),
    ],
)
def test_a_network_that_cannot_be_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        UNet2DConfig.of(settings, 3, 2)
