"""Which versions of PyTorch load a file of weights without running code in it."""

from __future__ import annotations

import re

SOUND_TORCH = (2, 10)
"""The first version without CVE-2026-24747, by which files could corrupt memory despite `weights_only`."""


def is_sound(version: str) -> bool:
    """Whether `torch.load` of this version, such as "2.10.0+cu128", is safe with `weights_only`."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) >= SOUND_TORCH
