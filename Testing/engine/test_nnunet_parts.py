"""Every part that nnunetv2 ships is reproduced here, or refused by name; the list is of what is installed."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medsegai.errors import ModelError
from medsegai.families import load_model
from medsegai.families.nnunet import preparation
from medsegai.models.card import load_card
from medsegai.models.catalogue import BUNDLED_MODELS
from medsegai.models.nnunet_parts import (
    LABEL_MANAGERS,
    NETWORKS,
    NORMALISERS,
    PREPROCESSORS,
    READERS,
    RESAMPLERS,
    RESAMPLING_OPTIONS,
    TRAINERS,
    Parts,
)
from medsegai.models.nnunet_plans import card_of_folder
from medsegai.preprocessing.normalisation import SCHEMES
from nnunet_models import NETWORK_MODULES, in_plans, require_nnunet, results_of
from test_nnunet_refused import in_configuration

require_nnunet()


def definitions(package: str) -> Iterator[ast.stmt]:
    """What the modules of a package define, at any depth; not imported, because some need what is not there."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    for file in Path(spec.submodule_search_locations[0]).rglob("*.py"):
        yield from ast.parse(file.read_text(encoding="utf-8")).body


def classes(package: str) -> dict[str, ast.ClassDef]:
    return {item.name: item for item in definitions(package) if isinstance(item, ast.ClassDef)}


def functions_of_data(package: str) -> set[str]:
    """Functions of voxels: what plans can name to resample with."""
    return {
        item.name
        for item in definitions(package)
        if isinstance(item, ast.FunctionDef) and "data" in [arg.arg for arg in item.args.args]
    }


TRAINERS_PACKAGE = "nnunetv2.training.nnUNetTrainer"


def shipped() -> dict[str, tuple[Parts, set[str]]]:
    resamplers = functions_of_data("nnunetv2.preprocessing.resampling")
    return {"resamplers": (RESAMPLERS, resamplers)} | {
        package: (parts, set(classes(package)))
        for parts, package in (
            (READERS, "nnunetv2.imageio"),
            (NORMALISERS, "nnunetv2.preprocessing.normalization"),
            (PREPROCESSORS, "nnunetv2.preprocessing.preprocessors"),
            (LABEL_MANAGERS, "nnunetv2.utilities.label_handling"),
            (TRAINERS, TRAINERS_PACKAGE),
            (NETWORKS, "dynamic_network_architectures.architectures"),
        )
    }


SHIPPED = shipped()


@pytest.mark.parametrize("kind", SHIPPED)
def test_every_part_of_nnunet_is_reproduced_or_refused_by_name(kind: str) -> None:
    """A release that adds one fails here, until somebody has looked at it."""
    parts, names = SHIPPED[kind]
    assert names
    assert names - parts.reproduced - set(parts.refused) == set()
    assert not parts.reproduced & set(parts.refused)


def test_what_is_said_to_be_reproduced_is() -> None:
    """The lists are data, so that a card can be read without torch; the code behind them has each name."""
    assert set(SCHEMES) == NORMALISERS.reproduced
    assert set(RESAMPLING_OPTIONS) == RESAMPLERS.reproduced
    assert set(NETWORK_MODULES) <= NETWORKS.reproduced
    turned = inspect.getsource(preparation.reoriented)
    assert "ITK_REORIENTS" in turned
    assert "NIBABEL_REORIENTS" in turned


def test_only_known_trainers_build_a_network_of_their_own() -> None:
    """A trainer that leaves it to nnUNetTrainer predicts as that does; mirroring stands in the checkpoint."""
    known = classes(TRAINERS_PACKAGE)

    def builds_its_own(name: str) -> bool:
        if name == "nnUNetTrainer" or name not in known:
            return False
        methods = [item.name for item in known[name].body if isinstance(item, ast.FunctionDef)]
        bases = [base.id for base in known[name].bases if isinstance(base, ast.Name)]
        return "build_network_architecture" in methods or any(map(builds_its_own, bases))

    own = set(filter(builds_its_own, known))
    assert own & TRAINERS.reproduced == {"nnUNetTrainerBN"}, "test_nnunet_parity compares it"
    assert own - TRAINERS.reproduced == set(TRAINERS.refused)


