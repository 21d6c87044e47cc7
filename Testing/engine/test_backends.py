"""Backends give the same answer, and the job goes on when memory runs out."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import medsegai
import tiny_quicknat
from medsegai.errors import DeviceError
from medsegai.networks import backends, compiled_cache
from medsegai.networks.backends import BatchRunner, Compute, choose_compute, make_runner
from medsegai.networks.unet import build_unet

CPU = torch.device("cpu")
SLICES = torch.rand(5, 3, 32, 48, generator=torch.Generator().manual_seed(0))

PATCHES = torch.randn(2, 1, 16, 24, 32, generator=torch.Generator().manual_seed(0))
BACKENDS = ["torch", "openvino"]


def need(backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="the extra `cpu` is not installed")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEGAI_CACHE", str(tmp_path))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mixed", [False, True])
def test_every_backend_gives_the_logits_of_the_plain_network(backend: str, mixed: bool) -> None:
    need(backend)
    network = tiny_quicknat.network(4, slices=3)
    with torch.inference_mode():
        plain = network(SLICES)
    logits = make_runner(network, Compute(CPU, backend, mixed))(SLICES)
    tolerance = 0.05 if mixed else 1e-4
    assert (logits - plain).abs().max() < tolerance * plain.abs().max()


def unet(dimensions: int = 3, seed: int = 0, **changes: Any) -> nn.Module:
    """A U-Net of nnU-Net's with random weights: one channel in, three classes out."""
    one, two, three = ([size] * dimensions for size in (1, 2, 3))
    arguments = {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": f"torch.nn.Conv{dimensions}d",
        "kernel_sizes": [three] * 3,
        "strides": [one, two, two],
        "n_conv_per_stage": [2] * 3,
        "n_conv_per_stage_decoder": [2] * 2,
        "conv_bias": True,
        "norm_op": f"torch.nn.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    network = build_unet("PlainConvUNet", arguments | changes, 1, 3).to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    for values in network.state_dict().values():
        values.uniform_(-0.3, 0.5, generator=generator)
    return network


def least(seed: int = 0) -> nn.Module:
    """The least network, for tests of the cache, because larger ones take a second to compile."""
    torch.manual_seed(seed)
    return nn.Conv2d(SLICES.shape[1], 4, 3, padding=1).eval()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_unets_run_on_every_backend(backend: str, mixed: bool, dimensions: int) -> None:
    need(backend)
    network = unet(dimensions)
    batch = PATCHES if dimensions == 3 else PATCHES[:, :, 0]
    with torch.inference_mode():
        plain = network(batch)
    logits = make_runner(network, Compute(CPU, backend, mixed), half="network")(batch)
    halved = mixed and backend == "openvino"  # torch answers in float32
    expected = torch.bfloat16 if halved else torch.float32
    assert (logits.dtype, logits.shape) == (expected, plain.shape)
    difference = (logits - plain).abs().max() / plain.abs().max()
    assert difference < (0.05 if mixed else 1e-5)
    if mixed and (backend == "torch" or backends.cpu_has_bfloat16()):
        assert difference > 1e-4, "the network was not run in half precision"


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_are_the_callers_own(backend: str) -> None:
    need(backend)
    runner = make_runner(unet(), Compute(CPU, backend, False))
    first = runner(PATCHES)
    kept = first.clone()
    runner(PATCHES + 1)
    assert torch.equal(first, kept)
    first.zero_()
    assert torch.equal(runner(PATCHES), kept)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("half", ["decoders", "network"])
def test_running_a_network_leaves_it_as_it_is(backend: str, half: backends.Half) -> None:
    need(backend)
    networks: tuple[tuple[nn.Module, Tensor], ...] = (
        (unet(), PATCHES),
        (tiny_quicknat.network(4, slices=3), SLICES),
    )
    for network, batch in networks:
        network.train()
        before = {name: values.clone() for name, values in network.state_dict().items()}
        make_runner(network, Compute(CPU, backend, True), half=half)(batch)
        assert network.training
        for name, values in network.state_dict().items():
            assert torch.equal(values, before[name]), name
            assert values.dtype == before[name].dtype


def test_a_runner_shares_the_weights_of_its_network() -> None:
    network = unet()
    runner: Any = make_runner(network, Compute(CPU, "torch", True), half="network")
    theirs = {values.data_ptr() for values in network.state_dict().values()}
    assert {values.data_ptr() for values in runner._network.state_dict().values()} == theirs


def test_dropout_of_a_unet_stays_active_where_it_is_asked_for() -> None:
    dropout = {"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.5}}
    network = unet(**dropout)
    compute = Compute(CPU, "torch", False)
    quiet = make_runner(network, compute)
    noisy = make_runner(network, compute, dropout=True)
    assert torch.equal(quiet(PATCHES), quiet(PATCHES))
    assert not torch.equal(noisy(PATCHES), noisy(PATCHES))


def test_openvino_traces_a_unet_on_the_smallest_patch_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need("openvino")
    network = unet(strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]])
    assert network.smallest == [4, 4, 4]
    sizes: list[torch.Size] = []
    forward = type(network).forward
    monkeypatch.setattr(
        type(network), "forward", lambda self, x: (sizes.append(x.shape), forward(self, x))[1]
    )
    runner = make_runner(network, Compute(CPU, "openvino", False))
    logits = runner(PATCHES)
    runner(PATCHES)
    assert sizes == [(1, 1, 4, 4, 4)]
    with torch.inference_mode():
        torch.testing.assert_close(logits, network(PATCHES), atol=1e-4, rtol=1e-4)


