"""The folder of a MONAI bundle as a card: configs/metadata.json, configs/inference.json or .yaml, models/model.pt.

Format: "MONAI Bundle Specification" (docs.monai.io), and the bundles of the MONAI Model Zoo.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medsegai.errors import ModelError
from medsegai.families.monai.components import Component
from medsegai.families.monai.configuration import SEPARATOR, Configuration
from medsegai.families.monai.files import SUFFIXES, files_named
from medsegai.families.monai.kinds import check_segments
from medsegai.families.monai.labels import Named, channel_names, exclusive, overlapping
from medsegai.families.monai.postprocessing import (
    SLICES,
    Postprocessing,
    inferer_of,
    read_inferer,
    read_postprocessing,
)
from medsegai.families.monai.preprocessing import read_preprocessing
from medsegai.families.monai.settings import Settings
from medsegai.families.monai.topology import topology_of
from medsegai.families.monai.weights import read_weights_file, write_member
from medsegai.models.card import Channel, ModelCard
from medsegai.models.json_fields import read_json, shown
from medsegai.models.refinement import Refinement
from medsegai.networks.monai_networks import KINDS, Description, network_name

FAMILY = "monai"

CONFIGS, METADATA, INFERENCE, MODELS = "configs", "metadata.json", "inference", "models"

LONGEST_TEXT = 2000
"""The largest number of letters in a description."""

AREAS = "The configuration resizes predictions by averages of areas; here they are interpolated."

MODALITIES = {"MRI": "MR", "PET": "PT", "ULTRASOUND": "US"}


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds the metadata of a bundle."""
    return bool(files_named(folder / CONFIGS, METADATA, [""]))


def convert(folder: Path, destination: Path) -> ModelCard:
    """Write the weights of a bundle to a new folder, and return the card for them.

    Raises:
        UnsafeModelError: a file asks for more than weights, or Python would have to run the configuration.
        ModelError: a part is missing or unknown, or parts contradict each other.
    """
    metadata = read_json(files_named(folder / CONFIGS, METADATA, [""])[0], nan_as_null=True)
    configuration, note = _configuration(folder, metadata)
    check_segments(configuration, metadata)
    network = _network(configuration, folder)
    description = Description.of(network["class"], network["arguments"])
    _check_metadata(configuration, metadata, description)
    pictures = _is_for_pictures(configuration, description)
    steps = read_preprocessing(configuration, description.in_channels, pictures)
    modes = {step["mode"] for step in steps if step["transform"] in ("Spacing", "Resize")}
    after = read_postprocessing(configuration, "nearest" in modes)
    inferer = read_inferer(configuration, description.dimensions)
    settings: dict[str, Any] = {
        "network": network,
        "preprocessing": steps,
        "inferer": {name: value for name, value in inferer.items() if value is not None},
        "postprocessing": after.reading,
    }
    try:
        checked = Settings.from_dict(settings)
        description.check_window(checked.window())
    except ModelError as error:
        raise ModelError(f"{configuration.path}: {error}") from None
    named, order = _labels(metadata, description, after, checked.reading.regions)
    if order != sorted(order):
        after.reading["order"] = order
    if "area" in modes and after.reading["inversion"] == "linear":
        after.notes.append(AREAS)
    member = write_member(
        read_weights_file(_weights(folder, configuration)), network, named.classes, destination
    )
    return ModelCard(
        family=FAMILY,
        channels=_channels(configuration, metadata, description.in_channels),
        labels=named.labels,
        members=(member,),
        spacing_mm=_spacing(steps),
        settings=settings,
        suggested_refinements=_refinements(after, named),
        dimensions=2 if pictures else 3,
        **_told(folder, metadata, [*after.notes, *filter(None, [named.note, note])]),
    )


def _is_for_pictures(configuration: Configuration, network: Description) -> bool:
    """Whether the network processes pictures, and not the slices of volumes."""
    return network.dimensions == 2 and inferer_of(configuration) != SLICES


def _configuration(folder: Path, metadata: Mapping[str, Any]) -> tuple[Configuration, str]:
    """Return the configuration, and a remark if there are several."""
    found = files_named(folder / CONFIGS, INFERENCE, SUFFIXES)
    if found:
        names = " and ".join(path.name for path in found)
        note = f"The bundle has {names}; {found[0].name} was read." if len(found) > 1 else ""
        return Configuration.read(found[0], metadata), note
    raise ModelError(
        f"{folder / CONFIGS} of this MONAI bundle has no {INFERENCE}.json or {INFERENCE}.yaml, which says how the "
        "network is run. Get the whole bundle, or add the file."
    )


