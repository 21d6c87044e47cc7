"""Documents, docstrings, comments and messages are in plain English, as far as patterns can tell."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import prose_rules

REPOSITORY = Path(__file__).resolve().parents[2]


def documents() -> Iterator[Path]:
    for folder in ("*", "docs/**/*", ".github/**/*"):
        yield from sorted(REPOSITORY.glob(f"{folder}.md"))


def sources() -> Iterator[Path]:
    for folder in ("MedSegAI", ".ci", "Testing/architecture", "Testing/bench"):
        yield from sorted((REPOSITORY / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def in_code(path: Path) -> list[str]:
    texts = prose_rules.python_prose(path.read_text())
    return [found for text in texts for found in prose_rules.problems(text)]


def test_documents_are_in_plain_english() -> None:
    paths = list(documents())
    assert REPOSITORY / "README.md" in paths
    found = [
        f"{name_of(path)}: {problem}"
        for path in paths
        for problem in prose_rules.problems(prose_rules.markdown_prose(path.read_text()))
    ]
    assert not found, "\n".join(found)


def test_code_is_in_plain_english() -> None:
    found = [
        f"{name_of(path)}: {problem}"
        for path in sources()
        if path.name not in OURS
        for problem in in_code(path)
    ]
    assert not found, "\n".join(found)


OURS = {"prose_rules.py", "test_prose.py", "test_public_habits.py"}
"""They name the patterns that are looked for."""

WRONG = [
    "The path is no folder.",
    "These values are no labels.",
    "The file is kept, for it may hold corrections.",
    "The batch is gone on with.",
    "A run goes on from its last checkpoint.",
    "The user is told what is missing.",
    "The listener hears of each change.",
    "What is handed over is checked.",
    "Voxels where the model is in doubt.",
    "Checkpoints from a stranger.",
    "It has 1 voxels.",
]
RIGHT = [
    "There is no folder.",
    "The file is no longer there.",
    "It is kept, because it may hold corrections.",
    "A table, for each structure.",
    "All of it, for a model that was never trained.",
    "Left and right are told apart.",
    "It has 1 voxel and 21 images.",
    "A T1 image of NIfTI-1 files.",
]


@pytest.mark.parametrize("text", WRONG)
def test_private_english_is_found(text: str) -> None:
    source = f'"""{text}"""\n'
    assert list(prose_rules.problems(text))
    assert [p for t in prose_rules.python_prose(source) for p in prose_rules.problems(t)]
    assert [p for t in prose_rules.python_prose(f"# {text}\n") for p in prose_rules.problems(t)]


@pytest.mark.parametrize("text", RIGHT)
def test_plain_english_passes(text: str) -> None:
    assert list(prose_rules.problems(text)) == []


def test_what_runs_over_two_lines_is_found() -> None:
    comment = "x = 1  # a first comment\n\n# the path is\n# no folder\n"
    assert [p for t in prose_rules.python_prose(comment) for p in prose_rules.problems(t)]
    assert list(prose_rules.problems(prose_rules.markdown_prose("It is\nno folder.")))


def test_code_and_words_of_the_screen_are_left_out() -> None:
    page = "`it is no folder` *Hand over…* [a](is-no-page.md)\n```\nit is no folder\n```\n"
    assert list(prose_rules.problems(prose_rules.markdown_prose(page))) == []
