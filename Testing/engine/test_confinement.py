"""The process that reads a stranger's model: what it cannot do, and what becomes of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from medsegai.cli import main
from medsegai.errors import ModelError, OutputError, UnsafeModelError
from medsegai.models import importing
from medsegai.models.importing import Limits, import_model
from medsegai.system.confinement import confine
from nnunet_models import make_model

linux = pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")

ATTEMPTS = """
    import ctypes, json, mmap, os, signal, socket, subprocess, sys, threading
    from pathlib import Path
    from medsegai.system.confinement import confine, limit

    inside, outside = map(Path, sys.argv[1:])
    missing = confine(inside)
    limit(200 << 20, 60, 1 << 20)

    def fork():
        if os.fork() == 0:
            os._exit(0)
        os.wait()

    attempts = {
        "write outside": lambda: (outside / "new").write_text("x"),
        "change a file outside": lambda: (outside / "there").write_text("x"),
        "cut a file outside": lambda: os.truncate(outside / "there", 0),
        "remove a file outside": lambda: (outside / "there").unlink(),
        "make a folder outside": lambda: (outside / "folder").mkdir(),
        "move a file outside": lambda: (inside / "mine").rename(outside / "mine"),
        "move a file in": lambda: (outside / "there").rename(inside / "there"),
        "change rights": lambda: (outside / "there").chmod(0o777),
        "change an owner": lambda: os.chown(outside / "there", os.getuid(), os.getgid()),
        "change times": lambda: os.utime(outside / "there", (1, 1)),
        "add an attribute": lambda: os.setxattr(outside / "there", "user.x", b"x"),
        "make a link": lambda: (inside / "link").symlink_to("/etc/passwd"),
        "make a pipe": lambda: os.mkfifo(inside / "pipe"),
        "open a socket": lambda: socket.socket(),
        "open a socket of IPv6": lambda: socket.socket(socket.AF_INET6),
        "open a socket of Unix": lambda: socket.socket(socket.AF_UNIX),
        "start a program": lambda: subprocess.run(["/bin/true"]),
        "become a program": lambda: os.execv("/bin/true", ["true"]),
        "end its parent": lambda: os.kill(os.getppid(), signal.SIGTERM),
        "take much memory": lambda: bytearray(1 << 30),
        "write a large file": lambda: (inside / "large").write_bytes(bytes(2 << 20)),
        "take more time": lambda: __import__("resource").setrlimit(0, (1000, 1000)),
    }
    (inside / "mine").write_text("x")
    done = []
    for name, attempt in attempts.items():
        try:
            attempt()
            done.append(name)
        except (OSError, MemoryError, ValueError):
            pass

    def elsewhere():
        try:
            (outside / "thread").write_text("x")
            done.append("write from a thread")
        except OSError:
            pass

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    with open(os.devnull, "w") as nothing:
        nothing.write("x")
    print(json.dumps([missing, done]))
"""


@linux
def test_a_confined_process_can_do_no_harm(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "there").write_text("kept")
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ATTEMPTS), str(inside), str(outside)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    missing, done = json.loads(run.stdout)
    if missing:
        pytest.skip(f"this kernel, or the container, does not offer {', '.join(missing)}")
    assert done == []
    assert [path.name for path in outside.iterdir()] == ["there"]
    assert (outside / "there").read_text() == "kept"
    assert (inside / "mine").read_text() == "x"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "own"))
    return tmp_path / "own"


def test_a_model_is_imported_by_a_process_of_its_own(tmp_path: Path, own: Path) -> None:
    folder = make_model(tmp_path, folds=(0,))
    assert main(["models", "import", str(folder)]) == 0
    (card,) = own.rglob("card.json")
    assert [path.name for path in own.iterdir()] == [card.parent.name]
    assert {path.suffix for path in card.parent.iterdir()} == {".json", ".safetensors"}


def test_no_module_of_the_working_folder_is_run(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's folder may hold `json.py`, and the user may stand in it."""
    folder = make_model(tmp_path, folds=(0,))
    for name in ("json", "numpy", "medsegai"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / name)!r}, 'w'); raise SystemExit")
    monkeypatch.chdir(folder)
    assert main(["models", "import", "."]) == 0
    assert not any((tmp_path / name).exists() for name in ("json", "numpy", "medsegai"))


