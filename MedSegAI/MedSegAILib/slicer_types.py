"""Names for the objects of Slicer, VTK and Qt in annotations.

These libraries do not have types, so a type checker accepts any object for these names, but a reader sees what is
meant. Classes of MedSegAI are annotated by their own names.
"""

from __future__ import annotations

from typing import Any, TypeAlias

MRMLScene: TypeAlias = Any
"""vtkMRMLScene."""

Node: TypeAlias = Any
"""Any vtkMRMLNode."""

SegmentationNode: TypeAlias = Any
"""vtkMRMLSegmentationNode."""

Segmentation: TypeAlias = Any
"""vtkSegmentation, the content of a segmentation node."""

VolumeNode: TypeAlias = Any
"""vtkMRMLScalarVolumeNode, or one of the classes that derive from it."""

TableNode: TypeAlias = Any
"""vtkMRMLTableNode."""

SequenceBrowserNode: TypeAlias = Any
"""vtkMRMLSequenceBrowserNode."""

Segment: TypeAlias = Any
"""vtkSegment."""

VTKObject: TypeAlias = Any
"""Another vtkObject, such as vtkMatrix4x4 or vtkOrientedImageData."""

Widget: TypeAlias = Any
"""A QWidget, or one of Slicer's and CTK's widgets."""

QtValue: TypeAlias = Any
"""Another value of Qt, such as a QColor, QIcon, QEvent or QTableWidgetItem."""
