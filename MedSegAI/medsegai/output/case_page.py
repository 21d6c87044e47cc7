"""The report of a case as a page, made directly from a result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medsegai.export.case import Case
from medsegai.export.files import Work
from medsegai.export.provenance import closed, of_report
from medsegai.export.report import write_report
from medsegai.io import read_volume
from medsegai.request import SegmentationResult
from medsegai.volume import Volume


def write_page(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    """Write the same page as `medsegai export --report`. Raises OutputError."""
    write_report(path, _work(result, scan).content())


def write_viewer_page(path: Path, result: SegmentationResult, scan: Path | Volume) -> None:
    """Write the same page as `medsegai export --report --viewer`.

    Raises:
        OutputError: the file cannot be written.
        MedSegAIError: this installation does not contain NiiVue.
    """
    write_report(path, _work(result, scan).content(viewer=True))


def _work(result: SegmentationResult, scan: Path | Volume) -> Work:
    image = scan if isinstance(scan, Volume) else read_volume(scan)
    case = Case(result.labelmap, result.labels, image)
    work = Work.of(case, closed(of_report(result.report()), {}))
    return replace(work, entropy=result.entropy)