ARCHITECTURES = "dynamic_network_architectures.architectures"
READ_BY = [(name, in_plans(image_reader_writer=name)) for name in (*READERS.refused, "OurReader")]
RESAMPLED_BY = [
    (name, in_configuration(**{f"resampling_fn_{kind}": name}))
    for kind in ("data", "seg", "probabilities")
    for name in (*RESAMPLERS.refused, "our_resampling")
]
NORMALISED_BY = [
    (name, in_configuration(normalization_schemes=[name]))
    for name in (*NORMALISERS.refused, "OurNormalization")
]
NETWORKS_OF = [
    (name, in_configuration(architecture={"network_class_name": name, "arch_kwargs": {}}))
    for name in (
        *(f"{ARCHITECTURES}.primus.{name}" for name in NETWORKS.refused),
        f"{ARCHITECTURES}.unet.OurUNet",
        "our_networks.PlainConvUNet",
    )
]


@pytest.mark.parametrize(
    ("name", "change"), [*READ_BY, *RESAMPLED_BY, *NORMALISED_BY, *NETWORKS_OF]
)
def test_what_is_not_reproduced_is_refused_before_a_scan_is_read(
    name: str, change: Any, tmp_path: Path
) -> None:
    results = results_of(tmp_path)
    change(results)
    own = name.removeprefix(f"{ARCHITECTURES}.primus.").removeprefix(f"{ARCHITECTURES}.unet.")
    with pytest.raises(ModelError, match=own) as caught:
        card_of_folder(results)
    assert str(results / "plans.json") in str(caught.value)
    assert ("is unknown" if "our" in own.lower()[:3] else "because") in str(caught.value)


NAMES_OF_FOLDERS = [name for name in TRAINERS.refused if not name.startswith("_")]
"""The others cannot begin the name of a results folder."""


@pytest.mark.parametrize("name", [*NAMES_OF_FOLDERS, "nnUNetTrainerOfOurs"])
def test_trainers_that_are_not_reproduced_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"trainer '?{name}"):
        card_of_folder(results_of(tmp_path, trainer=name))


@pytest.mark.parametrize("name", sorted(TRAINERS.reproduced))
def test_trainers_that_are_reproduced_are_read(name: str, tmp_path: Path) -> None:
    assert card_of_folder(results_of(tmp_path, trainer=name)).members


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "nearest"},
        {"aniso_axis_mode": "linear"},
        {"separate_z_anisotropy_threshold": "three"},
        {"force_separate_z": 5},
    ],
)
def test_arguments_of_resampling_that_are_not_followed_are_refused(
    options: dict[str, Any], tmp_path: Path
) -> None:
    results = results_of(tmp_path)
    in_configuration(
        resampling_fn_data="resample_torch_fornnunet", resampling_fn_data_kwargs=options
    )(results)
    with pytest.raises(ModelError, match=next(iter(options))):
        card_of_folder(results)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("reader",), "OurReader", "OurReader"),
        (("reader",), "Tiff3DIO", "stacks of TIFF"),
        (("configurations",), None, "configurations must be an object"),
        (("transpose",), [0, 0, 1], "transpose"),
        (("configurations", "3d_fullres", "spacing"), [0, 1, 1], "spacing"),
        (("configurations", "3d_fullres", "network", "class"), "Ours", "Ours"),
    ],
)
def test_an_imported_card_is_held_to_the_same(
    path: tuple[str, ...], value: Any, reason: str, tmp_path: Path
) -> None:
    data = json.loads((BUNDLED_MODELS / "hippocampus" / "card.json").read_text(encoding="utf-8"))
    place = data["settings"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "card.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ModelError, match=reason):
        load_model(load_card(tmp_path))
