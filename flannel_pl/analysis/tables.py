"""Measures as tables: every number of every row as CSV, and the few that sum an experiment up.

Shape suffixes: R rows.
"""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from flannel_pl.analysis.epochs import Spread, spread
from flannel_pl.analysis.lifecycle import freeze_quantiles
from flannel_pl.analysis.measure import Measures, RunMeasures
from flannel_pl.analysis.metrics import liftoff_step
from flannel_pl.recording.tensors import Array

SIGNIFICANT_DIGITS = 9
"""Of the numbers in a CSV file; a float32 has no more."""


@dataclass(frozen=True)
class KeyFigure:
    """One number of every run, and its spread over them."""

    name: str
    values: tuple[float | None, ...]
    """In the order of the runs; None where a run does not have it."""

    over_runs: Spread


def metrics_csv(measures: Measures) -> str:
    """Returns all series: a line per run, token set and row; the scalars are on the lines of the set "all".

    Args:
        measures: Of one experiment.

    Returns:
        CSV text with a header. A number that is undefined is empty.
    """
    names = _in_order(name for run in measures.runs for series in run.series.values() for name in series)
    scalars = _in_order(name for run in measures.runs for name in run.scalars)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "label", "set", "step", *names, *scalars])
    for run in measures.runs:
        for token_set, series in run.series.items():
            columns = [series.get(name) for name in names]
            columns += [run.scalars.get(name) if token_set == "all" else None for name in scalars]
            for row, step in enumerate(run.steps_R):
                cells = ["" if column is None else _number(column[row]) for column in columns]
                writer.writerow([run.run, run.label, token_set, int(step), *cells])
    return text.getvalue()


def steps_csv(measures: Measures, token_set: str) -> str:
    """Returns the mean and the sample standard deviation over runs of each series, a line per step.

    Args:
        measures: Of one experiment; only steps that every run has are in it.
        token_set: dead, live or all.

    Returns:
        CSV text with a header: step, then name_mean and name_std for each series.
    """
    runs = [run for run in measures.runs if token_set in run.series]
    num_rows = min((len(run.steps_R) for run in runs), default=0)
    names = _in_order(name for run in runs for name in run.series[token_set])
    names = [name for name in names if all(name in run.series[token_set] for run in runs)]
    columns: list[Array] = []
    for name in names:
        values_NR = np.stack([run.series[token_set][name][:num_rows] for run in runs])
        columns.append(values_NR.mean(axis=0))
        columns.append(values_NR.std(axis=0, ddof=1) if len(runs) > 1 else np.full(num_rows, np.nan))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *(f"{name}_{what}" for name in names for what in ("mean", "std"))])
    for row in range(num_rows):
        writer.writerow([int(runs[0].steps_R[row]), *(_number(column[row]) for column in columns)])
    return text.getvalue()


def key_figures(measures: Measures, token_set: str) -> list[KeyFigure]:
    """Returns the numbers that sum up what happened to a token set.

    Args:
        measures: Of one experiment.
        token_set: dead, live or all; runs without it count as not having the number.

    Returns:
        Radii and centroid at the start and the end, the lift-off, path efficiency, peak speed, when tokens
        froze, and the mean loss.
    """
    both_ends = ("origin_radius", "centroid_radius", "centroid_norm", "std_per_dim", "bounding_radius")
    wanted: list[tuple[str, Callable[[RunMeasures], float | None]]] = []
    for name in both_ends:
        wanted.append((f"{name}, start", _at(token_set, name, 0)))
        wanted.append((f"{name}, end", _at(token_set, name, -1)))
    wanted += [
        ("lift-off step", lambda run: _liftoff(run, token_set)),
        ("path_efficiency", _at(token_set, "path_efficiency", -1)),
        ("token_speed, largest", lambda run: _largest(run, token_set, "token_speed")),
        ("frozen_fraction, end", _at(token_set, "frozen_fraction", -1)),
    ]
    for quantile in ("q25", "median", "q75", "max", "still_moving"):
        wanted.append(
            (
                f"freeze step, {quantile}" if quantile != "still_moving" else "tokens still moving",
                _freeze(token_set, quantile),
            )
        )
    wanted.append(("loss, mean over steps", _mean_loss))
    figures = []
    for name, pick in wanted:
        values = tuple(pick(run) for run in measures.runs)
        if any(value is not None for value in values):
            figures.append(KeyFigure(name, values, spread(values)))
    return figures


def key_figures_csv(figures: Sequence[KeyFigure], measures: Measures) -> str:
    """Returns key figures: a line each, with mean, standard deviation, range and the value of every run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["figure", "mean", "std", "least", "most", *(run.label for run in measures.runs)])
    for figure in figures:
        over = figure.over_runs
        cells = [over.mean, over.std, over.least, over.most, *figure.values]
        writer.writerow([figure.name, *("" if cell is None else _number(cell) for cell in cells)])
    return text.getvalue()


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.{SIGNIFICANT_DIGITS}g}"


def _at(token_set: str, name: str, row: int) -> Callable[[RunMeasures], float | None]:
    def pick(run: RunMeasures) -> float | None:
        series_R = run.series.get(token_set, {}).get(name)
        return None if series_R is None else _finite(series_R[row])

    return pick


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _liftoff(run: RunMeasures, token_set: str) -> float | None:
    series = run.series.get(token_set)
    if series is None:
        return None
    return liftoff_step(series["centroid_norm"], series["bounding_radius"], run.steps_R)


def _largest(run: RunMeasures, token_set: str, name: str) -> float | None:
    series_R = run.series.get(token_set, {}).get(name)
    if series_R is None or np.isnan(series_R).all():
        return None
    return float(np.nanmax(series_R))


def _freeze(token_set: str, quantile: str) -> Callable[[RunMeasures], float | None]:
    def pick(run: RunMeasures) -> float | None:
        tokens = run.tokens.get(token_set)
        return None if tokens is None else _finite(freeze_quantiles(tokens["freeze_step"])[quantile])

    return pick


def _mean_loss(run: RunMeasures) -> float | None:
    loss_R = run.scalars.get("loss")
    if loss_R is None or len(loss_R) < 2:
        return None
    return _finite(loss_R[1:].mean())  # row 0 has none
