"""The viewer in the report of a case: three planes and an interactive 3D view, in the same single file.

NiiVue draws it. NiiVue is not in the repository: `.ci/niivue` downloads it when the environment is set up, and
later builds (wheel, Slicer extension) contain it with its licence.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from medsegai.boxes import label_boxes, numbered
from medsegai.errors import MedSegAIError, RequestError
from medsegai.export.case import Case
from medsegai.io import write_volume
from medsegai.labels import Label
from medsegai.system.outside_text import page_text
from medsegai.system.private_folders import PrivateFolder
from medsegai.volume import Geometry, Volume, check_same_grid

HERE = Path(__file__).parent
NIIVUE = HERE / "niivue"
SCRIPT, LICENCE = "niivue.umd.js", "LICENSE"

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src data: blob:; worker-src blob:; font-src data:"
)
"""The policy by which a browser only loads what is in the page."""

BRIGHTNESS = (0.5, 99.8)
"""The percentiles of the scan that become black and white; it is shown in 256 grey levels, not for measurement."""

STEPS = 255

MOST_VOXELS = 1 << 25
"""The largest number of voxels in a page. For a scan of this size with all layers, Chromium needs 2 GB."""

MOST_ALONG = 2048
"""The largest number of voxels along an axis that graphics cards draw."""

STYLE = """
#viewer canvas { width: 100%; height: 32em; background: #000; }
#viewer .controls { display: flex; flex-wrap: wrap; gap: .2em 1.5em; align-items: center; }
#viewer-place { font-variant-numeric: tabular-nums; display: block; min-height: 1.5em; }
.contains { border-left: 4px solid #b06000; padding-left: .6em; }
tr[data-mm] { cursor: pointer; } tr.here { background: #fff3c4; }
tr[data-mm]:hover, tr[data-mm]:focus { background: #eef3fa; }
button.eye { border: 0; background: none; padding: 0 .4em 0 0; cursor: pointer; color: inherit;
  vertical-align: middle; }
button.eye svg { width: 1.2em; display: block; } button.eye .struck { display: none; }
button.eye[aria-pressed="false"] { color: #999; } button.eye[aria-pressed="false"] .struck { display: inline; }
@media print { #viewer, button.eye { display: none; } }
"""


EYE = (
    '<svg viewBox="0 0 24 16" fill="none" stroke="currentColor" stroke-width="2" aria-hidden="true">'
    '<path d="M1 8Q12 -5 23 8Q12 21 1 8Z"/><circle cx="12" cy="8" r="3"/>'
    '<path class="struck" d="M4 16 20 0"/></svg>'
)


def viewer_is_here() -> bool:
    """Whether this installation contains NiiVue."""
    return all((NIIVUE / name).is_file() for name in (SCRIPT, LICENCE))


def check_viewer(has_scan: bool) -> None:
    """Check that a viewer can be made.

    Raises:
        MedSegAIError: this installation does not contain NiiVue.
        RequestError: the scan is not named.
    """
    if not viewer_is_here():
        raise MedSegAIError(
            "The viewer needs NiiVue, which this installation does not contain. Run .ci/niivue in a checkout of "
            "MedSegAI, which downloads it with npm, and install from there; or leave out --viewer."
        )
    if not has_scan:
        raise RequestError(
            "The viewer shows the scan, which is not named. Name it with --image or --dicom."
        )


@dataclass(frozen=True)
class Shown:
    """What the viewer shows: a case with its uncertainty, thinned if a browser could not hold it.

    Attributes:
        case: the case with its scan, on the grid that is shown.
        labelmap: the labels on the grid of the scan.
        entropy: uncertainty in nats on the same grid as `case`; None if it was not measured.
    """

    case: Case
    labelmap: Volume
    entropy: Volume | None

    @classmethod
    def of(cls, case: Case, entropy: Volume | None) -> Shown:
        """Return what is shown of a case.

        Raises:
            GeometryError: the uncertainty has another grid.
            MedSegAIError: see `check_viewer`.
        """
        check_viewer(case.image is not None)
        if entropy is not None:
            where = "Name the map of this segmentation."
            check_same_grid(
                entropy.geometry,
                case.labelmap.geometry,
                entropy.source,
                case.labelmap.source,
                where,
            )
        steps = steps_of(case.labelmap.geometry)
        thin = replace(
            case, labelmap=_thinned(case.labelmap, steps), image=_thinned(case.image, steps)
        )
        return cls(thin, case.labelmap, _thinned(entropy, steps))

    def places(self) -> dict[int, tuple[float, float, float]]:
        """Return `places` of all structures, within what is shown of them if something is."""
        every = places(self.labelmap, self.case.labels)
        return every | places(self.case.labelmap, self.case.labels)

    def resolution(self) -> str:
        """Return a sentence about voxels that are not shown; "" if all are."""
        whole, shown = self.labelmap.geometry, self.case.labelmap.geometry
        if whole.shape == shown.shape:
            return ""
        return (
            f" Browsers cannot show a scan of this size ({whole.describe()}), so this page contains a part of its "
            f"voxels ({shown.describe()})."
        )


def steps_of(grid: Geometry) -> tuple[int, int, int]:
    """Return the step (k, j, i) from a voxel to the next one that is shown, which keeps voxels near to cubes."""
    shape, steps = np.array(grid.shape), np.ones(3, int)
    spacing = np.array(grid.spacing_mm[::-1])
    while (sizes := -(-shape // steps)).prod() > MOST_VOXELS or sizes.max() > MOST_ALONG:
        long = sizes == sizes.max() if sizes.max() > MOST_ALONG else sizes > 2
        steps[np.where(long, steps * spacing, np.inf).argmin()] += 1
    k, j, i = steps.tolist()
    return k, j, i


@overload
def _thinned(volume: Volume, steps: tuple[int, int, int]) -> Volume: ...
@overload
def _thinned(volume: None, steps: tuple[int, int, int]) -> None: ...
def _thinned(volume: Volume | None, steps: tuple[int, int, int]) -> Volume | None:
    if volume is None or steps == (1, 1, 1):
        return volume
    k, j, i = steps
    return replace(
        volume, voxels=volume.voxels[::k, ::j, ::i], geometry=volume.geometry.thinned(steps)
    )


def places(labelmap: Volume, labels: Sequence[Label]) -> dict[int, tuple[float, float, float]]:
    """Return a position inside each structure, in RAS mm, by label value: the voxel nearest to its centroid."""
    found = {}
    for value, box in label_boxes(labelmap.voxels, [label.value for label in labels]).items():
        inside = np.argwhere(labelmap.voxels[box] == value)
        distance = ((inside - inside.mean(0)) ** 2).sum(1)
        k, j, i = inside[distance.argmin()] + [side.start for side in box]
        r, a, s = (labelmap.geometry.ijk_to_ras @ [i, j, k, 1.0])[:3]
        found[value] = (float(r), float(a), float(s))
    return found


def numbers(labels: Sequence[Label]) -> dict[int, int]:
    """Return each label value's number in the page: 1, 2, 3 …, because NiiVue's tables have a row per number."""
    return {label.value: number for number, label in enumerate(labels, 1)}


def eye(label: Label) -> str:
    """Return a button for the row of a structure that hides it in the viewer or shows it again."""
    name = page_text(f"Show {label.name} in the viewer")
    return f'<button class="eye" type="button" title="{name}" aria-label="{name}">{EYE}</button>'


def section(shown: Shown) -> list[str]:
    """Return the viewer as HTML, for the body of the page."""
    return [  # the canvas has its own element, which NiiVue blackens
        '<section id="viewer"><h2>Viewer</h2>',
        '<p class="contains">This page contains the scan, with grey values in 256 levels. Whoever has the '
        f"page has the scan, and a face may be recognisable in the scan of a head.{shown.resolution()}</p>",
        '<div class="stage"><canvas id="viewer-canvas" width="960" height="512"></canvas></div>',
        '<output id="viewer-place">The viewer needs JavaScript.</output>',
        '<div class="controls">',
        _slider("Scan", 'data-layer="0"', 1),
        _slider("Structures", 'data-layer="1"', 0.5),
        "" if shown.entropy is None else _slider("Uncertainty", 'data-layer="2"', 0),
        _slider("Cut in 3D", 'id="viewer-cut"', 0),
        "</div>",
        "<p>Click a structure in the table to go there, or its eye to hide it or show it again; drag in 3D to "
        f"turn. With the scan at 0, only the structures are shown.{_hidden(shown.case.labels)}</p>",
        "</section>",
    ]


def _hidden(labels: Sequence[Label]) -> str:
    names = ", ".join(page_text(label.name) for label in labels if not label.opacity_3d)
    return f" Hidden at first, because it would hide the rest in 3D: {names}." if names else ""


def _slider(name: str, what: str, value: float) -> str:
    step = f'min="0" max="1" step="0.02" value="{value}"'
    return f'<label>{name} <input {what} type="range" {step}></label>'


def scripts(shown: Shown) -> list[str]:
    """Return the scripts and data of the viewer, for the end of the page."""
    case = shown.case
    assert case.image is not None
    layers = [_scan(case.image), _structures(case)]
    if shown.entropy is not None:
        layers.append(_doubt(shown.entropy))
    names = ["", *(label.name for label in case.labels)]
    data = json.dumps({"names": names, "layers": layers}).replace("<", "\\u003c")
    licence = page_text((NIIVUE / LICENCE).read_text(encoding="utf-8"))
    return [
        f"<details><summary>Licence of NiiVue, which draws the viewer</summary><pre>{licence}</pre></details>",
        f'<script type="application/json" id="viewer-data">{data}</script>',
        f"<script>{_script(NIIVUE / SCRIPT)}</script>",
        f"<script>{_script(HERE / 'viewer.js')}</script>",
    ]


def _script(path: Path) -> str:
    """Return a script that can be put into a page, because it does not contain the end tag."""
    return (
        path.read_text(encoding="utf-8").replace("</script", "<\\/script").replace("<!--", "<\\!--")
    )


def _scan(image: Volume) -> Mapping[str, Any]:
    voxels = np.nan_to_num(image.voxels.astype(np.float32))
    low, high = np.percentile(voxels, BRIGHTNESS)
    layer = image.with_voxels(_steps(voxels - low, high - low))
    return {"name": "scan", "colormap": "gray", "highest": STEPS, "opacity": 1, **_packed(layer)}


def _structures(case: Case) -> Mapping[str, Any]:
    red, green, blue = zip((0, 0, 0), *(label.color for label in case.labels), strict=True)
    colors = {
        "R": red,
        "G": green,
        "B": blue,
        "A": (0, *(255 if label.opacity_3d else 0 for label in case.labels)),
        "I": list(range(len(case.labels) + 1)),
        "labels": ("", *(label.name for label in case.labels)),
    }
    values = [label.value for label in case.labels]
    layer = case.labelmap.with_voxels(numbered(case.labelmap.voxels, values))
    highest = len(case.labels)
    named = {"name": "structures", "colormap": "gray", "highest": highest, "opacity": 0.5}
    return {**named, "colors": colors, **_packed(layer)}


def _doubt(entropy: Volume) -> Mapping[str, Any]:
    voxels = np.nan_to_num(entropy.voxels.astype(np.float32))
    layer = entropy.with_voxels(_steps(voxels, float(voxels.max())))
    return {
        "name": "uncertainty",
        "colormap": "hot",
        "highest": STEPS,
        "opacity": 0,
        **_packed(layer),
    }


def _steps(voxels: NDArray[np.float32], highest: float) -> NDArray[np.uint8]:
    """Return values from 0 to `highest` in 256 steps."""
    scaled = voxels * np.float32(STEPS / highest if highest > 0 else 0)
    return np.rint(scaled.clip(0, STEPS)).astype(np.uint8)


def _packed(volume: Volume) -> Mapping[str, str]:
    """Return a volume as a compressed NIfTI in base64."""
    with PrivateFolder("viewer") as folder:
        path = folder / "volume.nii.gz"
        write_volume(path, volume)
        return {"base64": base64.b64encode(path.read_bytes()).decode()}
