"""The parser of the command line, which suggests what was probably meant by a misspelt word."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

NEAR = 0.6
"""The similarity of two words (`difflib`, from 0 to 1) above which one is suggested for the other."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that suggests the option or choice which is most similar to an unknown one.

    Each command refuses its own unknown options, so that suggestions and usage are those of the command.
    """

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        given = list(sys.argv[1:] if args is None else args)
        found, unknown = super().parse_known_args(given, namespace)
        if unknown:
            self._refuse(unknown)
        return found, []

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        known = list(self._option_string_actions)
        options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        meant = [suggestion(option, known) for option in options]
        hints = ", ".join(dict.fromkeys(filter(None, meant)))
        self.error(
            f"unrecognized arguments: {' '.join(unknown)}"
            + (f". Did you mean {hints}?" if hints else "")
        )

    def _check_value(self, action: argparse.Action, value: object) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            meant = suggestion(str(value), map(str, action.choices or ()))
            if not meant:
                raise
            raise argparse.ArgumentError(
                action, f"{error.message}. Did you mean {meant}?"
            ) from None


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return what a misspelt word was probably meant to be; "" if no known word is similar."""
    return next(iter(difflib.get_close_matches(word, list(known), 1, NEAR)), "")


def help_alone(parser: argparse.ArgumentParser) -> None:
    """Make the parser print its help if no command is given."""

    def run(_arguments: argparse.Namespace) -> int:
        """Carry out the command and return its exit code."""
        parser.print_help()
        return 0

    parser.set_defaults(run=run)


def complete(parser: argparse.ArgumentParser) -> None:
    """Complete a line in the shell, if the package argcomplete is installed."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(parser)


Options = argparse.ArgumentParser | argparse._ArgumentGroup
"""What options are added to."""


def add_output(
    options: Options, help: str, metavar: str | None = None, default: Path | None = None
) -> None:
    """Add `-o`: where a command writes. It is required where there is no default."""
    options.add_argument(
        "-o",
        "--output",
        type=Path,
        required=default is None,
        default=default,
        metavar=metavar,
        help=help,
    )


def add_path(options: Options, flag: str, metavar: str, help: str) -> None:
    """Add an option that names a file or a folder."""
    options.add_argument(flag, type=Path, metavar=metavar, help=help)


def add_switch(options: Options, flag: str, help: str) -> None:
    """Add an option without a value."""
    options.add_argument(flag, action="store_true", help=help)


def add_overwrite(options: Options, help: str) -> None:
    """Add `--overwrite`: outputs that exist are replaced."""
    add_switch(options, "--overwrite", help)


def add_quiet(options: Options, help: str) -> None:
    """Add `-q`: less is printed, or nothing."""
    options.add_argument("-q", "--quiet", action="store_true", help=help)


def add_device(options: Options) -> None:
    """Add `--device`: what computes."""
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
