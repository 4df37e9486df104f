"""What readers do with charts: hover, switch, zoom, play; with keys, on a phone, in the dark, on paper."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flannel_pl.analysis.reporting.page import render
from flannel_pl.analysis.reporting.report import Report, report
from tests.analysis.browser import TOO_WIDE, draw_all, visit
from tests.analysis.samples import save_recording, walk
from tests.analysis.synthetic import make_measures, make_page
from tests.recording.recording_samples import make_experiment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

NUM_ROWS = 31
BUTTONS = "figure[data-chart=radius] .legend > button"
PRESS_MANY = 200


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Three runs of nine tokens, three of them dead."""
    runs = [walk(seed, num_rows=NUM_ROWS) for seed in (1, 2, 3)]
    path = tmp_path_factory.mktemp("charts") / "trial.safetensors"
    return report(save_recording(path, runs, dead=[0, 1, 4], losses=[float("nan"), *np.linspace(9, 7, 30)]))


@pytest.fixture
def tab(browser: "Browser", made: Report) -> Iterator["Page"]:
    """The page, with the first charts drawn."""
    with visit(browser, made.page, width=1200) as tab:
        draw(tab, "radius")
        yield tab


def draw(tab: "Page", name: str) -> None:
    tab.locator(f"figure[data-chart={name}]").evaluate("one => one.scrollIntoView()")
    tab.wait_for_selector(f"figure[data-chart={name}].live")


def plot(tab: "Page", name: str, what: str) -> Any:
    """Returns what an expression about a chart's `plot` gives."""
    return tab.evaluate(f"(plot => {what})(document.querySelector('figure[data-chart={name}] .plot'))")


def marked(tab: "Page", name: str) -> float:
    value: float = plot(tab, name, "plot.layout.shapes[0].x0")
    return value


def over(tab: "Page", name: str, trace: int, point: int) -> None:
    """Brings the mouse over a point of a chart."""
    x, y = plot(
        tab,
        name,
        f"""(() => {{
            const trace = plot._fullData[{trace}], box = plot.getBoundingClientRect();
            const {{ xaxis, yaxis }} = plot._fullLayout;
            return [box.x + xaxis._offset + xaxis.d2p(trace.x[{point}]),
                box.y + yaxis._offset + yaxis.d2p(trace.y[{point}])]; }})()""",
    )
    tab.mouse.move(x, y - 30)
    tab.wait_for_timeout(100)  # what follows within 50 ms is not looked at
    tab.mouse.move(x, y)


def test_a_curve_says_what_it_is_where_the_mouse_is(tab: "Page") -> None:
    tab.locator(BUTTONS, has_text="mean").click()  # it lies upon the others
    number = plot(tab, "radius", "plot.data.findIndex(one => one.meta.run === 2)")
    over(tab, "radius", number, 20)
    tab.wait_for_function(
        "() => document.querySelector('figure[data-chart=radius] .hovertext')?.textContent.includes('run 2')"
    )
    said = plot(tab, "radius", "plot.querySelector('.hovertext').textContent")
    value = plot(tab, "radius", f"plot._fullData[{number}].y[20]")
    words, _, shown = said.rpartition(" ")
    assert words == "run 2, seed 44trialstep 20:"
    assert float(shown) == pytest.approx(value, rel=1e-5)


def test_the_legend_switches_curves_by_keys(tab: "Page") -> None:
    shown = "plot.data.map(one => one.visible)"
    assert plot(tab, "radius", shown) == [True] * 12
    runs = tab.locator(BUTTONS, has_text="runs")
    runs.focus()
    tab.keyboard.press("Space")
    assert runs.get_attribute("aria-pressed") == "false"
    assert plot(tab, "radius", shown) == 2 * [True, True, True, False, False, False]
    tab.keyboard.press("Enter")
    folded = tab.locator("figure[data-chart=radius] details")
    if folded.get_attribute("open") is None:
        tab.locator("figure[data-chart=radius] summary").press("Enter")
    tab.locator("figure[data-chart=radius] details button", has_text="run 1,").press("Space")
    assert plot(tab, "radius", shown) == 2 * [True, True, True, True, False, True]
    tab.locator(BUTTONS, has_text="mean").press("Space")
    assert plot(tab, "radius", shown) == 2 * [False, False, False, True, False, True]


