"""Configurations of MONAI bundles are data: what they compute, and that no trick makes them run."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsegai.errors import ModelError, UnsafeModelError
from medsegai.families.monai.components import transform_name
from medsegai.families.monai.configuration import Configuration
from medsegai.families.monai.expressions import LARGEST, Refused, evaluate
from medsegai.families.monai.files import read_configuration
from medsegai.families.monai.postprocessing import merged_channels


def configured(data: dict[str, Any], name: str = "configs/inference.json") -> Configuration:
    return Configuration(Path(name), data)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (1.5, 1.5),
        ("plain", "plain"),
        ("@size", [96, 96, 64]),
        ("@size#2", 64),
        ("@size::0", 96),
        ("$@size", [96, 96, 64]),
        ("%size", [96, 96, 64]),
        ("$@root + '/models/' + @file", "./models/model.pt"),
        ("$[1.5, 1.5, 1.5] if @shown#highres else [3.0, 3.0, 3.0]", [1.5, 1.5, 1.5]),
        ("$'a.pt' if not @shown#highres else 'b.pt'", "b.pt"),
        ("$@size[0] // 2 + 1", 49),
        ("$[@size[0]] * 3", [96, 96, 96]),
        ("$-(2 - 5) * 0.5", 1.5),
        ("$@shown['highres'] and @size[2] == 64", True),
        ("$None", None),
        ("$torch.float32", "float32"),
        ("$monai.utils.CommonKeys.IMAGE", "image"),
        (["@file", {"deeper": "@size#1"}], ["model.pt", {"deeper": 96}]),
        ("@_meta_#version", "0.1"),
        ("a@b.org", "a@b.org"),
        ("$len(@size)", 3),
        ("$[1] * len(list(@size))", [1, 1, 1]),
        ("$list(range(1, 4))", [1, 2, 3]),
        ("$tuple(@size)[0] // int(2.5)", 48),
    ],
)
def test_references_and_arithmetic_are_followed(entry: Any, value: Any) -> None:
    data = {
        "root": ".",
        "file": "model.pt",
        "size": [96, 96, 64],
        "shown": {"highres": True},
        "wanted": entry,
    }
    path = Path("inference.json")
    assert Configuration(path, data, {"version": "0.1"}).value("wanted") == value


numbers = st.integers(-20, 20) | st.floats(-20, 20).map(lambda value: round(value, 3))
sums = st.recursive(
    numbers.map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda p: f"({' '.join(p)})"),
        st.tuples(inner, inner, inner).map(lambda p: f"({p[0]} if {p[1]} > 0 else {p[2]})"),
        st.tuples(inner, inner).map(lambda p: f"[{p[0]}, {p[1]}][0]"),
        inner.map(lambda part: f"(-{part})"),
    ),
    max_leaves=8,
)


@given(sums)
@settings(max_examples=60, deadline=None)
def test_arithmetic_is_that_of_python(text: str) -> None:
    wanted = eval(text)
    if abs(wanted) < LARGEST:
        assert evaluate(text, lambda _: None) == wanted


TRICKS = [
    "len(open('canary', 'w').name)",
    "len(*[[1]])",
    "len(obj=[1])",
    "len(len)",
    "range(10**15)",
    "range(10**400)",
    "int('9' * 9000)",
    "[].len([1])",
    "__import__('os').system('touch canary')",
    "open('canary', 'w')",
    "().__class__.__bases__[0].__subclasses__()",
    "[open('canary', 'w') for _ in [1]]",
    "(lambda: open('canary', 'w'))()",
    "open",
    "exec",
    "@root.__class__",
    "@root.join(['canary'])",
    "@root + open('canary', 'w').name",
    "[1][open('canary', 'w').fileno()]",
    "1 if open('canary', 'w') else 2",
    "2 if True else open('canary', 'w')",
    "True or open('canary', 'w')",
    "f'{open(chr(99))}'",
    "(x := 3)",
    "{open('canary', 'w')}",
    "{**@shown}",
    "print('canary')",
    "reference_0",
    "monai.utils.CommonKeys.IMAGE.value",
    "torch.float32.__class__",
    "b'canary'",
    "1j",
    "...",
    "9 ** 9 ** 9",
    "1 << 60000",
    "'a' * 1000000000",
    "[0] * 1000000000",
    "10000000000 * 10000000000",
    "1 / 0",
    "1 % 0",
    "'%s' % 5",
    "'%1000000000d' % 5",
    "-" * 1900 + "1",
    "(" * 1000 + ")" * 1000,
    "[" * 150 + "]" * 150,
    "1+" * 900 + "1",
    "x" * 3000,
    "\x00",
    "import os",
    "1; 2",
    "",
]


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_is_refused_by_its_place(
    trick: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of them would run, or never end, if Python evaluated them."""
    monkeypatch.chdir(tmp_path)
    data = {"root": ".", "shown": {}, "network_def": {"in_channels": f"${trick}"}}
    begun = time.process_time()
    with pytest.raises(
        UnsafeModelError, match=r"inference\.json, entry network_def::in_channels: "
    ):
        configured(data).value("network_def")
    assert time.process_time() - begun < 5
    assert not list(tmp_path.iterdir())


