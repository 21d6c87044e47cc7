"""What the panel says is understood by a clinician: no jargon of evaluations, and no identifiers."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from MedSegAILib.scene.structures import MEASURES
from panel_help import REPOSITORY, UI

LIBRARY = REPOSITORY / "MedSegAI" / "MedSegAILib"
JARGON = re.compile(r"(?i)\b(dice|iou|entropy|nats|logits?|sigma|members?|argmax|softmax)\b")
IDENTIFIER = re.compile(r"\b[a-z]+(_[a-z]+)+\b")
TECHNICAL = ("Measured: ", "Expected Dice with an expert's segmentation: ")
"""Beginnings of lines at the end of tool tips, for those who know the terms: `MEASURES` stand in them."""


def translated() -> Iterator[tuple[str, str]]:
    """File and text of everything that goes through the translation."""
    for path in sorted(LIBRARY.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_":
                for argument in node.args:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield path.name, argument.value


def on_the_page() -> Iterator[tuple[str, str]]:
    for element in ElementTree.parse(UI).iter("string"):
        if element.text and element.get("notr") != "true":
            yield UI.name, element.text


SAID = sorted({*translated(), *on_the_page()})


def plain(text: str) -> str:
    """Without what is filled in, commands in backticks, and paths."""
    return re.sub(r"\{[^}]*\}|`[^`]*`|\S*/\S*|\*\.\S+", "", text)


def test_there_is_something_to_check() -> None:
    assert len(SAID) > 200
    assert JARGON.search("a Dice of about 0.60 is to be expected")
    assert IDENTIFIER.search("Refine: largest_component")


def test_every_sentence_is_in_plain_words() -> None:
    said = [
        (file, text)
        for file, text in SAID
        if not text.startswith(TECHNICAL) and text not in MEASURES.values()
    ]
    assert [item for item in said if JARGON.search(plain(item[1]))] == []


def test_no_identifier_is_on_the_screen() -> None:
    assert [item for item in SAID if IDENTIFIER.search(plain(item[1]))] == []
