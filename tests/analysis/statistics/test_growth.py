"""Rates of parting that are known: exponentials, and the logistic map, whose exponent is log 2."""

from typing import Any

import numpy as np
import pytest

from flannel_pl.analysis.statistics.growth import divergence_rate, divergence_rate_of_pairs, rate_by_ceiling

Array = np.ndarray[Any, Any]


def logistic(start: Array, rows: int) -> Array:
    """Many copies of x -> 4 x (1 - x), as a tent map in disguise: 53 bits would soon be used up otherwise."""
    x_RN = np.empty((rows, len(start)))
    x_RN[0] = start
    for row in range(1, rows):
        x_RN[row] = 4 * x_RN[row - 1] * (1 - x_RN[row - 1])
    return x_RN


def test_the_logistic_map_has_log_two() -> None:
    start = np.random.default_rng(0).uniform(0.05, 0.95, 2000)
    one, other = logistic(start, 60), logistic(start + 1e-9, 60)
    distance = np.exp(np.log(np.abs(one - other) + 1e-300).mean(axis=1))
    found = divergence_rate(distance, np.arange(60))
    assert found.rate == pytest.approx(np.log(2), abs=0.02)
    assert found.doubling_steps == pytest.approx(1, abs=0.03)
    assert found.interval is not None
    assert found.interval.spans(np.log(2))
    assert found.window is not None
    assert found.window[0] == 0
    assert 20 < found.window[1] < 30  # 1e-9 doubles 26 times to a tenth of the plateau
    assert found.r_squared is not None
    assert found.r_squared > 0.99
    assert all(
        rate.rate == pytest.approx(np.log(2), abs=0.03)
        for rate in rate_by_ceiling(distance, np.arange(60)).values()
    )


def test_steps_are_the_unit_not_rows() -> None:
    steps = np.arange(0, 400, 4)
    found = divergence_rate(np.minimum(1e-8 * np.exp(0.1 * steps), 1), steps)
    assert found.rate == pytest.approx(0.1)
    assert found.growth == pytest.approx(np.exp(0.1 * found.window[1])) if found.window else False
    assert divergence_rate(np.minimum(1e-8 * np.exp(0.1 * steps), 1), steps, window=(40, 80)).window == (
        40,
        80,
    )


def test_rows_before_the_runs_differ_do_not_count() -> None:
    steps = np.arange(120)
    distance = np.where(steps < 20, 0.0, np.minimum(1e-6 * np.exp(0.2 * (steps - 20)), 1.0))
    found = divergence_rate(distance, steps)
    assert found.rate == pytest.approx(0.2)
    assert found.window is not None
    assert found.window[0] == 20


@pytest.mark.parametrize(
    ("distance", "reason"),
    [
        (np.zeros(50), "the runs never differ"),
        (np.linspace(13.7, 45.7, 50), "0 rows before the distance reaches 10% of its plateau are too few"),
        (np.r_[np.linspace(0.02, 0.09, 20), np.ones(60)], "it grows by a factor of 4.5 only"),
        (np.r_[np.nan, np.ones(60)], "the distance is not finite everywhere"),
    ],
)
def test_where_there_is_no_window_there_is_no_rate(distance: Array, reason: str) -> None:
    """The second is as far as two seeds of the notebook are from each other: they have nothing in common."""
    found = divergence_rate(distance, np.arange(len(distance)))
    assert (found.rate, found.interval, found.window, found.doubling_steps) == (None, None, None, None)
    assert found.reason.startswith(reason)


def test_over_pairs_the_run_is_the_unit() -> None:
    """Rates that are sums of the two runs' own: their mean over all pairs is twice that over runs."""
    own = np.array([0.1, 0.12, 0.15, 0.11, 0.14])
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    steps = np.arange(200)
    distance = np.array([np.minimum(1e-9 * np.exp((own[i] + own[j]) * steps), 1) for i, j in pairs])
    found = divergence_rate_of_pairs(distance, pairs, steps)
    assert found.mean == pytest.approx(2 * own.mean())
    assert found.error == pytest.approx(2 * own.std(ddof=1) / np.sqrt(5))
    distance[0] = 0
    assert divergence_rate_of_pairs(distance, pairs, steps).num_without == 1
    assert divergence_rate_of_pairs(distance[1:2], pairs[1:2], steps).interval is None
    assert divergence_rate_of_pairs(np.zeros((1, 200)), [(0, 1)], steps).mean is None
