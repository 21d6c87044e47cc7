"""Images made from label maps: every volume has a different shape, contrast and quality.

A network that is trained on such images does not depend on an MR contrast (domain randomisation; Billot et al.,
"SynthSeg", Medical Image Analysis 2023). A share of the volumes is drawn around the intensities of a T1 scan,
which is what most users have.

All arrays are (k, j, i) on a grid that runs to Anterior, Inferior, Left (see `preprocessing.views`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from medsegai.errors import RequestError
from medsegai.models.limits import Limits
from medsegai.training.limits import NOT_NEGATIVE, RANGE, SHARE, Range, limited

NODES = Limits(2, 128)
"""The number of nodes of a smooth field along each axis."""

Image = NDArray[np.float32]
Targets = NDArray[np.uint8]


@dataclass(frozen=True)
class TissueClass:
    """Labels that share one intensity, such as both sides of a structure.

    ``t1`` is their mean in a T1 scan where white matter is 1; without it, T1-like volumes draw it
    at random like all others. ``blends`` says whether their intensity may fade into that of tissue nearby
    (`AppearanceConfig.blending`).
    """

    name: str
    labels: tuple[int, ...]
    t1: float | None = None
    blends: bool = False


@dataclass(frozen=True)
class DeformationConfig:
    """The variation of shape and place. Lengths are in mm, angles in degrees; each pair is a range of values."""

    rotation: float = limited(15.0, NOT_NEGATIVE)
    scaling: Range = limited((0.85, 1.15), Limits(0.1, 10, ascending=True))
    shearing: float = limited(0.1, NOT_NEGATIVE)
    shift_mm: float = limited(20.0, NOT_NEGATIVE)
    far_shift_mm: float = limited(60.0, NOT_NEGATIVE)
    far_shift_share: float = limited(0.1, SHARE)
    elastic_mm: tuple[Range, ...] = limited(((0.0, 4.0), (0.0, 1.5)), RANGE)
    elastic_nodes: tuple[int, ...] = limited((6, 14), NODES)
    flip_share: float = limited(0.5, SHARE)

    def __post_init__(self) -> None:
        """Raises RequestError: elastic deformations have strengths without nodes, or nodes without strengths."""
        if len(self.elastic_mm) != len(self.elastic_nodes):
            raise RequestError(
                f"elastic_mm and elastic_nodes need as many entries as each other, not {len(self.elastic_mm)} and "
                f"{len(self.elastic_nodes)}."
            )


@dataclass(frozen=True)
class AppearanceConfig:
    """The variation of contrast and quality. Intensities are in units of the brightest tissue.

    Tissue is not uniform: ``gradient`` is the strength of smooth changes of intensity inside a tissue class, on
    ``gradient_nodes``³ points, and ``blending`` the share by which classes that blend take on the mean intensity
    of what is within ``blending_voxels`` of them, as thin white matter between grey structures does.
    """

    t1_share: float = limited(0.6, SHARE)
    t1_jitter: float = limited(0.06, NOT_NEGATIVE)
    noise_in_tissue: Range = limited((0.01, 0.08), RANGE)
    texture_voxels: Range = limited((1.5, 4.0), Limits(1, ascending=True))
    gradient: Range = limited((0.0, 0.0), RANGE)
    gradient_nodes: int = limited(14, NODES)
    blending: Range = limited((0.0, 0.0), Limits(0, 1, ascending=True))
    blending_voxels: Range = limited((1.2, 2.5), Limits(0.3, 10, ascending=True))
    bias: Range = limited((0.0, 0.35), RANGE)
    bias_nodes: int = limited(4, NODES)
    blur_voxels: Range = limited((0.3, 0.9), RANGE)
    coarse_share: float = limited(0.35, SHARE)
    coarse_factor: Range = limited((1.3, 4.0), Limits(1, ascending=True))
    noise: Range = limited((0.0, 0.06), RANGE)
    gamma: float = limited(0.25, NOT_NEGATIVE)
    stripped_share: float = limited(0.5, SHARE)
    tight_mask_share: float = limited(0.4, SHARE)
    cut_share: float = limited(0.2, SHARE)


@dataclass(frozen=True)
class LabelTables:
    """The meaning of each code of a stored label map.

    ``classes`` (codes,) tissue class, ``targets`` (codes,) index among the labels to learn (0 is
    background), ``mirrored`` (codes,) code of the other side, ``t1`` (classes,) mean or NaN, ``blends`` (classes,)
    whether the intensity may fade into that of its neighbours, ``brain`` (targets + 1,) whether a skull-stripped
    scan always keeps this structure.
    """

    classes: Tensor
    targets: Tensor
    mirrored: Tensor
    t1: Tensor
    blends: Tensor
    brain: Tensor

    def to(self, device: torch.device) -> LabelTables:
        return LabelTables(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class SpatialGrid:
    """The grid on which volumes are made: ``shape`` and voxel size in mm, both (k, j, i)."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Origin:
    """The place where volumes are cut from a source: the voxel in the middle, and the spacing in mm, (k, j, i)."""

    center: tuple[float, float, float]
    spacing_mm: tuple[float, float, float]


