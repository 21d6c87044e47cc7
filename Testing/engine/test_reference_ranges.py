"""The reference ranges of the bundled models, put to the test on people whom nobody measured them from.

Manual labels of MALC 2012 are good, so nothing should be remarked on them; and what is spoilt in them should be.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from medsegai.boxes import label_boxes
from medsegai.cli import main
from medsegai.evaluation import read_mapping
from medsegai.io import read_labelmap, write_segmentation
from medsegai.labels import Label
from medsegai.measurements.plausibility import remarks
from medsegai.models.card import load_card
from medsegai.models.catalogue import find_card
from medsegai.models.quality import Reference
from medsegai.volume import Geometry, Volume

BENCH = Path(__file__).parents[1] / "bench"
BRAIN = find_card("brain")
HIPPOCAMPUS, THIRD_VENTRICLE, CSF = 17, 14, 24


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


RANGES = loaded("reference_ranges")


@pytest.fixture(scope="module")
def manual(shared_data: Path) -> Volume:
    """The labels that a person drew on scan 1001, with the values of the model."""
    labelmap, _ = read_labelmap(shared_data / "malc2012-train" / "1001_glm.nii.gz")
    return read_mapping(BENCH / "neuromorphometrics_to_freesurfer.csv").apply(labelmap)


def said_of(labelmap: Volume) -> dict[int, str]:
    found = remarks(labelmap, BRAIN.labels, BRAIN.reference)
    return {value: "; ".join(words) for value, words in found.items()}


def test_nothing_is_remarked_on_what_a_person_drew(manual: Volume) -> None:
    assert said_of(manual) == {}
    few = Reference("one person", {HIPPOCAMPUS: (9.0, 10.0)})
    assert remarks(manual, BRAIN.labels, few).keys() == {HIPPOCAMPUS}


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("delete", "not found"),
        ("halve", "left minus right"),
        ("split", "in 2 parts"),
        ("double", "in 2 parts"),
        ("shift", "border"),
        ("thicken", "left minus right"),
    ],
)
@pytest.mark.parametrize("value", [HIPPOCAMPUS, 51])
def test_a_mistake_is_remarked(manual: Volume, mistake: str, words: str, value: int) -> None:
    voxels = manual.voxels.copy()
    getattr(RANGES, mistake)(voxels, value, label_boxes(voxels, [value])[value])
    assert words in said_of(manual.with_voxels(voxels))[value]


@pytest.mark.parametrize("flips", [(0,), (1, 2), (0, 1, 2)])
def test_mistakes_are_the_same_on_oblique_and_flipped_grids(
    manual: Volume, flips: tuple[int, ...]
) -> None:
    """Coarser in one direction, turned by 30 degrees, and with its axes in another order."""
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    turn = np.eye(4)
    turn[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    coarse = manual.voxels[:, ::2]
    matrix = turn @ manual.geometry.ijk_to_ras
    matrix[:, 1] *= 2
    grid = Geometry(coarse.shape, matrix)
    spoilt = coarse.copy()
    RANGES.halve(spoilt, HIPPOCAMPUS, label_boxes(spoilt, [HIPPOCAMPUS])[HIPPOCAMPUS])
    RANGES.delete(spoilt, THIRD_VENTRICLE, label_boxes(spoilt, [14])[14])
    expected = said_of(Volume(spoilt, grid))
    assert expected.keys() == {HIPPOCAMPUS, 53, THIRD_VENTRICLE}
    order = (2, 0, 1)
    there = grid.permuted(order).flipped(*flips)
    assert said_of(Volume(np.flip(spoilt.transpose(order), flips), there)) == expected


def test_the_cards_give_ranges_with_their_source() -> None:
    for model, people in (("brain", "15 label maps"), ("hippocampus", "200 hippocampi")):
        card = find_card(model)
        assert card.reference is not None
        assert people in card.reference.source
        assert "not a norm population" in card.reference.source
        judged = set(card.label_values) - {CSF}
        assert set(card.reference.volumes_ml) == set(card.reference.largest_part) == judged
    assert BRAIN.reference is not None
    assert len(BRAIN.reference.asymmetry_percent) == 14
    assert BRAIN.reference.volumes_ml[17] == BRAIN.reference.volumes_ml[53]


def test_ranges_of_many_people_are_three_deviations_of_the_logarithm() -> None:
    """Drawn from known distributions: volumes of e ± 0.2 in logarithm, left 5 % larger than right ± 0.1."""
    random = np.random.default_rng(1)
    sizes = random.normal(1.0, 0.2, 4000)
    ratios = random.normal(0.05, 0.1, 4000)
    people = [
        RANGES.Person(
            {1: math.exp(size + ratio / 2), 2: math.exp(size - ratio / 2)}, {1: 1.0, 2: 0.95}
        )
        for size, ratio in zip(sizes, ratios, strict=True)
    ]
    labels = [Label(1, "Left kidney", (1, 2, 3)), Label(2, "Right kidney", (1, 2, 3))]
    reference = RANGES.reference_of(people, labels, "drawn")
    spread = math.sqrt(0.2**2 + 0.05**2 + 0.025**2)
    expected = (math.exp(1 - 3 * spread), math.exp(1 + 3 * spread))
    assert reference.volumes_ml[1] == pytest.approx(expected, rel=0.03)
    assert reference.volumes_ml[2] == reference.volumes_ml[1]
    assert reference.asymmetry_percent == {1: pytest.approx((-25, 35), abs=2)}
    assert reference.largest_part == {1: 0.76, 2: 0.76}


def test_few_people_give_wide_ranges() -> None:
    """The tables of Student's t give 3.64 for 14 degrees of freedom and 0.135 % beyond."""
    assert RANGES.deviations(15) == pytest.approx(3.64 * math.sqrt(16 / 15), abs=0.01)
    assert RANGES.deviations(4000) == pytest.approx(3, abs=0.01)


