"""`medsegai models`: what is listed, verified and taken in, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import medsegai.families
from medsegai.cli import main
from medsegai.errors import ModelError, OutputError
from medsegai.models import catalogue, importing
from medsegai.models.card import card_from_dict, load_card
from medsegai.models.importing import import_model

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("imports_here")


def write_model(folder: Path, **changes: Any) -> Path:
    """A model folder with weights as its card says; `changes` go into the card or its member."""
    folder.mkdir(parents=True)
    save_file({"weight": np.ones(3, dtype=np.float32)}, folder / "net.safetensors")
    digest = hashlib.sha256((folder / "net.safetensors").read_bytes()).hexdigest()
    member = {"name": "axial", "weights": "net.safetensors", "sha256": digest}
    card: dict[str, Any] = {
        "id": "toy",
        "name": "Toy model",
        "family": "quicknat",
        "version": "3.1",
        "licence": "CC0-1.0",
        "intended_use": "Tests.",
        "channels": [{"name": "T1", "modality": "MR"}],
        "labels": [
            {
                "value": 17,
                "name": "Left hippocampus",
                "color": [220, 216, 20],
                "terminology": {
                    "category": ["SCT", "123037004", "Anatomical Structure"],
                    "type": ["SCT", "5366008", "Hippocampus"],
                    "modifier": ["SCT", "7771000", "Left"],
                },
            }
        ],
        "members": [member],
        "spacing_mm": [1, 1, 1],
        "performance": {"dice": 0.5},
    }
    for name, value in changes.items():
        (member if name in ("weights", "sha256") else card)[name] = value
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's models, in a folder that does not exist yet; `bundled` is empty."""
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "own"))
    for module in (catalogue, importing, sys.modules["medsegai.commands.models"]):
        monkeypatch.setattr(module, "BUNDLED_MODELS", tmp_path / "bundled")
    return tmp_path / "own"


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def run_import(*arguments: object) -> int:
    return main(["models", "import", *map(str, arguments)])


# list, show, verify


def test_without_models_the_list_says_what_to_do(capsys: Capture) -> None:
    assert main(["models", "list"]) == 0
    assert "models import" in capsys.readouterr().out


