"""Intervals of a mean, and of a difference of two, over few runs: the unit is the run, never the token.

What is used is the studentized bootstrap with a smoothed sample, since it alone covers what it promises with
three to ten runs (docs/statistics.md has the figures): the resampled runs get normal noise of a standard
deviation s / sqrt(n), and quantiles are of t* = (mean* - mean) / (s* / sqrt(n)), so that

    mean - t*_(97.5 %) s / sqrt(n)  to  mean - t*_(2.5 %) s / sqrt(n).

Quantiles of resampled means, which is what is mostly called "the bootstrap", lie within the range of the
runs, and that covers a symmetric distribution's mean in 1 - 2^(1 - n) of all studies: 75 % with 3 runs,
93.75 % with 5.

Source: Efron, Tibshirani, An Introduction to the Bootstrap (1993), chapter 12 (bootstrap-t); Polansky,
Schucany, J. R. Statist. Soc. B 59 (1997) 821 (smoothing); Welch, Biometrika 34 (1947) 28 (two variances).

Shape suffixes: N runs, B bootstrap draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flannel_pl.arrays import Array

LEVEL = 0.95
DRAWS = 4999
"""Of a bootstrap. They come from a fixed seed, so that the same runs have the same interval."""

FEWEST_FOR_BOOTSTRAP = 3
"""Two runs have Student's interval: there is one resample of them that is not constant."""


@dataclass(frozen=True)
class Interval:
    """Where a number is, by what is known."""

    low: float
    high: float
    level: float

    method: str
    """smoothed studentized bootstrap, t, ..., or constant: all values are the same one, which has no spread
    to make an interval of."""

    def spans(self, value: float) -> bool:
        """Returns whether a value lies in it, ends included."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of means, with its uncertainty."""

    value: float
    std: float | None
    """Sample standard deviation over runs, of paired differences over pairs; None for one, and for the
    difference of two arms that are not paired."""

    num: int
    """Runs, or pairs; of two arms that are not paired the smaller number."""

    interval: Interval | None
    """None for fewer than two runs."""

    t_interval: Interval | None
    """Student's, or Welch's: what the bootstrap can be held against. It is exact for normal values and too
    short for skewed ones."""


def finite(values: Sequence[float] | Array) -> Array:
    """Returns values as (N,) float64.

    Raises:
        ValueError: If one is not finite: what to do without a run is decided by whoever knows which it is.
    """
    values_N = np.asarray(values, np.float64).reshape(-1)
    if not np.isfinite(values_N).all():
        raise ValueError(f"got {values_N.tolist()}, expected finite numbers; leave such runs out by name")
    return values_N


