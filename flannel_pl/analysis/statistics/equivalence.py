"""'No effect' as a claim: two one-sided tests against a margin that was stated before.

The two means are equivalent within the margin if the difference is shown to be above -margin and below
+margin, each by a one-sided t test (Welch's, or of paired differences); p is the larger of the two. It is the
same as asking whether an interval of level 1 - 2 alpha, 90 % for 5 %, lies within the margin. That a test
found no difference is no such claim: few runs find none either.

Runs without any spread have no t. If the difference is within the margin all the same, p is 0.5^n: were the
true median at the margin, each of n runs would lie on the inner side by a coin's throw.

Source: Schuirmann, J. Pharmacokin. Biopharm. 15 (1987) 657.

Shape suffixes: N runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flannel_pl.analysis.statistics.intervals import Interval, finite, welch
from flannel_pl.arrays import Array


@dataclass(frozen=True)
class Equivalence:
    """What two one-sided tests say."""

    margin: float
    """In the unit of the values."""

    p: float
    """The larger of the two; at most 5 %: equivalent."""

    interval: Interval
    """Of level 90 %."""


def equivalence(
    values: Sequence[float] | Array, reference: Sequence[float] | Array, margin: float
) -> Equivalence | None:
    """Tests whether the means of two arms that are not paired are nearer to each other than a margin.

    Args:
        values: One number a run of the one arm.
        reference: Of the other.
        margin: Above 0, in the unit of the values.

    Returns:
        None for fewer than two runs of an arm.

    Raises:
        ValueError: If the margin is not above 0, or a value is not finite.

    Example:
        >>> found = equivalence([1.0, 1.1, 0.9], [1.0, 1.1, 1.2], 1.0)
        >>> round(found.p, 5), round(found.interval.low, 3), round(found.interval.high, 3)
        (0.00019, -0.274, 0.074)
    """
    values_N, reference_N = finite(values), finite(reference)
    fewest = min(len(values_N), len(reference_N))
    if fewest < 2:
        return None
    difference = float(values_N.mean() - reference_N.mean())
    if np.ptp(values_N) == 0 and np.ptp(reference_N) == 0:
        return _two_one_sided(difference, 0.0, 1.0, margin, num=fewest)
    return _two_one_sided(difference, *welch(values_N, reference_N), margin, num=fewest)


def paired_equivalence(differences: Sequence[float] | Array, margin: float) -> Equivalence | None:
    """Tests whether the mean of paired differences is nearer to 0 than a margin.

    Args:
        differences: One for each seed that both arms have.
        margin: Above 0, in the unit of the values.

    Returns:
        None for fewer than two.

    Raises:
        ValueError: As of `equivalence`.

    Example:
        >>> round(paired_equivalence([0.1, -0.1, 0.05, -0.05], 0.5).p, 5)
        0.00081
    """
    differences_N = finite(differences)
    num = len(differences_N)
    if num < 2:
        return None
    error = 0.0 if np.ptp(differences_N) == 0 else float(differences_N.std(ddof=1)) / num**0.5
    return _two_one_sided(float(differences_N.mean()), error, num - 1, margin, num=num)


def _two_one_sided(
    difference: float, error: float, freedom: float, margin: float, *, num: int
) -> Equivalence:
    from scipy import stats

    if not margin > 0:
        raise ValueError(f"got a margin of {margin}, expected one above 0, in the unit of the values")
    if error == 0:
        p = 0.5**num if abs(difference) < margin else 1.0
        return Equivalence(margin, p, Interval(difference, difference, 0.9, "constant"))
    nearer = (margin - abs(difference)) / error  # the test against the farther margin has the smaller p
    reach = float(stats.t.ppf(0.95, freedom)) * error
    interval = Interval(difference - reach, difference + reach, 0.9, "t")
    return Equivalence(margin, float(stats.t.sf(nearer, freedom)), interval)
