"""How fast do two runs part? The rate at which their distance grows, where it grows exponentially.

    log |W_1(t) - W_2(t)| = a + rate t

within a window of steps, which is told along with the rate: for a chaotic system that is its largest Lyapunov
exponent, as long as the distance is small against that of runs that have nothing in common any more. The
window begins at the first row in which the runs differ and ends before the distance first reaches a given
part of its plateau (the median of its last tenth). Runs that differ from the first row on as much as later,
such as two seeds, have no such window, and then no rate is given.

Over several pairs the unit is the run: pairs that share one are not independent, so the interval is a
jackknife that leaves out all pairs of one run.

Source: Wolf, Swift, Swinney, Vastano, Physica D 16 (1985) 285; Rosenstein, Collins, De Luca, Physica D 65
(1993) 117.

Shape suffixes: R rows, P pairs of runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flannel_pl.analysis.statistics.intervals import LEVEL, Interval
from flannel_pl.analysis.statistics.jackknife import BLOCKS, blocks_of, jackknife
from flannel_pl.arrays import Array

CEILING = 0.1
"""Part of the plateau at which the window ends."""

FEWEST_ROWS = 5
LEAST_GROWTH = 10.0
"""Factor over the window without which a straight line says little."""


@dataclass(frozen=True)
class GrowthRate:
    """How fast a distance grows."""

    rate: float | None
    """Per step, of the natural logarithm; None where there is none, see `reason`."""

    error: float | None
    interval: Interval | None
    """Of one pair: over blocks of steps within the window."""

    window: tuple[int, int] | None
    """First and last step of the fit."""

    growth: float | None
    """Factor by which the distance grows within it."""

    r_squared: float | None
    plateau: float | None
    reason: str = ""

    @property
    def doubling_steps(self) -> float | None:
        """Steps in which the distance doubles."""
        return float(np.log(2) / self.rate) if self.rate else None


@dataclass(frozen=True)
class PairedGrowth:
    """The same of several pairs of runs."""

    pairs: tuple[GrowthRate, ...]

    mean: float | None
    """Over the pairs that have a rate."""

    error: float | None
    interval: Interval | None
    """Over runs; None for fewer than three."""

    num_without: int
    """Pairs without a rate."""


def divergence_rate(
    distance_R: Array,
    steps_R: Array,
    *,
    window: tuple[int, int] | None = None,
    ceiling: float = CEILING,
    blocks: int = BLOCKS,
    level: float = LEVEL,
) -> GrowthRate:
    """Fits how fast two runs part.

    Args:
        distance_R: Between them, in each row.
        steps_R: Step of each row.
        window: First and last step of the fit; None: found as above.
        ceiling: Part of the plateau at which a window that is found ends.
        blocks: Of steps, for the interval.
        level: Of the interval.

    Example:
        >>> steps = np.arange(100)
        >>> found = divergence_rate(np.minimum(1e-6 * np.exp(0.25 * steps), 1.0), steps)
        >>> round(found.rate, 6), found.window
        (0.25, (0, 46))
    """
    if not np.isfinite(distance_R).all():
        return _none("the distance is not finite everywhere")
    apart = np.flatnonzero(distance_R > 0)
    if not len(apart):
        return _none("the runs never differ")
    plateau = float(np.median(distance_R[-max(1, len(distance_R) // 10) :]))
    if window is None:
        above = np.flatnonzero(distance_R >= ceiling * plateau)
        rows = np.arange(above[0] if len(above) else len(distance_R))
        where = f"before the distance reaches {ceiling:.0%} of its plateau"
    else:
        rows = np.flatnonzero((steps_R >= window[0]) & (steps_R <= window[1]))
        where = f"from step {window[0]} to {window[1]}"
    rows = rows[distance_R[rows] > 0]
    if len(rows) < FEWEST_ROWS:
        return _none(f"{len(rows)} rows {where} are too few for a slope", plateau)
    log_R, at_R = np.log(distance_R[rows]), steps_R[rows].astype(np.float64)
    growth = float(distance_R[rows[-1]] / distance_R[rows[0]])
    if window is None and growth < LEAST_GROWTH:
        return _none(f"it grows by a factor of {growth:.3g} only {where}", plateau)

    def slope(left_R: Array) -> float:
        return float(np.polyfit(at_R[left_R], log_R[left_R], 1)[0])

    rate, offset = np.polyfit(at_R, log_R, 1)
    total = float(np.square(log_R - log_R.mean()).sum())
    rest = float(np.square(log_R - offset - rate * at_R).sum())
    error, interval = jackknife(slope, blocks_of(len(rows), min(blocks, len(rows) // 2)), level=level)
    ends = int(steps_R[rows[0]]), int(steps_R[rows[-1]])
    r_squared = 1 - rest / total if total else None
    return GrowthRate(float(rate), error, interval, ends, growth, r_squared, plateau)


def rate_by_ceiling(
    distance_R: Array, steps_R: Array, ceilings: Sequence[float] = (0.03, 0.1, 0.3)
) -> dict[float, GrowthRate]:
    """Returns the rate for several ends of the window: how much rests on where it ends.

    Example:
        >>> steps = np.arange(100)
        >>> found = rate_by_ceiling(np.minimum(1e-6 * np.exp(0.25 * steps), 1.0), steps)
        >>> [round(rate.rate, 6) for rate in found.values()]
        [0.25, 0.25, 0.25]
    """
    return {ceiling: divergence_rate(distance_R, steps_R, ceiling=ceiling) for ceiling in ceilings}


def divergence_rate_of_pairs(
    distance_PR: Array,
    pairs: Sequence[tuple[int, int]],
    steps_R: Array,
    *,
    window: tuple[int, int] | None = None,
    ceiling: float = CEILING,
    level: float = LEVEL,
) -> PairedGrowth:
    """Fits how fast several runs part from each other.

    Args:
        distance_PR: Of each pair, in each row.
        pairs: The two runs of each.
        steps_R: Step of each row.
        window: As of `divergence_rate`, and so is `ceiling`.
        ceiling: Part of the plateau at which a window that is found ends.
        level: Of the interval.

    Example:
        >>> steps = np.arange(100)
        >>> distance = np.minimum(1e-6 * np.exp(np.outer([0.2, 0.25, 0.3], steps)), 1.0)
        >>> found = divergence_rate_of_pairs(distance, [(0, 1), (0, 2), (1, 2)], steps)
        >>> round(found.mean, 6), found.num_without
        (0.25, 0)
    """
    rates = tuple(
        divergence_rate(distance_R, steps_R, window=window, ceiling=ceiling) for distance_R in distance_PR
    )
    there = [(pair, one.rate) for pair, one in zip(pairs, rates, strict=True) if one.rate is not None]
    without = len(rates) - len(there)
    if not there:
        return PairedGrowth(rates, None, None, None, without)
    ends_P2 = np.array([pair for pair, _ in there])
    rates_P = np.array([rate for _, rate in there])
    runs = np.unique(ends_P2)

    def mean_over(left_N: Array) -> float:
        kept_P = np.isin(ends_P2, runs[left_N]).all(axis=1)
        return float(rates_P[kept_P].mean()) if kept_P.any() else float("nan")

    error, interval = jackknife(mean_over, np.arange(len(runs)), level=level)
    found = None if interval is None or len(runs) < 3 else interval
    return PairedGrowth(rates, float(rates_P.mean()), None if found is None else error, found, without)


def _none(reason: str, plateau: float | None = None) -> GrowthRate:
    return GrowthRate(None, None, None, None, None, None, plateau, reason)
