"""Intervals of means: closed forms, equivariance, and scipy as a reference."""

import numpy as np
import pytest
from scipy import stats

from flannel_pl.analysis.statistics.intervals import difference_interval, mean_interval, welch

FREEZES = [287, 240, 378, 305, 380, 265, 267, 254, 317, 257]  # rule A, docs/results/flannel3/epochs.csv


def test_students_interval_is_scipys() -> None:
    found = mean_interval(FREEZES)
    expected = stats.t.interval(0.95, 9, loc=295, scale=stats.sem(FREEZES))
    assert found.t_interval is not None
    assert (found.t_interval.low, found.t_interval.high) == pytest.approx(expected, rel=1e-12)
    assert (found.value, found.num) == (295, 10)
    assert found.std == pytest.approx(np.std(FREEZES, ddof=1))


def test_welchs_interval_is_scipys() -> None:
    values, reference = [1.0, 2.5, 4.0, 9.0], [0.5, 0.7, 0.2]
    found = difference_interval(values, reference)
    expected = stats.ttest_ind(values, reference, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.t_interval is not None
    assert (found.t_interval.low, found.t_interval.high) == pytest.approx((interval.low, interval.high))
    assert welch(np.array(values), np.array(reference))[1] == pytest.approx(expected.df)


def test_the_bootstrap_goes_with_unit_and_origin() -> None:
    plain, moved = mean_interval(FREEZES).interval, mean_interval([5 - 2.0 * x for x in FREEZES]).interval
    assert plain is not None
    assert moved is not None
    # Turned round, its draws are other ones: skewness changes sides.
    shifted = mean_interval([5 + 2.0 * x for x in FREEZES]).interval
    assert shifted is not None
    assert (shifted.low, shifted.high) == pytest.approx((5 + 2 * plain.low, 5 + 2 * plain.high))
    assert (moved.low, moved.high) == pytest.approx((5 - 2 * plain.high, 5 - 2 * plain.low), abs=4)


def test_the_bootstrap_knows_on_which_side_the_tail_is() -> None:
    """Values skewed to the right: the mean may be far above, hardly far below what was seen."""
    found = mean_interval([1.0, 1.1, 1.2, 1.3, 1.5, 1.9, 2.8, 5.0])
    assert found.interval is not None
    assert found.t_interval is not None
    assert found.interval.high - found.value > 1.5 * (found.value - found.interval.low)
    assert found.interval.high > found.t_interval.high


def test_a_tail_of_the_reference_is_on_the_other_side_of_the_difference() -> None:
    tailed, even = [1.0, 1.1, 1.2, 1.3, 1.5, 1.9, 2.8, 5.0], [2.0, 2.1, 1.9, 2.05, 1.95, 2.0]
    above, below = difference_interval(tailed, even), difference_interval(even, tailed)
    for found, sign in ((above, 1), (below, -1)):
        assert found.interval is not None
        reach = found.interval.high - found.value, found.value - found.interval.low
        assert reach[0] > 1.3 * reach[1] if sign > 0 else reach[1] > 1.3 * reach[0]


def test_the_quantiles_are_of_t_with_noise() -> None:
    """The same by other means: loops, and a sample of one's own."""
    values = np.array([0.3, 0.9, 1.4, 1.5, 2.9])
    random, mean, error = np.random.default_rng(1), values.mean(), stats.sem(values)
    ratios = []
    for _ in range(8_000):
        drawn = values[random.integers(0, 5, 5)] + random.normal(0, error, 5)
        ratios.append((drawn.mean() - mean) / np.sqrt(np.square(drawn - drawn.mean()).sum() / 20))
    low, high = np.quantile(ratios, [0.025, 0.975])
    interval = mean_interval(values, draws=40_000).interval
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((mean - high * error, mean - low * error), abs=0.15)


def test_few_and_equal_runs() -> None:
    one, two, same = mean_interval([3.0]), mean_interval([3.0, 4.0]), mean_interval([0.1] * 10)
    assert (one.value, one.std, one.interval, one.t_interval) == (3.0, None, None, None)
    assert two.interval == two.t_interval
    assert two.interval is not None
    assert two.interval.high - 3.5 == pytest.approx(0.5 * stats.t.ppf(0.975, 1))
    assert same.interval is not None
    assert (same.value, same.std, same.interval.low, same.interval.method) == (0.1, 0.0, 0.1, "constant")
    both = difference_interval([1.0, 1.0], [0.25, 0.25, 0.25])
    assert both.interval is not None
    assert (both.interval.low, both.interval.high) == (0.75, 0.75)
    assert difference_interval([1.0], [2.0, 3.0]).interval is None


def test_the_same_runs_have_the_same_interval() -> None:
    assert mean_interval(FREEZES) == mean_interval(FREEZES)
    assert mean_interval(FREEZES, seed=1) != mean_interval(FREEZES)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [np.inf, 1.0]])
def test_what_is_no_number_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"got .* expected"):
        mean_interval(values)
    with pytest.raises(ValueError, match=r"got .* expected"):
        difference_interval([1.0, 2.0], values)
