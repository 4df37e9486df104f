"""Marks of the committed ten seeds: the numbers that are known of them."""

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from flannel_pl.analysis.statistics.group_epochs import epochs_of
from flannel_pl.analysis.statistics.groups import groups_of
from flannel_pl.analysis.statistics.sensitivity import (
    freeze_by_threshold,
    mark_over_runs,
    marks_of,
    threshold_table,
)
from tests.analysis.synthetic import make_measures

Array = np.ndarray[Any, Any]
RESULTS = Path(__file__).parents[3] / "docs" / "results" / "flannel3"


def table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((RESULTS / name).read_text(encoding="utf-8").splitlines()))


def column(name: str) -> Array:
    return np.array([float(row[name] or "nan") for row in table("steps_dead.csv")])


def steps_of(rule: str, boundary: str) -> tuple[list[int], int]:
    rows = [
        row
        for row in table("epochs.csv")
        if (row["set"], row["rule"], row["boundary"]) == ("dead", rule, boundary)
    ]
    each = [int(row["step"]) for row in rows if row["run"] != "mean over runs"]
    (mean,) = (int(row["step"]) for row in rows if row["run"] == "mean over runs")
    return each, mean


def test_the_mean_curve_of_ten_seeds_freezes_at_any_of_these_steps() -> None:
    steps = np.arange(1001)
    a = freeze_by_threshold("A", column("origin_radius_mean"), steps)
    assert {threshold: mark.step for threshold, mark in a.items()} == {
        0.005: 383,
        0.01: 366,
        0.02: 303,
        0.05: 190,
    }
    b = freeze_by_threshold("B", column("origin_radius_mean"), steps, column("frozen_fraction_mean"))
    assert (b[0.5].step, b[0.9].step, b[0.99].step) == (352, 470, 672)


def test_each_run_freezes_before_the_mean_curve_does() -> None:
    each, mean_curve = steps_of("A", "freeze")
    found = mark_over_runs(each, 1000, mean_curve)
    assert found.mean is not None
    assert found.mean.interval is not None
    assert (found.mean.value, found.mean_curve, found.mean_curve_inside) == (295, 366, False)
    assert (found.mean.interval.low, found.mean.interval.high) == pytest.approx((265, 346), abs=1)
    usual = stats.bootstrap((np.array(each),), np.mean, method="percentile", rng=0).confidence_interval
    assert (usual.low, usual.high) == pytest.approx((268, 326), abs=1)
    each, mean_curve = steps_of("B", "freeze")
    assert mark_over_runs(each, 1000, mean_curve).mean_curve_inside is True


def test_a_mark_that_was_not_reached_is_later_and_not_dropped() -> None:
    found = mark_over_runs([100, 200, None, None], 1000, 400)
    assert found.mean is None
    assert found.mean_curve_inside is None
    assert found.until is not None
    assert (found.until.median, found.until.restricted_mean) == (200, (100 + 200 + 2000) / 4)
    earlier = mark_over_runs([100, 200, None], 1000, None, later=[False, False, False])
    assert (earlier.mean, earlier.until) == (None, None)
    assert mark_over_runs([None], 1000, None).until is None


def test_a_freeze_before_the_search_is_not_later() -> None:
    """A curve that is still at step 100 froze before, not after the recording."""
    steps = np.arange(401)
    radius = 0.2 + 0.3 / (1 + np.exp((24.5 - steps) / 4))
    early = freeze_by_threshold("A", radius, steps)[0.05]
    assert (early.step, early.later) == (None, False)
    growing = freeze_by_threshold("A", radius + 0.002 * steps, steps)[0.05]
    assert (growing.step, growing.later) == (None, True)
    waiting = freeze_by_threshold("B", radius, steps, np.full(401, 0.1))[0.9]
    assert (waiting.step, waiting.later) == (None, True)


def test_the_table_of_a_group_has_what_the_rules_find() -> None:
    (group,) = groups_of(make_measures(num_runs=4))
    rows = threshold_table(group, "dead")
    assert [row.rule for row in rows] == ["A"] * 4 + ["B"] * 5
    for row in rows:
        if row.usual:
            found = next(one for one in epochs_of(group, "dead") if one.rule == row.rule)
            assert row.mark == marks_of(found, "freeze")
            assert len(row.mark.steps) == 4
    a = [row.mark.mean_curve for row in rows if row.rule == "A"]
    assert all(one >= other for one, other in itertools.pairwise(a) if one and other)
    assert threshold_table(group, "none") == []


def test_rules_that_there_are() -> None:
    for rule in ("C", "B"):
        with pytest.raises(ValueError, match="expected A, or B with the fraction"):
            freeze_by_threshold(rule, np.arange(10.0), np.arange(10))
