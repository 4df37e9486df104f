"""Steps that the optimizer skipped: everything else is measured as if they were not there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import flannel_pl
from flannel_pl.__main__ import main
from flannel_pl.analysis.measuring import cache
from flannel_pl.analysis.measuring.all_runs import measure_experiment
from flannel_pl.analysis.measuring.lifecycle import NEVER, phase_fractions
from flannel_pl.analysis.measuring.one_run import measure_run
from flannel_pl.analysis.measuring.results import RunMeasures
from flannel_pl.analysis.reporting.report import report
from flannel_pl.analysis.statistics.curves import curves_of
from flannel_pl.analysis.statistics.epochs import rule_a, rule_b
from flannel_pl.analysis.statistics.groups import groups_of
from flannel_pl.analysis.statistics.key_figures import key_figures
from tests.analysis.samples import Array, save_recording, walk
from tests.conftest import SmallData
from tests.training.test_resume import SCALED

SKIPPED = [1, 4, 5, 9, 10]
"""Rows after which nothing has moved, among them the first and the last ones."""

NUM_ROWS = 11
TAKEN = [row for row in range(NUM_ROWS) if row not in SKIPPED]


def save_with_skips(path: Path, runs: list[Array], *, steps: list[int] | None = None) -> Path:
    """Saves walks with rows in between in which nothing moved, and says that those steps were skipped."""
    position = np.cumsum([row not in SKIPPED for row in range(NUM_ROWS)]) - 1
    save_recording(path, [W_RVD[position] for W_RVD in runs], dead=[0, 1, 4], steps=steps)
    tensors = load_file(path)
    for index in range(len(runs)):
        tensors[f"run_{index}_skipped"] = torch.tensor([row in SKIPPED for row in range(NUM_ROWS)])
    save_file(tensors, path)
    return path


def measured(path: Path) -> RunMeasures:
    with flannel_pl.open_recording(path) as recording:
        return measure_run(recording, 0)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[RunMeasures, RunMeasures]:
    """A walk as it is, and with steps in between that were skipped."""
    walks = [walk(1, num_rows=len(TAKEN))]
    plain = measured(save_recording(tmp_path / "plain.safetensors", walks, dead=[0, 1, 4]))
    return plain, measured(save_with_skips(tmp_path / "skips.safetensors", walks))


def test_series_of_the_other_steps_are_what_they_would_be(pair: tuple[RunMeasures, RunMeasures]) -> None:
    plain, skips = pair
    moving = 0
    for name, series in plain.series.items():
        for metric, values_R in series.items():
            np.testing.assert_array_equal(skips.series[name][metric][TAKEN], values_R, err_msg=metric)
            in_between = skips.series[name][metric][SKIPPED]
            if np.isnan(values_R[0]) and metric != "path_efficiency":
                moving += 1
                assert np.isnan(in_between).all(), metric
    assert moving > 20
    for name, counts_RB in plain.histogram.items():
        np.testing.assert_array_equal(skips.histogram[name][TAKEN], counts_RB)
        assert not skips.histogram[name][SKIPPED].any()


def test_a_token_that_moved_in_the_last_step_that_was_taken_has_not_come_to_rest(
    pair: tuple[RunMeasures, RunMeasures],
) -> None:
    plain, skips = pair
    for name, ends in plain.tokens.items():
        for mark, steps_S in ends.items():
            expected = np.where(steps_S == NEVER, NEVER, np.take(TAKEN, steps_S))
            np.testing.assert_array_equal(skips.tokens[name][mark], expected, err_msg=mark)
        before = phase_fractions(ends, plain.moved_R)
        after = phase_fractions(skips.tokens[name], skips.moved_R)
        for phase, fractions_R in before.items():
            np.testing.assert_array_equal(after[phase][TAKEN], fractions_R)
            np.testing.assert_array_equal(after[phase][9:], np.repeat(fractions_R[-1], 2))
    assert (plain.tokens["all"]["freeze_step"] == NEVER).any()


def test_they_come_back_from_the_cache(pair: tuple[RunMeasures, RunMeasures], tmp_path: Path) -> None:
    cache.save_run(tmp_path / "kept", "mark", pair[1])
    again = cache.load_run(tmp_path / "kept", "mark")
    assert again is not None
    assert again.skipped_R.tolist() == [row in SKIPPED for row in range(NUM_ROWS)]


def test_key_figures_of_the_end_are_of_the_last_step_that_was_taken(tmp_path: Path) -> None:
    walks = [walk(seed, num_rows=len(TAKEN)) for seed in (1, 2)]
    figures = []
    for path in (
        save_recording(tmp_path / "plain.safetensors", walks, dead=[0, 1, 4]),
        save_with_skips(tmp_path / "skips.safetensors", walks),
    ):
        with flannel_pl.open_recording(path) as recording:
            (group,) = groups_of([("", measure_experiment(recording))])
        figures.append({figure.name: figure.values for figure in key_figures(group, "dead")})
        (curve,) = curves_of([group], "dead", "origin_radius")
        velocity_NR = curve.until(8).velocity().values_NR
    plain, skips = figures
    same = [name for name in plain if "step" not in name and "path" not in name and "loss" not in name]
    assert "frozen_fraction, end" in same
    assert {name: skips[name] for name in same} == {name: plain[name] for name in same}
    assert np.isnan(velocity_NR).any(axis=0).tolist() == [row in SKIPPED for row in range(1, 9)]


def test_rows_that_are_steps_apart_may_have_moved_all_the_same(tmp_path: Path) -> None:
    steps = list(range(0, 2 * NUM_ROWS, 2))
    found = measured(save_with_skips(tmp_path / "r", [walk(1, num_rows=len(TAKEN))], steps=steps))
    assert not found.skipped_R.any()


def test_five_skipped_steps_are_no_freeze() -> None:
    steps_R = np.arange(601)
    time_R = steps_R.astype(float)
    skipped_R = np.isin(steps_R, range(150, 160))
    taken_R = np.cumsum(~skipped_R) - 1
    radius_R = 1 / (1 + np.exp((40.5 - time_R) / 4)) + time_R / 300
    stalled_R = radius_R[taken_R]
    assert rule_a(stalled_R, steps_R).freeze.step == 151
    assert rule_a(stalled_R, steps_R, skipped_R=skipped_R).freeze.step is None
    frozen_R = np.where(skipped_R, np.nan, 0.1)
    found = rule_b(stalled_R, frozen_R, steps_R, skipped_R=skipped_R)
    assert found.freeze.step is None
    assert found.sneeze == rule_b(radius_R, np.full(601, 0.1), steps_R).sneeze


def test_a_real_run_under_a_scaler(
    small_data: SmallData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", *small_data.arguments, "--trainer.max_steps", "20", "--launch.threads_per_run", "1"]
    words += ["--trainer.precision", "null", "--trainer.plugins", SCALED, "--model.param_dtype", "float32"]
    words += [
        "--recorder.dtypes",
        json.dumps(dict.fromkeys(("embeddings", "momentum", "variance"), "float32")),
    ]
    assert main([*words, "--experiment.output_dir", str(tmp_path)]) == 0
    with flannel_pl.open_recording(tmp_path / "flannel") as recording:
        marks_R = recording.run(0).tensor("skipped")[:]
        within_R = measure_run(recording, 0).series["all"]["adam_within_one_fraction"]
    assert marks_R[1]
    assert 3 < np.count_nonzero(marks_R) < 15
    assert np.isnan(within_R[1:]).tolist() == marks_R[1:].tolist()
    assert np.nanmin(within_R) > 0.99  # Adam counts the steps that it takes
    page = report(tmp_path / "flannel", out=tmp_path / "page").page.read_text(encoding="utf-8")
    assert f"the optimizer skipped {np.count_nonzero(marks_R)} steps, the first one 1, as it does" in page
