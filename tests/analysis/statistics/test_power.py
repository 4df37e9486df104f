"""Power: against statsmodels where permutations are many, and what few can never show."""

import pytest
from statsmodels.stats.power import TTestIndPower, TTestPower

from flannel_pl.analysis.statistics.power import power_of, seeds_needed, smallest_effect


@pytest.mark.parametrize(("d", "num"), [(0.5, 20), (0.8, 30), (1.0, 15), (0.0, 20)])
def test_with_many_permutations_it_is_that_of_a_t_test(d: float, num: int) -> None:
    expected = TTestPower().power(d, num, 0.05) if d else 0.05
    assert power_of(d, num, paired=True) == pytest.approx(expected, abs=1e-3)
    expected = TTestIndPower().power(d, num, 0.05) if d else 0.05
    assert power_of(d, num, paired=False) == pytest.approx(expected, abs=1e-3)


def test_a_larger_table_asks_for_a_smaller_p() -> None:
    expected = TTestPower().power(0.7, 30, 0.005)
    assert power_of(0.7, 30, paired=True, comparisons=10) == pytest.approx(expected, abs=1e-3)


def test_few_pairs_show_nothing() -> None:
    assert [power_of(9.0, num, paired=True) for num in (2, 5, 6)] == [0, 0, 1]
    assert TTestPower().power(2, 5, 0.05) == pytest.approx(0.91, abs=0.005)  # what a t test would promise
    assert power_of(2.0, 5, paired=True) == 0
    assert [power_of(20.0, num, paired=False) for num in (3, 4)] == [0, 1]
    assert power_of(9.0, 9, paired=True, comparisons=12) == 1
    assert power_of(9.0, 8, paired=True, comparisons=12) == 0
    assert power_of(1.0, 1, paired=True) == 0


def test_how_many_seeds_are_those_of_statsmodels() -> None:
    expected = TTestIndPower().solve_power(0.8, power=0.8, alpha=0.05)
    assert seeds_needed(0.8, paired=False) == -(-expected // 1) == 26
    assert seeds_needed(0.5, paired=True, power=0.9) == -(
        -TTestPower().solve_power(0.5, power=0.9, alpha=0.05) // 1
    )
    assert seeds_needed(3.0, paired=True) == 6  # five never, a t test would say four
    assert seeds_needed(0.1, paired=False) is None
    assert seeds_needed(2.5, paired=True, comparisons=8) == 9


def test_the_smallest_effect_turns_it_round() -> None:
    for num, paired in ((8, True), (6, False), (25, True)):
        d = smallest_effect(num, paired=paired)
        assert d is not None
        assert power_of(d, num, paired=paired) == pytest.approx(0.8, abs=0.02)
    assert smallest_effect(5, paired=True) is None
    assert smallest_effect(1, paired=False) is None
