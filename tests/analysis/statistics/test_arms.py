"""Arms against their reference: which runs are compared, corrections over all, and the words."""

import math

import numpy as np
import pytest

from flannel_pl.analysis.statistics.arms import Values, compare_arms, compare_outcomes
from flannel_pl.analysis.statistics.corrections import holm
from flannel_pl.analysis.statistics.effects import paired_effect
from flannel_pl.analysis.statistics.intervals import difference_interval, mean_interval
from flannel_pl.analysis.statistics.permutations import sign_flip_test, two_sample_test
from flannel_pl.analysis.statistics.seed_pairs import matched
from flannel_pl.analysis.statistics.verdicts import Evidence, Finding, pairs_to_show, runs_to_show, verdict_of

# Frozen fraction of three seeds: all bfloat16, float32 state, stochastic rounding. Exploratory.
EXPLORATORY = {"bf16": [0.45, 0.95, 0.79], "fp32_state": [0.39, 0.86, 0.69], "stochastic": [0.05, 0.05, 0.05]}


def arm(values: list[float], first: int = 0) -> dict[int, float]:
    return dict(enumerate(values, start=first))


def normal(mean: float, num: int, seed: int, *, std: float = 1.0, first: int = 0) -> dict[int, float]:
    return arm(list(np.random.default_rng(seed).normal(mean, std, num)), first)


def test_three_seeds_decide_nothing_however_clear_they_look() -> None:
    table = compare_arms({name: arm(values) for name, values in EXPLORATORY.items()}, "bf16")
    assert [one.verdict.finding for one in table.comparisons] == [Finding.TOO_FEW] * 2
    assert table.comparisons[1].verdict.words == (
        "too few seeds: 3 pairs give p = 0.25 at best, and one of 2 comparisons may need p = 0.025; "
        "7 could show something"
    )
    assert table.comparisons[1].detectable is None
    assert [one.mean.value for one in table.summaries if one.mean] == pytest.approx([0.73, 1.94 / 3, 0.05])


def test_ten_pairs_show_it() -> None:
    values = {
        "bf16": normal(0.8, 10, 0, std=0.1),
        "near": {seed: value + 1e-3 * (seed % 3 - 1) for seed, value in normal(0.8, 10, 0, std=0.1).items()},
        "far": normal(0.1, 10, 2, std=0.1),
    }
    table = compare_arms(values, "bf16", outcome="frozen", margin=0.05)
    near, far = table.comparisons
    differences = [values["far"][seed] - values["bf16"][seed] for seed in range(10)]
    assert far.difference == mean_interval(differences)
    assert far.test == sign_flip_test(differences)
    assert far.effect == paired_effect(differences)
    assert near.test is not None
    assert (far.p_holm, near.p_holm) == tuple(holm([2 / 1024, near.test.p]))
    assert near.verdict.finding == Finding.EQUIVALENT
    assert near.verdict.words.startswith("equivalent within 0.05: the 90 % interval is -0.000")
    assert far.verdict.finding == Finding.DIFFERS
    assert far.verdict.words.startswith("differs: lower by 0.709154 (0.61")
    assert far.verdict.words.endswith("p = 0.0039 after correction for 2 comparisons")
    assert far.detectable is not None
    assert 0.9 < far.detectable < 1.3


def test_sure_and_too_small_to_matter() -> None:
    reference = normal(0, 12, 0)
    values = {"a": reference, "b": {seed: x + 0.01 + 0.001 * (seed % 2) for seed, x in reference.items()}}
    (one,) = compare_arms(values, "a", margin=0.1).comparisons
    assert one.verdict.finding == Finding.DIFFERS_WITHIN
    assert one.verdict.words.startswith("differs, by less than the margin of 0.1: higher by 0.0105")


def test_not_decided_is_no_claim_of_no_effect() -> None:
    (one,) = compare_arms({"a": normal(0, 8, 0), "b": normal(0, 8, 1)}, "a").comparisons
    assert one.verdict.finding == Finding.NOT_DECIDED
    assert one.verdict.words.startswith("not decided: the interval, -")
    assert one.verdict.words.endswith("spans 0")


def test_what_is_clear_by_itself_may_not_be_in_a_large_table() -> None:
    differences = [0.9, 1.4, 0.2, 1.1, -0.3, 0.8, 1.6, 0.4, 1.0, 0.1]
    clear: Values = {"a": arm([0.0] * 10), "b": arm(differences)}
    assert compare_arms(clear, "a").comparisons[0].verdict.finding == Finding.DIFFERS
    outcomes = {"clear": clear}
    for number in range(20):
        outcomes[f"noise {number}"] = {"a": normal(0, 10, number), "b": normal(0, 10, 100 + number)}
    table = compare_outcomes(outcomes, "a")
    assert table.num_tests == 21
    assert table.comparisons[0].test is not None
    assert table.comparisons[0].p_holm == pytest.approx(21 * table.comparisons[0].test.p)
    assert (
        "leaves 0 out, but p = 0.21 after correction for 21 comparisons" in table.comparisons[0].verdict.words
    )


def test_an_interval_that_spans_0_decides_nothing_whatever_p_is() -> None:
    difference = mean_interval([-1.0, 2.0, 3.0, 1.0, 0.5, 2.5])
    test = sign_flip_test([1.0] * 6)
    verdict = verdict_of(Evidence(difference, test, 0.03, 1, True, 0.05))
    assert difference.interval is not None
    assert difference.interval.low < 0
    assert verdict.finding == Finding.NOT_DECIDED
    assert verdict.words.startswith("not decided: p = 0.03, but the interval, -")


