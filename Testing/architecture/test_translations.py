"""Every text that the Slicer side shows reaches the translators of Slicer."""

import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import PySide6
import pytest

from translation_rules import as_lupdate_reads, context_of, problems, translated

MODULE = Path(__file__).resolve().parents[2] / "MedSegAI"
LUPDATE = Path(PySide6.__file__).parent / "lupdate"
FILES = [
    path
    for path in (MODULE / "MedSegAI.py", *sorted((MODULE / "MedSegAILib").rglob("*.py")))
    if path.name != "self_test.py"  # what it reports is for developers
]
SHOWN_PROPERTIES = {"text", "toolTip", "title", "placeholderText", "noneDisplay"}


def test_every_text_is_a_literal_where_it_is_translated() -> None:
    assert len(FILES) > 60, "the Slicer side was not found"
    found = [
        f"{path.relative_to(MODULE)}:{problem}"
        for path in FILES
        for problem in problems(path.read_text())
    ]
    assert not found, "\n".join(found)


def test_lupdate_finds_every_text(tmp_path: Path) -> None:
    """The files are rewritten as Slicer's script does it, and collected by Qt's own program."""
    wanted, copies = set(), []
    for number, path in enumerate(FILES):
        source = path.read_text()
        in_package = (path.parent / "__init__.py").exists()
        context = context_of(path.parent.name, path.stem, in_package)
        wanted |= {(context, text) for text in translated(source)}
        copies.append(tmp_path / f"{number}.py")
        copies[-1].write_text(as_lupdate_reads(source, context))
    collected = tmp_path / "en-US.ts"
    subprocess.run([LUPDATE, *copies, "-ts", collected], check=True, capture_output=True)
    found = {
        (context.findtext("name"), message.findtext("source"))
        for context in ElementTree.parse(collected).iter("context")
        for message in context.iter("message")
    }
    assert len(wanted) > 300
    assert wanted <= found, sorted(wanted - found)


def test_the_page_offers_its_texts_and_nothing_else_for_translation() -> None:
    """Qt extracts every string of a page but those that are marked; a translated class name finds no node."""
    page = ElementTree.parse(MODULE / "Resources" / "UI" / "MedSegAI.ui")
    offered = {
        str(item.get("name"))
        for item in page.iter("property")
        for text in item
        if text.tag in ("string", "stringlist") and text.get("notr") != "true"
    }
    assert {"text", "toolTip"} <= offered
    assert offered <= SHOWN_PROPERTIES, offered - SHOWN_PROPERTIES


@pytest.mark.parametrize(
    "source",
    [
        "_(NO_MODEL)",
        "_(title_of(option))",
        '_("one" if few else "many")',
        '_(f"{name} is empty")',
        '_("{name} is empty".format(name=name))',
        "_('')",
        "text = f\"{_('Licence')}: {name}\"",
        "duration(3, _)",
        'button.text = "Segment"',
        'button.toolTip = f"Removes {name}"',
        'button.setText("Segment" if ready else _("Wait"))',
        'qt.QLabel("Folder")',
        'form.addRow("Files", row)',
        'table.setHorizontalHeaderLabels(["Case", _("State")])',
        'raise InputError(f"{name} is not a volume.")',
        'raise InputError("no volume of {name}".format(name=name))',
        'MODES = (("new", "New segmentation"),)',
        'REASON = "Choose another folder."',
    ],
)
def test_a_text_that_no_translator_sees_is_found(source: str) -> None:
    assert list(problems(source))


@pytest.mark.parametrize(
    "source",
    [
        'NO_MODEL = _("There is no model.")',
        'text = _("{name} is empty").format(name=name)',
        'raise InputError(NO_MODEL.format(name="Left"))',
        'button.objectName = "segmentButton"',
        'button.text = f"{mark} {name}"',
        'logger.exception("The result of %s could not be used", name)',
        'item.setText(TITLES["checked"])',
        'def f():\n    """Return the text."""',
        'node.GetAttribute("Modality")',
    ],
)
def test_other_texts_are_left_alone(source: str) -> None:
    assert not list(problems(source))
