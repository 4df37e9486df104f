"""The figures: their data against the measures, their words, and all that a recording may lack."""

import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from flannel_pl.analysis.drawing import colors, figures, maps, panels, radii
from flannel_pl.analysis.drawing.gallery import GALLERY, Kind
from flannel_pl.analysis.measuring.divergence import Divergence
from flannel_pl.analysis.measuring.lifecycle import PHASES, phase_fractions
from flannel_pl.analysis.measuring.results import Measures, RunMeasures
from flannel_pl.analysis.statistics import groups, series
from flannel_pl.metrics.lattice import HISTOGRAM_EDGES
from tests.analysis.synthetic import BANDS, make_measures, to_svg

Array = np.ndarray[Any, Any]
every_kind = pytest.mark.parametrize("kind", GALLERY, ids=lambda kind: kind.name)


def changed_runs(measures: Measures, change: Callable[[RunMeasures], dict[str, Any]]) -> Measures:
    return replace(measures, runs=tuple(replace(run, **change(run)) for run in measures.runs))


def with_series(measures: Measures, name: str, change: Callable[[Array], Array]) -> Measures:
    def changed(run: RunMeasures) -> dict[str, Any]:
        series = {one: {**named, name: change(named[name])} for one, named in run.series.items()}
        return {"series": series}

    return changed_runs(measures, changed)


def drawn(figure: Figure | None) -> Figure:
    """Returns a figure after it was laid out and drawn, which is where much goes wrong."""
    assert figure is not None
    figure.draw_without_rendering()
    return figure


def title_of(figure: Figure | None) -> str:
    return drawn(figure).get_suptitle().replace("\n", " ")


def line(axes: Axes, label: str) -> tuple[Array, Array]:
    (found,) = (one for one in axes.get_lines() if label in str(one.get_label()))
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


def of_runs(measures: Measures, name: str, token_set: str = "dead") -> Array:
    return np.array([run.series[token_set][name] for run in measures.runs])


@every_kind
def test_every_figure_has_a_title_and_names_its_axes(kind: Kind) -> None:
    figure = drawn(kind.draw(make_measures(num_runs=3, num_rows=201, num_tokens=50), bands=BANDS))
    assert figure.get_suptitle()
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    if kind.name == "cloud":  # three frames in a row, with two axes for all
        assert [axes.get_title(loc="left") for axes in panels] == ["step 0", "step 61", "step 200"]
        assert [bool(axes.get_ylabel()) for axes in panels] == [True, False, False]
        assert "axis 1 (90%)" in panels[1].get_xlabel()
    else:
        assert all(axes.get_ylabel() for axes in figure.axes)
        assert [axes.get_xlabel() for axes in panels] == [""] * (len(panels) - 1) + ["step"]
    assert kind.caption
    assert kind.formula
    assert kind.needs


@every_kind
@pytest.mark.parametrize(
    "measures",
    [
        make_measures(num_runs=1, num_rows=131, num_tokens=20),
        make_measures(num_runs=2, num_rows=2, num_tokens=20),
        make_measures(num_runs=2, num_rows=41, every=10, dead=False, num_tokens=20),
        [(f"part {i}", make_measures(num_runs=i, num_rows=50, num_tokens=20)) for i in range(1, 10)],
    ],
    ids=["a single run", "two rows", "no dead tokens", "nine experiments"],
)
def test_every_figure_copes(kind: Kind, measures: groups.Experiments) -> None:
    figure = kind.draw(measures, bands=BANDS)
    if figure is not None:
        drawn(figure)


def test_a_single_row_has_a_radius_and_nothing_that_moves() -> None:
    found = {kind.name: kind.draw(make_measures(num_runs=1, num_rows=1), bands=BANDS) for kind in GALLERY}
    assert [name for name, figure in found.items() if figure is not None] == ["radius"]
    assert "origin radius is 0.159" in title_of(found["radius"])
    axes = drawn(found["radius"]).axes[0]
    assert axes.get_lines()[0].get_marker() == "o"  # a line of one point would be invisible


