"""How well a brain model does on scans it never saw, drawn by hand: MALC 2012.

    python Testing/bench/malc.py --markdown malc.md --json malc.json

Segments the 15 training scans of the MICCAI 2012 multi-atlas labelling challenge (skull-stripped T1)
and compares with their manual labels, translated by `neuromorphometrics_to_freesurfer.csv`. The scans
are for evaluation only: nothing may be trained on them or tuned to them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from medsegai.commands.console import shown_progress
from medsegai.engine import segment
from medsegai.errors import InputError, MedSegAIError
from medsegai.evaluation import (
    CaseFigures,
    Evaluation,
    LabelMapping,
    Spread,
    evaluate,
    read_mapping,
)
from medsegai.io import atomic_path, check_output, read_labelmap
from medsegai.models.catalogue import find_card
from medsegai.request import SegmentationRequest

REPOSITORY = Path(__file__).resolve().parents[2]
MAPPING = Path(__file__).with_name("neuromorphometrics_to_freesurfer.csv")
SCAN, LABELS = "_SS.nii.gz", "_glm.nii.gz"
CSF = 24
"""In the references a cistern of 1 ml, in the models all CSF around the brain: not comparable."""

FIGURES = {
    "dice": ("Dice", ".3f"),
    "hd95_mm": ("HD95, mm", ".2f"),
    "assd_mm": ("ASD, mm", ".2f"),
    "signed_mm": ("signed distance, mm", "+.2f"),
    "volume_difference_percent": ("volume, %", "+.0f"),
}
CREDIT = (
    "Scans: OASIS project (oasis-brains.org). Labels: provided by Neuromorphometrics, Inc. "
    "(Neuromorphometrics.com) under academic subscription. CC BY-NC; used for evaluation only."
)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        for path in (arguments.json, arguments.markdown):
            if path is not None:
                check_output(path)
        evaluation, seconds = measure(arguments)
        text = markdown(evaluation, arguments.model, seconds)
        print(text)
        _write(arguments.markdown, text)
        _write(arguments.json, json.dumps(summary(evaluation, arguments.model), indent=1) + "\n")
    except MedSegAIError as error:
        print(f"malc: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def shared_scans() -> Path:
    """Return where the scans lie unless `--data` says otherwise."""
    shared = os.environ.get("MEDSEGAI_SHARED_DATA", REPOSITORY.parent / "shared" / "data")
    return Path(shared) / "malc2012-train"


def chosen_scans(arguments: argparse.Namespace) -> list[Path]:
    """Return the scans in `--data`, the first `--cases` of them. Raises InputError: the scans are not there."""
    scans = sorted(arguments.data.glob(f"*{SCAN}"))[: arguments.cases]
    if not scans:
        raise InputError(f"{arguments.data} holds no *{SCAN}. Name the folder with --data.")
    return scans


def measure(arguments: argparse.Namespace) -> tuple[Evaluation, float]:
    """Segment and evaluate; also the median seconds per scan.

    Raises:
        InputError: the scans are not there.
        MedSegAIError: whatever `segment` raises.
    """
    scans = chosen_scans(arguments)
    mapping = read_mapping(MAPPING)
    cases, seconds = [], []
    for number, path in enumerate(scans, start=1):
        start = time.perf_counter()
        cases.append(_case(path, mapping, arguments))
        seconds.append(time.perf_counter() - start)
        mean = cases[-1].spread("dice", (CSF,)).mean
        print(
            f"{number} of {len(scans)}: {cases[-1].name}, mean Dice without CSF {mean:.3f}, "
            f"{seconds[-1]:.0f} s",
            file=sys.stderr,
        )
    return Evaluation(tuple(cases)), statistics.median(seconds)


def markdown(evaluation: Evaluation, model: str, seconds: float) -> str:
    """The table for the documents, with what its reader must know."""
    card = find_card(model)
    return f"""Model `{card.id}` {card.version}, {len(evaluation.cases)} scans; mean ± standard deviation over
scans; {seconds:.0f} s per scan (median).

{_table(evaluation)}

\\* CSF is two different things: in the references a cistern of about 1 ml above and behind the third
ventricle, in the model all CSF outside the ventricles. The model calls {_csf_share(evaluation):.0%} of
that cistern CSF; Dice and distances between the two mean nothing, so the last row leaves them out.

