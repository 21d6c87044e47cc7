"""Refinement of a segmentation in the scene: the request to the worker, and the writing of its result.

The worker gets one label map on the grid on which the segmentation is edited. It also contains the segments that
must not change, as fixed labels. The result is planned completely before the scene changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError, MedSegAIError, RequestError
from medsegai.models.refinement import Refinement
from medsegai.refinements import uses_candidates
from medsegai.request import Candidates
from medsegai.volume import Box, Geometry, Volume
from medsegai.worker.requests import RefinementRequest, RefinementResult
from MedSegAILib.scene.attachments import CANDIDATES_REFERENCE, candidates_of
from MedSegAILib.scene.copies import ShownCopy
from MedSegAILib.scene.inputs import in_colours, read, transform_to_world
from MedSegAILib.scene.layers import (
    EMPTY,
    Layer,
    Packer,
    boxes,
    digest,
    grid_around,
    layers_of,
    on_grid,
)
from MedSegAILib.scene.merging import (
    Plan,
    carry_out,
    lattice,
    layers_without,
    place_in,
)
from MedSegAILib.scene.nodes import unique_name
from MedSegAILib.scene.reports import REPORT_ATTRIBUTE, report_of
from MedSegAILib.scene.review import is_locked, segment_of
from MedSegAILib.scene.segments import (
    DIGEST_TAG,
    digests,
    label_of,
    tag_of,
    values_of,
)
from MedSegAILib.scene.writing import Writer
from MedSegAILib.slicer_types import SegmentationNode, VolumeNode
from MedSegAILib.translation import tr as _

REFINED = "refined"
"""The entry of a segmentation's report with the later refinements, from the first to the last."""

NO_VOXELS = _("{name} does not have voxels to refine.")


OVERLAP = _(
    "{first} and {second} overlap and cannot be refined together, because a refinement gives each "
    "voxel one segment. Choose one of them, or remove the overlap in the Segment Editor."
)


@dataclass(frozen=True, eq=False)
class Draft:
    """A segmentation that was read for a refinement.

    Attributes:
        segmentation: the node.
        request: the request to the worker, whose label map is in world coordinates.
        grid: the voxels of that label map, in the coordinates of the segmentation.
        segments: the id of the segment of each label value.
        contents: the digest of each segment when it was read, by id.
        notes: what will not be changed, and why, in words.
    """

    segmentation: SegmentationNode
    request: RefinementRequest
    grid: Geometry
    segments: Mapping[int, str]
    contents: Mapping[str, str]
    notes: tuple[str, ...] = ()


def draft(
    segmentation: SegmentationNode,
    refinements: Sequence[Refinement],
    segments: Sequence[str] = (),
    image: VolumeNode = None,
) -> Draft:
    """Read a segmentation for the refinement of some or all of its segments.

    Segments whose review is completed are never refined. Other segments are fixed and do not change. A fixed
    segment that overlaps a refined one does not restrict it.

    Args:
        refinements: the refinements in this order, without labels.
        segments: the ids of the segments to refine; all if it is empty.
        image: the volume node of the scan, for refinements that use it.

    Raises:
        InputError: the segmentation is missing, made of surfaces, or does not have voxels or the segments; all
            segments are completed, or two of the chosen ones overlap; or the volume is not an image.
        GeometryError: segmentation or image have a parent transform that is not linear.
        RequestError: a refinement names labels.
    """
    _check_without_labels(refinements)
    layers = layers_of(segmentation)
    if not layers:
        raise InputError(NO_VOXELS.format(name=segmentation.GetName()))
    refined, locked = _chosen(segmentation, layers, segments)
    grid = grid_around(
        lattice(segmentation, layers, layers[0].geometry), (layer.geometry for layer in layers)
    )
    values = values_of(segmentation, {name for layer in layers for name in layer.values})
    voxels, fixed = _joined_segments(segmentation, layers, grid, values, refined)
    names = {value: name for name, value in values.items() if name in refined or value in fixed}
    world = Geometry(grid.shape, transform_to_world(segmentation) @ grid.ijk_to_ras)
    labels = sorted(values[name] for name in refined)
    request = RefinementRequest(
        Volume(voxels, world, segmentation.GetName()),
        tuple(label_of(segmentation, name, value) for value, name in names.items()),
        tuple(item.with_options(labels=labels) for item in refinements),
        tuple(fixed),
        None if image is None or in_colours(image) else read(image),
        _candidates(segmentation, grid, names) if any(map(uses_candidates, refinements)) else None,
    )
    return Draft(segmentation, request, grid, names, digests(layers), _notes(segmentation, locked))


def _check_without_labels(refinements: Sequence[Refinement]) -> None:
    for item in refinements:
        if "labels" in item.options:
            text = _("Name the segments to refine, and leave out the label values in {name}.")
            raise RequestError(text.format(name=item.name))


