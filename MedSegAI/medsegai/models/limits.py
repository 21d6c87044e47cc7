"""What a number may be, and what a message says about one that is too small or too large."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

Numbers: TypeAlias = "float | tuple[Numbers, ...]"


@dataclass(frozen=True)
class Limits:
    """What a number, or each number of a tuple, may be. Infinity and what is not a number are never allowed.

    Attributes:
        least, most: the limits.
        above: whether the number must be more than `least`.
        ascending: whether a pair is a range, whose first number is not larger than the second.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    ascending: bool = False

    def problem(self, value: Numbers) -> str | None:
        """Return what is wrong with a number, or with a tuple of numbers or ranges; None if nothing is."""
        if isinstance(value, tuple):
            match value if self.ascending else ():
                case (int() | float() as low, int() | float() as high) if low > high:
                    return f"is a range, so {low:g} must not be more than {high:g}"
            return next(filter(None, map(self.problem, value)), None)
        outside = value in (math.inf, -math.inf) or not self.least <= value <= self.most
        if not outside and not (self.above and value == self.least):
            return None
        return f"must {self._words()}, not {_text(value)}"

    def _words(self) -> str:
        least, most = _text(self.least), _text(self.most)
        if self.least == -math.inf:
            return "be a number" if self.most == math.inf else f"be at most {most}"
        start = f"be {'more than' if self.above else 'at least'} {least}"
        if self.most == math.inf:
            return start
        return f"{start} and at most {most}" if self.above else f"lie between {least} and {most}"


def _text(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
