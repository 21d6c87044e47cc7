"""Which structures a person should look at first, and why: the one place that says so.

The measures are those of Bayesian QuickNAT (A. G. Roy et al., NeuroImage 195, 2019): how far the members
of a model agree on a structure goes along with how good its segmentation is.
"""

from __future__ import annotations

from medsegai.request import StructureMeasures
from MedSegAILib.translation import tr as _

IOU_DOUBTFUL = 0.6
"""Members that share less than this part of what any of them found disagree on the structure. Two members
of Dice 0.75 share 0.6 of their union."""

CV_DOUBTFUL = 0.2
"""The same for standard deviation over mean of their volumes: two volumes of 1 and 1.5 ml."""


def doubt(measures: StructureMeasures) -> str:
    """Why a structure should be looked at, in words; "" where nothing speaks for it.

    Nothing is said of a structure where uncertainty was not asked for, and NaN counts as unknown.
    """
    reasons = []
    if measures.iou is not None and measures.iou < IOU_DOUBTFUL:
        reasons.append(
            _("members share only {part:.0f} % of the voxels they found").format(
                part=100 * measures.iou
            )
        )
    if measures.volume_cv is not None and measures.volume_cv > CV_DOUBTFUL:
        reasons.append(
            _("their volumes differ by {part:.0f} %").format(part=100 * measures.volume_cv)
        )
    return "; ".join(reasons)
