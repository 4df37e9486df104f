"""Upstream's published figures beside those of recordings whose figures are known."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flannel_pl.analysis.reporting.background import Background
from flannel_pl.analysis.reporting.published import (
    NUM_TOKENS,
    PUBLISHED,
    SETTINGS,
    BesidePublished,
    PublishedFigure,
    compare_with_published,
    comparison_csv,
    comparison_markdown,
    other_settings,
)
from flannel_pl.analysis.reporting.summary import published_table
from flannel_pl.analysis.reporting.tables import epochs_csv
from flannel_pl.analysis.statistics.group_epochs import epochs_of
from flannel_pl.analysis.statistics.groups import Group, groups_of
from flannel_pl.analysis.statistics.series import spread
from flannel_pl.dotted import flatten
from tests.analysis.synthetic import INHALE_STEP, make_measures

CONFIG = Path(__file__).parents[2] / "configs" / "flannel3.yaml"


@pytest.fixture(scope="module")
def group() -> Group:
    (only,) = groups_of(make_measures())
    return only


def found(group: Group) -> dict[str, BesidePublished]:
    return {line.published.name: line for line in compare_with_published(group)}


def check(line: BesidePublished, mean: Any, std: Any, num: int) -> None:
    assert line.ours.mean == pytest.approx(mean)
    assert line.ours.std == (None if std is None else pytest.approx(std))
    assert line.ours.num_reached == num


def test_the_published_figures_are_those_of_the_issue() -> None:
    published = {one.name: (one.mean, one.std) for one in PUBLISHED}
    assert published["origin radius, step 0"] == (0.159387, 0.000143)
    assert published["origin radius, step 1000"] == (0.525185, 0.022288)
    assert published["centroid radius, step 0"] == (0.159365, 0.000143)
    assert published["centroid radius, step 1000"] == (0.114290, 0.003882)
    assert published["inhale: step of its end, each run"] == (2, 0)
    assert published["inhale: depth of the mean, as a part"] == (0.00541, None)
    assert published["sneeze: peak speed of the mean"] == (0.005191, None)
    assert published["sneeze: step of the peak"] == (24, None)
    assert published["freeze: step, rule A on the mean"] == (393, None)
    assert round(published["distance between runs, step 0"][0], 3) == 13.765
    assert round(published["distance between runs, step 1000"][0], 2) == 45.73
    assert 7.095 < published["loss, mean of 1000 steps"][0] < 7.144


def test_figures_are_found_where_they_are(group: Group) -> None:
    lines = found(group)
    end = np.array([run.series["dead"]["origin_radius"][1000] for run in group.runs])
    check(lines["origin radius, step 1000"], end.mean(), end.std(ddof=1), 10)
    check(lines["inhale: step of its end, each run"], INHALE_STEP, 0, 10)
    depths = [
        run.series["dead"]["origin_radius"][0] - run.series["dead"]["origin_radius"][INHALE_STEP]
        for run in group.runs
    ]
    check(lines["inhale: depth, each run"], np.mean(depths), np.std(depths, ddof=1), 10)
    # Growth k leads from row k to row k + 1, as upstream counts it.
    growth_R = np.diff(np.mean([run.series["dead"]["origin_radius"] for run in group.runs], axis=0))
    smooth_R = np.convolve(growth_R, np.ones(5) / 5, "same")
    check(lines["sneeze: step of the peak"], smooth_R.argmax(), None, 10)
    check(lines["sneeze: peak speed of the mean"], smooth_R.max(), None, 10)
    distance_P = group.pairs["dead"].distance_PR[:, 1000]
    evolution_N = group.pairs["dead"].evolution_NR[:, 1000]
    check(lines["distance between runs, step 1000"], distance_P.mean(), distance_P.std(ddof=1), 45)
    check(lines["ratio of the two, step 1000"], distance_P.mean() / evolution_N.mean(), None, 45)
    growth_R = np.diff(group.pairs["dead"].distance_PR.mean(axis=0))
    check(lines["parting: largest growth per step"], growth_R.max(), None, 45)
    check(lines["parting: step of that growth"], growth_R.argmax(), None, 45)
    losses = [np.nanmean(run.scalars["loss"]) for run in group.runs]
    check(lines["loss, mean of 1000 steps"], np.mean(losses), np.std(losses, ddof=1), 10)


def test_differences_are_in_standard_deviations() -> None:
    one = PUBLISHED[0]

    def difference(published: PublishedFigure, *values: float) -> float | None:
        return BesidePublished(published, spread(values)).difference

    assert difference(one, one.mean + 0.000143, one.mean + 0.000143) == pytest.approx(1)
    single = replace(one, std=None)
    std = np.std([one.mean - 4, one.mean - 2], ddof=1)
    assert difference(single, one.mean - 4, one.mean - 2) == pytest.approx(-3 / std)
    assert difference(replace(one, std=0.0), one.mean - 4, one.mean - 2) == pytest.approx(-3 / std)
    assert difference(single, one.mean) is None
    assert difference(one) is None


def test_a_figure_of_the_mean_curve_is_never_divided_by_a_spread_of_runs(group: Group) -> None:
    names = {one.name for one in PUBLISHED if one.find(group).std is None}
    assert names >= {
        "inhale: depth of the mean, as a part",
        "sneeze: peak speed of the mean",
        "sneeze: step of the peak",
        "freeze: step, rule A on the mean",
    }
    lines = found(group)
    assert {lines[name].difference for name in names} == {None}
    assert lines["sneeze: peak speed of the mean"].ours.num_reached == 10


def test_sums_over_other_numbers_of_tokens_are_not_compared(group: Group) -> None:
    few = replace(group, runs=tuple(replace(run, num_tokens={"dead": 20}) for run in group.runs))
    lines = found(few)
    missing = {name for name, line in lines.items() if line.ours.mean is None}
    assert missing == {
        *("distance between runs, step 0", "distance between runs, step 1000"),
        *("distance from the start, step 1000", "parting: largest growth per step"),
    }


def test_a_recording_that_ends_before_has_no_figures_of_step_1000() -> None:
    (group,) = groups_of(make_measures(num_rows=301))
    lines = found(group)
    missing = {name for name, line in lines.items() if line.ours.mean is None}
    assert {name for name in lines if "1000" in name} <= missing
    assert lines["origin radius, step 0"].ours.mean is not None
    assert {line.difference for line in lines.values()} == {None}
    text = comparison_markdown(list(lines.values()))
    assert "| origin radius, step 1000 | 0.5252 ± 0.0223 | - | - | - | 1.23a |" in text


@pytest.mark.parametrize(("num_rows", "is_whole"), [(61, False), (1000, False), (1001, True), (1201, True)])
def test_a_page_judges_only_recordings_that_go_as_far(num_rows: int, is_whole: bool) -> None:
    (group,) = groups_of(make_measures(num_runs=2, num_rows=num_rows))
    nothing = Background((), (), {}, {0: {}, 1: {}}, (), {})
    table = published_table(group, compare_with_published(group), nothing)
    end = f"This recording has 2 runs and ends at step {num_rows - 1}; published are ten that end at"
    assert table.lead.startswith(end) == (not is_whole)
    assert ("difference / std" in table.header) == ("The difference is in" in table.note) == is_whole
    assert {len(row) for row in table.rows} == {len(table.header)}
    if not is_whole:
        assert not any("step 1000" in row[0] for row in table.rows)
        assert "origin radius, step 0" in [row[0] for row in table.rows]
        assert not any(cell.startswith(("+", "-")) for row in table.rows for cell in row)
    assert "The source is the number of the notebook" in table.note


def test_a_single_run_has_no_spread_and_no_pairs() -> None:
    (group,) = groups_of(make_measures(num_runs=1))
    lines = found(group)
    ours = lines["origin radius, step 1000"].ours
    assert (ours.std, ours.num_reached) == (None, 1)
    assert lines["origin radius, step 1000"].difference is not None
    assert lines["distance between runs, step 0"].ours.mean is None


def test_without_dead_tokens_there_is_nothing_to_compare() -> None:
    (group,) = groups_of(make_measures(dead=False))
    assert compare_with_published(group) == []


def flannel3() -> dict[str, Any]:
    """Returns the notebook's config, with the defaults that its file leaves out."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["trainer"]["accumulate_grad_batches"] = 1
    config["model"]["init_seed"] = config["data"]["order_seed"] = None
    return dict(config)


