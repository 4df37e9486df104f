"""Series over rows and numbers over runs: means, spreads, running means.

Shape suffixes: R rows, N runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flannel_pl.arrays import Array


@dataclass(frozen=True)
class Spread:
    """One number over several runs, or pairs of them."""

    mean: float | None
    std: float | None
    """Sample standard deviation; None for fewer than two runs."""

    least: float | None
    most: float | None
    num_reached: int
    """Runs that have it."""

    num_runs: int


def spread(values: Sequence[float | None]) -> Spread:
    """Returns mean, sample standard deviation and range of the numbers that there are.

    Args:
        values: One per run; None, NaN or infinity where it does not have the number.

    Example:
        >>> spread([2, 4, None])
        Spread(mean=3.0, std=1.4142135623730951, least=2, most=4, num_reached=2, num_runs=3)
    """
    reached = [value for value in values if value is not None and math.isfinite(value)]
    if not reached:
        return Spread(None, None, None, None, 0, len(values))
    std = float(np.std(reached, ddof=1)) if len(reached) > 1 else None
    return Spread(float(np.mean(reached)), std, min(reached), max(reached), len(reached), len(values))


def mean_and_std(values_NR: Array) -> tuple[Array, Array]:
    """Returns mean and sample standard deviation over runs, where a run is NaN over the others.

    Returns:
        Two (R,) float64 arrays; NaN where there is no run, and no two for the standard deviation.

    Example:
        >>> [x.tolist() for x in mean_and_std(np.array([[1.0, 2.0], [3.0, np.nan]]))]
        [[2.0, 2.0], [1.4142135623730951, nan]]
    """
    count_R = np.isfinite(values_NR).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_R = np.nansum(values_NR, axis=0) / count_R
        std_R = np.sqrt(np.nansum((values_NR - mean_R) ** 2, axis=0) / (count_R - 1))
    std_R[count_R < 2] = np.nan
    return mean_R, std_R


def velocity(values: Array, steps_R: Array) -> Array:
    """Returns the change per step, of one series or several; number k leads from row k to row k + 1.

    Example:
        >>> velocity(np.array([1.0, 2.0, 6.0]), np.array([0, 1, 3])).tolist()
        [1.0, 2.0]
    """
    per_step: Array = np.diff(values) / np.diff(steps_R)
    return per_step


def smoothed(values_R: Array, window: int) -> Array:
    """Returns the running mean over a centred box, over what there is of it at the ends and beside NaN.

    Args:
        values_R: A series.
        window: Rows of the box, odd.

    Returns:
        (R,) float64; NaN where the series is.

    Example:
        >>> smoothed(np.array([np.nan, 1.0, 2.0, 6.0]), 3).tolist()
        [nan, 1.5, 3.0, 4.0]
    """
    there_R = np.isfinite(values_R)
    box = np.ones(min(window, 2 * len(values_R) - 1))
    start = len(box) // 2
    rows = slice(start, start + len(values_R))
    sum_R = np.convolve(np.where(there_R, values_R, 0), box)[rows]
    count_R = np.convolve(there_R.astype(np.float64), box)[rows]
    return np.where(there_R, sum_R / np.maximum(count_R, 1), np.nan)
