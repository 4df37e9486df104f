"""The tables of small recordings, read back as a spreadsheet would."""

import csv
from pathlib import Path

import numpy as np
import pytest

import flannel_pl
from flannel_pl.analysis.measuring.one_run import measure_run
from flannel_pl.analysis.measuring.results import Measures
from flannel_pl.analysis.reporting.tables import key_figures_csv, metrics_csv, steps_csv
from flannel_pl.analysis.statistics.groups import groups_of
from flannel_pl.analysis.statistics.key_figures import key_figures
from tests.analysis.samples import save_recording, walk


@pytest.fixture
def measures(tmp_path: Path) -> Measures:
    path = save_recording(tmp_path / "r.safetensors", [walk(1), walk(2)[:5]], dead=[0, 1, 4])
    with flannel_pl.open_recording(path) as recording:
        runs = tuple(measure_run(recording, index) for index in recording.runs)
    return Measures(path, "trial", runs, pairs={}, dim=4, left_out={})


def test_every_number_of_every_row(measures: Measures) -> None:
    lines = list(csv.DictReader(metrics_csv(measures).splitlines()))
    assert len(lines) == 3 * (7 + 5)
    line = next(x for x in lines if (x["run"], x["set"], x["step"]) == ("1", "live", "3"))
    expected = measures.runs[1].series["live"]["token_speed"][3]
    assert line["label"] == "seed 43"
    assert float(line["token_speed"]) == pytest.approx(expected, rel=1e-8)
    assert line["loss"] == ""
    first = next(x for x in lines if (x["run"], x["set"], x["step"]) == ("0", "all", "0"))
    assert (first["token_speed"], first["loss"]) == ("", "")
    second = next(x for x in lines if (x["run"], x["set"], x["step"]) == ("0", "all", "1"))
    assert second["loss"] == "1"


def test_means_over_runs_have_the_steps_of_all(measures: Measures) -> None:
    lines = list(csv.DictReader(steps_csv(groups_of(measures), "dead").splitlines()))
    assert [line["step"] for line in lines] == list("01234")
    values = [run.series["dead"]["origin_radius"][4] for run in measures.runs]
    assert float(lines[4]["origin_radius_mean"]) == pytest.approx(np.mean(values), rel=1e-8)
    assert float(lines[4]["origin_radius_std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-8)
    assert lines[0]["token_speed_mean"] == ""


def test_key_figures(measures: Measures) -> None:
    (group,) = groups_of(measures)
    figures = {figure.name: figure for figure in key_figures(group, "dead")}
    radius = [run.series["dead"]["origin_radius"][4] for run in measures.runs]  # the last row of both
    assert figures["origin_radius, end"].values == pytest.approx(radius)
    assert figures["origin_radius, end"].over_runs.mean == pytest.approx(np.mean(radius))
    assert figures["loss, mean over steps"].values == (1, 1)
    assert figures["fraction of tokens still moving"].values == pytest.approx((1 / 3, 1 / 3))
    over_runs, by_run = (
        list(csv.DictReader(key_figures_csv([(group, list(figures.values()))], by_run=by_run).splitlines()))
        for by_run in (False, True)
    )
    assert [line["figure"] for line in over_runs] == list(figures)
    assert float(over_runs[1]["std"]) == pytest.approx(np.std(radius, ddof=1), rel=1e-6)
    assert [line["run"] for line in by_run[2:4]] == ["seed 42", "seed 43"]
    assert float(by_run[3]["value"]) == pytest.approx(radius[1], rel=1e-8)


def test_a_set_that_is_not_there_has_no_figures_but_the_loss(measures: Measures) -> None:
    (group,) = groups_of(measures)
    assert [figure.name for figure in key_figures(group, "no such set")] == ["loss, mean over steps"]
    assert steps_csv([group], "no such set").splitlines() == [
        "group,step",
        *(f"trial,{row}" for row in range(5)),
    ]
