"""The report's figures of curves over time, one function each.

Every function takes one experiment or several, `[(name, Measures), ...]`, to lay over one another, and
returns a matplotlib `Figure`, or None if what it needs was not recorded. Titles say what is seen in the
numbers at hand. The token set is the dead tokens, or all where an experiment has no dead ones. Epoch bands
are (name, first step, last step). `gallery` has the captions.

Shape suffixes: R rows, N runs.
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
    draw_curves,
    draw_line,
    new_figure,
)
from flannel_pl.analysis.statistics.curves import Curve, curves_of, distances_of
from flannel_pl.analysis.statistics.groups import Experiments, Group, groups_and_set, groups_of
from flannel_pl.analysis.statistics.series import smoothed
from flannel_pl.analysis.words import in_words
from flannel_pl.arrays import Array

INHALE_LAST_STEP = 10
SNEEZE_LAST_STEP = 120
VELOCITY_STEPS = 5
"""Of the box that smooths a velocity, as in upstream's rule A."""

LOSS_WINDOW = 25
"""Rows over which a loss is averaged; one batch says little."""

SMALLEST_SPEED = 1e-5
"""Lower end of the speed's axis, as a part of the highest speed."""

ORIGIN_RADIUS = r"origin radius  mean$|w_i|$"


@matplotlib.rc_context(dict(STYLE))
def radius(experiments: Experiments, *, token_set: str = "dead", bands: Sequence[Band] = ()) -> Figure | None:
    """Draws origin radius and centroid radius over time: all runs, mean +- std, the epochs.

    Args:
        experiments: One, or several with their names.
        token_set: "dead", "live" or "all".
        bands: Epochs to shade.

    Returns:
        The figure; None without the radii.

    Example:
        >>> from pathlib import Path
        >>> from flannel_pl.analysis.drawing.panels import save
        >>> from flannel_pl.analysis.measuring.all_runs import measure_experiment
        >>> with flannel_pl.open_recording("runs/quickstart") as recording:
        ...     figure = radius(measure_experiment(recording), bands=[("inhale", 0, 2)])
        >>> png, svg = save(figure, Path("radius"))
    """
    groups, token_set = groups_and_set(experiments, token_set)
    origin = curves_of(groups, token_set, "origin_radius")
    centroid = curves_of(groups, token_set, "centroid_radius")
    if not origin or not centroid:
        return None
    title = f"Origin and centroid radius of {in_words(token_set)}"
    if len(groups) == 1:
        start = in_words(token_set).capitalize()
        title = f"{start}: origin radius {_change(origin[0])}, centroid radius {_change(centroid[0])}"
    figure, panels = new_figure(title, 2, height=5.6)
    draw_curves(panels[0], origin)
    draw_curves(panels[1], centroid)
    panels[0].set_ylabel(ORIGIN_RADIUS)
    panels[1].set_ylabel(r"centroid radius  mean$|w_i - c|$")
    add_bands(panels, bands)
    add_legend(panels[0], inside="lower right")
    return figure


@matplotlib.rc_context(dict(STYLE))
def inhale(experiments: Experiments, *, token_set: str = "dead", bands: Sequence[Band] = ()) -> Figure | None:
    """Draws how the origin radius changes in the first ten steps, in percent of row 0.

    Args and Returns as of `radius`; bands are not drawn, and None with fewer than three rows there.
    """
    groups, token_set = groups_and_set(experiments, token_set)
    curves = [curve.until(INHALE_LAST_STEP) for curve in curves_of(groups, token_set, "origin_radius")]
    curves = [curve.relative() for curve in curves if len(curve.steps_R) > 2]
    curves = [curve for curve in curves if curve.has_values]
    if not curves:
        return None
    title = f"Inhale: the origin radius of {in_words(token_set)} in the first steps"
    if len(curves) == 1:
        title = _inhale_title(curves[0], token_set)
    figure, (axes,) = new_figure(title)
    draw_curves(axes, curves)
    axes.axhline(0, color=SHADE, linewidth=0.8)
    depth = -min(float(np.nanmin(curve.values_NR)) for curve in curves)
    if depth > 0:  # the growth that follows is far larger than the dip
        axes.set_ylim(-1.25 * depth, 2 * depth)
        seen = max(curve.steps_R[(curve.values_NR < 2 * depth).any(axis=0)][-1] for curve in curves)
        axes.set_xlim(-0.2, min(seen + 1, INHALE_LAST_STEP) + 0.2)
    axes.set_ylabel(r"change of mean$|w_i|$ (%)")
    add_legend(axes, inside="upper left")
    return figure


def _inhale_title(curve: Curve, token_set: str) -> str:
    mean_R = curve.mean_R
    row = int(np.nanargmin(mean_R))
    step, depth = curve.steps_R[row], -mean_R[row]
    if row == 0:
        last = curve.steps_R[-1]
        return (
            f"No inhale: to step {last}, the origin radius of {in_words(token_set)} is never below its start"
        )
    if row == len(mean_R) - 1:
        return f"The origin radius of {in_words(token_set)} still shrinks at step {step}"
    return f"Inhale: the origin radius of {in_words(token_set)} shrinks by {depth:.2f} % until step {step}"