def mean_interval(
    values: Sequence[float] | Array, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Returns the mean over runs with an interval that covers the true one in `level` of all studies.

    Args:
        values: One number a run.
        level: Of the interval.
        draws: Of the bootstrap.
        seed: Of its random numbers.

    Returns:
        Without an interval for a single run; Student's for two.

    Raises:
        ValueError: If there is no value, or one that is not finite.

    Example:
        >>> found = mean_interval([287, 240, 378, 305, 380, 265, 267, 254, 317, 257])
        >>> found.value, round(found.interval.low), round(found.interval.high)
        (295.0, 265, 346)
    """
    values_N = finite(values)
    num = len(values_N)
    if not num:
        raise ValueError("got no value, expected one a run")
    mean = float(values_N.mean())
    if num == 1:
        return Estimate(mean, None, 1, None, None)
    if np.ptp(values_N) == 0:
        same = Interval(float(values_N[0]), float(values_N[0]), level, "constant")
        return Estimate(same.low, 0.0, num, same, same)
    std = float(values_N.std(ddof=1))
    error = std / math.sqrt(num)
    student = _around(mean, error, _student(level, num - 1), level, "t")
    if num < FEWEST_FOR_BOOTSTRAP:
        return Estimate(mean, std, num, student, student)
    shift_B, variance_B = _smoothed_draws(values_N, np.random.default_rng(seed), draws)
    return Estimate(mean, std, num, _studentized(mean, error, shift_B, variance_B, level), student)


def difference_interval(
    values: Sequence[float] | Array,
    reference: Sequence[float] | Array,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Returns the difference of two means whose runs are not paired, with its interval.

    The variances may differ (Welch): the statistic is the difference over sqrt(s1^2 / n1 + s2^2 / n2). Paired
    runs have `mean_interval` of their differences.

    Args:
        values: One number a run of the one arm.
        reference: Of the other, which is subtracted.
        level: As of `mean_interval`, and so are `draws` and `seed`.
        draws: Of the bootstrap.
        seed: Of its random numbers.

    Raises:
        ValueError: If an arm has no value, or one that is not finite.

    Example:
        >>> found = difference_interval([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
        >>> found.value, found.interval.spans(2.0), found.interval.spans(9.0)
        (2.0, True, False)
    """
    arms = [finite(values), finite(reference)]
    if not all(len(arm_N) for arm_N in arms):
        raise ValueError("got an arm without a value, expected one a run")
    difference = float(arms[0].mean() - arms[1].mean())
    fewest = min(len(arm_N) for arm_N in arms)
    if fewest < 2:
        return Estimate(difference, None, fewest, None, None)
    if all(np.ptp(arm_N) == 0 for arm_N in arms):
        same = Interval(difference, difference, level, "constant")
        return Estimate(difference, None, fewest, same, same)
    error, freedom = welch(*arms)
    student = _around(difference, error, _student(level, freedom), level, "t")
    if fewest < FEWEST_FOR_BOOTSTRAP:
        return Estimate(difference, None, fewest, student, student)
    random = np.random.default_rng(seed)
    (shift_B, variance_B), (other_B, other_variance_B) = (
        _smoothed_draws(arm_N, random, draws) for arm_N in arms
    )
    interval = _studentized(difference, error, shift_B - other_B, variance_B + other_variance_B, level)
    return Estimate(difference, None, fewest, interval, student)


def welch(values_N: Array, reference_N: Array) -> tuple[float, float]:
    """Returns the standard error of a difference of means, and Welch's degrees of freedom.

    Example:
        >>> welch(np.array([1.0, 3.0]), np.array([0.0, 2.0]))
        (1.4142135623730951, 2.0)
    """
    parts = [arm_N.var(ddof=1) / len(arm_N) for arm_N in (values_N, reference_N)]
    below = sum(
        part**2 / (len(arm_N) - 1) for part, arm_N in zip(parts, (values_N, reference_N), strict=True)
    )
    return math.sqrt(sum(parts)), float(sum(parts) ** 2 / below)


def _student(level: float, freedom: float) -> float:
    from scipy import stats  # slow to import, and nothing that is light needs it

    return float(stats.t.ppf((1 + level) / 2, freedom))


def _around(center: float, error: float, reach: float, level: float, method: str) -> Interval:
    return Interval(center - reach * error, center + reach * error, level, method)


def _smoothed_draws(values_N: Array, random: np.random.Generator, draws: int) -> tuple[Array, Array]:
    """Returns by how much the mean of each draw differs from that of the runs, and its squared error."""
    num = len(values_N)
    noise_BN = random.standard_normal((draws, num)) * (values_N.std(ddof=1) / math.sqrt(num))
    drawn_BN = values_N[random.integers(0, num, (draws, num))] + noise_BN
    return drawn_BN.mean(axis=1) - values_N.mean(), drawn_BN.var(axis=1, ddof=1) / num


def _studentized(center: float, error: float, shift_B: Array, variance_B: Array, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(shift_B / np.sqrt(variance_B), [tail, 1 - tail])
    name = "smoothed studentized bootstrap"
    return Interval(center - float(high) * error, center - float(low) * error, level, name)
