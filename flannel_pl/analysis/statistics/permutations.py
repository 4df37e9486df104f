"""Is there a difference at all? Permutation tests, exact wherever all permutations can be gone through.

- Paired by seed: if the arm did nothing, the sign of each seed's difference is a coin's. p is the fraction of
  the 2^n choices of signs whose sum is at least as far from 0 as the one that was found.
- Not paired: if the arm did nothing, which runs are called its own is any choice of n1 from n1 + n2. p is the
  fraction of the choices whose Welch t is at least as large. Dividing by the standard error keeps the level
  when the two variances differ, in the limit of many runs.

Both are two-sided. With few runs p cannot be small, whatever happened: see `smallest_p`.

Source: Fisher, The Design of Experiments (1935), section 21; Janssen, Statist. Probab. Lett. 36 (1997) 9, and
Chung, Romano, Ann. Statist. 41 (2013) 484 (studentizing); Phipson, Smyth, Stat. Appl. Genet. Mol. Biol. 9
(2010) 39 (p of random permutations is (1 + hits) / (1 + draws), never 0).

Shape suffixes: N runs, P permutations.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from flannel_pl.analysis.statistics.intervals import finite
from flannel_pl.arrays import Array

MOST_EXACT = 200_000
"""Permutations that are gone through one by one: up to 17 pairs, or ten runs against ten."""

RANDOM_DRAWS = 19_999
_TIE = 1e-10
"""Statistics nearer than this part of the data's size are the same but for rounding."""


@dataclass(frozen=True)
class PermutationTest:
    """A two-sided permutation test."""

    p: float

    smallest_p: float
    """The least that so many runs can give."""

    exact: bool
    """Whether every permutation was gone through."""

    num_permutations: int


def sign_flip_test(differences: Sequence[float] | Array, *, seed: int = 0) -> PermutationTest:
    """Tests whether paired differences are around 0.

    Args:
        differences: One for each seed that both arms have.
        seed: Of random signs, where there are too many for all.

    Raises:
        ValueError: If there is none, or one that is not finite.

    Example:
        >>> sign_flip_test([1.0, 2.0, 3.0]).p
        0.25
    """
    differences_N = finite(differences)
    num = len(differences_N)
    if not num:
        raise ValueError("got no difference, expected one for each seed that both arms have")
    size = float(np.abs(differences_N).max())
    scaled_N = differences_N / size if size else differences_N
    found = abs(float(scaled_N.sum()))
    smallest = smallest_paired_p(num)
    if 2**num <= MOST_EXACT:
        sums_P = signs_of(num) @ scaled_N
        return PermutationTest(float((np.abs(sums_P) >= found - _TIE).mean()), smallest, True, len(sums_P))
    random = np.random.default_rng(seed)
    signs_PN = random.integers(0, 2, (RANDOM_DRAWS, num)) * 2 - 1
    hits = int((np.abs(signs_PN @ scaled_N) >= found - _TIE).sum())
    return PermutationTest((1 + hits) / (1 + RANDOM_DRAWS), smallest, False, RANDOM_DRAWS)


