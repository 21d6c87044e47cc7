"""Networks of MONAI, built by MONAI itself from a list of known classes, and filled with weights.

MONAI is an optional part of an installation, and is imported only when one of its networks is needed. An untrusted
file may name the class of a network, which must be on the list, and arguments that are numbers, texts and lists.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medsegai.errors import ModelError
from medsegai.models.json_fields import shown
from medsegai.networks.pointwise_head import PointwiseHead, take_head

INSTALL = (
    "Install it with `pip install medsegai[monai]`; in Slicer, Segment in the panel offers that"
)

LARGEST, MOST_ITEMS, DEEPEST, LONGEST = 8192, 64, 4, 100
"""Limits of arguments: the largest number, items in a list, depth of nested lists, letters in a text."""

MOST_BLOCKS = 4096
"""The largest sum of the numbers in a list of layers or blocks, such as those of all levels of a SegResNet."""


@dataclass(frozen=True)
class Kind:
    """What the import knows about a class of networks.

    Attributes:
        classes: the name of the argument for the channels of its output.
        dropped: arguments that older versions of MONAI had, or that only training needs.
        forbidden: arguments that would load files, or hold more than plain values.
        exported: whether OpenVINO cannot convert a trace of it, and needs it exported.
        levels: the argument with an entry for each level of resolution, if a trace of a small image is one for
            all sizes: a trace computes its image.
        head: the last layer, if it takes each voxel by itself: see `pointwise_head`.
    """

    classes: str = "out_channels"
    dropped: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()
    exported: bool = False
    levels: str = ""
    head: str = ""


KINDS: dict[str, Kind] = {
    "AttentionUnet": Kind(),
    "BasicUNet": Kind(head="final_conv"),
    "BasicUNetPlusPlus": Kind(dropped=frozenset({"deep_supervision"})),
    "DiNTS": Kind(classes="num_classes"),
    "DynUNet": Kind(),
    "FlexibleUNet": Kind(dropped=frozenset({"pretrained"})),
    "HighResNet": Kind(),
    "SegResNet": Kind(levels="blocks_down", head="conv_final.2.conv"),
    "SegResNetDS": Kind(
        levels="blocks_down", forbidden=frozenset({"preprocess"}), head="up_layers.{last}.head"
    ),
    "SegResNetDS2": Kind(forbidden=frozenset({"preprocess"})),
    "SwinUNETR": Kind(
        dropped=frozenset({"img_size", "use_checkpoint"}),
        forbidden=frozenset({"norm_layer"}),
        exported=True,
        head="out.conv.conv",
    ),
    "UNETR": Kind(dropped=frozenset({"pos_embed"}), head="out.conv.conv"),
    "UNet": Kind(),
    "VNet": Kind(),
}
"""The networks that can be run, by their names in `monai.networks.nets`."""

OTHER_SPELLINGS = {
    "Unet": "UNet",
    "Basicunet": "BasicUNet",
    "BasicUnet": "BasicUNet",
    "basicunet": "BasicUNet",
    "BasicunetPlusPlus": "BasicUNetPlusPlus",
    "BasicUnetPlusPlus": "BasicUNetPlusPlus",
    "DynUnet": "DynUNet",
    "Dynunet": "DynUNet",
    "FlexUNet": "FlexibleUNet",
    "FlexibleUnet": "FlexibleUNet",
    "AttentionUNet": "AttentionUnet",
}
"""MONAI's own aliases."""

FAILURES = (
    *(TypeError, ValueError, LookupError, RuntimeError, AttributeError, ArithmeticError),
    *(NotImplementedError, AssertionError, ImportError),
)
"""The exceptions of MONAI and torch for arguments that do not make a network."""

TOPOLOGY = "dints_space"
"""The argument of a DiNTS that describes its topology, an object with arguments of `TopologyInstance`."""


def network_name(target: str) -> str | None:
    """Return the name in `KINDS` of `UNet` or `monai.networks.nets.UNet`; None for other targets."""
    place, _, name = target.rpartition(".")
    if place and not place.startswith("monai.networks.nets"):
        return None
    name = OTHER_SPELLINGS.get(name, name)
    return name if name in KINDS else None


class FirstAnswer(nn.Module):
    """A network of MONAI that returns one tensor, even if its class returns a list of tensors."""

    def __init__(
        self,
        network: nn.Module,
        description: str,
        exported: bool = False,
        smallest: Sequence[int] | None = None,
    ) -> None:
        """Wrap `network`.

        Args:
            network: of MONAI.
            description: tells apart networks of the same layers that use them in other ways.
            exported: see `Kind`.
            smallest: the sizes of an image whose trace is one for all sizes; None if there is none.
        """
        super().__init__()
        self.network, self.exported, self.smallest = network, exported, smallest
        self._description = description

    def extra_repr(self) -> str:
        """Return what PyTorch prints about the layer."""
        return self._description

    def forward(self, images: Tensor) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        output = self.network(images)
        return output[0] if isinstance(output, list | tuple) else output


