"""What runs a network: torch on a GPU or CPU, or OpenVINO on a CPU.

A `Runner` takes slices or patches and gives logits, whatever is behind it. On CPUs OpenVINO is twice as fast as
torch and needs no compiler. Where a network bears half precision is said by its family (`Half`).
"""

from __future__ import annotations

import contextlib
import copy
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
from medsegai.system.machine import usable_cores

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


Half = Literal["decoders", "network"]
"""What of a network is in half precision where the job is in mixed precision: the large convolutions of decoders,
for in an encoder half precision flips positions of pooling maxima; or all of it, where nothing is pooled so
(docs/performance/speed.md has the figures)."""


class Runner(Protocol):
    """Batches (N, channels, H, W) or (N, channels, D, H, W), float32, to logits (N, classes, ...), float32.

    Logits are the caller's own: no later call changes them.
    """

    def __call__(self, batch: Tensor) -> Tensor: ...

    def prepare(self, shape: Sequence[int]) -> None:
        """Do before the first batch of this shape what it would have to wait for."""
        ...

    def expect(self, batches: int) -> None:
        """Hear how many batches are about to come."""
        ...


@dataclass
class Compute:
    """Where and how networks run, decided once for a job.

    Attributes:
        device: of the networks. It becomes the CPU when a GPU has too little memory for one slice.
        backend: "torch" or "openvino". It becomes torch where OpenVINO cannot run a network.
        mixed: half precision, where a network bears it.
        notes: what had to be changed on the way, in words.
    """

    device: torch.device
    backend: str
    mixed: bool
    notes: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Return device, backend and precision in words."""
        precision = "mixed precision" if self.mixed else "fp32"
        return f"{device_name(self.device)}, {self.backend}, {precision}"

    def leave_openvino(self) -> None:
        """Run networks by torch for the rest of the job: OpenVINO does not know all of their operations."""
        note = "OpenVINO cannot run this network; PyTorch took over, which is slower."
        logger.warning(note)
        self.notes.append(note)
        self.backend = "torch"

    def step_down(self) -> None:
        """Leave the GPU for the rest of the job."""
        note = f"{device_name(self.device)} had too little memory for a single slice; the CPU took over."
        logger.warning(note)
        self.notes.append(note)
        cpu = choose_compute("cpu", "auto", "auto" if self.mixed else "fp32")
        self.device, self.backend, self.mixed = cpu.device, cpu.backend, cpu.mixed


def choose_compute(device: str = "auto", backend: str = "auto", precision: str = "auto") -> Compute:
    """Settle device, backend and precision.

    Raises:
        DeviceError: what was asked for is not on this computer; the message says what is.
    """
    limit_threads()
    chosen = _choose_device(device)
    if chosen.type == "cuda":
        if backend == "openvino":
            raise DeviceError(
                "OpenVINO runs on the CPU here. Choose --device cpu or --backend torch."
            )
        return Compute(chosen, "torch", mixed=precision != "fp32")
    has_openvino = importlib.util.find_spec("openvino") is not None
    if backend == "openvino" and not has_openvino:
        raise DeviceError(
            "OpenVINO is not installed. Run `pip install medsegai[cpu]` or choose --backend torch."
        )
    backend = (
        "openvino" if backend == "openvino" or (backend == "auto" and has_openvino) else "torch"
    )
    mixed = precision == "mixed" or (precision == "auto" and cpu_has_bfloat16())
    return Compute(CPU, backend, mixed)


def limit_threads() -> None:
    """Not more threads than the container has processors: torch counts those of the machine, and would wait."""
    if torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def cpu_has_bfloat16() -> bool:
    """Whether bfloat16 arithmetic is in the processor; emulated it would be slower than float32."""
    capability = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in capability and bool(torch.cpu._is_avx512_bf16_supported())


def device_name(device: torch.device) -> str:
    """Return the name of the graphics card, or CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def make_runner(
    network: nn.Module, compute: Compute, dropout: bool = False, half: Half = "decoders"
) -> Runner:
    """`network` made ready to run; itself it stays as it is. With `dropout` its dropout layers are active."""
    network = _with_same_weights(network).eval()
    for layer in network.modules():
        if isinstance(layer, _DropoutNd):
            layer.train(dropout)
    kind = torch.bfloat16 if compute.device.type == "cpu" else torch.float16
    if compute.mixed and half == "decoders":
        _halve_decoders(network, kind)
    whole = kind if compute.mixed and half == "network" else torch.float32
    if compute.backend == "openvino" and not dropout:
        from medsegai.networks.openvino import OpenVinoRunner
        from medsegai.networks.streamlined import streamlined

        precision: Literal["f32", "bf16"] = "f32" if whole is torch.float32 else "bf16"
        compiled = OpenVinoRunner(streamlined(network), precision)
        if compiled.is_exported:
            return MeasuredRunner(TorchRunner(network, compute.device, whole), compiled)
        return compiled
    return TorchRunner(network, compute.device, whole)


def _with_same_weights(network: nn.Module) -> nn.Module:
    """A copy of the layers that shares the weights, so that several folds do not stand twice in memory."""
    same: dict[int, object] = {id(values): values for values in network.buffers()}
    for values in network.parameters():
        same[id(values)] = nn.Parameter(values.data, requires_grad=False)
    return copy.deepcopy(network, same)


class TorchRunner:
    """Eager torch. Channels are last in 2D, where that is faster; in 3D it gains nothing."""

    def __init__(
        self, network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """`dtype` is what the whole network computes in."""
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
    """A network on batches, which grow smaller, and leave the GPU, when memory runs out.

    The result does not depend on the size of the batch.
    """

    def __init__(self, network: nn.Module, dropout: bool = False, half: Half = "decoders") -> None:
        self._network = network
        self._dropout = dropout
        self._half: Half = half
        self._runner: Runner | None = None
        self._placed: torch.device | None = None
        self._largest = 1 << 30

    def batch_size(self, compute: Compute) -> int:
        """Inputs that the network sees at once."""
        return min(self._largest, 4 if compute.device.type == "cpu" else 32)

    def __call__(self, batch: Tensor, compute: Compute) -> Tensor:
        """Batches (N, channels, ...) to logits (N, classes, ...) that are the caller's own."""
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
                f"There is too little memory for a single {what}. Close other programs."
            )
        compute.step_down()
        return self(batch, compute)

    def expect(self, compute: Compute, batches: int) -> None:
        """Say how many batches are about to come, so that what takes long is prepared for many only."""
        self._place(compute).expect(batches)

    def warm_up(self, compute: Compute, shape: Sequence[int] | None = None) -> None:
        """Place the network, and make it ready for batches of this shape, where that is known."""
        runner = self._place(compute)
        if shape is not None:
            with contextlib.suppress(RuntimeError, ValueError):  # the first batch meets it too
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


def _choose_device(device: str) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        if not count:
            return CPU
        free = [torch.cuda.mem_get_info(index)[0] for index in range(count)]
        return torch.device("cuda", free.index(max(free)))
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise DeviceError(
            f"There is no device {device!r}. Choose auto, cpu, cuda or cuda:N."
        ) from None
    if chosen.type == "cuda" and (chosen.index or 0) < count:
        return torch.device("cuda", chosen.index or 0)
    if chosen.type != "cpu":
        names = ", ".join(
            f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(count)
        )
        raise DeviceError(
            f"Device {device!r} is not on this computer. There is: cpu{', ' + names if names else ''}."
        )
    return CPU
