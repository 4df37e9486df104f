"""How tokens move within a run: how far in which time, and for how long they keep their direction.

- Mean squared displacement: MSD(lag) = mean over starts t and tokens i of |w_i(t + lag) - w_i(t)|^2, of the
  same starts for every lag. It grows as lag^alpha: 1 is a random walk, 2 is straight ahead, below 1 is caught
  or coming to rest. alpha is the slope of log MSD over log lag, within a window of lags that is told along.
- Velocity autocorrelation: C(lag) = sum of v_i(t) . v_i(t + lag) over the root of the product of the sums of
  |v_i(t)|^2 and |v_i(t + lag)|^2, where v is the change per step: 1 at lag 0, and at most 1. A token that
  stands still takes no part. 0.5^(1 / k) per step is a memory that halves in k steps.

Both are of the weights as they are, or relative: with the set's centroid taken off in every row, so that what
is left is not the common drift. Training is not stationary: numbers are of the stretch of rows that was
given, and their intervals, a jackknife over blocks of starts, are about that stretch of that run.

Source: upstream 3.8; Metzler, Klafter, Phys. Rep. 339 (2000) 1.

Shape suffixes: R rows, S tokens of a set, D dimensions, T starts, L lags.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from flannel_pl.analysis.statistics.intervals import LEVEL, Interval
from flannel_pl.analysis.statistics.jackknife import BLOCKS, blocks_of, jackknife
from flannel_pl.arrays import Array
from flannel_pl.metrics.lattice import widen


@dataclass(frozen=True)
class Displacements:
    """Mean squared displacements of one run."""

    lags_L: Array
    """In steps, int64."""

    starts_T: Array
    """Steps from which they are, int64."""

    squared_TL: Array
    """Mean over tokens, float64."""

    @property
    def msd_L(self) -> Array:
        """Mean over starts."""
        mean_L: Array = self.squared_TL.mean(axis=0)
        return mean_L


@dataclass(frozen=True)
class Exponent:
    """By which power of the lag the mean squared displacement grows."""

    value: float | None
    """None where there is none, see `reason`."""

    error: float | None
    interval: Interval | None
    lags: tuple[int, int]
    """The window, in steps, ends included."""

    starts: tuple[int, int]
    """First and last step from which displacements are."""

    local: tuple[float, float] | None
    """Least and largest slope between neighbouring lags: far apart, there is no one exponent."""

    reason: str = ""


@dataclass(frozen=True)
class Autocorrelation:
    """How alike velocities are that lie some steps apart."""

    lags_L: Array
    """In steps, int64."""

    values_L: Array
    """NaN where nothing moved."""

    low_L: Array
    high_L: Array
    starts: tuple[int, int]
    moving_fraction: float
    """Part of the velocities, over tokens and starts, that is not 0."""

    @property
    def decay_lag(self) -> int | None:
        """The first lag at which it is below 1 / e; None if at none."""
        rows = np.flatnonzero(self.values_L < np.exp(-1))
        return int(self.lags_L[rows[0]]) if len(rows) else None


def displacements(
    W_RSD: Array, steps_R: Array, lags: Sequence[int], *, relative: bool = False
) -> Displacements:
    """Measures how far tokens get in some numbers of steps.

    Args:
        W_RSD: Weights, as stored or float; of the stretch of rows that is asked about.
        steps_R: Step of each row, evenly spaced.
        lags: In steps, each a multiple of the spacing and shorter than the stretch.
        relative: Whether the centroid is taken off in every row.

    Raises:
        ValueError: If rows are not evenly spaced, or a lag does not fit.

    Example:
        >>> W_RSD = np.arange(10.0)[:, np.newaxis, np.newaxis] * np.ones((1, 2, 1))
        >>> displacements(W_RSD, np.arange(10), [1, 2, 4]).msd_L.tolist()
        [1.0, 4.0, 16.0]
    """
    spacing = _spacing(steps_R)
    ordered = sorted(set(lags))
    if not ordered or ordered[0] < spacing or any(lag % spacing for lag in ordered):
        raise ValueError(f"got lags {list(lags)}, expected multiples of {spacing}, the steps between rows")
    hops = [lag // spacing for lag in ordered]
    num_starts = len(steps_R) - hops[-1]
    if num_starts < 1:
        raise ValueError(
            f"got a lag of {ordered[-1]} in {steps_R[-1] - steps_R[0]} steps, expected a shorter one"
        )
    W_RSD = _prepared(W_RSD, relative)
    squared_TL = np.empty((num_starts, len(hops)))
    for place, hop in enumerate(hops):
        for start in range(num_starts):  # row by row, so that memory does not grow with the stretch
            change_SD = W_RSD[start + hop] - W_RSD[start]
            squared_TL[start, place] = np.einsum("sd,sd->", change_SD, change_SD) / len(change_SD)
    return Displacements(np.array(ordered), np.asarray(steps_R[:num_starts]), squared_TL)


def exponent_of(
    found: Displacements,
    *,
    window: tuple[int, int] | None = None,
    blocks: int = BLOCKS,
    level: float = LEVEL,
) -> Exponent:
    """Fits the power by which the mean squared displacement grows with the lag.

    Args:
        found: From `displacements`.
        window: First and last lag of the fit, in steps; None: all.
        blocks: Of starts, for the interval.
        level: Of the interval.

    Returns:
        Without a value where the window has fewer than three lags, or in one of them nothing moved.

    Example:
        >>> W_RSD = np.arange(40.0)[:, np.newaxis, np.newaxis] * np.ones((1, 2, 1))
        >>> found = exponent_of(displacements(W_RSD, np.arange(40), [1, 2, 4, 8]))
        >>> round(found.value, 6), found.lags, found.starts
        (2.0, (1, 8), (0, 31))
    """
    low, high = window or (int(found.lags_L[0]), int(found.lags_L[-1]))
    inside_L = (found.lags_L >= low) & (found.lags_L <= high)
    starts = int(found.starts_T[0]), int(found.starts_T[-1])
    lags_L, squared_TL = found.lags_L[inside_L], found.squared_TL[:, inside_L]
    if len(lags_L) < 3:
        reason = f"{len(lags_L)} lags from {low} to {high} are too few for a slope"
        return Exponent(None, None, None, (low, high), starts, None, reason)
    ends = int(lags_L[0]), int(lags_L[-1])
    msd_L = squared_TL.mean(axis=0)
    if not (msd_L > 0).all() or not np.isfinite(msd_L).all():
        reason = "nothing moved" if not msd_L.any() else "at some lag nothing moved, or it is not finite"
        return Exponent(None, None, None, ends, starts, None, reason)
    log_L = np.log(lags_L)

    def slope(left_T: Array) -> float:
        mean_L = squared_TL[left_T].mean(axis=0)
        return float(np.polyfit(log_L, np.log(mean_L), 1)[0]) if (mean_L > 0).all() else float("nan")

    error, interval = jackknife(slope, blocks_of(len(squared_TL), blocks), level=level)
    local_L = np.diff(np.log(msd_L)) / np.diff(log_L)
    value = slope(np.ones(len(squared_TL), np.bool_))
    return Exponent(
        *(value, None if interval is None else error, interval, ends, starts),
        local=(float(local_L.min()), float(local_L.max())),
    )


def autocorrelation(
    W_RSD: Array,
    steps_R: Array,
    lags: Sequence[int],
    *,
    relative: bool = False,
    blocks: int = BLOCKS,
    level: float = LEVEL,
) -> Autocorrelation:
    """Measures for how long tokens keep their direction.

    Args:
        W_RSD: As of `displacements`, and so are `steps_R`, `lags` (0 is allowed) and `relative`.
        steps_R: Step of each row, evenly spaced.
        lags: In steps.
        relative: Whether the centroid is taken off in every row.
        blocks: Of starts, for the intervals.
        level: Of the intervals, of each lag by itself.

    Raises:
        ValueError: As of `displacements`.

    Example:
        >>> W_RSD = np.arange(40.0)[:, np.newaxis, np.newaxis] * np.ones((1, 2, 1))
        >>> autocorrelation(W_RSD, np.arange(40), [0, 1, 5]).values_L.tolist()
        [1.0, 1.0, 1.0]
    """
    spacing = _spacing(steps_R)
    ordered = sorted(set(lags))
    if not ordered or ordered[0] < 0 or any(lag % spacing for lag in ordered):
        raise ValueError(f"got lags {list(lags)}, expected multiples of {spacing}, the steps between rows")
    hops = [lag // spacing for lag in ordered]
    num_starts = len(steps_R) - 1 - hops[-1]
    if num_starts < 1:
        raise ValueError(
            f"got a lag of {ordered[-1]} in {steps_R[-1] - steps_R[0]} steps, expected a shorter one"
        )
    squares_R, products_TL, moving = _products_of(_prepared(W_RSD, relative), hops, num_starts)
    parts_T = blocks_of(num_starts, blocks)
    values_L, low_L, high_L = (np.full(len(hops), np.nan) for _ in range(3))
    for place, hop in enumerate(hops):
        later_T = squares_R[hop : hop + num_starts]

        def number(left_T: Array, place: int = place, later_T: Array = later_T) -> float:
            below = squares_R[:num_starts][left_T].sum() * later_T[left_T].sum()
            above = products_TL[left_T, place].sum()
            return float(above / np.sqrt(below)) if below > 0 else float("nan")

        values_L[place] = number(np.ones(num_starts, np.bool_))
        _, interval = jackknife(number, parts_T, level=level)
        if interval is not None:
            low_L[place], high_L[place] = interval.low, interval.high
    starts = int(steps_R[0]), int(steps_R[num_starts - 1])
    return Autocorrelation(np.array(ordered), values_L, low_L, high_L, starts, moving)


def _products_of(W_RSD: Array, hops: Sequence[int], num_starts: int) -> tuple[Array, Array, float]:
    """Returns |v|^2 of each step, v . v(later) of each start and lag, and which part of the v is not 0."""
    squares_R = np.array(
        [np.einsum("sd,sd->", v_SD, v_SD) for v_SD in (after - before for before, after in pairwise(W_RSD))]
    )
    products_TL, moving = np.empty((num_starts, len(hops))), 0.0
    for row in range(num_starts):
        v_SD = W_RSD[row + 1] - W_RSD[row]
        moving += float((v_SD != 0).any(axis=1).mean()) / num_starts
        for place, hop in enumerate(hops):
            later_SD = W_RSD[row + hop + 1] - W_RSD[row + hop]
            products_TL[row, place] = np.einsum("sd,sd->", v_SD, later_SD)
    return squares_R, products_TL, moving


def _spacing(steps_R: Array) -> int:
    gaps = np.unique(np.diff(steps_R))
    if len(gaps) != 1:
        raise ValueError(f"got rows that are {gaps.tolist()} steps apart, expected one distance")
    return int(gaps[0])


def _prepared(W_RSD: Array, relative: bool) -> Array:
    W_RSD = widen(W_RSD).astype(np.float64)
    return W_RSD - W_RSD.mean(axis=1, keepdims=True) if relative else W_RSD
