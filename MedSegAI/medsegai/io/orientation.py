"""ITK's reorientation of an image so that its axes run towards given sides, also if they are oblique."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from medsegai.volume import Geometry

RAS_SIDES = {
    "R": (0, False),
    "L": (0, True),
    "A": (1, False),
    "P": (1, True),
    "S": (2, False),
    "I": (2, True),
}
"""The RAS axis of each side, and whether the side is at its negative end."""


def itk_axes_to_ras(geometry: Geometry) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return how ITK reorients a grid so that k, j, i run close to S, A and R (`DICOMOrient` to RAS).

    Returns:
        For each new axis the old one, (k, j, i), and whether it must be reversed.
    """
    directions = np.diag([-1, -1, 1]) @ geometry.ijk_to_ras[:3, :3] / geometry.spacing_mm
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(
        directions.ravel().tolist()
    )
    axes = {
        world: (2 - axis, flip)
        for axis, (world, flip) in enumerate(map(RAS_SIDES.__getitem__, code))
    }
    (k, flip_k), (j, flip_j), (i, flip_i) = (axes[world] for world in (2, 1, 0))
    return (k, j, i), (flip_k, flip_j, flip_i)
