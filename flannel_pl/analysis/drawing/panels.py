"""What the figures have in common: their style, lines, epoch bands, and how they become files.

Matplotlib's object-oriented interface only; nothing here or in `figures` touches pyplot's global state.

Shape suffixes: R rows, N runs, K rows that are drawn.
"""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flannel_pl.analysis.drawing.colors import color_of, legend
from flannel_pl.analysis.statistics.curves import Curve
from flannel_pl.analysis.statistics.groups import Group
from flannel_pl.analysis.statistics.series import mean_and_std
from flannel_pl.arrays import Array
from flannel_pl.recording.writing.disk import write_file

Place = Literal["lower right", "upper left", "upper right"]

Band = tuple[str, int, int]
"""An epoch: name, first step, last step."""

INK, PAPER = "#20242a", "#ffffff"
"""Text and axes, background. `for_page` replaces them by the page's own; no line is drawn in them."""

SHADE = "#808080"
WIDTH_INCHES = 4.5
"""Narrow, so that 10 point letters are still as large as on paper where a phone shows it."""

MAX_VECTOR_POINTS = 40_000
"""Of all thin lines of a panel together; beyond that they are stored as pixels."""

LETTER_WIDTH = 0.0188
"""Of an epoch's name, as a part of a panel's width."""

MAX_INSIDE = 1
"""Lines of a legend that have a place in a panel."""

LEGEND_LINE_INCHES = 0.18

FEW_ROWS = 25
"""Up to so many rows are drawn as points, which makes a single one visible."""

MAX_POINTS = 600
"""Of a line; a panel is some 350 points wide."""

STYLE: Mapping[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so files are the same on every host
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.use_mathtext": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "flannel-pl",
    "path.simplify": True,
}


def draw_line(axes: Axes, steps_R: Array, values_R: Array, **style: Any) -> None:
    """Draws a series, with points if it has few rows."""
    rows = thinned(values_R)
    if len(rows) <= FEW_ROWS:
        style = {"marker": "o", "markersize": 3.5, **style}
    axes.plot(steps_R[rows], values_R[rows], **style)


def draw_curves(
    axes: Axes,
    curves: Sequence[Curve],
    *,
    color: str | None = None,
    linestyle: str = "-",
    label: str | None = None,
    each: bool = True,
    mean: bool = True,
    spread: bool = True,
) -> None:
    """Draws runs as thin lines, their mean as a thick one, and mean +- standard deviation as an area.

    Args:
        axes: Where.
        curves: Of one or more groups.
        color: Instead of the group's.
        linestyle: Of the mean.
        label: What the legend calls the mean; the group if None.
        each: Whether every run is drawn.
        mean: Whether the mean is.
        spread: Whether the area is; a logarithmic axis has no place for a mean - std below 0.
    """
    for curve in curves:
        hue, steps_R = color or color_of(curve.group), curve.steps_R
        mean_R, std_R = mean_and_std(curve.values_NR)
        rows = thinned(mean_R)
        if spread and len(curve.values_NR) > 1:
            low, high = (mean_R - std_R)[rows], (mean_R + std_R)[rows]
            axes.fill_between(steps_R[rows], low, high, color=hue, alpha=0.22, linewidth=0)
        if each and not (mean and len(curve.values_NR) == 1):
            pixels = curve.values_NR.size > MAX_VECTOR_POINTS
            alpha = 0.45 * min(1.0, (10 / len(curve.values_NR)) ** 0.5)
            thin = {"color": hue, "linewidth": 0.6, "alpha": alpha, "rasterized": pixels}
            for values_R in curve.values_NR:
                draw_line(axes, steps_R, values_R, **thin)
        if mean:
            words = describe_group(curve.group, alone=len(curves) == 1) if label is None else label
            draw_line(axes, steps_R, mean_R, color=hue, linestyle=linestyle, label=words)


def describe_group(group: Group, *, alone: bool) -> str:
    """Returns a group's words in a legend."""
    if len(group.runs) == 1:
        return legend(group.runs[0].label) if alone else legend(group.name)
    words = f"mean of {len(group.runs)} runs"
    return f"{words} \u00b1 standard deviation" if alone else f"{legend(group.name)}, {words}"


def change_of(curve: Curve) -> str:
    """Returns how the mean over runs gets from its first value to its last."""
    values = curve.mean_R[np.isfinite(curve.mean_R)]
    first, last = f"{values[0]:#.3g}", f"{values[-1]:#.3g}"
    if len(values) == 1:
        return f"is {first}"
    if first == last:
        return f"begins and ends at {first}"
    return f"{'grows' if values[-1] > values[0] else 'falls'} from {first} to {last}"


def new_figure(title: str, panels: int = 1, *, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """Makes a figure of panels above one another that share the steps.

    Args:
        title: What is seen; wrapped.
        panels: How many.
        height: Of the figure, in inches.

    Returns:
        The figure, and its axes from top to bottom.
    """
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    figure.suptitle(textwrap.fill(title, 44), x=0.02, ha="left", fontsize=11, fontweight="bold")
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.06)  # type: ignore[union-attr, call-arg]
    for one in axes:
        one.grid(visible=True, color=SHADE, alpha=0.25, linewidth=0.6)
        one.set_axisbelow(True)
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    return figure, list(axes)