def _network(configuration: Configuration, folder: Path) -> dict[str, Any]:
    """Return the network as it is written in a card."""
    entry = next(name for name in ("network_def", "network") if configuration.has_value(name))
    component = Component.at(configuration, entry)
    name = network_name(component.target)
    if name is None:
        raise component.unknown(
            "not a supported network",
            f"run the bundle with MONAI itself; supported are {', '.join(KINDS)} of MONAI",
        )
    arguments = _arguments(component, name, folder)
    try:
        Description.of(name, arguments)
    except ModelError as error:
        raise configuration.wrong(component.place, str(error).rstrip(".")) from None
    return {"class": name, "arguments": arguments}


def _arguments(component: Component, name: str, folder: Path) -> dict[str, Any]:
    """Return the arguments of a network. For a DiNTS they contain the codes of its topology."""
    names = sorted(component.names() - KINDS[name].dropped)
    if name != "DiNTS":
        return {argument: component.value(argument) for argument in names}
    plain = (argument for argument in names if argument not in ("dints_space", "node_a"))
    found = {argument: component.value(argument) for argument in plain}
    return found | topology_of(component, folder / MODELS)


def _check_metadata(
    configuration: Configuration, metadata: Mapping[str, Any], network: Description
) -> None:
    """Refuse a network whose numbers of channels differ from those in the metadata."""
    data = metadata.get("network_data_format")
    for direction, count in (("inputs", network.in_channels), ("outputs", network.classes)):
        ports = data.get(direction) if isinstance(data, dict) else None
        for name, port in (ports if isinstance(ports, dict) else {}).items():
            told = port.get("num_channels") if isinstance(port, dict) else None
            alone = len(ports) == 1 if isinstance(ports, dict) else False
            allowed = {count, 1} if direction == "outputs" else {count}
            if alone and type(told) is int and told not in allowed:
                raise configuration.wrong(
                    "network_def",
                    f"the network has {count} channels of {direction}, but {METADATA} says {told} "
                    f"of {shown(name)}",
                )


def _labels(
    metadata: Mapping[str, Any], network: Description, after: Postprocessing, regions: bool
) -> tuple[Named, list[int]]:
    """Return the labels, and the channels of the network in their order."""
    names = channel_names(metadata, network.classes)
    if not regions:
        if network.classes < 2:
            raise ModelError(
                "The network has one output channel, but the configuration takes the largest of several."
            )
        return exclusive(names, network.classes), list(range(network.classes))
    if after.merge is not None and {channel for channel, _ in after.merge} != set(
        range(network.classes)
    ):
        raise ModelError(
            f"The postprocessing merges other channels than the {network.classes} of the network."
        )
    return overlapping(names, network.classes, after.merge)


def _weights(folder: Path, configuration: Configuration) -> Path:
    """Return the file of weights that the configuration loads. It must be in the folder for weights."""
    named = next(iter(_loaded(configuration)), "model.pt")
    for name in dict.fromkeys((named, "model.pt")):
        if (folder / MODELS / name).is_file():
            return folder / MODELS / name
    programs = sorted((folder / MODELS).glob("*.ts"))
    if programs:
        raise ModelError(
            f"{programs[0]} is a program of TorchScript, which MedSegAI does not run, and there are no weights "
            "beside it. Load it with torch.jit.load on a computer that may run it, save its state_dict() "
            f"with torch.save as {MODELS}/{named}, and import the bundle again."
        )
    raise ModelError(
        f"{folder / MODELS} has no {named}. Bundles of the MONAI Model Zoo come without their weights from a "
        "clone of its repository; download the bundle with `python -m monai.bundle download`."
    )


def _loaded(configuration: Configuration) -> Iterator[str]:
    """Return the names of the files that the checkpoint loaders of the configuration read."""
    entries = ["checkpointloader"]
    if configuration.has_value("handlers"):
        handlers = configuration.raw(configuration.followed("handlers"))
        count = len(handlers) if isinstance(handlers, list) else 0
        entries += [f"handlers{SEPARATOR}{number}" for number in range(min(count, 20))]
    for entry in entries:
        place = f"{entry}{SEPARATOR}load_path"
        if place in configuration:
            try:
                path = configuration.value(place)
            except ModelError:
                continue  # the usual name is tried
            if isinstance(path, str) and Path(path.replace("\\", "/")).name:
                yield Path(path.replace("\\", "/")).name


