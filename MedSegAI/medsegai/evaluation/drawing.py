"""Empty figures of matplotlib, if it is installed."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, BinaryIO

logger = logging.getLogger(__name__)


def new_figure(width: float, height: float) -> Any:
    """Create an empty figure of matplotlib, in inches; without matplotlib, this is logged and None is returned."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning(
            "Curves were not drawn, because matplotlib is not installed. Run pip install 'medsegai[train]'."
        )
        return None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, file: Path | BinaryIO) -> None:
    """Save a figure of `new_figure` as a PNG; characters of names that no font has are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(file, format="png", dpi=110)
