"""How long, how wide and how dangerous code may be, as functions over source text."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator

import parsed

FILE_LINES = 600
FUNCTION_LINES = 70
ARGUMENTS = 6

# Split, so that this file does not name what it looks for.
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
OWN_PATHS = re.compile(r"(?<![\w.])/(wor" + r"k|roo" + r"t)/\w")

# Calls that run untrusted code, and the keyword that makes them safe where there is one.
DANGEROUS: dict[str, tuple[str, object] | None] = {
    "eval": None,
    "exec": None,
    "os.system": None,
    "marshal.load": None,
    "marshal.loads": None,
    "pickle.load": None,
    "pickle.loads": None,
    "pickle.Unpickler": None,
    "shelve.open": None,
    "torch.load": ("weights_only", True),
    "yaml.load": None,
}
DANGEROUS_KEYWORDS = {"allow_pickle": True, "shell": True}


def size_problems(source: str) -> Iterator[str]:
    """Files, functions and argument lists that do not fit on a screen."""
    lines = len(source.splitlines())
    if lines >= FILE_LINES:
        yield f"1: {lines} lines in one file; the limit is {FILE_LINES}"
    for node in parsed.nodes(source):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES:
            yield f"{node.lineno}: {node.name} has {length} lines; the limit is {FUNCTION_LINES}"
        count = len(_argument_names(node))
        if count > ARGUMENTS:
            yield f"{node.lineno}: {node.name} takes {count} arguments; the limit is {ARGUMENTS}"


def _argument_names(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [argument.arg for argument in given if argument.arg not in {"self", "cls"}]


def danger_problems(source: str) -> Iterator[str]:
    """Calls that would run code out of a file or a string, however they were imported."""
    nodes = parsed.nodes(source)
    names = dict(_imported_names(nodes))
    for node in nodes:
        if isinstance(node, ast.List) and _starts_unsafe_python(node):
            yield f"{node.lineno}: starts Python without -P, which looks for modules in the working folder"
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = ast.unparse(node.func).partition(".")
        function = names.get(first, first) + dot + rest
        keywords = {item.arg: getattr(item.value, "value", None) for item in node.keywords}
        if function in DANGEROUS:
            cure = DANGEROUS[function]
            if cure is None:
                yield f"{node.lineno}: calls {function}"
            elif keywords.get(cure[0]) != cure[1] and not _has_own_unpickler(node):
                yield f"{node.lineno}: calls {function} without {cure[0]}={cure[1]}"
        for keyword, value in DANGEROUS_KEYWORDS.items():
            if keywords.get(keyword) is value:
                yield f"{node.lineno}: calls {function} with {keyword}={value}"


def _starts_unsafe_python(command: ast.List) -> bool:
    """Whether a command begins with this Python and may find an untrusted `json.py` in the working folder."""
    words = [ast.unparse(item) for item in command.elts]
    runs_module = "'-m'" in words or "'-c'" in words
    return words[:1] == ["sys.executable"] and runs_module and "'-P'" not in words


def _has_own_unpickler(node: ast.Call) -> bool:
    """`torch.load(…, pickle_module=restricted)` reads what weights-only loading cannot.

    That the unpickler is restricted is for its own tests to show.
    """
    given = [ast.unparse(item.value) for item in node.keywords if item.arg == "pickle_module"]
    return bool(given) and given != ["pickle"]


def _imported_names(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    yield alias.asname, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def text_problems(source: str) -> Iterator[str]:
    """Unfinished work, and paths of the machine that somebody wrote the file on."""
    for number, line in enumerate(source.splitlines(), start=1):
        if UNFINISHED.search(line):
            yield f"{number}: left unfinished: {line.strip()}"
        if OWN_PATHS.search(line):
            yield f"{number}: names a path of one machine: {line.strip()}"


CODE_RULES: tuple[Callable[[str], Iterator[str]], ...] = (
    size_problems,
    danger_problems,
    text_problems,
)
