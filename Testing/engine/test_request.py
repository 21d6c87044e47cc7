"""The one list of options: defaults, choices, types, and a result's report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsegai.errors import RequestError
from medsegai.labels import Label
from medsegai.request import (
    SegmentationRequest,
    SegmentationResult,
    StructureMeasures,
    request_from_options,
    request_options,
)
from medsegai.volume import Geometry, Volume

IMAGE = (Path("head.nii.gz"),)


def test_every_option_has_help_a_default_and_valid_choices() -> None:
    options = list(request_options())
    assert {"models", "members", "fusion", "device", "uncertainty"} <= {o.name for o in options}
    for option in options:
        assert len(option.metadata["help"]) > 10, option.name
        choices = option.metadata["choices"]
        assert not choices or option.default in choices, option.name


def test_inputs_are_no_option() -> None:
    assert "inputs" not in {option.name for option in request_options()}


def test_the_defaults_make_a_request() -> None:
    request = SegmentationRequest(IMAGE)
    assert request.models == ("brain",)
    assert request.options()["device"] == "auto"


def test_options_survive_json() -> None:
    sent = SegmentationRequest(IMAGE, models=("a", "b"), dropout_passes=5, uncertainty=True)
    options = json.loads(json.dumps(sent.options()))
    assert request_from_options(IMAGE, options) == sent


@pytest.mark.parametrize(
    "options",
    [
        {"models": ()},
        {"fusion": "median"},
        {"backend": "tensorflow"},
        {"precision": "int8"},
        {"dropout_passes": -1},
        {"dropout_passes": 1001},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(options: dict[str, Any]) -> None:
    (name,) = options
    word = {"models": "model"}.get(name, name.replace("_", "-"))
    with pytest.raises(RequestError, match=word):
        SegmentationRequest(IMAGE, **options)


def test_a_request_without_input_is_refused() -> None:
    with pytest.raises(RequestError, match="no input image"):
        SegmentationRequest(())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("models", "brain"),
        ("members", "axial"),
        ("device", 0),
        ("uncertainty", "yes"),
        ("uncertainty", 1),
        ("dropout_passes", "10"),
        ("dropout_passes", 10.0),
        ("dropout_passes", True),
        ("seed", None),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=name):
        request_from_options(IMAGE, {name: value})


def test_an_unknown_option_is_refused_and_the_known_are_listed() -> None:
    with pytest.raises(RequestError, match=r"'tta'.*fusion.*device"):
        request_from_options(IMAGE, {"tta": True})


def test_a_list_stands_for_a_tuple() -> None:
    assert request_from_options(IMAGE, {"members": ["axial"]}).members == ("axial",)


def test_the_report_is_json_whatever_was_measured() -> None:
    label = Label(3, "Left-Thalamus", (0, 118, 14))
    volume = Volume(np.zeros((1, 1, 2), np.uint8), Geometry.from_spacing((1, 1, 2), (1, 1, 1)))
    measures = StructureMeasures(label, 0, 0.0, volume_cv=math.nan, pairwise_dice=0.5)
    report = SegmentationResult(volume, (label,), (measures,)).report()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    (structure,) = report["structures"]
    assert structure["name"] == "Left-Thalamus"
    assert structure["value"] == 3
    assert structure["volume_cv"] is None
    assert structure["pairwise_dice"] == 0.5
    assert "Not for diagnostic use" in report["notice"]
