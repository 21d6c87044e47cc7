"""`medsegai doctor`: report what is installed, and what to do about each problem.

`python -m medsegai.commands.doctor` does the same, also in a Python that lacks NumPy.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from medsegai.errors import DeviceError

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers
    from medsegai.doctor import Finding


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai doctor` to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help="report what is installed, and what to do about problems",
        description="Check packages, devices, memory, models and disks, and say how to repair what is missing. "
        f"The exit code is 0 if the main job can run, and {DeviceError.exit_code} if not.",
    )
    _add_options(parser)
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command and return its exit code."""
    from medsegai.doctor import can_segment, check_environment

    findings = check_environment()
    ready = can_segment(findings)
    if arguments.json:
        print(json.dumps(_report(findings, ready), indent=2))
    else:
        _show(findings, ready)
    return 0 if ready else DeviceError.exit_code


def _report(findings: list[Finding], ready: bool) -> dict[str, Any]:
    from medsegai import __version__
    from medsegai.doctor import repairs

    return {
        "ready": ready,
        "medsegai": __version__,
        "python": sys.executable,
        "findings": [finding.to_dict() for finding in findings],
        "repairs": repairs(findings),
    }


def _show(findings: list[Finding], ready: bool) -> None:
    from medsegai.doctor import Health, repairs

    width = max(len(finding.name) for finding in findings)
    topic = ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            print(f"{topic}:")
        mark = {Health.GOOD: " ", Health.ADVICE: "!", Health.PROBLEM: "X"}[finding.health]
        print(f" {mark} {finding.name:<{width}}  {finding.found}")
        if finding.cure:
            print(f"   {'':<{width}}  -> {finding.cure}")
    if not ready:
        print("\nTo repair it:")
        for step in repairs(findings):
            print(f"  {step}")
    print("\nReady to segment." if ready else "\nNot ready: see the lines marked X.")


if __name__ == "__main__":
    own_parser = argparse.ArgumentParser(prog="medsegai doctor")
    _add_options(own_parser)
    sys.exit(run(own_parser.parse_args()))