def add_legend(axes: Axes, *, inside: Place | None = None, columns: int | None = None) -> None:
    """Adds a legend below the figure, which grows by it; none if there is nothing to tell apart.

    Args:
        axes: Whose lines are named.
        inside: A place in the panel instead, such as "upper left", if the legend is short.
        columns: Of the legend; as many as fit if None.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    if inside is not None and len(labels) <= MAX_INSIDE:
        axes.legend(handles, labels, loc=inside)
        return
    figure = axes.figure
    assert isinstance(figure, Figure)
    columns = columns or (2 if max(len(label) for label in labels) < 24 else 1)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE_INCHES * len(labels) / columns)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def add_bands(panels: Sequence[Axes], bands: Sequence[Band]) -> None:
    """Shades epochs in all panels and names them above the first, as far as they are in sight.

    The first epochs are a few steps of a thousand: a name stands beside its epoch if there is no place
    above it, and a line leads there.
    """
    top = panels[0]
    low, high = top.get_xlim()
    seen = [
        (name, max(first, low), min(last, high))
        for name, first, last in bands
        if low <= last and first < high
    ]
    for number, (_, first, last) in enumerate(seen):
        for axes in panels:
            if number % 2 == 0:
                axes.axvspan(first, last, color=SHADE, alpha=0.16, linewidth=0, zorder=0)
            axes.axvline(first, color=SHADE, alpha=0.6, linewidth=0.6, zorder=0)
    top.set_xlim(low, high)
    middles = [((first + last) / 2 - low) / (high - low) for _, first, last in seen]
    places = _places(middles, [name for name, _, _ in seen])
    for (name, _, _), middle, place in zip(seen, middles, places, strict=True):
        top.annotate(
            name,
            xy=(middle, 1.0),
            xytext=(place, 1.06),
            xycoords="axes fraction",
            textcoords="axes fraction",
            ha="center",
            va="bottom",
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": SHADE, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 0},
        )


def _places(middles: Sequence[float], names: Sequence[str]) -> list[float]:
    """Returns where the names go, near `middles` but beside each other, as fractions of a panel's width."""
    widths = [(len(name) + 2.5) * LETTER_WIDTH for name in names]
    places: list[float] = []
    taken = -0.05
    for middle, width in zip(middles, widths, strict=True):
        places.append(max(middle, taken + width / 2))
        taken = places[-1] + width / 2
    free = 1.05
    for number in reversed(range(len(places))):
        places[number] = min(places[number], free - widths[number] / 2)
        free = places[number] - widths[number] / 2
    return places


def save(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Writes a figure as PNG (150 dots per inch) and SVG; the same figure gives the same bytes.

    Args:
        figure: From `figures`.
        path: Of the files, without suffix.

    Returns:
        The two paths.

    Raises:
        RunError: If the disk fails.
    """
    png, svg = path.parent / f"{path.name}.png", path.parent / f"{path.name}.svg"
    with matplotlib.rc_context(dict(STYLE)):
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
        write_file(png, content.getvalue())
        figure.set_layout_engine("none")  # the layout is found; once more would take as long as all the rest
        write_file(svg, _svg(figure))
    return png, svg


def for_page(file: str) -> str:
    """Returns the SVG of a page: text and axes in the page's colour, and no background.

    Args:
        file: Content of an SVG file that `save` wrote.

    Returns:
        An `svg` element, in which `currentColor` stands for the colour of text.
    """
    svg = file[file.index("<svg") :]
    return svg.replace(f"fill: {PAPER}", "fill: none").replace(INK, "currentColor")


def _svg(figure: Figure) -> bytes:
    content = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(content, format="svg", dpi=150, metadata=nothing)
    return re.sub(rb' d="[^"]*"', _rounded, content.getvalue())


def _rounded(path: re.Match[bytes]) -> bytes:
    """Returns a path's coordinates with two decimals instead of six, which halves a file."""
    return re.sub(rb"(\.\d\d)\d+", rb"\1", path[0])


def thinned(values_R: Array, max_points: int = MAX_POINTS) -> Array:
    """Returns the rows that a line has to go through to look the same: of every stretch the extremes.

    Args:
        values_R: A series, perhaps with NaN.
        max_points: About so many are kept.

    Returns:
        (K,) ascending positions, the first and the last among them.

    Example:
        >>> thinned(np.array([0.0, 1.0, 9.0, 1.0, 0.0, 1.0]), max_points=4).tolist()
        [0, 2, 3, 4, 5]
    """
    num_rows = len(values_R)
    if num_rows <= max_points:
        return np.arange(num_rows)
    keep = {0, num_rows - 1}
    for rows in np.array_split(np.arange(num_rows), max_points // 2):
        part = values_R[rows]
        keep.add(int(rows[np.argmin(np.where(np.isnan(part), np.inf, part))]))
        keep.add(int(rows[np.argmax(np.where(np.isnan(part), -np.inf, part))]))
    return np.array(sorted(keep))
