"""The figures of the code stay at least as good as the developers' page says they are."""

import re
from pathlib import Path

import pytest

from figure_rules import Figures, figures_of

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "developers.md"
ROWS = {
    "median": "lines of a function, median",
    "p95": "lines of a function, 95th percentile",
    "longest": "lines of the longest function",
    "documented": "public functions and classes with a docstring, %",
    "any_per_1000": "`Any` in 1000 lines",
    "broad": "handlers of any exception",
}


@pytest.fixture(scope="module")
def figures() -> Figures:
    paths = [p for p in (REPOSITORY / "MedSegAI").rglob("*.py") if "__pycache__" not in p.parts]
    assert len(paths) > 10, "the code was not found"
    return figures_of(path.read_text(encoding="utf-8") for path in paths)


@pytest.mark.parametrize("name", ROWS)
def test_the_code_is_as_good_as_its_page_says(name: str, figures: Figures) -> None:
    (line,) = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if ROWS[name] in line)
    limit = float(re.findall(r"[\d.]+", line.split("|")[2])[0])
    found = getattr(figures, name)
    if name == "documented":
        assert 100 * found >= limit, (
            f"{100 * found:.1f} %: write docstrings, or the page is not true"
        )
    else:
        assert found <= limit, f"{found:.1f}: shorten the code, or the page is not true"


def test_what_is_counted() -> None:
    text = '''
def one(value: Any) -> Any:
    """Say it."""
    try:
        return value
    except Exception:
        return None


def two():
    def inner(): ...


class Three:
    """Say it."""

    def four(self):
        return 4

    def stub(self): ...

    def _five(self):
        try:
            ...
        except (ValueError, OSError):
            ...
'''
    found = figures_of([text])
    assert (found.longest, found.broad) == (6, 1)
    assert found.documented == pytest.approx(2 / 4)
    assert found.any_per_1000 == pytest.approx(1000 * 2 / len(text.splitlines()))


@pytest.mark.parametrize(
    ("statement", "broad"),
    [
        ("try: ...\nexcept: ...", 1),
        ("try: ...\nexcept BaseException: ...", 1),
        ("try: ...\nexcept (OSError, builtins.Exception) as error: ...", 1),
        ("with contextlib.suppress(Exception): ...", 1),
        ("with suppress(OSError, BaseException): ...", 1),
        ("try: ...\nexcept (OSError, http.client.HTTPException): ...", 0),
        ("with contextlib.suppress(OSError): ...", 0),
    ],
)
def test_handlers_of_anything_are_found_in_every_form(statement: str, broad: int) -> None:
    body = "".join(f"    {line}\n" for line in statement.splitlines())
    assert figures_of([f"def one():\n{body}\ndef two(): ...\n"]).broad == broad
