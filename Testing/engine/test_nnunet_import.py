"""Import of what nnU-Net v2 trained: folders and archives become safetensors, and nothing else stays."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medsegai.cli import main
from medsegai.errors import InputError, ModelError, UnsafeModelError
from medsegai.families import load_model
from medsegai.families.nnunet.model import FoldNetwork
from medsegai.models import catalogue
from medsegai.models.card import ModelCard, load_card
from medsegai.models.catalogue import find_card
from medsegai.models.importing import import_model
from nnunet_models import (
    Made,
    export_zip,
    make_model,
    write_inference_information,
    write_json,
    write_postprocessing,
)

CASCADE = ("3d_fullres", "3d_lowres", "3d_cascade_fullres")
Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("imports_here")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "own"))
    monkeypatch.setattr(catalogue, "BUNDLED_MODELS", tmp_path / "bundled")
    return tmp_path / "own"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a dataset with one configuration and two folds, made once."""
    return make_model(tmp_path_factory.mktemp("trained"), folds=(0, 1), mirror_axes=(0, 2))


@pytest.fixture
def results(trained: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    (results,) = shutil.copytree(trained, tmp_path / trained.name).iterdir()
    return results


def network_of(card: ModelCard, name: str) -> dict[str, torch.Tensor]:
    return dict(FoldNetwork(card, card.member(name)).load().state_dict())


def files_of(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# what an import makes


def test_an_imported_model_is_the_folder_in_safetensors(results: Path, own: Path) -> None:
    write_postprocessing(results, [[1, 2], 2])
    here = find_card(str(results))
    card = import_model(results, own)
    assert card == load_card(own / "Dataset901_Made")
    assert files_of(own) == {
        f"Dataset901_Made/{name}"
        for name in ("card.json", "3d_fullres-fold_0.safetensors", "3d_fullres-fold_1.safetensors")
    }
    card.verify()
    (own / "other").touch()
    assert len({path.stat().st_mode for path in own.rglob("*") if path.is_file()}) == 1
    assert not card.in_place
    for name in ("id", "labels", "channels", "settings", "suggested_refinements", "spacing_mm"):
        assert getattr(card, name) == getattr(here, name)
    for member in card.members:
        assert member.settings["mirror_axes"] == [0, 2]
        ours, theirs = network_of(card, member.name), network_of(here, member.name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    load_model(card)


def test_weights_are_those_of_the_checkpoint_each_once(results: Path, own: Path) -> None:
    card = import_model(results, own)
    weights = load_file(card.weights_path(card.members[1]))
    checkpoint = torch.load(results / "fold_1/checkpoint_final.pth", weights_only=False)
    theirs = checkpoint["network_weights"]
    assert weights.keys() <= theirs.keys()
    assert all(torch.equal(weights[name], theirs[name]) for name in weights)
    found = {values.data_ptr() for values in theirs.values()}
    heads = {name for name in theirs if "seg_layers" in name}  # of these only the last predicts
    kept = [name for name in weights if "seg_layers" in name]
    unused = {theirs[name].data_ptr() for name in heads} - {theirs[n].data_ptr() for n in kept}
    assert len(kept) == 2
    assert len(weights) == len(found - unused)


def test_a_fold_or_a_file_of_it_can_be_imported(results: Path, own: Path) -> None:
    card = import_model(results / "fold_1", own)
    assert [member.name for member in card.members] == ["3d_fullres/fold_1"]


@pytest.mark.parametrize("file", ["plans.json", "fold_0/checkpoint_final.pth"])
def test_one_file_of_a_model_names_the_folder_to_take(results: Path, own: Path, file: str) -> None:
    path = results / file
    message = rf"one file of an nnU-Net\. Name its folder: {re.escape(str(path.parent))}$"
    with pytest.raises(ModelError, match=message):
        import_model(path, own)
    with pytest.raises(ModelError, match=message):
        find_card(str(path))


def test_a_cascade_brings_its_first_stage(tmp_path: Path, own: Path) -> None:
    folder = make_model(tmp_path, configurations=CASCADE)
    card = import_model(folder / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres", own)
    assert {member.weights: member.weight for member in card.members} == {
        "3d_cascade_fullres-fold_0.safetensors": 1.0,
        "3d_lowres-fold_0.safetensors": 0.0,
    }
    for member in card.members:
        assert network_of(card, member.name)


@pytest.mark.parametrize("axes", [None, ()])
def test_without_mirroring_the_card_says_so(
    axes: tuple[int, ...] | None, tmp_path: Path, own: Path
) -> None:
    card = import_model(make_model(tmp_path, mirror_axes=axes), own)
    assert card.members[0].settings["mirror_axes"] == []
    assert FoldNetwork(card, card.members[0]).mirror_axes == ()


# archives


def test_the_archive_that_nnunet_exports_is_imported(tmp_path: Path, own: Path) -> None:
    made = Made(configurations=CASCADE, folds=(0, 1))
    folder = make_model(tmp_path, made)
    write_postprocessing(
        folder / made.results_name("3d_fullres") / "crossval_results_folds_0_1", [1]
    )
    both = (
        f"ensemble___{made.results_name('3d_fullres')}___{made.results_name('3d_cascade_fullres')}"
    )
    ensemble = f"ensembles/{both}___0_1"
    write_postprocessing(folder / ensemble, [[1, 2]])
    write_inference_information(folder, made, ["3d_fullres", "3d_cascade_fullres"], ensemble)
    here = find_card(str(folder))
    card = import_model(export_zip(tmp_path, made, tmp_path / "export.zip"), own)
    assert card.suggested_refinements == here.suggested_refinements
    assert card.suggested_refinements[0].options["labels"] == ((1, 2),)
    assert [member.name for member in card.members] == [member.name for member in here.members]
    assert len(card.members) == 6
    name = "3d_cascade_fullres/fold_1"
    ours, theirs = network_of(card, name), network_of(here, name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert list(own.iterdir()) == [own / "Dataset901_Made"]


def zipped(source: Path, root: Path, file: Path, extra: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(source.rglob("*")):
            archive.write(path, path.relative_to(root))
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return file


def test_an_archive_that_a_user_made_is_imported(results: Path, tmp_path: Path, own: Path) -> None:
    """With what operating systems add, and what lies in a folder after training."""
    for name in (
        "fold_0/checkpoint_latest.pth",
        "fold_0/validation/case_01.nii.gz",
        "fold_0/validation/case_01.npz",
        "crossval_results_folds_0_1/case_01.nii.gz",
        "crossval_results_folds_0_1/summary.json",
        "predicted_next_stage/3d_cascade_fullres/case_01.npz",
    ):
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_bytes(b"not needed")
    extra = {
        "__MACOSX/": b"",
        "__MACOSX/Dataset901_Made/._plans.json": b"",
        "Dataset901_Made/.DS_Store": b"",
        "Dataset901_Made/README.md": b"",
        "LICENSE": b"",
    }
    root = results.parent
    file = zipped(root, root.parent, tmp_path / "mine.zip", extra)
    assert import_model(file, own).id == "Dataset901_Made"


def test_an_archive_of_a_results_folder_is_imported(
    results: Path, tmp_path: Path, own: Path
) -> None:
    file = zipped(results, results.parent, tmp_path / "mine.zip")
    assert len(import_model(file, own).members) == 2
    bare = zipped(results, results, tmp_path / f"{results.name}.zip")
    assert len(import_model(bare, own, id="bare").members) == 2


REFUSED: list[tuple[dict[str, bytes], str]] = [
    ({"../outside.json": b"{}"}, "outside its folder"),
    ({"Dataset901_Made/../../plans.json": b"{}"}, "outside its folder"),
    ({"/etc/plans.json": b"{}"}, "outside its folder"),
    ({"Dataset901_Made/run.py": b"print()"}, "run.py"),
    ({"Dataset901_Made/fold_0/plans.py": b""}, "plans.py"),
    ({"Dataset901_Made/weights.pkl": b""}, "weights.pkl"),
    ({"Dataset901_Made/fold_0/other.pth": b""}, "other.pth"),
    ({"a/b/c/d/plans.json": b""}, "a/b/c/d/plans.json"),
]


@pytest.mark.parametrize(("extra", "word"), REFUSED)
def test_an_archive_with_anything_else_is_refused(
    extra: dict[str, bytes], word: str, results: Path, tmp_path: Path, own: Path
) -> None:
    root = results.parent
    file = zipped(root, root.parent, tmp_path / "mine.zip", extra)
    with pytest.raises(UnsafeModelError, match=word):
        import_model(file, own)
    assert not list(own.iterdir())
    assert not (own.parent / "outside.json").exists()


def test_mistakes_in_an_archive_name_the_archive(
    results: Path, tmp_path: Path, own: Path, capsys: Capture
) -> None:
    (results / "fold_1" / "checkpoint_final.pth").unlink()
    root = results.parent
    file = zipped(root, root.parent, tmp_path / "mine.zip")
    assert main(["models", "import", str(file)]) == 4
    error = capsys.readouterr().err
    assert f"{file}/Dataset901_Made/{results.name}/fold_1 has neither" in error
    assert ".import-" not in error


def test_an_archive_of_something_else_is_refused(tmp_path: Path, own: Path) -> None:
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("README.md", b"hello")
    with pytest.raises(ModelError, match="no results"):
        import_model(tmp_path / "mine.zip", own)


def test_an_archive_of_two_datasets_is_refused(results: Path, tmp_path: Path, own: Path) -> None:
    root = results.parent
    shutil.copytree(root, tmp_path / "both" / "Dataset901_Made")
    shutil.copytree(root, tmp_path / "both" / "Dataset902_Made")
    file = zipped(tmp_path / "both", tmp_path / "both", tmp_path / "mine.zip")
    with pytest.raises(ModelError, match="several datasets"):
        import_model(file, own)


# checkpoints that do not belong


def checkpoint_of(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=False)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def of_another_configuration(file: Path) -> None:
    checkpoint = checkpoint_of(file)
    checkpoint["init_args"]["configuration"] = "2d"
    torch.save(checkpoint, file)


def of_other_plans(file: Path) -> None:
    checkpoint = checkpoint_of(file)
    plans = checkpoint["init_args"]["plans"]["configurations"]
    plans["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]
    torch.save(checkpoint, file)


def of_a_wider_network(file: Path) -> None:
    checkpoint = checkpoint_of(file)
    weights = checkpoint["network_weights"]
    name = next(iter(weights))
    weights[name] = torch.cat([weights[name]] * 2)
    torch.save(checkpoint, file)


def that_diverged(file: Path) -> None:
    checkpoint = checkpoint_of(file)
    for values in checkpoint["network_weights"].values():
        values.fill_(float("nan"))
    torch.save(checkpoint, file)


class RunsCode:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.trap),)


def that_runs_code(file: Path) -> None:
    torch.save(checkpoint_of(file) | {"extra": RunsCode(file.parent / "trap")}, file)


BAD_CHECKPOINTS: list[tuple[Callable[[Path], None], str]] = [
    (truncate, "damaged"),
    (of_another_configuration, "trained for 2d"),
    (of_other_plans, "other plans.*spacing"),
    (of_a_wider_network, "do not fit"),
    (that_diverged, "not finite"),
    (that_runs_code, "mkdir"),
]


@pytest.mark.parametrize(("spoil", "words"), BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_refused(
    spoil: Callable[[Path], None], words: str, results: Path, own: Path
) -> None:
    spoil(results / "fold_1" / "checkpoint_final.pth")
    with pytest.raises(ModelError, match=f"fold_1.*{words}"):
        import_model(results, own)
    assert not list(own.iterdir())
    assert not (results / "fold_1" / "trap").exists()


def test_a_trainer_that_nobody_has_is_refused_until_its_folder_says_nnunettrainer(
    results: Path, own: Path
) -> None:
    """It may have built another network with the same weights; who knows that it did not renames the folder."""
    for fold in (0, 1):
        file = results / f"fold_{fold}" / "checkpoint_final.pth"
        torch.save(checkpoint_of(file) | {"trainer_name": "nnUNetTrainerOfMyOwn"}, file)
    theirs = results.rename(results.parent / "nnUNetTrainerOfMyOwn__nnUNetPlans__3d_fullres")
    with pytest.raises(ModelError, match=r"'nnUNetTrainerOfMyOwn' is unknown.*renaming the folder"):
        import_model(theirs, own)
    assert import_model(theirs.rename(results), own).members


# the command


def test_models_are_imported_listed_shown_and_verified(
    trained: Path, own: Path, capsys: Capture
) -> None:
    results = str(trained / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    assert main(["models", "show", results]) == 0
    assert "posterior" in capsys.readouterr().out
    assert main(["models", "verify", results]) == 0
    assert "all weights exist" in capsys.readouterr().out
    assert main(["models", "import", results, "--id", "hippo"]) == 0
    assert "--model hippo" in capsys.readouterr().out
    assert main(["models", "list"]) == 0
    assert "3d_fullres x 2" in capsys.readouterr().out
    assert main(["models", "verify", "hippo"]) == 0
    assert "matches its card" in capsys.readouterr().out
    assert main(["models", "show", "hippo", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["members"][0]["sha256"]) == 64


def test_the_channels_are_named_after_import(tmp_path: Path, own: Path, capsys: Capture) -> None:
    folder = make_model(tmp_path, channels=("T1", "T2 FLAIR"))
    assert main(["models", "import", str(folder)]) == 0
    assert "segment T1 'T2 FLAIR' -o" in capsys.readouterr().out


def test_an_id_that_cannot_be_a_folder_is_refused(
    trained: Path, own: Path, capsys: Capture
) -> None:
    assert main(["models", "import", str(trained), "--id", "../x"]) == 4
    assert "--id" in capsys.readouterr().err
    assert not list(own.iterdir())


def test_a_zip_by_path_is_no_model_yet(tmp_path: Path, own: Path, capsys: Capture) -> None:
    (tmp_path / "x.zip").touch()
    assert main(["models", "show", str(tmp_path / "x.zip")]) == 4
    assert "models import" in capsys.readouterr().err
    with pytest.raises(InputError):
        import_model(tmp_path / "nowhere.zip", own)


# crashes


KILLED = """
import sys, time
from pathlib import Path
from medsegai.models import importing
with importing._staging(Path(sys.argv[1])) as staged:
    (staged.parent / "large").write_bytes(b"0" * 1000)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="without file locks only age tells")
def test_what_a_killed_import_leaves_goes_at_the_next(trained: Path, own: Path) -> None:
    own.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(own)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    (staging,) = own.iterdir()
    import_model(trained, own)
    assert staging.exists(), "an import that is under way was taken away"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert staging.exists()
    import_model(trained, own, replace=True)
    assert list(own.iterdir()) == [own / "Dataset901_Made"]


def test_what_is_old_goes_wherever_locks_are_missing(
    trained: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsegai.models.importing._try_lock", lambda file: False)
    old, new = own / ".import-old", own / ".import-new"
    for folder in (old, new):
        write_json(folder / "models" / "x.json", {})
    os.utime(old, (time.time() - 90_000,) * 2)
    import_model(trained, own)
    assert new.exists()
    assert not old.exists()


@pytest.mark.parametrize("exception", [KeyboardInterrupt, MemoryError])
def test_an_import_that_is_stopped_leaves_nothing(
    exception: type[BaseException],
    trained: Path,
    tmp_path: Path,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_arguments: Any) -> None:
        raise exception

    file = zipped(trained, trained.parent, tmp_path / "mine.zip")
    monkeypatch.setattr("medsegai.families._imported_weights.save_file", stop)
    with contextlib.suppress(exception):
        import_model(file, own)
    assert not list(own.iterdir())
