"""Patterns that make English read like a translation, as functions over Markdown and Python source."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

import parsed

VERB = r"(?:is|are|was|were|has|have|had|may|might|can|could|must|would|does|do|did|will)\b"

PATTERNS = {
    r"(?<!there )\b(?:is|are|was|were) no (?!longer\b|more\b|such\b|one\b)\w+": '"is not a …"',
    rf", for (?:(?:it|they|he|she|nobody|there) (?!to\b)|(?:this|that|these|those|none|one) (?={VERB})"
    rf"|(?:the|its|their|a|an|each|all|no) [\w']+(?: (?!that\b|who)[\w']+)? (?={VERB}))": '"because"',
    r"\b(?:gone|goes|go|going|went) on (?:with|from|after|where)\b": '"resume" or "continue"',
    r"\b(?:is|are|was|were|be) told\b(?! apart)": '"reported"',
    r"\btold (?:of|with|before|in|as|at|how|what|when|which|after|whether)\b": '"reported"',
    r"\bwhat there is to\b": "a noun",
    r", for (?:with|in|by|at|from)\b(?! (?:which|whom|example))": '"because"',
    r"\bhears? (?:of|how|why|what|so)\b": '"receives"',
    r"\bstands? under a (?:transform|shift)\b": '"has a parent transform"',
    r"\bhand(?:ed|ing|s)?[ -]over\b": '"export"',
    r"\b(?:are|is|were|be) in doubt\b|\bdoubts? (?:of|about|where)\b|\bin doubt\b": '"uncertain"',
    r"\bstrangers?\b(?!s of)": '"untrusted"',
    r"\bwhat (?:is|was) (?:of it|of them)\b": "a noun",
    r"(?<![\w.,-])1 (?:voxels|images|jobs|cases|files|structures)\b": "counts agree with their nouns",
    r"\b(?:lie|lies) apart\b": '"separate"',
    r"\bkept apart\b": '"separate"',
    r"\bby itself alone\b": '"alone"',
    r"\banew\b": '"again"',
    r"\b(?:is|are|was|were|be|been) begun\b": '"started"',
    r"\b(?:is|are|was|were|be|been) parted\b": '"divided" or "separated"',
    r"\b(?:is|are|was|were) none of (?!them\b|these\b|those\b|which\b)": '"is not one of"',
    r"\b(?:is|are) not ones?[.:]": "what it is not",
    r"\bdecided right\b": '"classified correctly"',
    r"\b(?:left|right) less (?:left|right)\b": '"minus"',
}
"""What readers stumble over, and what to write instead."""

_COMPILED = {re.compile(pattern, re.IGNORECASE): advice for pattern, advice in PATTERNS.items()}
_NOT_PROSE = re.compile(r"```.*?```|`[^`\n]*`|\*[^*\n]+\*|\]\([^)]*\)|<!--.*?-->", re.DOTALL)


def problems(prose: str) -> Iterator[str]:
    """What stands in a text that should be said otherwise, with the advice."""
    text = " ".join(prose.split())
    for pattern, advice in _COMPILED.items():
        for match in pattern.finditer(text):
            yield f"{match[0]!r}: {advice}"


def markdown_prose(text: str) -> str:
    """A page without code, links and what is printed as on the screen."""
    return _NOT_PROSE.sub(" ", text)


def code_problems(source: str) -> Iterator[str]:
    """Docstrings, comments and messages of a Python file that should be said otherwise."""
    for text in python_prose(source):
        yield from problems(text)
    yield from headless_docstrings(source)


def headless_docstrings(source: str) -> Iterator[str]:
    """Docstrings, of definitions and of values, that begin with "Of" and so lack what they describe."""
    for node in parsed.nodes(source):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str) and re.match(r"Of (?!course\b)", text):
                yield f"{node.lineno}: {text[:40]!r}: name what is described"


def document_problems(text: str) -> Iterator[str]:
    """Sentences of a Markdown page that should be said otherwise."""
    yield from problems(markdown_prose(text))


def python_prose(source: str) -> Iterator[str]:
    """The docstrings, the strings with at least four words, and the comments of a file."""
    for node in parsed.nodes(source):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield _NOT_PROSE.sub(" ", node.value)
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
    yield from comments(source)


def comments(source: str) -> Iterator[str]:
    """Blocks of comment lines, each as one text."""
    block: list[str] = []
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] != last + 1 and block:
            yield " ".join(block)
            block = []
        block.append(token.string.lstrip("# "))
        last = token.start[0]
    if block:
        yield " ".join(block)
