"""The report's figures of all tokens at once, like those of `figures`: phases of life, jumps on the lattice.

Shape suffixes: R rows, B bins, C columns of the heat map.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from flannel_pl.analysis.drawing.colors import legend
from flannel_pl.analysis.drawing.panels import SHADE, STYLE, Band, add_legend, new_figure
from flannel_pl.analysis.measuring.lifecycle import PHASES, phase_fractions
from flannel_pl.analysis.statistics.groups import Experiments, Group, groups_and_set
from flannel_pl.analysis.words import in_words
from flannel_pl.arrays import Array
from flannel_pl.metrics.lattice import HISTOGRAM_EDGES

MAX_PANELS = 6
"""Of a figure with a panel for each group."""

MAX_COLUMNS = 500
"""Of the heat map; rows beyond that are counted together."""

PHASE_COLORS = dict(zip(PHASES, ("#d55e00", "#d9a83c", "#4f9fd0", "#7a8089"), strict=True))


@matplotlib.rc_context(dict(STYLE))
def lifecycle(
    experiments: Experiments, *, token_set: str = "dead", bands: Sequence[Band] = ()
) -> Figure | None:
    """Draws the fractions of tokens in each phase of life as areas, a panel for each group of runs.

    Args and Returns as of `radii.radius`; bands are not drawn, and at most six groups are.
    """
    groups, token_set = groups_and_set(experiments, token_set)
    groups = with_lives(groups, token_set)
    if not groups:
        return None
    shown = groups[:MAX_PANELS]
    title = f"Phases of life of {in_words(token_set)}" + _shown(shown, groups)
    fractions = [mean_fractions(group, token_set) for group in shown]
    if len(shown) == 1:
        over = np.flatnonzero(fractions[0]["fimbulwinter"] > 0.5)
        title = f"Fewer than half of {in_words(token_set)} come to rest before the recording ends"
        if len(over):
            step = shown[0].runs[0].steps_R[over[0]]
            title = f"Half of {in_words(token_set)} have come to rest by step {step}, as far as is recorded"
    figure, panels = new_figure(title, len(shown), height=2.2 + 1.6 * len(shown))
    for axes, group, areas in zip(panels, shown, fractions, strict=True):
        steps_R = group.runs[0].steps_R[: len(areas["early"])]
        axes.stackplot(
            steps_R,
            *areas.values(),
            labels=[name.capitalize() for name in areas],
            colors=PHASE_COLORS.values(),
        )
        axes.set_xlim(steps_R[0], max(steps_R[-1], steps_R[0] + 1))
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        if len(groups) > 1:
            axes.set_title(legend(group.name), loc="left", fontsize=10)
    panels[len(panels) // 2].set_ylabel("tokens in the phase")
    add_legend(panels[-1], columns=4)
    return figure


def with_lives(groups: Sequence[Group], token_set: str) -> list[Group]:
    """Returns the groups of whose tokens the phases of life are known."""
    return [
        group
        for group in groups
        if all(token_set in run.tokens and len(run.steps_R) > 1 for run in group.runs)
    ]


def mean_fractions(group: Group, token_set: str) -> dict[str, Array]:
    """Returns the part of the tokens in each phase, (R,), mean over runs."""
    num_rows = min(len(run.steps_R) for run in group.runs)
    runs = [phase_fractions(run.tokens[token_set], run.moved_R[:num_rows]) for run in group.runs]
    return {name: np.mean([fractions[name] for fractions in runs], axis=0) for name in PHASES}


@matplotlib.rc_context(dict(STYLE))
def displacement_map(
    experiments: Experiments, *, token_set: str = "dead", bands: Sequence[Band] = ()
) -> Figure | None:
    """Draws how many lattice points tokens jump over, as a heat map over time; a panel for each group.

    Args and Returns as of `radii.radius`; bands are not drawn, and at most six groups are.
    """
    groups, token_set = groups_and_set(experiments, token_set)
    groups = [group for group in groups if counts_of(group, token_set).any()]
    if not groups:
        return None
    shown = groups[:MAX_PANELS]
    title = f"How far {in_words(token_set)} jump on the lattice of their number format{_shown(shown, groups)}"
    figure, panels = new_figure(title, len(shown), height=4.2 if len(shown) == 1 else 1.4 + 2.0 * len(shown))
    counts = [counts_of(group, token_set) for group in shown]
    num_bins = 1 + max(int(np.flatnonzero(counts_RB.any(axis=0))[-1]) for counts_RB in counts)
    smallest = min(1 / counts_RB.sum(axis=1).max() for counts_RB in counts)
    scale = LogNorm(max(smallest, 1e-5) / 2, 1)
    for axes, group, counts_RB in zip(panels, shown, counts, strict=True):
        _draw_heat_map(axes, group.runs[0].steps_R, counts_RB[:, :num_bins], scale)
        reach = reach_of(group)
        axes.axhline(reach, color=SHADE, linewidth=1, linestyle="--")
        axes.text(1, reach, r"$\sqrt{D}$ ", transform=axes.get_yaxis_transform(), ha="right", va="bottom")
        if len(groups) > 1:
            axes.set_title(legend(group.name), loc="left", fontsize=10)
    panels[len(panels) // 2].set_ylabel(r"displacement $|dW'|_2$ (ULP)")
    bar = figure.colorbar(ScalarMappable(scale, "viridis"), ax=panels, pad=0.02, aspect=30)
    bar.set_label("fraction of tokens")
    return figure


def counts_of(group: Group, token_set: str) -> Array:
    """Returns the tokens of all runs by their displacement, (R, B)."""
    runs = [run.histogram.get(token_set) for run in group.runs]
    there = [counts_RB for counts_RB in runs if counts_RB is not None]
    if not there:
        return np.zeros((0, len(HISTOGRAM_EDGES) - 1))
    num_rows = min(len(counts_RB) for counts_RB in there)
    total: Array = np.sum([counts_RB[:num_rows] for counts_RB in there], axis=0)
    return total


def _draw_heat_map(axes: Axes, steps_R: Array, counts_RB: Array, scale: LogNorm) -> None:
    """Draws counts of tokens; each column is the motion from one edge to the next."""
    edges, fractions_CB = binned(steps_R, counts_RB)
    num_bins = fractions_CB.shape[1]
    shown_BC = np.ma.masked_equal(fractions_CB.T, 0)
    axes.pcolormesh(edges, np.arange(num_bins + 1), shown_BC, norm=scale, cmap="viridis", rasterized=True)
    axes.grid(visible=False)
    every = max(1, num_bins // 7)
    powers = range(0, num_bins - 2, every)
    axes.set_yticks(
        [0.5, *(power + 2 for power in powers)], ["frozen", *(_power_of_two(power) for power in powers)]
    )


def reach_of(group: Group) -> float:
    """Returns where the square root of D is among the bins, counted from the first one's lower edge."""
    edges = np.log2(HISTOGRAM_EDGES[1:-1])
    return float(np.interp(np.log2(np.sqrt(group.dim)), edges, np.arange(1, 27)))


def binned(steps_R: Array, counts_RB: Array) -> tuple[Array, Array]:
    """Returns the steps between columns, (C + 1,), and the part of the tokens in each cell, (C, B)."""
    moves = np.arange(1, len(counts_RB))  # nothing moved to row 0
    columns = np.array_split(moves, min(len(moves), MAX_COLUMNS))
    counts_CB = np.array([counts_RB[rows].sum(axis=0) for rows in columns], np.float64)
    totals_C1 = counts_CB.sum(axis=1, keepdims=True)
    fractions_CB = np.divide(counts_CB, totals_C1, out=np.zeros_like(counts_CB), where=totals_C1 > 0)
    return steps_R[[0, *(rows[-1] for rows in columns)]], fractions_CB


def _shown(shown: Sequence[Group], groups: Sequence[Group]) -> str:
    return "" if len(shown) == len(groups) else f", the first {len(shown)} of {len(groups)} groups of runs"


def _power_of_two(power: int) -> str:
    return f"{2**power:,}" if power <= 12 else f"$2^{{{power}}}$"
