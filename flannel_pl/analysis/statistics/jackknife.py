"""How sure is a number of one run, or of pairs of runs? It is computed anew without each of some parts.

Neighbouring steps of a run are alike, so that residuals of a fit through all of them say nothing of its
uncertainty. What is left out is a block of steps that follow one another, or, of a number over pairs of runs,
all pairs of one run. With B parts and the numbers theta_b without each,

    standard error = sqrt((B - 1) / B  sum (theta_b - mean)^2),

and the interval is Student's of B - 1 degrees of freedom. Between blocks there must be little left of what
connects neighbouring steps: blocks longer than the lags that are looked at.

Source: Efron, Tibshirani, An Introduction to the Bootstrap (1993), chapter 11; Kuensch, Ann. Statist. 17
(1989) 1217 (blocks).

Shape suffixes: B parts, R rows.
"""

from collections.abc import Callable

import numpy as np

from flannel_pl.analysis.statistics.intervals import LEVEL, Interval
from flannel_pl.arrays import Array

BLOCKS = 10


def jackknife(
    number_of: Callable[[Array], float], parts_R: Array, *, level: float = LEVEL
) -> tuple[float, Interval | None]:
    """Returns a number's standard error and interval.

    Args:
        number_of: Returns the number of some of the rows, given as (R,) bool: those that are left.
        parts_R: Which part each row belongs to.
        level: Of the interval.

    Returns:
        NaN and None if there is one part, or the number is not finite without one of them.

    Example:
        >>> values = np.array([1.0, 2.0, 3.0, 6.0])
        >>> error, interval = jackknife(lambda left: float(values[left].mean()), np.arange(4))
        >>> round(error, 4) == round(float(values.std(ddof=1)) / 2, 4)
        True
    """
    from scipy import stats

    parts = np.unique(parts_R)
    without_B = np.array([number_of(parts_R != part) for part in parts])
    if len(parts) < 2 or not np.isfinite(without_B).all():
        return float("nan"), None
    number = number_of(np.ones(len(parts_R), np.bool_))
    error = float(np.sqrt((len(parts) - 1) * without_B.var()))
    reach = float(stats.t.ppf((1 + level) / 2, len(parts) - 1)) * error
    return error, Interval(number - reach, number + reach, level, f"jackknife of {len(parts)} parts")


def blocks_of(num_rows: int, num_blocks: int = BLOCKS) -> Array:
    """Returns which of some blocks each row belongs to, (num_rows,) int64.

    Example:
        >>> blocks_of(5, 2).tolist()
        [0, 0, 0, 1, 1]
    """
    return np.arange(num_rows) * min(num_blocks, num_rows) // max(num_rows, 1)
