"""Permutation tests: p counted by hand, scipy as a reference, and what few runs can reach."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from flannel_pl.analysis.statistics.permutations import (
    sign_flip_test,
    smallest_paired_p,
    smallest_two_sample_p,
    two_sample_test,
)


def test_signs_are_counted() -> None:
    differences = [0.5, 1.5, -0.25, 2.0]
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product([1, -1], repeat=4)]
    found = sign_flip_test(differences)
    assert found.p == np.mean([total >= 3.75 for total in sums]) == 0.25
    assert (found.exact, found.num_permutations, found.smallest_p) == (True, 16, 0.125)


@pytest.mark.parametrize("num", [3, 6, 9])
def test_signs_are_scipys(num: int) -> None:
    differences = np.random.default_rng(num).normal(0.6, 1, num)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip_test(differences).p == pytest.approx(expected.pvalue)


@pytest.mark.parametrize(("ours", "theirs"), [(3, 3), (4, 5), (2, 6)])
def test_choices_are_scipys(ours: int, theirs: int) -> None:
    random = np.random.default_rng(ours)
    values, reference = random.normal(1, 1, ours), random.normal(0, 2, theirs)

    def size_of_t(one: Any, other: Any, axis: int = -1) -> Any:
        return np.abs(stats.ttest_ind(one, other, equal_var=False, axis=axis).statistic)

    expected = stats.permutation_test(
        (values, reference), size_of_t, n_resamples=np.inf, alternative="greater", vectorized=True
    )
    found = two_sample_test(values, reference)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.exact


def test_the_clearest_outcome_has_the_smallest_p() -> None:
    assert sign_flip_test([1.0, 2.0, 3.0, 4.0, 5.0]).p == smallest_paired_p(5) == 0.0625
    assert two_sample_test([11.0, 12.0, 13.0], [1.0, 2.0, 3.0]).p == smallest_two_sample_p(3, 3) == 0.1
    found = two_sample_test([11.0, 12.0, 13.0, 14.0], [1.0, 2.0, 3.0])
    assert found.p == smallest_two_sample_p(4, 3) == pytest.approx(1 / 35)


def test_arms_without_spread() -> None:
    assert two_sample_test([1.0] * 4, [0.0] * 4).p == pytest.approx(2 / 70)
    assert two_sample_test([1.0] * 4, [1.0] * 4).p == 1
    assert sign_flip_test([0.0, 0.0]).p == 1


def test_the_unit_does_not_matter() -> None:
    values, reference = [0.2, 0.5, 0.9, 0.3], [0.1, 0.6, 0.15, 0.05]
    for scale in (1e-12, 1e9):
        scaled = two_sample_test([scale * x for x in values], [scale * x for x in reference])
        assert scaled.p == two_sample_test(values, reference).p
    assert two_sample_test([1e6 + x for x in values], [1e6 + x for x in reference]).p == (
        two_sample_test(values, reference).p
    )
    assert sign_flip_test([1e-9, 2e-9, -3e-9]).p == sign_flip_test([1.0, 2.0, -3.0]).p == 1


def test_many_runs_are_drawn_at_random() -> None:
    random = np.random.default_rng(0)
    differences = random.normal(0.5, 1, 30)
    found = sign_flip_test(differences)
    assert not found.exact
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)
    values, reference = random.normal(0.7, 1, 20), random.normal(0, 1, 20)
    apart = two_sample_test(values, reference)
    assert not apart.exact
    assert apart.p == pytest.approx(stats.ttest_ind(values, reference, equal_var=False).pvalue, abs=0.01)
    assert sign_flip_test(np.arange(1.0, 40.0)).p == pytest.approx(1 / 20_000)


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="got no difference"):
        sign_flip_test([])
    with pytest.raises(ValueError, match="got 1 and 2 runs, expected two or more"):
        two_sample_test([1.0], [1.0, 2.0])
