"""What the engine is asked to do, and what it returns.

`SegmentationRequest` is the one list of options: the command line, the panel, batch and the worker read
its fields, defaults, choices and help texts from here, so a new option appears in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import RequestError
from medsegai.labels import Label
from medsegai.models.json_fields import to_json
from medsegai.models.limits import Limits
from medsegai.volume import Volume

LARGEST_SEED = 2**32 - 1
"""Every source of random numbers takes a seed up to it."""

NUMBERS = {
    "dropout_passes": Limits(0, 1000),
    "seed": Limits(0, LARGEST_SEED),
    "tile_step": Limits(0, 1, above=True),
}
"""What the numbers of a request may be."""

NOT_FOR_DIAGNOSIS = "Research software. Not for diagnostic use."


def option(
    default: object, help: str, choices: Mapping[str, str] | None = None, title: str = ""
) -> Any:
    """A field of the request that users can set, with its help text and, where fixed, its choices.

    Args:
        choices: the name of each choice on the screen, by its value.
        title: the name of the option on the screen; made from the name of the field if "".
    """
    named = dict(choices or {})
    known = {"help": help, "choices": tuple(named), "words": named, "title": title}
    return field(default=default, metadata=known)


@dataclass(frozen=True)
class SegmentationRequest:
    """One job. `inputs` holds one image per channel of the model: a path, or a `Volume` already read."""

    inputs: tuple[Path | Volume, ...]
    models: tuple[str, ...] = option(
        ("brain",),
        "models to use together: ids, or model folders written as paths, such as ./my-model",
    )
    members: tuple[str, ...] = option(
        (),
        "views, folds or configurations to use; all of the model's if none is named",
        title="Networks",
    )
    fusion: str = option(
        "mean",
        "how members are joined: mean of probabilities, or majority vote",
        {"mean": "average", "vote": "majority vote"},
        title="Combined by",
    )
    device: str = option(
        "auto",
        "auto, cpu, cuda or cuda:N; auto takes the GPU with most free memory",
        title="Runs on",
    )
    backend: str = option(
        "auto",
        "what runs the networks",
        {"auto": "automatic", "torch": "PyTorch", "openvino": "OpenVINO"},
        title="Runs with",
    )
    precision: str = option(
        "auto",
        "number format of the networks; auto is the fastest that leaves labels alone",
        {"auto": "automatic", "fp32": "full precision", "mixed": "mixed precision"},
        title="Number format",
    )
    mirroring: bool = option(
        True,
        "also predict mirrored images where the model was trained for it (nnU-Net); up to 8 times slower, a "
        "little better",
        title="Mirrored passes",
    )
    tile_step: float = option(
        0.5,
        "distance of neighbouring tiles as part of their size (nnU-Net), above 0 up to 1",
        title="Step between tiles",
    )
    refine: bool = option(
        True,
        "clean the result as the model's card suggests, such as nnU-Net's largest components",
        title="Clean the result",
    )
    refinements: tuple[str, ...] = option(
        (),
        "refine the result further, in this order: islands, holes, smoothing, snap, level_set, each with options "
        "as in islands:smallest_ml=0.1;keep=1",
        title="Refinements",
    )
    overlap: bool = option(
        False,
        "keep regions that overlap, such as a tumour around its core, whole, as overlapping segments; each is "
        "refined separately",
        title="Overlapping regions",
    )
    region: tuple[float, ...] = option(
        (),
        "segment only this box: lowest and highest R, A and S in mm, as of a Slicer ROI, separated by commas; "
        "write --region=-60,60,… where the first is negative",
    )
    dropout_passes: int = option(
        0,
        "Monte-Carlo dropout passes per member, for uncertainty; the papers use 10 to 15",
        title="Passes with dropout",
    )
    uncertainty: bool = option(
        False,
        "measure where members disagree (entropy map and score per structure)",
        title="Measure doubt",
    )
    probabilities: bool = option(
        False, "keep the probability of every structure; needs 2 bytes per voxel and structure"
    )
    candidates: bool = option(
        False,
        "keep the two most probable structures of every voxel and how probable they are: what AI correct in "
        "Slicer works from; needs 4 bytes per voxel",
    )
    calibrated: bool = option(
        True,
        "scale probabilities by the temperature in the model's card, so that they are as often right as they say; "
        "labels stay the same, except through refinements that use probabilities",
        title="Calibrated",
    )
    anyway: bool = option(
        False,
        "segment a scan that the model was not made for, such as a CT with a model for MR; otherwise it is "
        "refused",
        title="Any kind of scan",
    )
    seed: int = option(
        0, "start of the random numbers of Monte-Carlo dropout", title="Random start"
    )

    def __post_init__(self) -> None:
        if not self.inputs:
            raise RequestError("There is no input image. Name one image per channel of the model.")
        if not self.models:
            raise RequestError(
                "No model is named. `medsegai models list` lists the installed models."
            )
        for name, limits in NUMBERS.items():
            problem = limits.problem(getattr(self, name))
            if problem is not None:
                raise RequestError(f"{name.replace('_', '-')} {problem}.")
        _check_region(self.region)
        self._check_choices()

    def _check_choices(self) -> None:
        for item in request_options():
            choices = item.metadata["choices"]
            value = getattr(self, item.name)
            if choices and value not in choices:
                raise RequestError(
                    f"{item.name.replace('_', '-')} must be one of {', '.join(choices)}, not {value!r}."
                )

    @property
    def members_apart(self) -> bool:
        """Whether the prediction of each member is needed, and not only their mean."""
        return self.uncertainty or self.fusion == "vote"

    def options(self) -> dict[str, Any]:
        """All options as JSON values, for the report and the worker; inputs are left out."""
        values = {item.name: getattr(self, item.name) for item in request_options()}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }


def _check_region(region: Sequence[float]) -> None:
    if not region:
        return
    low, high = region[::2], region[1::2]
    if len(region) != 6 or not all(first < last for first, last in zip(low, high, strict=True)):
        raise RequestError(
            "region must be six numbers, the lowest and highest R, A and S of a box in mm "
            f"(R0,R1,A0,A1,S0,S1), not {', '.join(f'{value:g}' for value in region)}."
        )


def request_options() -> Iterator[Field[Any]]:
    """The fields of the request that a user can set."""
    return (item for item in fields(SegmentationRequest) if "help" in item.metadata)


def request_from_options(
    inputs: tuple[Path | Volume, ...], options: Mapping[str, Any]
) -> SegmentationRequest:
    """A request from JSON values, such as `SegmentationRequest.options` gives.

    Raises:
        RequestError: an option is unknown or has a value of the wrong type.
    """
    known = {item.name: item for item in request_options()}
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            raise RequestError(f"Unknown option {name!r}. Known options: {', '.join(known)}.")
        default = known[name].default
        value = _of_type(name, value, default)
        values[name] = value
    return SegmentationRequest(inputs, **values)


def _of_type(name: str, value: object, default: object) -> object:
    """A JSON value as the type of the option's default; every type is right if there is none."""
    if isinstance(default, tuple) and isinstance(value, (list, tuple)):
        value = tuple(value)
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if default is not MISSING and type(value) is not type(default):
        raise RequestError(f"Option {name!r} must be a {type(default).__name__}, not {value!r}.")
    return value


