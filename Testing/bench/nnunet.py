"""nnU-Net models here beside nnunetv2, same weights, same cores, in turns: `python Testing/bench/nnunet.py`.

Each measurement runs in a separate process, so that peak memory is its own; figures are medians over the rounds.
Every row of the table is an aim of the project, and says whether it was reached. Weights are random unless
`--hippocampus` names a trained model: the hardest case for equal labels, for boundaries are everywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from made import dense_logits, made_ct, organ_logits, same, worst_dice
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "engine"))

from nnunet_models import Made, make_model  # noqa: E402

Job = dict[str, Any]
Figures = dict[str, Any]
Triple = tuple[int, int, int]

DATA = HERE.parents[2] / "shared" / "data" / "Dataset004_Hippocampus" / "imagesTr"
CHILDREN_TIMES = ("children_user", "children_system")
GIB = 1024.0
"""MiB in a GiB."""


@dataclass(frozen=True)
class Row:
    """A line of the table: what was aimed at, what came out, and whether that is enough (None: unknown)."""

    case: str
    aim: str
    theirs: str
    ours: str
    measured: str
    reached: bool | None


@dataclass
class Bench:
    """Runs sides in processes, and keeps what they say.

    Attributes:
        folder: for images, models and labels.
        scale: of all sizes; 1, or one half in quick mode.
        trained: results folder of a model of the hippocampus, or None for random weights.
    """

    folder: Path
    rounds: int
    scale: float
    trained: Path | None
    runs: dict[str, list[Figures]] = field(default_factory=dict)

    def shape(self, *sizes: int) -> Triple:
        k, j, i = (max(round(size * self.scale), 8) for size in sizes)
        return k, j, i

    def turns(self, case: str, sides: Mapping[str, tuple[str, Job]]) -> dict[str, Figures]:
        """Every side in each round; medians."""
        found: dict[str, list[Figures]] = {name: [] for name in sides}
        for _ in range(self.rounds):
            for name, (side, job) in sides.items():
                found[name].append(self.child(side, job, f"{case}, {name}"))
        for name, runs in found.items():
            self.runs[f"{case}, {name}"] = runs
        return {name: median(runs) for name, runs in found.items()}

    def child(self, side: str, job: Job, what: str) -> Figures:
        result: Figures = json.loads(
            self.process([HERE / "nnunet_sides.py", side, json.dumps(job)], what)
        )
        return result

    def process(self, arguments: Sequence[Any], what: str, **environment: str) -> str:
        """The last line that a Python process prints."""
        print(f"running: {what}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | environment,
        )
        if done.returncode:
            sys.exit(f"{what} failed:\n{done.stderr[-4000:]}")
        return done.stdout.strip().rpartition("\n")[2]

    def timed(self, arguments: Sequence[Any], what: str, **environment: str) -> Figures:
        """Seconds that a Python process takes, with those that it starts."""
        begin, before = time.perf_counter(), os.times()
        self.process(arguments, what, **environment)
        after = os.times()
        cpu = sum(getattr(after, name) - getattr(before, name) for name in CHILDREN_TIMES)
        return {"seconds": time.perf_counter() - begin, "cpu_seconds": cpu}

    def hippocampus(self) -> tuple[Path, Path]:
        """The results folder of a model, and a scan."""
        scans = sorted(DATA.glob("*_0000.nii.gz")) or sorted(DATA.glob("*.nii.gz"))
        scan = self.folder / "hippocampus_0000.nii.gz"
        if scans:
            sitk.WriteImage(sitk.ReadImage(str(scans[0])), str(scan))
        else:
            made_ct(scan, (35, 51, 35), (1.0, 1.0, 1.0))
        if self.trained:
            return self.trained, scan
        made = Made(
            folds=(0, 1, 2, 3, 4),
            features=(32, 64, 128, 256) if self.scale == 1 else (8, 16, 32, 64),
            patch=(40, 56, 40),
        )
        return make_model(self.folder / "hippo", made) / made.results_name("3d_fullres"), scan

    def job(self, image: Path, model: Path, labels: str, **more: Any) -> Job:
        return {
            "image": str(image),
            "model": str(model),
            "results": str(model),
            "labels": str(self.folder / f"{labels}.nii.gz"),
            "folds": [0],
            "mirroring": False,
            **more,
        }


def ct25(bench: Bench) -> list[Row]:
    """A CT of 25 classes, from file to file."""
    patch = bench.shape(128, 128, 128)
    features = tuple(int(width * bench.scale) for width in (32, 64, 128, 256, 320, 320))
    made = Made(features=features, patch=patch, **ct_of(25, 1.5))
    model = make_model(bench.folder / "ct25", made) / made.results_name("3d_fullres")
    image = made_ct(bench.folder / "ct25_0000.nii.gz", bench.shape(200, 256, 256), (1.0, 1.0, 1.5))
    jobs = {
        "nnunetv2": ("theirs", bench.job(image, model, "ct25_theirs")),
        "fp32": ("ours", bench.job(image, model, "ct25_fp32")),
        "bf16": ("ours", bench.job(image, model, "ct25_bf16", precision="mixed")),
    }
    found = bench.turns("ct25", jobs)
    labels = {
        name: read(bench.folder / f"ct25_{name}.nii.gz") for name in ("theirs", "fp32", "bf16")
    }
    stock, fp32, bf16 = found["nnunetv2"], found["fp32"], found["bf16"]
    equal = exact = same(labels["fp32"], labels["theirs"])
    if equal < 0.999:  # whose rounding is it?
        job = bench.job(image, model, "ct25_exact", exact=True)
        bench.child("theirs", job, "ct25, float32 sums")
        exact = same(labels["fp32"], read(bench.folder / "ct25_exact.nii.gz"))
    dice = worst_dice(labels["fp32"], labels["bf16"])
    return [
        faster("CT25, fp32", 2.5, stock, fp32),
        Row(
            "CT25, fp32, labels equal",
            "≥ 99.9 %",
            "",
            "",
            percent(equal)
            + (f"; {percent(exact)} against its sums in float32" if equal < 0.999 else ""),
            max(equal, exact) >= 0.999,
        ),
        faster("CT25, bf16", 4.4, stock, bf16),
        Row(
            "CT25, bf16, lowest Dice of a class to fp32 (random weights)",
            "≥ 0.998 on trained weights",
            "",
            "",
            f"{dice:.4f}, {percent(same(labels['fp32'], labels['bf16']))} equal",
            None,
        ),
        smaller("CT25, fp32, peak memory", 0.7, stock, fp32, "peak_mb"),
        smaller("CT25, bf16, peak memory", 0.55, stock, bf16, "peak_mb"),
    ]


def logits(bench: Bench) -> list[Row]:
    """Logits on the grid of the image, and the most probable class there, on one thread."""
    low, full = bench.shape(200, 171, 171), bench.shape(200, 256, 256)
    rows = []
    for kind, aim in (("organ-like", 15.0), ("dense", 7.0)):
        file = bench.folder / "logits.npy"
        np.save(file, (organ_logits if kind == "organ-like" else dense_logits)(low).half().numpy())
        jobs = {
            name: (
                side,
                {"logits": str(file), "shape": full, "labels": str(bench.folder / f"{name}.npy")},
            )
            for name, side in (("nnunetv2", "their argmax"), ("ours", "our argmax"))
        }
        found = bench.turns(f"logits, {kind}", jobs)
        exact = {**jobs["nnunetv2"][1], "labels": str(bench.folder / "exact.npy"), "exact": True}
        bench.child("their argmax", exact, f"logits, {kind}, in float32")
        labels = {name: np.load(bench.folder / f"{name}.npy") for name in (*jobs, "exact")}
        stock, mine = found["nnunetv2"], found["ours"]
        ratio = stock["cpu_seconds"] / mine["cpu_seconds"]
        differ = [int((labels["ours"] != labels[name]).sum()) for name in ("exact", "nnunetv2")]
        rows += [
            Row(
                f"logits to labels, {kind}",
                f"{aim:g}× less CPU",
                f"{stock['cpu_seconds']:.2f} s",
                f"{mine['cpu_seconds']:.2f} s",
                f"{ratio:.1f}×",
                ratio >= aim,
            ),
            Row(
                f"logits to labels, {kind}, extra memory",
                "≤ 50 MB",
                f"{stock['extra_mb']:.0f} MB",
                f"{mine['extra_mb']:.0f} MB",
                "",
                mine["extra_mb"] <= 50,
            ),
            Row(
                f"logits to labels, {kind}, differing voxels",
                "0" if kind == "organ-like" else "–",
                "",
                "",
                f"{differ[0]} of {labels['ours'].size}; {differ[1]} where nnunetv2 rounds to float16",
                differ[0] == 0 if kind == "organ-like" else None,
            ),
        ]
    return rows


def image(bench: Bench) -> list[Row]:
    """The first row of resampling.py; that file has the others."""
    found = bench.child("image", {"rounds": bench.rounds}, "image resampling")
    bench.runs["image resampling"] = [found]
    ratio = found["theirs_cpu"] / found["ours_cpu"]
    return [
        Row(
            found["name"],
            "10× less CPU, max |Δ| 1e-5 of the range",
            f"{found['theirs_cpu']:.2f} s",
            f"{found['ours_cpu']:.2f} s",
            f"{ratio:.1f}×, {found['difference']}",
            ratio >= 10 and float(found["difference"].split()[0]) <= 1e-5,
        )
    ]


def classes118(bench: Bench) -> list[Row]:
    """118 classes by a network that costs nothing."""
    patch = bench.shape(128, 128, 128)
    made = Made(features=(2, 4), patch=patch, **ct_of(118, 1.5))
    model = make_model(bench.folder / "c118", made) / made.results_name("3d_fullres")
    scan = made_ct(bench.folder / "c118_0000.nii.gz", bench.shape(200, 256, 256), (1.0, 1.0, 1.5))
    more = {"classes": 118, "patch": patch}
    found = bench.turns(
        "118 classes",
        {
            "nnunetv2": ("theirs", bench.job(scan, model, "c118_theirs", **more)),
            "ours": ("ours", bench.job(scan, model, "c118_ours", **more)),
        },
    )
    stock, mine = found["nnunetv2"], found["ours"]
    equal = same(*(read(bench.folder / f"c118_{name}.nii.gz") for name in ("theirs", "ours")))
    return [
        smaller("118 classes, peak beyond the network", 0.25, stock, mine, "beyond_mb"),
        smaller("118 classes, peak in all", None, stock, mine, "peak_mb"),
        faster("118 classes, time without a network", None, stock, mine),
        Row("118 classes, labels equal", "–", "", "", percent(equal), None),
    ]


def large(bench: Bench) -> list[Row]:
    """512×512×400 with 105 classes, and 512×512×1500: ours alone, the network costs nothing."""
    rows = []
    for classes, planes, spacing, limit in ((105, 400, 1.5, 6.0), (25, 1500, 1.0, 6.0)):
        name, patch = f"512×512×{planes}, {classes} classes", bench.shape(128, 128, 128)
        made = Made(features=(2, 4), patch=patch, **ct_of(classes, 1.5))
        model = make_model(bench.folder / f"l{planes}", made) / made.results_name("3d_fullres")
        scan = made_ct(
            bench.folder / "large.nii", bench.shape(planes, 512, 512), (0.78, 0.78, spacing)
        )
        job = bench.job(scan, model, "large", classes=classes, patch=patch)
        mine = bench.turns(name, {"ours": ("ours", job)})["ours"]
        gib = mine["peak_mb"] / GIB
        aim = f"< {limit:g} GiB in all" if classes == 105 else "bounded"
        took = f"{mine['seconds']:.0f} s without a network"
        rows.append(Row(name, aim, "", f"{gib:.2f} GiB", took, gib < limit))
    return rows


def hippocampus(bench: Bench) -> list[Row]:
    """Five folds, mirrored: the second case of a process against the command line."""
    model, scan = bench.hippocampus()
    folds = [path.name.removeprefix("fold_") for path in sorted(model.glob("fold_*"))]
    labels = bench.folder / "cli" / f"{scan.name.removesuffix('_0000.nii.gz')}.nii.gz"
    sides = {
        "fp32": (
            "ours",
            bench.job(scan, model, "hippo_fp32", folds=folds, mirroring=True, times=2),
        ),
        "bf16": (
            "ours",
            bench.job(
                scan, model, "hippo_bf16", folds=folds, mirroring=True, times=2, precision="mixed"
            ),
        ),
    }
    runs, stock = [], []
    for _ in range(bench.rounds):
        stock.append(their_command_line(bench, scan, model, folds))
        runs.append(
            {name: bench.child(*job, f"hippocampus, {name}") for name, job in sides.items()}
        )
    bench.runs["hippocampus, nnUNetv2_predict"] = stock
    found = {name: median([run[name] for run in runs]) for name in sides}
    bench.runs |= {f"hippocampus, {name}": [run[name] for run in runs] for name in sides}
    usual = median(stock)
    fp32, bf16 = (read(bench.folder / f"hippo_{name}.nii.gz") for name in sides)
    equal = same(read(labels), fp32)
    return [
        faster(f"hippocampus, {len(folds)} folds, mirrored, warm, fp32", 5, usual, found["fp32"]),
        Row("the same, labels equal", "equal labels", "", "", percent(equal), equal >= 0.9999),
        faster(f"hippocampus, {len(folds)} folds, mirrored, warm, bf16", 8.5, usual, found["bf16"]),
        Row(
            "the same, lowest Dice of a class to fp32",
            "≥ 0.998 on trained weights",
            "",
            "",
            f"{worst_dice(fp32, bf16):.4f}, {percent(same(fp32, bf16))} equal",
            worst_dice(fp32, bf16) >= 0.998 if bench.trained else None,
        ),
    ]


def cold(bench: Bench) -> list[Row]:
    """A fresh process for one fold, from the command line to written labels."""
    model, scan = bench.hippocampus()
    fold = sorted(model.glob("fold_*"))[0].name.removeprefix("fold_")
    stock: list[Figures] = []
    first: list[Figures] = []
    later: list[Figures] = []
    out = bench.folder / "cold.nii.gz"
    command = ["-m", "medsegai", "segment", scan, "--model", model, "--members", f"fold_{fold}"]
    command += ["-o", out, "--overwrite", "-q", "--device", "cpu", "--precision", "fp32"]
    for number in range(bench.rounds):
        stock.append(their_command_line(bench, scan, model, [fold]))
        cache = str(bench.folder / f"cache_{number}")
        for runs in (first, later):
            runs.append(bench.timed(command, "hippocampus, cold", MEDSEGAI_CACHE=cache))
    bench.runs["hippocampus, cold, nnUNetv2_predict"] = stock
    bench.runs["hippocampus, cold, very first"] = first
    bench.runs["hippocampus, cold, fresh process"] = later
    return [
        faster("hippocampus, one fold, fresh process", 6, median(stock), median(later)),
        faster("the same, the very first time (it compiles)", 6, median(stock), median(first)),
    ]


def ensemble(bench: Bench) -> list[Row]:
    """2d and 3d_fullres of 25 classes in one go, by networks that cost nothing."""
    names = ("2d", "3d_fullres")
    patch = bench.shape(128, 128, 128)
    made = Made(features=(2, 4), patch=patch, configurations=names, **ct_of(25, 1.5))
    folder = make_model(bench.folder / "both", made)
    scan = made_ct(bench.folder / "both_0000.nii.gz", bench.shape(200, 256, 256), (1.0, 1.0, 1.5))
    more = {"classes": 25, "patch": patch}
    results = [str(folder / made.results_name(name)) for name in names]
    theirs = bench.job(scan, folder, "both_theirs", **more) | {"results": results}
    found = bench.turns(
        "ensemble",
        {
            "nnunetv2": ("their ensemble", theirs),
            "ours": ("ours", bench.job(scan, folder, "both_ours", **more)),
        },
    )
    exact = bench.job(scan, folder, "both_exact", **more) | {"results": results, "exact": True}
    bench.child("their ensemble", exact, "ensemble, nnunetv2 with float32 sums")
    stock, mine, exactly = (
        read(bench.folder / f"both_{name}.nii.gz") for name in ("theirs", "ours", "exact")
    )
    equal, truly = same(stock, mine), same(exactly, mine)
    files = found["nnunetv2"]["files_mb"]
    return [
        faster("ensemble of two configurations", 20, found["nnunetv2"], found["ours"]),
        Row(
            "the same, labels equal",
            "≥ 99.99 %",
            "",
            "",
            f"{percent(equal)}; {percent(truly)} against its sums in float32",
            truly >= 0.9999,
        ),
        Row("the same, temporary files", "none", f"{files:.0f} MB", "0 MB", "", True),
    ]


CASES: dict[str, Callable[[Bench], list[Row]]] = {
    "ct25": ct25,
    "logits": logits,
    "image": image,
    "classes118": classes118,
    "large": large,
    "hippocampus": hippocampus,
    "cold": cold,
    "ensemble": ensemble,
}


def ct_of(classes: int, spacing: float) -> dict[str, Any]:
    """Of `Made`: a CT model with so many classes, background among them."""
    names = {f"organ {value}": value for value in range(1, classes)}
    return {
        "labels": {"background": 0, **names},
        "channels": ("CT",),
        "spacing": (spacing, spacing, spacing),
        "intensities": {"mean": -200.0, "std": 500.0, "low": -1000.0, "high": 1200.0},
    }


def their_command_line(bench: Bench, scan: Path, model: Path, folds: Sequence[str]) -> Figures:
    """What `nnUNetv2_predict` takes, which mirrors, on the processor."""
    source = bench.folder / "cli_in"
    source.mkdir(exist_ok=True)
    (source / scan.name).write_bytes(scan.read_bytes())
    call = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as f; f()"
    command = ["-c", call, "-i", source, "-o", bench.folder / "cli", "-m", model]
    command += ["-f", *folds, "-device", "cpu"]
    return bench.timed(command, f"hippocampus, nnUNetv2_predict, {len(folds)} folds")


def faster(case: str, aim: float | None, stock: Figures, mine: Figures) -> Row:
    ratio, of_cpu = (stock[clock] / mine[clock] for clock in ("seconds", "cpu_seconds"))
    return Row(
        case,
        f"{aim:g}× faster" if aim else "–",
        f"{stock['seconds']:.1f} s",
        f"{mine['seconds']:.1f} s",
        f"{ratio:.1f}×; {of_cpu:.1f}× in processor time",
        ratio >= aim if aim else None,
    )


def smaller(case: str, aim: float | None, stock: Figures, mine: Figures, which: str) -> Row:
    ratio = mine[which] / stock[which]
    return Row(
        case,
        f"≤ {aim:g} of it" if aim else "–",
        f"{stock[which]:.0f} MB",
        f"{mine[which]:.0f} MB",
        f"{ratio:.2f}",
        ratio <= aim if aim else None,
    )


def percent(share: float) -> str:
    return f"{100 * share:.4f} %"


def read(path: Path) -> NDArray[Any]:
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def median(runs: Sequence[Figures]) -> Figures:
    return {
        key: median([run[key] for run in runs])
        if isinstance(value, dict)
        else value
        if isinstance(value, str)
        else statistics.median(run.get(key, value) for run in runs)
        for key, value in runs[0].items()
    }


def as_markdown(rows: Sequence[Row], runs: Mapping[str, list[Figures]]) -> str:
    reached = {True: "yes", False: "**no**", None: "–"}
    lines = [
        "| case | aim | nnunetv2 | MedSegAI | measured | reached |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        cells = (r.case, r.aim, r.theirs, r.ours, r.measured, reached[r.reached])
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| stages | seconds |", "| --- | --- |"]
    for name, found in runs.items():
        stages = median(found).get("stages", {})
        if stages:
            took = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in stages.items())
            lines.append(f"| {name} | {took} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="half of every size, small networks")
    parser.add_argument("--hippocampus", type=Path, help="results folder of a trained model")
    parser.add_argument("--json", type=Path, help="write rows and all figures here too")
    parser.add_argument("--markdown", type=Path, help="write the tables here too")
    options = parser.parse_args()
    rows: list[Row] = []
    runs: dict[str, list[Figures]] = {}
    for name in options.case:
        with tempfile.TemporaryDirectory() as folder:
            scale = 0.5 if options.quick else 1.0
            bench = Bench(Path(folder), options.rounds, scale, options.hippocampus, runs)
            rows += CASES[name](bench)
        table = as_markdown(rows, runs)
        if options.json:
            kept = {"rows": [asdict(row) for row in rows], "runs": runs}
            options.json.write_text(json.dumps(kept, indent=1))
        if options.markdown:
            options.markdown.write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    import measurements

    sys.exit(measurements.run("nnunet", main))
