"""MedSegAI engine: medical images in, named segments with their uncertainty out.

The package never imports ``slicer``, ``vtk`` or ``qt``; it runs inside 3D Slicer's worker
process and on a machine that has no Slicer alike. Start reading at :mod:`medsegai.engine`.
"""

__version__ = "0.1.0"