@matplotlib.rc_context(dict(STYLE))
def sneeze(experiments: Experiments, *, token_set: str = "dead", bands: Sequence[Band] = ()) -> Figure | None:
    """Draws the origin radius and its growth per step in the first 120 steps.

    Args and Returns as of `radius`; None with fewer than three rows there.
    """
    groups, token_set = groups_and_set(experiments, token_set)
    curves = [curve.until(SNEEZE_LAST_STEP) for curve in curves_of(groups, token_set, "origin_radius")]
    curves = [curve for curve in curves if len(curve.steps_R) > 2]
    velocities = [curve.velocity() for curve in curves]
    velocities = [velocity for velocity in velocities if velocity.has_values]
    if not velocities:
        return None
    smooth = [_smooth_velocity(velocity) for velocity in velocities]
    title = f"Sneeze: how fast {in_words(token_set)} fly outward"
    if len(smooth) == 1:
        peak = float(np.nanmax(smooth[0]))
        what = f"fly outward by up to {peak:.2g} per step" if peak > 0 else "do not fly outward"
        title = f"Sneeze: {in_words(token_set)} {what}"
    figure, panels = new_figure(title, 2, height=5.2)
    draw_curves(panels[0], curves)
    for velocity, smooth_R in zip(velocities, smooth, strict=True):
        draw_curves(panels[1], [velocity], mean=False)
        draw_line(panels[1], velocity.steps_R, smooth_R, color=color_of(velocity.group))
    panels[0].set_ylabel(ORIGIN_RADIUS)
    panels[1].set_ylabel("its growth per step")
    panels[0].set_xlim(0, max(curve.steps_R[-1] for curve in curves))
    add_bands(panels, bands)
    add_legend(panels[0], inside="lower right")
    return figure


def _smooth_velocity(velocity: Curve) -> Array:
    """Returns the mean over runs, smoothed; as it is if the rows are farther apart than the box is wide."""
    every = int(np.diff(velocity.steps_R).max())
    return smoothed(velocity.mean_R, VELOCITY_STEPS // every | 1)


@matplotlib.rc_context(dict(STYLE))
def speed(experiments: Experiments, *, token_set: str = "dead", bands: Sequence[Band] = ()) -> Figure | None:
    """Draws token speed, centroid speed and thermal speed, means over runs, on a logarithmic axis.

    Args and Returns as of `radius`. Several experiments share the line styles and have a colour each.
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

    Args and Returns as of `radius`.
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
        over = np.flatnonzero(mean_R > 0.9)
        if len(over):
            title += f"; over 90% first at step {curves[0].steps_R[over[0]]}"
    figure, (axes,) = new_figure(title, height=4.2)
    draw_curves(axes, curves)
    axes.axhline(0.9, color=SHADE, linewidth=0.8, linestyle="--")
    axes.text(1, 0.9, " 90%", transform=axes.get_yaxis_transform(), fontsize=8.5, va="center")
    _draw_learning_rate(axes, groups)
    axes.set_ylim(-0.02, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel("frozen tokens")
    add_bands([axes], bands)
    add_legend(axes)
    return figure


def _draw_learning_rate(axes: Axes, groups: Sequence[Group]) -> None:
    """Draws the learning rate, if all runs have the same schedule: tokens also freeze because it ends."""
    run, *others = (run for group in groups for run in group.runs)
    rate_R = run.scalars.get("learning_rate", np.zeros(1))
    alike = all(
        np.array_equal(rate_R, other.scalars.get("learning_rate", np.zeros(1)), equal_nan=True)
        for other in others
    )
    if alike and np.nan_to_num(rate_R).max() > 0:
        relative_R = rate_R / np.nanmax(rate_R)
        draw_line(
            *(axes, run.steps_R, relative_R),
            color=SHADE,
            linestyle=":",
            label="learning rate (100% = highest)",
        )


@matplotlib.rc_context(dict(STYLE))
def divergence(
    experiments: Experiments, *, token_set: str = "dead", bands: Sequence[Band] = ()
) -> Figure | None:
    """Draws the distances between runs, their mean, and how far runs are from their own starts.

    Args and Returns as of `radius`; None without two runs that differ in nothing but their seed.
    """
    groups, token_set = groups_and_set(experiments, token_set)
    curves = [pair for group in groups if (pair := distances_of(group, token_set)) is not None]
    if not curves:
        return None
    title = f"Distance between runs, over {in_words(token_set)}"
    if len(curves) == 1:
        title = f"Distance between runs {_change(curves[0][0])} ({in_words(token_set)})"
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

    Args and Returns as of `radius`; the loss is of the model, whatever the token set.
    """
    groups = groups_of(experiments)
    curves = curves_of(groups, None, "loss")
    if not curves:
        return None
    window = min(LOSS_WINDOW, 1 + len(curves[0].steps_R) // 10)
    means = [curve.smoothed(window) for curve in curves]
    title = "Loss"
    if len(curves) == 1:
        title = f"Loss {_change(curves[0])}, {np.nanmean(curves[0].mean_R):.3f} on average"
    figure, (axes,) = new_figure(title, height=4.0)
    if len(curves) == 1:
        draw_curves(axes, curves, color=SHADE, mean=False)
    draw_curves(axes, means)
    axes.set_ylabel("cross-entropy (nats)")
    add_bands([axes], bands)
    add_legend(axes, inside="upper right")
    return figure


def _change(curve: Curve) -> str:
    """Returns how the mean over runs gets from its first value to its last."""
    values = curve.mean_R[np.isfinite(curve.mean_R)]
    first, last = f"{values[0]:#.3g}", f"{values[-1]:#.3g}"
    if len(values) == 1:
        return f"is {first}"
    if first == last:
        return f"begins and ends at {first}"
    return f"{'grows' if values[-1] > values[0] else 'falls'} from {first} to {last}"


def _highest(curve: Curve) -> float:
    return float(np.nanmax(curve.values_NR))


def _spacing(groups: Sequence[Group]) -> str:
    """Returns what a recorded row's motion is over, unless that is one step."""
    steps_R = groups[0].runs[0].steps_R
    every = int(steps_R[1] - steps_R[0]) if len(steps_R) > 1 else 1
    return "" if every == 1 else f" (over {every} steps)"
