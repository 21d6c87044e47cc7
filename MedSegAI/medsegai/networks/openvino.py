"""OpenVINO on the CPU: compiled once for each shape of slices, and kept for the next process."""

from __future__ import annotations

import contextlib
import copy
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
    """A network of two halves, slices (N, channels, H, W) to logits (N, classes, H, W), float32.

    Two models, so that the encoder keeps float32 where the decoder runs in bfloat16. Shapes are fixed, for
    with free ones OpenVINO is half as fast: a smaller last batch is filled up.
    """

    def __init__(self, network: nn.Module, mixed: bool) -> None:
        self._network = copy.deepcopy(network).eval()
        self._mixed = mixed
        self._weights = _fingerprint(network)
        self._batch = 1
        self._compiled: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def __call__(self, slices: Tensor) -> Tensor:
        count = slices.shape[0]
        shape = (max(count, self._batch), *slices.shape[1:])
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(slices)
            self._batch = count
        if count < shape[0]:
            slices = torch.cat((slices, slices[-1:].expand(shape[0] - count, -1, -1, -1)))
        encoder, decoder = self._compiled[shape]
        encoder.infer([openvino.Tensor(slices.contiguous().numpy(), shared_memory=True)])
        for index in range(len(decoder.model_inputs)):
            decoder.set_input_tensor(index, encoder.get_output_tensor(index))
        decoder.infer()
        return torch.from_numpy(decoder.get_output_tensor(0).data)[:count]

    @torch.inference_mode()
    def _compile(self, slices: Tensor) -> tuple[Any, Any]:
        encoder, decoder = _Encoder(self._network), _Decoder(self._network)
        kept = [self._cache_file(half, slices) for half in ("encoder", "decoder")]
        try:
            halves = [
                _restore(file, mixed)
                for file, mixed in zip(kept, (False, self._mixed), strict=True)
            ]
        except (OSError, RuntimeError):  # not there yet, damaged, or of another processor
            halves = [
                _compile(encoder, (slices,), False, kept[0]),
                _compile(decoder, encoder(slices), self._mixed, kept[1]),
            ]
        return halves[0].create_infer_request(), halves[1].create_infer_request()

    def _cache_file(self, half: str, slices: Tensor) -> Path:
        """Named by everything that the compiled form depends on."""
        capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        processor = openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
        parts = (
            self._weights,
            half,
            tuple(slices.shape),
            _settings(self._mixed),
            openvino.get_version(),
            processor,
            sorted(capabilities),
        )
        return (
            cache_folder() / "openvino" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()}.blob"
        )


class _Encoder(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, slices: Tensor) -> tuple[Tensor, ...]:
        features: tuple[Tensor, ...] = self.network.encode(slices)
        return features


class _Decoder(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, *features: Tensor) -> Tensor:
        logits: Tensor = self.network.decode(*features)
        return logits


def cache_folder() -> Path:
    """Where compiled networks are kept: MEDSEGAI_CACHE, or a folder of the user's own. It can be deleted."""
    chosen = os.environ.get("MEDSEGAI_CACHE")
    return Path(chosen) if chosen else Path.home() / ".medsegai" / "cache"


def _settings(mixed: bool) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if mixed else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }


def _restore(file: Path, mixed: bool) -> Any:
    return openvino.Core().import_model(file.read_bytes(), "CPU", _settings(mixed))


def _compile(half: nn.Module, example: tuple[Tensor, ...], mixed: bool, kept: Path) -> Any:
    shapes = [openvino.PartialShape(list(part.shape)) for part in example]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Converting a tensor")  # shapes are fixed on purpose
        model = openvino.convert_model(half, example_input=example, input=shapes)
    compiled = openvino.Core().compile_model(model, "CPU", _settings(mixed))
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
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()
