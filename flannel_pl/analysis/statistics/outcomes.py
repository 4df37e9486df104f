"""Numbers of runs that arms are compared by, from what was measured: arm -> seed -> number.

A window or a horizon belongs to the question, and stands before the runs are looked at.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

from flannel_pl.analysis.measuring.results import RunMeasures
from flannel_pl.analysis.statistics.groups import Group
from flannel_pl.analysis.statistics.survival import Survival, freeze_times, kaplan_meier, last_motion

NumberOf = Callable[[RunMeasures], float | None]
"""Returns a run's number; None if it does not have it."""


def seed_of(run: RunMeasures) -> int | None:
    """Returns a run's seed; None if it does not say it.

    Example:
        >>> run = RunMeasures(0, "seed 42, model.init_scale 0.01", np.arange(2), {}, {}, {}, {}, {})
        >>> seed_of(run)
        42
    """
    found = re.match(r"seed (-?\d+)(,|$)", run.label)
    return int(found[1]) if found else None


def values_of(arms: Mapping[str, Group], number_of: NumberOf) -> dict[str, dict[int, float]]:
    """Returns one outcome of several arms, for `compare_arms`.

    Args:
        arms: Name -> runs that differ in their seed only.
        number_of: The outcome.

    Returns:
        Arm -> seed -> number; NaN for a run that does not have it.

    Raises:
        ValueError: If a run does not say its seed, or two runs of an arm have the same.

    Example:
        >>> from flannel_pl.analysis.measuring.all_runs import measure_experiment
        >>> from flannel_pl.analysis.statistics.groups import groups_of
        >>> with flannel_pl.open_recording("runs/quickstart") as recording:
        ...     (group,) = groups_of(measure_experiment(recording))
        >>> values = values_of({"as it is": group}, window_mean("dead", "frozen_fraction", 10, 20))
        >>> list(values["as it is"])
        [42, 43]
    """
    result: dict[str, dict[int, float]] = {}
    for arm, group in arms.items():
        result[arm] = {}
        for run in group.runs:
            seed, number = seed_of(run), number_of(run)
            if seed is None or seed in result[arm]:
                raise ValueError(
                    f"got {run.label!r} in arm {arm!r}, expected runs that each have another seed"
                )
            result[arm][seed] = float("nan") if number is None else float(number)
    return result


def window_mean(token_set: str, name: str, first: int, last: int) -> NumberOf:
    """Returns the mean of a series over a window of steps.

    Args:
        token_set: dead, live or all.
        name: Of the series, e.g. frozen_fraction.
        first: First step of the window.
        last: Last step. A run that ends before it has no number.
    """

    def number_of(run: RunMeasures) -> float | None:
        series_R = run.series.get(token_set, {}).get(name)
        if series_R is None or run.steps_R[-1] < last:
            return None
        inside_R = series_R[(run.steps_R >= first) & (run.steps_R <= last)]
        inside_R = inside_R[~np.isnan(inside_R)]  # row 0, and skipped steps
        return float(inside_R.mean()) if len(inside_R) else None

    return number_of


def restricted_freeze_time(token_set: str, horizon: int, *, still_for: int = 0) -> NumberOf:
    """Returns the mean over tokens of the step of their last motion, or the horizon, whichever comes first.

    Args:
        token_set: dead, live or all.
        horizon: A step that all arms reach. A run that ends before it has no number.
        still_for: As of `token_survival`.
    """

    def number_of(run: RunMeasures) -> float | None:
        if run.steps_R[-1] < horizon:
            return None
        found = token_survival(run, token_set, horizon=horizon, still_for=still_for)
        return None if found is None else found.restricted_mean

    return number_of


def token_survival(
    run: RunMeasures, token_set: str, *, horizon: int | None = None, still_for: int = 0
) -> Survival | None:
    """Returns when the tokens of one run froze for good; its intervals are about these tokens.

    Args:
        run: As measured.
        token_set: dead, live or all.
        horizon: Of the restricted mean; None: the last step.
        still_for: Steps for which a token must have stood still at the end to count as frozen; one that
            moved later counts as moving to the end, so that the answer is the latest there can be.

    Returns:
        None if the lives of tokens were not measured.
    """
    tokens = run.tokens.get(token_set)
    if tokens is None or not len(tokens["freeze_step"]) or len(run.steps_R) < 2:
        return None
    last = int(run.moved_R[-1])
    times_S, observed_S = freeze_times(tokens["freeze_step"], last, still_for=still_for)
    times_S = np.where(observed_S, times_S, last)
    return kaplan_meier(times_S, observed_S, horizon=last if horizon is None else horizon)


def run_survival(group: Group, token_set: str, *, horizon: int | None = None) -> Survival | None:
    """Returns when the last token of each run froze for good: the unit is the run.

    Args:
        group: Runs that differ in their seed only.
        token_set: dead, live or all.
        horizon: Of the restricted mean; None: the last step that all runs have.

    Returns:
        None if the lives of a run's tokens were not measured.
    """
    events = []
    for run in group.runs:
        tokens = run.tokens.get(token_set)
        if tokens is None or not len(tokens["freeze_step"]) or len(run.steps_R) < 2:
            return None
        events.append(last_motion(tokens["freeze_step"], int(run.moved_R[-1])))
    end = min(int(run.moved_R[-1]) for run in group.runs) if horizon is None else horizon
    return kaplan_meier([time for time, _ in events], [seen for _, seen in events], horizon=end)
