"""The QuickNAT module: names, sizes and calls of the released models, and pooling without indices."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from medsegai.networks.quicknat import (
    QuickNAT,
    QuickNATConfig,
    pool_with_codes,
    unpool_with_codes,
)

BLOCKS = [f"encode{n}" for n in range(1, 5)] + ["bottleneck"] + [f"decode{n}" for n in range(1, 5)]
SMALL = QuickNATConfig(channels=2, filters=4, classes=5)


@pytest.mark.parametrize(
    ("excitation", "tensors", "millions"), [("none", 200, 3.517), ("csse", 254, 3.556)]
)
def test_size_is_that_of_the_released_models(
    excitation: str, tensors: int, millions: float
) -> None:
    network = QuickNAT(QuickNATConfig(squeeze_excitation=excitation))  # type: ignore[arg-type]
    parameters = sum(weight.numel() for weight in network.parameters())
    assert len(network.state_dict()) == tensors
    assert round(parameters / 1e6, 3) == millions


def test_names_and_shapes_are_those_of_the_released_models() -> None:
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in QuickNAT(QuickNATConfig()).state_dict().items()
    }
    assert shapes["encode1.conv1.weight"] == (64, 1, 5, 5)
    assert shapes["encode1.conv2.weight"] == (64, 65, 5, 5)
    assert shapes["encode1.conv3.weight"] == (64, 129, 1, 1)
    for block in BLOCKS[1:5]:
        assert shapes[f"{block}.conv2.weight"] == (64, 128, 5, 5)
    for block in BLOCKS[5:]:
        assert shapes[f"{block}.conv1.weight"] == (64, 128, 5, 5)
        assert shapes[f"{block}.conv3.weight"] == (64, 256, 1, 1)
        assert shapes[f"{block}.batchnorm3.running_var"] == (256,)
        assert shapes[f"{block}.prelu.weight"] == (1,)
    assert shapes["classifier.conv.weight"] == (33, 64, 1, 1)


def test_every_block_owns_its_excitation_also_the_bottleneck() -> None:
    state = QuickNAT(QuickNATConfig(squeeze_excitation="csse")).state_dict()
    for block in BLOCKS:
        assert state[f"{block}.SELayer.cSE.fc1.weight"].shape == (32, 64)
        assert state[f"{block}.SELayer.cSE.fc2.weight"].shape == (64, 32)
        assert state[f"{block}.SELayer.sSE.conv.weight"].shape == (1, 64, 1, 1)


def reference_logits(network: QuickNAT, slices: torch.Tensor) -> torch.Tensor:
    """The published forward pass, with pooling indices, from the state dict alone (evaluation mode)."""
    state = network.state_dict()

    def dense(name: str, features: torch.Tensor) -> torch.Tensor:
        for number, padding in ((1, 2), (2, 2), (3, 0)):
            norm = [
                state[f"{name}.batchnorm{number}.{part}"]
                for part in ("running_mean", "running_var")
            ]
            scale = [state[f"{name}.batchnorm{number}.{part}"] for part in ("weight", "bias")]
            active = functional.prelu(
                functional.batch_norm(features, *norm, *scale), state[f"{name}.prelu.weight"]
            )
            new = functional.conv2d(
                active,
                state[f"{name}.conv{number}.weight"],
                state[f"{name}.conv{number}.bias"],
                padding=padding,
            )
            features = new if number == 3 else torch.cat((features, new), 1)
        return features

    def excited(name: str, features: torch.Tensor) -> torch.Tensor:
        key = f"{name}.SELayer"
        hidden = functional.linear(
            features.mean((2, 3)), state[f"{key}.cSE.fc1.weight"], state[f"{key}.cSE.fc1.bias"]
        )
        gate = functional.linear(
            hidden.relu(), state[f"{key}.cSE.fc2.weight"], state[f"{key}.cSE.fc2.bias"]
        ).sigmoid()
        place = functional.conv2d(
            features, state[f"{key}.sSE.conv.weight"], state[f"{key}.sSE.conv.bias"]
        ).sigmoid()
        return torch.max(features * gate[:, :, None, None], features * place)

    features, kept = slices, []
    for number in range(1, 5):
        skip = excited(f"encode{number}", dense(f"encode{number}", features))
        features, indices = functional.max_pool2d(skip, 2, return_indices=True)
        kept.append((skip, indices))
    features = dense("bottleneck", features)
    for name in ("decode4", "decode1", "decode2", "decode3"):
        skip, indices = kept.pop()
        joined = torch.cat((skip, functional.max_unpool2d(features, indices, 2)), 1)
        features = excited(name, dense(name, joined))
    return functional.conv2d(
        features, state["classifier.conv.weight"], state["classifier.conv.bias"]
    )


def test_forward_equals_the_published_one_with_indices() -> None:
    torch.manual_seed(0)
    network = QuickNAT(
        QuickNATConfig(channels=3, filters=6, classes=4, squeeze_excitation="csse")
    ).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        slices = torch.randn(2, 3, 32, 48)
        expected = reference_logits(network, slices)
        torch.testing.assert_close(network(slices), expected)
        assert expected.shape == (2, 4, 32, 48)


def pooled_both_ways(features: torch.Tensor) -> None:
    ours = features.clone().requires_grad_()
    theirs = features.clone().requires_grad_()
    values, codes = pool_with_codes(ours)
    expected, indices = functional.max_pool2d(theirs, 2, return_indices=True)
    assert torch.equal(values, expected)
    unpooled, expected = (
        unpool_with_codes(values, codes),
        functional.max_unpool2d(expected, indices, 2),
    )
    assert torch.equal(unpooled, expected)
    toward = torch.arange(unpooled.numel(), dtype=torch.float32).view_as(unpooled)
    (unpooled * toward).sum().backward()
    (expected * toward).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_codes_equal_indices_bit_for_bit(memory: torch.memory_format) -> None:
    torch.manual_seed(1)
    pooled_both_ways(torch.randn(2, 8, 16, 24).contiguous(memory_format=memory))


def test_codes_resolve_ties_as_indices_do() -> None:
    torch.manual_seed(2)
    few_values = torch.randint(-1, 2, (4, 8, 16, 16)).float()
    pooled_both_ways(few_values)
    pooled_both_ways(torch.zeros(1, 1, 4, 4))


def test_codes_of_each_place() -> None:
    window = torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0], [3, 0, 0, 4]])
    values, codes = pool_with_codes(window[None, None])
    assert codes.dtype == torch.uint8
    assert codes.flatten().tolist() == [0, 1, 2, 3]
    assert torch.equal(unpool_with_codes(values, codes)[0, 0], window)


def test_dropout_can_be_on_while_normalisation_is_frozen() -> None:
    """Monte-Carlo dropout: only the dropout module is put into training mode."""
    torch.manual_seed(3)
    network = QuickNAT(SMALL).eval()
    slices = torch.randn(1, 2, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(slices), network(slices))
        network.dropout.train()
        assert not torch.equal(network(slices), network(slices))


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        QuickNAT(SMALL)(torch.zeros(1, 2, 40, 32))


@pytest.mark.parametrize(
    "wrong",
    [{"filters": 0}, {"kernel": 4}, {"dropout": 1.0}, {"squeeze_excitation": "some"}],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QuickNATConfig(**wrong)  # type: ignore[arg-type]


def test_decoders_are_called_in_the_published_order() -> None:
    network, called = QuickNAT(SMALL), []
    for name in BLOCKS:
        block: nn.Module = getattr(network, name)
        block.register_forward_hook(lambda *_, name=name: called.append(name))
    network(torch.zeros(1, 2, 16, 16).repeat(2, 1, 2, 2))
    assert called == [*BLOCKS[:5], "decode4", "decode1", "decode2", "decode3"]
