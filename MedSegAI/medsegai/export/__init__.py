"""From a segmentation to what other systems take: DICOM SEG and SR, surfaces, a report of the case."""

from medsegai.export.case import Case, load_case

__all__ = ["Case", "load_case"]
