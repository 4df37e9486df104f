"""Charts as data: what is in them and how it is packed, without a browser."""

import base64
import gzip
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flannel_pl.analysis.drawing.charts import MAX_LINES, Chart
from flannel_pl.analysis.drawing.gallery import GALLERY, Kind
from flannel_pl.analysis.drawing.interactive import radius_chart
from flannel_pl.analysis.measuring.results import Measures
from flannel_pl.analysis.reporting import library
from flannel_pl.analysis.reporting.chart_data import Pool, chart_data, plotly_text
from flannel_pl.analysis.reporting.page import Page, Picture, render
from tests.analysis.samples import Array
from tests.analysis.synthetic import BANDS, make_charts, make_measures

NASTY = "</script><!--<script>\u2028 & 'x' \"y\" \ud800 %{y}"


def data_of(chart: Chart, texts: dict[int, str] | None = None) -> Any:
    return json.loads(chart_data({"one": chart}, steps=[0, 5], epochs=BANDS, texts=[texts or {}]))


def unpacked(data: Any, reference: dict[str, int]) -> Array:
    one = data["arrays"][reference["$"]]
    found: Array = np.frombuffer(base64.b64decode(one["data"]), "<" + one["type"])
    return found


@pytest.mark.parametrize(
    "measures",
    [
        make_measures(num_runs=2, num_rows=60, num_tokens=20),
        make_measures(num_runs=1, num_rows=60, num_tokens=20, dead=False),
        make_measures(num_runs=2, num_rows=1, num_tokens=20),
        make_measures(num_runs=1, num_rows=2, num_tokens=20),
        [(name, make_measures(num_runs=2, num_rows=30, num_tokens=20)) for name in ("a", "b")],
    ],
    ids=["two runs", "all tokens", "one row", "two rows", "two experiments"],
)
@pytest.mark.parametrize("kind", GALLERY, ids=lambda kind: kind.name)
def test_there_is_a_chart_where_there_is_a_figure(kind: Kind, measures: Any) -> None:
    figure, chart = kind.draw(measures), kind.chart(measures)
    assert (figure is None) == (chart is None)
    if chart is not None:
        data = json.loads(chart_data({"x": chart}, steps=[0], epochs=(), texts=[{}, {}]))["charts"]["x"]
        assert data.get("traces") or data["scenes"]
        keys = {key for trace in data.get("traces", ()) for key in trace["keys"]}
        switches = {entry["key"] for entry in data["entries"]}
        assert {key for key in switches if not key.startswith("kind ")} <= keys


def test_values_are_packed_so_that_they_are_read_back() -> None:
    chart = radius_chart(make_measures(num_runs=2, num_rows=60, num_tokens=20))
    assert chart is not None
    data = data_of(chart)
    lines = [line for panel in chart.panels for line in panel.lines]
    traces = [one for one in data["charts"]["one"]["traces"] if one.get("line", {}).get("width")]
    assert len(lines) == len(traces) == 6
    for line, trace in zip(lines, traces, strict=True):
        np.testing.assert_allclose(unpacked(data, trace["y"]), line.values_R, rtol=1e-7)
        assert unpacked(data, trace["x"]).tolist() == line.steps_R.tolist()
    assert len({trace["x"]["$"] for trace in traces}) == 1  # once for all


@pytest.mark.parametrize(
    ("values", "packed"),
    [
        (np.array([1.5, np.nan, -0.0, np.inf]), "f4"),
        (np.array([1e300, 1.0]), "f8"),
        (np.array([1e-42, 1.0]), "f8"),
        (np.array([0, 7]), "i4"),
        (np.array([0, 2**40]), "f8"),
        (np.zeros(0), "f4"),
    ],
)
def test_a_type_is_as_small_as_it_can_be(values: Array, packed: str) -> None:
    pool = Pool()
    reference = pool.add(values)
    assert pool.arrays[0]["type"] == packed
    np.testing.assert_allclose(unpacked({"arrays": pool.arrays}, reference), values, rtol=1e-6)
    assert pool.add(values.copy()) == reference
    assert len(pool.arrays) == 1


