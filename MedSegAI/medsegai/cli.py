# PYTHON_ARGCOMPLETE_OK: argcomplete looks for this word before it runs the command to complete a line.
"""The `medsegai` command: one parser, and one place where errors become exit codes.

Each command is one file in `medsegai.commands`, with `add_parser` that describes it and a function that
runs it. Nothing heavy is imported before a command needs it, so help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from medsegai import __version__
from medsegai.commands import (
    batch,
    best,
    calibrate,
    classify,
    compare,
    crossval,
    demo,
    dicomweb,
    doctor,
    evaluate,
    export,
    measure,
    models,
    objects,
    refine,
    segment,
    slide,
    train,
    worker,
)
from medsegai.commands.console import sound_streams, terminable
from medsegai.commands.parsing import Parser, complete, help_alone
from medsegai.errors import Cancelled, DeviceError, InputError, MedSegAIError, OutputError
from medsegai.networks.memory import keep_freed_memory
from medsegai.request import NOT_FOR_DIAGNOSIS
from medsegai.system.machine import wait_without_spinning
from medsegai.system.outside_text import one_line, visible_streams

COMMANDS = (
    segment,
    refine,
    measure,
    objects,
    export,
    batch,
    dicomweb,
    demo,
    models,
    doctor,
    evaluate,
    train,
    classify,
    slide,
    crossval,
    compare,
    best,
    calibrate,
    worker,
)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)

EXIT_CODES = """\
exit codes:
  0    done
  1    other error; batch: some cases failed
  2    options contradict each other, or an option is unknown
  3    an input cannot be used
  4    a model is unknown, damaged or refused
  5    a result cannot be written
  6    the device is missing or its memory is not enough; doctor: the main job cannot run
  7    the worker ended unexpectedly
  130  stopped with Ctrl-C or SIGTERM; what was not complete was not written
"""


def build_parser(asked: str = "") -> argparse.ArgumentParser:
    """The whole command line; the documentation is checked against it.

    Args:
        asked: the first word of a line. If it is a command, the others are left out, because to describe them all
            takes several times as long.
    """
    parser = Parser(
        prog="medsegai",
        description=f"AI segmentation of medical images. {NOT_FOR_DIAGNOSIS}",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"medsegai {__version__}")
    help_alone(parser)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    alone = [command for command in COMMANDS if command.__name__.rpartition(".")[2] == asked]
    for command in alone or COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; argparse itself exits with 2 on unknown options."""
    words = list(sys.argv[1:] if argv is None else argv)
    sound_streams()
    with visible_streams(), terminable():
        parser = build_parser(*words[:1])
        complete(parser)
        keep_freed_memory()
        wait_without_spinning()
        return _run(parser.parse_args(words))


def _run(arguments: argparse.Namespace) -> int:
    try:
        code: int = arguments.run(arguments)
    except MedSegAIError as error:
        print(f"medsegai: {one_line(str(error))}", file=sys.stderr)
        code = error.exit_code
    except MemoryError:
        print("medsegai: there is not enough memory. Close other programs.", file=sys.stderr)
        code = DeviceError.exit_code
    except KeyboardInterrupt:
        print("medsegai: stopped.", file=sys.stderr)
        code = Cancelled.exit_code
    except BrokenPipeError:
        code = 0  # our reader has gone (`medsegai models list | head -1`): not an error
    except OSError as error:
        code = _system_error(error)
    return flushed(code)


def _system_error(error: OSError) -> int:
    if error.errno in DISK_FULL:
        return not_printed(error)  # files have other errors: this is what was printed
    if error.filename is None:
        raise error
    return not_opened(error)


def flushed(code: int) -> int:
    """The exit code, once what was printed has left; another one if it cannot, because the disk is full."""
    try:
        sys.stdout.flush()
        return code
    except OSError as error:
        # Python would complain once more when it flushes on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code if isinstance(error, BrokenPipeError) else code or not_printed(error)


def not_opened(error: OSError) -> int:
    """Report a path that cannot even be looked at: its folder is closed to this user, or its name is too long."""
    reason = os.strerror(error.errno or errno.EIO)
    print(
        f"medsegai: {one_line(str(error.filename))} cannot be opened: {reason}. Check the path.",
        file=sys.stderr,
    )
    return InputError.exit_code


def not_printed(error: OSError) -> int:
    reason = os.strerror(error.errno or errno.EIO)
    print(f"medsegai: what was to be printed is lost: {reason}.", file=sys.stderr)
    return OutputError.exit_code
