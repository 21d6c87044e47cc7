"""Slicer's DICOM database: its series, and the places of their files.

Names of patients are read to be shown, and never written anywhere.
"""

from __future__ import annotations

from pathlib import Path

from medsegai.errors import InputError
from MedSegAILib.panel_values import SeriesRow
from MedSegAILib.slicer_types import QtValue, VolumeNode
from MedSegAILib.translation import tr as _

INSTANCES_ATTRIBUTE = "DICOM.instanceUIDs"
"""The attribute with the SOPInstanceUIDs from which a volume node was loaded, separated by blanks."""

NO_IMAGES = frozenset({"DOC", "KO", "PR", "REG", "RTDOSE", "RTPLAN", "RTSTRUCT", "SEG", "SR"})
"""The modalities of series that cannot be segmented."""


NOT_FROM_DICOM = _(
    "{name} was not loaded by the module DICOM. A DICOM SEG or SR needs the patient, study and frame "
    "of reference of a DICOM series."
)
NOT_IN_DATABASE = _(
    "The DICOM series of {name} is no longer in Slicer's DICOM database, but a "
    "DICOM SEG or SR needs it. Import it there again."
)
NOT_HERE = _(
    "The files of series {name} are not on this computer. Import them into the DICOM database with a "
    "copy of them, or leave the series out."
)
SEVERAL_FOLDERS = _(
    "The files of series {name} are in {count} folders. Import them into the "
    "DICOM database with a copy of them, or leave the series out."
)


def _row(database: QtValue, patient: QtValue, study: QtValue, series: QtValue) -> SeriesRow:
    name = str(database.nameForPatient(patient))
    in_study = str(database.descriptionForStudy(study))
    return SeriesRow(name, in_study, str(database.descriptionForSeries(series)), str(series))


def series_of(database: QtValue) -> list[SeriesRow]:
    """Return the series of images, by patient and study.

    Args:
        database: a ctkDICOMDatabase, or None if Slicer does not have one.

    Raises:
        InputError: there is no database, or it does not contain images.
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
    """Return folder and SeriesInstanceUID of the DICOM series from which a volume node was loaded.

    Args:
        database: a ctkDICOMDatabase, or None if Slicer does not have one.
        volume: the node, or None.

    Raises:
        InputError: it did not come from the database, or its files are missing; the message is for a user who
            wants a DICOM SEG.
    """
    if volume is None:
        raise InputError(_("The scan is not in the scene, so a DICOM SEG or SR cannot be written."))
    instances = str(volume.GetAttribute(INSTANCES_ATTRIBUTE) or "").split()
    if not instances:
        raise InputError(NOT_FROM_DICOM.format(name=volume.GetName()))
    series = _series_with(database, instances[0])
    if not series:
        raise InputError(NOT_IN_DATABASE.format(name=volume.GetName()))
    return folder_of(database, SeriesRow("", "", volume.GetName(), series)), series


def _series_with(database: QtValue, instance: str) -> str:
    """Return the series of an instance, or "" if the database does not have it."""
    file = "" if database is None else str(database.fileForInstance(instance) or "")
    return str(database.seriesForFile(file) or "") if file else ""


def modality_of(database: QtValue, volume: VolumeNode) -> str:
    """Return the DICOM modality of a volume node; "" if it is unknown.

    Args:
        database: a ctkDICOMDatabase, or None if Slicer does not have one.
        volume: the node.
    """
    instances = str(volume.GetAttribute(INSTANCES_ATTRIBUTE) or "").split()
    if not instances or database is None:
        return ""
    file = str(database.fileForInstance(instances[0]) or "")
    series = str(database.seriesForFile(file) or "") if file else ""
    return str(database.fieldForSeries("Modality", series) or "") if series else ""


def folder_of(database: QtValue, row: SeriesRow) -> str:
    """Return the folder with all files of a series, perhaps beside others.

    Raises:
        InputError: the files are missing, were never copied, or are in several folders.
    """
    files = [Path(file) for file in database.filesForSeries(row.uid) if file]
    folders = {file.parent for file in files}
    if not files or not all(folder.is_dir() for folder in folders):
        raise InputError(NOT_HERE.format(name=row.title))
    if len(folders) > 1:
        raise InputError(SEVERAL_FOLDERS.format(name=row.title, count=len(folders)))
    return str(folders.pop())
