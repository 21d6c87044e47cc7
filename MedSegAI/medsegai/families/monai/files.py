"""Configuration files of bundles, JSON or YAML, as plain values: nothing in them can make an object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medsegai.errors import ModelError
from medsegai.models.json_fields import DEEPEST, harmless, read_json
from medsegai.system.regular_files import read_regular

MOST_BYTES = 1 << 20
"""The largest size of a configuration in YAML. In the MONAI Model Zoo they have a few kilobytes."""

MOST_VALUES = 100_000

SUFFIXES = (".json", ".yaml", ".yml")


def read_configuration(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a bundle.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: the file is damaged, too large, nested too deep, or contains more than plain values.
    """
    if path.suffix.lower() == ".json":
        return read_json(path)
    data = _read_yaml(path)
    if not isinstance(data, dict):
        raise ModelError(f"{path} must hold an object.")
    return data


def files_named(folder: Path, name: str, suffixes: Sequence[str]) -> list[Path]:
    """Return the files of a name in the order of their endings; capitals do not matter."""
    there = {path.name.lower(): path for path in sorted(folder.glob("*")) if path.is_file()}
    return [there[f"{name}{suffix}"] for suffix in suffixes if f"{name}{suffix}" in there]


def _read_yaml(path: Path) -> object:
    try:
        values = _yaml_values(read_regular(path, MOST_BYTES).decode("utf-8-sig"))
        return harmless(json.dumps(values))  # YAML has numbers and texts that JSON has not
    except FileNotFoundError:
        raise
    except RecursionError:
        raise ModelError(
            f"{path} cannot be read as YAML: its values are nested too deep."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as YAML: {error}.") from error


def _yaml_values(text: str) -> Any:
    """Return the values of a YAML document that has only the types of JSON.

    Anchors are refused, because a few lines of them can expand to gigabytes, and tags, because they name classes.

    Raises:
        ValueError: the text is not YAML, or contains more than values.
    """
    try:
        import yaml
    except ImportError:
        raise ValueError("PyYAML is not installed; run `pip install medsegai[monai]`") from None
    try:
        documents = list(_values(iter(yaml.parse(text, Loader=yaml.SafeLoader))))
        if len(documents) > 1:
            raise ValueError(f"it has {len(documents)} documents instead of one")
        return documents[0] if documents else None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None


def _values(events: Iterator[Any]) -> Iterator[Any]:
    """Yield the value of each document in a stream of events."""
    import yaml

    scalars = yaml.SafeLoader("")
    open_containers: list[tuple[type, list[Any]]] = []
    document: list[Any] = []
    for count, event in enumerate(events):
        kind = type(event).__name__
        if count > MOST_VALUES:
            raise ValueError("it has more values than a configuration can have")
        if kind == "AliasEvent" or getattr(event, "anchor", None) is not None:
            raise ValueError(f"line {event.start_mark.line + 1} has an anchor; write the value out")
        if kind in ("MappingStartEvent", "SequenceStartEvent"):
            _check_tag(event)
            if len(open_containers) == DEEPEST:
                raise ValueError(f"its values are nested more than {DEEPEST} deep")
            open_containers.append((dict if kind.startswith("Mapping") else list, []))
            continue
        if kind == "ScalarEvent":
            value = _scalar(scalars, event)
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            container, items = open_containers.pop()
            value = _mapping(items, event) if container is dict else items
        else:
            continue
        if open_containers:
            open_containers[-1][1].append(value)
        else:
            document.append(value)
    yield from document


def _check_tag(event: Any) -> None:
    if event.tag is not None and not event.implicit:
        raise ValueError(f"line {event.start_mark.line + 1} has the tag {str(event.tag)[:60]!r}")


def _scalar(loader: Any, event: Any) -> Any:
    """Return a text, number, truth value or None."""
    import yaml

    if event.tag is not None and not any(event.implicit):
        raise ValueError(f"line {event.start_mark.line + 1} has the tag {str(event.tag)[:60]!r}")
    tag = loader.resolve(yaml.ScalarNode, event.value, event.implicit)
    node = yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark)
    made = {
        "tag:yaml.org,2002:null": loader.construct_yaml_null,
        "tag:yaml.org,2002:bool": loader.construct_yaml_bool,
        "tag:yaml.org,2002:int": loader.construct_yaml_int,
        "tag:yaml.org,2002:float": loader.construct_yaml_float,
    }.get(tag, loader.construct_yaml_str)
    return made(node)


def _mapping(items: list[Any], event: Any) -> dict[str, Any]:
    """Return an object from a list of alternating keys and values."""
    keys = items[::2]
    if not all(isinstance(key, str | int | float | None) for key in keys):
        raise ValueError(f"an object that ends in line {event.end_mark.line + 1} has odd keys")
    return {str(key): value for key, value in zip(keys, items[1::2], strict=True)}