def test_tab_reaches_legend_view_player_and_slider(tab: "Page") -> None:
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = false; })")
    tab.locator("h1").click()
    reached = set()
    for _ in range(PRESS_MANY):
        tab.keyboard.press("Tab")
        words = "const one = document.activeElement; return one.ariaLabel || one.textContent"
        reached.add(tab.evaluate(f"(() => {{ {words} }})()"))
    assert {"mean", "runs", "Zoom in", "All steps", "one by one", "Play", "Step", "Turn left"} <= reached
    outlines = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outlines != "none"


def test_the_slider_marks_the_step_in_every_chart_by_keys(tab: "Page") -> None:
    draw_all(tab)
    slider = tab.locator(".player input")
    slider.focus()
    for _ in range(7):
        tab.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == tab.locator(".player output").inner_text()
    assert tab.locator(".player output").inner_text().startswith("step 7")
    for name in ("radius", "inhale", "sneeze", "speed", "frozen", "lifecycle", "displacement", "loss"):
        draw(tab, name)
        tab.wait_for_function(
            "name => document.querySelector(`figure[data-chart=${name}] .plot`).layout.shapes[0].x0 === 7",
            arg=name,
        )
    tab.keyboard.press("End")
    draw(tab, "divergence")
    tab.wait_for_function(
        "() => document.querySelector('figure[data-chart=divergence] .plot').layout.shapes[0].x0 === 30"
    )
    draw(tab, "cloud")
    last = walk(1, num_rows=NUM_ROWS)[-1, [0, 1, 4]]
    tab.wait_for_timeout(100)
    found = np.array(plot(tab, "cloud", "['x', 'y', 'z'].map(name => [...plot.data[0][name]])"))
    # Distances between tokens are those of the weights, but for what is along the fourth axis.
    assert np.linalg.norm(found[:, 0] - found[:, 1]) <= np.linalg.norm(last[0] - last[1]) + 1e-6
    assert np.linalg.norm(found[:, 0] - found[:, 1]) == pytest.approx(
        np.linalg.norm(last[0] - last[1]), rel=0.3
    )


WATCH = """() => { const restyle = Plotly.restyle; window.seen = []; Plotly.restyle = (...all) => {
    if (all[1].x) window.seen.push(all[1].x[0][0]); return restyle(...all); }; }"""


@pytest.mark.parametrize("calm", [True, False])
def test_playing_is_by_frames_for_who_wants_no_motion(browser: "Browser", made: Report, calm: bool) -> None:
    frames = set()
    with visit(browser, made.page, width=1200, calm=calm) as tab:
        draw(tab, "cloud")
        tab.wait_for_timeout(700)
        assert tab.locator(".player input").input_value() == "0"  # nothing plays by itself
        tab.evaluate(WATCH)
        tab.locator(".play").press("Space")
        assert tab.locator(".play").get_attribute("aria-label") == "Pause"
        tab.wait_for_function("() => Number(document.querySelector('.player input').value) >= 2")
        tab.locator(".play").press("Space")
        assert tab.locator(".play").get_attribute("aria-label") == "Play"
        stopped = tab.locator(".player input").input_value()
        played = tab.evaluate("[...seen]")
        tab.wait_for_timeout(400)
        assert tab.locator(".player input").input_value() == stopped
        tab.locator(".player input").focus()
        tab.keyboard.press("Home")
        for _ in range(NUM_ROWS):
            frames.add(plot(tab, "cloud", "plot.data[0].x[0]"))
            tab.keyboard.press("ArrowRight")
    between = [x for x in played if min(abs(x - frame) for frame in frames) > 1e-7]
    assert len(played) >= 2
    assert (between == []) == calm


