"""`medsegai doctor`: what is there, and what to do about each problem."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from medsegai.errors import DeviceError

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="what is installed, which devices, and what to do about problems",
        description="Look at packages, devices, memory and models. The exit code is 0 if the main "
        f"job can run, and {DeviceError.exit_code} if not.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from medsegai.doctor import Health, can_segment, examine

    findings = examine()
    ready = can_segment(findings)
    if arguments.json:
        report = {"ready": ready, "findings": [finding.to_dict() for finding in findings]}
        print(json.dumps(report, indent=2))
    else:
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
        print("\nReady to segment." if ready else "\nNot ready: see the lines marked X.")
    return 0 if ready else DeviceError.exit_code
