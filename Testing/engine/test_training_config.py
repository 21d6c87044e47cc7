"""Training files: read whole, or refused with the reason."""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_type_hints

import pytest

from medsegai.cli import build_parser
from medsegai.errors import RequestError
from medsegai.labels import Label
from medsegai.models.card import load_card
from medsegai.models.catalogue import BUNDLED_MODELS
from medsegai.preprocessing.pictures import PictureSettings
from medsegai.training.config import TrainingConfig, configured, load_config
from medsegai.training.limits import Limits
from medsegai.training.nnunet_run import NnunetTraining
from medsegai.training.patches_options import PatchTraining
from medsegai.training.unet2d.config import Training2DConfig
from training_phantom import TRAINING_FILE


def read(folder: Path, text: str) -> TrainingConfig:
    path = folder / "training.toml"
    path.write_text(text)
    return load_config(path)


def test_values_of_every_kind_are_read(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        TRAINING_FILE
        + """
[data.remap]
25 = 2
[appearance]
t1_share = 1
bias = [0, 0.5]
""",
    )
    assert config.members == ("coronal", "sagittal")
    assert config.data.mirrored == ((2, 41),)
    assert config.data.remap == {25: 2}
    assert config.data.crop_voxels == (32, 32, 32)
    assert config.appearance.t1_share == 1.0
    assert config.appearance.bias == (0.0, 0.5)
    assert config.tissues[0].labels == (2, 41)
    assert config.card_path == tmp_path / "card.json"
    assert config.data_root == tmp_path / "maps"


MINIMAL = 'card = "card.json"\n'
TISSUE = '[[tissues]]\nname = "white"\nlabels = [2]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 3", "card"),
        (MINIMAL + "stepz = 3", "unknown key stepz"),
        (MINIMAL + "[optimiser]\nlr = 1.0", "optimiser: unknown key lr"),
        (MINIMAL + '[optimiser]\nname = "adam"', "one of adamw, sgd, muon, not 'adam'"),
        (MINIMAL + 'steps = "many"', "steps must be a whole number, not 'many'"),
        (MINIMAL + "steps = true", "steps must be a whole number"),
        (MINIMAL + "steps = 0", "steps must be at least 1, not 0"),
        (MINIMAL + "members = []", "members is empty"),
        (MINIMAL + "[data]\ncrop_voxels = [32, 32]", "crop_voxels must be a list of 3 values"),
        (MINIMAL + "[data]\ncrop_voxels = [32, 32, 40]", "must be multiples of 16"),
        (MINIMAL + "[data]\nmirrored = [[2, 41, 3]]", "mirrored[0] must be a list of 2 values"),
        (MINIMAL + "[data.remap]\nleft = 2", "'left' is not a label value"),
        (MINIMAL + "data = 3", "data must be an object"),
        (MINIMAL + "[data]\nmirrored = [[2, 41], [41, 3]]", "the label 41 twice"),
        (MINIMAL + "[data]\nmirrored = [[2, 2]]", "the label 2 twice"),
        (MINIMAL + "[deformation]\nelastic_nodes = [4]", "elastic_mm and elastic_nodes"),
        (MINIMAL + "[deformation]\nscaling = [1.2, 0.8]", "1.2 must not be more than 0.8"),
        (MINIMAL + "[loss]\ndice = 0.0\nlogistic = 0.0", "nothing to learn from"),
        (MINIMAL + "[loss]\nmin_class_weight = 11.0", "is more than max_class_weight 10"),
        (MINIMAL + 'members = ["axial", "axial"]', "names one twice"),
        (MINIMAL + TISSUE + TISSUE, "the label 2 is in [[tissues]] twice"),
        (MINIMAL + "[[tissues]]\nlabels = [2]", "name"),
        (MINIMAL + "card = 1", "cannot be read as TOML"),
        (MINIMAL + 'source = "here"', "unknown key source"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        read(tmp_path, text)
    assert "training.toml" in str(caught.value) or "Training file" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none\.toml does not exist"):
        load_config(tmp_path / "none.toml")


def test_the_fingerprint_knows_what_decides_the_result(tmp_path: Path) -> None:
    base = read(tmp_path, TRAINING_FILE).fingerprint()
    longer = TRAINING_FILE.replace("steps = 6", "steps = 60")
    assert read(tmp_path, longer).fingerprint() == base
    assert read(tmp_path, TRAINING_FILE.replace("seed = 3", "seed = 4")).fingerprint() != base
    other_loss = TRAINING_FILE + "[loss]\nboundary = 2.0\n"
    assert read(tmp_path, other_loss).fingerprint() != base


def test_the_command_line_changes_the_training_file(tmp_path: Path) -> None:
    read(tmp_path, TRAINING_FILE)
    path = str(tmp_path / "training.toml")
    words = ["train", "quicknat", path, "--steps", "9", "--views", "axial", "--data", str(tmp_path)]
    config = configured(build_parser().parse_args(words))
    assert (config.steps, config.members, config.data_root) == (9, ("axial",), tmp_path)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("training.toml", "quicknat"),
        ("fast-training.toml", "unet3d"),
        ("fine-training.toml", "unet3d"),
    ],
)
def test_the_bundled_training_files_fit_their_card(name: str, family: str) -> None:
    config = load_config(BUNDLED_MODELS / "brain" / name)
    card = load_card(config.card_path)
    assert {card.member(member).family for member in config.members} == {family}
    assert set(config.data.remap.values()) <= set(card.label_values)
    assert set(config.data.not_brain) <= set(card.label_values)
    sides = {label.value: label.name for label in card.labels}
    for left, right in config.data.mirrored:
        if left in sides:
            assert sides[left].replace("Left ", "") == sides[right].replace("Right ", "")
    for member in card.members:
        fed = [value for feeds in member.classes for value in feeds]
        assert sorted(fed) == sorted(card.label_values)
    merged = card.member("sagittal").classes
    paired = {pair for pair in config.data.mirrored if pair[0] in sides}
    assert {tuple(feeds) for feeds in merged if len(feeds) == 2} == paired


