"""How many seeds would have shown it? The power of the permutation tests that `arms` makes.

The power is that of the very test, not of a t test: 5 pairs never have a p below .0625, whatever a t test
would say. Where there are few permutations, 2000 studies with normal runs are simulated and tested; where
there are many, p is near that of a t test of the level that the permutations can reach,

    P(|T| > t), T noncentral t with noncentrality d sqrt(n), or d sqrt(n / 2) of two arms that are not paired.

In a table of m comparisons each is held against alpha / m, which is what Holm asks of the smallest p; of the
others he asks less, so that the power is at least this.

d is the true difference in standard deviations: of paired differences (d_z), or of the runs of an arm.

Source: Cohen, Statistical Power Analysis (1988), chapter 2, for the t test.

Shape suffixes: T simulated studies, N runs, P permutations.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from flannel_pl.analysis.statistics.noncentral import beyond
from flannel_pl.analysis.statistics.permutations import choices_of, signs_of
from flannel_pl.arrays import Array

ALPHA, POWER = 0.05, 0.8
STUDIES = 2000
ALWAYS_SIMULATED, MOST_SIMULATED = 1024, 65_536
"""Permutations up to which studies are simulated: ten pairs, or six runs against six; 16 pairs, or nine runs
against nine, where few of them are a finding."""

FEW_FINDINGS = 128
"""Permutations that are a finding, below which p is not near that of a t test."""

MOST_EFFECT = 20.0
MOST_SEEDS = 200
"""Where `seeds_needed` gives up."""


@lru_cache(maxsize=256)
def power_of(d: float, num: int, *, paired: bool, alpha: float = ALPHA, comparisons: int = 1) -> float:
    """Returns the chance to show a true effect.

    Args:
        d: The effect, in standard deviations (of paired differences, where paired).
        num: Pairs, or runs of each of the two arms.
        paired: Whether the arms share their seeds.
        alpha: Level of the whole table.
        comparisons: In that table.

    Returns:
        0 to 1; within 3 points of the truth.

    Example:
        >>> power_of(5.0, 5, paired=True), round(power_of(1.0, 30, paired=True), 2)
        (0.0, 1.0)
    """
    num_permutations, level = _reachable(num, paired, alpha / comparisons)
    if not level:
        return 0.0
    few = level * num_permutations < FEW_FINDINGS and num_permutations <= MOST_SIMULATED
    if few or num_permutations <= ALWAYS_SIMULATED:
        return _simulated(d, num, paired, alpha / comparisons)
    return _by_t(d, num, paired, level)


def seeds_needed(
    d: float, *, paired: bool, power: float = POWER, alpha: float = ALPHA, comparisons: int = 1
) -> int | None:
    """Returns how many seeds would show a true effect with a given chance.

    Args:
        d: As of `power_of`, and so are `paired`, `alpha` and `comparisons`.
        paired: Whether the arms share their seeds.
        power: The chance.
        alpha: Level of the whole table.
        comparisons: In that table.

    Returns:
        Pairs, or runs of each arm; None if more than MOST_SEEDS.

    Example:
        >>> seeds_needed(1.0, paired=False), seeds_needed(0.01, paired=True)
        (17, None)
    """
    for num in range(2, MOST_SEEDS + 1):
        _, level = _reachable(num, paired, alpha / comparisons)
        # What a t test cannot show, permutations hardly can: no need to simulate.
        if not level or _by_t(d, num, paired, level) < power - 0.02:
            continue
        if power_of(d, num, paired=paired, alpha=alpha, comparisons=comparisons) >= power:
            return num
    return None


@lru_cache(maxsize=256)
def smallest_effect(
    num: int, *, paired: bool, power: float = POWER, alpha: float = ALPHA, comparisons: int = 1
) -> float | None:
    """Returns the least true effect that so many seeds would show with a given chance.

    Args:
        num: As of `power_of`, and so are `paired`, `alpha` and `comparisons`.
        paired: Whether the arms share their seeds.
        power: The chance.
        alpha: Level of the whole table.
        comparisons: In that table.

    Returns:
        d to 0.01; None if the test can show nothing with so few, or would need a d above MOST_EFFECT.

    Example:
        >>> smallest_effect(5, paired=True) is None, 0.9 < smallest_effect(10, paired=True) < 1.1
        (True, True)
    """
    _, level = _reachable(num, paired, alpha / comparisons)
    if not level or _by_t(MOST_EFFECT, num, paired, level) < power:
        return None
    by_t = _bisected(lambda d: _by_t(d, num, paired, level) >= power, 0.0, MOST_EFFECT)
    # Permutations need a little more than a t test: simulated studies are costly, so look near it only.
    return round(
        _bisected(
            lambda d: power_of(d, num, paired=paired, alpha=alpha, comparisons=comparisons) >= power,
            *(0.9 * by_t, 2 * by_t),
        ),
        2,
    )


def _bisected(enough: Callable[[float], bool], low: float, high: float) -> float:
    """Returns the least number that is enough, to 0.01, where all larger ones are."""
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _reachable(num: int, paired: bool, alpha: float) -> tuple[int, float]:
    """Returns how many permutations there are, and the largest p up to alpha among theirs; 0 for none.

    Two-sided p go in twos: whatever is as extreme, so is its mirror image.
    """
    if num < 2:
        return 0, 0.0
    permutations = 2**num if paired else math.comb(2 * num, num)
    if permutations > 10**9:
        return permutations, alpha
    return permutations, 2 * math.floor(alpha * permutations / 2 + 1e-9) / permutations


def _by_t(d: float, num: int, paired: bool, level: float) -> float:
    from scipy import stats

    freedom, scale = (num - 1, math.sqrt(num)) if paired else (2 * num - 2, math.sqrt(num / 2))
    return beyond(float(stats.t.isf(level / 2, freedom)), freedom, d * scale)


def _simulated(d: float, num: int, paired: bool, alpha: float) -> float:
    """Tests studies of normal runs; the same noise for every d, so that power grows with it."""
    random = np.random.default_rng(num)
    noise_TN = random.standard_normal((STUDIES, num if paired else 2 * num))
    noise_TN[:, :num] += d
    p_of = _paired_p if paired else _two_sample_p
    parts = [p_of(noise_tN, num) for noise_tN in np.array_split(noise_TN, 20)]
    return float((np.concatenate(parts) <= alpha + 1e-12).mean())


def _paired_p(differences_TN: Array, num: int) -> Array:
    sums_TP = np.abs(differences_TN @ signs_of(num)[: 2 ** (num - 1)].T)  # the other half mirrors it
    found_T1 = np.abs(differences_TN.sum(axis=1, keepdims=True))
    p_T: Array = (sums_TP >= found_T1 - 1e-10).mean(axis=1)
    return p_T


def _two_sample_p(runs_TN: Array, num: int) -> Array:
    """Returns p of arms of the same number of runs: the first half of each row, and the second.

    Of such arms Welch's |t| grows with the difference of the means: the squares of all runs are the same in
    every permutation.
    """
    chosen_PN = np.zeros((math.comb(2 * num, num), 2 * num))
    np.put_along_axis(chosen_PN, choices_of(2 * num, num).astype(np.int64), 1.0, axis=1)
    sums_TP = np.abs((runs_TN - runs_TN.mean(axis=1, keepdims=True)) @ chosen_PN.T)
    p_T: Array = (sums_TP >= sums_TP[:, :1] - 1e-10).mean(axis=1)  # the first choice is the arm itself
    return p_T
