"""How large is a difference, in the spread of runs: Hedges' g, and d_z of pairs, with exact intervals.

- Not paired: g = J(n1 + n2 - 2) (mean1 - mean2) / s_pooled.
- Paired: d_z = J(n - 1) mean(d) / s(d), of the differences d.

J(m) = Gamma(m / 2) / (sqrt(m / 2) Gamma((m - 1) / 2)) takes the bias out that few runs bring. If runs are
normal (and, not paired, of one variance), t has a noncentral t distribution, whose noncentrality is the true
effect times sqrt(n1 n2 / (n1 + n2)), or sqrt(n): the interval has those effects under which the t that was
found is neither in the upper nor in the lower 2.5 %. It is of the true effect, and so without J, which would
make it too short.

The difference and the spread it is divided by come from the same runs. A difference between mean curves has
no such spread, and is never divided by one: see `sensitivity`.

Source: Hedges, J. Educ. Statist. 6 (1981) 107; Steiger, Fouladi, in What If There Were No Significance
Tests? (1997), chapter 9.

Shape suffixes: N runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flannel_pl.analysis.statistics.intervals import LEVEL, Interval, finite
from flannel_pl.analysis.statistics.noncentral import noncentrality
from flannel_pl.arrays import Array


@dataclass(frozen=True)
class Effect:
    """A difference in units of the spread of runs."""

    size: float
    """Corrected for bias."""

    interval: Interval
    """Of the true effect."""

    kind: str
    """g, of arms that are not paired, or d_z."""


def hedges_g(
    values: Sequence[float] | Array, reference: Sequence[float] | Array, *, level: float = LEVEL
) -> Effect | None:
    """Returns Hedges' g of two arms that are not paired.

    Args:
        values: One number a run of the one arm.
        reference: Of the other, which is subtracted.
        level: Of the interval.

    Returns:
        None for fewer than two runs of an arm, or where no arm has a spread.

    Example:
        >>> effect = hedges_g([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
        >>> round(effect.size, 6), effect.interval.spans(0)
        (1.595769, True)
    """
    values_N, reference_N = finite(values), finite(reference)
    ours, theirs = len(values_N), len(reference_N)
    if min(ours, theirs) < 2 or (np.ptp(values_N) == 0 and np.ptp(reference_N) == 0):
        return None
    freedom = ours + theirs - 2
    squares = values_N.var() * ours + reference_N.var() * theirs
    d = float((values_N.mean() - reference_N.mean()) / math.sqrt(squares / freedom))
    return _effect(d, freedom, math.sqrt(ours * theirs / (ours + theirs)), level, "g")


def paired_effect(differences: Sequence[float] | Array, *, level: float = LEVEL) -> Effect | None:
    """Returns d_z of paired differences, corrected for bias.

    Args:
        differences: One for each seed that both arms have.
        level: Of the interval.

    Returns:
        None for fewer than two, or where they have no spread.

    Example:
        >>> round(paired_effect([1.0, 2.0, 3.0]).size, 6)
        1.128379
    """
    differences_N = finite(differences)
    num = len(differences_N)
    if num < 2 or np.ptp(differences_N) == 0:
        return None
    d = float(differences_N.mean() / differences_N.std(ddof=1))
    return _effect(d, num - 1, math.sqrt(num), level, "d_z")


def bias_factor(freedom: int) -> float:
    """Returns J, by which an effect size of so many degrees of freedom is multiplied.

    Example:
        >>> round(bias_factor(4), 6), round(bias_factor(18), 6)
        (0.797885, 0.957646)
    """
    return math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)


def _effect(d: float, freedom: int, scale: float, level: float, kind: str) -> Effect:
    tail = (1 - level) / 2
    unbiased = bias_factor(freedom) if freedom > 1 else 1.0  # of one degree of freedom there is no J
    low, high = (noncentrality(d * scale, freedom, below) / scale for below in (1 - tail, tail))
    return Effect(unbiased * d, Interval(low, high, level, "noncentral t"), kind)
