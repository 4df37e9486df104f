"""The charts of a report in a real browser: their numbers are those of the tables."""

import csv
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flannel_pl.analysis.reporting.report import Report, report
from tests.analysis.browser import draw_all, visit
from tests.analysis.samples import save_recording, walk

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

NUM_ROWS = 31


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Three runs of nine tokens, three of them dead."""
    runs = [walk(seed, num_rows=NUM_ROWS) for seed in (1, 2, 3)]
    losses = [float("nan"), *np.linspace(9, 7, NUM_ROWS - 1)]
    folder = tmp_path_factory.mktemp("charts")
    return report(save_recording(folder / "trial.safetensors", runs, dead=[0, 1, 4], losses=losses))


@pytest.fixture(scope="module")
def drawn(browser: "Browser", made: Report) -> Iterator["Page"]:
    """The page with all of its charts drawn; tests leave it as it was."""
    with visit(browser, made.page, width=1200) as tab:
        draw_all(tab)
        yield tab


def table(made: Report, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((made.page.parent / name).read_text(encoding="utf-8").splitlines()))


TRACES = """name => document.querySelector(`figure[data-chart=${name}] .plot`).data.map(one => ({
    meta: one.meta, x: [...one.x], y: [...one.y].map(y => Number.isFinite(y) ? y : null) }))"""


def traces(tab: "Page", name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tab.evaluate(TRACES, name)
    return found


def same(trace: dict[str, Any], expected: dict[int, str]) -> None:
    """Checks every value of a trace against the cells of a table."""
    values = {int(step): text for step, text in expected.items()}
    assert len(trace["x"]) == len(trace["y"]) > 5
    for step, value in zip(trace["x"], trace["y"], strict=True):
        if value is None:
            assert values[step] == ""
        else:
            assert value == pytest.approx(float(values[step]), rel=2e-7)


@pytest.mark.parametrize(
    ("chart", "series"),
    [
        *(("radius", "origin_radius"), ("radius", "centroid_radius"), ("sneeze", "origin_radius")),
        *(("speed", "token_speed"), ("speed", "centroid_speed"), ("speed", "thermal_speed")),
        *(("frozen", "frozen_fraction"), ("loss", "loss")),
    ],
)
def test_every_run_has_the_numbers_of_the_tables(
    drawn: "Page", made: Report, chart: str, series: str
) -> None:
    rows = table(made, "metrics.csv")
    found = [one for one in traces(drawn, chart) if one["meta"]["series"] == series and "run" in one["meta"]]
    assert [one["meta"]["run"] for one in found] == [0, 1, 2]
    for one in found:
        run, of_set = str(one["meta"]["run"]), one["meta"]["set"]
        same(one, {int(x["step"]): x[series] for x in rows if (x["run"], x["set"]) == (run, of_set)})
        assert f"run {run}, seed {42 + int(run)}" in one["meta"]["words"]
        assert "trial" in one["meta"]["words"]


@pytest.mark.parametrize(
    ("chart", "series"),
    [
        *(("radius", "origin_radius"), ("radius", "centroid_radius")),
        *(("speed", "token_speed"), ("frozen", "frozen_fraction")),
    ],
)
def test_means_and_spreads_are_those_of_the_tables(
    drawn: "Page", made: Report, chart: str, series: str
) -> None:
    rows = table(made, "steps_dead.csv")
    means = {int(x["step"]): x[f"{series}_mean"] for x in rows}
    of_series = [one for one in traces(drawn, chart) if one["meta"]["series"] == series]
    (mean,) = (one for one in of_series if one["meta"].get("statistic") == "mean")
    same(mean, means)
    assert "mean of 3 runs" in mean["meta"]["words"]
    for sign, name in ((1, "mean + std"), (-1, "mean - std")):
        edges = [one for one in of_series if one["meta"].get("statistic") == name]
        assert len(edges) == (0 if chart == "speed" else 1)
        stds = {int(x["step"]): x[f"{series}_std"] for x in rows}
        for edge in edges:
            texts = {k: repr(float(means[k]) + sign * float(stds[k])) if stds[k] else "" for k in stds}
            same(edge, texts)


def test_distances_are_those_of_the_table(drawn: "Page", made: Report) -> None:
    rows = [x for x in table(made, "distances.csv") if x["set"] == "dead"]
    found = traces(drawn, "divergence")
    for series, column in (("distance", "distance_mean"), ("evolution", "evolution_mean")):
        (mean,) = (x for x in found if x["meta"] | {"statistic": "mean", "series": series} == x["meta"])
        same(mean, {int(x["step"]): x[column] for x in rows})
    pairs = [x["meta"]["pair"] for x in found if "pair" in x["meta"]]
    assert pairs == ["runs 0 and 1", "runs 0 and 2", "runs 1 and 2"]


def test_what_is_derived_follows_from_the_tables(drawn: "Page", made: Report) -> None:
    rows = [x for x in table(made, "metrics.csv") if (x["run"], x["set"]) == ("1", "dead")]
    radius = {int(x["step"]): float(x["origin_radius"]) for x in rows}
    (relative,) = (x for x in traces(drawn, "inhale") if x["meta"].get("run") == 1)
    same(relative, {k: repr(100 * (value / radius[0] - 1)) for k, value in radius.items() if k <= 10})
    (growth,) = (
        x for x in traces(drawn, "sneeze") if (x["meta"]["series"], x["meta"].get("run")) == ("velocity", 1)
    )
    expected = {k: radius[k + 1] - radius[k] for k in range(NUM_ROWS - 1)}
    assert growth["y"] == pytest.approx([expected[k] for k in growth["x"]], rel=1e-6, abs=1e-9)


def test_phases_and_jumps_are_parts_of_all_tokens(drawn: "Page") -> None:
    phases = traces(drawn, "lifecycle")
    assert [x["meta"]["series"] for x in phases] == ["early", "midlife", "late", "fimbulwinter"]
    assert np.sum([x["y"] for x in phases], axis=0) == pytest.approx(1)
    parts = drawn.evaluate(
        "document.querySelector('figure[data-chart=displacement] .plot').data[0].customdata.map(x => [...x])"
    )
    assert np.sum(parts, axis=0) == pytest.approx(1)


def test_the_cloud_is_where_the_weights_are(drawn: "Page", made: Report) -> None:
    dead, live = (
        drawn.evaluate(
            "n => { const one = document.querySelector('figure[data-chart=cloud] .plot').data[n];"
            " return [[...one.x], [...one.y], [...one.z], one.text] }",
            number,
        )
        for number in (0, 1)
    )
    assert dead[3] == ["token 0, dead", "token 1, dead", "token 4, dead"]
    assert [len(live[axis]) for axis in range(4)] == [6] * 4
    # Any three axes of four leave at most the length of the weights; the first row is shown at first.
    lengths = np.linalg.norm(walk(1, num_rows=NUM_ROWS)[0, [0, 1, 4]], axis=1)
    assert (np.linalg.norm(np.array(dead[:3]), axis=0) <= lengths + 1e-6).all()
    assert np.linalg.norm(np.array(dead[:3]), axis=0) == pytest.approx(lengths, rel=0.5)