@dataclass(frozen=True)
class Description:
    """A network as a card describes it, after checks.

    Attributes:
        name: the name of its class.
        arguments: the arguments of the class by name, including defaults.
        in_channels: channels of the image.
        classes: channels of its output.
        dimensions: 3, or 2 for networks of single planes.
    """

    name: str
    arguments: Mapping[str, Any]
    in_channels: int
    classes: int
    dimensions: int

    @classmethod
    def of(cls, name: object, arguments: object) -> Description:
        """Check the description of a network in an untrusted file.

        Raises:
            ModelError: the class is not on the list, MONAI is not installed, or an argument is unknown, missing or
                not a plain value of usual size.
        """
        name, given = _described(name, arguments)
        kind = KINDS[name]
        kept = {key: value for key, value in given.items() if key not in kind.dropped}
        _check_plain(kept, name)
        values = _bound(name, kept, kind)
        dimensions = values.get("spatial_dims", 3)
        in_channels = _count(name, "input channels", values.get("in_channels"))
        classes = _count(name, "classes", values.get(kind.classes))
        if dimensions not in (2, 3):
            raise ModelError(f"{name} must have 2 or 3 dimensions, not {shown(dimensions)}.")
        return cls(name, kept, in_channels, classes, int(dimensions))

    def with_weights(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Build the network with these weights, in float32, ready for inference.

        Raises:
            ModelError: the arguments contradict each other, or the weights belong to another network.
        """
        network = self._built()
        wanted = network.state_dict()
        given = _with_shared(network, state)
        self._check_fit(given, wanted)
        floats = {
            name: (values.float() if values.is_floating_point() else values).contiguous()
            for name, values in given.items()
        }
        network.load_state_dict(floats, assign=True)
        for values in network.parameters():
            values.requires_grad_(False)
        exported = KINDS[self.name].exported
        return FirstAnswer(network, repr(self), exported, self._smallest()).eval()

    def _smallest(self) -> list[int] | None:
        """Return the sizes of an image that is two voxels wide at the coarsest level: see `Kind.levels`."""
        levels = _bound(self.name, self.arguments, KINDS[self.name]).get(KINDS[self.name].levels)
        return None if levels is None else [2 ** len(levels)] * self.dimensions

    def _check_fit(self, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
        for name in given.keys() - wanted.keys():
            raise ModelError(
                f"The weights hold {shown(name)}, which this {self.name} does not have."
            )
        for name, values in wanted.items():
            if name not in given:
                raise ModelError(f"The weights do not hold {shown(name)} of this {self.name}.")
            if given[name].shape != values.shape:
                raise ModelError(
                    f"The weights {shown(name)} have the shape {tuple(given[name].shape)}, and in this "
                    f"{self.name} it is {tuple(values.shape)}."
                )
            if values.is_floating_point() and not given[name].is_floating_point():
                raise ModelError(
                    f"The weights {shown(name)} are of the type {given[name].dtype}, but this {self.name} "
                    "needs floating-point numbers."
                )

    def without_head(self, network: nn.Module) -> PointwiseHead | None:
        """Let a network of `with_weights` answer with the features before its last layer, if these are fewer.

        Returns:
            The layer, to be applied to the features; None if the network is unchanged.
        """
        inside = network.network if isinstance(network, FirstAnswer) else network
        name = KINDS[self.name].head
        if not name or not getattr(inside, "use_conv_final", True):
            return None
        last = len(getattr(inside, "up_layers", ())) - 1
        return take_head(inside, name.format(last=last))

    def check_window(self, sizes: Sequence[int]) -> None:
        """Refuse arguments with which the network cannot be applied, such as strides of zero.

        It is applied on torch's device "meta", which computes shapes alone.

        Args:
            sizes: those of a window, in the axes of the network.

        Raises:
            ModelError: the network cannot take the window, or its answer has another shape.
        """
        window = " x ".join(map(str, sizes))
        try:
            network = self._built().to("meta").eval()
            with torch.no_grad(), torch.device("meta"):
                output = network(torch.empty(1, self.in_channels, *sizes))
            while isinstance(output, list | tuple):
                output = output[0]
            shape = tuple(output.shape)
        except FAILURES as error:
            raise ModelError(
                f"This {self.name} cannot be applied to its window of {window}: {shown(error)}."
            ) from None
        if shape != (1, self.classes, *sizes):
            raise ModelError(
                f"This {self.name} makes {shape[1]} channels of {' x '.join(map(str, shape[2:]))} from its "
                f"window of {window} with {self.in_channels} channels, but {self.classes} channels of the same "
                "size are needed."
            )

    def _built(self) -> nn.Module:
        """Build the network without weights on torch's device "meta", where it takes no memory at any size.

        A network that computes something while it is built, and does not keep it among its weights, needs real
        memory; it is built again there.
        """
        try:
            return self._made({**self.arguments})
        except ModelError:
            raise
        except FAILURES as error:
            raise ModelError(
                f"The arguments of this {self.name} do not make a network: {shown(error)}."
            ) from None

    def _made(self, arguments: dict[str, Any]) -> nn.Module:
        if self.name == "DiNTS":
            return _dints(arguments)
        if self.name in _MADE_FOR_REAL:
            return _make(self.name, arguments)
        with torch.device("meta"):
            network = _make(self.name, arguments)
        kept = network.state_dict()
        beside = [name for name, _ in network.named_buffers() if name not in kept]
        return _make(self.name, arguments) if beside else network


def own_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a network of `Description.with_weights`, each once, under MONAI's names."""
    inside = network.network if isinstance(network, FirstAnswer) else network
    repeated = {name for names in _shared_names(inside) for name in names[1:]}
    return {name: values for name, values in inside.state_dict().items() if name not in repeated}


def _shared_names(network: nn.Module) -> list[list[str]]:
    """Return the names of weights that share one tensor, such as those of the nested blocks of a DynUNet."""
    by_tensor: dict[int, list[str]] = {}
    for name, values in network.state_dict(keep_vars=True).items():
        by_tensor.setdefault(id(values), []).append(name)
    return [names for names in by_tensor.values() if len(names) > 1]


def _with_shared(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a state dict under all names that they have; one of these is enough."""
    given = {name.removeprefix("module."): values for name, values in state.items()}
    for names in _shared_names(network):
        known = next((given[name] for name in names if name in given), None)
        given |= {name: known for name in names if known is not None and name not in given}
    return given


def _described(name: object, arguments: object) -> tuple[str, Mapping[Any, Any]]:
    """Return the class and the arguments of a network, if it is on the list."""
    if not isinstance(name, str) or name not in KINDS:
        raise ModelError(
            f"The network {shown(name)} cannot be run. Known networks are {', '.join(KINDS)}."
        )
    if not isinstance(arguments, Mapping):
        raise ModelError(f"The arguments of {name} must be an object, not {shown(arguments)}.")
    return name, arguments


def _count(name: str, what: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise ModelError(f"The number of {what} of {name} must be 1 or more, not {shown(value)}.")
    return value


_MADE_FOR_REAL = frozenset({"SwinUNETR", "UNETR"})
"""Networks whose constructors read the values of their own tensors."""


def _networks() -> Any:
    """Return `monai.networks.nets`. Raises ModelError: MONAI is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import monai.networks.nets
    except ImportError as error:
        raise ModelError(
            f"This model needs MONAI, which cannot be imported ({error}). {INSTALL}."
        ) from None
    return monai.networks.nets


def _make(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        network: nn.Module = getattr(_networks(), name)(**arguments)
    return network


def _dints(arguments: dict[str, Any]) -> nn.Module:
    """Build a DiNTS of a topology that a search found; its codes are arrays of whole numbers."""
    space = dict(arguments.pop(TOPOLOGY))
    paths, operations = space.pop("arch_code")
    codes = [np.array(paths, dtype=np.int64), np.array(operations, dtype=np.int64)]
    topology = _make("TopologyInstance", {**space, "arch_code": codes, "device": "cpu"})
    nodes = arguments.pop("node_a", None)
    given = {} if nodes is None else {"node_a": torch.tensor(np.array(nodes, dtype=np.int64))}
    return _make("DiNTS", {**arguments, **given, TOPOLOGY: topology})


def _bound(name: str, arguments: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """Return all arguments of a class, with defaults. Raises ModelError: one is unknown, missing or forbidden."""
    signature = inspect.signature(getattr(_networks(), name).__init__)
    known = set(signature.parameters) - {"self"} - kind.forbidden
    unknown = set(arguments) - known
    if unknown:
        raise ModelError(
            f"In the installed version of MONAI, {name} does not have the argument "
            f"{', '.join(sorted(map(shown, unknown)))}."
        )
    try:
        bound = signature.bind(None, **arguments)
    except TypeError as error:
        raise ModelError(f"The arguments of {name} are incomplete: {error}.") from None
    bound.apply_defaults()
    return dict(bound.arguments)


def _check_plain(arguments: Mapping[str, Any], name: str) -> None:
    """Refuse arguments that are not plain values, or would make an enormous network."""
    for key, value in arguments.items():
        total = _checked(value, f"{key} of {name}", DEEPEST if key != TOPOLOGY else DEEPEST + 2)
        if ("block" in key or "layer" in key or "depth" in key) and total > MOST_BLOCKS:
            raise ModelError(f"{key} of {name} asks for {total:g} blocks.")


def _checked(value: object, what: str, depth: int) -> float:
    """Return the sum of the numbers in a plain value. Raises ModelError: the value is not plain or too large."""
    if isinstance(value, list | tuple | Mapping):
        inside = list(value.values()) if isinstance(value, Mapping) else list(value)
        if depth == 0 or len(inside) > MOST_ITEMS:
            raise ModelError(f"{what} has too many parts.")
        if isinstance(value, Mapping) and not all(isinstance(key, str) for key in value):
            raise ModelError(f"{what} has keys that are not text.")
        return sum(_checked(item, what, depth - 1) for item in inside)
    if isinstance(value, str):
        if len(value) > LONGEST or not value.isprintable():
            raise ModelError(f"{what} has a text that is too long, or not printable.")
        return 0.0
    if value is None or isinstance(value, bool):
        return 0.0
    if not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ModelError(f"{what} must be made of numbers of usual size, not {shown(value)}.")
    return abs(float(value))
