"""What stands beside a figure is true of its chart and of its picture, whatever was recorded."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from flannel_pl.analysis.drawing.charts import Chart, ChartPanel
from flannel_pl.analysis.drawing.colors import COLORS
from flannel_pl.analysis.drawing.gallery import GALLERY, Kind
from flannel_pl.analysis.measuring.results import Measures
from flannel_pl.analysis.reporting.chart_data import SHORTEST_AXIS, chart_data
from flannel_pl.analysis.reporting.report import report
from flannel_pl.analysis.reporting.summary import epoch_table
from flannel_pl.analysis.statistics.group_epochs import epochs_of
from flannel_pl.analysis.statistics.groups import groups_of
from tests.analysis.samples import Array, save_recording, walk
from tests.analysis.synthetic import BANDS, make_measures

KINDS = {kind.name: kind for kind in GALLERY}


@pytest.fixture(scope="module")
def short() -> Measures:
    """Two seeds of sixty steps."""
    return make_measures(num_runs=2, num_rows=61, num_tokens=20)


def drawn(name: str, measures: Measures) -> tuple[Figure, Chart]:
    figure, chart = KINDS[name].draw(measures, bands=BANDS), KINDS[name].chart(measures)
    assert figure is not None
    assert chart is not None
    return figure, chart


def words_of(kind: Kind, *, runs: int = 2, groups: int = 1, bands: bool = True) -> str:
    return kind.words(alone=groups == 1, several_runs=runs > 1, shaded=bands)


def test_an_inhale_is_enlarged_as_much_in_the_chart(short: Measures) -> None:
    figure, chart = drawn("inhale", short)
    (panel,) = chart.panels
    assert panel.range == pytest.approx(figure.axes[0].get_ylim())
    assert panel.range is not None
    highest = max(float(np.nanmax(line.values_R)) for line in panel.lines)
    assert highest > panel.range[1]  # it does leave at the top
    assert "A line that leaves the figure at the top goes on in the next one" in words_of(KINDS["inhale"])


def test_a_sneeze_of_a_short_recording_has_no_120_steps(short: Measures) -> None:
    figure, chart = drawn("sneeze", short)
    assert "until step 120 or the end of the recording" in words_of(KINDS["sneeze"])
    assert figure.axes[0].get_xlim()[1] == chart.panels[0].lines[0].steps_R[-1] == 60


def growth(panel: ChartPanel) -> tuple[list[Array], list[Array]]:
    thick = [line.values_R for line in panel.lines if line.is_thick]
    return thick, [line.values_R for line in panel.lines if not line.is_thick]


@pytest.mark.parametrize("num_runs", [1, 2])
def test_growth_is_thick_where_it_is_smoothed(num_runs: int) -> None:
    figure, chart = drawn("sneeze", make_measures(num_runs=num_runs, num_rows=61, num_tokens=20))
    thick, thin = growth(chart.panels[1])
    assert (len(thick), len(thin)) == (1, num_runs)
    lines = [line for line in figure.axes[1].lines if len(np.asarray(line.get_ydata())) == 60]
    smooth = max(lines, key=lambda line: line.get_linewidth())
    np.testing.assert_allclose(thick[0], np.asarray(smooth.get_ydata()))
    raw = [np.asarray(line.get_ydata()) for line in lines if line is not smooth]
    np.testing.assert_allclose(np.array(thin), np.array(raw))


def test_the_area_of_the_growth_is_around_what_is_not_smoothed(short: Measures) -> None:
    _, chart = drawn("sneeze", short)
    (mean,) = (line for line in chart.panels[1].lines if line.is_thick)
    _, thin = growth(chart.panels[1])
    assert mean.middle_R is not None
    assert mean.std_R is not None
    np.testing.assert_allclose(mean.middle_R, np.mean(thin, axis=0))
    np.testing.assert_allclose(mean.std_R, np.std(thin, axis=0, ddof=1))


def test_frozen_tokens_have_the_same_lines_in_both(short: Measures) -> None:
    figure, chart = drawn("frozen", short)
    (panel,) = chart.panels
    levels = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in levels] == [panel.level] == [0.9]  # type: ignore[index]
    (rate,) = (line for line in panel.lines if line.dash == "dot")
    assert rate.is_thick
    assert "100 % = highest" in rate.words[0]
    assert "Dashed: 90 %, above which rule B finds Fimbulwinter" in words_of(KINDS["frozen"])
    data = chart_data({"frozen": chart}, steps=[0], epochs=(), texts=[{}])
    assert '"y0":0.9,"y1":0.9' in data


def test_every_line_of_the_loss_is_seen_at_first(short: Measures) -> None:
    _, chart = drawn("loss", short)
    assert all(entry.is_on for entry in chart.entries)
    grey = [line for line in chart.panels[0].lines if line.color not in COLORS]
    assert len(grey) == 2


@pytest.mark.parametrize("kind", GALLERY, ids=lambda kind: kind.name)
def test_epochs_are_spoken_of_where_they_are_shaded(kind: Kind, short: Measures) -> None:
    figure, chart = drawn(kind.name, short)
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert ("inhale" in texts) == kind.has_epochs == (chart.has_epochs and not chart.scenes)
    assert ("rule A finds in the mean curve" in words_of(kind)) == kind.has_epochs
    assert "rule A finds" not in words_of(kind, bands=False)
    assert "rule A finds" not in words_of(kind, groups=2)


@pytest.mark.parametrize("kind", GALLERY, ids=lambda kind: kind.name)
def test_a_single_run_has_no_means(kind: Kind) -> None:
    words = words_of(kind, runs=1).lower()
    for wrong in ("thin lines are runs", "means over runs", "mean over runs", "standard deviation"):
        assert wrong not in words


@pytest.mark.usefixtures("one_picture")
def test_a_page_of_a_walk_says_only_what_is_there(tmp_path: Path) -> None:
    rising = np.abs(walk(1)).cumsum(axis=0)[
        :3
    ]  # of three rows that grow faster and faster, no epoch is known
    text = report(save_recording(tmp_path / "r.safetensors", [rising], dead=[0, 1])).page.read_text("utf-8")
    assert "rule A finds in the mean curve" not in text
    assert "Thin lines are runs" not in text
    assert '<th scope="row" title="how far the centroid has come' in text
    for name in ("path_efficiency", "lift-off step", "origin_radius"):
        assert f"<dt>{name}</dt><dd>" in text


def test_tables_of_epochs_name_and_define_the_deceleration(short: Measures) -> None:
    (group,) = groups_of(short)
    a, b = (epoch_table("x", epochs) for epochs in epochs_of(group, "dead"))
    for table in (a, b):
        assert table.header[1:3] == ["inhale ends, sneeze begins", "sneeze peaks, deceleration begins"]
    assert "the deceleration from that peak, while the cloud slows down" in a.note
    assert "not smoothed: so it may peak some steps before or after rule A's" in b.note
    assert "the recording ends at step 60; rule A looks for it after step 100." in a.note


def test_a_cloud_has_one_scale_and_no_flat_box(short: Measures) -> None:
    cloud = short.clouds[0]
    for factor in ([1, 1, 1], [1, 1e-3, 0], [0, 0, 0]):
        points = cloud.points_F3S * np.array(factor, np.float32)[None, :, None]
        thin = replace(short, clouds=(replace(cloud, points_F3S=points),))
        chart = KINDS["cloud"].chart(thin)
        assert chart is not None
        (scene,) = json.loads(chart_data({"x": chart}, steps=[0], epochs=(), texts=[{}]))["charts"]["x"][
            "scenes"
        ]
        lengths = np.diff(scene["ranges"])[:, 0]
        assert scene["aspect"] == pytest.approx(lengths * scene["aspect"][0] / lengths[0])
        assert min(scene["aspect"]) >= SHORTEST_AXIS * max(scene["aspect"]) * (1 - 1e-9)
        assert np.linalg.norm(scene["aspect"]) == pytest.approx(np.sqrt(3))
        for axis, (low, high) in enumerate(scene["ranges"]):
            assert (low < points[:, axis]).all()
            assert (points[:, axis] < high).all()
