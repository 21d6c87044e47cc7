"""Bundles of MONAI whose files, sections or archives differ from the usual ones are read as MONAI reads them."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import monai_bundles
from medsegai.errors import ModelError
from medsegai.families.monai import import_model
from monai_bundles import Bundle, after, as_zip


def test_what_systems_add_to_an_archive_does_not_matter(tmp_path: Path) -> None:
    """As an archive of macOS, which also has a file beside each, or the folder that somebody unpacked it into."""
    folder = Bundle().write(tmp_path / "download" / "spleen_ct")
    double = bytes([0, 5, 22, 7]) + bytes(60)
    for name in (".DS_Store", "configs/.DS_Store", "configs/._inference.json", "models/._model.pt"):
        (folder / name).write_bytes(double)
    archive = as_zip(folder, tmp_path / "spleen_ct.zip", "spleen_ct/")
    with zipfile.ZipFile(archive, "a") as file:
        for name in (
            "._spleen_ct",
            "spleen_ct/configs/._metadata.json",
            "spleen_ct/models/._model.pt",
        ):
            file.writestr(f"__MACOSX/{name}", double)
    (tmp_path / "models").mkdir()
    (tmp_path / "download" / "__MACOSX").mkdir()
    (tmp_path / "download" / ".DS_Store").write_bytes(double)
    for number, path in enumerate((archive, folder, folder.parent)):
        card = import_model(path, tmp_path / "models" / str(number))
        assert card is not None
        assert card.id == "spleen_ct"


def in_capitals(folder: Path) -> None:
    for name in ("inference.json", "metadata.json"):
        (folder / "configs" / name).rename(folder / "configs" / name.upper())


def with_mark(folder: Path) -> None:
    """The mark of order that editors of Windows write."""
    for path in (folder / "configs").iterdir():
        path.write_bytes(path.read_text().replace("\n", "\r\n").encode("utf-8-sig"))


def as_yaml(change: Callable[[str], str]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "configs/inference.json"
        text = change(yaml.safe_dump(json.loads(path.read_text())))
        path.with_suffix(".yaml").write_bytes(text.encode())
        path.unlink()

    return write


def entries(**values: object) -> Callable[[Path], None]:
    """Other entries in the configuration; `...` takes one away."""

    def write(folder: Path) -> None:
        path = folder / "configs/inference.json"
        changed = {**json.loads(path.read_text()), **values}
        kept = {name: value for name, value in changed.items() if value is not ...}
        path.write_text(json.dumps(kept, indent=1))

    return write


EVALUATOR = {**Bundle().configuration()["evaluator"], "postprocessing": None}
ALLOWED: dict[str, Callable[[Path], None]] = {
    "capitals": in_capitals,
    "YAML with a mark": as_yaml(lambda text: f"\ufeff{text}"),
    "YAML with comments": as_yaml(lambda text: f"# a\n---\n{text}# b\n...\n"),
    "YAML of Windows": as_yaml(lambda text: text.replace("\n", "\r\n")),
    "no postprocessing": entries(postprocessing=..., evaluator=EVALUATOR),
    "postprocessing null": entries(postprocessing=None),
    "no steps after": entries(postprocessing={"_target_": "Compose", "transforms": None}),
    "an empty Compose": entries(postprocessing={"_target_": "Compose"}),
    "inferer null": entries(inferer=None),
    "handlers null": entries(handlers=None),
    "no checkpoint loader": entries(checkpointloader=None, initialize=None),
}


@pytest.mark.parametrize("variant", ALLOWED)
def test_what_monai_allows_around_the_sections_is_allowed_here(
    variant: str, tmp_path: Path
) -> None:
    """MONAI runs each of them."""
    folder = Bundle().write(tmp_path / "spleen_ct")
    ALLOWED[variant](folder)
    voxels, matrix = monai_bundles.smooth_image((20, 18, 16)), monai_bundles.affine((1.5, 1.5, 2.0))
    image = monai_bundles.save_image(tmp_path / "data" / "a.nii.gz", voxels, matrix)
    monai_bundles.run_monai(folder, image)
    assert import_model(folder, tmp_path / "new") is not None


def test_json_with_a_mark_is_read_though_monai_does_not(tmp_path: Path) -> None:
    folder = Bundle().write(tmp_path / "spleen_ct")
    with_mark(folder)
    assert import_model(folder, tmp_path / "new") is not None


def test_of_several_configurations_it_is_said_which_was_read(tmp_path: Path) -> None:
    folder = Bundle(yaml=True).write(tmp_path / "spleen_ct")
    alone = import_model(folder, tmp_path / "alone")
    Bundle(postprocessing=[after("Activations", softmax=True)]).write(folder)
    card = import_model(folder, tmp_path / "new")
    assert alone is not None
    assert "was read" not in alone.description
    assert card is not None
    assert "inference.json and inference.yaml; inference.json was read." in card.description


def test_yaml_of_two_documents_is_refused_as_by_monai(tmp_path: Path) -> None:
    folder = Bundle().write(tmp_path / "spleen_ct")
    as_yaml(lambda text: f"{text}---\n{{}}\n")(folder)
    with pytest.raises(ModelError, match="2 documents instead of one"):
        import_model(folder, tmp_path / "new")
