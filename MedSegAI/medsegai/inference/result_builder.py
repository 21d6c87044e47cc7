"""Builds a result slab by slab on the output grid, and refines it there."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.inference.agreement import Agreement
from medsegai.inference.fusion import Ensemble
from medsegai.inference.grid_sampling import Slab
from medsegai.inference.probabilities import two_best
from medsegai.labels import Label
from medsegai.models.refinement import Refinement
from medsegai.progress import Progress, part_of
from medsegai.refinements import Draft, Refined, Step, apply_refinement
from medsegai.refinements._overlapping import Regions, apply_to_regions
from medsegai.request import Candidates, SegmentationRequest, StructureMeasures
from medsegai.volume import Geometry, Volume

NOTHING_FOUND = (
    "No structure was found. Check that the image is of the kind that the model was made for."
)


class ResultBuilder:
    """Builds a result on the output grid, slab by slab.

    Arrays have their axes as on the output grid; `grid` has them in the order in which slabs are read.

    Args:
        request: the request.
        labels: the labels of the result.
        output: the output grid.
        ensemble: the predictions to read.
        candidates: whether refinements need the runner-up of each voxel, to which they assign removed voxels.
    """

    def __init__(
        self,
        request: SegmentationRequest,
        labels: Sequence[Label],
        output: Geometry,
        ensemble: Ensemble,
        candidates: bool = False,
    ) -> None:
        self._labels, self._output, self._ensemble = labels, output, ensemble
        self.grid = output.permuted(ensemble.axes)
        kind = np.uint8 if max(ensemble.labels) < 256 else np.uint16
        self._values = np.array(ensemble.labels, kind)
        self.labelmap: NDArray[np.integer] = np.zeros(output.shape, kind)
        self.entropy = np.zeros(output.shape, np.float32) if request.uncertainty else None
        self.information = np.zeros(output.shape, np.float32) if ensemble.informed else None
        shape = (len(labels), *output.shape)
        self.probabilities = np.zeros(shape, np.float16) if request.probabilities else None
        overlap = request.overlap and ensemble.probabilities.activation.regions
        self.regions = np.zeros(shape, bool) if overlap else None
        self._steps = np.zeros(shape, np.uint8) if overlap and candidates else None
        wanted = (candidates and not overlap) or request.candidates
        self.candidates = _no_candidates(output.shape, kind) if wanted else None
        self.warnings: list[str] = []
        self._asked = len(request.refinements)
        self._agreement = (
            Agreement(ensemble.members_apart or 1, [label.value for label in labels])
            if request.uncertainty
            else None
        )

    def add(self, slab: Slab) -> None:
        """Fill a slab of `grid`; after the last one, `finish`."""
        probabilities, axes = self._ensemble.probabilities, self._ensemble.axes
        labels = self._add_labels(slab)
        if self.probabilities is not None or self.regions is not None:
            self._add_values(slab)
        if self.entropy is not None and self._agreement is not None:
            entropy = probabilities.entropy(slab).cpu().numpy()
            self.entropy.transpose(axes)[slab.planes] = entropy
            members = (
                self._ensemble.member_labels(slab).numpy()
                if self._ensemble.members_apart
                else labels[None]
            )
            information = self._read_information(slab)
            self._agreement.add(members, labels, entropy, information)

    def finish(self) -> None:
        """Drop the predictions, which all slabs were read from: refining and writing do not need their memory."""
        del self._ensemble

    def _add_values(self, slab: Slab) -> None:
        values = self._ensemble.probabilities.read(slab)[1:].cpu().numpy()
        by_planes = (0, *(1 + axis for axis in self._ensemble.axes))
        if self.probabilities is not None:
            self.probabilities.transpose(by_planes)[:, slab.planes] = values
        if self.regions is not None:
            self.regions.transpose(by_planes)[:, slab.planes] = values > 0.5
        if self._steps is not None:
            self._steps.transpose(by_planes)[:, slab.planes] = np.rint(255 * values)

    def _add_labels(self, slab: Slab) -> NDArray[np.integer]:
        """Fill a slab of the label map, and of the candidates where they are wanted."""
        probabilities, axes = self._ensemble.probabilities, self._ensemble.axes
        if self.candidates is None:
            found = probabilities.argmax(slab)
            labels: NDArray[np.integer] = self._values[found.cpu().numpy()]
        else:
            best = two_best(probabilities, slab)
            first, second, p_first, p_second = (values.cpu().numpy() for values in best)
            labels = self._values[first]
            self.candidates.first.transpose(axes)[slab.planes] = labels
            self.candidates.second.transpose(axes)[slab.planes] = self._values[second]
            self.candidates.p_first.transpose(axes)[slab.planes] = p_first
            self.candidates.p_second.transpose(axes)[slab.planes] = p_second
        self.labelmap.transpose(axes)[slab.planes] = labels
        return labels

    def _read_information(self, slab: Slab) -> NDArray[np.floating] | None:
        if self.information is None:
            return None
        found = self._ensemble.disagreement(slab).numpy()
        self.information.transpose(self._ensemble.axes)[slab.planes] = found
        return found

    def refine(
        self, refinements: Sequence[Refinement], image: Volume, progress: Progress
    ) -> list[dict[str, Any]]:
        """Refine the labels, and return all changes.

        Refinements of the request come last. Changes by refinements that the model's card suggests are not
        warnings, unless a structure disappeared.
        """
        progress.step("refine", 0, 1)
        changes: list[dict[str, Any]] = []
        whole = functools.partial(progress.step, "refine", total=1.0)
        for number, refinement in enumerate(refinements):
            step = part_of(whole, number, len(refinements))
            refined = self._refined(refinement, image, step)
            suggested = number < len(refinements) - self._asked
            tell = refined.losses if suggested else refined.words
            self.warnings += tell(refinement.name)
            changes.append(refined.to_dict(refinement))
        if not self.labelmap.any():
            self.warnings.append(NOTHING_FOUND)
        progress.step("refine", 1, 1)
        return changes

    def _refined(self, refinement: Refinement, image: Volume, step: Step) -> Refined:
        """Apply one refinement. Overlapping regions are refined one by one; the label map has the innermost."""
        labels = tuple(self._labels)
        if self.regions is None:
            labelmap = Volume(self.labelmap, self._output)
            draft = Draft(labelmap, labels, image, self.candidates)
            refined = apply_refinement(draft, refinement, step)
            self.labelmap = refined.labels
            return refined
        regions = Regions(self.regions, labels, self._output, image, self._steps)
        refined = apply_to_regions(regions, refinement, step)
        self.regions = refined.labels
        self.labelmap = np.zeros_like(self.labelmap)
        for label, mask in zip(labels, self.regions, strict=True):
            self.labelmap[mask] = label.value
        return refined

    def structures(self) -> tuple[StructureMeasures, ...]:
        """The size of each structure, and the agreement of the members on it."""

        def measures(label: Label) -> dict[str, Any]:
            return {} if self._agreement is None else dict(self._agreement.measures(label.value))

        counts = self._counts()
        return tuple(
            StructureMeasures(
                label,
                int(counts[label.value]),
                float(counts[label.value]) * self._output.voxel_volume_ml,
                **measures(label),
            )
            for label in self._labels
        )

    def _counts(self) -> NDArray[np.int64]:
        """The voxels of each label value."""
        count = int(self._values.max()) + 1
        counts = np.zeros(count, np.int64)
        for plane in self.labelmap:  # bincount makes 64 bits of each voxel
            counts += np.bincount(plane.ravel(), minlength=count)
        if self.regions is not None:
            counts[[label.value for label in self._labels]] = self.regions.sum((1, 2, 3))
        return counts


def _no_candidates(shape: tuple[int, int, int], kind: type[np.unsignedinteger[Any]]) -> Candidates:
    labels, steps = (
        [np.zeros(shape, kind) for _ in range(2)],
        [np.zeros(shape, np.uint8) for _ in range(2)],
    )
    return Candidates(*labels, *steps)
