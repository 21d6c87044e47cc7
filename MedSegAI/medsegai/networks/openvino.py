"""Networks run by OpenVINO on the CPU, compiled once for each batch shape and cached for the next process."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import sys
import warnings
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from medsegai.networks.compiled_cache import keep, read_kept
from medsegai.networks.memory import release_freed_memory

# On import, OpenVINO reports to Google Analytics unless it cannot find the package that does so. Nothing leaves
# this computer; Testing/architecture/test_privacy.py holds that.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

KEPT_AT_MOST = 64 * 2**20
"""The largest size of the weights, in bytes, of a network whose compiled form is kept. Larger ones would fill the
disk, and run so long that compiling hardly counts."""


VOLUMES = 5
"""The axes of batches of volumes."""


class OpenVinoRunner:
    """A network as OpenVINO runs it: batches (N, channels, ...) to logits (N, classes, ...).

    Shapes are fixed, because OpenVINO is half as fast with free ones: a smaller last batch is filled up.
    The logits have the precision in which the network computes: as float32 those of a large patch took
    twice the memory. In 3D the logits of a voxel lie together in memory, as OpenVINO computes them: to rearrange
    those of a window took OpenVINO a tenth of the time of its convolutions.
    """

    _last: ClassVar[weakref.ref[OpenVinoRunner] | None] = None

    def __init__(self, network: nn.Module, precision: Literal["f32", "bf16"] = "f32") -> None:
        """`precision` is the highest precision of operations; `network` itself may use a lower one for some."""
        self._network = network
        self._settings = _settings(precision)
        self._logits = torch.float32 if precision == "f32" else torch.bfloat16
        self._small = sum(v.nbytes for v in network.state_dict().values()) <= KEPT_AT_MOST
        self._fingerprint = _fingerprint(network) if self._small else ""
        self._batch = 1
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, batch: Tensor) -> Tensor:
        count = batch.shape[0]
        shape = (max(count, self._batch), *batch.shape[1:])
        if shape not in self._compiled:
            self.prepare(batch.shape)
        if count < shape[0]:
            missing = batch[-1:].expand(shape[0] - count, *batch.shape[1:])
            batch = torch.cat((batch, missing))
        self._take_over()
        compiled = self._compiled[shape]
        output = torch.empty(tuple(compiled.output(0).shape), dtype=self._logits)
        request = compiled.create_infer_request()
        request.set_output_tensor(_shared(output))
        request.infer(
            [_shared(batch.contiguous())],
            share_outputs=True,  # otherwise it would return a copy, which is not used here
        )
        logits = output.movedim(-1, 1) if output.ndim == VOLUMES else output
        return logits[:count]

    @property
    def is_exported(self) -> bool:
        """Whether the network must be exported, which takes many seconds."""
        return bool(getattr(self._network, "exported", False))

    def is_ready(self, shape: Sequence[int]) -> bool:
        """Whether batches of this shape run at once."""
        return (max(shape[0], self._batch), *shape[1:]) in self._compiled

    def expect(self, batches: int) -> None:
        """Do nothing, because all batches run alike."""

    def prepare(self, shape: Sequence[int]) -> None:
        """Compile the network for batches of this shape, unless that is done."""
        if tuple(shape) not in self._compiled:
            self._compiled[tuple(shape)] = self._compile(torch.zeros(tuple(shape)))
            release_freed_memory()  # compiling takes more than a patch does
            self._batch = shape[0]

    def _take_over(self) -> None:
        """Let only the network that ran last keep working memory, so that several folds need no more than one."""
        if OpenVinoRunner._last is None or OpenVinoRunner._last() is not self:
            release_working_memory()
        OpenVinoRunner._last = weakref.ref(self)

    @torch.inference_mode()
    def _compile(self, batch: Tensor) -> Any:
        if not self._small:
            return _core().compile_model(self._model(batch), "CPU", self._settings)
        name = self._cache_name(batch)
        blob = read_kept(name)
        if blob is not None:
            with contextlib.suppress(RuntimeError):  # the blob was compiled for another processor
                return _core().import_model(blob, "CPU", self._settings)
        compiled = _core().compile_model(self._model(batch), "CPU", self._settings)
        exported = io.BytesIO()
        compiled.export_model(exported)
        keep(name, exported.getvalue())
        return compiled

    def _model(self, batch: Tensor) -> Any:
        """Return the network as an OpenVINO model, whose output has the type of the logits."""
        order = openvino.preprocess.PrePostProcessor(_converted(self._network, batch))
        order.output().tensor().set_element_type(_TYPES[self._logits])
        if batch.ndim == VOLUMES:
            order.output().model().set_layout(openvino.Layout("NCDHW"))
            order.output().tensor().set_layout(openvino.Layout("NDHWC"))
        return order.build()

    def _cache_name(self, batch: Tensor) -> str:
        """Return a name made of everything on which the compiled form depends."""
        core = _core()
        processor = core.get_property("CPU", "FULL_DEVICE_NAME")
        capabilities = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        version = openvino.get_version()
        parts = (
            self._fingerprint,
            tuple(batch.shape),
            self._settings,
            self._logits,
            "voxels' logits together",
            version,
            processor,
            capabilities,
        )
        return f"{hashlib.sha256(repr(parts).encode()).hexdigest()}.blob"


_TYPES = {torch.float32: openvino.Type.f32, torch.bfloat16: openvino.Type.bf16}


def _shared(values: Tensor) -> Any:
    """Return an OpenVINO tensor that shares the memory. NumPy has no bfloat16, so it gets raw 16-bit words."""
    if values.dtype is torch.float32:
        return openvino.Tensor(values.numpy(), shared_memory=True)
    raw = values.view(torch.uint16).numpy()
    return openvino.Tensor(raw, openvino.Shape(list(values.shape)), _TYPES[values.dtype])


def release_working_memory() -> None:
    """Free the memory in which the last network worked; it stays compiled."""
    last = OpenVinoRunner._last() if OpenVinoRunner._last else None
    if last is not None:
        for compiled in last._compiled.values():
            compiled.release_memory()


@functools.cache
def _core() -> Any:
    """Return the core, one for the life of the process. It gives the thread a stack for signals; if the core were
    freed, the next signal, such as Ctrl-C, would use freed memory and end the process."""
    return openvino.Core()


def _settings(precision: str) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }


def _converted(network: nn.Module, batch: Tensor) -> Any:
    """Convert `network` to OpenVINO, for batches of this shape.

    Tracing runs the network. A network that states its `smallest` image is traced on that. OpenVINO converts a
    trace wrongly, and warns of it, where sizes are computed in padded windows, as in a SwinUNETR; such a network
    is exported instead, which takes longer, with all sizes as numbers. One that says that it must be `exported` is
    not traced, because that takes as long as a batch in PyTorch.
    """
    if getattr(network, "exported", False):
        return _exported(network, batch)
    smallest = getattr(network, "smallest", None)
    example = batch if smallest is None else batch.new_zeros(1, batch.shape[1], *smallest)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Converting a tensor")  # shapes are fixed on purpose
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, which OpenVINO reads
        traced = torch.jit.trace(
            network, (example,), check_trace=False
        )  # a check would run it three more times
        try:
            return openvino.convert_model(traced, input=[openvino.PartialShape(list(batch.shape))])
        except RuntimeError:
            del traced
            return _exported(network, batch)


def _exported(network: nn.Module, batch: Tensor) -> Any:
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        exported = torch.export.export(network, (batch.clone(),), strict=False)
        return openvino.convert_model(exported)


def _fingerprint(network: nn.Module) -> str:
    digest = hashlib.sha256(repr(network).encode())
    for name, values in network.state_dict().items():
        digest.update(name.encode())
        digest.update(values.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
