"""A model of MONAI's Auto3DSeg (SegResNet) as a card: `model.pt` with its configuration and weights, `labels.csv`.

The steps are those of the algorithm's own inference (Project-MONAI/research-contributions, auto3dseg, segresnet)
in their order: orientation, foreground, spacing, intensities; windows that overlap by 0.625 with Gaussian weights;
probabilities interpolated on the way back. `labels.csv` is that of the Slicer extension MONAIAuto3DSeg.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsegai.errors import ModelError, UnsafeModelError
from medsegai.families.monai.components import TARGET
from medsegai.families.monai.labels import Named, exclusive, overlapping
from medsegai.families.monai.settings import Settings
from medsegai.families.monai.weights import read_weights_file, write_member
from medsegai.labels import Label, Terminology
from medsegai.models.card import Channel, ModelCard
from medsegai.models.json_fields import number, shown
from medsegai.networks.checkpoints import plain
from medsegai.networks.monai_networks import Description, network_name
from medsegai.system.regular_files import read_regular

WEIGHTS, LABELS = "model.pt", "labels.csv"

MOST_LABELS_BYTES = 1 << 20

MARGIN, OVERLAP = 10, 0.625
"""The margin around the foreground in voxels, and the overlap of windows as a share of their size."""

NEAR = (0.75, 1.25)
"""An image is not resampled if its spacing is between these multiples of the spacing of the training."""

MERGES = {"kits": [(0, 1), (1, 3), (2, 2)], "brats": [(0, 2), (1, 1), (2, 3)]}
"""The (channel, value) pairs of known data sets, by a word in the name of the training or of the model. Later
pairs overwrite earlier ones. In BraTS, the whole tumour becomes oedema, its core necrosis, and the enhancing part
enhancing tumour."""

SQUASHED = {"range": "sigmoid", "ct": "sigmoid", "meanstdtanh": "tanh"}
"""The function that is applied after intensities are scaled, by the mode of normalisation."""

MODALITIES = {"ct": "CT", "mri": "MR", "pet": "PT"}


def convert(path: Path, destination: Path) -> ModelCard | None:
    """Write the weights of a `model.pt` to a new folder, and return the card for them.

    Returns:
        The card, or None if the file does not come from Auto3DSeg.

    Raises:
        ModelError: the file comes from Auto3DSeg, but its configuration is unknown or contradicts its weights.
    """
    try:
        file = read_weights_file(path)
    except (UnsafeModelError, ModelError):
        return None  # another family may know what it is, and says what is wrong
    content = file.content
    if (
        not isinstance(content, dict)
        or "state_dict" not in content
        or not isinstance(content.get("config"), dict)
    ):
        return None
    try:
        config = plain(content["config"])
        settings, network = _settings(config)
        named, order = _labels(path, config, network)
        network.check_window(Settings.from_dict(settings).window())
    except ValueError as error:
        raise ModelError(f"{path}: {error}.") from None
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    if order != sorted(order):
        settings["postprocessing"]["order"] = order
    member = write_member(file, settings["network"], named.classes, destination)
    return ModelCard(
        family="monai",
        channels=_channels(config, network.in_channels),
        labels=named.labels,
        members=(member,),
        spacing_mm=_spacing(config),
        settings=settings,
        **_told(path, content, named.note),
    )


def _settings(config: Mapping[str, Any]) -> tuple[dict[str, Any], Description]:
    described = _described(config)
    name = network_name(str(described[TARGET]))
    arguments = _arguments(described)
    network = Description.of(name, arguments)
    sigmoid = bool(config.get("sigmoid", False))
    settings = {
        "network": {"class": name, "arguments": arguments},
        "preprocessing": _steps(config, network.in_channels),
        "inferer": _inferer(config),
        "postprocessing": _decided("sigmoid" if sigmoid else "softmax"),
    }
    Settings.from_dict(settings)
    return settings, network


def _described(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the description of the network, which must be a SegResNet."""
    described = config.get("network")
    described = described if isinstance(described, Mapping) else {}
    target = str(described.get(TARGET, ""))
    if network_name(target) not in ("SegResNetDS", "SegResNetDS2"):
        raise ModelError(
            f"Its network is {shown(target)}, but only SegResNetDS is supported. Use the weights in a bundle."
        )
    return described


