"""What was merged stays merged: no two places of the code share many lines."""

from pathlib import Path

import pytest

from duplicate_rules import SHARED_LINES, duplicates

CODE = Path(__file__).resolve().parents[2] / "MedSegAI"


def test_no_two_places_of_the_code_share_many_lines() -> None:
    sources = {
        str(path.relative_to(CODE)): path.read_text(encoding="utf-8")
        for path in CODE.rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert len(sources) > 10, "the code was not found"
    found = [f"{pair.one} ~ {pair.other} ({pair.lines} lines)" for pair in duplicates(sources)]
    assert not found, "\n".join(["Give these one place:", *found])


def numbered(count: int) -> str:
    return "".join(f"        value = step_{number}(value)\n" for number in range(count))


def function(name: str, lines: str) -> str:
    return f"def {name}(value):\n    if value:\n{lines}    return value\n"


@pytest.mark.parametrize("count", [SHARED_LINES - 2, SHARED_LINES - 1, SHARED_LINES, 30])
def test_a_copy_is_found_once_and_whole(count: int) -> None:
    one = function("one", numbered(count))
    other = function("other", "        value = begin(value)\n" + numbered(count))
    found = duplicates({"a.py": one, "b.py": "import os\n\n\n" + other})
    assert len(found) == (count >= SHARED_LINES)
    for pair in found:
        assert {pair.one.path, pair.other.path} == {"a.py", "b.py"}
        assert pair.lines == count


def test_comments_indents_docstrings_and_declared_fields_do_not_matter() -> None:
    plain = "def one(value):\n" + "".join(f"    step_{n}(value)\n" for n in range(SHARED_LINES))
    told = 'class Two:\n    def other(self, value):\n        """Say it."""\n' + "".join(
        f"        # step {n}\n        step_{n}(value)\n" for n in range(SHARED_LINES)
    )
    assert len(duplicates({"a.py": plain, "b.py": told})) == 1
    fields = "class {name}:\n" + "".join(f"    field_{n}: int\n" for n in range(20))
    assert not duplicates({"a.py": fields.format(name="A"), "b.py": fields.format(name="B")})


def test_lines_that_repeat_in_one_place_are_one_place_unless_there_are_many() -> None:
    few = "def one(value):\n" + "    step(value)\n" * SHARED_LINES
    assert not duplicates({"a.py": few})
    many = "def one(value):\n" + "    step(value)\n" * 2 * SHARED_LINES
    assert duplicates({"a.py": many})
