"""What the worker can be asked for besides a segmentation, and what it answers.

As with `request`, these are plain values of L0: the panel makes and reads them, the worker does the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medsegai.labels import Label
from medsegai.request import Candidates
from medsegai.volume import Volume


@dataclass(frozen=True, eq=False)
class RefinementRequest:
    """A segmentation that is there already, whoever made it, to be cleaned and sharpened.

    Attributes:
        labelmap: label values from 0, (k, j, i), an unsigned integer type.
        labels: what the values mean.
        settings: what to do, in this order: the name of each refinement and its options, as
            `medsegai.refinements.parse` gives them.
        fixed: values of labels that may neither lose nor gain a voxel.
        image: the scan, for refinements that look at it; on any grid.
        candidates: the two most probable structures of each voxel, where they are known, on the grid of the
            label map.
    """

    labelmap: Volume
    labels: tuple[Label, ...]
    settings: tuple[Mapping[str, Any], ...]
    fixed: tuple[int, ...] = ()
    image: Volume | None = None
    candidates: Candidates | None = None


@dataclass(frozen=True, eq=False)
class RefinementResult:
    """What became of it.

    Attributes:
        labelmap: label values, (k, j, i), on the grid and in the type of the request.
        words: what was changed, in sentences; none where nothing was.
        report: the same for each refinement as JSON values, structure by structure.
        seconds: what each stage took.
    """

    labelmap: Volume
    words: tuple[str, ...] = ()
    report: tuple[Mapping[str, Any], ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
