"""Reading and writing of images: files become volumes here, and volumes become files.

Axis order and the two world conventions (RAS inside, LPS in ITK, DICOM and NRRD) change only here.
"""

from medsegai.io.atomic import (
    PARTIAL,
    FilesTogether,
    atomic_path,
    check_output,
    files_together,
)
from medsegai.io.candidates import read_candidates
from medsegai.io.cards import write_card
from medsegai.io.checks import check_picture, check_scan, check_voxels
from medsegai.io.dicom import series_frames
from medsegai.io.itk import from_sitk, to_sitk
from medsegai.io.labelmaps import on_grid, read_labelmap
from medsegai.io.nifti import axes_to_ras
from medsegai.io.orientation import itk_axes_to_ras
from medsegai.io.pictures import (
    COLOURS,
    PICTURE_ENDINGS,
    as_channels,
    grey,
    is_picture,
    read_picture,
    read_pixels,
)
from medsegai.io.reading import READABLE, read_channels, read_entropy, read_volume
from medsegai.io.tables import Table, parse_table, read_table, write_table
from medsegai.io.writing import (
    SEGMENTATION_ENDINGS,
    WRITABLE,
    write_colours,
    write_probabilities,
    write_segmentation,
    write_volume,
)

__all__ = [
    "COLOURS",
    "PARTIAL",
    "PICTURE_ENDINGS",
    "READABLE",
    "SEGMENTATION_ENDINGS",
    "WRITABLE",
    "FilesTogether",
    "Table",
    "as_channels",
    "atomic_path",
    "axes_to_ras",
    "check_output",
    "check_picture",
    "check_scan",
    "check_voxels",
    "files_together",
    "from_sitk",
    "grey",
    "is_picture",
    "itk_axes_to_ras",
    "on_grid",
    "parse_table",
    "read_candidates",
    "read_channels",
    "read_entropy",
    "read_labelmap",
    "read_picture",
    "read_pixels",
    "read_table",
    "read_volume",
    "series_frames",
    "to_sitk",
    "write_card",
    "write_colours",
    "write_probabilities",
    "write_segmentation",
    "write_table",
    "write_volume",
]