def apply_refinement(writer: Writer, read_as: Draft, result: RefinementResult) -> bool:
    """Put the answer into the segmentation, as one undo step; `writer.notes` says what was left as it is.

    Returns:
        Whether there was anything to change.

    Raises:
        InputError: the segmentation has left the scene, or its segments changed since it was read.
    """
    segmentation = read_as.segmentation
    check_unchanged(writer, read_as)
    planned = plan(read_as, result)
    writer.notes[:] = planned.notes
    if not planned.layers:
        return False
    writer.keep_undo(segmentation)
    had_surfaces = carry_out(segmentation, planned, None)
    _sign(read_as, result)
    if had_surfaces:
        writer.make_surfaces(segmentation)
    _append_report(segmentation, result)
    return True


def _append_report(segmentation: SegmentationNode, result: RefinementResult) -> None:
    report = report_of(segmentation)
    report.setdefault(REFINED, []).extend(dict(item) for item in result.report)
    segmentation.SetAttribute(REPORT_ATTRIBUTE, json.dumps(report))


def plan(read_as: Draft, result: RefinementResult) -> Plan:
    """Return the label maps that the segmentation will have; empty if nothing changes."""
    before, after = read_as.request.labelmap.voxels, result.labelmap.voxels
    changing = {value: read_as.segments[value] for value in _changing(before, after)}
    if not changing:
        return Plan((), {}, read_as.notes)
    layers = layers_of(read_as.segmentation)
    bases, rest = layers_without(layers, frozenset(changing.values()), read_as.grid)
    packer, around = Packer(read_as.grid, bases), boxes(after)
    nowhere = slice(0, 1), slice(0, 1), slice(0, 1)
    for value, name in changing.items():
        box = around.get(value, nowhere)
        packer.add(name, after[box] == value, box, value)
    return Plan((*packer.layers(), *rest), {}, read_as.notes)


def check_unchanged(writer: Writer, read_as: Draft) -> None:
    """Raises:
    InputError: the segmentation has left the scene, or its segments changed.
    """
    node = read_as.segmentation
    if not writer.scene.IsNodePresent(node):
        raise InputError(
            _("The segmentation {name} has left the scene, so it was not refined.").format(
                name=node.GetName()
            )
        )
    if digests(layers_of(node)) != read_as.contents or _newly_locked(read_as):
        raise InputError(
            _("{name} was changed while it was refined. Refine it again.").format(
                name=node.GetName()
            )
        )


class RefinedPreview:
    """A refinement that is shown beside the segmentation that it would change, until it is accepted or rejected.

    Attributes:
        node: the segmentation node that shows it; it can be edited, and all edits are accepted with it.
        notes: see `Writer.notes`.
        place: the position of the largest change, R, A, S in mm of the world; None if nothing would change.
    """

    def __init__(self, writer: Writer, read_as: Draft, result: RefinementResult) -> None:
        check_unchanged(writer, read_as)
        self._writer, self._draft, self._result = writer, read_as, result
        planned = plan(read_as, result)
        self._copy = ShownCopy(read_as.segmentation, planned, None, writer)
        self.node, self.notes = self._copy.node, planned.notes
        self.node.SetName(unique_name(read_as.segmentation, "preview", writer.scene))
        self.place = self._copy.place

    def accept(self) -> SegmentationNode:
        """Make the preview the segmentation, as one undo step.

        Returns:
            The segmentation node.

        Raises:
            InputError: preview or segmentation have left the scene, or the segmentation was changed meanwhile; the
                preview is then withdrawn without a change.
        """
        writer, original = self._writer, self._draft.segmentation
        if not writer.scene.IsNodePresent(self.node):
            self.reject()
            raise InputError(_("The preview has left the scene, so it was not accepted."))
        edits = self._copy.edits()
        if not self._refine() and edits:
            writer.keep_undo(original)
        self._copy.give(edits)
        self.reject()
        return original

    def _refine(self) -> bool:
        """Change the segmentation; if that is impossible, withdraw the preview."""
        try:
            return apply_refinement(self._writer, self._draft, self._result)
        except MedSegAIError as error:
            raise InputError(f"{error} {self.withdraw()}".strip()) from error

    def reject(self) -> None:
        """Restore the state before the preview."""
        self._copy.close()

    def withdraw(self) -> str:
        """Restore the state before the preview, but keep a preview that a person edited, as a segmentation.

        Returns:
            Where the edits are; "" if there are none.
        """
        if not self._writer.scene.IsNodePresent(self.node) or not self._copy.edits():
            self.reject()
            return ""
        self._copy.keep()
        self.node.GetDisplayNode().SetVisibility(False)
        return _("The preview had been edited, so it stays in the scene as {name}.").format(
            name=self.node.GetName()
        )