def test_zoom_by_mouse_and_by_keys(tab: "Page") -> None:
    whole = plot(tab, "radius", "plot.layout.xaxis.range")
    left, top, width, height = plot(
        tab,
        "radius",
        "(() => { const box = plot.querySelector('.nsewdrag').getBoundingClientRect();"
        " return [box.x, box.y, box.width, box.height]; })()",
    )
    tab.mouse.move(left + 0.2 * width, top + 0.5 * height)
    tab.mouse.down()
    tab.mouse.move(left + 0.6 * width, top + 0.5 * height, steps=5)
    tab.mouse.up()
    tab.wait_for_function(
        "() => document.querySelector('figure[data-chart=radius] .plot').layout.xaxis.range[0] > 3"
    )
    zoomed = plot(tab, "radius", "plot.layout.xaxis.range")
    assert zoomed[1] - zoomed[0] == pytest.approx(0.4 * (whole[1] - whole[0]), rel=0.05)
    view = tab.locator("figure[data-chart=radius] .tools")
    view.get_by_label("All steps").press("Enter")
    assert plot(tab, "radius", "plot.layout.xaxis.range") == pytest.approx(whole)
    view.get_by_label("Zoom in").press("Enter")
    closer = plot(tab, "radius", "plot.layout.xaxis.range")
    assert closer[1] - closer[0] < 0.6 * (whole[1] - whole[0])
    view.get_by_label("Zoom out").press("Enter")
    assert plot(tab, "radius", "plot.layout.xaxis.range") == pytest.approx(whole, abs=0.5)


def test_the_cloud_turns_by_keys(tab: "Page") -> None:
    draw(tab, "cloud")
    # As seen from the point that is looked at, which turns with it.
    eye = "['x', 'y', 'z'].map(axis => camera.eye[axis] - camera.center[axis])"
    eye = f"(camera => {eye})(plot.layout.scene.camera)"
    before = plot(tab, "cloud", eye)
    tab.locator("figure[data-chart=cloud] .tools").get_by_label("Turn left").press("Enter")
    tab.locator("figure[data-chart=cloud] .tools").get_by_label("Closer").press("Enter")
    after = plot(tab, "cloud", eye)
    assert np.linalg.norm(after) == pytest.approx(0.8 * np.linalg.norm(before))
    assert after[2] == pytest.approx(0.8 * before[2])
    assert after[0] != pytest.approx(0.8 * before[0])


def test_the_wheel_scrolls_the_page_over_the_cloud(tab: "Page") -> None:
    draw(tab, "cloud")
    tab.locator("figure[data-chart=cloud] .plot").hover()
    before = tab.evaluate("scrollY")
    tab.mouse.wheel(0, 150)
    tab.wait_for_function("before => scrollY > before", arg=before)


def test_a_finger_scrolls_the_page_over_a_chart(browser: "Browser", made: Report) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab = context.new_page()
    tab.goto(made.page.as_uri())
    draw(tab, "radius")
    tab.wait_for_timeout(500)
    before, ranges = tab.evaluate("scrollY"), plot(tab, "radius", "plot.layout.xaxis.range")
    box = tab.locator("figure[data-chart=radius] .plot").bounding_box()
    assert box is not None
    touch = context.new_cdp_session(tab)
    for number in range(9):
        point = {"x": 200, "y": box["y"] + 150 - 10 * number}
        kind = "touchMove" if number else "touchStart"
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    tab.wait_for_function("before => scrollY > before", arg=before)
    assert plot(tab, "radius", "plot.layout.xaxis.range") == ranges
    context.close()


def test_light_and_dark_are_followed(tab: "Page") -> None:
    color = "getComputedStyle(plot.querySelector('.xtick text')).fill"
    assert plot(tab, "radius", color) == "rgb(32, 36, 42)"
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function(
        "() => getComputedStyle(document.querySelector('figure[data-chart=radius] .xtick text')).fill"
        " === 'rgb(231, 234, 238)'"
    )


