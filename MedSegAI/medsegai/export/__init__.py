"""Export of a segmentation for other systems: DICOM SEG and SR, surfaces, and a report of the case."""

from medsegai.export.case import Case, load_case

__all__ = ["Case", "load_case"]