def test_what_a_map_cuts_off_is_not_measured() -> None:
    voxels = np.zeros((10, 10, 10), np.uint8)
    voxels[2:6, 2:6, 2:6] = 1
    voxels[8, 8, 8] = 1
    voxels[0:3, 7:9, 2:4] = 2
    person = RANGES.Person.of(
        Volume(voxels, Geometry.from_spacing((10, 10, 10), (1, 1, 2))), [1, 2]
    )
    assert person.volumes_ml == {1: pytest.approx(65 * 0.002)}
    assert person.largest_part == {1: pytest.approx(64 / 65)}


def test_the_script_writes_into_a_card(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = find_card("hippocampus")
    shutil.copyfile(card.folder / "card.json", tmp_path / "card.json")
    maps = sorted((shared_data / "Dataset004_Hippocampus" / "labelsTr").glob("*.nii.gz"))[:20]
    arguments = ["measure", str(tmp_path), *map(str, maps), "--source", "20 hippocampi"]
    assert RANGES.main([*arguments, "--write"]) == 0
    written = load_card(tmp_path).reference
    assert written is not None
    assert written.source.startswith("within 3 standard deviations (3.5, because 20 cases say")
    volumes = [
        np.count_nonzero(labelmap.voxels == 1) * labelmap.geometry.voxel_volume_ml
        for labelmap, _ in map(read_labelmap, maps)
    ]
    low, high = written.volumes_ml[1]
    assert math.sqrt(low * high) == pytest.approx(math.exp(np.log(volumes).mean()), rel=0.01)
    assert RANGES.main(["alarms", str(tmp_path), *map(str, maps)]) == 0
    assert "0 of 40" in capsys.readouterr().out
    assert RANGES.main(["measure", str(tmp_path), str(maps[0]), "--source", "one"]) == 3


def test_table_and_report_say_what_is_implausible(
    manual: Volume, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From files, as a person would, with the model named: its values alone say nothing."""
    voxels = manual.voxels.copy()
    RANGES.delete(voxels, HIPPOCAMPUS, label_boxes(voxels, [HIPPOCAMPUS])[HIPPOCAMPUS])
    labels, table, page = (tmp_path / name for name in ("head.nii.gz", "head.json", "head.html"))
    write_segmentation(labels, manual.with_voxels(voxels.astype(np.uint8)), BRAIN.labels)
    assert main(["measure", str(labels), "--model", "brain", "--json", str(table)]) == 0
    said = {row["name"]: row["remarks"] for row in json.loads(table.read_text())["structures"]}
    assert [name for name, remarks in said.items() if remarks] == ["Left hippocampus"]
    shown = capsys.readouterr().err
    assert "Left hippocampus: not found, although it is to be expected." in shown
    assert main(["export", str(labels), "--model", "brain", "--report", str(page)]) == 0
    assert "Left hippocampus: not found" in page.read_text()
    capsys.readouterr()
    assert main(["measure", str(labels)]) == 0
    assert "Left hippocampus" not in capsys.readouterr().err
