"""The report's figures of speed, rest, distances between runs and loss over time, one function each.

Every function takes one experiment or several, `[(name, Measures), ...]`, to lay over one another, and
returns a matplotlib `Figure`, or None if what it needs was not recorded. Titles say what is seen in the
numbers at hand. The token set is the dead tokens, or all where an experiment has no dead ones. Epoch bands
are (name, first step, last step). `gallery` has the captions.

Shape suffixes: R rows.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from flannel_pl.analysis.drawing.colors import color_of, legend
from flannel_pl.analysis.drawing.panels import (
    SHADE,
    STYLE,
    Band,
    add_bands,
    add_legend,
    change_of,
    draw_curves,
    draw_line,
    new_figure,
)
from flannel_pl.analysis.statistics.curves import Curve, curves_of, distances_of
from flannel_pl.analysis.statistics.epochs import FROZEN_FRACTION
from flannel_pl.analysis.statistics.groups import Experiments, Group, groups_and_set, groups_of
from flannel_pl.analysis.words import in_words
from flannel_pl.arrays import Array

LOSS_WINDOW = 25
"""Rows over which a loss is averaged; one batch says little."""

SMALLEST_SPEED = 1e-5
"""Lower end of the speed's axis, as a part of the highest speed."""


@matplotlib.rc_context(dict(STYLE))
def speed(experiments: Experiments, *, token_set: str = "dead", bands: Sequence[Band] = ()) -> Figure | None:
    """Draws token speed, centroid speed and thermal speed, means over runs, on a logarithmic axis.

    Args and Returns as of `radii.radius`. Several experiments share the line styles and have a colour each.
    """
    groups, token_set = groups_and_set(experiments, token_set)
    names = {
        "token_speed": (r"tokens  mean$|dw_i|$", "-", "#1f7fc4"),
        "centroid_speed": (r"centroid  $|dc|$", "--", "#d55e00"),
        "thermal_speed": (r"without the centroid's  mean$|dw_i - dc|$", ":", "#0a9a72"),
    }
    found = {name: curves_of(groups, token_set, name) for name in names}
    found = {name: curves for name, curves in found.items() if any(_highest(curve) > 0 for curve in curves)}
    if not found:
        return None
    if len(groups) > 1:
        found.pop("thermal_speed", None)  # three lines of each are more than one can follow
    figure, (axes,) = new_figure(_speed_title(found, token_set), height=4.2)
    highest = max(_highest(curve) for curves in found.values() for curve in curves)
    axes.set_yscale("log")
    for name, curves in found.items():
        label, linestyle, color = names[name]
        if len(groups) == 1:
            draw_curves(axes, curves, color=color, linestyle=linestyle, label=label, each=False, spread=False)
        else:
            draw_curves(axes, curves, linestyle=linestyle, each=False, spread=False, label="")
            axes.plot([], [], color=SHADE, linestyle=linestyle, label=label)
    for group in groups if len(groups) > 1 else ():
        axes.plot([], [], color=color_of(group), label=legend(group.name))
    axes.set_ylim(SMALLEST_SPEED * highest, 1.6 * highest)
    axes.set_ylabel(f"length of a step{_spacing(groups)}")
    add_bands([axes], bands)
    add_legend(axes)
    return figure


def _speed_title(found: dict[str, list[Curve]], token_set: str) -> str:
    title = f"Speed of {in_words(token_set)}"
    curves = found.get("token_speed", [])
    if len(curves) != 1:
        return title
    mean_R = curves[0].mean_R
    values = mean_R[np.isfinite(mean_R)]
    title = f"{title}: {values[0]:.2g} in the first step"
    end = "none" if values[-1] == 0 else f"{values[-1]:.2g}"
    return f"{title}, {end} in the last" if len(values) > 1 else title


