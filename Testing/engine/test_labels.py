"""Names, colours and codes of structures, and the text that Slicer knows them by."""

from typing import Any

import pytest
from slicerio.segmentation import terminology_entry_from_string

from medsegai.errors import ModelError
from medsegai.labels import Label, Terminology
from medsegai.models.json_fields import from_json, to_json

ANATOMY = ("SCT", "123037004", "Anatomical Structure")
HIPPOCAMPUS = ("SCT", "5366008", "Hippocampus")
LEFT = ("SCT", "7771000", "Left")

LEFT_HIPPOCAMPUS: dict[str, Any] = {
    "value": 17,
    "name": "Left hippocampus",
    "color": [220, 216, 20],
    "terminology": {"category": list(ANATOMY), "type": list(HIPPOCAMPUS), "modifier": list(LEFT)},
}


def test_a_label_survives_its_dictionary() -> None:
    label = from_json(Label, LEFT_HIPPOCAMPUS)
    expected = Label(
        17, "Left hippocampus", (220, 216, 20), Terminology(ANATOMY, HIPPOCAMPUS, LEFT)
    )
    assert label == expected
    assert to_json(label) == LEFT_HIPPOCAMPUS


def test_codes_are_optional() -> None:
    plain = {"value": 1, "name": "Tumour", "color": [255, 0, 0]}
    assert from_json(Label, plain) == Label(1, "Tumour", (255, 0, 0))
    assert to_json(from_json(Label, plain)) == plain


def test_what_nobody_corrects_says_so_and_only_that() -> None:
    fluid = {"value": 24, "name": "Fluid", "color": [60, 60, 60], "corrected": False}
    assert not from_json(Label, fluid).corrected
    assert to_json(from_json(Label, fluid)) == fluid
    assert "corrected" not in to_json(from_json(Label, fluid | {"corrected": True}))


def test_how_opaque_a_surface_is_survives_and_is_checked() -> None:
    fluid = {"value": 24, "name": "Fluid", "color": [60, 60, 60], "opacity_3d": 0}
    assert from_json(Label, fluid).opacity_3d == 0
    assert to_json(from_json(Label, fluid)) == fluid
    assert "opacity_3d" not in to_json(from_json(Label, fluid | {"opacity_3d": 1}))
    for wrong in (-0.1, 1.5, "0.5", True, None):
        with pytest.raises(ModelError, match="opacity_3d"):
            from_json(Label, fluid | {"opacity_3d": wrong})


def test_slicer_finds_every_code_in_its_place() -> None:
    entry = terminology_entry_from_string(Terminology(ANATOMY, HIPPOCAMPUS, LEFT).to_slicer())
    assert entry["contextName"] == "Segmentation category and type - 3D Slicer General Anatomy list"
    assert tuple(entry["category"]) == ANATOMY
    assert tuple(entry["type"]) == HIPPOCAMPUS
    assert tuple(entry["typeModifier"]) == LEFT
    assert entry["anatomicContextName"] == "Anatomic codes - DICOM master list"
    assert "anatomicRegion" not in entry


def test_slicer_finds_no_modifier_where_there_is_none() -> None:
    text = Terminology(ANATOMY, HIPPOCAMPUS).to_slicer()
    assert "typeModifier" not in terminology_entry_from_string(text)
    assert text.count("~") == 6  # seven parts, empty ones too: older Slicer versions count them


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"value": 0}, "start at 1"),
        ({"value": -3}, "start at 1"),
        ({"value": "one"}, "must be a whole number"),
        ({"value": None}, "must be a whole number"),
        ({"name": ""}, "name of one line"),
        ({"name": "  "}, "name of one line"),
        ({"name": "Left\nhippocampus"}, "name of one line"),
        ({"color": [0, 0, 256]}, "0 to 255"),
        ({"color": [-1, 0, 0]}, "0 to 255"),
        ({"color": [0, 0]}, "list of 3 values, each a whole number"),
        ({"color": 7}, "list of 3 values, each a whole number"),
        ({"corrected": "no"}, "true or false"),
        ({"color": ["red", 0, 0]}, r"color\[0\] must be a whole number"),
        ({"colour": [0, 0, 0]}, "unknown key colour"),
        ({"terminology": {"type": list(HIPPOCAMPUS)}}, "terminology: missing key category"),
        (
            {"terminology": {"category": list(ANATOMY), "typ": []}},
            "unknown key typ; known are category, type",
        ),
        (
            {"terminology": {"category": ["SCT"], "type": list(HIPPOCAMPUS)}},
            "category must be a list of 3",
        ),
        (
            {"terminology": {"category": "abc", "type": list(HIPPOCAMPUS)}},
            "category must be a list of 3",
        ),
        (
            {"terminology": {"category": ["SCT", "1", "a|b"], "type": list(HIPPOCAMPUS)}},
            "without",
        ),
        (
            {"terminology": {"category": ["SCT", "1^2", "a"], "type": list(HIPPOCAMPUS)}},
            "without",
        ),
    ],
)
def test_a_label_that_says_nonsense_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        from_json(Label, LEFT_HIPPOCAMPUS | changes)


@pytest.mark.parametrize("missing", ["value", "name", "color"])
def test_a_label_needs_all_its_parts(missing: str) -> None:
    data = {key: value for key, value in LEFT_HIPPOCAMPUS.items() if key != missing}
    with pytest.raises(ModelError, match=f"missing key {missing}"):
        from_json(Label, data)
