"""One number of a group of runs, with its spread: what a table of key figures or of published ones asks for.

Each function returns a function of a group, so that a table can list them. Runs that do not have a number are
left out of it; a group of which none has it gives None.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from flannel_pl.analysis.curves import Curve, Group, curves_of, distances_of
from flannel_pl.analysis.group_epochs import epochs_of


@dataclass(frozen=True)
class Figure:
    """One number over runs."""

    mean: float

    std: float | None
    """Sample standard deviation over runs, or over pairs of them; None for a single value."""

    num: int
    """Runs, or pairs, that have it."""


Find = Callable[[Group], Figure | None]


def over(values: Iterable[float | None]) -> Figure | None:
    """Returns mean and spread of the values that there are.

    Example:
        >>> over([1.0, None, 3.0])
        Figure(mean=2.0, std=1.4142135623730951, num=2)
    """
    there = [value for value in values if value is not None and np.isfinite(value)]
    if not there:
        return None
    std = float(np.std(there, ddof=1)) if len(there) > 1 else None
    return Figure(float(np.mean(there)), std, len(there))


def series_at(token_set: str, name: str, step: int | None) -> Find:
    """Finds the value of a series at a step (None = the last that all runs have)."""

    def find(group: Group) -> Figure | None:
        curves = curves_of([group], token_set, name)
        return _row(curves[0], step) if curves else None

    return find


def distance_at(token_set: str, step: int | None) -> Find:
    """Finds the Frobenius distance between runs at a step, over pairs."""

    def find(group: Group) -> Figure | None:
        distances = distances_of(group, token_set)
        return _row(distances[0], step) if distances else None

    return find


def evolution_at(token_set: str, step: int | None) -> Find:
    """Finds the Frobenius distance of a run from its own start at a step."""

    def find(group: Group) -> Figure | None:
        distances = distances_of(group, token_set)
        return _row(distances[1], step) if distances else None

    return find


def distance_ratio_at(token_set: str, step: int | None) -> Find:
    """Finds the mean distance between runs over the mean distance from their own starts."""

    def find(group: Group) -> Figure | None:
        between, own = distance_at(token_set, step)(group), evolution_at(token_set, step)(group)
        return Figure(between.mean / own.mean, None, between.num) if between and own and own.mean else None

    return find


def fastest_parting(token_set: str, pick: Callable[[Curve, int], float]) -> Find:
    """Finds where the mean distance between runs grows fastest.

    Args:
        token_set: dead, live or all.
        pick: Of the curve of distances and the row before that growth, the number wanted.
    """

    def find(group: Group) -> Figure | None:
        distances = distances_of(group, token_set)
        if distances is None or len(distances[0].steps_R) < 2:
            return None
        row = int(np.argmax(np.diff(distances[0].mean_R)))
        return Figure(float(pick(distances[0], row)), None, len(distances[0].values_NR))

    return find


def epoch_of_each(token_set: str, mark: str, what: str) -> Find:
    """Finds a number of the epochs that rule A finds in each run.

    Args:
        token_set: dead, live or all.
        mark: inhale, sneeze or freeze.
        what: step or value, see `epochs.Mark`.
    """

    def find(group: Group) -> Figure | None:
        found = epochs_of(group, token_set)
        return over(getattr(getattr(epochs, mark), what) for epochs in found[0].runs) if found else None

    return find


def epoch_of_mean(token_set: str, mark: str, what: str) -> Find:
    """Finds a number of the epochs that rule A finds in the mean over runs.

    Args and Returns as of `epoch_of_each`; the spread is that of what the rule finds in each run.
    """

    def find(group: Group) -> Figure | None:
        found = epochs_of(group, token_set)
        value = getattr(getattr(found[0].mean, mark), what) if found else None
        if value is None:
            return None
        each = epoch_of_each(token_set, mark, what)(group)
        return Figure(value, each.std if each else None, len(group.runs))

    return find


def inhale_depth(token_set: str) -> Find:
    """Finds by how much the origin radius shrinks in each run, in the weights' unit."""

    def find(group: Group) -> Figure | None:
        curves, found = curves_of([group], token_set, "origin_radius"), epochs_of(group, token_set)
        if not curves or not found:
            return None
        starts = curves[0].values_NR[:, 0]
        return over(
            None if epochs.inhale.value is None else epochs.inhale.value * start
            for epochs, start in zip(found[0].runs, starts, strict=True)
        )

    return find


def mean_loss(last_step: int | None = None) -> Find:
    """Finds the mean loss over the steps, of runs that end at `last_step` (None = whenever)."""

    def find(group: Group) -> Figure | None:
        runs = [run for run in group.runs if last_step is None or run.steps_R[-1] == last_step]
        losses = [run.scalars["loss"][1:] for run in runs if "loss" in run.scalars]  # row 0 has none
        return over(float(loss_R.mean()) for loss_R in losses if len(loss_R))

    return find


def _row(curve: Curve, step: int | None) -> Figure | None:
    rows = np.flatnonzero(curve.steps_R == (curve.steps_R[-1] if step is None else step))
    return over(curve.values_NR[:, rows[0]]) if len(rows) else None