def test_large_networks_do_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("openvino")
    from medsegai.networks import openvino as runners

    compute = Compute(CPU, "openvino", False)
    small = make_runner(least(), compute)(SLICES)
    assert len(list(tmp_path.rglob("*.blob"))) == 1
    monkeypatch.setattr(runners, "KEPT_AT_MOST", 100)
    large = make_runner(least(seed=1), compute)(SLICES)
    assert len(list(tmp_path.rglob("*.blob"))) == 1
    assert not torch.allclose(small, large)


def test_precisions_are_kept_apart(tmp_path: Path) -> None:
    need("openvino")
    for mixed in (False, True):
        make_runner(least(), Compute(CPU, "openvino", mixed), half="network")(SLICES)
    assert len(list(tmp_path.rglob("*.blob"))) == 2


FOLDS_IN_TURN = """
import os, sys, test_backends as t, torch
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
patches = torch.zeros(1, 1, 48, 64, 64)
folds = [t.make_runner(t.unet(seed=seed, features_per_stage=[24, 8, 8]), t.Compute(t.CPU, "openvino", False))
         for seed in range(4)]
folds[0](patches)
one = resident()
expected = folds[0](patches)
for fold in folds[1:]:
    fold(patches)
assert torch.equal(folds[0](patches), expected)
print(resident() - one)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory in use as Linux tells it")
def test_folds_in_turn_work_in_the_memory_of_one() -> None:
    need("openvino")
    folders = [str(Path(tiny_quicknat.__file__).parent), str(Path(medsegai.__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-c", FOLDS_IN_TURN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    features = (
        24 * 48 * 64 * 64 * 4 / 2**20
    )  # one set of the largest features; a fold works with two or more
    assert float(done.stdout) < 2 * features


def test_openvino_pads_the_last_batch_and_gives_it_back_without_padding() -> None:
    pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    network = tiny_quicknat.network(4, slices=3)
    runner = make_runner(network, Compute(CPU, "openvino", False))
    with torch.inference_mode():
        plain = network(SLICES)
    runner(SLICES[:4])
    last = runner(SLICES[4:])
    assert last.shape[0] == 1
    torch.testing.assert_close(last, plain[4:], atol=1e-3, rtol=1e-3)


def test_the_compiled_form_is_kept_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    network = least()
    compute = Compute(CPU, "openvino", False)
    first = make_runner(network, compute)(SLICES).clone()
    kept = sorted((tmp_path / "openvino").glob("*.blob"))
    assert len(kept) == 1
    with pytest.MonkeyPatch.context() as patch:  # a second process must not convert again
        patch.setattr(openvino, "convert_model", lambda *_, **__: pytest.fail("converted again"))
        assert torch.equal(make_runner(network, compute)(SLICES), first)
    kept[0].write_bytes(b"damaged")
    torch.testing.assert_close(make_runner(network, compute)(SLICES), first)
    other = make_runner(least(seed=1), compute)(SLICES)
    assert not torch.allclose(other, first)


def test_a_compiled_form_is_believed_only_for_its_own_weights(tmp_path: Path) -> None:
    """Two blobs that change places would give each network the answers of the other."""
    need("openvino")
    compute = Compute(CPU, "openvino", False)
    networks = [least(seed) for seed in (0, 1)]
    first, second = (make_runner(network, compute)(SLICES).clone() for network in networks)
    one, other = (tmp_path / "openvino").glob("*.blob")
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])
    other.write_bytes(content[0])
    torch.testing.assert_close(make_runner(networks[0], compute)(SLICES), first)
    torch.testing.assert_close(make_runner(networks[1], compute)(SLICES), second)
    assert one.read_bytes() != content[1]
    assert other.read_bytes() != content[0]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_compiled_forms_are_the_users_alone(tmp_path: Path) -> None:
    folder = tmp_path / "openvino"
    folder.mkdir()
    folder.chmod(0o777)
    compiled_cache.keep("x.blob", b"network")
    assert {path.name for path in folder.iterdir()} == {"key", "x.blob"}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert compiled_cache.read_kept("x.blob") == b"network"
    assert compiled_cache.read_kept("y.blob") is None
    for damage in (b"", b"short", (folder / "x.blob").read_bytes()[:-1]):
        (folder / "x.blob").write_bytes(damage)
        assert compiled_cache.read_kept("x.blob") is None
    (folder / "x.blob").unlink()
    os.mkfifo(folder / "x.blob")
    assert compiled_cache.read_kept("x.blob") is None


def test_a_cache_that_is_a_link_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "openvino").symlink_to(tmp_path / "elsewhere")
    compiled_cache.keep("x.blob", b"network")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert compiled_cache.read_kept("x.blob") is None


CTRL_C_AFTER_OPENVINO = """
import gc, os, pathlib, signal, torch
from medsegai.networks.backends import Compute, make_runner
for _ in range(3):
    runner = make_runner(torch.nn.Conv2d(1, 4, 3), Compute(torch.device("cpu"), "openvino", False))
    runner(torch.rand(1, 1, 32, 32))
    del runner
    gc.collect()
    for kept in pathlib.Path(os.environ["MEDSEGAI_CACHE"]).glob("openvino/*"):
        kept.write_bytes(b"damaged")
