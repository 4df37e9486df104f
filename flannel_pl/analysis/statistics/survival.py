"""When did it stop for good? Of what had not stopped when the recording ended, one knows only: later.

Kaplan and Meier's estimate of the part S(t) that has not stopped by t, from times that are right-censored:

    S(t) = product over stops at t_i <= t of (1 - d_i / n_i)

with d_i stops among the n_i that had neither stopped nor been lost sight of before t_i. Greenwood's variance
of log S, sum of d_i / (n_i (n_i - d_i)), gives the interval, on the scale of log(-log S), on which it stays
between 0 and 1. The restricted mean is the area under S up to a horizon: the mean time until the stop, or
the horizon, whichever comes first; with it arms can be compared in which some never stopped. Its variance is
the sum over stops of d / (n (n - d)) times the square of the area that follows, times D / (D - 1) for the D
stops that were seen, and its interval Student's of D - 1: without censoring that of a mean. The normal one is
too short for few runs (docs/statistics.md).

Over the tokens of one run it describes that run: tokens move together, so that its interval is none for other
seeds. Over runs, the unit is the run: the time of one event of each (its last motion), or a number of each
(its restricted mean over tokens) in `arms`.

Source: Kaplan, Meier, J. Am. Stat. Assoc. 53 (1958) 457; Greenwood (1926); Kalbfleisch, Prentice, The
Statistical Analysis of Failure Time Data (1980), section 1.3; Brookmeyer, Crowley, Biometrics 38 (1982) 29.

Shape suffixes: N tokens or runs, E times of events, R rows, S tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flannel_pl.analysis.measuring.lifecycle import NEVER
from flannel_pl.analysis.statistics.intervals import LEVEL, Interval, finite
from flannel_pl.arrays import Array


@dataclass(frozen=True)
class Survival:
    """What is known of times some of which are only known to be later than they were looked for."""

    times_E: Array
    """When something stopped, ascending, float64."""

    survival_E: Array
    """Part that has not stopped, from each of these times on; before the first it is 1."""

    low_E: Array
    high_E: Array
    at_risk_E: Array
    stopped_E: Array
    """Of those at risk, at each time, int64."""

    num: int
    num_censored: int
    last_time: float
    """After this nothing is known, unless all have stopped."""

    median: float | None
    """When half have stopped; None if that was not seen."""

    median_interval: tuple[float | None, float | None]
    """None for an end that was not seen."""

    horizon: float
    restricted_mean: float
    """Mean of the time until the stop or the horizon, whichever comes first."""

    restricted_error: float
    """Its standard error, over what the times are of: no error over seeds, if these are tokens. NaN for fewer
    than two stops."""

    restricted_interval: Interval | None
    """None for fewer than two stops."""

    def at(self, time: float) -> float:
        """Returns the part that has not stopped by a time; NaN where that is not known."""
        if time > self.last_time and not (len(self.survival_E) and self.survival_E[-1] == 0):
            return float("nan")
        row = int(np.searchsorted(self.times_E, time, side="right"))
        return float(self.survival_E[row - 1]) if row else 1.0


def kaplan_meier(
    times: Sequence[float] | Array,
    observed: Sequence[bool] | Array,
    *,
    horizon: float | None = None,
    level: float = LEVEL,
) -> Survival:
    """Estimates how long it takes until something stops, where some was not seen to stop.

    Args:
        times: When each stopped, or when it was last looked at.
        observed: Whether it stopped then; False: it had not.
        horizon: Of the restricted mean; None: the largest time. Arms are compared at one horizon.
        level: Of the intervals.

    Raises:
        ValueError: If there is no time, one is not finite or below 0, or the horizon is after the last time
            while something has not stopped then: nothing is known there.

    Example:
        >>> found = kaplan_meier([1, 2, 3, 4], [True, True, False, True])
        >>> found.survival_E.tolist(), found.median, found.restricted_mean
        ([0.75, 0.5, 0.0], 2.0, 2.75)
    """
    times_N, observed_N = finite(times), np.asarray(observed, np.bool_)
    if not len(times_N) or len(times_N) != len(observed_N) or (times_N < 0).any():
        raise ValueError(
            f"got {len(times_N)} times, expected one or more, none below 0, each observed or not"
        )
    times_E, stopped_E = np.unique(times_N[observed_N], return_counts=True)
    # Whatever was lost sight of at the time of a stop still counts as having been there.
    at_risk_E = len(times_N) - np.searchsorted(np.sort(times_N), times_E, side="left")
    survival_E = np.cumprod(1 - stopped_E / at_risk_E)
    with np.errstate(divide="ignore"):
        variance_E = np.cumsum(stopped_E / (at_risk_E * (at_risk_E - stopped_E)))
    low_E, high_E = _log_log(survival_E, variance_E, level)
    last = float(times_N.max())
    end = last if horizon is None else float(horizon)
    if end > last and not (len(survival_E) and survival_E[-1] == 0):
        raise ValueError(f"got a horizon of {end:g}, expected at most {last:g}: nothing is known after that")
    mean, error = _restricted(times_E, survival_E, at_risk_E, stopped_E, end)
    return Survival(
        *(times_E, survival_E, low_E, high_E, at_risk_E, stopped_E, len(times_N)),
        num_censored=int((~observed_N).sum()),
        last_time=last,
        median=_first_below(times_E, survival_E),
        median_interval=(_first_below(times_E, low_E), _first_below(times_E, high_E)),
        horizon=end,
        restricted_mean=mean,
        restricted_error=error,
        restricted_interval=_student(mean, error, int(stopped_E.sum()), level),
    )


def freeze_times(freeze_step_S: Array, last_step: int, *, still_for: int = 0) -> tuple[Array, Array]:
    """Returns when tokens froze for good, and whether that was seen, for `kaplan_meier`.

    Args:
        freeze_step_S: From `Lifecycle.result`: step of the last motion, NEVER for one in the last row.
        last_step: Step of the last row.
        still_for: Steps for which a token must have stood still at the end to count as frozen; one that
            moved later than that is known to have moved until then, and no more. How the answer depends on
            it says how much rests on the recording's end.

    Returns:
        (S,) float64 and (S,) bool.

    Example:
        >>> [x.tolist() for x in freeze_times(np.array([10, 95, -1]), 100, still_for=20)]
        [[10.0, 95.0, 100.0], [True, False, False]]
    """
    moving_S = freeze_step_S == NEVER
    times_S = np.where(moving_S, last_step, freeze_step_S).astype(np.float64)
    return times_S, ~moving_S & (last_step - times_S >= still_for)


def last_motion(freeze_step_S: Array, last_step: int) -> tuple[float, bool]:
    """Returns when the last token of a run froze for good, and whether that was seen: a time of a run.

    Example:
        >>> last_motion(np.array([10, 95]), 100), last_motion(np.array([10, -1]), 100)
        ((95.0, True), (100.0, False))
    """
    times_S, observed_S = freeze_times(freeze_step_S, last_step)
    return float(times_S.max()), bool(observed_S.all())


def survival_over_runs(
    runs: Sequence[Survival], steps_R: Array, *, level: float = LEVEL
) -> tuple[Array, Array, Array]:
    """Returns the mean over runs of their curves, with Student's interval over runs, cut to 0 and 1.

    Args:
        runs: Each over the tokens of one run.
        steps_R: Where; NaN after the last time of a run that had not all stopped.
        level: Of the interval.

    Returns:
        Mean, low, high, each (R,) float64; no interval (NaN) for a single run.

    Example:
        >>> runs = [kaplan_meier([1, 3], [True, True]), kaplan_meier([2, 3], [True, True])]
        >>> survival_over_runs(runs, np.array([0, 1, 3]))[0].tolist()
        [1.0, 0.75, 0.0]
    """
    from scipy import stats

    curves_NR = np.array([[run.at(step) for step in steps_R] for run in runs])
    mean_R = curves_NR.mean(axis=0)
    if len(runs) < 2:
        return mean_R, np.full(len(steps_R), np.nan), np.full(len(steps_R), np.nan)
    reach = float(stats.t.ppf((1 + level) / 2, len(runs) - 1)) / len(runs) ** 0.5
    width_R = reach * curves_NR.std(axis=0, ddof=1)
    return mean_R, np.clip(mean_R - width_R, 0, 1), np.clip(mean_R + width_R, 0, 1)


def _log_log(survival_E: Array, variance_E: Array, level: float) -> tuple[Array, Array]:
    """Returns Greenwood's interval on the scale of log(-log S); where S is 0 there is no more to know."""
    from scipy import stats

    low_E, high_E = np.zeros_like(survival_E), np.zeros_like(survival_E)
    inside = (survival_E > 0) & (survival_E < 1)
    log_E = np.log(survival_E[inside])
    reach_E = float(stats.norm.ppf((1 + level) / 2)) * np.sqrt(variance_E[inside]) / np.abs(log_E)
    low_E[inside], high_E[inside] = (survival_E[inside] ** np.exp(sign * reach_E) for sign in (1, -1))
    return low_E, high_E


