"""Which PyTorch loads a file of weights without running what is in it."""

from __future__ import annotations

import re

SOUND_TORCH = (2, 10)
"""The first without CVE-2026-24747: before, `torch.load` with `weights_only` could be made to write in memory."""


def is_sound(version: str) -> bool:
    """Whether `torch.load` of this version, such as "2.10.0+cu128", is safe with `weights_only`."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) >= SOUND_TORCH
