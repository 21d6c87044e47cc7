"""Slicer's DICOM database: which series it holds, and where their files lie.

Names of patients are read to be shown; nothing here writes them anywhere.
"""

from __future__ import annotations

from pathlib import Path

from medsegai.errors import InputError
from MedSegAILib.panel_values import SeriesRow
from MedSegAILib.slicer_types import QtValue, VolumeNode
from MedSegAILib.translation import tr as _

INSTANCES_ATTRIBUTE = "DICOM.instanceUIDs"
"""Where Slicer keeps the SOPInstanceUIDs that a volume node was loaded from, separated by blanks."""

NO_IMAGES = frozenset({"DOC", "KO", "PR", "REG", "RTDOSE", "RTPLAN", "RTSTRUCT", "SEG", "SR"})
"""Modalities of series that nothing can be segmented in."""


def _row(database: QtValue, patient: QtValue, study: QtValue, series: QtValue) -> SeriesRow:
    name = str(database.nameForPatient(patient))
    in_study = str(database.descriptionForStudy(study))
    return SeriesRow(name, in_study, str(database.descriptionForSeries(series)), str(series))


def series_of(database: QtValue) -> list[SeriesRow]:
    """The series of images, by patient and study.

    Args:
        database: a ctkDICOMDatabase, or None where Slicer has none.

    Raises:
        InputError: there is no database, or no image in it.
    """
    if database is None or not database.isOpen:
        raise InputError(_("The DICOM database is not open. Open the module DICOM first."))
    rows = [
        _row(database, patient, study, series)
        for patient in database.patients()
        for study in database.studiesForPatient(patient)
        for series in database.seriesForStudy(study)
        if str(database.fieldForSeries("Modality", series)) not in NO_IMAGES
    ]
    if not rows:
        raise InputError(
            _("The DICOM database does not contain images. Import them in the module DICOM first.")
        )
    return rows


def source_of(database: QtValue, volume: VolumeNode) -> tuple[str, str]:
    """Folder and SeriesInstanceUID of the DICOM series that a volume node was loaded from.

    Args:
        database: a ctkDICOMDatabase, or None where Slicer has none.
        volume: the node, or None.

    Raises:
        InputError: it did not come from the database, or its files are not here; the message is for a person who
            wants a DICOM SEG.
    """
    if volume is None:
        raise InputError(_("The scan is not in the scene, so no DICOM SEG or SR can be written."))
    instances = str(volume.GetAttribute(INSTANCES_ATTRIBUTE) or "").split()
    if not instances:
        raise InputError(
            _(
                "{name} was not loaded by the module DICOM. A DICOM SEG or SR needs the patient, study and frame "
                "of reference of a DICOM series."
            ).format(name=volume.GetName())
        )
    file = "" if database is None else str(database.fileForInstance(instances[0]) or "")
    series = str(database.seriesForFile(file) or "") if file else ""
    if not series:
        raise InputError(
            _(
                "The DICOM series of {name} is no longer in Slicer's DICOM database, and a DICOM SEG or SR needs "
                "it. Import it there again."
            ).format(name=volume.GetName())
        )
    return folder_of(database, SeriesRow("", "", volume.GetName(), series)), series


def modality_of(database: QtValue, volume: VolumeNode) -> str:
    """What kind of scanner a volume node came from, as DICOM's Modality says; "" where that is not known.

    Args:
        database: a ctkDICOMDatabase, or None where Slicer has none.
        volume: the node.
    """
    instances = str(volume.GetAttribute(INSTANCES_ATTRIBUTE) or "").split()
    if not instances or database is None:
        return ""
    file = str(database.fileForInstance(instances[0]) or "")
    series = str(database.seriesForFile(file) or "") if file else ""
    return str(database.fieldForSeries("Modality", series) or "") if series else ""


def folder_of(database: QtValue, row: SeriesRow) -> str:
    """The folder in which all files of a series lie, perhaps beside others.

    Raises:
        InputError: they are gone, were never brought here, or lie in several folders.
    """
    files = [Path(file) for file in database.filesForSeries(row.uid) if file]
    folders = {file.parent for file in files}
    if not files or not all(folder.is_dir() for folder in folders):
        raise InputError(
            _(
                "The files of series {name} are not on this computer. Import them into the DICOM database with a "
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
