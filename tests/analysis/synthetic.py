"""Measures that look like those of ten seeds of the notebook, made from closed formulas and some noise."""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flannel_pl.analysis.drawing.gallery import GALLERY
from flannel_pl.analysis.drawing.panels import for_page, save
from flannel_pl.analysis.measuring.cloud import MAX_TOKENS, frame_rows
from flannel_pl.analysis.measuring.divergence import Divergence
from flannel_pl.analysis.measuring.results import Cloud, Measures, RunMeasures
from flannel_pl.analysis.reporting.chart_data import chart_data
from flannel_pl.analysis.reporting.library import Interactive, interactive
from flannel_pl.analysis.reporting.page import Page, Picture, Table
from flannel_pl.metrics.lattice import HISTOGRAM_EDGES

Array = np.ndarray[Any, Any]

SPEED_PEAK_STEP = 24
INHALE_STEP = 2
NUM_DEAD = 3699  # as published, however many are simulated
BANDS = (
    ("inhale", 0, 2),
    ("sneeze", 2, 24),
    ("deceleration", 24, 250),
    ("re-expansion", 250, 393),
    ("Fimbulwinter", 393, 1000),
)


def to_svg(figure: Figure) -> str:
    """Returns a figure as a report puts it into its page."""
    with tempfile.TemporaryDirectory() as folder:
        return for_page(save(figure, Path(folder) / "figure")[1].read_text())


def make_measures(
    *,
    title: str = "flannel3",
    num_runs: int = 10,
    num_rows: int = 1001,
    every: int = 1,
    num_tokens: int = 400,
    dead: bool = True,
    strength: float = 1.0,
    swept: str = "",
) -> Measures:
    """Makes an experiment.

    Args:
        title: Its name.
        num_runs: How many seeds, from 42.
        num_rows: R.
        every: Steps from row to row.
        num_tokens: S, of each set.
        dead: Whether there are dead and live tokens; otherwise "all" is the only set.
        strength: Of the growth; 1 as published.
        swept: What a label says behind the seed.
    """
    sets = ("dead", "live", "all") if dead else ("all",)
    runs = tuple(
        _run(index, np.arange(num_rows) * every, sets, num_tokens, strength, swept)
        for index in range(num_runs)
    )
    pairs = {one: _divergence(num_runs, np.arange(num_rows) * every) for one in sets if num_runs > 1}
    cloud = make_cloud(np.arange(num_rows) * every, num_tokens=num_tokens, dead=dead, label=runs[0].label)
    return Measures(Path("runs") / title, title, runs, pairs, dim=64, left_out={}, clouds=(cloud,))


