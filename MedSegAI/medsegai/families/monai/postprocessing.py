"""The inferer and the postprocessing of a bundle, as they are written in a card."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from medsegai.families.monai.components import Component, transform_name, transforms_of
from medsegai.families.monai.configuration import SEPARATOR, Configuration
from medsegai.families.monai.expressions import Refused, parse
from medsegai.models.json_fields import shown

NO_EFFECT = frozenset(
    {
        *(
            "SaveImage",
            "EnsureType",
            "CastToType",
            "ToTensor",
            "ToDevice",
            "Identity",
            "SelectItems",
        ),
        *("DeleteItems", "CopyItems", "DataStats", "EnsureChannelFirst", "LoadImage"),
    }
)
"""Transforms after the network that do not change labels."""

PICTURE_AXIS = 2
"""The axis z, along which pictures have a single plane."""

SLICES = "SliceInferer"

SLIDING = frozenset({"SlidingWindowInferer", "SlidingWindowInfererAdapt"})


@dataclass
class Postprocessing:
    """The steps after the network.

    Attributes:
        reading: the settings as they are written in a card.
        merge: the (channel, value) pairs from the lowest to the highest rank, if overlapping channels become one
            label map.
        largest: the labels, or groups of labels, of which only the largest part is kept.
        notes: the differences to the result of MONAI, in words.
    """

    reading: dict[str, Any] = field(default_factory=dict)
    merge: list[tuple[int, int]] | None = None
    largest: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_inferer(configuration: Configuration, dimensions: int = 3) -> dict[str, Any]:
    """Return the sliding window; without a size of windows, or if the inferer is null, it is the whole image.

    Args:
        configuration: the configuration of the bundle.
        dimensions: the number of dimensions of its network.

    Raises:
        ModelError: the inferer or one of its arguments is unknown, or the inferer cannot run such a network.
    """
    name = inferer_of(configuration)
    if name == "SimpleInferer":
        return {} if dimensions == 3 else {"slice_axis": PICTURE_AXIS}
    component = Component.at(configuration, "inferer")
    _check_inferer(component, name, dimensions)
    found = _sliding_window(component, name == SLICES)
    return found if dimensions == 3 else found | _in_planes(component, found["roi_size"])


def _check_inferer(component: Component, name: str, dimensions: int) -> None:
    if name not in (*SLIDING, SLICES):
        raise component.unknown(
            "not a supported inferer",
            f"supported are SimpleInferer, {SLICES} and {', '.join(sorted(SLIDING))}",
        )
    if name == SLICES and dimensions == 3:
        raise component.wrong("_target_", "it runs 2D networks, but this network is 3D")


def inferer_of(configuration: Configuration) -> str:
    """Return the name of an inferer of MONAI, its default if the entry is null; the whole target of others."""
    if "inferer" in configuration and not configuration.has_value("inferer"):
        return "SimpleInferer"
    return _inferer_name(Component.at(configuration, "inferer"))


def _inferer_name(component: Component) -> str:
    place, _, name = component.target.rpartition(".")
    return name if not place or place.startswith("monai.inferers") else component.target


def _sliding_window(component: Component, slices: bool) -> dict[str, Any]:
    component.only(
        ("spatial_dim " if slices else "") + "roi_size overlap mode sigma_scale padding_mode cval",
        "sw_batch_size sw_device device progress cache_roi_weight_map cpu_thresh buffer_steps buffer_dim",
    )
    sizes = component.three("roi_size")
    return {
        "roi_size": sizes and [0 if size is None else size for size in sizes],
        "overlap": component.three("overlap", 0.25),
        "sigma_scale": component.three("sigma_scale", 0.125),
        "mode": component.value("mode", "constant"),
        "padding_mode": component.value("padding_mode", "constant"),
        "cval": component.value("cval", 0.0),
    }


def _in_planes(component: Component, sizes: list[int] | None) -> dict[str, Any]:
    """Return the windows of a 2D network, which are one voxel thick."""
    axis = component.value("spatial_dim", 0 if _inferer_name(component) == SLICES else PICTURE_AXIS)
    if axis not in (0, 1, 2):
        raise component.wrong("spatial_dim", "it must be 0, 1 or 2")
    given = component.value("roi_size")
    if isinstance(given, list) and len(given) != 2:
        raise component.wrong("roi_size", "windows of 2D networks have two sizes")
    flat = None if sizes is None else [*sizes[:2][:axis], 1, *sizes[:2][axis:]]
    return {"roi_size": flat, "slice_axis": axis}


def read_postprocessing(configuration: Configuration, nearest: bool) -> Postprocessing:
    """Return how predictions become labels.

    Args:
        nearest: whether the preprocessing resamples to the nearest voxel, as its inversion then does.

    Raises:
        ModelError: a transform, an argument, or their order is not supported.
    """
    reader = _Reader(configuration, nearest)
    if configuration.has_value("postprocessing"):
        for component in transforms_of(configuration, "postprocessing"):
            reader.add(component)
    return reader.found()


class _Reader:
    """Follows the prediction through the transforms."""

    def __init__(self, configuration: Configuration, nearest: bool) -> None:
        self._configuration, self._nearest = configuration, nearest
        self._activation = self._decision = self._inversion = ""
        self._result = Postprocessing()

    def add(self, component: Component) -> None:
        name = transform_name(component.target)
        if name in NO_EFFECT:
            return
        known = {
            "Activations": self._activate,
            "AsDiscrete": self._decide,
            "Invert": self._invert,
            "KeepLargestConnectedComponent": self._keep_largest,
            "Lambda": self._merge,
        }
        if name not in known:
            raise component.unknown(
                "not a supported step of postprocessing",
                f"supported are {', '.join(sorted(known))}",
            )
        known[name](component)

    def found(self) -> Postprocessing:
        activation = self._activation
        if not self._decision:
            self._decide_as_usual()
        if self._decision == "threshold" and "sigmoid" not in activation:
            raise self._configuration.wrong(
                "postprocessing",
                "a threshold is supported only after a sigmoid",
            )
        self._result.reading = {
            "activation": "none" if activation.startswith("late") else activation or "none",
            "decision": self._decision,
            "inversion": self._inversion or "linear",
        }
        return self._result

    def _decide_as_usual(self) -> None:
        sigmoid = "sigmoid" in self._activation
        self._decision = "threshold" if sigmoid else "argmax"
        how = "each channel counts from one half on" if sigmoid else "the largest wins"
        self._result.notes.append(f"The configuration does not say how labels are decided; {how}.")

    def _activate(self, component: Component) -> None:
        component.only("keys softmax sigmoid other", "allow_missing_keys dim")
        if component.value("other") is not None:
            raise component.wrong("other", "only softmax and sigmoid are supported")
        chosen = [name for name in ("softmax", "sigmoid") if component.flag(name)]
        if len(chosen) > 1 or (chosen and (self._activation or self._decision)):
            raise component.wrong(
                "softmax", "predictions can be activated only once, before labels are decided"
            )
        if (
            chosen
        ):  # softmax changes no decision, and so logits are read where they are interpolated first
            self._activation = f"late {chosen[0]}" if self._inversion else chosen[0]

    def _decide(self, component: Component) -> None:
        component.only("keys argmax threshold", "allow_missing_keys to_onehot dim keepdim dtype")
        threshold = component.alike("threshold")
        if component.flag("argmax") and threshold is None:
            decision = "argmax"
        elif threshold == 0.5 and not component.flag("argmax"):
            decision = "threshold"
        elif threshold is None:
            return
        else:
            raise component.wrong("threshold", "only argmax and a threshold of 0.5 are supported")
        if component.alike("to_onehot") not in (None, False) and decision != "argmax":
            raise component.wrong("to_onehot", "it is supported only together with argmax")
        if self._decision:
            raise component.wrong("argmax", "labels can be decided only once")
        self._decision = decision

    def _invert(self, component: Component) -> None:
        component.only(
            "keys transform nearest_interp",
            "orig_keys meta_keys orig_meta_keys meta_key_postfix to_tensor device allow_missing_keys",
        )
        place = f"{component.place}{SEPARATOR}transform"
        if self._configuration.followed(place) != self._configuration.followed("preprocessing"):
            raise component.wrong("transform", "only the preprocessing can be inverted")
        if self._inversion:
            raise component.wrong("transform", "the preprocessing can be inverted only once")
        nearest = (
            component.flag("nearest_interp") if "nearest_interp" in component.names() else True
        )
        if self._decision and not nearest and not self._nearest:
            self._result.notes.append(
                "The configuration interpolates between label values, which makes labels that no network gave; "
                "here each voxel gets the label of the nearest one."
            )
        self._inversion = "nearest" if nearest or self._decision or self._nearest else "linear"

    def _keep_largest(self, component: Component) -> None:
        component.only(
            "keys applied_labels independent is_onehot", "allow_missing_keys connectivity"
        )
        labels = component.value("applied_labels")
        labels = labels if isinstance(labels, list) or labels is None else [labels]
        if labels is not None and not all(type(value) is int for value in labels):
            raise component.wrong("applied_labels", f"it must be label values, not {shown(labels)}")
        together = "independent" in component.names() and not component.flag("independent")
        if together and labels is not None:
            self._result.largest.append(labels)
        elif together:
            raise component.wrong("independent", "name the labels that belong together")
        else:
            self._result.largest += [None] if labels is None else labels

    def _merge(self, component: Component) -> None:
        component.only("keys func", "allow_missing_keys overwrite")
        text = self._configuration.raw(f"{component.place}{SEPARATOR}func")
        try:
            if not isinstance(text, str) or not text.startswith("$"):
                raise Refused("it is not an expression")
            if drops_background(text[1:]):
                return
            self._result.merge = merged_channels(text[1:])
        except Refused as error:
            raise self._configuration.refused(
                f"{component.place}{SEPARATOR}func",
                f"{shown(text)} would have to be run, because {error}",
                "only nested torch.where of single channels, and x[1:], are understood",
            ) from None


def drops_background(text: str) -> bool:
    """Whether it is a `lambda x: x[1:]`, which removes the background's channel without an effect on labels."""
    tree, references = parse(text)
    if not isinstance(tree, ast.Lambda) or references:
        return False
    image = ast.unparse(tree.args)
    return image.isidentifier() and ast.unparse(tree.body) == f"{image}[1:]"