@every_kind
def test_there_is_no_figure_of_what_was_not_recorded(kind: Kind) -> None:
    def nothing(run: RunMeasures) -> dict[str, Any]:
        return {"series": {"all": {}}, "scalars": {}, "tokens": {}, "histogram": {}}

    measures = replace(changed_runs(make_measures(num_runs=2, num_rows=20), nothing), pairs={}, clouds=())
    assert kind.draw(measures, bands=BANDS) is None


@every_kind
def test_there_is_no_figure_of_nan_only(kind: Kind) -> None:
    measures = make_measures(num_runs=2, num_rows=20, num_tokens=20)

    def nan(run: RunMeasures) -> dict[str, Any]:
        series = {one: {k: v * np.nan for k, v in named.items()} for one, named in run.series.items()}
        return {
            "series": series,
            "scalars": {"loss": run.scalars["loss"] * np.nan},
            "histogram": {one: counts * 0 for one, counts in run.histogram.items()},
            "tokens": {},
        }

    pairs = {
        one: Divergence(found.pairs, found.distance_PR * np.nan, found.evolution_NR)
        for one, found in measures.pairs.items()
    }
    assert kind.draw(replace(changed_runs(measures, nan), pairs=pairs, clouds=())) is None


def test_nan_and_infinity_in_places_are_gaps() -> None:
    def spoil(values_R: Array) -> Array:
        values_R = values_R.copy()
        values_R[[3, 50, -1]] = np.nan, np.inf, np.nan
        return values_R

    measures = make_measures(num_runs=3, num_rows=131, num_tokens=20)
    for name in ("origin_radius", "centroid_radius", "token_speed", "frozen_fraction"):
        measures = with_series(measures, name, spoil)
    for kind in GALLERY:
        assert "nan" not in title_of(kind.draw(measures, bands=BANDS))
    _, mean_R = line(drawn(radii.radius(measures)).axes[0], "mean of 3")
    assert np.flatnonzero(np.isnan(mean_R)).tolist() == [3, 50, 130]


def test_radius_is_the_mean_over_runs_with_its_standard_deviation() -> None:
    measures = make_measures(num_runs=4, num_rows=200, num_tokens=20)
    top, bottom = drawn(radii.radius(measures, bands=BANDS)).axes
    for axes, name in ((top, "origin_radius"), (bottom, "centroid_radius")):
        values_NR = of_runs(measures, name)
        steps_R, mean_R = line(axes, "mean of 4 runs")
        np.testing.assert_allclose(mean_R, values_NR.mean(axis=0))
        np.testing.assert_array_equal(steps_R, np.arange(200))
        (area, *_) = axes.collections
        high = np.interp(100.0, *_upper_edge(area.get_paths()[0].vertices))
        assert high == pytest.approx(values_NR[:, 100].mean() + values_NR[:, 100].std(ddof=1))
        each = [np.asarray(one.get_ydata()) for one in axes.get_lines() if one.get_linewidth() < 1]
        for values_R in values_NR:
            assert any(np.array_equal(values_R, found) for found in each)


def _upper_edge(vertices: Any) -> tuple[Array, Array]:
    points = np.asarray(vertices)
    steps = np.unique(points[:, 0])
    return steps, np.array([points[points[:, 0] == step, 1].max() for step in steps])


def test_titles_say_what_the_numbers_say() -> None:
    measures = make_measures(num_runs=3, num_rows=1001, num_tokens=50)
    values_NR = of_runs(measures, "origin_radius")
    start, end = values_NR.mean(axis=0)[[0, -1]]
    assert f"The dead tokens: origin radius grows from {start:.3g} to {end:.3g}" in title_of(
        radii.radius(measures)
    )
    shrinking = with_series(measures, "origin_radius", lambda x: x[::-1])
    assert f"origin radius falls from {end:.3g} to {start:.3g}" in title_of(radii.radius(shrinking))
    depth = 100 * (1 - (values_NR[:, 2] / values_NR[:, 0]).mean())
    assert title_of(radii.inhale(measures)) == (
        f"Inhale: the origin radius of the dead tokens shrinks by {depth:.2f} % until step 2"
    )
    frozen_R = of_runs(measures, "frozen_fraction").mean(axis=0)
    first = int(np.flatnonzero(frozen_R > 0.9)[0])
    assert title_of(figures.frozen(measures)).endswith(f"over 90% first at step {first}")
    lively = with_series(measures, "frozen_fraction", lambda x: x * 0.5)
    assert "90%" not in title_of(figures.frozen(lively))


