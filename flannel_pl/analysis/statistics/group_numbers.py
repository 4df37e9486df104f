"""One number of a group of runs, with its spread: what a table of key figures or of published ones asks for.

Each function returns a function of a group, so that a table can list them; what that returns says how many
runs have the number.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from flannel_pl.analysis.statistics.curves import Curve, curves_of, distances_of
from flannel_pl.analysis.statistics.group_epochs import epochs_of
from flannel_pl.analysis.statistics.groups import Group
from flannel_pl.analysis.statistics.key_figures import mean_loss_of
from flannel_pl.analysis.statistics.series import Spread, spread, velocity

Find = Callable[[Group], Spread]

NONE = spread([])
"""Of a group that does not have the number."""


def series_at(token_set: str, name: str, step: int | None) -> Find:
    """Finds the value of a series at a step (None = the last that all runs have)."""

    def find(group: Group) -> Spread:
        curves = curves_of([group], token_set, name)
        return _row(curves[0] if curves else None, step)

    return find


def distance_at(token_set: str, step: int | None, *, own: bool = False) -> Find:
    """Finds the Frobenius distance between runs at a step, over pairs; or of each from its own start."""

    def find(group: Group) -> Spread:
        distances = distances_of(group, token_set)
        return _row(distances[own] if distances else None, step)

    return find


def distance_ratio_at(token_set: str, step: int | None) -> Find:
    """Finds the mean distance between runs over the mean distance from their own starts."""

    def find(group: Group) -> Spread:
        between, own = (distance_at(token_set, step, own=own)(group) for own in (False, True))
        if between.mean is None or not own.mean:
            return NONE
        return _single(between.mean / own.mean, between)

    return find


def fastest_parting(token_set: str, what: str) -> Find:
    """Finds where the mean distance between runs grows fastest.

    Args:
        token_set: dead, live or all.
        what: value (by how much per step) or step (the one before that growth).
    """

    def find(group: Group) -> Spread:
        distances = distances_of(group, token_set)
        if distances is None or len(distances[0].steps_R) < 2:
            return NONE
        curve = distances[0]
        growth_R = velocity(curve.mean_R, curve.steps_R)
        if not np.isfinite(growth_R).any():
            return NONE
        row = int(np.nanargmax(growth_R))
        return _single({"value": growth_R, "step": curve.steps_R}[what][row], _row(curve, None))

    return find


def epoch_of_each(token_set: str, mark: str, what: str) -> Find:
    """Finds a number of the epochs that rule A finds in each run.

    Args:
        token_set: dead, live or all.
        mark: inhale, sneeze or freeze.
        what: step or value, see `epochs.Mark`.
    """

    def find(group: Group) -> Spread:
        found = epochs_of(group, token_set)
        return spread([getattr(getattr(epochs, mark), what) for epochs in found[0].runs] if found else [])

    return find


def epoch_of_mean(token_set: str, mark: str, what: str) -> Find:
    """Finds a number of the epochs that rule A finds in the mean curve, which has no spread.

    Args and Returns as of `epoch_of_each`; the runs are those that are in the mean.
    """

    def find(group: Group) -> Spread:
        found = epochs_of(group, token_set)
        value = getattr(getattr(found[0].mean, mark), what) if found else None
        return NONE if value is None else _single(value, found[0].over_runs(mark))

    return find


def inhale_depth(token_set: str) -> Find:
    """Finds by how much the origin radius shrinks in each run, in the weights' unit."""

    def find(group: Group) -> Spread:
        curves, found = curves_of([group], token_set, "origin_radius"), epochs_of(group, token_set)
        if not curves or not found:
            return NONE
        starts = curves[0].values_NR[:, 0]
        return spread(
            [
                None if epochs.inhale.value is None else epochs.inhale.value * start
                for epochs, start in zip(found[0].runs, starts, strict=True)
            ]
        )

    return find


def mean_loss(last_step: int | None = None) -> Find:
    """Finds the mean loss over the steps, of runs that end at `last_step` (None = whenever)."""

    def find(group: Group) -> Spread:
        ends_there = [last_step is None or run.steps_R[-1] == last_step for run in group.runs]
        return spread(
            [mean_loss_of(run) if ends else None for run, ends in zip(group.runs, ends_there, strict=True)]
        )

    return find


def _row(curve: Curve | None, step: int | None) -> Spread:
    if curve is None:
        return NONE
    rows = np.flatnonzero(curve.steps_R == (curve.steps_R[-1] if step is None else step))
    if not len(rows):
        return NONE
    values_NR = curve.values_NR[:, : rows[0] + 1]
    if curve.skipped_NR is None:
        return spread(values_NR[:, -1].tolist())
    # What holds in the row of a skipped step is what held in the row before it.
    taken = [np.flatnonzero(~skipped_R)[-1] for skipped_R in curve.skipped_NR[:, : rows[0] + 1]]
    return spread([values_R[row] for values_R, row in zip(values_NR, taken, strict=True)])


def _single(value: float, over: Spread) -> Spread:
    return replace(NONE, mean=float(value), num_reached=over.num_reached, num_runs=over.num_runs)