def _chosen(
    segmentation: SegmentationNode, layers: Iterable[Layer], segments: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the ids of the segments to refine, and of chosen segments that are completed."""
    filled = _filled(layers)
    known = segmentation.GetSegmentation().GetSegmentIDs()
    for name in segments:
        segment_of(segmentation, name)
    meant = [name for name in known if name in filled and (not segments or name in segments)]
    if not meant:
        raise InputError(
            NO_VOXELS.format(name=segmentation.GetName())
            if not segments
            else _("The chosen segments are empty. Choose others.")
        )
    locked = [name for name in meant if is_locked(segmentation, name)]
    if len(locked) == len(meant):
        text = _("The review of these segments is completed, so they are not changed: {names}.")
        raise InputError(text.format(names=_names(segmentation, locked)))
    return [name for name in meant if name not in locked], locked


def _filled(layers: Iterable[Layer]) -> set[str]:
    """Return the ids of segments with voxels."""
    found: set[str] = set()
    for layer in layers:
        around = boxes(layer.voxels)
        found.update(name for name, value in layer.values.items() if value in around)
    return found


def _joined_segments(
    segmentation: SegmentationNode,
    layers: Iterable[Layer],
    grid: Geometry,
    values: Mapping[str, int],
    refined: Sequence[str],
) -> tuple[NDArray[np.integer], list[int]]:
    """Return one label map of the segments to refine and the surrounding ones, and the values of the latter."""
    out = np.zeros(grid.shape, np.min_scalar_type(max(values.values())))
    for name, box, mask in _masks(layers, grid, refined, True):
        part = out[box]
        if part[mask].any():
            other = next(key for key, value in values.items() if value == part[mask].max())
            raise InputError(_overlap(segmentation, other, name))
        part[mask] = values[name]
    taken, fixed = out != 0, []
    for name, box, mask in _masks(layers, grid, refined, False):
        if not taken[box][mask].any():
            out[box][mask] = values[name]
            fixed.append(values[name])
    return out, fixed


def _overlap(segmentation: SegmentationNode, one: str, other: str) -> str:
    first, second = (_names(segmentation, [name]) for name in (one, other))
    return OVERLAP.format(first=first, second=second)


def _masks(
    layers: Iterable[Layer], grid: Geometry, wanted: Sequence[str], inside: bool
) -> Iterator[tuple[str, Box, NDArray[np.bool_]]]:
    """Yield id, box and voxels of the wanted segments, or of all others."""
    for layer in layers:
        values = {name: v for name, v in layer.values.items() if (name in wanted) == inside}
        if values:
            voxels = on_grid(layer.voxels, layer.geometry, grid)
            around = boxes(voxels)
            for name, value in values.items():
                if value in around:
                    yield name, around[value], voxels[around[value]] == value


def _candidates(
    segmentation: SegmentationNode, grid: Geometry, names: Mapping[int, str]
) -> Candidates | None:
    """Return the candidates of each voxel, as far as they belong to existing segments."""
    found = candidates_of(segmentation)
    if found is None:
        return None
    node = segmentation.GetNodeReference(CANDIDATES_REFERENCE)
    own = place_in(segmentation, node, found.first.shape)
    first, second = (on_grid(array, own, grid) for array in (found.first, found.second))
    p_first, p_second = (on_grid(array, own, grid) for array in (found.p_first, found.p_second))
    known = np.zeros(max(*names, int(first.max()), int(second.max())) + 1, bool)
    known[[0, *names]] = True
    strange = ~(known[first] & known[second])
    p_first[strange] = p_second[strange] = 0
    return Candidates(first, second, p_first, p_second)


def _changing(before: NDArray[np.integer], after: NDArray[np.integer]) -> list[int]:
    found = before != after
    return [int(value) for value in np.union1d(before[found], after[found]) if value]


def _sign(read_as: Draft, result: RefinementResult) -> None:
    """Sign segments that the AI wrote and that a person did not paint."""
    before, after = read_as.request.labelmap.voxels, result.labelmap.voxels
    around = boxes(after)
    for value in _changing(before, after):
        name = read_as.segments[value]
        segment = read_as.segmentation.GetSegmentation().GetSegment(name)
        if tag_of(segment, DIGEST_TAG) == read_as.contents[name]:
            box = around.get(value)
            content = EMPTY if box is None else digest(after[box] == value)
            segment.SetTag(DIGEST_TAG, content)


def _newly_locked(read_as: Draft) -> bool:
    """Whether a segment that was to be refined is now completed."""
    refined = set(read_as.segments) - set(read_as.request.fixed)
    return any(is_locked(read_as.segmentation, read_as.segments[value]) for value in refined)


def _names(segmentation: SegmentationNode, segments: Iterable[str]) -> str:
    found = (segmentation.GetSegmentation().GetSegment(name) for name in segments)
    return ", ".join(str(segment.GetName()) for segment in found)


def _notes(segmentation: SegmentationNode, locked: Sequence[str]) -> tuple[str, ...]:
    if not locked:
        return ()
    text = _("Not changed, because their review is completed: {names}.")
    return (text.format(names=_names(segmentation, locked)),)
