"""Empty figures of matplotlib, if it is installed."""

from __future__ import annotations

import logging
from typing import Any

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