def test_the_list_shows_good_models_beside_broken_ones(own: Path, capsys: Capture) -> None:
    write_model(own / "toy")
    write_model(own / "worn", surprise=True)
    assert main(["models", "list"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert lines["toy"].split()[1:4] == ["3.1", "quicknat", "axial"]
    assert "broken" in lines["worn"]
    assert "unknown key surprise" in out


def test_the_bundled_models_are_marked(tmp_path: Path, capsys: Capture) -> None:
    write_model(tmp_path / "bundled" / "toy")
    assert main(["models", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[2].endswith("bundled")


def test_the_list_as_json(own: Path, capsys: Capture) -> None:
    write_model(own / "toy")
    write_model(own / "worn", surprise=True)
    assert main(["models", "list", "--json"]) == 0
    good, broken = json.loads(capsys.readouterr().out)
    assert (good["id"], good["members"], good["structures"]) == ("toy", ["axial"], 1)
    assert "surprise" in broken["broken"]


def test_show_tells_what_a_user_must_know(own: Path, capsys: Capture) -> None:
    write_model(own / "toy")
    assert main(["models", "show", "toy"]) == 0
    out = capsys.readouterr().out
    for text in ("Toy model", "CC0-1.0", "Tests.", "Left hippocampus", "SCT 5366008", "0.5"):
        assert text in out


def test_show_tells_what_is_plausible_and_by_whose_measure(capsys: Capture) -> None:
    folder = Path(catalogue.__file__).with_name("bundled") / "brain"
    assert main(["models", "show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "15 label maps of whole heads" in shown
    assert "not a norm population" in shown
    (line,) = (line for line in shown.splitlines() if "Left hippocampus  " in line)
    assert "1.33 to 10.1" in line


def test_show_as_json_is_the_card(own: Path, capsys: Capture) -> None:
    write_model(own / "toy")
    assert main(["models", "show", "toy", "--json"]) == 0
    shown = card_from_dict(json.loads(capsys.readouterr().out), own / "toy")
    assert shown == load_card(own / "toy")


def test_show_of_an_unknown_model_exits_with_4(capsys: Capture) -> None:
    assert main(["models", "show", "nothing"]) == 4
    assert "'nothing'" in capsys.readouterr().err


def test_verify_finds_the_damaged_model_among_good_ones(own: Path, capsys: Capture) -> None:
    write_model(own / "toy")
    assert main(["models", "verify"]) == 0
    damaged = write_model(own / "worn", id="worn")
    with (damaged / "net.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert main(["models", "verify", "toy"]) == 0
    assert main(["models", "verify", "worn"]) == 4
    capsys.readouterr()
    assert main(["models", "verify"]) == 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("toy: matches its card")
    assert "SHA-256 differs" in lines[1]


# import of a model folder


def test_an_imported_model_is_found_and_whole(tmp_path: Path, own: Path, capsys: Capture) -> None:
    source = write_model(tmp_path / "download")
    (source / "setup.py").write_text("print('hello')")
    (source / "notes").mkdir()
    assert run_import(source) == 0
    assert "--model toy" in capsys.readouterr().out
    assert tree(own) == ["toy/card.json", "toy/net.safetensors"]
    catalogue.find_card("toy").verify()
    assert list(own.iterdir()) == [own / "toy"]


def test_the_card_file_can_be_named_too(tmp_path: Path, own: Path) -> None:
    assert run_import(write_model(tmp_path / "download") / "card.json") == 0
    assert (own / "toy" / "net.safetensors").is_file()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sha256": "0" * 64}, "SHA-256"),
    ({"sha256": None}, "SHA-256"),
    ({"weights": "gone.safetensors"}, "missing"),
    ({"weights": "../outside.safetensors"}, "outside"),
    ({"weights": "/etc/outside.safetensors"}, "outside"),
    ({"weights": "net.pth.tar"}, "run code"),
    ({"weights": "net.pt"}, "net.pt"),
    ({"id": "../escape"}, "model id"),
    ({"id": ".hidden"}, "model id"),
    ({"id": "a/b"}, "model id"),
    ({"surprise": 1}, "surprise"),
]


@pytest.mark.parametrize(("changes", "word"), REFUSED)
def test_a_bad_model_is_refused_and_leaves_nothing(
    changes: dict[str, Any], word: str, tmp_path: Path, own: Path, capsys: Capture
) -> None:
    source = write_model(tmp_path / "download", **changes)
    for name in ("net.pt", "net.pth.tar", "../outside.safetensors"):
        (source / name).write_bytes((source / "net.safetensors").read_bytes())
    assert run_import(source) == 4
    assert word in capsys.readouterr().err
    assert not list(own.iterdir())


def test_the_picture_of_a_model_is_written_anew(tmp_path: Path, own: Path) -> None:
    """Slicer shows it in its own process, so nothing of the file comes there but its pixels."""
    source = write_model(tmp_path / "download")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(source / "picture.png")
    with (source / "picture.png").open("ab") as file:
        file.write(b"made by a stranger")
    assert run_import(source) == 0
    (written,) = own.rglob("picture.png")
    assert b"stranger" not in written.read_bytes()
    np.testing.assert_array_equal(np.asarray(Image.open(written)), pixels)


@pytest.mark.parametrize(
    ("size", "mode", "keep"),
    [((30, 20), "RGB", 40), ((5000, 2), "L", None), ((3, 3), "I;16", None)],
)
def test_a_model_with_another_kind_of_picture_is_refused(
    size: tuple[int, int], mode: str, keep: int | None, tmp_path: Path, own: Path, capsys: Capture
) -> None:
    source = write_model(tmp_path / "download")
    Image.new(mode, size).save(source / "picture.png")
    content = (source / "picture.png").read_bytes()
    (source / "picture.png").write_bytes(content[:keep])
    assert run_import(source) == 4
    assert "picture of the model" in capsys.readouterr().err
    assert not list(own.iterdir())


@pytest.mark.parametrize(
    ("sparse", "words"),
    [
        ({"net.safetensors": 1 << 40}, "at most"),
        ({"net.safetensors": 1 << 20}, "SHA-256 differs"),
        ({"picture.png": 1 << 30}, "more than"),
        ({"card.json": 1 << 30}, "more than"),
    ],
)
def test_nothing_is_copied_before_it_is_known_to_be_of_the_model(
    sparse: dict[str, int], words: str, tmp_path: Path
) -> None:
    """Files with holes take no room where they come from, and all of it where they are copied to."""
    source = write_model(tmp_path / "download")
    for name, size in sparse.items():
        with (source / name).open("ab") as file:
            file.truncate(size)
    staged = tmp_path / "staged"
    with pytest.raises(ModelError, match=words):
        importing._stage(source, staged, None)
    copied = sum(path.stat().st_size for path in staged.iterdir()) if staged.exists() else 0
    assert copied < 1 << 16


def test_an_id_that_is_taken_is_kept_unless_replaced(tmp_path: Path, own: Path) -> None:
    assert run_import(write_model(tmp_path / "first")) == 0
    newer = write_model(tmp_path / "second", version="4")
    assert run_import(newer) == 4
    assert catalogue.find_card("toy").version == "3.1"
    assert run_import(newer, "--replace") == 0
    assert catalogue.find_card("toy").version == "4"
    assert list(own.iterdir()) == [own / "toy"]


def test_a_failed_replacement_leaves_the_old_model(tmp_path: Path, own: Path) -> None:
    assert run_import(write_model(tmp_path / "first")) == 0
    assert run_import(write_model(tmp_path / "second", sha256="0" * 64), "--replace") == 4
    catalogue.find_card("toy").verify()


def test_a_bundled_model_cannot_be_shadowed(tmp_path: Path) -> None:
    write_model(tmp_path / "bundled" / "toy")
    assert run_import(write_model(tmp_path / "download"), "--replace") == 4


def test_what_does_not_exist_exits_with_3(tmp_path: Path) -> None:
    assert run_import(tmp_path / "nowhere") == 3


@pytest.mark.parametrize("named", ["", "models", "models/model.pt", "models/model.ts"])
def test_a_monai_bundle_is_named(named: str, tmp_path: Path, own: Path, capsys: Capture) -> None:
    for name in ("configs/metadata.json", "models/model.pt", "models/model.ts"):
        (tmp_path / "spleen" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "spleen" / name).write_bytes(b"{}")
    assert run_import(tmp_path / "spleen" / named) == 4
    assert "MONAI bundle" in capsys.readouterr().err
    assert not list(own.iterdir())


def test_what_is_no_model_exits_with_4(tmp_path: Path, own: Path, capsys: Capture) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG and so on")
    assert run_import(tmp_path / "picture.png") == 4
    assert "picture.png" in capsys.readouterr().err
    assert not list(own.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_models_folder_that_cannot_be_made_exits_with_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("MEDSEGAI_MODELS", "/proc/models")
    assert run_import(write_model(tmp_path / "download")) == 5
    assert "/proc/models" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    source = write_model(tmp_path / "download")
    monkeypatch.setattr("medsegai.models.importing.shutil.copyfile", full)
    with pytest.raises(OutputError, match="the disk is full"):
        import_model(source, own)
    assert not list(own.iterdir())


# import of what a family can convert


@pytest.fixture
def foreign_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that turns `*.foreign` files into models, as a file in a folder of families."""
    folder = tmp_path / "families"
    folder.mkdir()
    (folder / "foreign_for_tests.py").write_text(
        "import shutil\n"
        "from pathlib import Path\n"
        "from medsegai.models.card import ModelCard, load_card\n"
        "def import_model(path: Path, destination: Path) -> ModelCard | None:\n"
        "    if path.suffix != '.foreign':\n"
        "        return None\n"
        "    shutil.copytree(Path(path.read_text()), destination)\n"
        "    return load_card(destination)\n"
    )
    monkeypatch.setattr(medsegai.families, "__path__", [str(folder)])


@pytest.mark.usefixtures("foreign_family")
def test_a_family_may_convert_released_weights(tmp_path: Path, own: Path) -> None:
    released = tmp_path / "weights.foreign"
    released.write_text(str(write_model(tmp_path / "converted")))
    assert run_import(released) == 0
    catalogue.find_card("toy").verify()
    assert tree(own) == ["toy/card.json", "toy/net.safetensors"]


@pytest.mark.usefixtures("foreign_family")
def test_what_a_family_converts_is_verified_as_well(tmp_path: Path, own: Path) -> None:
    released = tmp_path / "weights.foreign"
    released.write_text(str(write_model(tmp_path / "converted", sha256="0" * 64)))
    assert run_import(released) == 4
    assert not list(own.iterdir())


@pytest.mark.usefixtures("foreign_family")
def test_what_no_family_knows_is_refused(tmp_path: Path, own: Path) -> None:
    (tmp_path / "weights.other").touch()
    with pytest.raises(ModelError, match=r"card\.json"):
        import_model(tmp_path / "weights.other", own)


class RunsCode:
    """What a malicious checkpoint looks like: reading it with pickle would make a folder."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.trap),)


def test_a_checkpoint_that_would_run_code_is_refused(
    tmp_path: Path, own: Path, capsys: Capture
) -> None:
    released, trap = tmp_path / "coronal.pth.tar", tmp_path / "trap"
    torch.save(RunsCode(trap), released)
    assert run_import(released) == 4
    error = capsys.readouterr().err
    assert "coronal.pth.tar" in error
    assert "mkdir" in error
    assert not trap.exists()
    assert not list(own.iterdir())
    torch.load(released, weights_only=False)
    assert trap.exists(), "the trap itself does not work"


def test_nothing_outside_the_models_folder_is_used(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model moves in within one file system, so that it appears as a whole."""
    seen: list[Path] = []
    made = tempfile.TemporaryDirectory

    def spy(**options: Any) -> Any:
        seen.append(Path(options["dir"]))
        return made(**options)

    monkeypatch.setattr("medsegai.models.importing.tempfile.TemporaryDirectory", spy)
    import_model(write_model(tmp_path / "download"), own)
    assert seen == [own]