def test_the_tokens_of_a_title_are_those_that_are_drawn() -> None:
    measures = make_measures(num_runs=2, num_rows=131, num_tokens=20)
    assert "the live tokens" in title_of(radii.sneeze(measures, token_set="live"))
    only_all = make_measures(num_runs=2, num_rows=131, num_tokens=20, dead=False)
    assert "all tokens" in title_of(radii.sneeze(only_all))
    both = [("one", measures), ("two", only_all)]
    assert "all tokens" in title_of(radii.sneeze(both))
    _, mean_R = line(drawn(radii.radius(both)).axes[0], "one")
    np.testing.assert_allclose(mean_R, of_runs(measures, "origin_radius", "all").mean(axis=0))


@pytest.mark.parametrize(
    ("radius", "title"),
    [
        (lambda x: 1 + 0.01 * np.arange(len(x)), "No inhale: to step 10, the origin radius"),
        (lambda x: 1 - 0.01 * np.arange(len(x)), "still shrinks at step 10"),
    ],
)
def test_an_inhale_that_is_none_is_not_called_one(radius: Callable[[Array], Array], title: str) -> None:
    measures = with_series(make_measures(num_runs=2, num_rows=50, num_tokens=20), "origin_radius", radius)
    assert title in title_of(radii.inhale(measures))


def test_a_cloud_that_shrinks_does_not_sneeze() -> None:
    measures = with_series(
        make_measures(num_runs=1, num_rows=50, num_tokens=20), "origin_radius", lambda x: 2 - x * 0.01
    )
    falling = with_series(measures, "origin_radius", lambda x: np.linspace(2, 1, len(x)))
    assert title_of(radii.sneeze(falling)) == "Sneeze: the dead tokens do not fly outward"


def test_growth_is_per_step_and_not_smoothed_over_rows_that_are_far_apart() -> None:
    for every, window in ((1, 5), (10, 1)):
        measures = make_measures(num_runs=1, num_rows=61, every=every, num_tokens=20)
        radius_R = measures.runs[0].series["dead"]["origin_radius"]
        rows = measures.runs[0].steps_R <= 120
        growth_R = np.diff(radius_R[rows]) / every
        _, bottom = drawn(radii.sneeze(measures)).axes
        thick = bottom.get_lines()[-1]
        half = window // 2
        middle = [growth_R[k - half : k + half + 1].mean() for k in range(half, len(growth_R) - half)]
        found = np.asarray(thick.get_ydata())
        np.testing.assert_allclose(found[half : len(found) - half], middle)


def heat_map(figure: Figure) -> tuple[QuadMesh, Array]:
    (mesh,) = (one for one in figure.axes[0].collections if isinstance(one, QuadMesh))
    return mesh, np.ma.masked_array(mesh.get_array()).filled(0)


def test_the_heat_map_counts_tokens() -> None:
    measures = make_measures(num_runs=2, num_rows=31, num_tokens=40)
    figure = drawn(maps.displacement_map(measures))
    _, shown_BC = heat_map(figure)
    counts_RB = np.sum([run.histogram["dead"] for run in measures.runs], axis=0)
    expected_CB = counts_RB[1:] / 80
    np.testing.assert_allclose(shown_BC.T, expected_CB[:, : shown_BC.shape[0]])
    assert not expected_CB[:, shown_BC.shape[0] :].any()
    ticks = dict(zip(figure.axes[0].get_yticks(), figure.axes[0].get_yticklabels(), strict=True))
    for place, label in ticks.items():  # a tick at an edge between bins is that edge's displacement
        text = label.get_text().replace(",", "")
        if text != "frozen":
            power = re.fullmatch(r"\$2\^\{(\d+)\}\$", text)
            assert HISTOGRAM_EDGES[int(place)] == (2.0 ** int(power[1]) if power else float(text))


def test_the_heat_map_of_a_long_recording_has_a_column_for_several_rows() -> None:
    measures = make_measures(num_runs=1, num_rows=1201, num_tokens=10)
    figure = drawn(maps.displacement_map(measures))
    mesh, shown_BC = heat_map(figure)
    assert shown_BC.shape[1] == maps.MAX_COLUMNS
    np.testing.assert_allclose(shown_BC.sum(axis=0), 1)
    assert mesh.get_rasterized()


