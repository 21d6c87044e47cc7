"""The steps of preprocessing that change intensities and not the positions of voxels.

Each class corresponds to the transform of MONAI 1.6.1 with the same name (`monai.transforms.intensity`), and its
fields are the arguments that matter. `groups` lists the channels that a step scales together; None for all.
Means and percentiles are computed as MONAI does, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsegai.errors import ModelError
from medsegai.families.monai.scan import Scan
from medsegai.models.json_fields import number, shown

Groups = tuple[tuple[int, ...], ...]


def _together(scan: Scan, groups: Groups | None, channel_wise: bool) -> Iterator[Tensor]:
    """Yield views (channel, x, y, z) of the channels that are scaled together."""
    for group in groups or (tuple(range(len(scan.voxels))),):
        first, last = group[0], group[-1]
        if not channel_wise and group != tuple(range(first, last + 1)):
            raise ModelError(f"Channels {list(group)} cannot be scaled together.")
        if channel_wise:
            yield from (scan.voxels[channel : channel + 1] for channel in group)
        else:
            yield scan.voxels[first : last + 1]


@dataclass(frozen=True)
class ScaleIntensityRange:
    """Map `a_min` and `a_max` to `b_min` and `b_max`, and clip to these if wanted."""

    a_min: float
    a_max: float
    b_min: float | None = None
    b_max: float | None = None
    clip: bool = False
    groups: Groups | None = None

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        for name in ("a_min", "a_max"):
            number(getattr(self, name), name)

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        for values in _together(scan, self.groups, False):
            _rescale(values, (self.a_min, self.a_max), (self.b_min, self.b_max), self.clip)
        return scan


@dataclass(frozen=True)
class ScaleIntensityRangePercentiles:
    """Map the percentiles `lower` and `upper` of the image to `b_min` and `b_max`.

    If `relative` is true, they are mapped to the corresponding shares of the range from `b_min` to `b_max`.
    """

    lower: float
    upper: float
    b_min: float | None = None
    b_max: float | None = None
    clip: bool = False
    relative: bool = False
    channel_wise: bool = False
    groups: Groups | None = None

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        _check_percentiles(self.lower, self.upper)
        if self.relative and (self.b_min is None or self.b_max is None):
            raise ModelError("ScaleIntensityRangePercentiles needs b_min and b_max to be relative.")

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        low, high = self.b_min, self.b_max
        if self.relative and low is not None and high is not None:
            low, high = (low + (high - low) * share / 100.0 for share in (self.lower, self.upper))
        for values in _together(scan, self.groups, self.channel_wise):
            _rescale(values, _percentiles(values, self.lower, self.upper), (low, high), self.clip)
        return scan


@dataclass(frozen=True)
class ScaleIntensity:
    """Map the range of the image to `minv` and `maxv`; without both, multiply intensities by 1 + `factor`."""

    minv: float | None = 0.0
    maxv: float | None = 1.0
    factor: float | None = None
    channel_wise: bool = False
    groups: Groups | None = None

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        if self.factor is not None:
            number(self.factor, "factor")

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        for values in _together(scan, self.groups, self.channel_wise):
            if self.minv is None and self.maxv is None:
                values *= 1 + (self.factor or 0.0)
                continue
            low, high = float(values.min()), float(values.max())
            if low == high:
                values *= 1.0 if self.minv is None else self.minv
                continue
            values.sub_(low).div_(high - low)
            if self.minv is not None and self.maxv is not None:
                values.mul_(self.maxv - self.minv).add_(self.minv)
        return scan


@dataclass(frozen=True)
class NormalizeIntensity:
    """Subtract `subtrahend` (the mean) and divide by `divisor` (the standard deviation), perhaps except for zeros.

    Both are single numbers, or one for each channel where channels are treated one by one.
    """

    subtrahend: tuple[float, ...] | None = None
    divisor: tuple[float, ...] | None = None
    nonzero: bool = False
    channel_wise: bool = False
    groups: Groups | None = None

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        for name in ("subtrahend", "divisor"):
            given = getattr(self, name)
            if given is not None and (not given or (len(given) > 1 and not self.channel_wise)):
                raise ModelError(
                    f"{name} of NormalizeIntensity must be one number, or one a channel."
                )

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        for place, values in enumerate(_together(scan, self.groups, self.channel_wise)):
            mask = values != 0 if self.nonzero else None
            if mask is not None and not mask.any():
                continue
            measured = values if mask is None else values[mask]
            low = _nth(self.subtrahend, place)
            spread = _nth(self.divisor, place)
            low = float(measured.mean()) if low is None else low
            spread = float(measured.std(unbiased=False)) if spread is None else spread
            if mask is None:
                values.sub_(low).div_(spread or 1.0)
            else:
                values[mask] = measured.sub_(low).div_(spread or 1.0)
        return scan


@dataclass(frozen=True)
class ClipIntensityPercentiles:
    """Clip to the percentiles `lower` and `upper` of the image."""

    lower: float | None = None
    upper: float | None = None
    channel_wise: bool = False
    groups: Groups | None = None

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        _check_percentiles(self.lower or 0.0, 100.0 if self.upper is None else self.upper)

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        for values in _together(scan, self.groups, self.channel_wise):
            upper = 100.0 if self.upper is None else self.upper
            values.clamp_(*_percentiles(values, self.lower or 0.0, upper))
        return scan


@dataclass(frozen=True)
class ThresholdIntensity:
    """Keep intensities above (or below) `threshold`, and set the others to `cval`."""

    threshold: float
    above: bool = True
    cval: float = 0.0
    groups: Groups | None = None

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        number(self.threshold, "threshold")

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        for values in _together(scan, self.groups, False):
            gone = values <= self.threshold if self.above else values >= self.threshold
            values.masked_fill_(gone, self.cval)
        return scan


@dataclass(frozen=True)
class Squash:
    """A function of Auto3DSeg that MONAI does not have: "sigmoid"; "tanh", which is 3 tanh(v / 3); or "pet",
    the sigmoid of the distance to the lowest intensity in standard deviations of the image."""

    function: str
    groups: Groups | None = None

    def check(self) -> None:
        """Refuse settings that this step does not support: see `Step.check`."""
        if self.function not in ("sigmoid", "tanh", "pet"):
            raise ModelError(f"There is no function {shown(self.function)} of intensities.")

    def apply(self, scan: Scan) -> Scan:
        """Return the scan after this step."""
        for values in _together(scan, self.groups, False):
            if self.function == "pet":
                low, spread = float(values.min()), float(values.std())
                values.sub_(low).div_(spread or 1.0)
            if self.function == "tanh":
                values.div_(3).tanh_().mul_(3)
            else:
                values.sigmoid_()
        return scan


def _rescale(
    values: Tensor,
    old: tuple[float, float],
    new: tuple[float | None, float | None],
    clip: bool,
) -> None:
    """Scale in place, as `ScaleIntensityRange` of MONAI does."""
    (a_min, a_max), (b_min, b_max) = old, new
    if a_max - a_min == 0.0:
        values.sub_(a_min).add_(b_min or 0.0)
        return
    values.sub_(a_min).div_(a_max - a_min)
    if b_min is not None and b_max is not None:
        values.mul_(b_max - b_min).add_(b_min)
    if clip and (b_min is not None or b_max is not None):
        values.clamp_(b_min, b_max)


def _percentiles(values: Tensor, lower: float, upper: float) -> tuple[float, float]:
    low, high = np.percentile(torch.flatten(values).numpy(), [lower, upper])
    return float(low), float(high)


def _nth(values: tuple[float, ...] | None, place: int) -> float | None:
    return None if values is None else values[place if len(values) > 1 else 0]


def _check_percentiles(lower: float, upper: float) -> None:
    number(lower, "lower", 0, 100)
    number(upper, "upper", lower, 100)
