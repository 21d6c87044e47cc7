"""Private folders for temporary files: new, swept when their process is dead, and never in the working folder."""

from __future__ import annotations

import ast
import os
import time
from pathlib import Path

import pytest

from medsegai.errors import OutputError
from medsegai.system import private_folders
from medsegai.system.private_folders import PrivateFolder


def test_the_folder_is_private_and_new(tmp_path: Path) -> None:
    first, second = PrivateFolder("exchange", tmp_path), PrivateFolder("exchange", tmp_path)
    assert first.path != second.path
    assert first.path.stat().st_mode & 0o077 == 0
    first.remove()
    assert not first.path.exists()
    assert second.path.exists()
    second.remove()
    second.remove()


def test_the_sweep_leaves_the_living_and_the_strangers_alone(tmp_path: Path) -> None:
    mine = PrivateFolder("exchange", tmp_path)
    here = private_folders._numbering()
    parent = tmp_path / f"medsegai-exchange-{os.getppid()}.{here}-x"
    stranger = tmp_path / "medsegai-exchange-notes"
    own = tmp_path / f"medsegai-run-{2**22 + 1}-x"
    dead = tmp_path / f"medsegai-exchange-{2**22 + 1}.{here}-x"
    for folder in (parent, stranger, own, dead):
        folder.mkdir()
    PrivateFolder("exchange", tmp_path).remove()
    assert mine.path.exists()
    assert parent.exists()
    assert stranger.exists()
    assert own.exists()
    assert not dead.exists()


def test_the_sweep_knows_that_processes_of_other_containers_cannot_be_seen(tmp_path: Path) -> None:
    """Two containers that share a temporary folder each have a process of any number, or have it not."""
    old = time.time() - 2 * private_folders.ABANDONED_SECONDS
    held = PrivateFolder("exchange", tmp_path)
    theirs = held.path.rename(tmp_path / f"medsegai-exchange-{2**22 + 1}.{'0' * 8}-held")
    fresh = tmp_path / f"medsegai-exchange-{2**22 + 1}.{'0' * 8}-fresh"
    dead = tmp_path / f"medsegai-exchange-{2**22 + 1}.{'0' * 8}-dead"
    here = tmp_path / f"medsegai-exchange-{2**22 + 1}.{private_folders._numbering()}-x"
    for folder in (fresh, dead, here):
        folder.mkdir()
    for folder in (theirs, dead):
        os.utime(folder, (old, old))
    PrivateFolder("exchange", tmp_path).remove()
    assert theirs.exists(), "a living process had it"
    assert fresh.exists()
    assert not dead.exists()
    assert not here.exists()
    held.path = theirs
    assert held.remove()


def test_the_working_folder_is_no_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python takes it as a last resort; there it would lie among the user's files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", "/proc/full")
    monkeypatch.setattr(private_folders.tempfile, "gettempdir", os.getcwd)
    with pytest.raises(OutputError, match="/proc/full is full or read-only"):
        PrivateFolder("exchange")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # chosen, it is one
    assert PrivateFolder("exchange").path.parent == tmp_path


def test_every_temporary_folder_is_made_in_a_place_that_was_looked_at() -> None:
    """Without `dir`, Python falls back to the working folder."""
    found = []
    for path in Path(private_folders.__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of_tempfile = (
                    isinstance(node.func.value, ast.Name) and node.func.value.id == "tempfile"
                )
                if of_tempfile and node.func.attr != "gettempdir":
                    found.append((path.name, {keyword.arg for keyword in node.keywords}))
    assert len(found) > 4
    assert [name for name, keywords in found if "dir" not in keywords] == []


def test_what_lies_in_the_temporary_folder_is_swept() -> None:
    """A folder of another kind would stay for ever when its process is killed; the doctor makes a file alone."""
    sources = Path(private_folders.__file__).parents[1].rglob("*.py")
    users = {path.name for path in sources if "temporary_folder()" in path.read_text()}
    assert users == {"private_folders.py", "doctor.py"}
    first = PrivateFolder("other")
    assert private_folders._NAME.fullmatch(first.path.name)
    with first as path:
        assert path.is_dir()
    assert not path.exists()


def test_without_any_temporary_folder_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_usable() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(private_folders.tempfile, "gettempdir", none_usable)
    with pytest.raises(OutputError, match="TMPDIR"):
        PrivateFolder("exchange")
