"""How far the uncertainty of a brain model can be believed on scans labelled by hand (MALC 2012).

    python Testing/bench/uncertainty.py -o malc-views
    python Testing/bench/uncertainty.py -o malc-dropout --cases 4 --dropout-passes 5 --refinement none
    python Testing/bench/uncertainty.py -o malc-noise --cases 4 --spoil noise --refinement none

Reliability of the probabilities as the networks give them and at the temperature in the model's card, correlation
of the members' agreement with Dice, what the card's limits flag, and what refinements are worth. Nothing is
fitted: the scans are for evaluation only. What is finished is kept in the folder; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from malc import CREDIT, CSF, LABELS, MAPPING, SCAN, chosen_scans, shared_scans
from sklearn.metrics import roc_auc_score

from medsegai.commands.calibrate import chosen_rows
from medsegai.commands.console import shown_progress
from medsegai.commands.segment import comma_list
from medsegai.errors import MedSegAIError
from medsegai.evaluation import read_mapping
from medsegai.evaluation.calibration import Reliability, reliability
from medsegai.evaluation.findings import draw_reliability, scored
from medsegai.evaluation.folds import TrainingCase
from medsegai.evaluation.held_out import HeldOut, PredictionJob, Record, Truth
from medsegai.evaluation.refining import AS_PREDICTED, Worth, worth
from medsegai.evaluation.scores import WORST, Correlation, Flags, Scored, correlation, judge
from medsegai.io import read_volume, write_volume
from medsegai.labels import Label
from medsegai.models.card import ModelCard
from medsegai.models.catalogue import find_card
from medsegai.models.quality import POOR_DICE, SCORES, Expected

NOISE = 0.15
"""Standard deviation of the noise in a spoiled scan, in parts of its brightest tissue."""

THICK = 6
"""Voxels of 1 mm that are averaged from foot to head in a scan of thick slices."""

POOR = 0.6
"""A Dice below this is poor, whatever the structure."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        card = find_card(arguments.model)
        held_out = planned(card, arguments)
        with shown_progress(weights={"held-out cases": 1.0}) as progress:
            records = held_out.records(progress)
        report = measured(card, records, held_out.truth.labels, arguments.output)
    except MedSegAIError as error:
        print(f"uncertainty: {error}", file=sys.stderr)
        return error.exit_code
    (arguments.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


def planned(card: ModelCard, arguments: argparse.Namespace) -> HeldOut:
    """The scans as held-out cases, as predicted. CSF is left out, because it is not comparable: see `malc.py`."""
    scans = chosen_scans(arguments)
    names = [path.name.removesuffix(SCAN) for path in scans]
    images = [spoiled(path, arguments.spoil, arguments.output) for path in scans]
    jobs = [
        PredictionJob(TrainingCase(name, (image,), path.with_name(name + LABELS)), arguments.model)
        for name, path, image in zip(names, scans, images, strict=True)
    ]
    mapping = read_mapping(MAPPING)
    truth = Truth.of_mapping(card, mapping)
    labels = tuple(label for label in truth.labels if label.value != CSF)
    truth = replace(truth, labels=labels, values=tuple((label.value,) for label in labels))
    options = {"device": arguments.device, "dropout_passes": arguments.dropout_passes}
    rows = chosen_rows(arguments.rows)
    plain = replace(card, suggested_refinements=())
    return HeldOut(plain, jobs, truth, mapping, rows, arguments.output, options)


def spoiled(path: Path, how: str | None, folder: Path) -> Path:
    """The scan as it is, or a copy that is as bad as scans can be."""
    if how is None:
        return path
    scan = read_volume(path)
    voxels = scan.voxels.astype(np.float32)
    if how == "noise":
        noise = np.random.default_rng(0).normal(0, NOISE * np.percentile(voxels, 99), voxels.shape)
        voxels = np.abs(voxels + noise)
    else:
        along = max(range(3), key=lambda axis: abs(scan.geometry.ijk_to_ras[2, 2 - axis]))
        starts = np.arange(0, voxels.shape[along], THICK)
        sums = np.add.reduceat(voxels, starts, along)
        voxels = (sums / THICK).repeat(THICK, along).take(range(voxels.shape[along]), along)
    copy = folder / "images" / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_volume(copy, scan.with_voxels(voxels.astype(np.float32)))
    return copy


def measured(
    card: ModelCard, records: Sequence[Record], labels: Sequence[Label], folder: Path
) -> dict[str, Any]:
    """All figures, printed as Markdown on the way."""
    temperature = 1.0 if card.calibration is None else card.calibration.temperature
    raw, cooled = (
        reliability((record.decisions, choice) for record in records)
        for choice in (1.0, temperature)
    )
    draw_reliability(raw, cooled, folder / "reliability.png")
    suggested = [item.name for item in card.suggested_refinements]
    handed_out = next((name for name in suggested if name in records[0].table), AS_PREDICTED)
    rows = scored(records, range(len(records)), labels, handed_out)
    found = {name: correlation(rows, name) for name in SCORES}
    flags, ranked = None, None
    if card.calibration is not None and card.calibration.holds_for(records[0].members):
        expected = card.calibration.structures
        known = [row for row in rows if card.calibration.score in row.measures]
        judged = [(row, expected[row.value]) for row in known if row.value in expected]
        flags = judge(judged, card.calibration.score)
        ranked = ranking(judged, card.calibration.score)
    worths = worth([item.table for item in records], [item.changed_ml for item in records], labels)
    print(f"{len(records)} scans, members: {', '.join(records[0].members)}; Dice: {handed_out}\n")
    print(reliability_table(raw, cooled, temperature))
    print(correlation_table(found))
    print(flags_text(flags, ranked))
    print(worth_table(worths))
    print(CREDIT)
    return {
        "scans": [record.case for record in records],
        "members": list(records[0].members),
        "temperature": temperature,
        "reliability raw": raw.to_dict(),
        "reliability at the card's temperature": cooled.to_dict(),
        "correlation with Dice": {
            name: item.to_dict() for name, item in found.items() if item is not None
        },
        "flags by the card": None if flags is None else flags.to_dict(),
        "ranked by expected Dice": ranked,
        "refinements": [item.to_dict() for item in worths],
    }


def reliability_table(raw: Reliability, cooled: Reliability, temperature: float) -> str:
    lines = ["| temperature | expected calibration error | log loss |", "| ---: | ---: | ---: |"]
    for value, item in ((1.0, raw), (temperature, cooled)):
        lines.append(f"| {value:.3f} | {item.error:.4f} | {item.likelihood_loss:.4f} |")
    return "\n".join(lines) + "\n"


def correlation_table(found: dict[str, Correlation | None]) -> str:
    lines = [
        "| measure | Pearson | Spearman | Pearson within structures | Spearman within |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, item in found.items():
        if item is not None:
            lines.append(
                f"| `{name}` | {item.pooled_pearson:.2f} | {item.pooled_spearman:.2f} | "
                f"{item.within_pearson:.2f} | {item.within_spearman:.2f} |"
            )
    return "\n".join(lines) + "\n"


def ranking(judged: Sequence[tuple[Scored, Expected]], score: str) -> dict[str, float]:
    """How well expected Dice puts the results of all structures in order, those of a poor Dice last.

    The other figure takes the structures' own means on these scans from both: do their worst tenth come last?
    """
    dice = np.array([row.dice for row, _ in judged])
    guess = np.array(
        [made.dice + made.slope * (row.measures[score] - made.score) for row, made in judged]
    )
    values = np.array([row.value for row, _ in judged])
    own_dice, own_guess = dice.copy(), guess.copy()
    for value in np.unique(values):
        own_dice[values == value] -= dice[values == value].mean()
        own_guess[values == value] -= guess[values == value].mean()
    worst = own_dice <= np.quantile(own_dice, WORST)
    return {
        "dice": float(dice.mean()),
        "expected dice": float(guess.clip(0, 1).mean()),
        "poor": int((dice < POOR).sum()),
        "poor and expected so": int(((dice < POOR) & (guess < POOR_DICE)).sum()),
        "expected poor": int((guess < POOR_DICE).sum()),
        "auc of poor": float(roc_auc_score(dice < POOR, -guess)),
        "auc within structures": float(roc_auc_score(worst, -own_guess)),
    }


def flags_text(flags: Flags | None, ranked: dict[str, float] | None) -> str:
    if flags is None or ranked is None:
        return "The card has no limits for these members.\n"
    return (
        f"Of {flags.results} results {flags.flagged} are flagged; Dice {ranked['dice']:.3f}, expected "
        f"{ranked['expected dice']:.3f}, off by {flags.error:.3f}. AUC of expected Dice for the {ranked['poor']} "
        f"results with a Dice below {POOR}: {ranked['auc of poor']:.2f}; {ranked['poor and expected so']} of them "
        f"are among the {ranked['expected poor']} with an expected Dice below {POOR_DICE}. For the worst tenth "
        f"within structures: {ranked['auc within structures']:.2f}.\n"
    )


def worth_table(worths: Sequence[Worth]) -> str:
    lines = [
        "| | Dice | gain | at least | HD95, mm | surface distance, mm | changed, ml |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for item in worths:
        tally = f" (+{item.rose} -{item.fell})" if item is not worths[0] else ""
        lines.append(
            f"| `{item.name}` | {item.dice:.4f}{tally} | {item.gain:+.4f} | {item.gain_at_least:+.4f} | "
            f"{item.hd95_mm:.3f} | {item.assd_mm:.4f} | {item.changed_ml:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="brain", metavar="ID", help="id or folder of the model")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--cases", type=int, metavar="N", help="the first N scans only")
    parser.add_argument("--spoil", choices=("noise", "thick"), help="spoil the scans first")
    parser.add_argument("--dropout-passes", type=int, default=0, metavar="N")
    parser.add_argument(
        "--refinement", dest="rows", action="extend", type=comma_list, help="as in calibrate"
    )
    parser.add_argument("--device", default="auto", help="as in `medsegai segment`")
    parser.add_argument(
        "--data",
        type=Path,
        default=shared_scans(),
        metavar="FOLDER",
        help=f"where the scans *{SCAN} and their labels *{LABELS} are",
    )
    return parser


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("uncertainty", main))
