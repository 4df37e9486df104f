"""Numbers of measured runs that arms are compared by."""

from dataclasses import replace

import numpy as np
import pytest

from flannel_pl.analysis.measuring.lifecycle import NEVER
from flannel_pl.analysis.measuring.results import RunMeasures
from flannel_pl.analysis.statistics.arms import compare_arms
from flannel_pl.analysis.statistics.groups import Group
from flannel_pl.analysis.statistics.outcomes import (
    restricted_freeze_time,
    run_survival,
    seed_of,
    token_survival,
    values_of,
    window_mean,
)


def run(seed: int, freeze_step: list[int], *, last: int = 10, frozen: float = 0.5) -> RunMeasures:
    series = np.full(last + 1, frozen)
    series[0], series[last] = np.nan, 1.0
    tokens = {"dead": {"freeze_step": np.array(freeze_step)}}
    return RunMeasures(
        0, f"seed {seed}", np.arange(last + 1), {"dead": {"frozen_fraction": series}}, {}, tokens, {}, {}
    )


def group(*runs: RunMeasures) -> Group:
    return Group("x", runs, {}, 4, 0, 1)


def test_a_window_leaves_out_what_is_undefined() -> None:
    one = run(42, [1])
    assert window_mean("dead", "frozen_fraction", 0, 10)(one) == pytest.approx((9 * 0.5 + 1) / 10)
    assert window_mean("dead", "frozen_fraction", 2, 5)(one) == 0.5
    assert window_mean("dead", "frozen_fraction", 2, 11)(one) is None
    assert window_mean("dead", "frozen_fraction", 0, 0)(one) is None
    assert window_mean("live", "frozen_fraction", 0, 5)(one) is None


def test_tokens_that_never_froze_count_up_to_the_horizon() -> None:
    one = run(42, [2, 4, NEVER, NEVER])
    assert restricted_freeze_time("dead", 10)(one) == pytest.approx((2 + 4 + 10 + 10) / 4)
    assert restricted_freeze_time("dead", 3)(one) == pytest.approx((2 + 3 + 3 + 3) / 4)
    assert restricted_freeze_time("dead", 10, still_for=7)(one) == pytest.approx((2 + 10 + 10 + 10) / 4)
    assert restricted_freeze_time("dead", 10, still_for=7)(run(42, [2, 4])) == pytest.approx((2 + 10) / 2)
    assert restricted_freeze_time("dead", 11)(one) is None
    assert restricted_freeze_time("live", 10)(one) is None
    found = token_survival(one, "dead")
    assert found is not None
    assert (found.num_censored, found.at(4)) == (2, 0.5)


def test_over_runs_the_last_token_counts() -> None:
    runs = run(1, [2, 4]), run(2, [9, 1]), run(3, [3, NEVER], last=12)
    found = run_survival(group(*runs), "dead")
    assert found is not None
    assert found.times_E.tolist() == [4, 9]
    assert (found.num, found.num_censored, found.horizon) == (3, 1, 10)
    assert found.restricted_mean == pytest.approx((4 + 9 + 10) / 3)
    assert run_survival(group(*runs), "live") is None


def test_arms_of_groups_are_compared_by_seed() -> None:
    slow = group(*(run(seed, [8, 8 - seed % 2]) for seed in range(8)))
    fast = group(*(run(seed, [3, 2]) for seed in range(8)))
    values = values_of({"slow": slow, "fast": fast}, restricted_freeze_time("dead", 10))
    assert values["slow"] == {seed: 8 - (seed % 2) / 2 for seed in range(8)}
    (one,) = compare_arms(values, "slow").comparisons
    assert one.matched.paired
    assert one.difference is not None
    assert one.difference.value == pytest.approx(2.5 - 7.75)
    missing = values_of({"slow": slow}, window_mean("dead", "frozen_fraction", 0, 99))
    assert np.isnan(list(missing["slow"].values())).all()


def test_runs_that_are_no_pairs_are_refused() -> None:
    assert [seed_of(replace(run(1, [1]), label=label)) for label in ("seed -3", "run 4", "seed 4, a 1")] == [
        -3,
        None,
        4,
    ]
    for runs in ((run(1, [1]), run(1, [1])), (replace(run(1, [1]), label="run 4"),)):
        with pytest.raises(ValueError, match="expected runs that each have another seed"):
            values_of({"a": group(*runs)}, lambda _: 1.0)