def _arguments(described: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {
        key: value
        for key, value in described.items()
        if not key.startswith("_") and value is not None
    }
    for key, value in arguments.items():
        if isinstance(value, str) and value[:1] in "@$%":
            raise UnsafeModelError(
                f"{key} of its network is {shown(value)}, which would have to be run. Nothing of it was run."
            )
    return arguments


def _inferer(config: Mapping[str, Any]) -> dict[str, object]:
    roi = _three(config, "roi_size")
    return {"roi_size": roi, "overlap": [OVERLAP] * 3, "mode": "gaussian"}


def _decided(activation: str) -> dict[str, str]:
    decision = "threshold" if activation == "sigmoid" else "argmax"
    return {"activation": activation, "decision": decision, "inversion": "linear"}


def _steps(config: Mapping[str, Any], channels: int) -> list[dict[str, Any]]:
    """Return the preprocessing as it is written in a card."""
    steps: list[dict[str, Any]] = []
    if config.get("orientation_ras", False):
        steps.append({"transform": "Orientation", "axcodes": "RAS"})
    if config.get("crop_foreground", True):
        steps.append(_cropping(channels))
    if config.get("resample", True) and config.get("resample_resolution") is not None:
        steps.append(_resampling(config))
    modes = [config.get("normalize_mode"), *_extra(config).values()]
    if len(modes) == 1:
        return [*steps, *_normalised(config, modes[0], None)]
    if len(modes) != channels:
        raise ModelError(
            f"extra_modalities and the first image are {len(modes)} images, but the network takes {channels}."
        )
    for channel, mode in enumerate(modes):
        steps += _normalised(config, mode, [[channel]])
    return steps


def _cropping(channels: int) -> dict[str, object]:
    margin = {"margin": [MARGIN] * 3, "allow_smaller": True}
    source = {"source": [0]} if channels > 1 else {}
    return {"transform": "CropForeground", **margin, **source}


def _resampling(config: Mapping[str, Any]) -> dict[str, object]:
    """Return the step that resamples, unless the spacing is almost the wanted one."""
    wanted = [float(length) for length in _three(config, "resample_resolution")]
    least, most = ([length * factor for length in wanted] for factor in NEAR)
    kept = {"min_pixdim": least, "max_pixdim": most}
    return {"transform": "Spacing", "pixdim": wanted, **kept, "dtype": "float32"}


def _normalised(config: Mapping[str, Any], mode: Any, groups: Any) -> list[dict[str, Any]]:
    """Return the steps that scale the intensities of one image."""
    at: dict[str, Any] = {} if groups is None else {"groups": groups}
    if mode == "none":
        return []
    if mode == "pet":
        return [{"transform": "Squash", "function": "pet", **at}]
    if mode in ("range", "ct"):
        scaled = _range(config) | at
    elif mode in ("meanstd", "mri", "meanstdtanh"):
        scaled = {"transform": "NormalizeIntensity", "nonzero": True, "channel_wise": True, **at}
    else:
        raise ModelError(
            f"Its normalize_mode is {shown(mode)}, not none, ct, range, mri, meanstd, meanstdtanh or pet."
        )
    if mode in SQUASHED:
        return [scaled, {"transform": "Squash", "function": SQUASHED[mode], **at}]
    return [scaled]


def _range(config: Mapping[str, object]) -> dict[str, object]:
    bounds = config.get("intensity_bounds")
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise ModelError(f"intensity_bounds must be two numbers, not {shown(bounds)}.")
    low, high = (number(value, "intensity_bounds") for value in bounds)
    scaled = {"transform": "ScaleIntensityRange", "a_min": low, "a_max": high}
    return {**scaled, "b_min": -1.0, "b_max": 1.0}


def _extra(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the additional images of a case, with their modes of normalisation."""
    extra = config.get("extra_modalities") or {}
    return {str(name): str(mode) for name, mode in extra.items()} if isinstance(extra, dict) else {}


def _three(config: Mapping[str, Any], name: str) -> list[Any]:
    values = config.get(name)
    if not isinstance(values, list) or len(values) != 3:
        raise ModelError(f"{name} must be three numbers, not {shown(values)}.")
    return [number(value, name) if name != "roi_size" else value for value in values]


def _channels(config: Mapping[str, Any], count: int) -> tuple[Channel, ...]:
    first = MODALITIES.get(
        str(config.get("modality") or config.get("normalize_mode")).lower(), "ANY"
    )
    extra = _extra(config)
    if 1 + len(extra) == count:
        names = [first, *(" ".join(name.split())[:60] for name in extra)]
        if len(set(names)) == count and all(name.isprintable() and name for name in names):
            kinds = [first, *(MODALITIES.get(mode, "ANY") for mode in extra.values())]
            return tuple(map(Channel, names, kinds))
    return tuple(Channel(f"image {n + 1}" if count > 1 else first, first) for n in range(count))


def _spacing(config: Mapping[str, Any]) -> tuple[float, float, float]:
    if not config.get("resample", True) or config.get("resample_resolution") is None:
        return 1.0, 1.0, 1.0
    x, y, z = (
        float(length) if length > 0 else 1.0 for length in _three(config, "resample_resolution")
    )
    return x, y, z


def _labels(path: Path, config: Mapping[str, Any], network: Description) -> tuple[Named, list[int]]:
    """Return the labels, named and coded by labels.csv, and the channels of the network in their order."""
    order = list(range(network.classes))
    rows = _rows(path.parent / LABELS)
    if not config.get("sigmoid", False):
        named = exclusive(_class_names(config), network.classes)
    else:
        where = f"{config.get('bundle_root', '')} {path.parent.name} {path.name}".lower()
        merge = next((merge for word, merge in MERGES.items() if word in where), None)
        if network.classes != 3:
            merge = None
        named, order = overlapping(_class_names(config), network.classes, merge)
    if not rows:
        return named, order
    known = [rows.get(label.value) or label for label in named.labels]
    labels = tuple(_unique(known))
    note = "" if all(label.value in rows for label in labels) else named.note
    return Named(labels, named.classes, note), order


def _class_names(config: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of channels in the configuration: text, or a name with the label values that it joins."""
    given = config.get("class_names")
    if not isinstance(given, list):
        return {}
    names = [
        item for item in given if isinstance(item, str) and item.isprintable() and item.strip()
    ]
    first = 0 if config.get("sigmoid", False) else 1
    return (
        {first + n: name[:60] for n, name in enumerate(names)} if len(names) == len(given) else {}
    )


def _unique(labels: list[Label]) -> list[Label]:
    seen: set[str] = set()
    found = []
    for label in labels:
        name = label.name if label.name.casefold() not in seen else f"{label.name} {label.value}"
        seen.add(name.casefold())
        found.append(Label(label.value, name, label.color, label.terminology))
    return found


def _rows(path: Path) -> dict[int, Label]:
    """Return the labels of a labels.csv by their values; none if the file does not exist.

    Raises:
        ModelError: the file cannot be read, or a row lacks its value or name.
    """
    if not path.is_file():
        return {}
    found = {}
    try:
        text = read_regular(path, MOST_LABELS_BYTES).decode("utf-8-sig")
        for row in csv.DictReader(io.StringIO(text)):
            value = int(row["LabelValue"])
            if value > 0:
                found[value] = _label(value, row)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise ModelError(
            f"{path} does not have a LabelValue and a Name in each row: {error}."
        ) from None
    return found


def _label(value: int, row: Mapping[str, str]) -> Label:
    from medsegai.labels import made_color

    name, terminology = " ".join((row["Name"] or "").split()), _terminology(row)
    if not name and terminology is not None:
        name = terminology.type[2]
    return Label(value, name or f"label {value}", made_color(value), terminology)


def _terminology(row: Mapping[str, Any]) -> Terminology | None:
    """Return the codes of a row; None if category or type are missing."""

    def code(sequence: str) -> tuple[str, str, str] | None:
        parts = [
            " ".join(str(row.get(f"{sequence}.{part}") or "").split())
            for part in ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")
        ]
        usable = all(parts) and all(
            part.isprintable() and not set("^~|") & set(part) for part in parts
        )
        return (parts[0], parts[1], parts[2]) if usable else None

    category = code("SegmentedPropertyCategoryCodeSequence")
    kind = code("SegmentedPropertyTypeCodeSequence")
    if category is None or kind is None:
        return None
    return Terminology(category, kind, code("SegmentedPropertyTypeModifierCodeSequence"))


def _told(path: Path, content: Mapping[str, Any], note: str) -> dict[str, Any]:
    """Return the texts of the card. A model.pt contains little information about itself."""
    folder = path.absolute().parent.name
    name = path.stem if path.stem != "model" else folder
    match = re.search(r"[-_]v(\d+(?:\.\d+)*)$", name)
    title = re.sub(r"[-_]v\d+(?:\.\d+)*$", "", name).replace("-", " ").replace("_", " ").strip()
    return {
        "id": re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64] or "auto3dseg",
        "name": title[:120] if title.isprintable() and title else "Auto3DSeg",
        "version": match[1] if match else "unknown",
        "description": " ".join(filter(None, ["A SegResNet that MONAI Auto3DSeg trained.", note])),
        "licence": "As the authors of the model say.",
        "origin": "MONAI Auto3DSeg, imported on this computer.",
        "citation": "M. J. Cardoso et al., MONAI, 2022; A. Myronenko, 3D MRI brain tumor segmentation using "
        "autoencoder regularization, BrainLes 2018",
        "performance": _performance(content.get("best_metric")),
    }


def _performance(metric: object) -> dict[str, dict[str, float]]:
    if isinstance(metric, int | float) and not isinstance(metric, bool) and 0 <= metric <= 1:
        return {"as its training reports": {"mean Dice of its own validation": float(metric)}}
    return {}
