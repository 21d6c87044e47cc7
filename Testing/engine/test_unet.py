"""The U-Nets of nnU-Net: the same logits as its own networks, and the same weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medsegai.errors import ModelError
from medsegai.networks.unet import build_unet, load_state, with_norm_of
from nnunet_models import require_nnunet

MODULE = "dynamic_network_architectures.architectures.unet"
IMPORTED = ["conv_op", "norm_op", "dropout_op", "nonlin", "block"]
Reference = Callable[..., nn.Module]


@pytest.fixture
def reference() -> Reference:
    """Networks as nnU-Net builds them, with random weights that differ in every channel."""
    require_nnunet()
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    def build(name: str, arguments: dict[str, Any], channels: int, classes: int) -> nn.Module:
        torch.manual_seed(0)
        imported = [key for key in IMPORTED if key in arguments]
        network = get_network_from_plans(
            f"{MODULE}.{name}", arguments, imported, channels, classes, deep_supervision=True
        )
        for values in network.state_dict().values():
            if values.is_floating_point():
                values.uniform_(-0.3, 0.5)
        for name, values in network.named_buffers():
            if name.endswith("running_var"):
                values.uniform_(0.5, 2.0)
        network.decoder.deep_supervision = False
        return network.eval()

    return build


def plans(dimensions: int = 3, **changes: Any) -> dict[str, Any]:
    """What nnU-Net's planners write, with fewer features."""
    one, two, three = ([size] * dimensions for size in (1, 2, 3))
    arguments = {
        "n_stages": 4,
        "features_per_stage": [4, 6, 8, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [three] * 4,
        "strides": [one, two, two, two],
        "n_conv_per_stage_decoder": [2, 2, 2],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return arguments | changes


def plain(dimensions: int = 3, **changes: Any) -> dict[str, Any]:
    return plans(dimensions, **{"n_conv_per_stage": [2] * 4} | changes)


def residual(dimensions: int = 3, **changes: Any) -> dict[str, Any]:
    """The presets M, L and XL differ in features and in their six or seven stages, not in the shape."""
    given = {"n_blocks_per_stage": [1, 3, 4, 6], "n_conv_per_stage_decoder": [1, 1, 1]}
    return plans(dimensions, **given | changes)


ANISOTROPIC = {
    "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
}
BATCH_NORM = {"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}
DROPOUT = {"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.2, "inplace": True}}
BOTTLENECK = {
    "block": "dynamic_network_architectures.building_blocks.residual.BottleneckD",
    "bottleneck_channels": [2, 3, 4, 4],
    "stem_channels": 5,
}
CASES = {
    "plain 3D": ("PlainConvUNet", plain()),
    "plain 2D": ("PlainConvUNet", plain(2)),
    "plain anisotropic": ("PlainConvUNet", plain(**ANISOTROPIC)),
    "plain, nonlinearity first": ("PlainConvUNet", plain(nonlin_first=True)),
    "plain, batch norm": ("PlainConvUNet", plain(**BATCH_NORM)),
    "plain, dropout": ("PlainConvUNet", plain(**DROPOUT)),
    "plain, ReLU without norm": (
        "PlainConvUNet",
        plain(nonlin="torch.nn.ReLU", norm_op=None, norm_op_kwargs=None, conv_bias=False),
    ),
    "plain, numbers for lists": (
        "PlainConvUNet",
        plain(n_conv_per_stage=1, n_conv_per_stage_decoder=3, kernel_sizes=3, strides=[1, 2, 2, 2]),
    ),
    "residual 3D": ("ResidualEncoderUNet", residual()),
    "residual 2D": ("ResidualEncoderUNet", residual(2)),
    "residual anisotropic": ("ResidualEncoderUNet", residual(**ANISOTROPIC)),
    "residual, dropout": ("ResidualEncoderUNet", residual(**DROPOUT)),
    "residual, bottlenecks": ("ResidualEncoderUNet", residual(**BOTTLENECK, **DROPOUT)),
    "residual decoder": ("ResidualUNet", residual()),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_networks_of_nnunet(case: str, reference: Reference) -> None:
    name, arguments = CASES[case]
    theirs = reference(name, arguments, 2, 3)
    ours = build_unet(f"{MODULE}.{name}", arguments, 2, 3).eval()
    load_state(ours, theirs.state_dict())
    patches = torch.randn(2, 2, *(16, 32, 24)[: 2 if "2D" in case else 3])
    with torch.inference_mode():
        expected = theirs(patches)
        difference = (ours(patches) - expected).abs().max()
    assert difference <= 2e-6 * expected.abs().max()
    assert expected.shape == (2, 3, *patches.shape[2:])
    assert expected.isfinite().all()
    assert expected.std() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_weights_go_back_into_the_networks_of_nnunet(case: str, reference: Reference) -> None:
    name, arguments = CASES[case]
    theirs = reference(name, arguments, 2, 3)
    ours = build_unet(name, arguments, 2, 3)
    load_state(ours, theirs.state_dict())
    names = set(ours.state_dict())
    left_out = set(theirs.state_dict()) - names
    assert names < set(theirs.state_dict())
    assert all("all_modules" in key or "seg_layers" in key or "encoder." in key for key in left_out)
    pointers = {values.data_ptr() for values in ours.state_dict().values()}
    assert len(pointers) == len(names), "each weight stands once"


def test_the_plans_of_nnunets_own_presets_are_built(reference: Reference) -> None:
    stages = 6
    features = [32, 64, 128, 256, 320, 320]
    large = {
        "n_stages": stages,
        "features_per_stage": features,
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
    }
    cases = (
        ("PlainConvUNet", {"n_conv_per_stage": [2] * 6, "n_conv_per_stage_decoder": [2] * 5}),
        (
            "ResidualEncoderUNet",
            {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6], "n_conv_per_stage_decoder": [1] * 5},
        ),
    )
    for name, counts in cases:
        arguments = plans(**large, **counts)
        ours = build_unet(name, arguments, 1, 25).state_dict()
        with torch.device("meta"):
            theirs = reference(name, arguments, 1, 25).state_dict()
        assert {key: values.shape for key, values in ours.items()} == {
            key: theirs[key].shape for key in ours
        }


def weights(**changes: Any) -> dict[str, Tensor]:
    """A state dict for `plain()`."""
    network = build_unet("PlainConvUNet", plain(**changes), 1, 2).to_empty(device="cpu")
    state: dict[str, Tensor] = network.state_dict()
    for values in state.values():
        values.fill_(0.125)
    return state


def test_weights_of_wrapped_networks_and_of_training_are_taken() -> None:
    state = weights()
    extra = {
        "decoder.encoder.stages.0.0.convs.0.conv.bias": torch.zeros(4),
        "encoder.stages.0.0.convs.0.all_modules.0.bias": torch.zeros(4),
        "decoder.seg_layers.0.bias": torch.zeros(2),
    }
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod."):
        network = build_unet("PlainConvUNet", plain(), 1, 2)
        load_state(network, {prefix + name: values for name, values in (state | extra).items()})
        assert all((values == 0.125).all() for values in network.state_dict().values())


def test_weights_are_copied_and_become_float32() -> None:
    state = {name: values.half() for name, values in weights().items()}
    network = build_unet("PlainConvUNet", plain(), 1, 2)
    load_state(network, state)
    for values in state.values():
        values.zero_()
    assert all(values.dtype == torch.float32 for values in network.state_dict().values())
    assert all((values == 0.125).all() for values in network.parameters())


def test_weights_that_do_not_fit_say_why() -> None:
    def loading(state: dict[str, Tensor]) -> None:
        load_state(build_unet("PlainConvUNet", plain(), 1, 2), state)

    missing = weights()
    del missing["decoder.transpconvs.1.bias"]
    with pytest.raises(ModelError, match=r"do not hold 'decoder\.transpconvs\.1\.bias'"):
        loading(missing)
    with pytest.raises(ModelError, match=r"\(3, 4, 1, 1, 1\), not \(2, 4, 1, 1, 1\)"):
        loading(weights() | {"decoder.seg_layers.2.weight": torch.zeros(3, 4, 1, 1, 1)})
    with pytest.raises(ModelError, match=r"they hold 'eva\.norm', which it lacks"):
        loading(weights() | {"eva.norm": torch.zeros(1)})


def test_batch_norm_of_a_trainer_is_seen_in_the_weights() -> None:
    state = weights(norm_op="torch.nn.BatchNorm3d")
    network = build_unet("PlainConvUNet", with_norm_of(plain(), state), 1, 2)
    load_state(network, state)
    assert any(isinstance(layer, nn.BatchNorm3d) for layer in network.modules())
    assert with_norm_of(plain(), weights()) == plain()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("some.where.Primus", plain(), r"'some.where.Primus'.*PlainConvUNet, ResidualEncoderUNet"),
        ("PlainConvUNet", plain(conv_op="torch.nn.Conv1d"), r"conv_op 'torch.nn.Conv1d'.*Conv3d"),
        ("PlainConvUNet", plain(nonlin="os.system"), r"nonlin 'os\.system'"),
        ("ResidualEncoderUNet", residual(block="my.Block"), r"block 'my\.Block'"),
        ("PlainConvUNet", plain(attention=True), r"arguments attention"),
        ("PlainConvUNet", plans(), r"argument 'n_conv_per_stage'"),
        ("PlainConvUNet", plain(strides=[1, 2, 2]), r"strides has 3 entries for 4 stages"),
        ("PlainConvUNet", plain(nonlin_kwargs={"slope": 1}), r"contradict.*slope"),
        ("PlainConvUNet", plain(kernel_sizes=[[3, 3]] * 4), r"contradict.*3 axes"),
        ("PlainConvUNet", plain(n_stages=1), r"entries for 1 stage"),
    ],
)
def test_plans_that_cannot_be_built_are_refused_by_name(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build_unet(name, arguments, 1, 2)


def test_a_network_without_weights_does_not_run() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        build_unet("PlainConvUNet", plain(), 1, 2)(torch.zeros(1, 1, 16, 16, 16)).numpy()
