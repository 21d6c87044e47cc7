"""A process that reads made files until one does harm: `python fuzz_child.py TARGET FOLDER SEED COUNT [FILE...]`.

Each file lies in FOLDER/current before it is read, so that whoever started this process has it when it ends. It
ends with 0, or with 1 and a line that says what was found. Files that are named are read as they are; else `COUNT`
files are made by Hypothesis from sound ones and from the corpus.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzz_targets import TARGETS, Target
from medsegai.errors import MedSegAIError
from medsegai.system.confinement import limit

CORPUS = Path(__file__).parent / "corpus"
SECONDS, MEMORY = 30.0, 600 << 20
"""Processor time of one file, and how much more memory than before; a sound file takes nothing beside them."""

NASTY = (0, 1, -1, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1e308,
        -0.5,
        10**30,
        "",
        "x" * 300,
        "../../x",
        "\x00",
        "\ud800",
        "<b>",
        "=1+1",
    ),
    *([], {}, [[]], [None] * 50, {"a": {"a": {"a": []}}}, json.loads("[" * 200 + "]" * 200)),
)

TEXT = st.text(max_size=20)
TEXT.validate()  # makes Hypothesis's table of characters, a second, before children are forked


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A sound file with a few changes of bytes."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        change = draw(st.sampled_from(("flip", "set", "number", "cut", "drop", "double", "text")))
        if change == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "set" and content:
            content[place] = draw(st.integers(0, 255))
        elif change == "number":
            size, order = (
                draw(st.sampled_from((1, 2, 4, 8))),
                draw(st.sampled_from(("little", "big"))),
            )
            number = draw(st.sampled_from(NASTY)) % (1 << 8 * size)
            content[place : place + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
        elif change == "cut":
            del content[place:]
        elif change == "drop":
            del content[place : place + draw(st.integers(1, 64))]
        elif change == "double":
            content[place:place] = content[place : place + draw(st.integers(1, 64))]
        else:
            content[place:place] = draw(TEXT).encode(errors="surrogatepass")
    return bytes(content)


@st.composite
def changed(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A JSON file, or lines of it, in which a value or a key is another."""
    texts = draw(st.sampled_from(seeds)).decode(errors="replace").splitlines()
    try:
        values = [json.loads("\n".join(texts))]
    except ValueError:
        try:
            values = [json.loads(line) for line in texts]
        except ValueError:
            return draw(damaged(seeds))
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, draw(st.sampled_from(values)))
    return "\n".join(json.dumps(value) for value in values).encode()


def _change(draw: st.DrawFn, value: Any) -> None:
    """Walk down from `value`, and put something else in the place where the walk ends."""
    while isinstance(value, dict | list) and value:
        keys = sorted(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw(st.sampled_from(keys))
        inner = value[key]
        if not (isinstance(inner, dict | list) and inner) or draw(st.integers(0, 3)) == 0:
            what = draw(st.sampled_from(("value", "value", "value", "remove", "add")))
            if what == "value":
                value[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
            elif what == "remove":
                del value[key]
            elif isinstance(value, dict):
                value[draw(st.text(max_size=5))] = copy.deepcopy(draw(st.sampled_from(VALUES)))
            else:
                value.append(copy.deepcopy(draw(st.sampled_from(VALUES))))
            return
        value = inner


class Finding(Exception):
    """A file did harm; the words say which."""


class Reader:
    """Reads one file after another, and looks at what that does."""

    def __init__(self, target: Target, folder: Path) -> None:
        self._target, self._folder = target, folder
        self.count = 0

    def __call__(self, content: bytes) -> None:
        self.count += 1
        (self._folder / "current").write_bytes(content)
        own = self._folder / "own"
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        time_before, memory_before = time.process_time(), _peak()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._target.run(content, own)
        except MedSegAIError as error:
            str(error).encode("utf-8", "backslashreplace")
        took, more = time.process_time() - time_before, _peak() - memory_before
        if more > MEMORY:  # before the time, because memory that is filled takes time as well
            raise Finding(f"took {more >> 20} MB")
        if took > SECONDS:
            raise Finding(f"took {took:.0f} s")
        if sorted(path.name for path in self._folder.iterdir()) != ["current", "own"]:
            raise Finding("wrote beside its folder")


def _peak() -> int:
    """Largest memory of this program in bytes. `ru_maxrss` is no less than that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def kept(target: Target) -> list[bytes]:
    folder = CORPUS / target.name
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def made(target: Target, number: int, count: int, read: Callable[[bytes], None]) -> None:
    """Read `count` files that Hypothesis makes; the same number makes the same files."""
    seeds = target.seeds()
    contents = damaged([*seeds, *kept(target)])
    if target.text:
        contents = st.one_of(contents, changed(seeds))

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(contents)
    def run(content: bytes) -> None:
        read(content)

    run()


def main(name: str, folder: str, number: str, count: str, *files: str) -> int:
    target = TARGETS[name]
    os.chdir(folder)
    read = Reader(target, Path(folder))
    for content in target.seeds():
        read(content)  # what is loaded once is not counted, and a sound file must be read
    limit(3 << 30, 3600, 1 << 30)
    try:
        for file in files:
            read(Path(file).read_bytes())
        if not files:
            for content in kept(target):
                read(content)
            made(target, int(number), int(count), read)
    except BaseException as error:
        logging.exception("a finding")
        print(f"{type(error).__name__}: {error}"[:300].replace("\n", " "))
        return 1
    print(read.count)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
