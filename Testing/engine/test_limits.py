"""Limits: every number within them passes, and a message about another one says what it may be."""

import math

import pytest

from medsegai.errors import ModelError, RequestError
from medsegai.models.json_fields import number
from medsegai.models.limits import Limits
from medsegai.refinements import parse
from medsegai.request import SegmentationRequest

LIMITS = [Limits(0, 1), Limits(0, 1, above=True), Limits(1), Limits(most=5), Limits(-2.5, 2.5)]
NUMBERS = [-math.inf, -3, -2.5, 0, 0.0, 1e-9, 0.5, 1, 1.5, 2.5, 5, 6, math.inf]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("value", NUMBERS)
def test_numbers_within_limits_pass_and_no_others(limits: Limits, value: float) -> None:
    above = value > limits.least if limits.above else value >= limits.least
    inside = above and value <= limits.most and math.isfinite(value)
    assert (limits.problem(value) is None) == inside


@pytest.mark.parametrize("limits", [*LIMITS, Limits()])
def test_what_is_not_a_number_is_never_within_limits(limits: Limits) -> None:
    assert "nan" in str(limits.problem(math.nan))


@pytest.mark.parametrize(
    ("limits", "value", "words"),
    [
        (Limits(0, 1), 2, "must lie between 0 and 1, not 2"),
        (Limits(0, 2**32 - 1), -1, "must lie between 0 and 4294967295, not -1"),
        (Limits(0, 1, above=True), 0.0, "must be more than 0 and at most 1, not 0"),
        (Limits(1), 0, "must be at least 1, not 0"),
        (Limits(0, above=True), 0, "must be more than 0, not 0"),
        (Limits(most=5), 6, "must be at most 5, not 6"),
        (Limits(0, 1), (0.5, 1.5), "must lie between 0 and 1, not 1.5"),
        (Limits(0, ascending=True), (2.0, 1.0), "is a range, so 2 must not be more than 1"),
    ],
)
def test_the_message_says_what_the_number_may_be(
    limits: Limits, value: float | tuple[float, ...], words: str
) -> None:
    assert limits.problem(value) == words


def test_cards_requests_and_refinements_say_it_alike() -> None:
    with pytest.raises(ModelError, match=r"^dice must lie between 0 and 1, not 2\.$"):
        number(2, "dice", 0, 1)
    with pytest.raises(RequestError, match=r"^dropout-passes must lie between 0 and 1000, not -1"):
        SegmentationRequest(("scan.nii.gz",), dropout_passes=-1)
    with pytest.raises(
        RequestError, match=r"islands:smallest_ml must lie between 0 and .*, not -1"
    ):
        parse("islands:smallest_ml=-1")