@matplotlib.rc_context(dict(STYLE))
def frozen(experiments: Experiments, *, token_set: str = "dead", bands: Sequence[Band] = ()) -> Figure | None:
    """Draws which fraction of the tokens did not change by a bit in a step, above the learning rate.

    Args and Returns as of `radii.radius`.
    """
    groups, token_set = groups_and_set(experiments, token_set)
    curves = curves_of(groups, token_set, "frozen_fraction")
    if not curves:
        return None
    title = f"Frozen among {in_words(token_set)}"
    if len(curves) == 1:
        mean_R = curves[0].mean_R
        last = np.flatnonzero(np.isfinite(mean_R))[-1]
        title = f"Of {in_words(token_set)}, {mean_R[last]:.0%} stand still at step {curves[0].steps_R[last]}"
        over = np.flatnonzero(mean_R > FROZEN_FRACTION)
        if len(over):
            title += f"; over {FROZEN_FRACTION:.0%} first at step {curves[0].steps_R[over[0]]}"
    figure, (axes,) = new_figure(title, height=4.2)
    draw_curves(axes, curves)
    axes.axhline(FROZEN_FRACTION, color=SHADE, linewidth=0.8, linestyle="--")
    axes.text(
        1,
        FROZEN_FRACTION,
        f" {FROZEN_FRACTION:.0%}",
        transform=axes.get_yaxis_transform(),
        fontsize=8.5,
        va="center",
    )
    _draw_learning_rate(axes, groups)
    axes.set_ylim(-0.02, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel("frozen tokens")
    add_bands([axes], bands)
    add_legend(axes)
    return figure


def _draw_learning_rate(axes: Axes, groups: Sequence[Group]) -> None:
    """Draws the learning rate, if all runs have the same schedule: tokens also freeze because it ends."""
    rate = shared_rate(groups)
    if rate is not None:
        draw_line(axes, *rate, color=SHADE, linestyle=":", label="learning rate (100% = highest)")


def shared_rate(groups: Sequence[Group]) -> tuple[Array, Array] | None:
    """Returns steps and learning rate as a part of its highest; None unless all runs have the same."""
    run, *others = (run for group in groups for run in group.runs)
    rate_R = run.scalars.get("learning_rate", np.zeros(1))
    alike = all(
        np.array_equal(rate_R, other.scalars.get("learning_rate", np.zeros(1)), equal_nan=True)
        for other in others
    )
    if not alike or not np.nan_to_num(rate_R).max() > 0:
        return None
    return run.steps_R, rate_R / np.nanmax(rate_R)


@matplotlib.rc_context(dict(STYLE))
def divergence(
    experiments: Experiments, *, token_set: str = "dead", bands: Sequence[Band] = ()
) -> Figure | None:
    """Draws the distances between runs, their mean, and how far runs are from their own starts.

    Args and Returns as of `radii.radius`; None without two runs that differ in nothing but their seed.
    """
    groups, token_set = groups_and_set(experiments, token_set)
    curves = [pair for group in groups if (pair := distances_of(group, token_set)) is not None]
    if not curves:
        return None
    title = f"Distance between runs, over {in_words(token_set)}"
    if len(curves) == 1:
        title = f"Distance between runs {change_of(curves[0][0])} ({in_words(token_set)})"
    figure, (axes,) = new_figure(title, height=4.2)
    alone = len(curves) == 1
    for distance, evolution in curves:
        group = distance.group
        pairs = len(distance.values_NR)
        label = f"between runs, mean of {pairs} pairs" if pairs > 1 else "between the two runs"
        draw_curves(axes, [distance], label=label if alone else legend(group.name), each=alone)
        draw_curves(
            axes,
            [evolution],
            color=None if not alone else "#d55e00",
            each=False,
            linestyle="--",
            label="from a run's own start, mean" if alone else "",
        )
    if not alone:
        axes.plot([], [], color=SHADE, label="between runs")
        axes.plot([], [], color=SHADE, linestyle="--", label="from a run's own start")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("Frobenius distance")
    add_bands([axes], bands)
    add_legend(axes)
    return figure


@matplotlib.rc_context(dict(STYLE))
def loss(experiments: Experiments, *, token_set: str = "dead", bands: Sequence[Band] = ()) -> Figure | None:
    """Draws the loss of each step's batch, and its running mean.

    Args and Returns as of `radii.radius`; the loss is of the model, whatever the token set.
    """
    groups = groups_of(experiments)
    curves = curves_of(groups, None, "loss")
    if not curves:
        return None
    window = min(LOSS_WINDOW, 1 + len(curves[0].steps_R) // 10)
    means = [curve.smoothed(window) for curve in curves]
    title = "Loss"
    if len(curves) == 1:
        title = f"Loss {change_of(curves[0])}, {np.nanmean(curves[0].mean_R):.3f} on average"
    figure, (axes,) = new_figure(title, height=4.0)
    if len(curves) == 1:
        draw_curves(axes, curves, color=SHADE, mean=False)
    draw_curves(axes, means)
    axes.set_ylabel("cross-entropy (nats)")
    add_bands([axes], bands)
    add_legend(axes, inside="upper right")
    return figure


def _highest(curve: Curve) -> float:
    return float(np.nanmax(curve.values_NR))


def _spacing(groups: Sequence[Group]) -> str:
    """Returns what a recorded row's motion is over, unless that is one step."""
    steps_R = groups[0].runs[0].steps_R
    every = int(steps_R[1] - steps_R[0]) if len(steps_R) > 1 else 1
    return "" if every == 1 else f" (over {every} steps)"
