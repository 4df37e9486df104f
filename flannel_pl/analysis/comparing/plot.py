"""Draws how far two recordings are apart, row by row.

Shape suffixes: R rows that both have.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flannel_pl.analysis.comparing.compare import Comparison, RunComparison
from flannel_pl.analysis.drawing.colors import COLORS
from flannel_pl.analysis.drawing.panels import STYLE, add_legend, new_figure
from flannel_pl.arrays import Array
from flannel_pl.recording.writing.disk import write_file

PANEL_HEIGHT_INCHES = 1.8
MANY_ROWS = 2_000
"""From here on lines are stored as pixels: as curves they make an SVG of megabytes."""


@matplotlib.rc_context(dict(STYLE))
def draw(comparison: Comparison) -> Figure:
    """Draws the Frobenius distance of every row, a panel for each tensor of floats that differs.

    The axis is logarithmic. Rows that are equal are gaps; those with a distance that is infinite or NaN are
    crosses at the bottom.

    Args:
        comparison: From `compare`.

    Returns:
        The figure; an empty one if there is no distance, whose title says why.

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
    title = "Frobenius distance between A and B" if lines else _why_nothing(comparison)
    num_panels = max(1, len(lines))
    figure, panels = new_figure(title, num_panels, height=1 + PANEL_HEIGHT_INCHES * num_panels)
    few = len(comparison.runs) <= len(COLORS)
    for axes, (name, drawn) in zip(panels, lines.items(), strict=False):
        axes.set_ylabel(name)
        if any(_visible(distance_R).any() for _, _, distance_R in drawn):
            axes.set_yscale("log")
        else:
            axes.set_yticks([])
        if notes := _notes([distance_R for _, _, distance_R in drawn]):
            axes.set_title(notes, loc="right", fontsize="small")
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
    write_file(path, content.getvalue())


def _draw(axes: Axes, steps_R: Array, distance_R: Array, *, color: str) -> None:
    visible_R = _visible(distance_R)
    padded = np.concatenate([[False], visible_R, [False]])
    alone_R = visible_R & ~padded[:-2] & ~padded[2:]  # no line leads to these
    values_R = np.where(visible_R, distance_R, np.nan)
    rasterized = len(steps_R) > MANY_ROWS
    axes.plot(steps_R, values_R, color=color, linewidth=1.2, rasterized=rasterized)
    style: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 3.5, "rasterized": rasterized}
    axes.plot(steps_R[alone_R], distance_R[alone_R], color=color, **style)
    crosses_R = steps_R[~np.isfinite(distance_R)]
    if len(crosses_R):
        bottom = axes.get_xaxis_transform()  # there 0 is the lower edge, whatever the axis shows
        style |= {"marker": "x", "transform": bottom, "clip_on": False}
        axes.plot(crosses_R, np.zeros(len(crosses_R)), color=color, **style)
    axes.set_xlim(*_limits(steps_R))


def _visible(distance_R: Array) -> Array:
    """Tells which rows have a place on a logarithmic axis."""
    visible_R: Array = np.isfinite(distance_R) & (distance_R > 0)
    return visible_R


def _notes(distances: Sequence[Array]) -> str:
    """Says what a reader of the panel could not know."""
    if not all(np.isfinite(distance_R).all() for distance_R in distances):
        return "x: infinite or NaN"
    if not any(distance_R.any() for distance_R in distances):
        return "every distance is 0: 0.0 and -0.0 differ in their bits alone"
    return ""


def _why_nothing(comparison: Comparison) -> str:
    whole = all(not run.not_compared and all(not x.left_out for x in run.tensors) for run in comparison.runs)
    if whole:
        return "A and B are equal in every row of every float"
    return "There is no distance: what can be compared is equal"


def _limits(steps_R: Array) -> tuple[float, float]:
    """Returns all of the steps: where a line begins says when the recordings part."""
    margin = max(1.0, 0.02 * float(steps_R[-1] - steps_R[0]))
    return float(steps_R[0]) - margin, float(steps_R[-1]) + margin


def _label(run: RunComparison) -> str:
    a, b = run.runs
    return f"run {a}" if a == b else f"run {a} and run {b}"
