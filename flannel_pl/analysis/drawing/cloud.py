"""The report's figure of the cloud: where tokens are at three steps, seen along two axes.

Shape suffixes: F frames, S tokens.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from flannel_pl.analysis.drawing.charts import Chart, Entry, Scene
from flannel_pl.analysis.drawing.colors import COLORS, legend
from flannel_pl.analysis.drawing.panels import SHADE, STYLE, WIDTH_INCHES, Band
from flannel_pl.analysis.measuring.results import Cloud, Measures
from flannel_pl.analysis.statistics.groups import Experiments
from flannel_pl.arrays import Array

DEAD, LIVE, UNKNOWN = 1, 0, -1
"""As of `Cloud.dead_S`."""

KIND_COLORS = {DEAD: COLORS[1], LIVE: COLORS[0], UNKNOWN: SHADE}
KIND_WORDS = {DEAD: "dead tokens", LIVE: "live tokens", UNKNOWN: "tokens"}

MAX_ROWS = 6
SHOWN_FRAMES = 3


def scenes_of(experiments: Experiments) -> list[Scene]:
    """Returns the clouds that move, as many as are shown."""
    named = [("", experiments)] if isinstance(experiments, Measures) else list(experiments)
    scenes = [
        Scene(", ".join(filter(None, (name, cloud.label))), cloud, number)
        for number, (name, measures) in enumerate(named)
        for cloud in measures.clouds
        if len(cloud.steps_F) > 1
    ]
    return scenes[:MAX_ROWS]


def axis_words(cloud: Cloud, axis: int) -> str:
    """Returns what an axis of a cloud is called: its number, and how much of the variance is along it."""
    return f"axis {axis + 1} ({cloud.shares_3[axis]:.0%})"


def fitted_words(scenes: Sequence[Scene]) -> str:
    """Returns at which steps the axes of clouds are their principal directions."""
    steps = sorted({scene.cloud.fitted_step for scene in scenes})
    return f"the axes of step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"


@matplotlib.rc_context(dict(STYLE))
def cloud_frames(
    experiments: Experiments, *, token_set: str = "dead", bands: Sequence[Band] = ()
) -> Figure | None:
    """Draws where tokens are at the first step, in the middle and at the last, a row for each group of runs.

    Args and Returns as of `radii.radius`; dead and live tokens are in it whatever the token set, bands are
    not drawn, and at most six groups are.
    """
    scenes = scenes_of(experiments)
    if not scenes:
        return None
    height = 1.1 + 1.75 * len(scenes)
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    panels = figure.subplots(len(scenes), SHOWN_FRAMES, squeeze=False)
    figure.suptitle(
        f"The cloud of tokens, along {fitted_words(scenes)}",
        x=0.02,
        ha="left",
        fontsize=11,
        fontweight="bold",
    )
    for row, scene in zip(panels, scenes, strict=True):
        cloud = scene.cloud
        frames = np.linspace(0, len(cloud.steps_F) - 1, SHOWN_FRAMES).round().astype(int)
        low_2, high_2 = _square(cloud.points_F3S[frames, :2])
        for axes, frame in zip(row, frames, strict=True):
            for kind, color in KIND_COLORS.items():
                x_S, y_S = cloud.points_F3S[frame, :2, cloud.dead_S == kind].T
                axes.scatter(x_S, y_S, s=3, color=color, linewidths=0, alpha=0.7, rasterized=True)
            axes.set_title(f"step {cloud.steps_F[frame]}", loc="left", fontsize=9)
            axes.set(xlim=(low_2[0], high_2[0]), ylim=(low_2[1], high_2[1]), aspect="equal")
            axes.tick_params(labelsize=7)
            axes.locator_params(nbins=4)
        row[0].set_ylabel(axis_words(cloud, 1), fontsize=8.5)
        row[1].set_xlabel(f"{legend(scene.name)}: {axis_words(cloud, 0)}", fontsize=8.5)
    there = {int(kind) for scene in scenes for kind in scene.cloud.dead_S}
    for kind in (kind for kind in KIND_COLORS if kind in there):
        panels[0, 0].scatter([], [], s=12, color=KIND_COLORS[kind], label=KIND_WORDS[kind])
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def cloud_chart(experiments: Experiments, *, token_set: str = "dead") -> Chart | None:
    """The clouds of all groups of runs, in three axes."""
    scenes = scenes_of(experiments)
    if not scenes:
        return None
    there = {int(kind) for scene in scenes for kind in scene.cloud.dead_S}
    entries = [
        Entry(f"kind {kind}", KIND_WORDS[kind], color) for kind, color in KIND_COLORS.items() if kind in there
    ]
    return Chart(entries=entries, scenes=scenes, note=f"Along {fitted_words(scenes)}.")


def _square(points_F2S: Array) -> tuple[Array, Array]:
    """Returns the corners of a square with all finite points in it."""
    points = points_F2S.astype(np.float64).transpose(1, 0, 2).reshape(2, -1)
    points = points[:, np.isfinite(points).all(axis=0)]
    middle_2 = (points.min(axis=1) + points.max(axis=1)) / 2
    half = 0.55 * np.ptp(points, axis=1).max() or 1.0
    return middle_2 - half, middle_2 + half
