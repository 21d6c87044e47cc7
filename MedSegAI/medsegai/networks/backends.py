"""Backends that run a network: torch on a GPU or CPU, or OpenVINO on a CPU.

A `Runner` takes slices or patches and returns logits, whichever backend it uses. On CPUs OpenVINO is twice as fast
as torch and needs no compiler. The family says which parts of a network tolerate half precision (`Half`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from medsegai.errors import DeviceError
from medsegai.networks.measured import MeasuredRunner
from medsegai.networks.memory import release_freed_memory
from medsegai.networks.streamlined import streamlined, with_same_weights
from medsegai.system.machine import usable_cores

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


Half = Literal["decoders", "network"]
"""The part of a network that is in half precision in a job of mixed precision: the large convolutions of decoders,
because in an encoder half precision flips positions of pooling maxima; or the whole network, where pooling does
not use positions (docs/performance/speed.md has the figures)."""


class Runner(Protocol):
    """Batches (N, channels, H, W) or (N, channels, D, H, W), float32, to logits (N, classes, ...).

    The logits are float32, or bfloat16 where the whole network computes in it. They belong to the caller: no later
    call changes them.
    """

    def __call__(self, batch: Tensor) -> Tensor: ...

    def prepare(self, shape: Sequence[int]) -> None:
        """Prepare in advance what the first batch of this shape would have to wait for."""
        ...

    def expect(self, batches: int) -> None:
        """Note how many batches are about to come."""
        ...


@dataclass
class Compute:
    """Where and how networks run, decided once for a job.

    Attributes:
        device: the device of the networks. It becomes the CPU when a GPU has too little memory for one slice.
        backend: "torch" or "openvino". It becomes torch where OpenVINO cannot run a network.
        mixed: whether half precision is used where a network tolerates it.
        notes: changes that were necessary on the way, in words.
    """

    device: torch.device
    backend: str
    mixed: bool
    notes: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Return device, backend and precision in words."""
        precision = "mixed precision" if self.mixed else "fp32"
        return f"{device_name(self.device)}, {self.backend}, {precision}"

    def release_memory(self) -> None:
        """Return to the system the memory in which networks worked; the networks stay ready."""
        if self.backend == "openvino":
            from medsegai.networks.openvino import release_working_memory

            release_working_memory()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        release_freed_memory()

    def leave_openvino(self) -> None:
        """Run networks with torch for the rest of the job: OpenVINO lacks some of their operations."""
        note = "OpenVINO cannot run this network, so PyTorch ran it, which is slower."
        logger.warning(note)
        self.notes.append(note)
        self.backend = "torch"

    def step_down(self) -> None:
        """Leave the GPU for the rest of the job."""
        note = f"{device_name(self.device)} had too little memory for a single slice, so the CPU was used."
        logger.warning(note)
        self.notes.append(note)
        cpu = choose_compute("cpu", "auto", "auto" if self.mixed else "fp32")
        self.device, self.backend, self.mixed = cpu.device, cpu.backend, cpu.mixed


def choose_compute(device: str = "auto", backend: str = "auto", precision: str = "auto") -> Compute:
    """Settle device, backend and precision.

    Raises:
        DeviceError: this computer does not have the device or backend; the message says what it has.
    """
    limit_threads()
    chosen = choose_device(device)
    if chosen.type == "cuda":
        if backend == "openvino":
            raise DeviceError(
                "OpenVINO runs on the CPU here. Choose --device cpu or --backend torch."
            )
        return Compute(chosen, "torch", mixed=precision != "fp32")
    backend = _backend_on_cpu(backend)
    mixed = precision == "mixed" or (precision == "auto" and cpu_has_bfloat16())
    return Compute(CPU, backend, mixed)


def _backend_on_cpu(backend: str) -> str:
    has_openvino = importlib.util.find_spec("openvino") is not None
    if backend == "openvino" and not has_openvino:
        raise DeviceError(
            "OpenVINO is not installed. Run `pip install medsegai[cpu]` or choose --backend torch."
        )
    return "openvino" if backend != "torch" and has_openvino else "torch"


def limit_threads() -> None:
    """Limit threads to the processors of the container; torch counts those of the machine and would wait."""
    if torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def cpu_has_bfloat16() -> bool:
    """Whether the processor has bfloat16 arithmetic; emulated, it would be slower than float32."""
    capability = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in capability and bool(torch.cpu._is_avx512_bf16_supported())


