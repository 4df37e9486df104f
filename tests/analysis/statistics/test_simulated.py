"""What is promised of statistics holds in 2000 simulated studies each; docs/statistics.md has all figures."""

import pytest

from flannel_pl.analysis.statistics.power import power_of, smallest_effect
from tests.analysis.statistics import simulated

pytestmark = pytest.mark.slow

NOISE = 0.012
"""Of a fraction near 5 % in 2000 studies, 2.5 standard errors: what an exact test may show beyond 5 %."""


@pytest.mark.parametrize("shape", ["normal", "heavy tails (t, 5)", "skewed (gamma, 4)"])
@pytest.mark.parametrize("num", [3, 4, 5, 10])
def test_intervals_of_means_cover_them(num: int, shape: str) -> None:
    found = simulated.mean_coverage(shape, num)
    assert 0.93 <= found["ours"] <= 0.97
    assert found["quantiles"] < 0.92, "or the usual bootstrap would do"


@pytest.mark.parametrize("shape", ["normal", "skewed (gamma, 4)"])
@pytest.mark.parametrize(("ours", "theirs", "ratio"), [(3, 3, 1.0), (5, 5, 1.0), (5, 5, 3.0), (10, 10, 3.0)])
def test_intervals_of_differences_cover_them(ours: int, theirs: int, ratio: float, shape: str) -> None:
    assert 0.93 <= simulated.difference_coverage(shape, ours, theirs, ratio)["ours"] <= 0.97


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("num", "d"), [(3, 1.0), (5, 0.0), (10, 3.0)])
def test_intervals_of_effects_cover_them(num: int, d: float, paired: bool) -> None:
    assert 0.93 <= simulated.effect_coverage(d, num, paired=paired) <= 0.97


@pytest.mark.parametrize("shape", ["normal", "very skewed (exponential)"])
@pytest.mark.parametrize(("num", "paired"), [(10, True), (6, False)])
def test_a_table_in_which_nothing_is_rings_in_one_of_twenty_at_most(
    num: int, paired: bool, shape: str
) -> None:
    studies = simulated.MANY_STUDIES if paired else simulated.STUDIES
    assert simulated.false_alarms(shape, num, paired=paired, studies=studies) <= 0.05
    uncorrected = simulated.false_alarms(shape, num, paired=paired, arms=1, outcomes=1)
    assert 0.03 <= uncorrected <= 0.05 + NOISE, "or the test would be none"


@pytest.mark.parametrize(("ours", "theirs", "ratio"), simulated.SPREADS)
def test_spreads_that_differ_make_no_difference(ours: int, theirs: int, ratio: float) -> None:
    """Permutations alone would: `differs` asks the interval, too."""
    found = simulated.false_alarms_of_spread(ours, theirs, ratio)
    assert found["differs"] <= 0.05 + NOISE
    assert found["differs"] < found["p"]


@pytest.mark.parametrize("paired", [True, False])
def test_what_differs_by_the_margin_is_called_equivalent_in_one_of_twenty(paired: bool) -> None:
    for num in (5, 10):
        assert 0.03 <= simulated.false_equivalence(num, paired=paired) <= 0.05 + NOISE


@pytest.mark.parametrize("shape", ["normal", "very skewed (exponential)"])
@pytest.mark.parametrize("blocked", [True, False])
def test_effects_of_a_factorial_ring_in_one_of_twenty(blocked: bool, shape: str) -> None:
    for fraction in simulated.false_effects(shape, blocked=blocked).values():
        assert 0.03 <= fraction <= 0.05 + NOISE


@pytest.mark.parametrize(("num", "d", "comparisons"), simulated.POWER_PAIRED)
def test_power_of_pairs_comes_true(num: int, d: float, comparisons: int) -> None:
    expected = power_of(d, num, paired=True, comparisons=comparisons)
    assert simulated.shown(d, num, paired=True, comparisons=comparisons) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(("num", "d", "comparisons"), simulated.POWER_OF_ARMS)
def test_power_of_arms_comes_true(num: int, d: float, comparisons: int) -> None:
    expected = power_of(d, num, paired=False, comparisons=comparisons)
    assert simulated.shown(d, num, paired=False, comparisons=comparisons) == pytest.approx(expected, abs=0.05)


def test_the_smallest_effect_is_shown_in_four_of_five() -> None:
    for num, paired, comparisons in ((6, True, 1), (10, True, 8), (5, False, 1)):
        d = smallest_effect(num, paired=paired, comparisons=comparisons)
        assert d is not None
        found = simulated.shown(d, num, paired=paired, comparisons=comparisons)
        assert found == pytest.approx(0.8, abs=0.05)


def test_intervals_over_censored_times_cover_the_truth() -> None:
    for num in (10, 30, 200):
        assert all(0.93 <= fraction <= 0.97 for fraction in simulated.survival_coverage(num).values())


def test_intervals_of_exponents_and_rates_cover_them() -> None:
    assert 0.92 <= simulated.exponent_coverage(400) <= 0.98
    assert 0.90 <= simulated.rate_coverage() <= 0.97
