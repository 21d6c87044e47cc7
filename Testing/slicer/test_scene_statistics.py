"""Numbers on segments, against numpy and SimpleITK, as they are after editing."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from slicer.util import arrayFromVolume, updateVolumeFromArray, vtkMatrixFromArray

from medsegai.errors import OutputError
from medsegai.measurements.structures import COLUMNS
from medsegai.progress import Progress
from medsegai.worker.measure_and_export_jobs import measure_segments
from MedSegAILib.scene import ReviewState, Scene
from MedSegAILib.scene.plotting import CHART_REFERENCE, StatisticsLayout
from MedSegAILib.scene.statistics import HEADINGS, TEXTS
from scene_images import (
    LEFT,
    LEFT_ID,
    MOVED,
    PLACES,
    SHAPE,
    STEM,
    STEM_ID,
    add_volume,
    paint,
    result_for,
    two_blocks,
    world_of,
)

TEXT_HEADINGS = [HEADINGS[name] for name in TEXTS]


def segmented(mrml: Any, place: str, moved: str = "turned") -> tuple[Scene, Any, Any]:
    volume = add_volume(mrml, PLACES[place], MOVED[moved])
    scene = Scene(mrml)
    result = result_for(scene.read(volume), two_blocks(), entropy=True)
    unsure = dataclasses.replace(
        result.structures[0], iou=0.5, volume_cv=0.1, remarks=("look at it",)
    )
    result = dataclasses.replace(result, structures=(unsure, *result.structures[1:]))
    return scene, volume, scene.write(volume, result)


def statistics(scene: Scene, node: Any) -> Any:
    """The table, measured as the worker does it."""
    measured = scene.measurable(node)
    return scene.statistics(measured, measure_segments(measured.request, Progress()))


def rows(table: Any) -> list[dict[str, Any]]:
    data = table.GetTable()
    found = []
    for row in range(data.GetNumberOfRows()):
        values = {name: data.GetValueByName(row, name) for name in HEADINGS.values()}
        found.append(
            {
                name: value.ToString() if name in TEXT_HEADINGS else value.ToDouble()
                for name, value in values.items()
            }
        )
    return found


def write_csv(scene: Scene, node: Any, path: Path) -> None:
    measured = scene.measurable(node)
    scene.write_csv(measured, measure_segments(measured.request, Progress()), path)


@pytest.mark.parametrize("place", ["mirrored", "oblique", "oblique and swapped"])
def test_the_table_agrees_with_simpleitk(mrml: Any, place: str) -> None:
    scene, volume, node = segmented(mrml, place)
    labels = sitk.GetImageFromArray(two_blocks())
    labels.SetSpacing([float(np.linalg.norm(PLACES[place][:3, axis])) for axis in range(3)])
    image = sitk.GetImageFromArray(arrayFromVolume(volume))
    image.CopyInformation(labels)
    shape, values = sitk.LabelShapeStatisticsImageFilter(), sitk.LabelStatisticsImageFilter()
    shape.Execute(labels)
    values.Execute(image, labels)
    left, stem = rows(statistics(scene, node))
    for row, label in ((left, LEFT), (stem, STEM)):
        assert row["Segment"] == label.name
        assert row["Label"] == label.value
        assert row["Voxels"] == shape.GetNumberOfPixels(label.value)
        size = shape.GetPhysicalSize(label.value) / 1000
        assert float(row["Volume [mL]"]) == pytest.approx(size)
        assert row["Mean"] == pytest.approx(values.GetMean(label.value))
        assert row["SD"] == pytest.approx(values.GetSigma(label.value))
        k, j, i = np.argwhere(two_blocks() == label.value).mean(axis=0)
        center = [row[name] for name in ("R [mm]", "A [mm]", "S [mm]")]
        np.testing.assert_allclose(center, world_of(volume, i, j, k), atol=1e-6)
        assert row["Mean entropy"] == pytest.approx(0.3)
    assert (left["IoU"], left["Volume CV"]) == (0.5, 0.1)
    assert math.isnan(stem["IoU"])
    assert (left["Edited"], left["Review"]) == ("no", "flagged")
    assert (stem["Edited"], stem["Review"]) == ("no", "notstarted")


def test_after_editing_the_numbers_are_those_of_now(mrml: Any) -> None:
    scene, volume, node = segmented(mrml, "oblique")
    mine = two_blocks() == LEFT.value
    mine[0, :2, :5] = True
    paint(node, LEFT_ID, mine, volume)
    scene.set_review_state(node, LEFT_ID, ReviewState.COMPLETED)
    left, _ = rows(statistics(scene, node))
    assert left["Voxels"] == mine.sum()
    image = arrayFromVolume(volume)
    assert left["Mean"] == pytest.approx(image[mine].mean())
    assert left["SD"] == pytest.approx(image[mine].astype(float).std(ddof=1))
    assert math.isnan(left["IoU"]), "how members agreed says nothing of what a person drew"
    assert (left["Edited"], left["Review"]) == ("yes", "completed")


def test_segments_that_the_user_drew_and_empty_ones_are_there_too(mrml: Any) -> None:
    scene, volume, node = segmented(mrml, "LPS")
    node.GetSegmentation().AddEmptySegment("mine", "Lesion")
    node.GetSegmentation().AddEmptySegment("none", "Nothing")
    mine = np.zeros(SHAPE, bool)
    mine[5:7, 7:9, 10:12] = True  # over the brain stem
    paint(node, "mine", mine, volume)
    lesion, nothing = rows(statistics(scene, node))[2:]
    assert lesion["Voxels"] == 8
    assert math.isnan(lesion["Label"])
    assert lesion["Edited"] == "yes"
    assert (nothing["Voxels"], float(nothing["Volume [mL]"])) == (0, 0)
    assert math.isnan(nothing["Mean"])
    assert nothing["Edited"] == "no"


def test_a_volume_on_other_voxels_is_read_where_they_lie(mrml: Any) -> None:
    """The source is exchanged for one of half the voxel size; means stay means over the same place."""
    scene, volume, node = segmented(mrml, "plain", "no transform")
    fine = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Fine")
    values = np.kron(arrayFromVolume(volume), np.ones((2, 2, 2), np.int16))
    updateVolumeFromArray(fine, values)
    place = np.diag([0.5, 0.5, 0.5, 1.0])
    place[:3, 3] = -0.25
    fine.SetIJKToRASMatrix(vtkMatrixFromArray(place))
    node.SetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole(), fine.GetID())
    left, _ = rows(statistics(scene, node))
    inside = arrayFromVolume(volume)[two_blocks() == LEFT.value]
    assert left["Mean"] == pytest.approx(inside.mean())
    assert left["Voxels"] == inside.size


@pytest.mark.parametrize("instead", [None, "vtkMRMLLabelMapVolumeNode", "vtkMRMLScalarVolumeNode"])
def test_without_its_volume_the_sizes_remain(mrml: Any, instead: str | None) -> None:
    """Also where a label map or an empty volume stands for it."""
    scene, volume, node = segmented(mrml, "LPS")
    mrml.RemoveNode(volume)
    if instead is not None:
        other = mrml.AddNewNodeByClass(instead, "Other")
        node.SetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole(), other.GetID())
    left, _ = rows(statistics(scene, node))
    assert left["Voxels"] == 60
    assert math.isnan(left["Mean"])


def bars(table: Any) -> dict[str, tuple[float, tuple[float, ...]]]:
    """What a plot view draws: for each entry of the legend the height and the colour of its one bar."""
    chart = table.GetNodeReference(CHART_REFERENCE)
    found = {}
    for number in range(chart.GetNumberOfPlotSeriesNodes()):
        series = chart.GetNthPlotSeriesNode(number)
        assert series.GetPlotType() == series.PlotTypeBar
        column = series.GetTableNode().GetTable().GetColumnByName(series.GetYColumnName())
        assert column.GetNumberOfValues() == 1, "or bars would lie behind one another"
        found[series.GetName()] = (column.GetValue(0), series.GetColor())
    return found


def test_each_bar_of_the_plot_has_the_name_and_the_colour_of_its_segment(mrml: Any) -> None:
    scene, _, node = segmented(mrml, "LPS")
    node.GetSegmentation().GetSegment(STEM_ID).SetColor(0.1, 0.2, 0.3)
    table = statistics(scene, node)
    shown = bars(table)
    left, stem = rows(table)
    assert list(shown) == [LEFT.name, STEM.name]
    assert shown[LEFT.name][0] == pytest.approx(left["Volume [mL]"])
    assert shown[LEFT.name][1] == pytest.approx([part / 255 for part in LEFT.color])
    assert shown[STEM.name] == (pytest.approx(stem["Volume [mL]"]), pytest.approx((0.1, 0.2, 0.3)))
    assert table.GetNodeReference(CHART_REFERENCE).GetLegendVisibility()


def test_asking_for_statistics_twice_makes_nothing_new(mrml: Any) -> None:
    scene, _, node = segmented(mrml, "LPS")
    table = statistics(scene, node)
    count = mrml.GetNumberOfNodes()
    assert statistics(scene, node) is table
    assert mrml.GetNumberOfNodes() == count
    node.GetSegmentation().RemoveSegment(STEM_ID)
    statistics(scene, node)
    assert len(rows(table)) == len(bars(table)) == 1
    assert mrml.GetNumberOfNodes() == count - 1, "the bar of the segment that has gone"


def test_the_views_come_back_as_they_were_before_the_statistics(mrml: Any) -> None:
    layout = mrml.AddNewNodeByClass("vtkMRMLLayoutNode")
    views = StatisticsLayout()
    for before in (layout.SlicerLayoutFourUpView, layout.SlicerLayoutOneUpRedSliceView):
        layout.SetViewArrangement(before)
        views.show(mrml)
        views.show(mrml)
        assert layout.GetViewArrangement() == layout.SlicerLayoutFourUpPlotTableView
        views.hide(mrml)
        assert layout.GetViewArrangement() == before
    views.show(mrml)
    layout.SetViewArrangement(layout.SlicerLayoutOneUp3DView)
    views.hide(mrml)
    assert layout.GetViewArrangement() == layout.SlicerLayoutOneUp3DView, "the user's own choice"


def test_the_file_has_the_numbers_of_the_table(mrml: Any, tmp_path: Path) -> None:
    scene, _, node = segmented(mrml, "oblique")
    node.GetSegmentation().GetSegment(LEFT_ID).SetName('Hippo, "left" é')
    path = tmp_path / "head.csv"
    write_csv(scene, node, path)
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    expected = rows(statistics(scene, node))
    assert list(found[0])[: len(COLUMNS)] == sorted(COLUMNS, key=list(HEADINGS).index)
    assert [row["name"] for row in found] == ['Hippo, "left" é', "Brain-Stem"]
    for mine, theirs in zip(found, expected, strict=True):
        for name, heading in HEADINGS.items():
            if name in TEXTS:
                assert mine[name] == theirs[heading]
            else:
                number = float(mine[name] or "nan")
                assert number == pytest.approx(theirs[heading], nan_ok=True), name
    assert [item.name for item in tmp_path.iterdir()] == ["head.csv"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    mrml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, _, node = segmented(mrml, "oblique")
    with pytest.raises(OutputError, match=r"head\.csv cannot be written"):
        write_csv(scene, node, tmp_path / "no such folder" / "head.csv")
    path = tmp_path / "head.csv"
    path.write_text("old")

    def full(_writer: Any, rowdicts: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv.DictWriter, "writerows", full)
    with pytest.raises(OutputError, match="No space left"):
        write_csv(scene, node, path)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["head.csv"]


def test_real_labels_are_counted_like_simpleitk_does(mrml: Any, shared_data: Path) -> None:
    folder = shared_data / "Dataset004_Hippocampus"
    labels = sorted((folder / "labelsTr").glob("*.nii.gz"))[3]
    name = labels.name.replace(".nii.gz", "_0000.nii.gz")
    logic = slicer.vtkSlicerVolumesLogic()
    logic.SetMRMLScene(mrml)
    volume = logic.AddArchetypeVolume(str(folder / "imagesTr" / name), "Hippocampus", 0)
    reference = sitk.ReadImage(str(labels))
    image = sitk.ReadImage(str(folder / "imagesTr" / name), sitk.sitkFloat64)
    image.CopyInformation(reference)
    shape, values = sitk.LabelShapeStatisticsImageFilter(), sitk.LabelStatisticsImageFilter()
    shape.Execute(reference)
    values.Execute(image, reference)
    parts = sitk.GetArrayFromImage(reference)
    labelmap = np.where(parts == 1, LEFT.value, np.where(parts == 2, STEM.value, 0))
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), labelmap.astype(np.uint16)))
    for row, value in zip(rows(statistics(scene, node)), (1, 2), strict=True):
        assert float(row["Volume [mL]"]) == pytest.approx(shape.GetPhysicalSize(value) / 1000)
        assert row["Mean"] == pytest.approx(values.GetMean(value), rel=1e-6)
        assert row["SD"] == pytest.approx(values.GetSigma(value), rel=1e-6)
        center = np.array(shape.GetCentroid(value)) * [-1, -1, 1]
        found = [row[name] for name in ("R [mm]", "A [mm]", "S [mm]")]
        np.testing.assert_allclose(found, center, atol=1e-4)


# --- the table of results --------------------------------------------------------------------------


def test_the_rows_of_the_results_are_the_segments_as_they_are_now(mrml: Any) -> None:
    scene, volume, node = segmented(mrml, "oblique and swapped")
    left, stem = scene.structures(node)
    size = abs(np.linalg.det(PLACES["oblique and swapped"][:3, :3])) / 1000
    assert (left.segment_id, left.name, left.color) == (LEFT_ID, LEFT.name, LEFT.color)
    assert left.volume_ml == pytest.approx(60 * size)
    assert (left.quality, left.review, left.shown) == ("check", "flagged", True)
    assert left.reasons.startswith("Look at it.\n")
    assert "IoU 0.500" in left.reasons
    assert (stem.quality, stem.reasons, stem.review) == ("", "", "notstarted")
    assert scene.overlays(node)

    mine = two_blocks() == LEFT.value
    mine[0, 0, 0] = True
    paint(node, LEFT_ID, mine, volume)
    node.GetSegmentation().AddEmptySegment("mine", "Lesion")
    scene.set_review_state(node, LEFT_ID, "completed")
    left, _, lesion = scene.structures(node)
    assert left.volume_ml == pytest.approx(61 * size)
    assert (left.quality, left.reasons, left.review) == ("", "", "completed")
    assert (lesion.name, lesion.volume_ml, lesion.review) == ("Lesion", 0, "notstarted")


def test_an_empty_segmentation_has_no_rows(mrml: Any) -> None:
    node = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Empty")
    scene = Scene(mrml)
    assert scene.structures(node) == []
    assert rows(statistics(scene, node)) == []
    assert not scene.overlays(node)