{CREDIT}
"""


def summary(evaluation: Evaluation, model: str) -> dict[str, Any]:
    """The figures in short, for the model's card."""
    card = find_card(model)
    return {
        "model": f"{card.id} {card.version}",
        "scans": [case.name for case in evaluation.cases],
        "mean of all": _means(evaluation, ()),
        "mean without CSF, which is not comparable": _means(evaluation, (CSF,)),
        "structures": {
            item.label.name: {name: _rounded(item.spreads[name].mean) for name in FIGURES}
            | {"dice_sd": _rounded(item.spreads["dice"].sd)}
            for item in evaluation.structures()
        },
        "scan means without CSF": {
            case.name: _rounded(case.spread("dice", (CSF,)).mean) for case in evaluation.cases
        },
        "credit": CREDIT,
    }


def _case(path: Path, mapping: LabelMapping, arguments: argparse.Namespace) -> CaseFigures:
    name = path.name.removesuffix(SCAN)
    labels = path.with_name(name + LABELS)
    reference = mapping.apply(read_labelmap(labels)[0])
    request = SegmentationRequest(
        (path,),
        models=(arguments.model,),
        members=tuple(arguments.members),
        device=arguments.device,
        refine=arguments.refine,
    )
    with shown_progress() as progress:
        result = segment(request, progress)
    figures = evaluate(result.labelmap, reference, result.labels)
    return CaseFigures(name, tuple(figures), str(path), str(labels))


def _table(evaluation: Evaluation) -> str:
    rows = [["Structure", *(heading for heading, _ in FIGURES.values())]]
    rows.append(["---", *["---:"] * len(FIGURES)])
    for item in evaluation.structures():
        cells = [_cell(item.spreads[name], spec) for name, (_, spec) in FIGURES.items()]
        rows.append([_starred(item.label.value, item.label.name), *cells])
    for name, leave_out in (("Mean of all", ()), ("Mean of the comparable", (CSF,))):
        count = evaluation.overall("dice", leave_out).count
        spreads = [evaluation.over_cases(figure, leave_out) for figure in FIGURES]
        cells = [
            _cell(spread, spec) for spread, (_, spec) in zip(spreads, FIGURES.values(), strict=True)
        ]
        rows.append([f"**{cell}**" for cell in (f"{name} {count}", *cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _means(evaluation: Evaluation, leave_out: Collection[int]) -> dict[str, float | None]:
    means = {name: evaluation.over_cases(name, leave_out) for name in FIGURES}
    return {name: _rounded(spread.mean) for name, spread in means.items()} | {
        "dice_sd": _rounded(means["dice"].sd),
        "structures": evaluation.overall("dice", leave_out).count,
    }


def _csf_share(evaluation: Evaluation) -> float:
    """Share of the references' CSF that the model calls CSF, over all scans."""
    found = total = 0.0
    for case in evaluation.cases:
        for item in case.structures:
            if item.label.value == CSF and item.reference_ml > 0:
                found += item.dice * (item.prediction_ml + item.reference_ml) / 2
                total += item.reference_ml
    return found / total if total else 0.0


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        with atomic_path(path) as partial:
            partial.write_text(text, encoding="utf-8")


def _starred(value: int, name: str) -> str:
    return name + (r" \*" if value == CSF else "")


def _cell(spread: Spread, spec: str) -> str:
    if math.isnan(spread.mean):
        return "-"
    deviation = "" if math.isnan(spread.sd) else f" ± {spread.sd:{spec.removeprefix('+')}}"
    return format(spread.mean, spec) + deviation


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="brain", metavar="ID", help="id or folder of the model")
    parser.add_argument(
        "--members", nargs="+", default=(), metavar="NAME", help="only these members, such as views"
    )
    parser.add_argument("--device", default="auto", help="as in `medsegai segment`")
    parser.add_argument(
        "--refine",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also clean the result as the model's card suggests",
    )
    parser.add_argument("--cases", type=int, metavar="N", help="the first N scans only")
    parser.add_argument(
        "--data",
        type=Path,
        default=shared_scans(),
        metavar="FOLDER",
        help=f"where the scans *{SCAN} and their labels *{LABELS} are",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures for the card")
    return parser


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("malc", main))