def test_paper_has_the_static_figures(tab: "Page") -> None:
    draw_all(tab)
    shown = "[...document.querySelectorAll('{}')].filter(one => one.getBoundingClientRect().width > 0).length"
    statics, charts = shown.format("figure .static svg"), shown.format("figure .chart, .player, .played")
    assert (tab.evaluate(statics), tab.evaluate(charts)) == (0, 10 + 2)
    tab.emulate_media(media="print")
    assert (tab.evaluate(statics), tab.evaluate(charts)) == (10, 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_wider_than_the_window(browser: "Browser", made: Report, width: int, scheme: str) -> None:
    with visit(browser, made.page, width=width, scheme=scheme) as tab:
        draw_all(tab)
        tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(TOO_WIDE.replace("svg, .scroll", "svg, .scroll, .plot")) == 0
        widths = tab.evaluate(
            "[...document.querySelectorAll('.plot')].map(x => x.getBoundingClientRect().width)"
        )
        assert min(widths) > 320


NO_WEBGL = """{ const get = HTMLCanvasElement.prototype.getContext; HTMLCanvasElement.prototype.getContext =
    function (kind, ...rest) { return kind.startsWith("webgl") ? null : get.call(this, kind, ...rest); }; }"""


def test_without_webgl_the_cloud_stays_as_it_is(tab: "Page") -> None:
    tab.add_init_script(NO_WEBGL)
    tab.reload()
    draw(tab, "speed")
    assert not tab.locator("figure[data-chart=cloud].live").count()
    assert tab.locator("figure[data-chart=cloud] .static svg").is_visible()


NASTY = "</script><script>alert(1)</script><b>fat</b> <a href='javascript:alert(1)'>%{y}</a> &lt;"


def test_hostile_names_are_words(browser: "Browser", tmp_path: Path) -> None:
    measures = make_measures(title=NASTY, num_runs=2, num_rows=40, num_tokens=20, swept=NASTY)
    (tmp_path / "index.html").write_text(render(make_page(measures)), encoding="utf-8")
    with visit(browser, tmp_path / "index.html", width=1200) as tab:
        draw_all(tab)
        assert tab.locator("script").count() == 3
        assert tab.locator(".plot a, .plot b, .chart b, .chart a").count() == 0
        draw(tab, "radius")
        tab.locator(BUTTONS, has_text="mean").click()
        over(tab, "radius", plot(tab, "radius", "plot.data.findIndex(one => one.meta.run === 1)"), 20)
        tab.wait_for_selector("figure[data-chart=radius] .hovertext")
        said = plot(tab, "radius", "plot.querySelector('.hovertext').textContent")
        for words in ("</script><script>alert(1)", "<b>fat</b>", "javascript:", "%{y}"):
            assert words in said.replace(" ", "") or words in said
        tokens = plot(tab, "cloud", "plot.data[0].text[0]")
        assert tokens == "\u201c&lt;/script&gt;\u201d, token 0, dead"


def recordings(folder: Path, kind: str) -> list[Path]:
    def saved(name: str, *seeds: int, **options: Any) -> Path:
        path = folder / f"{name}.safetensors"
        return save_recording(path, [walk(seed) for seed in seeds], **{"dead": [0, 1, 4], **options})

    if kind == "arms":
        swept = {"swept": lambda run: {"model.init_scale": (0.02, 0.03)[run // 2]}}
        return [make_experiment(folder / "sweep", num_runs=4, gather="index", **swept).folder]  # type: ignore[arg-type]
    if kind == "no embeddings":
        return [make_experiment(folder / "few", num_runs=2, gather="index", tensors=["losses"]).folder]
    return {
        "one run": lambda: [saved("one", 1)],
        "two rows": lambda: [save_recording(folder / "r.safetensors", [walk(1)[:2]], dead=[0])],
        "one row": lambda: [save_recording(folder / "r.safetensors", [walk(1)[:1]], dead=[0])],
        "several experiments": lambda: [saved("bf16", 1, 2), saved("fp32", 3, 4)],
        "dead only": lambda: [saved("part", 1, 2, recorded_tokens=[*range(0, 18, 2)], dead=[*range(18)])],
        "no masks": lambda: [saved("plain", 1, 2, masks=False)],
        "at zero": lambda: [save_recording(folder / "r.safetensors", [np.zeros((7, 9, 4), np.float32)] * 2)],
        "subnormal": lambda: [save_recording(folder / "r.safetensors", [walk(1) * 1e-39, walk(2) * 1e-39])],
        "NaN": lambda: [
            save_recording(folder / "r.safetensors", [np.full((7, 9, 4), np.nan, np.float32)] * 2)
        ],
    }[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        *("arms", "no embeddings", "one run", "two rows", "one row", "several experiments", "dead only"),
        *("no masks", "at zero", "subnormal", "NaN"),
    ],
)
def test_every_kind_of_recording_has_a_page_with_charts(
    browser: "Browser", tmp_path: Path, kind: str
) -> None:
    made = report(*recordings(tmp_path, kind), out=tmp_path / "out")
    with visit(browser, made.page, width=390) as tab:
        if tab.locator("figure").count():
            draw_all(tab)
            assert tab.locator("figure:not(.live)").count() == 0
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