def test_settings_are_those_of_the_notebook() -> None:
    assert other_settings(flannel3(), {}, NUM_TOKENS) == []
    assert SETTINGS.keys() <= dict(flatten(flannel3())).keys()


def test_other_settings_are_named() -> None:
    config = flannel3()
    config["trainer"]["precision"] = "32-true"
    config["recorder"]["every_n_steps"] = 5
    del config["model"]["n_head"]
    assert other_settings(config, {"model.init_scale": 0.03}, 20) == [
        "trainer.precision is 32-true, published bf16-mixed",
        "model.init_scale is 0.03, published 0.02",
        "recorder.every_n_steps is 5, published 1",
        "this recording does not say model.n_head",
        "20 dead tokens are recorded, published 3,699",
    ]
    assert other_settings({}, {}, NUM_TOKENS) == ["this recording does not say its settings"]


def test_csv_has_all_digits(group: Group) -> None:
    lines = compare_with_published(group)
    rows = list(csv.DictReader(comparison_csv([("flannel3", lines)]).splitlines()))
    assert [row["figure"] for row in rows] == [one.name for one in PUBLISHED]
    assert float(rows[1]["mean"]) == pytest.approx(lines[1].ours.mean, rel=1e-8)
    assert (rows[1]["count"], rows[7]["published_std"]) == ("10", "")


