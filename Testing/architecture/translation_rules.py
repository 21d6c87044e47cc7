"""What Slicer's translators get to see of a file of the Slicer side, as functions over its source.

Slicer's scripts rewrite `_("text")` to `translate("context", "text")` and let Qt's lupdate collect the
texts. They read the source and do not run it, so they see literals only. The context is the name of the file,
so a text is translated only where it was written.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import parsed

TRANSLATE = "_"
CALL_OF_A_LITERAL = re.compile(r"(?<!\w)_\((?=\s*[\"'])")

# Attributes of widgets, and calls, that show a text.
SHOWN_ATTRIBUTES = re.compile(
    r"(text|toolTip|statusTip|whatsThis|title|windowTitle|placeholderText|html|noneDisplay)$"
)
SHOWING_CALLS = re.compile(
    r"(set(Text|ToolTip|StatusTip|Title|WindowTitle|PlaceholderText|Html|HorizontalHeaderLabels)"
    r"|add(Item|Row|Action|Menu|LabeledOptionsWidget)|Q(Label|PushButton|RadioButton|CheckBox|GroupBox|Action|Menu)"
    r"|check_box|text_item|say|confirm|show_(message|status)|showMessage|\w+Error|Cancelled)$"
)
LOGGING_CALLS = {"guarded", "debug", "info", "warning", "error", "exception"}
WORD = re.compile(r"[A-Za-z]{2}")
PROSE = re.compile(r"[A-Z][a-z]+('s)? [a-z(]|.*[a-z]\.$", re.DOTALL)

NOT_TRANSLATED = frozenset(
    (
        "MedSegAI",
        "MedSegAI: ",
        "The MedSegAI contributors",
        "The errors are in the log above.",  # of the self-test, for developers
        "finding",
        "font-weight: bold; ",
        # Slicer's names of representations.
        "Closed surface",
        "Fractional labelmap",
        "Planar contour",
        # Columns of tables, by which other modules and scripts find them in a saved scene.
        "At border",
        "Mean entropy",
        "Mean of channel ",
    )
)


def context_of(folder: str, stem: str, in_package: bool) -> str:
    """The context in which Slicer looks for the translations of a file."""
    return f"{folder}.{stem}" if in_package else stem


def as_lupdate_reads(source: str, context: str) -> str:
    """The source with `translate` and its context in place of `_`."""
    return CALL_OF_A_LITERAL.sub(f'translate("{context}", ', source)


def translated(source: str) -> set[str]:
    """The texts that reach the translation when the code runs, as far as they are literals."""
    return {
        argument.value
        for call in _calls(parsed.tree(source))
        for argument in call.args
        if isinstance(argument, ast.Constant)
    }


def problems(source: str) -> Iterator[str]:
    """Texts that no translator sees, with their lines."""
    tree = parsed.tree(source)
    yield from _hidden_calls(tree)
    hidden = {id(node) for call in _calls(tree) for node in ast.walk(call)} | set(_silent(tree))
    shown = {id(node) for node in _shown(tree)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in hidden
        ):
            text = node.value
            reads = WORD.search(text) if id(node) in shown else PROSE.match(text)
            if reads and text not in NOT_TRANSLATED:
                yield f"{node.lineno}: {text!r} is shown but not translated; wrap it in _()"


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node) == TRANSLATE
    ]


def _name(call: ast.Call) -> str:
    function = call.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def _hidden_calls(tree: ast.AST) -> Iterator[str]:
    """Uses of `_` whose text lupdate does not find."""
    calls = _calls(tree)
    for call in calls:
        texts = [*call.args, *(keyword.value for keyword in call.keywords)]
        literal = len(texts) == 1 and isinstance(texts[0], ast.Constant) and texts[0].value
        if not literal or not isinstance(literal, str):
            yield f"{call.lineno}: {ast.unparse(call)} does not translate a literal"
    for formatted in (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)):
        for call in _calls(formatted):
            yield f"{call.lineno}: {ast.unparse(call)} stands in an f-string; use format"
    called = {id(call.func) for call in calls}
    for node in ast.walk(tree):
        is_use = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        if is_use and node.id == TRANSLATE and id(node) not in called:
            yield f"{node.lineno}: the translation is passed on; translate where the text is written"


def _silent(tree: ast.AST) -> Iterator[int]:
    """The constants that nobody reads on the screen: docstrings, and what is logged."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield id(node.value)
        if isinstance(node, ast.Call) and _name(node) in LOGGING_CALLS:
            yield from (id(inner) for argument in node.args for inner in ast.walk(argument))


def _shown(tree: ast.AST) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            names = [target.attr for target in node.targets if isinstance(target, ast.Attribute)]
            if any(map(SHOWN_ATTRIBUTES.match, names)):
                yield from _pieces(node.value)
        elif isinstance(node, ast.Call) and SHOWING_CALLS.match(_name(node)):
            for argument in node.args:
                yield from _pieces(argument)


def _pieces(value: ast.AST) -> Iterator[ast.Constant]:
    """The literals that an expression is put together from, without arguments of calls and keys."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value
    elif isinstance(value, ast.Call):
        if _name(value) == "format" and isinstance(value.func, ast.Attribute):
            yield from _pieces(value.func.value)
    elif isinstance(value, ast.IfExp):
        yield from _pieces(value.body)
        yield from _pieces(value.orelse)
    elif not isinstance(value, ast.Subscript | ast.Compare | ast.Dict):
        for part in ast.iter_child_nodes(value):
            yield from _pieces(part)