def test_no_name_ends_the_element_or_formats_a_label() -> None:
    measures = make_measures(title=NASTY, num_runs=2, num_rows=30, num_tokens=20, swept=NASTY)
    charts = {kind.name: kind.chart(measures) for kind in GALLERY}
    text = chart_data(
        {name: chart for name, chart in charts.items() if chart is not None},
        **{"steps": [0], "epochs": BANDS, "texts": [{0: NASTY}]},  # type: ignore[arg-type]
    )
    assert re.search(r"[<>&\u2028\u2029]", text) is None
    data = json.loads(text)
    words = data["charts"]["radius"]["traces"][-1]["meta"]["words"]
    assert "&lt;/script&gt;" in words
    assert set(re.findall(r"<[^>]*>", words)) == {"<br>"}
    assert data["charts"]["cloud"]["scenes"][0]["kinds"][0]["texts"][0].startswith("\u201c&lt;/script&gt;")


def test_words_are_shown_as_they_are_and_not_too_long() -> None:
    assert plotly_text("a<b>&amp;") == "a&lt;b&gt;&amp;amp;"
    assert plotly_text("tab\there\u202e") == "tab\\there\\u202e"
    assert len(plotly_text("x" * 1000)) == 90


def test_of_many_runs_some_are_drawn_and_it_says_so() -> None:
    chart = radius_chart(make_measures(num_runs=70, num_rows=30, num_tokens=5))
    assert chart is not None
    runs = [line.source["run"] for line in chart.panels[0].lines if "run" in line.source]
    assert len(runs) == MAX_LINES
    assert (runs[0], runs[-1]) == (0, 69)
    assert "60 of 70" in chart.note
    (mean,) = (line for line in chart.panels[0].lines if line.source.get("statistic") == "mean")
    assert "mean of 70 runs" in mean.words


def test_long_runs_keep_their_extremes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flannel_pl.analysis.drawing.charts.MAX_VALUES", 2000)
    measures = make_measures(num_runs=5, num_rows=901, num_tokens=5)
    run = measures.runs[3]
    peak = run.series["dead"]["origin_radius"].copy()
    peak[432] = 9.0
    changed = replace(run, series={**run.series, "dead": {**run.series["dead"], "origin_radius": peak}})
    chart = radius_chart(replace(measures, runs=(*measures.runs[:3], changed, *measures.runs[4:])))
    assert chart is not None
    lines = [line for line in chart.panels[0].lines if line.source.get("run") == 3]
    assert len(lines[0].steps_R) <= 402
    assert lines[0].values_R[lines[0].steps_R.tolist().index(432)] == 9.0


def test_a_page_without_plotly_has_no_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "PACKAGE", "no_such_package")
    found = make_charts(make_measures(num_runs=1, num_rows=30, num_tokens=5))
    assert found is None
    text = render(Page("x", pictures=[Picture("h", "<svg ></svg>", "", chart="radius")], interactive=found))
    assert "<script" not in text
    assert "script-src" not in text


def test_the_policy_knows_the_library_and_our_script_by_their_hashes() -> None:
    found = make_charts(make_measures(num_runs=1, num_rows=30, num_tokens=5))
    assert found is not None
    plotly = gzip.decompress(base64.b64decode(found.library))
    assert b"plotly.js v" in plotly[:100]
    for content in (plotly, found.script.encode()):
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert f"'sha256-{digest}'" in found.sources
    assert "</script" not in found.script
    page = render(Page("x", pictures=[Picture("h", "<svg ></svg>", "", chart="radius")], interactive=found))
    assert f"<script>{found.script}</script>" in page
    assert page == render(
        Page("x", pictures=[Picture("h", "<svg ></svg>", "", chart="radius")], interactive=found)
    )


def test_nothing_imports_plotly() -> None:
    code = (
        "import sys, flannel_pl.analysis.reporting.report as r, flannel_pl.analysis.reporting.library as l\n"
        "assert l.interactive('{}') is not None\n"
        "sys.exit('plotly' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_own_scripts_are_short_files() -> None:
    folder = Path(library.__file__).parent
    for name in library.SCRIPTS:
        assert len((folder / name).read_text(encoding="utf-8").splitlines()) <= 350


def test_measures_without_clouds_have_no_scene() -> None:
    measures: Measures = replace(make_measures(num_runs=1, num_rows=30, num_tokens=5), clouds=())
    (kind,) = (kind for kind in GALLERY if kind.name == "cloud")
    assert kind.chart(measures) is None