def device_name(device: torch.device) -> str:
    """Return the name of the graphics card, or CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def make_runner(
    network: nn.Module, compute: Compute, dropout: bool = False, half: Half = "decoders"
) -> Runner:
    """Make a runner for `network`, which stays unchanged. With `dropout` its dropout layers are active."""
    network = with_same_weights(network).eval()
    for layer in network.modules():
        if isinstance(layer, _DropoutNd):
            layer.train(dropout)
    kind = torch.bfloat16 if compute.device.type == "cpu" else torch.float16
    if compute.mixed and half == "decoders":
        _halve_decoders(network, kind)
    whole = kind if compute.mixed and half == "network" else torch.float32
    if compute.backend == "openvino" and not dropout:
        return _openvino_runner(network, compute, whole)
    return TorchRunner(network, compute.device, whole)


def _openvino_runner(network: nn.Module, compute: Compute, whole: torch.dtype) -> Runner:
    """Compile a network; one that had to be exported runs in PyTorch until OpenVINO proves faster."""
    from medsegai.networks.openvino import OpenVinoRunner

    precision: Literal["f32", "bf16"] = "f32" if whole is torch.float32 else "bf16"
    compiled = OpenVinoRunner(streamlined(network), precision)
    if compiled.is_exported:
        return MeasuredRunner(TorchRunner(network, compute.device, whole), compiled)
    return compiled


class TorchRunner:
    """A network run by eager torch. In 2D, channels are last, which is faster; in 3D that does not help."""

    def __init__(
        self, network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """`dtype` is the precision in which the whole network computes."""
        self._device = device
        self._dtype = dtype
        self._network = network.to(device)
        volumetric = any(values.ndim == 5 for values in network.parameters())
        self._format = torch.contiguous_format if volumetric else torch.channels_last
        if not volumetric:
            self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        batch = batch.to(self._device, non_blocking=True).contiguous(memory_format=self._format)
        halved = self._dtype is not torch.float32
        with torch.autocast(self._device.type, self._dtype, enabled=halved):
            logits: Tensor = self._network(batch)
        return logits.float()

    def prepare(self, shape: Sequence[int]) -> None:
        """Do nothing, because eager torch is ready."""

    def expect(self, batches: int) -> None:
        """Do nothing, because eager torch runs all batches alike."""


class BatchRunner:
    """Runs a network on batches, which become smaller, and move to the CPU, when memory runs out.

    The result does not depend on the batch size.
    """

    def __init__(self, network: nn.Module, dropout: bool = False, half: Half = "decoders") -> None:
        self._network = network
        self._dropout = dropout
        self._half: Half = half
        self._runner: Runner | None = None
        self._placed: torch.device | None = None
        self._largest = 1 << 30

    def batch_size(self, compute: Compute) -> int:
        """Return the number of inputs that the network sees at once."""
        return min(self._largest, 4 if compute.device.type == "cpu" else 32)

    def __call__(self, batch: Tensor, compute: Compute) -> Tensor:
        """Compute logits (N, classes, ...), which belong to the caller, from batches (N, channels, ...)."""
        try:
            return self._place(compute)(batch)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        if batch.shape[0] > 1:
            self._largest = batch.shape[0] // 2
            return torch.cat([self(part, compute) for part in batch.split(self._largest)])
        if compute.device.type == "cpu":
            what = "patch" if batch.ndim == 5 else "slice"
            raise DeviceError(
                f"The computer has too little memory for a single {what}. Close other programs."
            )
        compute.step_down()
        return self(batch, compute)

    def expect(self, compute: Compute, batches: int) -> None:
        """Say how many batches are about to come, so that what takes long is prepared for many only."""
        self._place(compute).expect(batches)

    def warm_up(self, compute: Compute, shape: Sequence[int] | None = None) -> None:
        """Place the network on its device, and prepare it for batches of this shape, if that is known."""
        runner = self._place(compute)
        if shape is not None:
            with contextlib.suppress(RuntimeError, ValueError):  # the first batch handles it
                runner.prepare(shape)

    def _place(self, compute: Compute) -> Runner:
        if self._runner is None or self._placed != compute.device:
            self._runner = make_runner(self._network, compute, self._dropout, self._half)
            self._placed = compute.device
        return self._runner


class _HalfConv2d(nn.Module):
    """A convolution that computes in `dtype` and takes and gives float32."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv = conv.to(dtype)
        self.dtype = dtype

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.conv(features.to(self.dtype)).float()
        return result


def _halve_decoders(network: nn.Module, dtype: torch.dtype) -> None:
    for name, block in network.named_children():
        if name.startswith("decode"):
            for key, layer in list(block.named_children()):
                if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1:
                    setattr(block, key, _HalfConv2d(layer, dtype))


def choose_device(device: str) -> torch.device:
    """Return the device of a name; `auto` takes the GPU with most free memory.

    Raises:
        DeviceError: the device is unknown, or does not exist on this computer.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        if not count:
            return CPU
        free = [torch.cuda.mem_get_info(index)[0] for index in range(count)]
        return torch.device("cuda", free.index(max(free)))
    chosen = _named_device(device)
    if chosen.type == "cuda" and (chosen.index or 0) < count:
        return torch.device("cuda", chosen.index or 0)
    if chosen.type != "cpu":
        raise _missing(device, count)
    return CPU


def _named_device(device: str) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError:
        raise DeviceError(
            f"The device {device!r} is unknown. Choose auto, cpu, cuda or cuda:N."
        ) from None


def _missing(device: str, count: int) -> DeviceError:
    """Return the error that names the devices of this computer, with `count` GPUs."""
    names = ", ".join(
        f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(count)
    )
    return DeviceError(
        f"This computer does not have the device {device!r}. Available devices: "
        f"cpu{', ' + names if names else ''}."
    )