signal.signal(signal.SIGINT, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGINT)
"""


def test_ctrl_c_is_heard_after_openvino_has_gone() -> None:
    pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    folders = [str(Path(tiny_quicknat.__file__).parent), str(Path(medsegai.__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-c", CTRL_C_AFTER_OPENVINO]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_a_cache_that_cannot_be_written_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEDSEGAI_CACHE", str(tmp_path / "file"))
    network = least()
    assert make_runner(network, Compute(CPU, "openvino", False))(SLICES).shape[0] == 5


def test_dropout_stays_active_where_it_is_asked_for() -> None:
    network = tiny_quicknat.network(4, slices=3)
    quiet = make_runner(network, Compute(CPU, "torch", False))
    noisy = make_runner(network, Compute(CPU, "torch", False), dropout=True)
    assert torch.equal(quiet(SLICES), quiet(SLICES))
    assert not torch.equal(noisy(SLICES), noisy(SLICES))


class SmallMemory(nn.Module):
    """Runs out of memory with more than `most` slices, and with any slice before `step_down`."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.sizes: list[int] = []

    def __call__(self, slices: Tensor) -> Tensor:
        self.sizes.append(slices.shape[0])
        if slices.shape[0] > self.most:
            raise torch.OutOfMemoryError("no memory")
        return slices * 2


def runner_with(monkeypatch: pytest.MonkeyPatch, makers: list[SmallMemory]) -> BatchRunner:
    waiting = iter(makers)
    monkeypatch.setattr(backends, "make_runner", lambda *_: next(waiting))
    return BatchRunner(nn.Identity())


def test_batches_grow_smaller_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SmallMemory(most=2)
    runner = runner_with(monkeypatch, [memory])
    compute = Compute(CPU, "torch", False)
    assert torch.equal(runner(SLICES, compute), SLICES * 2)
    assert memory.sizes[0] == 5
    assert max(memory.sizes[1:]) <= 2
    assert runner.batch_size(compute) == 2
    assert not compute.notes


def test_a_gpu_too_small_for_one_slice_gives_way_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = runner_with(monkeypatch, [SmallMemory(most=0), SmallMemory(most=9)])
    compute = Compute(torch.device("cuda", 0), "torch", False)
    monkeypatch.setattr(backends, "device_name", lambda device: str(device))
    assert torch.equal(runner(SLICES, compute), SLICES * 2)
    assert compute.device == CPU
    assert len(compute.notes) == 1
    assert "cuda:0" in compute.notes[0]


def test_a_cpu_without_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_with(monkeypatch, [SmallMemory(most=0)])
    with pytest.raises(DeviceError, match="too little memory"):
        runner(SLICES, Compute(CPU, "torch", False))


@pytest.mark.parametrize("device", ["cuda:7", "abacus", "mps:0"])
def test_a_device_that_is_not_there_is_named_with_those_that_are(device: str) -> None:
    with pytest.raises(DeviceError, match="cpu"):
        choose_compute(device)


def test_openvino_that_is_not_installed_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert choose_compute("cpu").backend == "torch"
    with pytest.raises(DeviceError, match=r"medsegai\[cpu\]"):
        choose_compute("cpu", "openvino")


def test_mixed_precision_is_chosen_only_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for has in (True, False):
        monkeypatch.setattr(backends, "cpu_has_bfloat16", lambda has=has: has)
        assert choose_compute("cpu").mixed is has
        assert choose_compute("cpu", precision="fp32").mixed is False
