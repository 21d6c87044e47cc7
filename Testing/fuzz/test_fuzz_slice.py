"""A short slice of `make fuzz`: the corpus, and the same few made files each time, in children with limits."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import fuzzing
from fuzz_targets import TARGETS
from fuzzing import HERE, child

COUNT = 40


@pytest.mark.parametrize("target", TARGETS)
def test_made_files_do_no_harm(target: str) -> None:
    read, said, content = child(target, 0, COUNT)
    assert said == "", f"{said}\nthe file: {content[:2000]!r}"
    assert read > COUNT // 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("os.abort()", "signal 6"),
        ("raise SystemExit", "SystemExit"),
        ("(folder.parent / 'beside').touch()", "wrote beside"),
        ("keep.append(b'x' * (700 << 20))", "MB"),
        ("while time.process_time() < end: pass", "took 2 s"),
        ("time.sleep(100)", "did not come to its next file"),
    ],
)
def test_harm_is_found(
    body: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fuzzer itself: a reader that does one of these is told, with the file that made it."""
    code = f"""
import os, sys, time
import fuzz_child
import fuzz_targets
from fuzz_targets import Target

keep = []
def run(content, folder):
    if b"evil" in content:
        {body}

def main(*arguments):
    global end
    fuzz_targets.TARGETS["evil"] = Target("evil", lambda: [b"good"], run)
    fuzz_child.SECONDS = 1
    end = time.process_time() + 2
    return fuzz_child.main(*arguments)
"""
    (tmp_path / "evil_child.py").write_text(code)
    (tmp_path / "evil").write_bytes(b"evil")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "evil_child", raising=False)
    evil = importlib.import_module("evil_child")
    monkeypatch.setattr(fuzzing, "PATIENCE", 10.0 if "sleep" in body else 300.0)
    read, said, content = child("evil", 0, 1, tmp_path / "evil", main=evil.main)
    assert (read, content) == (0, b"evil")
    assert words in said


def test_the_corpus_is_of_known_targets() -> None:
    corpus = HERE / "corpus"
    assert {folder.name for folder in corpus.iterdir()} <= set(TARGETS)
    assert all(list(folder.iterdir()) for folder in corpus.iterdir())
