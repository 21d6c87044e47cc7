"""The settings of a card of this family: the network, preprocessing, sliding window and postprocessing.

The import reads `settings` from a configuration. Their names are those of MONAI:

    {"network": {"class": "UNet", "arguments": {...}},
     "preprocessing": [{"transform": "Orientation", "axcodes": "RAS"}, {"transform": "Spacing", ...}, ...],
     "inferer": {"roi_size": [96, 96, 96], "overlap": [0.5, 0.5, 0.5], "mode": "gaussian", ...},
     "postprocessing": {"activation": "softmax", "decision": "argmax", "inversion": "linear"}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medsegai.errors import ModelError
from medsegai.families.monai import intensities, scan
from medsegai.families.monai.scan import Step
from medsegai.inference.activation import Activation
from medsegai.models.card import ModelCard
from medsegai.models.json_fields import from_json, number, shown
from medsegai.networks.monai_networks import Description

STEPS: dict[str, type[Step]] = {
    kind.__name__: kind
    for kind in (
        scan.Orientation,
        scan.Spacing,
        scan.Resize,
        scan.CropForeground,
        scan.SpatialPad,
        scan.DivisiblePad,
        scan.BorderPad,
        scan.CenterSpatialCrop,
        intensities.ScaleIntensityRange,
        intensities.ScaleIntensityRangePercentiles,
        intensities.ScaleIntensity,
        intensities.NormalizeIntensity,
        intensities.ClipIntensityPercentiles,
        intensities.ThresholdIntensity,
        intensities.Squash,
    )
}
"""The steps by their names in a card, which are those of MONAI without the d for dictionaries."""

MOST_STEPS = 100

LARGEST_ROI = 2048
"""The largest number of voxels of a window along an axis."""

USUAL_SIZE = 128
"""The size of a window along an axis with which a network is tried, if its inferer does not have one."""

PADDING_MODES = ("constant", "reflect", "replicate", "circular")

MODES = ("constant", "gaussian")

ACTIVATIONS, DECISIONS, INVERSIONS = (
    ("softmax", "sigmoid", "none"),
    ("argmax", "threshold"),
    ("linear", "nearest"),
)


@dataclass(frozen=True)
class Inferer:
    """The sliding window of `monai.inferers.SlidingWindowInferer`; x, y, z where there are three.

    Attributes:
        roi_size: the size of the window; None, or a size that is not positive, stands for the size of the image.
        overlap: the overlap of neighbouring windows, as a share of the window.
        mode: the weights of a window's voxels, "constant" or "gaussian".
        sigma_scale: the standard deviation of the Gaussian, as a share of the window.
        padding_mode, cval: how an image that is smaller than the window is padded.
        slice_axis: the axis along which a 2D network is applied plane by plane; z for pictures.
    """

    roi_size: tuple[int, int, int] | None = None
    overlap: tuple[float, float, float] = (0.25, 0.25, 0.25)
    mode: str = "constant"
    sigma_scale: tuple[float, float, float] = (0.125, 0.125, 0.125)
    padding_mode: str = "constant"
    cval: float = 0.0
    slice_axis: int | None = None

    def permuted(self, order: Sequence[int]) -> Inferer:
        """Return the same windows for an image with its axes in another order."""

        def turned(values: Any) -> Any:
            return None if values is None else tuple(values[axis] for axis in order)

        return replace(
            self,
            roi_size=turned(self.roi_size),
            overlap=turned(self.overlap),
            sigma_scale=turned(self.sigma_scale),
        )

    def check(self) -> None:
        """Refuse settings that are not supported.

        Raises:
            ModelError: the configuration asks for such a setting.
        """
        for size in self.roi_size or ():
            number(size, "roi_size", -LARGEST_ROI, LARGEST_ROI)
        for part in self.overlap:
            number(part, "overlap", 0, 0.99)
        for part in self.sigma_scale:
            number(part, "sigma_scale", 1e-3, 1e3)
        if self.slice_axis is not None:
            number(self.slice_axis, "slice_axis", 0, 2)
            if self.roi_size is not None and self.roi_size[self.slice_axis] != 1:
                raise ModelError("roi_size must be 1 along slice_axis.")
        _one_of(self.mode, "mode", MODES)
        _one_of(self.padding_mode, "padding_mode", PADDING_MODES)


@dataclass(frozen=True)
class Reading:
    """How predictions of the network become labels on the grid of the input.

    Attributes:
        activation: "softmax", "sigmoid" or "none", which is applied before predictions are interpolated.
        decision: "argmax", or "threshold", which is one half for each channel.
        inversion: the interpolation on the grid of the input, "linear" or "nearest".
        order: the channels of the network in the order of the labels, if that differs; a voxel gets the last of
            its labels.
    """

    activation: str = "softmax"
    decision: str = "argmax"
    inversion: str = "nearest"
    order: tuple[int, ...] | None = None

    def check(self) -> None:
        """Refuse settings that are not supported.

        Raises:
            ModelError: the configuration asks for such a setting.
        """
        _one_of(self.activation, "activation", ACTIVATIONS)
        _one_of(self.decision, "decision", DECISIONS)
        _one_of(self.inversion, "inversion", INVERSIONS)
        if self.activation == "sigmoid" and self.decision == "argmax":
            raise ModelError("The largest of several sigmoids is not a decision that is known.")
        if self.activation == "softmax" and self.decision == "threshold":
            raise ModelError("A threshold of softmax is not a decision that is known.")
        if self.order is not None and (
            self.decision == "argmax" or sorted(self.order) != list(range(len(self.order)))
        ):
            raise ModelError("order must name each channel once, and is for a threshold only.")

    @property
    def regions(self) -> bool:
        """Whether classes may overlap."""
        return self.decision == "threshold"

    @property
    def activated(self) -> bool:
        """Whether the activation must be applied before predictions are interpolated."""
        return self.activation != "none" and self.inversion == "linear"

    @property
    def answers(self) -> Activation:
        """Return what the members predict."""
        if self.regions:
            return Activation.REGION_PROBABILITIES if self.activated else Activation.REGIONS
        return Activation.PROBABILITIES if self.activated else Activation.LOGITS


@dataclass(frozen=True)
class Settings:
    """The checked settings of a card."""

    network: Description
    steps: tuple[Step, ...]
    inferer: Inferer
    reading: Reading

    @classmethod
    def of(cls, card: ModelCard) -> Settings:
        """Read the settings of a card. Raises ModelError: they are of another family, or contradict the card."""
        try:
            settings = cls.from_dict(card.settings)
            settings._check(card)
        except ModelError as error:
            raise ModelError(f"The settings of model {card.id!r}: {error}") from None
        return settings

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        """Read settings. Raises ModelError: a part is missing or unknown, or has the wrong form."""
        parts = {"network", "preprocessing", "inferer", "postprocessing"}
        if not parts <= set(data):
            raise ModelError(f"{', '.join(sorted(parts - set(data)))} is missing.")
        network = data["network"]
        if not isinstance(network, Mapping):
            raise ModelError(f"network must be an object, not {shown(network)}.")
        given = data["preprocessing"]
        if not isinstance(given, (list, tuple)) or len(given) > MOST_STEPS:
            raise ModelError(f"preprocessing must be a list of at most {MOST_STEPS} steps.")
        return cls(
            Description.of(network.get("class"), network.get("arguments")),
            tuple(map(step_of, given)),
            _made(Inferer, data["inferer"]),
            _made(Reading, data["postprocessing"]),
        )

    def window(self) -> tuple[int, ...]:
        """Return the sizes of a window in the axes of the network, `USUAL_SIZE` where the image decides."""
        across, sizes = self.inferer.slice_axis, self.inferer.roi_size
        sizes = sizes or self.network.arguments.get("img_size")
        axes = [axis for axis in range(3) if axis != across]
        if (
            not isinstance(sizes, list | tuple)
            or len(sizes) != 3
            or not all(isinstance(size, int) for size in sizes)
        ):
            return (USUAL_SIZE,) * len(axes)
        return tuple(sizes[axis] if sizes[axis] > 0 else USUAL_SIZE for axis in axes)

    def _check(self, card: ModelCard) -> None:
        self._check_planes(card)
        if len(card.channels) != self.network.in_channels:
            raise ModelError(
                f"the card has {len(card.channels)} channels, and the network takes {self.network.in_channels}."
            )
        for member in card.members:
            outputs = member.classes[1:] if self.reading.regions else member.classes
            if len(outputs) != self.network.classes or member.classes[:1] != ((),):
                raise ModelError(
                    f"the classes of member {member.name!r} are not those of the network."
                )
        if self.reading.order is not None and len(self.reading.order) != self.network.classes:
            raise ModelError("order does not name each channel of the network once.")
        for step in self.steps:
            for channel in _channels(step):
                number(channel, "a channel of the preprocessing", 0, len(card.channels) - 1)

    def _check_planes(self, card: ModelCard) -> None:
        if (self.network.dimensions == 2) != (self.inferer.slice_axis is not None):
            raise ModelError(
                f"a network of {self.network.dimensions} dimensions cannot be run with slice_axis "
                f"{shown(self.inferer.slice_axis)}."
            )
        if card.dimensions == 2 and self.inferer.slice_axis != 2:
            raise ModelError("a model of pictures needs a network of single planes across z.")


def step_of(data: Any) -> Step:
    """Return a step of the preprocessing. Raises ModelError: the data do not describe a step."""
    if not isinstance(data, Mapping) or data.get("transform") not in STEPS:
        named = data.get("transform") if isinstance(data, Mapping) else data
        raise ModelError(f"There is no transform {shown(named)}. Known are {', '.join(STEPS)}.")
    values = {name: value for name, value in data.items() if name != "transform"}
    step: Step = _made(STEPS[data["transform"]], values)
    return step


def _made(kind: type[Any], data: Any) -> Any:
    made = from_json(kind, data)
    made.check()
    return made


def _channels(step: Step) -> list[int]:
    groups = getattr(step, "groups", None) or ()
    return [
        *(getattr(step, "source", None) or ()),
        *(channel for group in groups for channel in group),
    ]


def _one_of(value: str, what: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ModelError(f"{what} must be {' or '.join(known)}, not {shown(value)}.")
