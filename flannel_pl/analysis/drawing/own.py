"""The figure of a metric that somebody has declared: one series over time."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from flannel_pl.analysis.drawing.panels import STYLE, Band, add_bands, add_legend, draw_curves, new_figure
from flannel_pl.analysis.statistics.curves import curves_of
from flannel_pl.analysis.statistics.groups import Experiments, groups_and_set
from flannel_pl.analysis.words import in_words


@matplotlib.rc_context(dict(STYLE))
def own_metric(
    experiments: Experiments,
    *,
    name: str,
    label: str,
    token_set: str = "dead",
    bands: Sequence[Band] = (),
) -> Figure | None:
    """Draws a metric of each run and its mean over runs.

    Args and Returns as of `radii.radius`, and the metric's name and the words of its axis.
    """
    groups, token_set = groups_and_set(experiments, token_set)
    curves = [curve for curve in curves_of(groups, token_set, name) if np.isfinite(curve.mean_R).any()]
    if not curves:
        return None
    title = f"{name.replace('_', ' ').capitalize()} of {in_words(token_set)}"
    if len(curves) == 1:
        values = curves[0].mean_R[np.isfinite(curves[0].mean_R)]
        title += f": {values[0]:.3g} first, {values[-1]:.3g} last"
    figure, (axes,) = new_figure(title, height=4.2)
    draw_curves(axes, curves)
    axes.set_ylabel(label)
    add_bands([axes], bands)
    add_legend(axes)
    return figure
