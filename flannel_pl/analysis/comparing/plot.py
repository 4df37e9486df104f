"""Draws how far two recordings are apart, row by row.

Shape suffixes: R rows that both have.
"""

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flannel_pl.analysis.comparing.compare import Comparison, RunComparison
from flannel_pl.analysis.drawing.curves import COLORS
from flannel_pl.analysis.drawing.panels import STYLE, add_legend, new_figure
from flannel_pl.recording.disk import write_file
from flannel_pl.recording.tensors import Array

PANEL_HEIGHT_INCHES = 1.8
MANY_ROWS = 2_000
"""From here on lines are stored as pixels: as curves they make an SVG of megabytes."""


@matplotlib.rc_context(dict(STYLE))
def draw(comparison: Comparison) -> Figure:
    """Draws the Frobenius distance of every row, a panel for each tensor of floats that differs.

    Rows that are equal, or have no distance because of a NaN, are gaps; the axis is logarithmic.

    Args:
        comparison: From `compare`.

    Returns:
        The figure; of equal recordings an empty one whose title says so.

    Example:
        >>> from flannel_pl.analysis.comparing.compare import compare
        >>> figure = draw(compare("runs/flannel1", "runs/flannel3", runs=[(0, 1)]))
        >>> figure.get_suptitle()
        'Frobenius distance between A and B'
    """
    lines: dict[str, list[tuple[int, RunComparison, Array]]] = {}
    for number, run in enumerate(comparison.runs):
        for tensor in run.tensors:
            if tensor.distance_R is not None and tensor.num_differing:
                lines.setdefault(tensor.name, []).append((number, run, tensor.distance_R))
    title = "Frobenius distance between A and B" if lines else "A and B are equal in every row of every float"
    num_panels = max(1, len(lines))
    figure, panels = new_figure(title, num_panels, height=1 + PANEL_HEIGHT_INCHES * num_panels)
    few = len(comparison.runs) <= len(COLORS)
    for axes, (name, drawn) in zip(panels, lines.items(), strict=False):
        axes.set_yscale("log")
        axes.set_ylabel(name)
        for number, run, distance_R in drawn:
            _draw(axes, run.steps_R, distance_R, color=COLORS[number if few else 0])
    if few and len(comparison.runs) > 1:
        for number, run in enumerate(comparison.runs):  # not every panel has a line of every run
            panels[0].plot([], [], color=COLORS[number], label=_label(run))
        add_legend(panels[0])
    return figure


def save_plot(comparison: Comparison, path: Path) -> None:
    """Writes the figure.

    Args:
        comparison: From `compare`.
        path: Ends in .png or .svg.

    Raises:
        RunError: If the disk fails.
    """
    figure, kind = draw(comparison), path.suffix.removeprefix(".")
    content = io.BytesIO()
    with matplotlib.rc_context(dict(STYLE)):
        nothing = {"Date": None} if kind == "svg" else {"Software": None}  # equal figures, equal bytes
        figure.savefig(content, format=kind, dpi=150, metadata=nothing)
    write_file(path, content.getbuffer())


def _draw(axes: Axes, steps_R: Array, distance_R: Array, *, color: str) -> None:
    visible_R = np.isfinite(distance_R) & (distance_R > 0)
    padded = np.concatenate([[False], visible_R, [False]])
    alone_R = visible_R & ~padded[:-2] & ~padded[2:]  # no line leads to these
    values_R = np.where(visible_R, distance_R, np.nan)
    rasterized = len(steps_R) > MANY_ROWS
    axes.plot(steps_R, values_R, color=color, linewidth=1.2, rasterized=rasterized)
    style: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 3.5, "rasterized": rasterized}
    axes.plot(steps_R[alone_R], distance_R[alone_R], color=color, **style)
    axes.set_xlim(*_limits(steps_R))


def _limits(steps_R: Array) -> tuple[float, float]:
    """Returns all of the steps: where a line begins says when the recordings part."""
    margin = max(1.0, 0.02 * float(steps_R[-1] - steps_R[0]))
    return float(steps_R[0]) - margin, float(steps_R[-1]) + margin


def _label(run: RunComparison) -> str:
    a, b = run.runs
    return f"run {a}" if a == b else f"run {a} and run {b}"