def test_phases_are_stacked_to_one() -> None:
    measures = make_measures(num_runs=2, num_rows=700, num_tokens=30)
    (axes,) = drawn(maps.lifecycle(measures)).axes
    runs = [phase_fractions(run.tokens["dead"], run.steps_R) for run in measures.runs]
    early_R = np.mean([one["early"] for one in runs], axis=0)
    lowest, *_, highest = axes.collections
    assert len(axes.collections) == len(PHASES)
    steps_R, edge_R = _upper_edge(lowest.get_paths()[0].vertices)
    np.testing.assert_allclose(edge_R, early_R[steps_R.astype(int)])
    _, edge_R = _upper_edge(highest.get_paths()[0].vertices)
    np.testing.assert_allclose(edge_R, 1)


def test_distances_are_of_pairs_beside_those_from_the_own_start() -> None:
    measures = make_measures(num_runs=4, num_rows=100, num_tokens=10)
    (axes,) = drawn(figures.divergence(measures, token_set="live")).axes
    found = measures.pairs["live"]
    np.testing.assert_allclose(line(axes, "mean of 6 pairs")[1], found.distance_PR.mean(axis=0))
    np.testing.assert_allclose(line(axes, "own start")[1], found.evolution_NR.mean(axis=0))
    assert figures.divergence(make_measures(num_runs=1, num_rows=10)) is None


def test_the_values_of_a_sweep_are_never_averaged() -> None:
    small, large = (
        make_measures(num_runs=2, num_rows=50, num_tokens=10, strength=strength, swept=swept)
        for strength, swept in ((0.5, "model.init_scale 0.01"), (1.0, "model.init_scale 0.02"))
    )
    runs = (*small.runs, *(replace(run, run=run.run + 2) for run in large.runs))
    pairs = {"dead": Divergence(((0, 2), (0, 1), (2, 3)), _constant(3), _constant(4))}
    sweep = replace(small, runs=runs, pairs=pairs)
    axes = drawn(radii.radius(sweep)).axes[0]
    for measures, name in ((small, "init_scale 0.01"), (large, "init_scale 0.02")):
        np.testing.assert_allclose(line(axes, name)[1], of_runs(measures, "origin_radius").mean(axis=0))
    (axes,) = drawn(figures.divergence(sweep)).axes
    assert line(axes, "init_scale 0.01")[1].tolist() == [1.0] * 50  # not the pair of run 0 and run 2
    assert line(axes, "init_scale 0.02")[1].tolist() == [2.0] * 50


def _constant(num: int) -> Array:
    return np.repeat(np.arange(num, dtype=np.float64)[:, None], 50, axis=1)


def test_a_learning_rate_is_shown_if_all_runs_share_it() -> None:
    measures = make_measures(num_runs=2, num_rows=50, num_tokens=10)
    assert line(drawn(figures.frozen(measures)).axes[0], "learning rate")[1][1] == 1
    other = replace(measures.runs[1], scalars={"learning_rate": np.ones(50)})
    mixed = replace(measures, runs=(measures.runs[0], other))
    labels = [one.get_label() for one in drawn(figures.frozen(mixed)).axes[0].get_lines()]
    assert "learning rate (100% = highest)" not in labels


def test_runs_of_different_length_are_averaged_as_far_as_all_go() -> None:
    measures = make_measures(num_runs=2, num_rows=60, num_tokens=10)
    short = make_measures(num_runs=1, num_rows=40, num_tokens=10).runs[0]
    pairs = make_measures(num_runs=2, num_rows=40, num_tokens=10).pairs
    measures = replace(measures, runs=(short, measures.runs[1]), pairs=pairs)
    for kind in GALLERY:
        drawn(kind.draw(measures, bands=BANDS))
    assert len(line(drawn(radii.radius(measures)).axes[0], "mean of 2")[0]) == 40


def test_more_panels_than_fit_are_counted() -> None:
    several = [(f"part {i}", make_measures(num_runs=1, num_rows=20, num_tokens=10)) for i in range(8)]
    assert title_of(maps.lifecycle(several)).endswith("the first 6 of 8 groups of runs")