def test_impossible_claims_are_refused_before_torch_is_loaded(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 kB that claim gigabytes should cost a second, and torch alone takes two."""
    folder = make_model(tmp_path, folds=(0,))
    weights = torch.as_strided(torch.ones(4), (1 << 30,), (0,))
    (checkpoint,) = folder.rglob("checkpoint_final.pth")
    torch.save({"network_weights": {"w": weights}}, checkpoint)
    (tmp_path / "false").mkdir()
    (tmp_path / "false" / "torch.py").write_text("raise SystemExit('torch was loaded')")
    monkeypatch.syspath_prepend(str(tmp_path / "false"))  # for the process that is started
    with pytest.raises(ModelError, match="repeats numbers of its storage"):
        import_model(folder, own)
    assert list(own.iterdir()) == []


def conversion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> Path:
    """A file whose conversion runs `body`, as one would that a stranger took over."""
    folder = tmp_path / "taken_over"
    folder.mkdir()
    text = f"""
        import sys
        sys.path.remove({str(folder)!r})
        import medsegai.models.importing as real

        def _stage(path, staged, id):
            import os, time
            from pathlib import Path
            {body}

        real._stage = _stage
        real._importers = lambda: ()
        real.main(sys.argv[1])
    """
    (folder / "taken_over.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(importing, "CHILD", "taken_over")
    (tmp_path / "x.pth").write_text("made by a stranger")
    return tmp_path / "x.pth"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os.abort()", "signal"),
        ("os._exit(3)", "exit code 3"),
        ("raise SystemExit(0)", "exit code 0"),
        ("bytearray(1 << 40)", "GB"),
        ("time.sleep(600)", "more than"),
        ("raise ZeroDivisionError", "exit code 1"),
        ("(staged.parent / 'answer.json').write_text('[' * 100_000); os._exit(0)", "answer"),
        ("(staged.parent / 'answer.json').write_bytes(bytes(1 << 20)); os._exit(0)", "answer"),
    ],
)
def test_a_conversion_that_goes_wrong_ends_alone(
    body: str, words: str, tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = conversion(monkeypatch, tmp_path, body)
    if "sleep" in body:
        monkeypatch.setattr(importing, "LEAST_SECONDS", 1)
        monkeypatch.setattr(importing, "START_SECONDS", 1)
    start = time.monotonic()
    with pytest.raises(ModelError, match=words) as caught:
        import_model(path, own)
    assert time.monotonic() - start < 120
    assert str(path) in str(caught.value)
    assert list(own.iterdir()) == []


@pytest.mark.parametrize("free", [0, 1 << 40])
def test_a_full_disk_is_not_the_fault_of_the_model(
    free: int, tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be no room for the answer of the conversion, nor for what it says of its end."""
    body = "raise RuntimeError('No space left on device (os error 28)')" if free else "os._exit(1)"
    path = conversion(monkeypatch, tmp_path, body)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    with pytest.raises(OutputError, match=r"own cannot be written: the disk is full"):
        import_model(path, own)
    assert list(own.iterdir()) == []


@linux
def test_what_a_conversion_leaves_is_looked_at(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "staged.mkdir(); (staged / 'folder').mkdir()"
    path = conversion(monkeypatch, tmp_path, body)
    with pytest.raises(UnsafeModelError, match="not a plain file"):
        import_model(path, own)
    assert list(own.iterdir()) == []


def test_a_larger_model_may_take_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Limits] = []

    def run_child(path: Path, staged: Path, id: str | None, limits: Limits) -> str:
        given.append(limits)
        return "was not started"

    monkeypatch.setattr(importing, "_run_child", run_child)
    for size in (0, 10 << 20):
        (tmp_path / "x.pth").write_bytes(bytes(size))
        with pytest.raises(ModelError, match="was not started"):
            import_model(tmp_path / "x.pth", tmp_path / "own")
    assert given[0].memory_bytes < given[1].memory_bytes
    assert given[0].seconds < given[1].seconds


@pytest.mark.skipif(sys.platform == "linux", reason="all of it is there")
def test_what_a_system_lacks_is_told(tmp_path: Path) -> None:
    assert confine(tmp_path) == ["writing only in one folder", "no network"]
