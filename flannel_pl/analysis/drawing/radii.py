"""The report's figures of the radius and its growth, called as those of `figures`.

Shape suffixes: R rows.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from flannel_pl.analysis.drawing.colors import color_of
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
from flannel_pl.analysis.statistics.curves import Curve, curves_of
from flannel_pl.analysis.statistics.groups import Experiments, groups_and_set
from flannel_pl.analysis.statistics.series import smoothed
from flannel_pl.analysis.words import in_words
from flannel_pl.arrays import Array

INHALE_LAST_STEP = 10
SNEEZE_LAST_STEP = 120
VELOCITY_STEPS = 5
"""Of the box that smooths a velocity, as in upstream's rule A."""

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
        title = f"{start}: origin radius {change_of(origin[0])}, centroid radius {change_of(centroid[0])}"
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
    limits = inhale_range(curves)
    if limits is not None:
        axes.set_ylim(limits)
        seen = max(curve.steps_R[(curve.values_NR < limits[1]).any(axis=0)][-1] for curve in curves)
        axes.set_xlim(-0.2, min(seen + 1, INHALE_LAST_STEP) + 0.2)
    axes.set_ylabel(r"change of mean$|w_i|$ (%)")
    add_legend(axes, inside="upper left")
    return figure


def inhale_range(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """Returns the values that are shown of relative curves: the growth after a dip is far larger than that.

    None if there is no dip.
    """
    depth = -min(float(np.nanmin(curve.values_NR)) for curve in curves)
    return (-1.25 * depth, 2 * depth) if depth > 0 else None


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
    smooth = [smooth_velocity(velocity) for velocity in velocities]
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


def smooth_velocity(velocity: Curve) -> Array:
    """Returns the mean over runs, smoothed; as it is if rows are farther apart than the box is wide."""
    every = int(np.diff(velocity.steps_R).max())
    return smoothed(velocity.mean_R, VELOCITY_STEPS // every | 1)