def test_what_is_not_asked_for_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trick = "$open('canary', 'w')"
    data = {"imports": [trick], "initialize": [trick], "run": [trick], "size": 3, "wanted": "@size"}
    assert configured(data).value("wanted") == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "data",
    [
        {"a": "@a"},
        {"a": "@b", "b": "$@c + 1", "c": "@a"},
        {"a": {"deep": ["@a"]}},
        {"a": "$@a"},
        {"a": "%b", "b": "%a"},
        {"a": "@a::b", "b": 1},
    ],
)
def test_references_in_a_circle_end(data: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="refers to"):
        configured(data).value("a")
    with contextlib.suppress(ModelError):
        configured(data).followed("a")


@pytest.mark.parametrize(
    "entry", ["@nowhere", "@size::9", "@", "@1", "@size + 1", "@size::x", "$@nowhere"]
)
def test_what_refers_to_nothing_is_named(entry: str) -> None:
    with pytest.raises(ModelError, match="entry wanted"):
        configured({"size": [1], "wanted": entry}).value("wanted")


def test_references_cannot_grow_without_end() -> None:
    data: dict[str, Any] = {"e0": [0] * 10}
    data |= {f"e{n}": [f"@e{n - 1}"] * 10 for n in range(1, 12)}
    with pytest.raises(ModelError, match="more than 100000 values"):
        configured(data).value("e11")


def nested(depth: int, kind: str) -> str:
    if kind == "json":
        return '{"a": ' + "[" * depth + "]" * depth + "}"
    if kind == "flow":
        return "a: " + "[" * depth + "]" * depth
    return "".join(" " * n + "- \n" for n in range(min(depth, 700)))


@pytest.mark.parametrize("kind", ["json", "flow", "block"])
@pytest.mark.parametrize("depth", [100, 10_000])
def test_what_is_nested_too_deep_is_refused(depth: int, kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("inference.json" if kind == "json" else "inference.yaml")
    path.write_text(nested(depth, kind))
    with pytest.raises(ModelError, match=str(path)):
        read_configuration(path)


YAML_TRICKS = {
    "a class": "a: !!python/object/apply:os.system ['touch canary']",
    "a name": "a: !!python/name:os.system",
    "an unknown tag": "a: !bomb [1]",
    "an anchor": "a: &x [1]\nb: *x",
    "a laugh": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]",
    "a merge": "base: &base {x: 1}\na: {<<: *base}",
    "two odd keys": "? [1, 2]\n: 3",
    "no mapping": "[1, 2]",
    "nothing": "",
    "no YAML": "a: [1",
    "a tab": "a:\n\t- 1",
    "no number": "a: .nan",
    "an endless number": "a: -.inf",
    "a large number": "a: 1.0e+999",
    "many digits": "a: " + "9" * 60,
    "too many digits": "a: " + "9" * 6000,
    "half a letter": 'a: "\\ud800"',
}


@pytest.mark.parametrize("text", YAML_TRICKS.values(), ids=YAML_TRICKS)
def test_yaml_holds_plain_values_only(text: str, tmp_path: Path) -> None:
    path = tmp_path / "inference.yaml"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"inference\.yaml"):
        read_configuration(path)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.floats(-1e3, 1e3)
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abcdef", min_size=1), plain, max_size=4))
@settings(max_examples=40, deadline=None)
def test_yaml_and_json_of_the_same_values_are_read_alike(data: dict[str, Any]) -> None:
    import tempfile

    import yaml

    with tempfile.TemporaryDirectory() as name:
        json_file, yaml_file = Path(name) / "a.json", Path(name) / "a.yaml"
        json_file.write_text(json.dumps(data))
        text = yaml.safe_dump(data, allow_unicode=True)
        yaml_file.write_text(text, encoding="utf-8")
        if "&id" in text:  # PyYAML names empty lists that are one object
            return
        if (
            yaml.safe_load(text) != data
        ):  # and writes some line ends of Unicode as if they were letters
            return
        assert read_configuration(yaml_file) == read_configuration(json_file) == data


def test_components_are_told_by_the_name_of_their_class() -> None:
    assert transform_name("Spacingd") == transform_name("monai.transforms.SpacingDict") == "Spacing"
    assert transform_name("monai.transforms.spatial.dictionary.SpacingD") == "Spacing"
    assert transform_name("SpatialPadd") == transform_name("SpatialPad") == "SpatialPad"
    assert transform_name("scripts.transforms.Spacingd") is None
    assert transform_name("os.system") is None


BRATS = "lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"


def test_the_merge_of_brats_is_recognised_by_its_form() -> None:
    assert merged_channels(BRATS) == [(1, 2), (0, 1), (2, 4)]


@pytest.mark.parametrize(
    "text",
    [
        "lambda x: open('canary', 'w')",
        BRATS.replace("torch.where", "os.system", 1),
        BRATS.replace("4,", "open('canary', 'w'),"),
        BRATS.replace("[[2]]", "[[open('canary', 'w')]]"),
        BRATS.replace("[[0]]", "[[2]]"),
        BRATS.replace(", 0)", ", 3)"),
        BRATS.replace("lambda x", "lambda x=open('canary', 'w')"),
        "lambda x: x",
        "torch.where(x[[2]] > 0, 4, 0)",
        "lambda x: " + "torch.where(x[[2]] > 0, 4, " * 60 + "0" + ")" * 60,
    ],
)
def test_any_other_lambda_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused):
        merged_channels(text)
    assert not list(tmp_path.iterdir())
