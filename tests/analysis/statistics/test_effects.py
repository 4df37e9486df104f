"""Effect sizes and their intervals, Holm's correction and equivalence: closed forms and references."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.meta_analysis import effectsize_smd
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from flannel_pl.analysis.statistics.corrections import holm
from flannel_pl.analysis.statistics.effects import bias_factor, hedges_g, paired_effect
from flannel_pl.analysis.statistics.equivalence import equivalence, paired_equivalence
from flannel_pl.analysis.statistics.noncentral import beyond, noncentrality

VALUES, REFERENCE = [3.1, 4.0, 5.2, 4.4, 6.0], [1.0, 2.0, 3.5, 2.2]


def test_hedges_g_is_that_of_statsmodels() -> None:
    """Which has J as 1 - 3 / (4 m - 1)."""
    found = hedges_g(VALUES, REFERENCE)
    g, _ = effectsize_smd(
        np.mean(VALUES), np.std(VALUES, ddof=1), 5, np.mean(REFERENCE), np.std(REFERENCE, ddof=1), 4
    )
    assert found is not None
    assert found.size == pytest.approx(g / (1 - 3 / 27) * bias_factor(7), rel=1e-12)
    assert bias_factor(7) == pytest.approx(1 - 3 / 27, rel=2e-3)
    assert bias_factor(2) == pytest.approx(1 / math.sqrt(math.pi))


@pytest.mark.parametrize("kind", ["g", "d_z"])
def test_the_interval_has_the_effects_under_which_t_is_no_exception(kind: str) -> None:
    if kind == "g":
        found, freedom, scale = hedges_g(VALUES, REFERENCE), 7, math.sqrt(5 * 4 / 9)
        t = float(stats.ttest_ind(VALUES, REFERENCE).statistic)
    else:
        found, freedom, scale = paired_effect(VALUES), 4, math.sqrt(5)
        t = float(stats.ttest_1samp(VALUES, 0).statistic)
    assert found is not None
    assert found.kind == kind
    assert found.size == pytest.approx(bias_factor(freedom) * t / scale)
    for end, below in ((found.interval.low, 0.975), (found.interval.high, 0.025)):
        assert float(stats.nct.cdf(t, freedom, end * scale)) == pytest.approx(below, abs=1e-5)


def test_noncentral_t_is_scipys_where_that_has_a_number() -> None:
    for freedom in (2, 9, 40):
        for t in (-4.0, 0.0, 0.7, 12.0):
            for below in (0.025, 0.6):
                found = noncentrality(t, freedom, below)
                assert float(stats.nct.cdf(t, freedom, found)) == pytest.approx(below, abs=1e-5)
        expected = stats.nct.sf(2, freedom, 1.5) + stats.nct.cdf(-2, freedom, 1.5)
        assert beyond(2.0, freedom, 1.5) == pytest.approx(float(expected), abs=1e-5)
    assert noncentrality(1e5, 9, 0.5) == pytest.approx(1e5 * math.sqrt(stats.chi2.median(9) / 9), rel=1e-3)


def test_no_spread_no_effect() -> None:
    assert hedges_g([1.0], [1.0, 2.0]) is None
    assert hedges_g([1.0, 1.0], [0.0, 0.0]) is None
    assert paired_effect([2.0, 2.0, 2.0]) is None
    swapped, found = hedges_g(REFERENCE, VALUES), hedges_g(VALUES, REFERENCE)
    assert swapped is not None
    assert found is not None
    assert (swapped.size, swapped.interval.low) == pytest.approx((-found.size, -found.interval.high))
    two = paired_effect([1.0, 2.0])  # of one degree of freedom
    assert two is not None
    assert math.isfinite(two.size)


def test_holms_correction_by_hand_and_by_statsmodels() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([None, 0.6, 0.9]) == [None, 1.0, 1.0]
    p_values = np.random.default_rng(0).uniform(0, 0.1, 40)
    assert holm(list(p_values)) == pytest.approx(multipletests(p_values, method="holm")[1])
    with pytest.raises(ValueError, match="expected p values from 0 to 1"):
        holm([1.5])


def test_equivalence_is_that_of_statsmodels() -> None:
    for margin in (0.5, 2.0, 4.0):
        found = equivalence(VALUES, REFERENCE, margin)
        expected = ttost_ind(np.array(VALUES), np.array(REFERENCE), -margin, margin, usevar="unequal")
        assert found is not None
        assert found.p == pytest.approx(expected[0])
        assert (found.p <= 0.05) == (max(abs(found.interval.low), found.interval.high) <= margin)
        before = np.array(VALUES)
        after = before + np.array([0.1, -0.3, 0.2, 0.0, 0.1])
        paired = paired_equivalence(after - before, margin)
        assert paired is not None
        assert paired.p == pytest.approx(ttost_paired(after, before, -margin, margin)[0])


def test_far_below_is_as_far_as_far_above() -> None:
    for found in (equivalence(REFERENCE, VALUES, 1.0), equivalence(VALUES, REFERENCE, 1.0)):
        assert found is not None
        assert found.p == pytest.approx(
            float(ttost_ind(np.array(VALUES), np.array(REFERENCE), -1, 1, "unequal")[0])
        )
        assert found.p > 0.5


def test_equivalence_without_spread() -> None:
    for found, p in (
        (equivalence([1.0] * 5, [1.05, 1.05], 0.1), 0.25),
        (paired_equivalence([0.3, 0.3], 0.1), 1.0),
    ):
        assert found is not None
        assert found.p == p
    assert equivalence([1.0], [1.0, 2.0], 0.1) is None
    assert paired_equivalence([1.0], 0.1) is None
    with pytest.raises(ValueError, match="got a margin of -1, expected one above 0"):
        paired_equivalence([1.0, 2.0], -1)