def test_epochs_that_are_out_of_sight_are_not_named_and_no_names_overlap() -> None:
    figure = drawn(radii.sneeze(make_measures(num_runs=1, num_tokens=10), bands=BANDS))
    names = [text.get_text() for text in figure.axes[0].texts]
    assert names == ["inhale", "sneeze", "deceleration"]
    assert figure.axes[0].get_xlim() == (0, 120)
    for bands in (BANDS, [(f"a long name {i}", 990 + i, 991 + i) for i in range(4)]):
        figure = drawn(radii.radius(make_measures(num_runs=1, num_tokens=10), bands=bands))
        boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without its line
        assert len(boxes) == len(bands)
        for left, right in itertools.pairwise(boxes):
            assert left.x1 < right.x0


@every_kind
def test_nothing_sticks_out_of_the_figure(kind: Kind) -> None:
    figure = drawn(kind.draw(make_measures(num_runs=2, num_tokens=20), bands=BANDS))
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 > -0.01
    assert box.y0 > -0.01
    assert box.x1 < width + 0.01
    assert box.y1 < height + 0.01


@every_kind
def test_the_same_figure_is_the_same_bytes(kind: Kind, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        figure = kind.draw(make_measures(num_runs=2, num_rows=200, num_tokens=20), bands=BANDS)
        assert figure is not None
        png, svg = panels.save(figure, tmp_path / folder / kind.name)
        assert (png.name, svg.name) == (f"{kind.name}.png", f"{kind.name}.svg")
    for name in (png.name, svg.name):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == [png.name, svg.name]
    assert b"<dc:date>" not in svg.read_bytes()
    assert png.read_bytes().startswith(b"\x89PNG")
    width = int.from_bytes(png.read_bytes()[16:20], "big")
    assert width == round(150 * panels.WIDTH_INCHES)


def test_a_page_gives_its_own_colours_to_text_and_background() -> None:
    figure = radii.radius(make_measures(num_runs=2, num_rows=50, num_tokens=10), bands=BANDS)
    svg = to_svg(drawn(figure))
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert panels.INK not in svg
    assert panels.PAPER not in svg
    assert "#000" not in svg  # matplotlib's own black would vanish in the dark


@pytest.mark.slow
def test_many_runs_of_many_rows_make_no_large_files() -> None:
    measures = make_measures(num_runs=30, num_rows=4001, num_tokens=20)
    sizes = {kind.name: len(to_svg(drawn(kind.draw(measures, bands=BANDS)))) for kind in GALLERY}
    assert sum(sizes.values()) < 4_000_000, sizes


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    to_svg(drawn(radii.radius(make_measures(num_runs=2, num_rows=20, num_tokens=10))))
    assert dict(matplotlib.rcParams) == before
    code = "import sys, flannel_pl.analysis.drawing.gallery; print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def luminance(color: str) -> float:
    """WCAG 2.2, relative luminance."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("color", [*colors.COLORS, panels.SHADE])
def test_lines_are_seen_on_white_and_in_the_dark(color: str) -> None:
    assert contrast(color, "#ffffff") > 3
    assert contrast(color, "#1a1e23") > 3


def test_a_thinned_line_keeps_its_extremes_and_its_gaps() -> None:
    draw = np.random.default_rng(0)
    values_R = draw.normal(0, 1, 10_000)
    values_R[[777, 5000]] = 50, -50
    values_R[2000:4000] = np.nan
    rows = panels.thinned(values_R, max_points=100)
    assert len(rows) <= 102
    assert (rows[0], rows[-1]) == (0, 9999)
    assert {777, 5000} <= set(rows.tolist())
    assert np.isnan(values_R[rows]).any()
    assert (np.diff(rows) > 0).all()


def test_a_running_mean_is_that_of_a_loop() -> None:
    draw = np.random.default_rng(0)
    values_R = draw.normal(0, 1, 40)
    values_R[[0, 7, 8, 39]] = np.nan
    for window in (1, 3, 25, 99):
        half = window // 2
        expected = [
            np.nan if np.isnan(x) else float(np.nanmean(values_R[max(0, k - half) : k + half + 1]))
            for k, x in enumerate(values_R)
        ]
        np.testing.assert_allclose(series.smoothed(values_R, window), expected)
