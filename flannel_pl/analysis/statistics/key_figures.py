"""The few numbers that sum up what happened to a token set: of every run, and over runs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flannel_pl.analysis.measuring.lifecycle import freeze_quantiles
from flannel_pl.analysis.measuring.results import RunMeasures
from flannel_pl.analysis.statistics.groups import Group
from flannel_pl.analysis.statistics.series import Spread, spread
from flannel_pl.metrics.cloud import liftoff_step


@dataclass(frozen=True)
class KeyFigure:
    """One number of every run, and its spread over them."""

    name: str
    values: tuple[float | None, ...]
    """In the order of the runs; None where a run does not have it."""

    over_runs: Spread


def key_figures(group: Group, token_set: str) -> list[KeyFigure]:
    """Returns the numbers that sum up what happened to a token set.

    Args:
        group: Runs that differ in their seed only.
        token_set: dead, live or all; runs without it count as not having the number.

    Returns:
        Radii and centroid at the start and the end, the lift-off, path efficiency, peak speed, when tokens
        froze, how well Adam's formula gives its steps (where its state is recorded), and the mean loss.
    """
    last = min(len(run.steps_R) for run in group.runs) - 1  # the end is the last row that all of them have
    both_ends = ("origin_radius", "centroid_radius", "centroid_norm", "std_per_dim", "bounding_radius")
    wanted: list[tuple[str, Callable[[RunMeasures], float | None]]] = []
    for name in both_ends:
        wanted.append((f"{name}, start", _at(token_set, name, 0)))
        wanted.append((f"{name}, end", _at(token_set, name, last)))
    wanted += [
        ("separation, start", _at(token_set, "separation", 0)),
        ("separation, end", _at(token_set, "separation", last)),
        ("lift-off step", lambda run: _liftoff(run, token_set)),
        ("path_efficiency", _at(token_set, "path_efficiency", last)),
        ("token_speed, largest", lambda run: _largest(run, token_set, "token_speed")),
        ("frozen_fraction, end", _at(token_set, "frozen_fraction", last)),
    ]
    for quantile in ("q25", "median", "q75", "max"):
        wanted.append((f"freeze step, {quantile}", _freeze(token_set, quantile)))
    wanted.append(("fraction of tokens still moving", _freeze(token_set, "still_moving")))
    for name in ("adam_exact_fraction", "adam_within_one_fraction"):
        wanted.append((f"{name}, mean over steps", _mean_of(token_set, name)))
    wanted.append(("loss, mean over steps", mean_loss_of))
    figures = []
    for name, pick in wanted:
        values = tuple(pick(run) for run in group.runs)
        if any(value is not None for value in values):
            figures.append(KeyFigure(name, values, spread(values)))
    return figures


def _at(token_set: str, name: str, row: int) -> Callable[[RunMeasures], float | None]:
    """Picks the value in a row; in the last one before it whose step was taken, where that was skipped."""

    def pick(run: RunMeasures) -> float | None:
        series_R = run.series.get(token_set, {}).get(name)
        if series_R is None:
            return None
        return _finite(series_R[np.searchsorted(run.steps_R, run.moved_R[row])])

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


def _mean_of(token_set: str, name: str) -> Callable[[RunMeasures], float | None]:
    def pick(run: RunMeasures) -> float | None:
        series_R = run.series.get(token_set, {}).get(name, np.empty(0))
        if run.skipped_R.any() and len(series_R):
            series_R = np.delete(series_R, np.flatnonzero(run.skipped_R))
        series_R = series_R[1:]  # no motion leads to row 0
        return _finite(series_R.mean()) if len(series_R) else None

    return pick


def _freeze(token_set: str, quantile: str) -> Callable[[RunMeasures], float | None]:
    def pick(run: RunMeasures) -> float | None:
        tokens = run.tokens.get(token_set)
        if tokens is None or len(run.steps_R) < 2:  # one row says nothing of motion
            return None
        return _finite(freeze_quantiles(tokens["freeze_step"])[quantile])

    return pick


def mean_loss_of(run: RunMeasures) -> float | None:
    """Returns a run's mean loss over its steps; None if it has none, or one that is not finite."""
    loss_R = run.scalars.get("loss")
    if loss_R is None or len(loss_R) < 2:
        return None
    return _finite(loss_R[1:].mean())  # row 0 has none