def test_epochs_of_the_mean_of_each_run_and_over_runs(group: Group) -> None:
    rule_a, rule_b = epochs_of(group, "dead")
    assert (rule_a.rule, rule_b.rule) == ("A", "B")
    assert rule_a.labels == tuple(f"seed {seed}" for seed in range(42, 52))
    assert [epochs.inhale.step for epochs in rule_a.runs] == [INHALE_STEP] * 10
    assert rule_a.over_runs("inhale").mean == INHALE_STEP
    frozen_R = np.mean([run.series["dead"]["frozen_fraction"] for run in group.runs], axis=0)
    assert rule_b.mean.freeze.step == np.flatnonzero(frozen_R > 0.9)[0]
    rows = list(csv.DictReader(epochs_csv([("flannel3", rule_a)]).splitlines()))
    assert len(rows) == 11 * 4
    assert (rows[0]["run"], rows[0]["boundary"], rows[0]["step"]) == ("mean curve", "inhale", "2")
    assert rows[2]["reason"] == "rule A knows none"


def test_a_freeze_with_the_learning_rate_is_doubted_by_name(group: Group) -> None:
    assert epochs_of(group, "dead")[1].warnings == []
    rate_R = np.where(group.runs[0].steps_R < 100, 1e-3, 1e-6)
    runs = [replace(run, scalars={**run.scalars, "learning_rate": rate_R}) for run in group.runs[:2]]
    rule_b = epochs_of(replace(group, runs=tuple(runs)), "dead")[1]
    assert [text.partition(": at the freeze, step ")[0] for text in rule_b.warnings] == [
        "rule B, mean curve",
        "rule B, seed 42",
        "rule B, seed 43",
    ]


def test_a_set_that_is_not_there_has_no_epochs(group: Group) -> None:
    assert epochs_of(group, "no such set") == []