def two_sample_test(
    values: Sequence[float] | Array, reference: Sequence[float] | Array, *, seed: int = 0
) -> PermutationTest:
    """Tests whether two arms that are not paired have the same mean.

    Args:
        values: One number a run of the one arm.
        reference: Of the other.
        seed: Of random choices, where there are too many for all.

    Raises:
        ValueError: If an arm has fewer than two runs, or one that is not finite.

    Example:
        >>> two_sample_test([4.0, 5.0, 6.0], [1.0, 2.0, 3.0]).p
        0.1
    """
    values_N, reference_N = finite(values), finite(reference)
    ours, theirs = len(values_N), len(reference_N)
    if min(ours, theirs) < 2:
        raise ValueError(f"got {ours} and {theirs} runs, expected two or more of each arm")
    pooled_N = np.concatenate([values_N, reference_N])
    pooled_N -= pooled_N.mean()
    size = float(np.abs(pooled_N).max())
    if size:
        pooled_N /= size
    smallest = smallest_two_sample_p(ours, theirs)
    found = _welch_t(pooled_N, np.arange(ours)[np.newaxis])[0]
    if math.comb(ours + theirs, ours) <= MOST_EXACT:
        t_P = _welch_t(pooled_N, choices_of(ours + theirs, ours))
        return PermutationTest(float((t_P >= found - _TIE).mean()), smallest, True, len(t_P))
    random = np.random.default_rng(seed)
    order_PN = random.permuted(np.tile(np.arange(ours + theirs), (RANDOM_DRAWS, 1)), axis=1)
    hits = int((_welch_t(pooled_N, order_PN[:, :ours]) >= found - _TIE).sum())
    return PermutationTest((1 + hits) / (1 + RANDOM_DRAWS), smallest, False, RANDOM_DRAWS)


def smallest_paired_p(num_pairs: int) -> float:
    """Returns the least two-sided p of a sign-flip test: all differences on one side.

    Example:
        >>> smallest_paired_p(5), smallest_paired_p(10)
        (0.0625, 0.001953125)
    """
    choices = 2.0**num_pairs
    return min(1.0, 2 / choices) if choices <= MOST_EXACT else 1 / (1 + RANDOM_DRAWS)


def smallest_two_sample_p(num_runs: int, num_reference: int) -> float:
    """Returns the least two-sided p of two arms that are not paired: all of one above all of the other.

    Example:
        >>> smallest_two_sample_p(3, 3), round(smallest_two_sample_p(5, 5), 4)
        (0.1, 0.0079)
    """
    choices = math.comb(num_runs + num_reference, num_runs)
    if choices > MOST_EXACT:
        return 1 / (1 + RANDOM_DRAWS)
    # The other way round is a choice of its own only where both arms have as many runs.
    return (2 if num_runs == num_reference else 1) / choices


@lru_cache(maxsize=32)
def signs_of(num: int) -> Array:
    """Returns all choices of signs, (2^num, num) float64."""
    bits_PN = (np.arange(2**num)[:, np.newaxis] >> np.arange(num)) & 1
    return bits_PN * 2.0 - 1.0


@lru_cache(maxsize=8)
def choices_of(num: int, chosen: int) -> Array:
    """Returns all choices of some runs, (P, chosen) int8."""
    flat = itertools.chain.from_iterable(itertools.combinations(range(num), chosen))
    return np.fromiter(flat, np.int8, math.comb(num, chosen) * chosen).reshape(-1, chosen)


def _welch_t(pooled_N: Array, chosen_PN: Array) -> Array:
    """Returns |t| of each choice of runs against the rest, of values that are centred and at most 1."""
    ours = chosen_PN.shape[1]
    theirs = len(pooled_N) - ours
    drawn_PN = pooled_N[chosen_PN]
    sum_P, squares_P = drawn_PN.sum(axis=1), np.square(drawn_PN).sum(axis=1)
    rest_P, rest_squares_P = pooled_N.sum() - sum_P, np.square(pooled_N).sum() - squares_P
    variance_P = np.zeros(len(chosen_PN))
    for num, total_P, total_squares_P in ((ours, sum_P, squares_P), (theirs, rest_P, rest_squares_P)):
        within_P = np.maximum(total_squares_P - total_P**2 / num, 0)
        within_P[within_P < _TIE**1.5] = 0  # rounding, where all are the same
        variance_P += within_P / (num * (num - 1))
    difference_P = np.abs(sum_P / ours - rest_P / theirs)
    with np.errstate(divide="ignore", invalid="ignore"):
        t_P: Array = difference_P / np.sqrt(variance_P)
    return np.where(variance_P == 0, np.where(difference_P > _TIE, np.inf, 0.0), t_P)
