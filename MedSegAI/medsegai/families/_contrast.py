"""Which contrast of a scan a model is surer of: its own, or that of the inverted scan."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from medsegai.errors import ModelError
from medsegai.families import Inputs, JointModel, Model
from medsegai.networks.backends import Compute
from medsegai.preprocessing.contrast import inverted

SURER = 0.9
"""The share of the uncertainty about the scan as it is, to which that about the inverted scan must fall."""

NOTE = (
    "The intensities of the scan were inverted before it was segmented, because the model is surer then; it seems "
    "that the scan is not T1-weighted."
)


@runtime_checkable
class ComparesContrasts(Protocol):
    """A model that can say how sure it is of a scan before it segments it."""

    def entropies(self, inputs: Inputs, compute: Compute) -> tuple[float, float]:
        """The uncertainty of the card's `contrast_member`: its mean entropy, in nats, where it finds structures.

        Returns:
            that about the scan as it is, and that about the inverted scan; infinity where it finds nothing.
        """
        ...


def surer_contrast(
    model: Model, inputs: Inputs, compute: Compute
) -> tuple[Inputs, tuple[str, ...]]:
    """Return the scan with the contrast that the model is surer of, and what the user should know of it.

    It is the scan as it is if the card does not name a `contrast_member`.

    Raises:
        ModelError: the family of that member cannot compare contrasts.
    """
    if not model.card.contrast_member:
        return inputs, ()
    plain, other = _judge(model).entropies(inputs, compute)
    if not other < SURER * plain:
        return inputs, ()
    (scan,) = inputs.scans
    return Inputs([scan.with_voxels(inverted(scan.voxels))]), (NOTE,)


def _judge(model: Model) -> ComparesContrasts:
    name = model.card.contrast_member
    judge = model.model_of(name) if isinstance(model, JointModel) else model
    if isinstance(judge, ComparesContrasts):
        return judge
    raise ModelError(
        f"Model {model.card.id!r} names {name!r} as its contrast_member, but the family of that member cannot "
        "compare contrasts."
    )
