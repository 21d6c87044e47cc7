"""The decoding process, which handles one request after another until its pipe ends.

Requests are lines of JSON; an answer is a line of JSON, followed by the bytes of an array if there is one.
"""

import importlib
import json
import os
import sys
import time
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from medsegai.errors import MedSegAIError
from medsegai.system.guarding import attempt

Answer = tuple[dict[str, Any], memoryview]


def answer(asked: dict[str, Any]) -> Answer:
    """Return the result of the function that a request names, such as "itk.header", or why it failed.

    All errors of a file are caught, because the next file may be valid.
    """
    return attempt(partial(_called, asked), _failure)


def _called(asked: dict[str, Any]) -> Answer:
    module, name = asked["what"].split(".")
    function = getattr(importlib.import_module(f"medsegai.decoding.{module}"), name)
    limit(asked["memory"], asked["seconds"])  # without the memory of its libraries
    given = function(**asked["arguments"])
    if not isinstance(given, np.ndarray):
        return given, memoryview(b"")
    given = np.ascontiguousarray(given)
    return {"shape": given.shape, "kind": given.dtype.str}, given.data.cast("B")


def _failure(error: Exception) -> Answer:
    if isinstance(error, MedSegAIError):
        return {"refusal": str(error)}, memoryview(b"")
    return {"error": f"{type(error).__name__}: {error}"}, memoryview(b"")


def limit(memory: int, seconds: float) -> None:
    """Limit further memory and processor time; without effect on Windows."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            in_use = int(file.read().split()[0]) * resource.getpagesize()
        for kind, soft in (
            (resource.RLIMIT_AS, in_use + memory),
            (resource.RLIMIT_CPU, int(time.process_time() + seconds) + 1),
        ):
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (soft if hard < 0 else min(soft, hard), hard))
    except (ImportError, OSError, ValueError):
        return


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    for line in requests:
        asked = json.loads(line)
        words, data = answer(asked)
        words["bytes"] = len(data)
        answers.write(json.dumps(words).encode() + b"\n")
        answers.write(data)
        answers.flush()


def main() -> None:
    """Serve standard input and output; the output of libraries is discarded, because it may quote a header."""
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    with os.fdopen(answers, "wb") as stream:
        serve(sys.stdin.buffer, stream)
