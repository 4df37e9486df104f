"""Times until the last motion: by hand, without censoring, and against lifelines, statsmodels and scipy."""

from typing import Any

import numpy as np
import pytest
from lifelines import KaplanMeierFitter
from lifelines.utils import restricted_mean_survival_time
from scipy import stats
from statsmodels.duration.survfunc import SurvfuncRight

from flannel_pl.analysis.measuring.lifecycle import NEVER
from flannel_pl.analysis.statistics.survival import (
    freeze_times,
    kaplan_meier,
    last_motion,
    survival_over_runs,
)

Array = np.ndarray[Any, Any]

# Remission of leukaemia under 6-MP: Freireich and others, Blood 21 (1963) 699, in every book on the subject.
REMISSION = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
RELAPSED = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]


def simulated(num: int, seed: int) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    stop, lost = random.integers(1, 40, num), random.integers(10, 60, num)
    return np.minimum(stop, lost), stop <= lost


def test_the_published_example() -> None:
    found = kaplan_meier(REMISSION, [bool(one) for one in RELAPSED])
    assert found.times_E.tolist() == [6, 7, 10, 13, 16, 22, 23]
    assert found.survival_E == pytest.approx([0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], abs=5e-4)
    assert (found.median, found.num, found.num_censored) == (23, 21, 12)
    assert found.median_interval == (13, None)
    assert found.at(5) == 1
    assert found.at(6.5) == pytest.approx(18 / 21)
    assert np.isnan(found.at(36))


@pytest.mark.parametrize("num", [5, 30, 400])
def test_curve_and_interval_are_those_of_lifelines_and_scipy(num: int) -> None:
    times, observed = simulated(num, num)
    found = kaplan_meier(times, observed)
    fitter = KaplanMeierFitter().fit(times, observed)
    assert found.survival_E == pytest.approx(fitter.survival_function_at_times(found.times_E).to_numpy())
    band = fitter.confidence_interval_.loc[found.times_E].to_numpy()
    inside = (found.survival_E > 0) & (found.survival_E < 1)
    assert found.low_E[inside] == pytest.approx(band[inside, 0])
    assert found.high_E[inside] == pytest.approx(band[inside, 1])
    censored = stats.CensoredData(uncensored=times[observed], right=times[~observed])
    assert found.survival_E == pytest.approx(stats.ecdf(censored).sf.evaluate(found.times_E))
    reference = SurvfuncRight(times, observed)
    assert found.median == reference.quantile(0.5)
    ends = [np.inf if end is None else end for end in found.median_interval]
    assert ends == pytest.approx(list(reference.quantile_ci(0.5, method="cloglog")))
    for horizon in (5, 12.5, 20):
        shorter = kaplan_meier(times, observed, horizon=horizon)
        assert shorter.restricted_mean == pytest.approx(restricted_mean_survival_time(fitter, t=horizon))


def test_without_censoring_it_is_a_mean() -> None:
    times = np.array([3.0, 5, 5, 8, 13, 20])
    whole = kaplan_meier(times, [True] * 6)
    assert whole.restricted_mean == pytest.approx(times.mean())
    assert whole.restricted_error == pytest.approx(stats.sem(times))
    assert whole.restricted_interval is not None
    expected = stats.t.interval(0.95, 5, loc=times.mean(), scale=stats.sem(times))
    assert (whole.restricted_interval.low, whole.restricted_interval.high) == pytest.approx(expected)
    cut = kaplan_meier(times, [True] * 6, horizon=10)
    assert cut.restricted_mean == pytest.approx(np.minimum(times, 10).mean())
    assert cut.restricted_error == pytest.approx(stats.sem(np.minimum(times, 10)))
    assert kaplan_meier(times, [True] * 6, horizon=100).restricted_mean == pytest.approx(times.mean())


def test_what_never_froze_is_not_dropped() -> None:
    """Half of the tokens still move: the mean over the others would say 20."""
    freeze_step_S = np.array([10, 20, 30, NEVER, NEVER, NEVER])
    times_S, observed_S = freeze_times(freeze_step_S, 100)
    found = kaplan_meier(times_S, observed_S)
    assert (found.median, found.num_censored) == (30, 3)
    assert found.restricted_mean == pytest.approx((10 + 20 + 30 + 300) / 6)
    none = kaplan_meier(*freeze_times(np.array([NEVER, NEVER]), 100))
    assert (none.median, none.restricted_mean, none.restricted_interval, none.at(50)) == (None, 100, None, 1)
    assert np.isnan(none.restricted_error)


def test_how_long_still_is_still() -> None:
    freeze_step_S = np.array([10, 95, 99, NEVER])
    counts = [int(freeze_times(freeze_step_S, 100, still_for=steps)[1].sum()) for steps in (0, 1, 5, 6, 91)]
    assert counts == [3, 3, 2, 1, 0]
    assert last_motion(freeze_step_S, 100) == (100, False)


def test_over_runs_the_run_is_the_unit() -> None:
    runs = [kaplan_meier(*simulated(200, seed), horizon=30) for seed in range(4)]
    steps = np.array([0, 5, 15, 25])
    mean, low, high = survival_over_runs(runs, steps)
    curves = np.array([[run.at(step) for step in steps] for run in runs])
    assert mean == pytest.approx(curves.mean(axis=0))
    interval = stats.t.interval(0.95, 3, loc=mean[2], scale=stats.sem(curves[:, 2]))
    assert (low[2], high[2]) == pytest.approx(interval)
    assert (low[0], high[0]) == (1, 1)
    assert np.isnan(survival_over_runs(runs[:1], steps)[1]).all()


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(
        ValueError, match="got a horizon of 50, expected at most 40: nothing is known after that"
    ):
        kaplan_meier([10, 40], [True, False], horizon=50)
    for times, observed in (([], []), ([1.0], [True, False]), ([-1.0], [True])):
        with pytest.raises(ValueError, match="expected one or more, none below 0"):
            kaplan_meier(times, observed)