def make_cloud(steps_R: Array, *, num_tokens: int, dead: bool, label: str) -> Cloud:
    """Makes a cloud of which dead tokens leave the others along the first axis."""
    rows = frame_rows(len(steps_R))
    num_shown = min(num_tokens, 2 * MAX_TOKENS)
    dead_S = np.where(np.arange(num_shown) < num_shown // 2, 1, 0) if dead else np.full(num_shown, -1)
    points = np.random.default_rng(0).normal(0, 0.02, (1, 3, num_shown)).repeat(len(rows), axis=0)
    way_F = 0.4 * (1 - np.exp(-steps_R[rows] / 100))
    points[:, 0] += way_F[:, None] * (dead_S == 1)
    return Cloud(
        *(0, label, np.arange(num_shown) * 3, dead_S, steps_R[rows], points.astype(np.float32)),
        *(int(steps_R[-1]), np.array([0.9, 0.03, 0.01])),
    )


def _run(
    index: int, steps_R: Array, sets: tuple[str, ...], num_tokens: int, strength: float, swept: str
) -> RunMeasures:
    draw = np.random.default_rng(index)
    tokens = {one: _tokens(draw, num_tokens) for one in sets}
    rate_R = np.append([np.nan], 1e-3 * (1 - (steps_R[1:] - 1) / max(1, steps_R[-1])))
    loss_R = 7.05 + 2.2 * np.exp(-steps_R / 40) + draw.normal(0, 0.06, len(steps_R))
    loss_R[0] = np.nan
    return RunMeasures(
        run=index,
        label=f"seed {42 + index}" + (f", {swept}" if swept else ""),
        steps_R=steps_R,
        series={one: _series(draw, steps_R, tokens[one], strength) for one in sets},
        scalars={"loss": loss_R, "learning_rate": rate_R},
        tokens=tokens,
        histogram={one: _histogram(draw, steps_R, num_tokens) for one in sets},
        left_out={},
        num_tokens={one: NUM_DEAD if one == "dead" else num_tokens for one in sets},
    )


def _speed(steps: Array, strength: float) -> Array:
    """Peaks at SPEED_PEAK_STEP."""
    late = np.clip(1 - steps / 600, 0, None) * 4e-4
    x = steps / SPEED_PEAK_STEP
    speed: Array = strength * (4.6e-3 * x * np.exp(1 - x) + late * np.clip(x, 0, 1))
    return speed


def _series(draw: np.random.Generator, steps_R: Array, tokens: dict[str, Array], strength: float) -> Any:
    strength = strength * draw.normal(1, 0.05)
    every = np.arange(steps_R[-1] + 1)
    dip = draw.normal(0.0086, 0.001) * np.minimum(every / INHALE_STEP, 1) * 0.16
    growth = np.cumsum(np.where(every > INHALE_STEP, _speed(every, strength), 0))
    origin_R = (draw.normal(0.1594, 0.0001) - dip + growth)[steps_R]
    centroid_R = 0.1594 - 0.045 * (1 - np.exp(-steps_R / 150)) + draw.normal(0, 1e-4, len(steps_R))
    speed_R = np.where(steps_R > 590, 0, _speed(steps_R, strength) + 3e-3 * np.exp(-steps_R / 6) + 1e-5)
    moving_R = (tokens["late_end"][None, :] >= steps_R[:, None]).mean(axis=1)
    frozen_R = 1 - moving_R * np.clip(1.02 - 0.5 * steps_R / 1000, 0, 1)
    motion = {
        "token_speed": speed_R * np.exp(draw.normal(0, 0.03, len(steps_R))),
        "centroid_speed": speed_R * np.exp(-steps_R / 900) * 0.93,
        "thermal_speed": speed_R * 0.13 + np.where(speed_R > 0, 1e-4, 0) * moving_R,
        "frozen_fraction": frozen_R,
    }
    for values_R in motion.values():
        values_R[0] = np.nan
    return {"origin_radius": origin_R, "centroid_radius": centroid_R, **motion}


def _tokens(draw: np.random.Generator, num_tokens: int) -> dict[str, Array]:
    early_S = draw.normal(110, 15, num_tokens).clip(1)
    midlife_S = early_S + draw.gamma(9, 20, num_tokens)
    late_S = midlife_S + draw.gamma(6, 45, num_tokens)
    ends = {"early_end": early_S, "midlife_end": midlife_S, "late_end": late_S, "freeze_step": late_S}
    return {name: end_S.astype(np.int64) for name, end_S in ends.items()}


def _histogram(draw: np.random.Generator, steps_R: Array, num_tokens: int) -> Array:
    counts = np.zeros((len(steps_R), len(HISTOGRAM_EDGES) - 1), np.int64)
    for row, step in enumerate(steps_R[1:], start=1):
        log2_S = draw.normal(12 * np.exp(-step / 90) - step / 400, 1.2, num_tokens)
        l2_S = np.where(log2_S < 0, np.where(draw.random(num_tokens) < step / 700, 0, 1), np.exp2(log2_S))
        counts[row] = np.histogram(l2_S, bins=HISTOGRAM_EDGES)[0]
    return counts


def _divergence(num_runs: int, steps_R: Array) -> Divergence:
    pairs = tuple(itertools.combinations(range(num_runs), 2))
    growth_R = 1 - np.exp(-steps_R / 100)
    draw = np.random.default_rng(1)
    distance_PR = 13.765 + draw.normal(32, 3.3, (len(pairs), 1)) * growth_R
    evolution_NR = draw.normal(31.5, 1.4, (num_runs, 1)) * growth_R
    return Divergence(pairs, distance_PR, evolution_NR)


def make_charts(measures: Measures) -> Interactive | None:
    """Makes what makes the figures of measures interactive."""
    charts = {kind.name: kind.chart(measures) for kind in GALLERY}
    there = {name: chart for name, chart in charts.items() if chart is not None}
    steps = [int(step) for cloud in measures.clouds for step in cloud.steps_F]
    return interactive(chart_data(there, steps=steps, epochs=BANDS, texts=[{0: "</script>"}]))


def make_page(measures: Measures) -> Page:
    """Makes a page with everything that a report may have, some of it awkward."""
    drawn = {kind: kind.draw(measures, bands=BANDS) for kind in GALLERY}
    published = [
        ["origin radius, start", "0.159387 \u00b1 0.000143", "0.159402 \u00b1 0.000151", "+0.10", ""],
        [
            "origin radius, end",
            "0.525185 \u00b1 0.022288",
            "0.491412",
            "-1.52",
            "settings differ: data.corpus",
        ],
    ]
    return Page(
        title="flannel3 <& friends>",
        lead="Ten runs of 1000 steps each, seeds 42 to 51; the figures are about the dead tokens.",
        warnings=[
            "The freeze at step 393 may be the learning rate's: it is below 10 % of its maximum.",
            "run 3 <seed 45> has no loss from step 700",
        ],
        recorded=[
            ("experiment", "runs/flannel3"),
            ("seeds", "42, 43, 44, 45, 46, 47, 48, 49, 50, 51"),
            ("settings", "model.hidden_dim 64, data.batch_size 32, model.learning_rate 0.001"),
        ],
        key_figures=[
            ("origin radius, start", "0.1594", "\u00b1 0.0001 over 10 runs"),
            ("origin radius, end", "0.525", "\u00b1 0.022 over 10 runs, 3.30 times"),
            ("inhale", "step 2", "depth 0.54 %, in every run"),
            ("freeze", "not reached", "the radius still grows at the last step"),
        ],
        epochs=[
            Table(
                "Rule A: velocity of the mean radius",
                [
                    "run",
                    "inhale ends",
                    "depth",
                    "sneeze peaks",
                    "peak speed",
                    "freeze",
                    "final radius",
                    "remark",
                ],
                [
                    [run.label, "2", "0.000862", "24", "0.005191", "393", "0.525185", ""]
                    for run in measures.runs
                ],
                note="Standard deviations are of the sample.",
            )
        ],
        comparison=[
            Table(
                "Dead tokens, ten seeds",
                ["figure", "published", "this recording", "difference in standard deviations", "remark"],
                published,
            )
        ],
        pictures=[
            Picture(
                kind.heading,
                to_svg(figure),
                kind.caption,
                kind.formula,
                {"PNG": f"figures/{kind.name}.png", "SVG": f"figures/{kind.name}.svg"},
                kind.name,
            )
            for kind, figure in drawn.items()
            if figure is not None
        ],
        left_out=[(kind.heading, f"needs {kind.needs}") for kind, figure in drawn.items() if figure is None]
        + [("adam_exact_fraction", "momentum and variance are not recorded")],
        provenance=[
            ("command", "flannel-pl report " + "a_long_path/" * 20),
            ("git commit", "0123456789abcdef" * 3),
        ],
        interactive=make_charts(measures),
        files=[("metrics.csv", "every metric of every run, a row for each recorded step")],
    )
