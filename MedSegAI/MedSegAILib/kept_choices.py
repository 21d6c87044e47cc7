"""The choices of the panel that a scene keeps, and the texts that stand for them.

A scene may come from anyone. Each text is read by itself, so a damaged one costs a single choice, which then is as
by default.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medsegai.errors import MedSegAIError, RequestError
from medsegai.models.json_fields import NOT_IN_JSON, from_json, harmless, shown, to_json
from medsegai.refinements import as_text, parse
from medsegai.request import request_from_options
from MedSegAILib.slicer_types import Node, SegmentationNode, VolumeNode

logger = logging.getLogger(__name__)

LONGEST = 10_000
"""The letters of a text that is read; those of the panel have less than a thousand."""


@dataclass(frozen=True)
class KeptChoices:
    """The choices that a scene keeps. Those that it does not name are as by default.

    Attributes:
        model: the id of the model; "" for none.
        others: the ids of the models that run together with it.
        fast: whether only the most important network runs.
        every_frame: whether each frame of a sequence is segmented.
        output, change_locked, change_painted: see `output_choice.OutputChoice`.
        options: the options of a request that differ from the panel's defaults.
        refinement: the refinement of the section *Refine*, as text.
        every_segment: whether all segments may be refined; otherwise only those in `segments`.
        segments: the ids of the ticked segments.
        inputs: the volume of each channel, or None.
        region: the ROI, or None for the whole volume.
        segmentation: the segmentation that the output changes.
        result: the segmentation whose structures are shown.
        refined, refined_image: the segmentation to refine, and its image.
    """

    model: str = ""
    others: tuple[str, ...] = ()
    fast: bool = False
    every_frame: bool = False
    output: Literal["new", "update", "add", "preview"] = "new"
    change_locked: bool = False
    change_painted: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    refinement: str = ""
    every_segment: bool = True
    segments: tuple[str, ...] = ()
    inputs: tuple[Node, ...] = field(default=(), metadata=NOT_IN_JSON)
    region: Node = field(default=None, metadata=NOT_IN_JSON)
    segmentation: SegmentationNode = field(default=None, metadata=NOT_IN_JSON)
    result: SegmentationNode = field(default=None, metadata=NOT_IN_JSON)
    refined: SegmentationNode = field(default=None, metadata=NOT_IN_JSON)
    refined_image: VolumeNode = field(default=None, metadata=NOT_IN_JSON)


NEVER_KEPT = frozenset({"anyway"})
"""Options that a scene does not keep: whether to segment an unsuitable scan is asked for each one."""


def _kept(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in NEVER_KEPT}


def to_texts(kept: KeptChoices) -> dict[str, str]:
    """Return the text of each choice that is not a node, by its name."""
    kept = replace(kept, options=_kept(kept.options))
    return {name: json.dumps(value) for name, value in to_json(kept).items()}


TEXTS = tuple(to_texts(KeptChoices()))
"""The names of the texts."""


def from_texts(texts: Mapping[str, str], nodes: Mapping[str, Any]) -> KeptChoices:
    """Return the choices of these texts, and of the nodes by the names of their fields.

    A text that is unknown, too long or not that of its choice is logged and left out.
    """
    values = dict(nodes)
    for name in TEXTS:
        try:
            values[name] = _value(name, texts.get(name, ""))
        except (ValueError, RecursionError, MedSegAIError) as error:
            logger.warning("The scene's choice of %s is not used: %s", name, error)
    return KeptChoices(**values | {"options": _checked_options(values.get("options", {}))})


def _value(name: str, text: str) -> Any:
    """Return the value of one text; that by default if it is empty."""
    if len(text) > LONGEST:
        raise ValueError(shown(text))
    data = {name: harmless(text)} if text else {}
    value = getattr(from_json(KeptChoices, data), name)
    if name == "refinement" and value:
        parse(value)
    return value


def _checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options that a request takes, with the types that it gives them."""
    checked = {}
    for name, value in _kept(options).items():
        try:
            checked[name] = _checked_option(name, value)
        except (RequestError, TypeError) as error:
            logger.warning("The scene's option %s is not used: %s", shown(name), error)
    return checked


def _checked_option(name: str, value: object) -> Any:
    request = request_from_options((Path(),), {name: value})
    made = getattr(request, name)
    if isinstance(made, tuple) and not all(isinstance(item, str) for item in made):
        raise RequestError(shown(value))
    return tuple(as_text(parse(text)) for text in made) if name == "refinements" else made