def merged_channels(text: str) -> list[tuple[int, int]]:
    """Return which channel becomes which label in `lambda x: torch.where(x[[2]] > 0, 4, torch.where(...))`.

    The text is not run, and must have exactly this form.

    Returns:
        The (channel, value) pairs; later ones overwrite earlier ones.

    Raises:
        Refused: the text has another form.
    """
    try:
        return _merged(*parse(text))
    except RecursionError:
        raise Refused("its parts lie too deep within each other") from None


def _merged(tree: ast.expr, references: dict[str, str]) -> list[tuple[int, int]]:
    if not isinstance(tree, ast.Lambda) or references or not ast.unparse(tree.args).isidentifier():
        raise Refused("it is not a lambda of one image")
    image, node, found = tree.args.args[0].arg, tree.body, []
    while isinstance(node, ast.Call):
        if ast.unparse(node.func) != "torch.where" or len(node.args) != 3 or node.keywords:
            raise Refused("it calls more than torch.where")
        test, value, node = node.args
        found.append((_channel(test, image), _whole(value)))
    if _whole(node) != 0 or not found:
        raise Refused("it does not end with 0")
    channels, values = zip(*found, strict=True)
    if len(set(channels)) < len(channels) or len(set(values)) < len(values) or 0 in values:
        raise Refused("it names a channel or a label twice")
    return found[::-1]


def _channel(test: ast.expr, image: str) -> int:
    """Return the channel of `x[[2]] > 0`."""
    if (
        isinstance(test, ast.Compare)
        and isinstance(test.left, ast.Subscript)
        and ast.unparse(test.left.value) == image
        and [type(kind) for kind in test.ops] == [ast.Gt]
        and ast.unparse(test.comparators[0]) in ("0", "0.0", "0.5")
    ):
        place = test.left.slice
        if isinstance(place, ast.List) and len(place.elts) == 1:
            place = place.elts[0]
        return _whole(place)
    raise Refused("it looks at more than single channels")


def _whole(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int and 0 <= node.value < 1 << 16:
        return node.value
    raise Refused("it has more than whole numbers")