def test_six_pairs_are_enough_for_one_comparison_and_not_for_two() -> None:
    values = {name: normal(0, 6, seed) for seed, name in enumerate("abc")}
    two = compare_arms(values, "a").comparisons[0]
    one = compare_arms({name: values[name] for name in "ab"}, "a").comparisons[0]
    assert [two.verdict.finding, one.verdict.finding] == [Finding.TOO_FEW, Finding.NOT_DECIDED]


def test_arms_that_are_one() -> None:
    values = normal(0, 5, 0)
    (one,) = compare_arms({"a": values, "b": dict(values)}, "a", margin=0.1).comparisons
    assert one.verdict.words == "the same: equal to the last digit in all 5 pairs"
    apart = compare_arms({"a": arm([0.0] * 4), "b": arm([0.0] * 4, first=9)}, "a")
    assert apart.comparisons[0].verdict.words == "the same: equal to the last digit in every run of both arms"


def test_shared_seeds_are_pairs_and_others_are_left_out() -> None:
    values = {"a": normal(0, 6, 0), "b": normal(5, 6, 1, first=3)}
    (one,) = compare_arms(values, "a").comparisons
    assert (one.matched.paired, one.matched.seeds, one.matched.left_out) == (
        True,
        (3, 4, 5),
        (0, 1, 2, 6, 7, 8),
    )
    differences = [values["b"][seed] - values["a"][seed] for seed in (3, 4, 5)]
    assert one.difference == mean_interval(differences)
    (forced,) = compare_arms(values, "a", paired=False).comparisons
    arms = [list(values[name].values()) for name in ("b", "a")]
    assert forced.difference == difference_interval(*arms)
    assert forced.test == two_sample_test(*arms)
    assert forced.effect is not None
    assert forced.effect.kind == "g"


def test_fewer_than_half_shared_are_not_paired() -> None:
    found = matched(normal(0, 6, 0), normal(0, 6, 1, first=4))
    assert (found.paired, found.left_out, len(found.values_N)) == (False, (), 6)
    with pytest.raises(ValueError, match="got 1 seeds that both arms have, expected 2"):
        matched({1: 1.0, 2: 1.0}, {2: 1.0, 3: 1.0}, paired=True)


def test_runs_without_a_number_are_named() -> None:
    values = {"a": arm([1.0, 2.0, 3.0]), "b": arm([1.5, math.nan, 3.5])}
    table = compare_arms(values, "a")
    assert [one.without for one in table.summaries] == [(), (1,)]
    assert table.comparisons[0].matched.seeds == (0, 2)
    assert table.comparisons[0].matched.left_out == (1,)
    (none,) = compare_arms({"a": arm([1.0, 2.0]), "b": arm([math.nan])}, "a").comparisons
    assert none.verdict.words == "too few seeds: an arm has no run with this number"
    (single,) = compare_arms({"a": arm([1.0]), "b": arm([2.0], first=5)}, "a").comparisons
    assert single.verdict.words == "too few seeds: a single run has no spread"


def test_a_table_can_be_made_of_it() -> None:
    values = {name: arm(values) for name, values in EXPLORATORY.items()}
    table = compare_outcomes({"frozen": values, "other": values}, "bf16", margins={"other": 0.1})
    rows = table.comparison_rows()
    assert [(row["outcome"], row["arm"], row["margin"]) for row in rows] == [
        ("frozen", "fp32_state", None),
        ("frozen", "stochastic", None),
        ("other", "fp32_state", 0.1),
        ("other", "stochastic", 0.1),
    ]
    assert len({tuple(row) for row in rows}) == 1
    assert rows[1]["difference"] == pytest.approx(-0.68)
    assert (rows[0]["paired"], rows[0]["num"], rows[0]["p"], rows[0]["p_holm"]) == (1, 3, 0.25, 1.0)
    (first, *_) = table.summary_rows()
    assert (first["outcome"], first["arm"], first["num"]) == ("frozen", "bf16", 3)
    assert first["mean"] == pytest.approx(0.73)
    flat = [cell for row in [*rows, *table.summary_rows()] for cell in row.values()]
    assert all(cell is None or isinstance(cell, str | int | float) for cell in flat)
    assert table.num_equivalence_tests == 2


def test_what_makes_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got arms .* expected 'c', the reference"):
        compare_arms({"a": arm([1.0]), "b": arm([1.0])}, "c")
    with pytest.raises(ValueError, match="got no arm of 'x' besides the reference"):
        compare_outcomes({"x": {"a": arm([1.0])}}, "a")
    with pytest.raises(ValueError, match=r"got margins of \['y'\], expected some of \['x'\]"):
        compare_outcomes({"x": {"a": arm([1.0]), "b": arm([1.0])}}, "a", margins={"y": 1.0})


def test_how_many_seeds_a_table_needs() -> None:
    assert [pairs_to_show(0.05, tests) for tests in (1, 2, 12, 25, 26)] == [6, 7, 9, 10, 11]
    assert [runs_to_show(0.05, tests) for tests in (1, 4, 8)] == [4, 5, 6]
