"""Processes with torch and the rest of the engine already loaded: each takes 20 ms to start in place of 3 s.

They are forked from a server that loads these libraries once and does nothing else. A test takes one where it
needs a process that can be limited or killed, and not where it tests how a program starts.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest.mock import patch

CONTEXT = multiprocessing.get_context("forkserver")
LIBRARIES = ("medsegai.engine", "medsegai.families.unet2d", "medsegai.training.run", "fuzz_child")

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def start(
    function: Callable[..., int | None],
    *arguments: object,
    output: Path,
    environment: Mapping[str, str] = os.environ,
) -> ForkServerProcess:
    """Start a process that calls a function and ends with what it returns.

    Args:
        function: one that can be imported by the name of its module.
        output: the file that gets what the process prints.
        environment: all variables of the process. Libraries have read theirs already.
    """
    CONTEXT.set_forkserver_preload(list(LIBRARIES))
    places = os.pathsep.join(filter(None, sys.path))
    with patch.dict(os.environ, ONE_THREAD, PYTHONPATH=places):
        forkserver.ensure_running()
    given = (function, arguments, dict(environment), output)
    process = CONTEXT.Process(target=_call, args=given, daemon=True)
    process.start()
    return process


def _call(
    function: Callable[..., int | None],
    arguments: tuple[object, ...],
    environment: dict[str, str],
    output: Path,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # as the variables say now
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.exit(function(*arguments))