def _first_below(times_E: Array, survival_E: Array) -> float | None:
    rows = np.flatnonzero(survival_E <= 0.5 + 1e-12)
    return float(times_E[rows[0]]) if len(rows) else None


def _restricted(
    times_E: Array, survival_E: Array, at_risk_E: Array, stopped_E: Array, horizon: float
) -> tuple[float, float]:
    """Returns the area under the curve up to the horizon, and its standard error.

    Each stop's part of the variance is the square of the area that still follows it.
    """
    before = times_E < horizon
    edges = np.concatenate([[0.0], times_E[before], [horizon]])
    areas = np.diff(edges) * np.concatenate([[1.0], survival_E[before]])
    following_E = np.cumsum(areas[::-1])[::-1][1:]
    left_E = at_risk_E[before] - stopped_E[before]
    parts = following_E[left_E > 0] ** 2 * stopped_E[before][left_E > 0]
    variance = (parts / (at_risk_E[before] * left_E)[left_E > 0]).sum()
    seen = int(stopped_E.sum())
    return float(areas.sum()), float(np.sqrt(variance * seen / (seen - 1))) if seen > 1 else float("nan")


def _student(center: float, error: float, seen: int, level: float) -> Interval | None:
    from scipy import stats

    if seen < 2:
        return None
    reach = float(stats.t.ppf((1 + level) / 2, seen - 1)) * error
    return Interval(center - reach, center + reach, level, "Greenwood, t")
