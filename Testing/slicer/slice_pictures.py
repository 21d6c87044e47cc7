"""Views without a window, by Slicer's displayable managers: what a slice view shows, and when a 3D view draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util import numpy_support

MANAGERS = (
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLColorLegendDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
)


class SlicePicture:
    """The red view on an axial plane.

    Args:
        scene: the vtkMRMLScene.
        size: width and height of the picture in pixels.
        width_mm: what the view shows.
    """

    def __init__(
        self, scene: Any, size: tuple[int, int] = (400, 300), width_mm: float = 50
    ) -> None:
        self._application = slicer.vtkSlicerApplicationLogic()
        self._application.SetMRMLScene(scene)
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(self._application)
        self.logic.SetMRMLScene(scene)
        self.logic.AddSliceNode("Red")
        self._logics = vtk.vtkCollection()
        self._logics.AddItem(self.logic)
        self._application.SetSliceLogics(self._logics)
        self.node = self.logic.GetSliceNode()
        self.node.GetSliceToRAS().Identity()
        self.node.GetSliceToRAS().SetElement(0, 0, -1)  # axial: the patient's right on the left
        self.node.UpdateMatrices()
        self.node.SetDimensions(*size, 1)
        self.node.SetFieldOfView(width_mm, width_mm * size[1] / size[0], 1)
        self._draw(size)

    def _draw(self, size: tuple[int, int]) -> None:
        self._window, self._renderer = vtk.vtkRenderWindow(), vtk.vtkRenderer()
        self._window.SetOffScreenRendering(1)
        self._window.SetSize(*size)
        self._window.AddRenderer(self._renderer)
        self._interactor = vtk.vtkGenericRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        self._mapper, actor = vtk.vtkImageMapper(), vtk.vtkActor2D()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        actor.SetMapper(self._mapper)
        actor.GetProperty().SetDisplayLocationToBackground()
        self._renderer.AddViewProp(actor)
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(self._application)
        for name in MANAGERS:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self._group = factory.InstantiateDisplayableManagers(self._renderer)
        self._group.SetMRMLDisplayableNode(self.node)

    def pixels(self) -> NDArray[np.uint8]:
        """What is drawn now, uint8 (height, width, 3), the first row at the top."""
        self.logic.UpdatePipeline()
        self._mapper.SetInputConnection(self.logic.GetImageDataConnection())
        self._window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self._window)
        grab.ReadFrontBufferOff()
        grab.Update()
        image = grab.GetOutput()
        width, height, _depth = image.GetDimensions()
        values = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
        return np.asarray(values.reshape(height, width, -1)[::-1, :, :3], np.uint8).copy()


class SurfaceView:
    """A 3D view that shows surfaces of segments, and counts how often it was asked to draw.

    Attributes:
        asked: so often.
    """

    def __init__(self, scene: Any) -> None:
        self.asked = 0
        self._application = slicer.vtkSlicerApplicationLogic()
        self._application.SetMRMLScene(scene)
        self._window, renderer = vtk.vtkRenderWindow(), vtk.vtkRenderer()
        self._window.SetOffScreenRendering(1)
        self._window.AddRenderer(renderer)
        self._interactor = vtk.vtkGenericRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(self._application)
        if not factory.IsDisplayableManagerRegistered("vtkMRMLSegmentationsDisplayableManager3D"):
            factory.RegisterDisplayableManager("vtkMRMLSegmentationsDisplayableManager3D")
        self._group = factory.InstantiateDisplayableManagers(renderer)
        self._group.SetMRMLDisplayableNode(scene.AddNewNodeByClass("vtkMRMLViewNode"))
        self._group.AddObserver(vtk.vtkCommand.UpdateEvent, self._on_request)

    def _on_request(self, *_: Any) -> None:
        self.asked += 1
