"""Measurements of structures, against ITK's own, against formulas, and by hand."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from images import DIRECTIONS, ORIGIN_RAS, SPACING_MM
from medsegai.cli import main
from medsegai.errors import GeometryError, InputError
from medsegai.io import on_grid, read_labelmap, to_sitk, write_segmentation, write_volume
from medsegai.labels import Label, Terminology, counterparts
from medsegai.measurements.structures import (
    COLUMNS,
    measure,
    surface_area,
    warnings_of,
    write_csv,
    write_json,
)
from medsegai.models.quality import Reference
from medsegai.volume import Geometry, Volume

RED = (255, 0, 0)
NAMES = {1: "Left kidney", 2: "Right kidney", 7: "Liver"}
LABELS = tuple(Label(value, name, RED) for value, name in NAMES.items())


def grid(name: str, shape: tuple[int, int, int] = (30, 26, 34)) -> Geometry:
    return Geometry.from_spacing(shape, SPACING_MM, ORIGIN_RAS, DIRECTIONS[name])


def ellipsoid(
    geometry: Geometry, middle: tuple[float, ...], radii_mm: tuple[float, ...]
) -> NDArray[np.bool_]:
    """Voxels whose centres lie in an ellipsoid along the axes (k, j, i) around voxel `middle`."""
    spacing = np.array(geometry.spacing_mm[::-1])
    places = np.indices(geometry.shape).reshape(3, -1).T - middle
    inside = (((places * spacing) / radii_mm) ** 2).sum(axis=1) <= 1
    return inside.reshape(geometry.shape)


def organs(name: str = "oblique") -> tuple[Volume, Volume]:
    """A labelmap of `LABELS`, and a scan, on one grid."""
    geometry = grid(name)
    voxels = np.zeros(geometry.shape, np.uint8)
    voxels[ellipsoid(geometry, (14, 7, 8), (9, 6, 5))] = 1
    voxels[ellipsoid(geometry, (13, 18, 26), (11, 7, 5))] = 2
    voxels[25:29, 2:9, 20:30] = 7
    image = np.random.default_rng(3).normal(40, 12, geometry.shape).astype(np.float32)
    return Volume(voxels, geometry, "seg"), Volume(image, geometry, "scan")


@pytest.mark.parametrize("name", list(DIRECTIONS))
def test_agrees_with_itk(name: str) -> None:
    labelmap, image = organs(name)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(to_sitk(labelmap))
    grey = sitk.LabelIntensityStatisticsImageFilter()
    grey.Execute(to_sitk(labelmap), to_sitk(image))
    for row in measure(labelmap, LABELS, image):
        value = row.label.value
        left, back, up = shape.GetCentroid(value)
        assert row.voxels == shape.GetNumberOfPixels(value)
        assert row.volume_ml == pytest.approx(shape.GetPhysicalSize(value) / 1000, rel=1e-9)
        assert (row.r_mm, row.a_mm, row.s_mm) == pytest.approx((-left, -back, up), abs=1e-6)
        assert row.mean == pytest.approx(grey.GetMean(value), rel=1e-6)
        assert row.sd == pytest.approx(grey.GetStandardDeviation(value), rel=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.5, 1.5), (1.2, 0.7, 2.0)])
@pytest.mark.parametrize("radii", [(15.0, 15.0, 15.0), (19.0, 14.0, 9.0)])
def test_the_surface_of_an_ellipsoid(
    spacing: tuple[float, float, float], radii: tuple[float, float, float]
) -> None:
    geometry = Geometry.from_spacing((42, 64, 60), spacing)
    mask = ellipsoid(geometry, (20.7, 32.6, 29.9), radii)
    power = 1.6075  # Knud Thomsen's formula, within 1.1 %
    products = [radii[0] * radii[1], radii[0] * radii[2], radii[1] * radii[2]]
    area = 4 * math.pi * np.mean(np.power(products, power)) ** (1 / power)
    assert surface_area(mask, spacing) == pytest.approx(area, rel=0.04)


@pytest.mark.parametrize("edge", [1.0, 0.6])
def test_the_surface_of_cubic_voxels_is_itks(edge: float) -> None:
    # For other voxels ITK weighs the directions otherwise: 8 % off for the ellipsoids of `organs`.
    voxels = organs("straight")[0].voxels
    geometry = Geometry.from_spacing(voxels.shape, (edge, edge, edge))
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.ComputePerimeterOn()
    shape.Execute(to_sitk(Volume(voxels, geometry)))
    for row in measure(Volume(voxels, geometry), LABELS):
        assert row.surface_mm2 == pytest.approx(shape.GetPerimeter(row.label.value), rel=1e-9)


def test_the_surface_does_not_depend_on_what_lies_around() -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[2:6, 3:7, 4:8] = True
    whole = surface_area(mask, SPACING_MM)
    assert surface_area(mask[2:6, 3:7, 4:8], SPACING_MM) == pytest.approx(whole)
    assert surface_area(np.ones((1, 1, 1), bool), SPACING_MM) > 0


def test_asymmetry_by_hand() -> None:
    voxels = np.zeros((4, 5, 6), np.uint8)
    voxels[0, 0, :3], voxels[3, 0, :1], voxels[2, 2, 2] = 1, 2, 7
    left, right, liver = measure(
        Volume(voxels, Geometry.from_spacing((4, 5, 6), SPACING_MM)), LABELS
    )
    assert left.asymmetry_percent == right.asymmetry_percent == pytest.approx(100.0)  # (3 - 1) / 2
    assert math.isnan(liver.asymmetry_percent)
    assert (left.at_border, liver.at_border) == (True, False)


def named(*names: str) -> list[Label]:
    return [Label(number, name, RED) for number, name in enumerate(names, start=1)]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("Left kidney", "Right kidney", "Liver"), [(0, 1)]),
        (("kidney_right", "kidney_left"), [(1, 0)]),
        (("ctx-rh-insula", "ctx-lh-insula"), [(1, 0)]),
        (("R amygdala", "L amygdala"), [(1, 0)]),
        (("Left kidney", "Right lung"), []),
        (("Left kidney", "left kidney", "Right kidney"), []),  # which of both?
        (("Cleft", "Bright"), []),
    ],
)
def test_counterparts_by_name(names: tuple[str, ...], pairs: list[tuple[int, int]]) -> None:
    assert counterparts(named(*names)) == pairs


def test_counterparts_by_code() -> None:
    def kidney(value: int, name: str, side: str | None) -> Label:
        modifier = None if side is None else ("SCT", side, "side")
        organ, anatomy = ("SCT", "64033007", "Kidney"), ("SCT", "123037004", "Anatomical Structure")
        return Label(value, name, RED, Terminology(anatomy, organ, modifier))

    pair = [kidney(1, "Ren dexter", "24028007"), kidney(2, "Ren sinister", "7771000")]
    assert counterparts(pair) == [(1, 0)]
    assert counterparts([pair[0], kidney(2, "Ren", None)]) == []


def test_nothing_there() -> None:
    _, image = organs()
    rows = measure(image.with_voxels(np.zeros(image.voxels.shape, np.uint8)), LABELS, image)
    assert [row.voxels for row in rows] == [0, 0, 0]
    assert rows[0].to_dict()["mean"] is None
    assert list(warnings_of(rows)) == ["Not found: Left kidney, Right kidney, Liver."]


def test_what_is_implausible_is_told_in_tables_and_warnings(tmp_path: Path) -> None:
    labelmap, image = organs()
    liver = float(np.count_nonzero(labelmap.voxels == 7)) * image.geometry.voxel_volume_ml
    reference = Reference("Ten livers.", {7: (2 * liver, 3 * liver), 9: (1.0, 2.0)})
    labels = (*LABELS, Label(9, "Spleen", RED))
    assert not any(row.remarks for row in measure(labelmap, LABELS, image))
    rows = measure(labelmap, labels, image, reference)
    assert [bool(row.remarks) for row in rows] == [False, False, True, True]
    warnings = list(warnings_of(rows, reference))
    assert [line.split(":")[0] for line in warnings] == ["Liver", "Spleen", "What is plausible"]
    assert "not found" in warnings[1]
    assert warnings[-1] == "What is plausible: Ten livers."
    write_csv(tmp_path / "table.csv", rows)
    write_json(tmp_path / "table.json", rows)
    with (tmp_path / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["remarks"] for line in table] == ["; ".join(row.remarks) for row in rows]
    structures = json.loads((tmp_path / "table.json").read_text())["structures"]
    assert structures[2]["remarks"] == list(rows[2].remarks)


def test_one_voxel() -> None:
    labelmap, image = organs()
    voxels = np.zeros(image.voxels.shape, np.uint8)
    voxels[5, 6, 7] = 7
    row = measure(labelmap.with_voxels(voxels), LABELS, image)[2]
    assert row.mean == image.voxels[5, 6, 7]
    assert math.isnan(row.sd)
    assert (row.r_mm, row.a_mm, row.s_mm) == pytest.approx(
        tuple((image.geometry.ijk_to_ras @ [7, 6, 5, 1])[:3])
    )


def test_three_hundred_labels_of_any_value() -> None:
    values = np.arange(300, dtype=np.uint32) * 7000 + 5  # beyond 16 bits
    geometry = Geometry.from_spacing((6, 10, 15), SPACING_MM)
    voxels = np.repeat(values, 3).reshape(geometry.shape)
    labels = [Label(int(value), f"Label {value}", RED) for value in values]
    rows = measure(Volume(voxels, geometry), labels)
    assert {row.voxels for row in rows} == {3}


def test_grids_that_differ_are_refused() -> None:
    labelmap, image = organs()
    moved = Volume(image.voxels, grid("straight"), "other.nii.gz")
    with pytest.raises(GeometryError, match=r"other\.nii\.gz"):
        measure(labelmap, LABELS, moved)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_labels_in_another_order_are_laid_on_the_scan(
    order: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    labelmap, image = organs()
    there = labelmap.geometry.permuted(order).flipped(*flips)
    turned = Volume(np.flip(labelmap.voxels.transpose(order), flips), there)
    found = on_grid(turned, image.geometry)
    np.testing.assert_array_equal(found.voxels, labelmap.voxels)
    assert found.geometry.matches(image.geometry)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("flips", [(), (0, 2)])
def test_labels_of_a_part_of_the_scan_are_refused(
    order: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    """A scan that contains the grid of the labels may be that of a neighbour."""
    labelmap, image = organs()
    there = labelmap.geometry.permuted(order).flipped(*flips)
    voxels = np.flip(labelmap.voxels.transpose(order), flips)
    for first, last in ((0, 1), (1, 0)):
        box = tuple(slice(first, size - last) for size in voxels.shape)
        part = Volume(voxels[box], there.cropped([first] * 3, voxels[box].shape), "seg")
        with pytest.raises(GeometryError, match=r"seg .*does not lie on the grid of the scan"):
            on_grid(part, image.geometry)


def test_labels_outside_of_the_scan_or_between_its_voxels_are_refused() -> None:
    labelmap, image = organs()
    smaller = image.geometry.cropped([14, 0, 0], (16, 26, 34))
    with pytest.raises(GeometryError, match="34 x 26 x 30 and 34 x 26 x 16 voxels"):
        on_grid(labelmap, smaller)
    shifted = image.geometry.ijk_to_ras.copy()
    shifted[0, 3] += 0.3
    with pytest.raises(GeometryError, match=r"their voxels lie up to 0\.3 mm apart"):
        on_grid(labelmap, Geometry(image.geometry.shape, shifted))
    with pytest.raises(GeometryError, match="does not lie on the grid"):
        on_grid(labelmap, image.geometry.resized((60, 26, 34)))


def test_tables_hold_what_was_measured(tmp_path: Path) -> None:
    labelmap, image = organs()
    rows = measure(labelmap, LABELS, image)
    write_csv(tmp_path / "table.csv", rows)
    write_json(tmp_path / "table.json", rows)
    with (tmp_path / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == COLUMNS
    assert [line["name"] for line in table] == list(NAMES.values())
    assert float(table[1]["surface_mm2"]) == pytest.approx(rows[1].surface_mm2, rel=1e-11)
    assert table[2]["asymmetry_percent"] == ""
    structures = json.loads((tmp_path / "table.json").read_text())["structures"]
    assert structures[0]["mean"] == rows[0].mean
    assert structures[2]["asymmetry_percent"] is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelmap, image = organs()
    seg, scan = tmp_path / "case.seg.nrrd", tmp_path / "scan.nii.gz"
    write_segmentation(seg, labelmap, LABELS)
    write_volume(scan, image)
    table, data = tmp_path / "t.csv", tmp_path / "t.json"
    arguments = ["measure", str(seg), "--image", str(scan), "--csv", str(table)]
    assert main([*arguments, "--json", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "Left kidney" in shown
    read, labels = read_labelmap(seg)
    expected = measure(read, labels, image)
    found = json.loads(data.read_text())["structures"]
    volumes = [row.volume_ml for row in expected]
    assert [item["volume_ml"] for item in found] == pytest.approx(volumes)
    assert [item["mean"] for item in found] == pytest.approx([row.mean for row in expected])
    assert main(arguments) == 5  # the table is there already
    assert main([*arguments, "--overwrite"]) == 0


def test_the_command_refuses_before_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelmap, _ = organs()
    seg, table = tmp_path / "case.seg.nrrd", tmp_path / "t.csv"
    write_segmentation(seg, labelmap, LABELS)
    assert main(["measure", str(seg), "--csv", str(table), "--json", str(tmp_path / "t.txt")]) == 5
    assert main(["measure", str(seg), "--csv", str(seg)]) in (2, 5)
    assert (
        main(["measure", str(seg), "--image", str(tmp_path / "none.nii"), "--csv", str(table)]) == 3
    )
    assert "none.nii" in capsys.readouterr().err
    assert not table.exists()


def test_overlapping_segments_are_refused(tmp_path: Path) -> None:
    labelmap, _ = organs()
    regions = np.stack([labelmap.voxels > 0, labelmap.voxels == 2, labelmap.voxels == 7])
    write_segmentation(tmp_path / "case.seg.nrrd", labelmap, LABELS, regions)
    with pytest.raises(InputError, match="overlaps"):
        read_labelmap(tmp_path / "case.seg.nrrd")
    assert main(["measure", str(tmp_path / "case.seg.nrrd")]) == InputError.exit_code


def test_commands_refuse_the_scan_of_a_neighbour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its grid begins at the same place and is a little larger, as crops of a structure are."""
    labelmap, image = organs()
    larger = np.pad(image.voxels, [(0, 3), (0, 1), (0, 2)], mode="edge")
    grid = image.geometry.cropped((0, 0, 0), larger.shape)
    write_segmentation(tmp_path / "seg.nii.gz", labelmap, LABELS)
    write_segmentation(tmp_path / "seg.seg.nrrd", labelmap, LABELS)
    write_volume(tmp_path / "own.nii.gz", image)
    write_volume(tmp_path / "neighbour.nii.gz", Volume(larger, grid))
    for name in ("seg.nii.gz", "seg.seg.nrrd"):
        for words in (["measure"], ["export", "--csv", str(tmp_path / f"{name}.csv")]):
            command = [words[0], str(tmp_path / name), *words[1:], "--image"]
            assert main([*command, str(tmp_path / "neighbour.nii.gz")]) == 3
            assert "does not lie on the grid of" in capsys.readouterr().err
            assert main([*command, str(tmp_path / "own.nii.gz")]) == 0
