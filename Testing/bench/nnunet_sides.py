"""One side of one measurement of `nnunet.py`, in a separate process: a JSON job in, JSON figures out.

Seconds run from the files of a scan to the file of its labels, in a process that has imported what it needs.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from resampling import measured
from torch import Tensor, nn

from medsegai.inference.grid_sampling import Slab

Job = Mapping[str, Any]
Figures = dict[str, Any]


def ours(job: Job) -> Figures:
    """MedSegAI, as often in one process as the job says; the last time counts."""
    from medsegai import engine
    from medsegai.families.nnunet import model
    from medsegai.io import write_segmentation
    from medsegai.request import SegmentationRequest

    request = SegmentationRequest(
        (Path(job["image"]),),
        (job["model"],),
        precision=job.get("precision", "fp32"),
        members=tuple(f"fold_{fold}" for fold in job["folds"]),
        mirroring=job["mirroring"],
        device="cpu",
    )
    base = peak_mb()
    with contextlib.ExitStack() as stack:
        if "classes" in job:
            base = after_one_tile(job)
            stack.enter_context(mock.patch.object(model, "BatchRunner", _TrivialRunner))
        for _ in range(job.get("times", 1)):
            begin, cpu = time.perf_counter(), time.process_time()
            result = engine.segment(request)
            write_segmentation(job["labels"], result.labelmap, result.labels)
            seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_mb": peak_mb(),
        "beyond_mb": peak_mb() - base,
        "stages": dict(result.seconds),
        "device": result.provenance["device"],
    }


def theirs(job: Job) -> Figures:
    """nnunetv2's predictor in this process, without its worker processes; `exact`: with sums in float32."""
    from nnunetv2.inference import predict_from_raw_data as module
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    import nnunet_reference

    torch.set_num_interop_threads(1)
    base = peak_mb()
    stages: dict[str, float] = {}
    predictor = module.nnUNetPredictor
    timed = [
        (predictor, "initialize_from_trained_model_folder", "load"),
        (DefaultPreprocessor, "run_case", "read and prepare"),
        (predictor, "predict_logits_from_preprocessed_data", "predict"),
        (module, "export_prediction_from_logits", "resample, argmax, write"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, stage in timed:
            stack.enter_context(timing(owner, name, stage, stages))
        if "classes" in job:
            base = after_one_tile(job)
            stack.enter_context(trivial_networks(job["classes"]))
        if job.get("exact"):
            stack.enter_context(nnunet_reference.sums_in_float32())
        begin, cpu = time.perf_counter(), time.process_time()
        _predict_theirs(job, job["results"], job["labels"].removesuffix(".nii.gz"))
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_mb": peak_mb(),
        "beyond_mb": peak_mb() - base,
        "stages": stages,
    }


def their_ensemble(job: Job) -> Figures:
    """Both configurations into npz files, and those joined, as the command lines do; `exact`: sums in float32."""
    from nnunetv2.ensembling.ensemble import ensemble_folders

    import nnunet_reference

    labels = Path(job["labels"])
    folders = [labels.parent / f"member_{number}" for number in range(len(job["results"]))]
    stages: dict[str, float] = {}
    begin, cpu = time.perf_counter(), time.process_time()
    with contextlib.ExitStack() as stack:
        stack.enter_context(trivial_networks(job["classes"]))
        if job.get("exact"):
            stack.enter_context(nnunet_reference.sums_in_float32())
        for folder, results in zip(folders, job["results"], strict=True):
            folder.mkdir(exist_ok=True)
            started = time.perf_counter()
            _predict_theirs(job, results, str(folder / "case"), probabilities=True)
            stages[Path(results).name] = time.perf_counter() - started
    files = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    started = time.perf_counter()
    names = ("dataset.json", "plans.json")
    described = [str(Path(job["results"][0]) / name) for name in names]
    joined = labels.parent / "joined"
    ensemble_folders([str(folder) for folder in folders], str(joined), False, 1, *described)
    stages["nnUNetv2_ensemble"] = time.perf_counter() - started
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    (joined / "case.nii.gz").replace(labels)
    figures = {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak_mb()}
    return {**figures, "stages": stages, "files_mb": files / 1e6}


@contextlib.contextmanager
def trivial_networks(classes: int) -> Iterator[None]:
    """nnunetv2 loads what it is given, and then runs `Trivial`."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    load = nnUNetPredictor.initialize_from_trained_model_folder

    def load_trivial(self: Any, *arguments: Any) -> None:
        load(self, *arguments)
        self.network = Trivial(classes, len(self.configuration_manager.patch_size))
        self.list_of_parameters = [self.network.state_dict()]

    with mock.patch.object(nnUNetPredictor, "initialize_from_trained_model_folder", load_trivial):
        yield


def _predict_theirs(job: Job, results: str, out: str, probabilities: bool = False) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        0.5, True, job["mirroring"], False, torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(
        results, tuple(job["folds"]), "checkpoint_final.pth"
    )
    predictor.predict_from_files_sequential([[job["image"]]], [out], probabilities, True, None)


class Trivial(nn.Module):
    """Costs nothing: the logits of each class are a line over the image."""

    def __init__(self, classes: int, dimensions: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)  # 2D and 3D mostly agree, as trained ones do
        shape = (1, classes, *[1] * dimensions)
        self.register_buffer("slope", 3 * torch.randn(shape, generator=generator))
        self.register_buffer("offset", torch.randn(shape, generator=generator))

    def forward(self, batch: Tensor) -> Tensor:
        return torch.addcmul(self.offset, self.slope, batch[:, :1])


class _TrivialRunner:
    """Stands in for `BatchRunner`."""

    def __init__(self, network: nn.Module, half: str = "network") -> None:
        (head,) = network.decoder["seg_layers"].children()
        self._network = Trivial(head.out_channels, head.weight.ndim - 2)

    @torch.no_grad()
    def __call__(self, batch: Tensor, compute: Any) -> Tensor:
        logits: Tensor = self._network(batch)
        return logits


def after_one_tile(job: Job) -> float:
    """Peak memory once the trivial network has answered for one tile: what is not the pipeline's."""
    Trivial(job["classes"])(torch.zeros(1, 1, *job["patch"]))
    return peak_mb()


def our_argmax(job: Job) -> Figures:
    """Logits read slab by slab as the engine does."""
    from medsegai.inference.activation import Activation
    from medsegai.inference.probabilities import StreamedProbabilities
    from medsegai.volume import Geometry

    values = torch.from_numpy(np.load(job["logits"])).float()
    grid = Geometry.from_spacing(job["shape"], (1.0, 1.0, 1.0))
    native = grid.resized(tuple(values.shape[1:]))
    found = np.empty(job["shape"], np.uint8)
    planes = max(1, (1 << 20) // (job["shape"][1] * job["shape"][2]))

    def read() -> NDArray[Any]:
        slabs = iter(values.split(1, 1))
        logits = StreamedProbabilities(range(len(values)), native, slabs, Activation.LOGITS)
        for k0 in range(0, grid.shape[0], planes):
            k1 = min(k0 + planes, grid.shape[0])
            found[k0:k1] = logits.argmax(Slab(grid, k0, k1)).numpy()
        return found

    return _argmax_figures(read, job)


def their_argmax(job: Job) -> Figures:
    """nnunetv2's resampling, of the float16 that its predictor gives or (`exact`) of float32, and argmax."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    values = np.load(job["logits"]).astype(np.float32 if job.get("exact") else np.float16)
    spacing = [full / low for full, low in zip(job["shape"], values.shape[1:], strict=True)]

    def read() -> NDArray[Any]:
        resampled = resample_data_or_seg_to_shape(
            torch.from_numpy(values), job["shape"], spacing, (1.0, 1.0, 1.0), order=1
        )
        return torch.from_numpy(resampled).argmax(0).numpy()  # as their label manager

    return _argmax_figures(read, job)


def _argmax_figures(read: Callable[[], NDArray[Any]], job: Job) -> Figures:
    torch.set_num_threads(1)
    found, figures = measured(read)
    np.save(job["labels"], found.astype(np.uint8))
    return {"cpu_seconds": figures["cpu"], "extra_mb": figures["mb"]}


def image(job: Job) -> Figures:
    """Both ways of resampling an image: a row of `resampling.py`."""
    import resampling

    torch.set_num_threads(1)
    case = next(resampling.cases())
    return resampling.figures_of(case, job["rounds"])


@contextlib.contextmanager
def timing(owner: Any, name: str, stage: str, stages: dict[str, float]) -> Iterator[None]:
    """Add up what calls of `owner.name` take."""
    function = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            stages[stage] = stages.get(stage, 0.0) + time.perf_counter() - begin

    with mock.patch.object(owner, name, timed):
        yield


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


SIDES: dict[str, Callable[[Job], Figures]] = {
    "ours": ours,
    "theirs": theirs,
    "their ensemble": their_ensemble,
    "our argmax": our_argmax,
    "their argmax": their_argmax,
    "image": image,
}

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
    print(json.dumps(SIDES[sys.argv[1]](json.loads(sys.argv[2]))))