CONFIGURATIONS = (TrainingConfig, Training2DConfig, PatchTraining, NnunetTraining)

WITHOUT_LIMITS = {
    *("remap", "mirrored", "not_brain", "ventricles", "cortex", "fluid", "white_matter", "lesion"),
    *("putamen", "claustrum"),
    *("labels", "t1", "threshold", "widths", "batch_size"),
}
"""Values of labels, and what is compared elsewhere."""


def number_fields(kind: type) -> Iterator[tuple[type, dataclasses.Field[Any]]]:
    """The fields of a configuration, at any depth, that hold numbers, each with its dataclass."""
    hints = get_type_hints(kind)
    for item in dataclasses.fields(kind):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint) and hint is not PictureSettings:  # which has other limits
            yield from number_fields(cast(type, hint))
        elif re.search(r"\b(int|float)\b", str(hint)) and item.name not in WITHOUT_LIMITS:
            yield kind, item


@pytest.mark.parametrize("kind", CONFIGURATIONS, ids=lambda kind: kind.__name__)
def test_every_number_of_a_training_has_limits(kind: type) -> None:
    without = [
        f"{owner.__name__}.{item.name}"
        for owner, item in number_fields(kind)
        if "limits" not in item.metadata
    ]
    assert not without


def beyond(limits: Limits) -> Iterator[float]:
    """Numbers just outside of limits, and what is not a number."""
    yield math.nan
    if limits.most < math.inf:
        yield limits.most + 1
    if limits.least > -math.inf:
        yield limits.least if limits.above else limits.least - 1


def with_first(default: Any, value: float) -> Any:
    """A default value whose first number is another."""
    if not isinstance(default, tuple):
        return value
    return (with_first(default[0] if default else 0, value), *default[1:])


@pytest.mark.parametrize("kind", CONFIGURATIONS, ids=lambda kind: kind.__name__)
def test_a_number_beyond_its_limits_is_named(kind: type) -> None:
    """Whichever number it is, and wherever it stands: in a table of the file, or in a range."""
    least = {
        TrainingConfig: {"card": "card.json"},
        Training2DConfig: {"id": "x", "name": "x", "labels": (Label(1, "x", (1, 2, 3)),)},
        PatchTraining: {"pictures": Path("x")},
        NnunetTraining: {"dataset": Path("x")},
    }[kind]
    for owner, item in number_fields(kind):
        for value in beyond(item.metadata["limits"]):
            wrong = {item.name: with_first(item.default, value)}
            if owner is not kind:
                inner = next(
                    f.name
                    for f in dataclasses.fields(kind)
                    if get_type_hints(kind)[f.name] is owner
                )
                wrong = {inner: owner(**wrong)}
            with pytest.raises(
                RequestError, match=f"{item.name.replace('_', '.')}.* (must (be|lie)|is a range)"
            ):
                kind(**least, **wrong)
