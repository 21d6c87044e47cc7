"""The preprocessing of a bundle as the steps of a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from medsegai.errors import ModelError
from medsegai.families.monai.components import Component, transform_name, transforms_of
from medsegai.families.monai.configuration import Configuration
from medsegai.families.monai.settings import STEPS, step_of
from medsegai.models.json_fields import shown

Found = dict[str, Any]

NO_EFFECT = frozenset(
    {
        *("LoadImage", "EnsureChannelFirst", "AddChannel", "EnsureType", "CastToType", "ToTensor"),
        *("ToDevice", "Identity", "SelectItems", "DeleteItems", "DataStats", "FlattenSubKeys"),
    }
)
"""Transforms without effect here, because scans are read already, as float32 with a channel axis in front."""


PLANAR = {
    "Resize": ("spatial_size", -1),
    "SpatialPad": ("spatial_size", -1),
    "DivisiblePad": ("k", 1),
    "CenterSpatialCrop": ("roi_size", -1),
}
"""The spatial steps that pictures may have, and the value of each that leaves the third axis unchanged."""


def read_preprocessing(
    configuration: Configuration, in_channels: int, pictures: bool = False
) -> list[Found]:
    """Return the steps as they are written in a card.

    Args:
        configuration: the configuration of the bundle.
        in_channels: the number of input channels of its network.
        pictures: whether the bundle is for pictures of one plane.

    Raises:
        ModelError: a transform or an argument is unknown, or images are not joined to the channels of the network.
    """
    reader = _Reader(configuration, in_channels, pictures)
    for component in transforms_of(configuration, "preprocessing"):
        reader.add(component)
    reader.check_joined()
    return reader.steps


class _Reader:
    """Keeps track of the channels that the images of a case become."""

    def __init__(
        self, configuration: Configuration, in_channels: int, pictures: bool = False
    ) -> None:
        self.steps: list[Found] = []
        self._pictures = pictures
        self._configuration = configuration
        self._count = in_channels
        self._channels: dict[str, list[int]] = {}

    def add(self, component: Component) -> None:
        name = transform_name(component.target)
        keys = component.keys()
        self._begin(component, keys)
        if name in NO_EFFECT:
            return
        if name == "ConcatItems":
            self._join(component, keys)
            return
        if name not in _ARGUMENTS:
            raise component.unknown(
                "not a supported step of preprocessing",
                f"supported are {', '.join(sorted(_ARGUMENTS))}",
            )
        channels = self._of(component, keys)
        step = {"transform": name, **_ARGUMENTS[name](component)}
        step |= self._aim(component, step, channels)
        self._check(component, step)
        self.steps.append(step)

    def _check(self, component: Component, step: Found) -> None:
        try:
            step_of(step)
        except ModelError as error:
            raise self._configuration.wrong(component.place, str(error).rstrip(".")) from None

    def _aim(self, component: Component, step: Found, channels: Sequence[int]) -> Found:
        """Return what else a step needs: the groups of images, and the axes that it changes."""
        name, keys = step["transform"], component.keys()
        if name not in _SPATIAL:
            split = channels != list(range(self._count)) or len(keys) > 1
            return {"groups": [self._channels[key] for key in keys]} if split else {}
        found = self._in_plane(component, name, step) if self._pictures else {}
        if sorted(channels) != list(range(self._count)):
            raise component.wrong("keys", "images that become one input must be changed alike")
        return found | (self._source(component) if name == "CropForeground" else {})

    def _in_plane(self, component: Component, name: str, step: Found) -> Found:
        """Return the arguments of a step for a picture, with a value for the missing third axis."""
        if name not in PLANAR:
            raise component.unknown(
                "not a step that is supported for 2D networks",
                f"supported are {', '.join(sorted(PLANAR))}",
            )
        argument, unchanged = PLANAR[name]
        return {argument: [*step[argument][:2], unchanged]}

    def check_joined(self) -> None:
        """Raises ModelError: the input of the network is not one image with all channels."""
        joined = self._channels.get("image") or next(iter(self._channels.values()), [])
        if joined != list(range(self._count)):
            raise self._configuration.wrong(
                "preprocessing", f"it does not make one image of {self._count} channels"
            )

    def _begin(self, component: Component, keys: list[str]) -> None:
        """Note the images of a case, which the first transform lists."""
        if self._channels:
            return
        if len(keys) not in (1, self._count):
            raise component.wrong(
                "keys", f"{len(keys)} images cannot be the {self._count} channels of the network"
            )
        if len(keys) == 1:
            self._channels[keys[0]] = list(range(self._count))
        else:
            self._channels = {key: [number] for number, key in enumerate(keys)}

    def _of(self, component: Component, keys: list[str]) -> list[int]:
        for key in keys:
            if key not in self._channels:
                raise component.wrong("keys", f"there is no image {shown(key)}")
        return [channel for key in keys for channel in self._channels[key]]

    def _join(self, component: Component, keys: list[str]) -> None:
        component.only("keys name dim", "allow_missing_keys")
        name = component.value("name")
        if not isinstance(name, str) or component.value("dim", 0) != 0:
            raise component.wrong(
                "name", "images must be joined along the channel axis, and get a name"
            )
        self._channels[name] = self._of(component, keys)

    def _source(self, component: Component) -> Found:
        key = component.value("source_key")
        channels = self._of(component, [key])
        chosen = component.value("channel_indices")
        if chosen is not None:
            chosen = chosen if isinstance(chosen, list) else [chosen]
            channels = [channels[number] for number in chosen if number < len(channels)]
        return {} if channels == list(range(self._count)) else {"source": channels}


def _given(component: Component, names: str) -> Iterator[tuple[str, Any]]:
    """Return the given ones of these arguments."""
    for name in names.split():
        if name in component.names():
            yield name, component.value(name)


def _flags(component: Component, names: str) -> Found:
    return {name: True for name in names.split() if component.flag(name)}


_IGNORED = "allow_missing_keys lazy dtype"


def _orientation(component: Component) -> Found:
    component.only("keys axcodes as_closest_canonical labels", _IGNORED)
    if component.flag("as_closest_canonical"):
        return {"axcodes": "RAS"}
    if component.value("labels") is not None:
        raise component.wrong("labels", "other names for the sides of the body are not supported")
    return {"axcodes": component.value("axcodes")}


def _spacing(component: Component) -> Found:
    component.only(
        "keys pixdim mode padding_mode diagonal scale_extent recompute_affine min_pixdim max_pixdim dtype",
        f"{_IGNORED} align_corners ensure_same_shape",
    )
    for name in ("diagonal", "scale_extent", "recompute_affine"):
        if component.flag(name):
            raise component.wrong(name, "only false is supported")
    if component.alike("padding_mode", "border") not in ("border", None):
        raise component.wrong("padding_mode", "only border is supported")
    found = {"pixdim": component.three("pixdim"), "mode": component.alike("mode", "bilinear")}
    if component.alike("dtype") in ("float32", None) and "dtype" in component.names():
        found["dtype"] = "float32"
    for name in ("min_pixdim", "max_pixdim"):
        if component.value(name) is not None:
            found[name] = component.three(name)
    return found


def _scale_range(component: Component) -> Found:
    component.only("keys a_min a_max b_min b_max clip", _IGNORED)
    return {**dict(_given(component, "a_min a_max b_min b_max")), **_flags(component, "clip")}


def _scale_percentiles(component: Component) -> Found:
    component.only("keys lower upper b_min b_max clip relative channel_wise", _IGNORED)
    given = dict(_given(component, "lower upper b_min b_max"))
    return {**given, **_flags(component, "clip relative channel_wise")}


def _scale(component: Component) -> Found:
    component.only("keys minv maxv factor channel_wise", _IGNORED)
    return {**dict(_given(component, "minv maxv factor")), **_flags(component, "channel_wise")}


def _normalise(component: Component) -> Found:
    component.only("keys subtrahend divisor nonzero channel_wise", _IGNORED)
    found = _flags(component, "nonzero channel_wise")
    for name, value in _given(component, "subtrahend divisor"):
        if value is not None:
            found[name] = value if isinstance(value, list) else [value]
    return found


def _clip(component: Component) -> Found:
    component.only("keys lower upper channel_wise", f"{_IGNORED} return_clipping_values")
    return {**dict(_given(component, "lower upper")), **_flags(component, "channel_wise")}


def _threshold(component: Component) -> Found:
    component.only("keys threshold above cval", _IGNORED)
    return {
        "threshold": component.alike("threshold"),
        "above": component.alike("above", True),
        "cval": component.alike("cval", 0.0),
    }


def _crop_foreground(component: Component) -> Found:
    component.only(
        "keys source_key margin allow_smaller k_divisible mode channel_indices",
        f"{_IGNORED} start_coord_key end_coord_key",
    )
    return {
        "margin": component.three("margin", 0),
        "k_divisible": component.three("k_divisible", 1),
        "mode": component.alike("mode", "constant"),
        **_flags(component, "allow_smaller"),
    }


_LINEAR = ("linear", "bilinear", "trilinear")


def _resize(component: Component) -> Found:
    component.only(
        "keys spatial_size size_mode mode align_corners anti_aliasing",
        f"{_IGNORED} anti_aliasing_sigma",
    )
    if component.value("size_mode", "all") != "all":
        raise component.wrong("size_mode", "only all is supported")
    for name in ("align_corners", "anti_aliasing"):
        if component.flag(name):
            raise component.wrong(name, "only false is supported")
    mode = component.alike("mode", "area")
    return {
        "spatial_size": component.three("spatial_size"),
        "mode": "bilinear" if mode in _LINEAR else mode,
    }


def _pad(component: Component, what: str) -> Found:
    component.only(f"keys {what} method mode value constant_values", _IGNORED)
    value = component.value("value", component.value("constant_values", 0.0))
    return {
        what: component.three(what),
        "method": component.value("method", "symmetric"),
        "mode": component.alike("mode", "constant"),
        "value": value,
    }


def _border_pad(component: Component) -> Found:
    component.only("keys spatial_border mode value constant_values", _IGNORED)
    given = component.value("spatial_border")
    given = given if isinstance(given, list) else [given]
    if len(given) not in (1, 3, 6):
        raise component.wrong("spatial_border", "1, 3 or 6 numbers belong here")
    border = (
        given if len(given) == 6 else [size for size in given * (3 // len(given)) for _ in (0, 1)]
    )
    value = component.value("value", component.value("constant_values", 0.0))
    return {"spatial_border": border, "mode": component.alike("mode", "constant"), "value": value}


def _center_crop(component: Component) -> Found:
    component.only("keys roi_size", _IGNORED)
    return {"roi_size": component.three("roi_size")}


_ARGUMENTS: dict[str, Callable[[Component], Found]] = {
    "Orientation": _orientation,
    "Spacing": _spacing,
    "Resize": _resize,
    "CropForeground": _crop_foreground,
    "SpatialPad": lambda component: _pad(component, "spatial_size"),
    "DivisiblePad": lambda component: _pad(component, "k"),
    "BorderPad": _border_pad,
    "CenterSpatialCrop": _center_crop,
    "ScaleIntensityRange": _scale_range,
    "ScaleIntensityRangePercentiles": _scale_percentiles,
    "ScaleIntensity": _scale,
    "NormalizeIntensity": _normalise,
    "ClipIntensityPercentiles": _clip,
    "ThresholdIntensity": _threshold,
}
"""The arguments of each transform of MONAI that a card contains."""

_SPATIAL = frozenset(name for name, kind in STEPS.items() if kind.__module__.endswith(".scan"))
