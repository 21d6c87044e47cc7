"""OpenVINO on the CPU: compiled once for each shape of slices, and kept for the next process."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medsegai.errors import OutputError
from medsegai.io.atomic import atomic_path

# When it is imported, OpenVINO reports to Google Analytics unless it cannot find the package that does
# so. Nothing leaves this computer: Testing/architecture/test_privacy.py.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402


class OpenVinoRunner:
    """A network as OpenVINO runs it: slices (N, channels, H, W) to logits (N, classes, H, W), float32.

    Each operation keeps the precision it has in `network`. Shapes are fixed, for with free ones OpenVINO is
    half as fast: a smaller last batch is filled up.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._fingerprint = _fingerprint(network)
        self._batch = 1
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, slices: Tensor) -> Tensor:
        count = slices.shape[0]
        shape = (max(count, self._batch), *slices.shape[1:])
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(slices)
            self._batch = count
        if count < shape[0]:
            slices = torch.cat((slices, slices[-1:].expand(shape[0] - count, -1, -1, -1)))
        request = self._compiled[shape]
        request.infer([openvino.Tensor(slices.contiguous().numpy(), shared_memory=True)])
        return torch.from_numpy(request.get_output_tensor(0).data)[:count]

    @torch.inference_mode()
    def _compile(self, slices: Tensor) -> Any:
        kept = self._cache_file(slices)
        try:
            compiled = _core().import_model(kept.read_bytes(), "CPU", _settings())
        except (OSError, RuntimeError):  # not there yet, damaged, or of another processor
            compiled = _compile(self._network, slices, kept)
        return compiled.create_infer_request()

    def _cache_file(self, slices: Tensor) -> Path:
        """Named by everything that the compiled form depends on."""
        core = _core()
        processor = core.get_property("CPU", "FULL_DEVICE_NAME")
        capabilities = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        version = openvino.get_version()
        parts = (
            self._fingerprint,
            tuple(slices.shape),
            _settings(),
            version,
            processor,
            capabilities,
        )
        return (
            cache_folder() / "openvino" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()}.blob"
        )


def cache_folder() -> Path:
    """Where compiled networks are kept: MEDSEGAI_CACHE, or a folder of the user's own. It can be deleted."""
    chosen = os.environ.get("MEDSEGAI_CACHE")
    return Path(chosen) if chosen else Path.home() / ".medsegai" / "cache"


@functools.cache
def _core() -> Any:
    """One for the life of the process: it lends the thread a stack for signals, and when it goes the next
    signal, such as Ctrl-C, would meet freed memory and end the process."""
    return openvino.Core()


def _settings() -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }


def _compile(network: nn.Module, slices: Tensor, kept: Path) -> Any:
    shape = openvino.PartialShape(list(slices.shape))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Converting a tensor")  # shapes are fixed on purpose
        model = openvino.convert_model(network, example_input=(slices,), input=[shape])
    compiled = _core().compile_model(model, "CPU", _settings())
    with contextlib.suppress(
        OSError, OutputError
    ):  # without a cache the next start is slower, no more
        kept.parent.mkdir(parents=True, exist_ok=True)
        blob = io.BytesIO()
        compiled.export_model(blob)
        with atomic_path(kept) as partial:
            partial.write_bytes(blob.getvalue())
    return compiled


def _fingerprint(network: nn.Module) -> str:
    digest = hashlib.sha256(repr(network).encode())
    for name, values in network.state_dict().items():
        digest.update(name.encode())
        digest.update(values.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