@dataclass(frozen=True)
class StructureMeasures:
    """One structure in a result. A value that is None was not requested, or is not known.

    Attributes:
        label: which structure.
        voxels: how many voxels it has on the input grid.
        volume_ml: their volume; NaN where the size of a voxel is not known, as of a photograph.
        volume_cv: standard deviation over mean of the volume among members (Bayesian QuickNAT, CV_s).
        pairwise_dice: mean Dice over all pairs of members (d_s).
        iou: intersection of all members over their union (IoU_s).
        mean_entropy: mean entropy of the fused probabilities inside the structure, in nats.
        mutual_information: mean of the members' mutual information inside the structure, in nats.
        expected_dice: the Dice with a manual segmentation that is expected from the agreement of members.
        remarks: why a person should look at it, as sentences.
    """

    label: Label
    voxels: int
    volume_ml: float
    volume_cv: float | None = None
    pairwise_dice: float | None = None
    iou: float | None = None
    mean_entropy: float | None = None
    mutual_information: float | None = None
    expected_dice: float | None = None
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values for a report, where the label is named; NaN (a structure no member found) becomes None."""
        values = to_json(self)
        del values["label"]
        return {"value": self.label.value, "name": self.label.name} | values


@dataclass(frozen=True, eq=False)
class Candidates:
    """The two most probable structures of every voxel, all (k, j, i) on the grid of the result.

    Where the second has less than half a step of `p_second`, both its label and its probability are 0. For regions
    that overlap, `second` is what the voxel would be if the decision nearest to one half were reversed.

    Attributes:
        first: label value of the most probable, uint8 or uint16; what the label map was before it was refined.
        second: label value of the runner-up, likewise; 0 is the background.
        p_first: probability of `first` in steps of 1/255, uint8; 0 where it is not known, such as outside of the
            requested region.
        p_second: probability of `second`, likewise.
    """

    first: NDArray[np.integer]
    second: NDArray[np.integer]
    p_first: NDArray[np.uint8]
    p_second: NDArray[np.uint8]

    def probability_of(self, value: int) -> NDArray[np.float32]:
        """How probable the label `value` is, from 0 to 1, float32 (k, j, i); 0 where it is neither of the two."""
        steps = np.where(self.first == value, self.p_first, 0)
        np.copyto(steps, self.p_second, where=(self.second == value) & (self.first != value))
        return steps.astype(np.float32) / np.float32(255)


@dataclass(frozen=True)
class SegmentationResult:
    """The result of a job, all of it on the grid of the first input.

    Attributes:
        labelmap: label values, uint8 or uint16, (k, j, i).
        labels: what the values mean, in the model's order; also those that no voxel has.
        structures: measures per label, in the same order.
        entropy: entropy of the fused probabilities in nats, float32 (k, j, i), if asked for.
        mutual_information: how much the members differ beyond the uncertainty of each, likewise, if there are
            several.
        probabilities: float16 (label, k, j, i) in the order of `labels`, if asked for.
        regions: where each label is, bool (label, k, j, i), if regions that overlap were asked for and the model
            has such; `labelmap` then holds the innermost region of each voxel.
        candidates: the two most probable structures of each voxel, if asked for.
        objects: the number of the object that a voxel belongs to, from 1, with 0 for none, uint16 or uint32,
            if the model separates objects of pictures, such as nuclei.
        object_rows: the measures of each object: see `measurements.object_rows`.
        region: the box in mm that the request asked for; () for the whole scan.
        members: names of the networks that answered.
        refinements: what each refinement changed, as JSON values.
        seconds: what each stage took.
        peak_memory_mb: largest resident memory of this process until now.
        intracranial_ml: volume of all that lies in the skull, where the model gives it and the whole scan was
            segmented.
        provenance: model hashes, versions, options, input hash, device.
        warnings: what the user should know, in words.
    """

    labelmap: Volume
    labels: tuple[Label, ...]
    structures: tuple[StructureMeasures, ...]
    entropy: Volume | None = None
    mutual_information: Volume | None = None
    probabilities: NDArray[np.float16] | None = None
    regions: NDArray[np.bool_] | None = None
    candidates: Candidates | None = None
    objects: Volume | None = None
    object_rows: tuple[Mapping[str, Any], ...] = ()
    region: tuple[float, ...] = ()
    members: tuple[str, ...] = ()
    refinements: tuple[Mapping[str, Any], ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_mb: float = 0.0
    intracranial_ml: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def refined(self) -> str:
        """What refinements changed, in one line; "" where nothing was changed."""
        return refined_text(self.refinements)

    def report(self) -> dict[str, Any]:
        """Everything but the voxels, as JSON values."""
        return {
            "structures": [measures.to_dict() for measures in self.structures],
            "seconds": dict(self.seconds),
            "peak_memory_mb": self.peak_memory_mb,
            "intracranial_ml": self.intracranial_ml,
            "objects": None if self.objects is None else objects_summary(self.object_rows),
            "provenance": {
                **self.provenance,
                "members": list(self.members),
                "refinements": [dict(item) for item in self.refinements],
            },
            "warnings": list(self.warnings),
            "notice": NOT_FOR_DIAGNOSIS,
        }


def objects_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many objects there are, and the median of their sizes; None where there is none, or it is not known."""
    sizes: dict[str, Any] = {}
    for name in ("pixels", "area_mm2"):
        known = [row[name] for row in rows if row[name] is not None]
        sizes[f"median_{name}"] = float(np.median(known)) if known else None
    return {"count": len(rows), **sizes}


def refined_text(refinements: Iterable[Mapping[str, Any]]) -> str:
    """See `SegmentationResult.refined`."""
    done = [
        f"{item['settings']['name'].replace('_', ' ')} ({item['ml']:.3g} ml changed)"
        for item in refinements
        if item["voxels"]
    ]
    return f"Refined: {', '.join(done)}." if done else ""
