"""Code fits a screen, runs no untrusted code and leaves nothing unfinished."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import code_rules
import prose_rules

REPOSITORY = Path(__file__).resolve().parents[2]
Rule = Callable[[str], Iterator[str]]


@pytest.mark.parametrize(
    "rule", [*code_rules.CODE_RULES, prose_rules.code_problems], ids=lambda rule: rule.__name__
)
def test_the_code_keeps_the_rule(rule: Rule) -> None:
    files = [
        path for path in (REPOSITORY / "MedSegAI").rglob("*.py") if "__pycache__" not in path.parts
    ]
    assert len(files) > 10, "the code was not found"
    found = [
        f"{path.relative_to(REPOSITORY)}:{problem}"
        for path in sorted(files)
        for problem in rule(path.read_text())
    ]
    assert not found, "\n".join(found)


def test_tests_and_documents_are_finished_and_name_no_one_machine() -> None:
    files = [
        path
        for pattern in (
            "*.md",
            "*.cff",
            "Makefile",
            "pyproject.toml",
            ".ci/*",
            ".github/**/*.*",
            ".pre-commit-config.yaml",
            "Resources/*.json",
            "docs/**/*.md",
            "Testing/**/*.py",
        )
        for path in sorted(REPOSITORY.glob(pattern))
        if path.is_file()
    ]
    assert REPOSITORY / "Makefile" in files
    found = [
        f"{path.relative_to(REPOSITORY)}:{problem}"
        for path in files
        for problem in code_rules.text_problems(path.read_text())
    ]
    assert not found, "\n".join(found)


LONG_FUNCTION = "def f():\n" + "    pass\n" * code_rules.FUNCTION_LINES
MANY = ", ".join(f"a{i}" for i in range(code_rules.ARGUMENTS + 1))

OFFENCES: list[tuple[Rule, str]] = [
    (code_rules.size_problems, "pass\n" * code_rules.FILE_LINES),
    (code_rules.size_problems, LONG_FUNCTION),
    (
        code_rules.size_problems,
        "class C:\n" + "".join(f"    {line}\n" for line in LONG_FUNCTION.splitlines()),
    ),
    (code_rules.size_problems, f"def f({MANY}): pass"),
    (code_rules.size_problems, f"async def f(*, {MANY}): pass"),
    (code_rules.danger_problems, "import pickle\npickle.load(file)"),
    (code_rules.danger_problems, "import pickle as p\np.loads(data)"),
    (code_rules.danger_problems, "from pickle import load as read\nread(file)"),
    (code_rules.danger_problems, "import torch\ntorch.load(path)"),
    (code_rules.danger_problems, "import torch\ntorch.load(path, weights_only=False)"),
    (code_rules.danger_problems, "import torch\ntorch.load(path, pickle_module=pickle)"),
    (code_rules.danger_problems, "import numpy as np\nnp.load(path, allow_pickle=True)"),
    (code_rules.danger_problems, "import subprocess\nsubprocess.run(text, shell=True)"),
    (code_rules.danger_problems, "eval(text)"),
    (code_rules.danger_problems, "command = [sys.executable, '-m', 'medsegai.worker']"),
    (code_rules.danger_problems, "run([sys.executable, '-c', text])"),
    (code_rules.text_problems, "# TO" + "DO later"),
    (prose_rules.code_problems, "# This is no" + " comment."),
    (prose_rules.code_problems, 'LIMIT = 3\n"""Of a table of places."""'),
    (prose_rules.code_problems, 'def rows():\n    """Of each voxel its label."""'),
    (code_rules.text_problems, "path = '/roo" + "t/data'"),
]


@pytest.mark.parametrize(("rule", "source"), OFFENCES)
def test_an_offence_is_found(rule: Rule, source: str) -> None:
    assert list(rule(source))


CUSTOMS: list[tuple[Rule, str]] = [
    (code_rules.size_problems, "def f(self, a, b, c, d, e, f, *args, **kwargs): pass"),
    (code_rules.danger_problems, "import torch\ntorch.load(path, weights_only=True)"),
    (code_rules.danger_problems, "import torch\ntorch.load(path, pickle_module=restricted)"),
    (code_rules.danger_problems, "import pickle\nclass Restricted(pickle.Unpickler): pass"),
    (code_rules.danger_problems, "model.eval()"),
    (code_rules.danger_problems, "command = [sys.executable, '-P', '-m', 'medsegai.worker']"),
    (code_rules.text_problems, "see https://example.org/work/ and ../work/x"),
]


@pytest.mark.parametrize(("rule", "source"), CUSTOMS)
def test_what_is_allowed_passes(rule: Rule, source: str) -> None:
    assert list(rule(source)) == []


def test_no_file_of_tests_is_longer_than_a_file_of_code_may_be() -> None:
    lengths = {
        str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines())
        for path in (REPOSITORY / "Testing").rglob("*.py")
        if "__pycache__" not in path.parts
    }
    too_long = {path: lines for path, lines in lengths.items() if lines >= code_rules.FILE_LINES}
    assert lengths
    assert not too_long, "split these by theme"
