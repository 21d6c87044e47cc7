"""Slicer's DICOM database: which series it holds, and where their files lie.

Names of patients are read to be shown; nothing here writes them anywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medsegai.errors import InputError
from MedSegAILib.translation import tr as _
from MedSegAILib.view import SeriesRow

NO_IMAGES = frozenset({"DOC", "KO", "PR", "REG", "RTDOSE", "RTPLAN", "RTSTRUCT", "SEG", "SR"})
"""Modalities of series that nothing can be segmented in."""


def series_of(database: Any) -> list[SeriesRow]:
    """The series of images, by patient and study.

    Args:
        database: a ctkDICOMDatabase, or None where Slicer has none.

    Raises:
        InputError: there is no database, or no image in it.
    """
    if database is None or not database.isOpen:
        raise InputError(_("The DICOM database is not open. Open the module DICOM first."))
    rows = [
        SeriesRow(
            str(database.nameForPatient(patient)),
            str(database.descriptionForStudy(study)),
            str(database.descriptionForSeries(series)),
            str(series),
        )
        for patient in database.patients()
        for study in database.studiesForPatient(patient)
        for series in database.seriesForStudy(study)
        if str(database.fieldForSeries("Modality", series)) not in NO_IMAGES
    ]
    if not rows:
        raise InputError(
            _("The DICOM database holds no images. Import them in the module DICOM first.")
        )
    return rows


def folder_of(database: Any, row: SeriesRow) -> str:
    """The folder in which all files of a series lie, perhaps beside others.

    Raises:
        InputError: they are gone, were never brought here, or lie in several folders.
    """
    files = [Path(file) for file in database.filesForSeries(row.uid) if file]
    folders = {file.parent for file in files}
    if not files or not all(folder.is_dir() for folder in folders):
        raise InputError(
            _(
                "The files of series {name} are not on this computer. Bring them into the DICOM database, with a "
                "copy of them, or leave the series out."
            ).format(name=row.title)
        )
    if len(folders) > 1:
        raise InputError(
            _(
                "The files of series {name} lie in {count} folders. Import them into the DICOM database with a "
                "copy of them, or leave the series out."
            ).format(name=row.title, count=len(folders))
        )
    return str(folders.pop())