@dataclass
class Draw:
    """Random numbers from one generator, on its device."""

    generator: torch.Generator

    def uniform(self, low: float, high: float) -> float:
        """Draw a number between two others."""
        return low + (high - low) * float(self._rand(1))

    def chance(self, share: float) -> bool:
        """Draw whether something of this probability happens."""
        return self.uniform(0.0, 1.0) < share

    def integer(self, below: int) -> int:
        """Draw a whole number."""
        return min(int(self.uniform(0.0, below)), below - 1)

    def normal(self, *shape: int) -> Tensor:
        """Draw normally distributed numbers."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def uniforms(self, low: float, high: float, count: int) -> Tensor:
        """Draw several numbers between two others."""
        return low + (high - low) * self._rand(count)

    def _rand(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, device=self.generator.device)


def smooth_field(draw: Draw, channels: int, nodes: int, shape: Sequence[int]) -> Tensor:
    """Return standard normal values on ``nodes``³ points, interpolated to (channels, *shape)."""
    coarse = draw.normal(1, channels, nodes, nodes, nodes)
    return functional.interpolate(coarse, tuple(shape), mode="trilinear", align_corners=True)[0]


def random_affine(draw: Draw, config: DeformationConfig) -> tuple[Tensor, bool]:
    """Return a 3x3 matrix of rotation, scaling and shear in (k, j, i), and whether it exchanges left and right."""
    angles = [math.radians(draw.uniform(-config.rotation, config.rotation)) for _ in range(3)]
    matrix = torch.eye(3, dtype=torch.float64)
    for (first, second), angle in zip(((1, 2), (0, 2), (0, 1)), angles, strict=True):
        turn = torch.eye(3, dtype=torch.float64)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    common = draw.uniform(*config.scaling)
    scales = [common * draw.uniform(0.93, 1.07) for _ in range(3)]
    shear = torch.eye(3, dtype=torch.float64)
    for row, column in ((0, 1), (0, 2), (1, 2)):
        shear[row, column] = draw.uniform(-config.shearing, config.shearing)
    matrix = matrix @ shear @ torch.diag(torch.tensor(scales, dtype=torch.float64))
    flipped = draw.chance(config.flip_share)
    if flipped:
        matrix[2] = -matrix[2]
    return matrix, flipped


def random_coordinates(
    draw: Draw, grid: SpatialGrid, origin: Origin, config: DeformationConfig
) -> tuple[Tensor, bool]:
    """Return the source of each voxel of ``grid`` under a random shift, affine map and elastic deformation.

    The result is (3, *shape) source voxels, and whether left and right are exchanged.
    """
    matrix, flipped = random_affine(draw, config)
    reach = config.far_shift_mm if draw.chance(config.far_shift_share) else config.shift_mm
    shift = [draw.uniform(-reach, reach) for _ in range(3)]
    bend = torch.zeros((3, *grid.shape), device=draw.generator.device)
    for nodes, strength in zip(config.elastic_nodes, config.elastic_mm, strict=True):
        bend += smooth_field(draw, 3, nodes, grid.shape) * draw.uniform(*strength)
    return _placed(bend, matrix, shift, grid, origin), flipped


def straight_coordinates(grid: SpatialGrid, origin: Origin, device: torch.device) -> Tensor:
    """Return the source of each voxel of ``grid`` without variation: (3, *shape) source voxels."""
    nothing = torch.zeros((3, *grid.shape), device=device)
    return _placed(nothing, torch.eye(3, dtype=torch.float64), [0.0] * 3, grid, origin)


def _placed(
    bend: Tensor, matrix: Tensor, shift: Sequence[float], grid: SpatialGrid, origin: Origin
) -> Tensor:
    """Add the affine map to displacements in mm (3, *shape) and turn both into source voxels."""
    offsets = [
        (torch.arange(size, device=bend.device) - (size - 1) / 2) * spacing
        for size, spacing in zip(grid.shape, grid.spacing_mm, strict=True)
    ]
    for axis in range(3):
        along_k, along_j, along_i = (
            float(matrix[axis, other]) * offsets[other] for other in range(3)
        )
        bend[axis] += along_k[:, None, None] + along_j[:, None] + (along_i + shift[axis])
        bend[axis] = bend[axis] / origin.spacing_mm[axis] + origin.center[axis]
    return bend


def sample_nearest(codes: Tensor, coordinates: Tensor) -> Tensor:
    """Return the codes of (K, J, I) at the voxels nearest to (3, ...) coordinates; 0 outside."""
    nearest = coordinates.round().to(torch.int32)
    index = torch.zeros(nearest.shape[1:], dtype=torch.int32, device=codes.device)
    inside = torch.ones(nearest.shape[1:], dtype=torch.bool, device=codes.device)
    for axis, size in enumerate(codes.shape):
        inside &= (nearest[axis] >= 0) & (nearest[axis] < size)
        index = index * size + nearest[axis].clamp(0, size - 1)
    return codes.flatten()[index.flatten()].view(index.shape) * inside


def sample_linear(image: Tensor, coordinates: Tensor) -> Tensor:
    """Return values of (K, J, I), interpolated at (3, ...) coordinates; 0 outside."""
    sizes = torch.tensor(image.shape, device=image.device, dtype=coordinates.dtype)
    scaled = (2.0 * coordinates.movedim(0, -1) + 1.0) / sizes - 1.0
    sampled = functional.grid_sample(image[None, None], scaled.flip(-1)[None], align_corners=False)
    return sampled[0, 0]


def paint(codes: Tensor, tables: LabelTables, config: AppearanceConfig, draw: Draw) -> Tensor:
    """Draw a mean and a noise level for each tissue class and fill the map with them."""
    count, background = len(tables.t1), int(tables.classes[0])
    means, spreads = _means_and_spreads(tables, config, draw)
    texture = _texture(codes.shape, config, draw)
    tissue = tables.classes[codes.int()]
    image = means[tissue] + spreads[tissue] * texture
    if config.gradient[1]:
        slopes = draw.uniform(*config.gradient) * draw.normal(count)
        slopes[background] = 0.0
        image += slopes[tissue] * smooth_field(draw, 1, config.gradient_nodes, codes.shape)[0]
    if config.blending[1]:
        image = blend(image, tables.blends[tissue], config, draw)
    return image.clamp_min_(0.0)


def blend(image: Tensor, where: Tensor, config: AppearanceConfig, draw: Draw) -> Tensor:
    """Mix (K, J, I) with a blurred copy, `where` it may blend and by a share that changes smoothly."""
    most = draw.uniform(*config.blending)
    share = most * torch.sigmoid(1.5 * smooth_field(draw, 1, config.gradient_nodes, image.shape)[0])
    sigma = draw.uniform(*config.blending_voxels)
    margin = 3 * math.ceil(sigma)  # beyond the border a blur would see black
    padded = functional.pad(image[None, None], (margin,) * 6, mode="replicate")[0, 0]
    inside = (slice(margin, -margin),) * 3
    return torch.lerp(image, blur(padded, sigma)[inside], share * where)


def _means_and_spreads(
    tables: LabelTables, config: AppearanceConfig, draw: Draw
) -> tuple[Tensor, Tensor]:
    """Draw the mean and the noise level of each tissue class, (class,)."""
    count, background = len(tables.t1), int(tables.classes[0])
    means = draw.uniforms(0.0, 1.0, count)
    spreads = draw.uniforms(*config.noise_in_tissue, count)
    t1_like = draw.chance(config.t1_share)
    jittered = tables.t1 + config.t1_jitter * draw.normal(count)
    if t1_like:
        means = torch.where(torch.isnan(jittered), means, jittered.clamp_min(0.0))
    else:
        spreads = spreads * draw.uniform(1.0, 1.8)
    means[background] = 0.0 if t1_like or draw.chance(0.5) else draw.uniform(0.0, 0.4)
    spreads[background] = draw.uniform(0.0, 0.03)
    return means, spreads


def _texture(shape: Sequence[int], config: AppearanceConfig, draw: Draw) -> Tensor:
    """Draw a field of unit variance, partly smooth and partly noise."""
    nodes = int(max(shape) / draw.uniform(*config.texture_voxels))
    share = draw.uniform(0.0, 0.9)
    smooth = smooth_field(draw, 1, nodes, shape)[0]
    return share * smooth / smooth.std() + math.sqrt(1.0 - share**2) * draw.normal(*shape)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Blur (K, J, I) by a Gaussian with ``sigma`` in voxels."""
    radius = max(1, math.ceil(2.5 * sigma))
    positions = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (positions / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(3):
        size = image.shape[axis]
        blurred = kernel[radius] * image
        for step in range(1, radius + 1):
            weight = float(kernel[radius + step])
            blurred.narrow(axis, step, size - step).add_(
                image.narrow(axis, 0, size - step), alpha=weight
            )
            blurred.narrow(axis, 0, size - step).add_(
                image.narrow(axis, step, size - step), alpha=weight
            )
        image = blurred
    return image


def coarsen(image: Tensor, factors: Sequence[float]) -> Tensor:
    """Average over thick voxels and interpolate back, to look like a scan of lower resolution."""
    shape = tuple(image.shape)
    depth, height, width = (
        max(4, round(size / factor)) for size, factor in zip(shape, factors, strict=True)
    )
    averaged = functional.adaptive_avg_pool3d(image[None, None], (depth, height, width))
    return functional.interpolate(averaged, shape, mode="trilinear", align_corners=False)[0, 0]


def corrupt(image: Tensor, config: AppearanceConfig, draw: Draw) -> Tensor:
    """Apply bias field, blur, resolution, noise and gamma to a non-negative (K, J, I) image."""
    image = image * torch.exp(
        smooth_field(draw, 1, config.bias_nodes, image.shape)[0] * draw.uniform(*config.bias)
    )
    image = blur(image, draw.uniform(*config.blur_voxels))
    if draw.chance(config.coarse_share):
        factor = draw.uniform(*config.coarse_factor)
        thick = draw.integer(4)
        even = math.sqrt(factor)
        image = coarsen(
            image,
            [even] * 3 if thick == 3 else [factor if axis == thick else 1.0 for axis in range(3)],
        )
    image = image + draw.uniform(*config.noise) * draw.normal(*image.shape)
    image = image.clamp_min(0.0)
    peak = image.max().clamp_min(1e-6)
    return (image / peak) ** math.exp(config.gamma * float(draw.normal(1)))


def strip_mask(brain: Tensor, config: AppearanceConfig, draw: Draw) -> Tensor:
    """Return what a brain extraction keeps: the brain (K, J, I), tightly or with smooth, filled contours."""
    if draw.chance(config.tight_mask_share):
        return brain
    coarse = functional.avg_pool3d(brain[None, None].float(), 4)
    coarse = functional.avg_pool3d(coarse, 3, stride=1, padding=1)
    smooth = functional.interpolate(
        coarse, tuple(brain.shape), mode="trilinear", align_corners=False
    )[0, 0]
    return brain | (smooth > draw.uniform(0.15, 0.6))


def cut_mask(shape: Sequence[int], draw: Draw, device: torch.device) -> Tensor:
    """Return the mask of a field of view that ends early on one side."""
    mask = torch.ones(tuple(shape), dtype=torch.bool, device=device)
    axis, at_end = draw.integer(3), draw.chance(0.5)
    thickness = int(draw.uniform(0.02, 0.25) * shape[axis])
    start = shape[axis] - thickness if at_end else 0
    mask.narrow(axis, start, thickness).zero_()
    return mask


@dataclass(frozen=True)
class Synthesizer:
    """Makes one image, not yet scaled, and its target indices, both on the (k, j, i) grid."""

    tables: LabelTables
    grid: SpatialGrid
    deformation: DeformationConfig = field(default_factory=DeformationConfig)
    appearance: AppearanceConfig = field(default_factory=AppearanceConfig)

    def from_labels(self, codes: Tensor, origin: Origin, draw: Draw) -> tuple[Image, Targets]:
        """Make a synthetic image from a label map."""
        sampled, targets, _ = self._deformed(codes, origin, draw)
        image = paint(sampled, self.tables, self.appearance, draw)
        return self._finished(image, targets, draw)

    def from_pair(
        self, codes: Tensor, image: Tensor, origin: Origin, draw: Draw, varied: bool
    ) -> tuple[Image, Targets]:
        """Make a variation of a real image (values from 0 to 1), or only resample it."""
        if varied:
            _, targets, coordinates = self._deformed(codes, origin, draw)
            return self._finished(sample_linear(image, coordinates), targets, draw)
        coordinates = straight_coordinates(self.grid, origin, codes.device)
        targets = self.tables.targets[sample_nearest(codes, coordinates).int()]
        return sample_linear(image, coordinates).cpu().numpy(), targets.cpu().numpy()

    def _deformed(self, codes: Tensor, origin: Origin, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        coordinates, flipped = random_coordinates(draw, self.grid, origin, self.deformation)
        sampled = sample_nearest(codes, coordinates)
        if flipped:
            sampled = self.tables.mirrored[sampled.int()]
        return sampled, self.tables.targets[sampled.int()], coordinates

    def _finished(self, image: Tensor, targets: Tensor, draw: Draw) -> tuple[Image, Targets]:
        image = corrupt(image, self.appearance, draw)
        keep = self.visible(targets, draw)
        if keep is not None:
            image, targets = image * keep, targets * keep
        return image.cpu().numpy(), targets.cpu().numpy()

    def visible(self, targets: Tensor, draw: Draw) -> Tensor | None:
        """Return where the scan shows something: everywhere, in the stripped brain, or in a cut field of view."""
        keep = None
        if draw.chance(self.appearance.stripped_share):
            keep = strip_mask(self.tables.brain[targets.int()], self.appearance, draw)
        if draw.chance(self.appearance.cut_share):
            cut = cut_mask(targets.shape, draw, targets.device)
            keep = cut if keep is None else keep & cut
        return keep


def label_tables(
    codes: Sequence[int],
    targets: Sequence[int],
    tissues: Sequence[TissueClass],
    mirrored: Mapping[int, int],
    remap: Mapping[int, int],
    not_brain: Sequence[int] = (),
) -> LabelTables:
    """Return the tables for maps whose code ``n`` stands for label value ``codes[n]``.

    ``targets`` has the label values to learn, without background. ``mirrored`` has the label of the other side,
    both ways. ``remap`` has the label value to learn instead. Each label without a tissue class gets its own,
    which it shares with the other side.
    """
    values = list(codes)
    grouped = {value: number for number, tissue in enumerate(tissues) for value in tissue.labels}
    t1 = [math.nan if tissue.t1 is None else tissue.t1 for tissue in tissues]
    blends = [tissue.blends for tissue in tissues]
    for value in values:
        if value not in grouped:
            grouped[value] = grouped.get(mirrored.get(value, value), len(t1))
            if grouped[value] == len(t1):
                t1.append(math.nan)
    learned = [0, *targets]
    position = {value: number for number, value in enumerate(learned)}
    code_of = {value: number for number, value in enumerate(values)}
    return LabelTables(
        classes=torch.tensor([grouped[value] for value in values], dtype=torch.int32),
        targets=torch.tensor(
            [position.get(remap.get(value, value), 0) for value in values], dtype=torch.uint8
        ),
        mirrored=torch.tensor(
            [code_of[mirrored.get(value, value)] for value in values], dtype=torch.uint8
        ),
        t1=torch.tensor(t1, dtype=torch.float32),
        blends=torch.tensor(blends + [False] * (len(t1) - len(blends))),
        brain=torch.tensor([value != 0 and value not in not_brain for value in learned]),
    )
