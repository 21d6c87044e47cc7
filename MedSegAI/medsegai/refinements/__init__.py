"""What cleans and sharpens a segmentation: one module each, found by its name.

A refinement has an `Options` dataclass and `apply(labelmap, options)`, which gives the new labels and says in
words what it changed. Refinements never import each other.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from medsegai.errors import ModelError
from medsegai.volume import Volume


def refinement_names() -> tuple[str, ...]:
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def refine(labelmap: Volume, settings: Mapping[str, Any]) -> tuple[NDArray[Any], list[str]]:
    """Apply one refinement as a card suggests it: its name, and its options.

    Returns:
        The labels, (k, j, i), and what was changed, in words.

    Raises:
        ModelError: there is no such refinement, or it has no such option.
    """
    options = dict(settings)
    name = options.pop("name", None)
    if name not in refinement_names():
        raise ModelError(
            f"There is no refinement {name!r}. Known refinements: {', '.join(refinement_names())}."
        )
    module = importlib.import_module(f"{__name__}.{name}")
    try:
        chosen = module.Options(**options)
    except TypeError as error:
        raise ModelError(f"The options of refinement {name!r} do not fit: {error}.") from None
    changed: tuple[NDArray[Any], list[str]] = module.apply(labelmap, chosen)
    return changed
