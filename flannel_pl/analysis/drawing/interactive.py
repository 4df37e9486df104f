"""The charts of the page, one function for each figure of `gallery`, of the same series.

Every function takes what the figure's does, without bands, and returns a `Chart`, or None without lines. The
page's captions are about both, so a chart shows at first what the figure does.

Shape suffixes: R rows, N runs, B bins, C columns of the map.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from flannel_pl.analysis.drawing import maps
from flannel_pl.analysis.drawing.charts import (
    MAX_MEAN_VALUES,
    Cells,
    Chart,
    ChartPanel,
    Entry,
    Legend,
    Line,
    left_out_lines,
    lines_of,
    shortened,
)
from flannel_pl.analysis.drawing.figures import LOSS_WINDOW, SMALLEST_SPEED, shared_rate
from flannel_pl.analysis.drawing.panels import SHADE
from flannel_pl.analysis.drawing.radii import (
    INHALE_LAST_STEP,
    SNEEZE_LAST_STEP,
    inhale_range,
    smooth_velocity,
)
from flannel_pl.analysis.statistics.curves import Curve, curves_of, distances_of
from flannel_pl.analysis.statistics.epochs import FROZEN_FRACTION
from flannel_pl.analysis.statistics.groups import Experiments, Group, groups_and_set, groups_of
from flannel_pl.metrics.lattice import HISTOGRAM_EDGES

SPEEDS = (
    Entry("token_speed", "tokens", "#1f7fc4"),
    Entry("centroid_speed", "centroid", "#d55e00", "dash"),
    Entry("thermal_speed", "without the centroid's", "#0a9a72", "dot"),
)
BETWEEN = Entry("between", "between runs")
EVOLUTION = Entry("evolution", "from a run's own start", "", "dash")
BATCHES = Entry("batches", "each batch", SHADE)
RATE = Entry("rate", "learning rate (100 % = highest)", SHADE, "dot")
RUNNING = Entry("running", "running mean")


def radius_chart(experiments: Experiments, *, token_set: str = "dead") -> Chart | None:
    """Origin radius and centroid radius of every run."""
    groups, token_set = groups_and_set(experiments, token_set)
    names = {"origin_radius": "origin radius  mean|w|", "centroid_radius": "centroid radius  mean|w - c|"}
    found = {name: curves_of(groups, token_set, name) for name in names}
    return _chart([(names[name], name, curves) for name, curves in found.items()], token_set)


def inhale_chart(experiments: Experiments, *, token_set: str = "dead") -> Chart | None:
    """The change of the origin radius in the first steps, in percent of row 0."""
    groups, token_set = groups_and_set(experiments, token_set)
    curves = [curve.until(INHALE_LAST_STEP) for curve in curves_of(groups, token_set, "origin_radius")]
    curves = [curve.relative() for curve in curves if len(curve.steps_R) > 2]
    curves = [curve for curve in curves if curve.has_values]
    chart = _chart([("change of mean|w| (%)", "origin_radius, relative", curves)], token_set)
    if chart is None:
        return None
    panel = replace(chart.panels[0], range=inhale_range(curves))
    return replace(chart, panels=[panel], has_epochs=False)


def sneeze_chart(experiments: Experiments, *, token_set: str = "dead") -> Chart | None:
    """The origin radius of the first steps, and its growth per step."""
    groups, token_set = groups_and_set(experiments, token_set)
    curves = [curve.until(SNEEZE_LAST_STEP) for curve in curves_of(groups, token_set, "origin_radius")]
    curves = [curve for curve in curves if len(curve.steps_R) > 2]
    growth = [velocity for curve in curves if (velocity := curve.velocity()).has_values]
    chart = _chart(
        [("origin radius  mean|w|", "origin_radius", curves), ("its growth per step", "velocity", growth)],
        token_set,
    )
    if chart is None or len(chart.panels) < 2:
        return None
    # The thick line is the smoothed one, as in the figure.
    smooth = {velocity.group.name: smooth_velocity(velocity) for velocity in growth}
    lines = []
    for line in chart.panels[1].lines:
        words, smooth_R = (*line.words, "smoothed over 5 steps"), smooth[str(line.source["group"])]
        what = ", ".join(filter(None, (str(line.source.get("statistic", "")), "smoothed")))
        thick = replace(line, words=words, values_R=smooth_R, source={**line.source, "statistic": what})
        if line.source.get("statistic") == "mean":
            lines.append(replace(thick, middle_R=line.values_R))
        elif line.is_thick:  # the only run of its group
            lines += [replace(line, is_thick=False), thick]
        else:
            lines.append(line)
    return replace(chart, panels=(chart.panels[0], replace(chart.panels[1], lines=lines)))


def speed_chart(experiments: Experiments, *, token_set: str = "dead") -> Chart | None:
    """Speeds of tokens and of their centroid, on a logarithmic axis; means, and the runs to switch on."""
    groups, token_set = groups_and_set(experiments, token_set)
    legend, lines = Legend(), list[Line]()
    shown = SPEEDS[:2] if len(groups) > 1 else SPEEDS
    found = {what.key: curves_of(groups, token_set, what.key) for what in shown}
    highest = max((_highest(curve) for curves in found.values() for curve in curves), default=0.0)
    if not highest > 0:
        return None
    for what in shown:
        entry = what if len(groups) == 1 else replace(what, color="")
        for curve in found[what.key]:
            if _highest(curve) > 0:
                lines += lines_of(
                    curve, legend, series=what.key, token_set=token_set, what=entry, each=False, spread=False
                )
    panel = ChartPanel(
        "length of a step", lines, is_log=True, range=(SMALLEST_SPEED * highest, 1.6 * highest)
    )
    return Chart(
        [panel], legend.entries, note=left_out_lines([one for each in found.values() for one in each])
    )


def frozen_chart(experiments: Experiments, *, token_set: str = "dead") -> Chart | None:
    """The part of the tokens that did not move in a step."""
    groups, token_set = groups_and_set(experiments, token_set)
    curves = curves_of(groups, token_set, "frozen_fraction")
    chart = _chart([("frozen tokens", "frozen_fraction", curves)], token_set)
    if chart is None:
        return None
    lines, entries = list(chart.panels[0].lines), list(chart.entries)
    rate = shared_rate(groups)
    if rate is not None:
        origin = {"series": "learning_rate, relative", "set": "all", "group": ""}
        line = Line((RATE.label,), *rate, SHADE, (RATE.key,), origin, is_thick=True, dash="dot")
        lines.append(shortened(line, MAX_MEAN_VALUES))
        entries.insert(0, RATE)
    panel = replace(chart.panels[0], lines=lines, is_part=True, range=(-0.02, 1.03), level=FROZEN_FRACTION)
    return replace(chart, panels=[panel], entries=entries)


def divergence_chart(experiments: Experiments, *, token_set: str = "dead") -> Chart | None:
    """Distances between runs, and of runs from their own starts."""
    groups, token_set = groups_and_set(experiments, token_set)
    found = [(group, pair) for group in groups if (pair := distances_of(group, token_set)) is not None]
    if not found:
        return None
    legend, lines = Legend(), list[Line]()
    for group, (distance, evolution) in found:
        members = {run.run: run for run in group.runs}
        pairs = [pair for pair in group.pairs[token_set].pairs if members.keys() >= set(pair)]
        names = [(f"runs {first} and {second}",) for first, second in pairs]
        each = len(groups) == 1
        lines += lines_of(
            distance, legend, series="distance", token_set=token_set, what=BETWEEN, each=each, names=names
        )
        own = {run for pair in pairs for run in pair}
        apart = replace(evolution, group=replace(group, runs=tuple(members[run] for run in sorted(own))))
        what = EVOLUTION if len(groups) > 1 else replace(EVOLUTION, color="#d55e00")
        lines += lines_of(apart, legend, series="evolution", token_set=token_set, what=what, runs=False)
    return Chart(
        [ChartPanel("Frobenius distance", lines)],
        legend.entries,
        note=left_out_lines([pair[0] for _, pair in found]),
    )


def loss_chart(experiments: Experiments, *, token_set: str = "dead") -> Chart | None:
    """The loss of each batch, and running means of it."""
    groups = groups_of(experiments)
    curves = curves_of(groups, None, "loss")
    if not curves:
        return None
    window = min(LOSS_WINDOW, 1 + len(curves[0].steps_R) // 10)
    legend, lines = Legend(), list[Line]()
    for curve in curves:
        if len(curves) == 1:
            lines += lines_of(curve, legend, series="loss", token_set="all", what=BATCHES, mean=False)
        running, name = curve.smoothed(window), f"loss, mean over {window} rows"
        lines += lines_of(running, legend, series=name, token_set="all", what=RUNNING)
    return Chart([ChartPanel("cross-entropy (nats)", lines)], legend.entries, note=left_out_lines(curves))


def lifecycle_chart(experiments: Experiments, *, token_set: str = "dead") -> Chart | None:
    """The fractions of tokens in each phase of life, a panel for each group of runs."""
    groups, token_set = groups_and_set(experiments, token_set)
    groups = maps.with_lives(groups, token_set)
    if not groups:
        return None
    legend, panels = Legend(), []
    for group in groups[: maps.MAX_PANELS]:
        lines = []
        for name, parts_R in maps.mean_fractions(group, token_set).items():
            key = legend.add(name, name.capitalize(), color=maps.PHASE_COLORS[name])
            line = Line(
                (name.capitalize(), _over(group), group.name),
                *(group.runs[0].steps_R[: len(parts_R)], parts_R, maps.PHASE_COLORS[name], (key,)),
                {"series": name, "set": token_set, "group": group.name, "statistic": "mean"},
                is_stacked=True,
            )
            lines.append(shortened(line, MAX_MEAN_VALUES))
        panels.append(ChartPanel(group.name, lines, is_part=True, range=(0, 1)))
    return Chart(panels, legend.entries, has_epochs=False)


def displacement_chart(experiments: Experiments, *, token_set: str = "dead") -> Chart | None:
    """How many lattice points tokens jump over, as a map over time; a panel for each group."""
    groups, token_set = groups_and_set(experiments, token_set)
    found = [(group, maps.counts_of(group, token_set)) for group in groups]
    found = [(group, counts_RB) for group, counts_RB in found if counts_RB.any()]
    if not found:
        return None
    panels = []
    for group, counts_RB in found[: maps.MAX_PANELS]:
        num_bins = 1 + int(np.flatnonzero(counts_RB.any(axis=0))[-1])
        edges_C, parts_CB = maps.binned(group.runs[0].steps_R, counts_RB)
        level = maps.reach_of(group)
        cells = Cells(edges_C, _bin_names(num_bins), parts_CB[:, :num_bins].T, group.name, level)
        panels.append(ChartPanel(f"displacement |dW'| (ULP), {group.name}", cells=cells))
    return Chart(panels, has_epochs=False)


def own_chart(experiments: Experiments, *, name: str, label: str, token_set: str = "dead") -> Chart | None:
    """A metric that somebody has declared, of every run."""
    groups, token_set = groups_and_set(experiments, token_set)
    return _chart([(label, name, curves_of(groups, token_set, name))], token_set)


def _chart(several: Iterable[tuple[str, str, Sequence[Curve]]], token_set: str) -> Chart | None:
    """Returns a chart of panels: words of the axis, name of the series, curves."""
    legend, panels, note = Legend(), [], ""
    for label, series, curves in several:
        lines = [
            line for curve in curves for line in lines_of(curve, legend, series=series, token_set=token_set)
        ]
        if lines:
            panels.append(ChartPanel(label, lines))
            note = note or left_out_lines(curves)
    return Chart(panels, legend.entries, note=note) if panels else None


def _bin_names(num_bins: int) -> list[str]:
    """Returns what the first bins of jumps are called."""
    edges = [f"{edge:,.10g}" for edge in HISTOGRAM_EDGES[1:-1]]
    names = ["frozen", *(f"{low} to {high} ULP" for low, high in itertools.pairwise(edges))]
    names.append(f"{edges[-1]} ULP or more")
    return names[:num_bins]


def _over(group: Group) -> str:
    return f"mean of {len(group.runs)} runs" if len(group.runs) > 1 else group.runs[0].label


def _highest(curve: Curve) -> float:
    return float(np.nanmax(curve.values_NR))
