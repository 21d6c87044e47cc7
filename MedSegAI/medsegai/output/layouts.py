"""The files of each case of a batch, and their places: plain files, a BIDS derivative, or FreeSurfer's folders."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medsegai.errors import RequestError
from medsegai.io.atomic import make_folder
from medsegai.labels import Label
from medsegai.output import bids_files
from medsegai.output.freesurfer_files import freesurfer_labels, renumbered
from medsegai.output.result_files import Outputs
from medsegai.progress import Progress
from medsegai.request import SegmentationResult
from medsegai.volume import Volume
from medsegai.worker.batch_events import OBJECTS_NAME, TABLE_NAME, VOLUMES_NAME

BIDS_ORDER = (
    "sub",
    "ses",
    "sample",
    "task",
    "tracksys",
    "acq",
    "nuc",
    "voi",
    "ce",
    "trc",
    "stain",
    "rec",
    "dir",
    "run",
    "mod",
    "echo",
    "flip",
    "inv",
    "mt",
    "part",
    "proc",
    "hemi",
    "space",
    "split",
    "recording",
    "chunk",
    "atlas",
    "seg",
    "scale",
    "res",
    "den",
    "label",
    "desc",
)
"""The order of entities in file names."""


ENTITY = re.compile(r"[A-Za-z0-9]+-[A-Za-z0-9+]+")


@dataclass(frozen=True)
class BatchFiles:
    """The files of each case, in one folder, named after the case.

    Attributes:
        folder: the folder of the files.
        ending: the type of the segmentations, such as `.seg.nrrd`.
        uncertainty, preview, probabilities, pages: whether entropy maps, pictures, probabilities and reports for
            people are written, too.
        objects: whether the numbers of separate objects and their table are, because the model separates objects.
    """

    folder: Path
    ending: str = ".seg.nrrd"
    uncertainty: bool = False
    preview: bool = False
    probabilities: bool = False
    pages: bool = False
    objects: bool = False

    def outputs(self, case: str) -> Outputs:
        at = self.folder / case
        return Outputs(
            segmentation=_named(at, self.ending),
            uncertainty=_named(at, "_uncertainty.nii.gz") if self.uncertainty else None,
            probabilities=_named(at, "_probabilities.nii.gz") if self.probabilities else None,
            objects=_named(at, f"_objects{self._map_ending}") if self.objects else None,
            object_table=_named(at, "_objects.csv") if self.objects else None,
            preview=_named(at, ".png") if self.preview else None,
            page=_named(at, ".html") if self.pages else None,
            report=_named(at, ".json"),
        )

    @property
    def _map_ending(self) -> str:
        """The type of maps of objects: labelmaps, because Slicer becomes slow with thousands of segments."""
        return self.ending.replace(".seg.nrrd", ".nrrd")

    def report(self, case: str) -> Path:
        path = self.outputs(case).report
        assert path is not None
        return path

    def write(
        self, case: str, result: SegmentationResult, scan: Path | Volume, progress: Progress
    ) -> None:
        """Write the files of a case, see `Outputs.write`."""
        self.outputs(case).write(result, scan, progress)

    @property
    def cohort_table(self) -> Path:
        """The table with a row for each case."""
        return self.folder / "cohort.csv"

    @property
    def cohort_page(self) -> Path:
        """The report over all cases."""
        return self.folder / "cohort.html"

    def check(self, cases: Iterable[str]) -> None:
        """Check that these cases can be written in this layout.

        Raises:
            RequestError: two cases, or a case and a table of all, would have one file.
        """
        tables = [TABLE_NAME, VOLUMES_NAME, self.cohort_table.name, self.cohort_page.name]
        tables += [OBJECTS_NAME] if self.objects else []
        owners = {str(self.folder / name).casefold(): "the batch" for name in tables}
        for case in cases:
            for path in self.outputs(case).paths().values():
                if owners.setdefault(str(path).casefold(), case) != case:
                    raise RequestError(
                        f"{owners[str(path).casefold()]} and {case} would both have the file {path.name}. Rename "
                        "one, or choose another --format or --layout."
                    )

    def begin(self, kept: bool = False) -> None:
        """Write the files of the whole batch.

        Args:
            kept: whether results of an earlier batch are kept.

        Raises:
            OutputError: a file cannot be written.
        """

    def folders(self, cases: Iterable[str]) -> list[Path]:
        """Return the folders that hold the files of these cases, each once."""
        inner = (path.parent for case in cases for path in self.outputs(case).paths().values())
        return list(dict.fromkeys([self.folder, *inner]))

    def make_folders(self, case: str) -> None:
        """Make the folders of a case. Raises OutputError."""
        for path in self.folders([case]):
            make_folder(path)

    def remove_empty_folders(self, cases: Iterable[str]) -> None:
        """Remove the folders of cases without any written file."""
        for path in self.folders(cases)[1:]:
            with contextlib.suppress(OSError):
                while path != self.folder:
                    path.rmdir()
                    path = path.parent


@dataclass(frozen=True)
class BidsFiles(BatchFiles):
    """A BIDS derivative: sub-01/ses-02/anat/sub-01_ses-02_space-orig_desc-medsegai_dseg.nii.gz and others.

    Attributes:
        source: the dataset of the scans; None if they are not in a dataset.
        models: the models with their versions, for the description of the dataset.
    """

    ending: str = ".nii.gz"
    source: Path | None = None
    models: tuple[str, ...] = ()

    def outputs(self, case: str) -> Outputs:
        entities = _bids_entities(case)
        stem = "_".join(f"{key}-{value}" for key, value in entities.items())
        sides = [f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities]
        at = self.folder.joinpath(*sides, "anat", stem)
        return Outputs(
            segmentation=_named(at, "_dseg.nii.gz"),
            label_table=_named(at, "_dseg.tsv"),
            sidecar=_named(at, "_dseg.json"),
            probabilities=_named(at, "_probseg.nii.gz") if self.probabilities else None,
            probabilities_sidecar=_named(at, "_probseg.json") if self.probabilities else None,
            volumes=_named(at, "_volumes.tsv"),
            objects=_named(at, "_objects.nii.gz") if self.objects else None,
            object_table=_named(at, "_objects.tsv") if self.objects else None,
            uncertainty=_named(at, "_uncertainty.nii.gz") if self.uncertainty else None,
            preview=_named(at, "_preview.png") if self.preview else None,
            page=_named(at, "_report.html") if self.pages else None,
            report=_named(at, "_report.json"),
        )

    @property
    def cohort_table(self) -> Path:
        return self.folder / "cohort.tsv"

    def check(self, cases: Iterable[str]) -> None:
        bids_files.check_description(self.folder, self.source)
        names = {case: self.report(case) for case in cases}
        _check_distinct(names)
        super().check(names)

    def begin(self, kept: bool = False) -> None:
        source = None if self.source is None else self.source.resolve()
        bids_files.write_description(self.folder, source, self.models, kept)


@dataclass(frozen=True)
class FreeSurferFiles(BatchFiles):
    """Folders as in FreeSurfer's SUBJECTS_DIR: CASE/mri/aseg.mgz, CASE/stats/aseg.stats and others.

    Attributes:
        labels: the labels of the model.
    """

    ending: str = ".mgz"
    labels: tuple[Label, ...] = ()

    def outputs(self, case: str) -> Outputs:
        at = self.folder / case
        return Outputs(
            segmentation=at / "mri" / "aseg.mgz",
            color_table=at / "mri" / "aseg.ctab",
            uncertainty=at / "mri" / "uncertainty.nii.gz" if self.uncertainty else None,
            probabilities=at / "mri" / "probabilities.nii.gz" if self.probabilities else None,
            statistics=at / "stats" / "aseg.stats",
            preview=at / "scripts" / "medsegai.png" if self.preview else None,
            page=at / "scripts" / "medsegai.html" if self.pages else None,
            report=at / "scripts" / "medsegai.json",
        )

    def check(self, cases: Iterable[str]) -> None:
        freesurfer_labels(self.labels)
        blank = [case for case in cases if re.search(r"\s", case)]
        if blank:
            raise RequestError(
                f"FreeSurfer's programs do not accept subjects with a space in their name, such as {blank[0]!r}. "
                "Rename it, or choose another --layout."
            )
        super().check(cases)

    def write(
        self, case: str, result: SegmentationResult, scan: Path | Volume, progress: Progress
    ) -> None:
        super().write(case, renumbered(result), scan, progress)


def _named(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}{ending}")


def _check_distinct(names: Mapping[str, Path]) -> None:
    """Raise RequestError if two cases have the same file."""
    several = [path for path, count in Counter(names.values()).items() if count > 1]
    if several:
        first, second = [case for case, path in names.items() if path == several[0]][:2]
        raise RequestError(
            f"{first} and {second} would be the same case in BIDS, because the names of their results would be "
            "equal. Rename one, or choose another --layout."
        )


def _bids_entities(case: str) -> dict[str, str]:
    """Return the entities of this case in the order of BIDS, without the suffix of the scan.

    A case without a subject becomes a subject.
    """
    parts = case.split("_")
    if len(parts) > 1 and parts[-1].isascii() and parts[-1].isalnum():
        parts.pop()
    if case.startswith("sub-") and all(map(ENTITY.fullmatch, parts)):
        pairs = {part.split("-")[0]: part.split("-")[1] for part in parts}
    else:
        unlike = f"x{zlib.crc32(case.encode()):08x}"  # for a name in another script
        pairs = {"sub": re.sub(r"[^A-Za-z0-9]", "", case) or unlike}
    found = {"space": "orig", **pairs, "desc": "medsegai"}
    order = {key: place for place, key in enumerate(BIDS_ORDER)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], order["part"])))
