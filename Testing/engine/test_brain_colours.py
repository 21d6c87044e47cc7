"""The colours of the bundled brain model can be told apart: beside one another, on the table, and on the image.

Differences are those of CIEDE2000 (G. Sharma, W. Wu, E. Dalal, The CIEDE2000 color-difference formula, Color
Research and Application 30, 2005, 21-30). It is stricter than CIE76 for strong colours; two that are 20 apart look
different at a glance.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medsegai.models.catalogue import find_card

APART = 20.0
FROM_GREY = 15.0
"""Greys of one image lie on a line, and the nearest is rarely the one beside."""

TABLES = ("#ffffff", "#f5f5f5", "#2a2a2a", "#313131")
"""Rows of Slicer's tables in the light style, and in the dark one."""

LABELS = find_card("brain").labels
COLORS = {label.name: label.color for label in LABELS}


def lab(color: Any) -> NDArray[np.float64]:
    """CIELAB of sRGB, 8 bit, white point D65."""
    linear = np.asarray(color, np.float64) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.41246, 0.35758, 0.18044], [0.21267, 0.71515, 0.07218], [0.01933, 0.11919, 0.95030]]
    x = np.asarray(to_xyz) @ linear / [0.95047, 1.0, 1.08883]
    f = np.where(x > 216 / 24389, np.cbrt(x), (24389 / 27 * x + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """CIEDE2000 of two CIELAB colours; equations 2 to 22 of Sharma et al."""
    chroma = (np.hypot(*first[1:]) + np.hypot(*second[1:])) / 2
    stretch = 1.5 - 0.5 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    (l1, a1, b1), (l2, a2, b2) = first, second
    c1, c2 = np.hypot(a1 * stretch, b1), np.hypot(a2 * stretch, b2)
    h1, h2 = np.arctan2(b1, a1 * stretch), np.arctan2(b2, a2 * stretch)
    turn = (h2 - h1 + np.pi) % (2 * np.pi) - np.pi if c1 * c2 else 0.0
    light, strong = (l1 + l2) / 2, (c1 + c2) / 2
    hue = np.degrees(h1 + turn / 2) % 360 if c1 * c2 else np.degrees(h1 + h2) % 360
    t = 1 - 0.17 * np.cos(np.radians(hue - 30)) + 0.24 * np.cos(np.radians(2 * hue))
    t += 0.32 * np.cos(np.radians(3 * hue + 6)) - 0.2 * np.cos(np.radians(4 * hue - 63))
    s_l = 1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    s_c, s_h = 1 + 0.045 * strong, 1 + 0.015 * strong * t
    bend = np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2)))
    r_t = -2 * np.sqrt(strong**7 / (strong**7 + 25.0**7)) * np.sin(bend)
    parts = (
        (l2 - l1) / s_l,
        (c2 - c1) / s_c,
        2 * np.sqrt(c1 * c2) * np.sin(turn / 2) / s_h,
    )
    return float(np.sqrt(sum(part**2 for part in parts) + r_t * parts[1] * parts[2]))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1, 2), (50, 0, 0), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_difference_is_that_of_the_published_pairs(
    first: tuple[float, ...], second: tuple[float, ...], expected: float
) -> None:
    """Of table 1 of the paper."""
    assert difference(np.array(first), np.array(second)) == pytest.approx(expected, abs=1e-4)


def one_side(name: str) -> str:
    return re.sub(r"^(Left|Right) ", "", name)


def test_both_sides_of_a_structure_have_one_colour() -> None:
    for label in LABELS:
        assert {COLORS[name] for name in COLORS if one_side(name) == one_side(label.name)} == {
            label.color
        }


def test_any_two_structures_can_be_told_apart() -> None:
    """Any two, because in one head or another most of them touch."""
    colors = {one_side(name): color for name, color in COLORS.items()}
    for (first, a), (second, b) in itertools.combinations(colors.items(), 2):
        assert difference(lab(a), lab(b)) >= APART, (first, second)


@pytest.mark.parametrize("background", TABLES)
def test_every_colour_is_seen_in_the_table(background: str) -> None:
    behind = lab([int(background[n : n + 2], 16) for n in (1, 3, 5)])
    for name, color in COLORS.items():
        assert difference(lab(color), behind) >= APART, name


def test_no_colour_is_one_of_the_greys_of_an_image() -> None:
    greys = [lab([value] * 3) for value in range(0, 256, 3)]
    for name, color in COLORS.items():
        assert min(difference(lab(color), grey) for grey in greys) >= FROM_GREY, name


@pytest.mark.slow
def test_neighbours_of_a_real_head_can_be_told_apart(shared_data: Path) -> None:
    import nibabel

    image: Any = nibabel.load(sorted((shared_data / "brain-label-maps").glob("*.nii.gz"))[0])
    values = np.asarray(image.dataobj).astype(np.int32)
    names = {label.value: label.name for label in LABELS}
    touching = set()
    for axis in range(3):
        along = np.moveaxis(values, axis, 0)
        pairs = np.stack([along[:-1].ravel(), along[1:].ravel()], axis=1)
        for a, b in np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).tolist():
            if a in names and b in names and one_side(names[a]) != one_side(names[b]):
                touching.add((names[a], names[b]))
    assert len(touching) > 100
    for first, second in touching:
        assert difference(lab(COLORS[first]), lab(COLORS[second])) >= APART, (first, second)


def test_the_fluid_does_not_hide_the_brain() -> None:
    opacity = {label.name: label.opacity_3d for label in LABELS}
    assert opacity.pop("Cerebrospinal fluid") == 0
    assert set(opacity.values()) == {1.0}