def _channels(
    configuration: Configuration, metadata: Mapping[str, Any], count: int
) -> tuple[Channel, ...]:
    data = metadata.get("network_data_format")
    ports = data.get("inputs") if isinstance(data, dict) else None
    listed = list(ports.items()) if isinstance(ports, dict) else []
    first = listed[0][1] if listed and isinstance(listed[0][1], dict) else {}
    modality = _modality(first)
    given = first.get("channel_def")
    names = [str(given.get(str(n), "")) for n in range(count)] if isinstance(given, dict) else []
    if len(listed) == count > 1:
        names = [name for name, _ in listed]
    names = [" ".join(name.split())[:60] for name in names]
    if (
        count == 1
        or len(set(names)) < count
        or not all(name.isprintable() and name for name in names)
    ):
        names = [modality] if count == 1 else [f"image {number + 1}" for number in range(count)]
    return tuple(Channel(name, modality) for name in names)


def _modality(port: Mapping[str, object]) -> str:
    """Return the modality of an input; ANY if the metadata does not state it."""
    named = str(port.get("modality") or "any").strip().upper()[:16]
    named = MODALITIES.get(named, named)
    return named if named.isprintable() and named else "ANY"


def _spacing(steps: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Return the spacing in mm to which images are resampled; 1 mm if they are not resampled."""
    for step in steps:
        if step["transform"] == "Spacing":
            x, y, z = (float(length) if length > 0 else 1.0 for length in step["pixdim"])
            return x, y, z
    return 1.0, 1.0, 1.0


def _refinements(after: Postprocessing, named: Named) -> tuple[Refinement, ...]:
    values = {label.value for label in named.labels}
    labels: list[Any] = []
    for item in after.largest:
        if item is None:
            labels += sorted(values)
        elif isinstance(item, list):
            labels.append([value for value in item if value in values])
        elif item in values:
            labels.append(item)
    return (Refinement("largest_component", {"labels": labels}),) if labels else ()


def _told(folder: Path, metadata: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the texts of the card, from the metadata."""
    version = _line(metadata.get("version")) or "unknown"
    references = metadata.get("references")
    cited = [_line(item) for item in references] if isinstance(references, list) else []
    description = " ".join(
        filter(None, [_line(metadata.get("description") or metadata.get("task")), *notes])
    )
    return {
        "id": named_id(folder.name),
        "name": _line(metadata.get("name") or metadata.get("task"))[:120] or folder.name,
        "version": version[:60],
        "description": description,
        "intended_use": _line(metadata.get("intended_use")),
        "licence": _licence(folder, metadata),
        "origin": _origin(metadata),
        "citation": "; ".join(filter(None, cited))[:LONGEST_TEXT],
        "performance": _performance(metadata.get("eval_metrics")),
    }


def _licence(folder: Path, metadata: Mapping[str, object]) -> str:
    files = [*sorted(folder.glob("LICEN[CS]E*")), *sorted(folder.glob("docs/LICEN[CS]E*"))]
    unnamed = (
        f"See {files[0].name} of the bundle." if files else "As the authors of the bundle say."
    )
    return _line(metadata.get("license")) or unnamed


def _origin(metadata: Mapping[str, object]) -> str:
    version = _line(metadata.get("monai_version")) or "of unknown version"
    made = f"MONAI bundle, made with MONAI {version}."
    data = metadata.get("data_source")
    return f"{made} Trained on {_line(data)}." if data else made


def _performance(metrics: Any) -> dict[str, Any]:
    """Return the figures that the authors state: numbers, or objects of numbers."""

    def numbers(values: Any) -> dict[str, float]:
        return {
            _line(name): value
            for name, value in (values.items() if isinstance(values, dict) else ())
            if isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
        }

    found: dict[str, Any] = dict(numbers(metrics))
    for name, value in metrics.items() if isinstance(metrics, dict) else ():
        if numbers(value):
            found[_line(name)] = numbers(value)
    return {"as the authors of the bundle report": found} if found else {}


def _line(value: Any) -> str:
    """Return a text as one printable line."""
    text = value if isinstance(value, str) else ""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:LONGEST_TEXT]


def named_id(name: str) -> str:
    """Return a model id made from the name of a folder or file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64] or "monai-bundle"
