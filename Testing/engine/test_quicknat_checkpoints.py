"""Released checkpoints: whole pickled modules, read without running them."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from medsegai.errors import ModelError, UnsafeModelError
from medsegai.families.quicknat import import_model
from medsegai.models.card import load_card
from medsegai.networks.quicknat import QuickNAT, QuickNATConfig
from medsegai.networks.quicknat_checkpoints import (
    quicknat_checkpoint_config,
    read_quicknat_checkpoint,
)

AUTHORS_MODULES = {
    "squeeze_and_excitation/__init__.py": "",
    "squeeze_and_excitation/squeeze_and_excitation.py": """
        import torch.nn as nn
        class ChannelSELayer(nn.Module):
            def __init__(self, filters):
                super().__init__()
                self.reduction_ratio = 2
                self.fc1, self.fc2 = nn.Linear(filters, filters // 2), nn.Linear(filters // 2, filters)
                self.relu, self.sigmoid = nn.ReLU(), nn.Sigmoid()
        class SpatialSELayer(nn.Module):
            def __init__(self, filters):
                super().__init__()
                self.conv, self.sigmoid = nn.Conv2d(filters, 1, 1), nn.Sigmoid()
        class ChannelSpatialSELayer(nn.Module):
            def __init__(self, filters):
                super().__init__()
                self.cSE, self.sSE = ChannelSELayer(filters), SpatialSELayer(filters)
    """,
    "nn_common_modules/__init__.py": "",
    "nn_common_modules/modules.py": """
        import torch.nn as nn
        from squeeze_and_excitation.squeeze_and_excitation import ChannelSpatialSELayer
        class DenseBlock(nn.Module):
            def __init__(self, channels, filters, excite):
                super().__init__()
                self.SELayer = ChannelSpatialSELayer(filters) if excite else None
                self.conv1 = nn.Conv2d(channels, filters, 5, padding=2)
                self.conv2 = nn.Conv2d(channels + filters, filters, 5, padding=2)
                self.conv3 = nn.Conv2d(channels + 2 * filters, filters, 1)
                self.batchnorm1 = nn.BatchNorm2d(channels)
                self.batchnorm2 = nn.BatchNorm2d(channels + filters)
                self.batchnorm3 = nn.BatchNorm2d(channels + 2 * filters)
                self.prelu = nn.PReLU()
                self.drop_out_needed, self.drop_out = True, nn.Dropout2d(0.2)
        class EncoderBlock(DenseBlock):
            def __init__(self, *a):
                super().__init__(*a)
                self.maxpool = nn.MaxPool2d(2, return_indices=True)
        class DecoderBlock(DenseBlock):
            def __init__(self, *a):
                super().__init__(*a)
                self.unpool = nn.MaxUnpool2d(2)
        class ClassifierBlock(nn.Module):
            def __init__(self, filters, classes):
                super().__init__()
                self.conv = nn.Conv2d(filters, classes, 1)
    """,
    "quicknat.py": """
        import sys, torch, torch.nn as nn
        from nn_common_modules import modules as sm
        class QuickNat(nn.Module):
            def __init__(self, filters, excite):
                super().__init__()
                for n, channels in enumerate((1, filters, filters, filters), 1):
                    setattr(self, f"encode{n}", sm.EncoderBlock(channels, filters, excite))
                self.bottleneck = sm.DenseBlock(filters, filters, excite)
                for n in range(1, 5):
                    setattr(self, f"decode{n}", sm.DecoderBlock(2 * filters, filters, excite))
                self.classifier = sm.ClassifierBlock(filters, 33)
    """,
    "save.py": """
        import itertools, sys, torch, quicknat
        for excite, zipped in itertools.product((False, True), repeat=2):
            torch.manual_seed(7)
            path = f"{sys.argv[1]}/{excite}-{zipped}.pth.tar"
            torch.save(quicknat.QuickNat(4, excite), path, _use_new_zipfile_serialization=zipped)
    """,
}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint EXCITE-ZIPPED.pth.tar of each kind.

    Another process saves them, with modules of the names that the released pickles hold; this one never imports
    these.
    """
    folder = tmp_path_factory.mktemp("authors")
    for name, text in AUTHORS_MODULES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    arguments = [sys.executable, "save.py", str(folder)]
    subprocess.run(arguments, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("zipped", [True, False], ids=["zip file", "legacy file"])
@pytest.mark.parametrize("excite", [True, False], ids=["CSSE", "no SE"])
def test_a_pickled_module_loads_without_its_code(
    released: Path, excite: bool, zipped: bool
) -> None:
    path = released / f"{excite}-{zipped}.pth.tar"
    state = read_quicknat_checkpoint(path)
    config = quicknat_checkpoint_config(state, path)
    assert config == QuickNATConfig(1, 4, 33, "csse" if excite else "none")
    network = QuickNAT(config)
    network.load_state_dict(state)  # strict
    assert "quicknat" not in sys.modules
    assert "nn_common_modules" not in sys.modules


def test_import_gives_a_model_folder_with_the_same_weights(released: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    paths = {view: folder / f"finetuned_{view}.pth.tar" for view in ("axial", "coronal")}
    for path in paths.values():
        shutil.copyfile(released / "False-True.pth.tar", path)
    import_model(folder, tmp_path / "model")
    card = load_card(tmp_path / "model")
    card.verify()
    assert [member.name for member in card.members] == ["axial", "coronal"]
    assert card.members[0].classes[1:3] == ((2,), (3,))
    assert card.settings["grid"] == [256, 256, 256]
    from safetensors.torch import load_file

    imported, original = (
        load_file(card.weights_path(card.members[1])),
        read_quicknat_checkpoint(paths["coronal"]),
    )
    assert set(imported) == set(original)
    assert all(torch.equal(imported[name], original[name]) for name in original)


class RunsACommand:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_by_name_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "axial.pth.tar"
    torch.save({"state_dict": RunsACommand()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeModelError, match=r"posix\.system|os\.system|nt\.system") as caught:
        import_model(path, tmp_path / "model")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    """Before the view is asked for, which its name may not say."""
    for name in ("coronal.pth", "model.pt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=f"{name}.*damaged"):
            import_model(tmp_path / name, tmp_path / "model")


def test_another_network_is_refused(tmp_path: Path) -> None:
    """Also before the view is asked for, because the network may be one of another family that lacks a layer."""
    for name in ("coronal.pth", "model.pth"):
        torch.save({"layer.weight": torch.zeros(3)}, tmp_path / name)
        with pytest.raises(ModelError, match="not a QuickNAT"):
            import_model(tmp_path / name, tmp_path / "model")


def test_other_numbers_of_classes_and_unnamed_views_are_refused(tmp_path: Path) -> None:
    cases = (("coronal.pth", 28, "28 classes"), ("model.pth", 33, "Which view"))
    for name, classes, message in cases:
        state = QuickNAT(QuickNATConfig(1, 4, classes)).state_dict()
        torch.save({"state_dict": state}, tmp_path / name)
        with pytest.raises(ModelError, match=message):
            import_model(tmp_path / name, tmp_path / "model")


def test_what_is_no_checkpoint_is_left_to_other_families(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert import_model(tmp_path, tmp_path / "model") is None
