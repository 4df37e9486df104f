"""What readers take a chart for: proportions that stay, words that nothing covers, epochs that have names."""

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.image
import numpy as np
import pytest

from flannel_pl.analysis.reporting.page import render
from flannel_pl.analysis.reporting.report import Report, report
from tests.analysis.browser import visit
from tests.analysis.samples import save_recording, walk
from tests.analysis.synthetic import make_measures, make_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]
WIDTHS = pytest.mark.parametrize("width", [390, 1280])


@pytest.fixture(scope="module")
def flown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of ten seeds whose dead tokens fly far along one axis."""
    path = tmp_path_factory.mktemp("flown") / "index.html"
    path.write_text(render(make_page(make_measures(num_tokens=100))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of three runs whose tokens go anywhere."""
    runs = [walk(seed, num_rows=61) for seed in (1, 2, 3)]
    return report(save_recording(tmp_path_factory.mktemp("walked") / "r.safetensors", runs, dead=[0, 1, 4]))


@pytest.fixture(params=["flown", "walked"])
def page(request: pytest.FixtureRequest) -> Path:
    made = request.getfixturevalue(request.param)
    return made if isinstance(made, Path) else Path(made.page)


@pytest.fixture
def tab(browser: "Browser", flown: Path) -> Iterator["Page"]:
    with visit(browser, flown, width=1280) as tab:
        yield tab


def draw(tab: "Page", name: str) -> None:
    tab.locator(f"figure[data-chart={name}]").evaluate("one => one.scrollIntoView()")
    tab.wait_for_selector(f"figure[data-chart={name}].live")


def plot(tab: "Page", name: str, what: str) -> Any:
    return tab.evaluate(f"(plot => {what})(document.querySelector('figure[data-chart={name}] .plot'))")


def slide(tab: "Page", part: float) -> None:
    """Drags the slider to a part of its length."""
    tab.evaluate(
        """part => { const slider = document.querySelector('.player input');
            slider.value = Math.round(part * slider.max); slider.dispatchEvent(new Event('input')); }""",
        part,
    )
    tab.wait_for_timeout(150)


SCENE = """(() => { const scene = plot._fullLayout.scene, { x, y, z } = scene.aspectratio;
    return { mode: scene.aspectmode, aspect: [x, y, z], drawn: [...scene._scene.glplot.aspect],
        ranges: ['xaxis', 'yaxis', 'zaxis'].map(axis => [...scene[axis].range]) }; })()"""


@WIDTHS
def test_the_cloud_keeps_its_proportions_while_the_slider_is_dragged(
    browser: "Browser", page: Path, width: int
) -> None:
    with visit(browser, page, width=width) as tab:
        draw(tab, "cloud")
        found, places = [], set()
        for part in (0, 0.2, 0.5, 0.8, 1):
            slide(tab, part)
            found.append(plot(tab, "cloud", SCENE))
            places.add(plot(tab, "cloud", "plot.data[0].x[0]"))
    assert len(places) >= 3  # tokens have moved, the box has not
    first = found[0]
    assert first["mode"] == "manual"
    lengths = np.diff(first["ranges"])[:, 0]
    for one in found:
        for name in ("aspect", "drawn"):
            assert one[name] == pytest.approx(first[name], rel=1e-6)
            # One scale: what is as long in weights is as long on the screen.
            assert one[name] / lengths == pytest.approx(one[name][0] / lengths[0], rel=1e-6)
        assert one["ranges"] == pytest.approx(np.array(first["ranges"]), rel=1e-6)


@WIDTHS
def test_nothing_of_the_cloud_is_cut_off(browser: "Browser", page: Path, width: int) -> None:
    with visit(browser, page, width=width) as tab:
        draw(tab, "cloud")
        for part in (0, 1):
            slide(tab, part)
            shown = matplotlib.image.imread(
                io.BytesIO(tab.locator("figure[data-chart=cloud] .plot").screenshot()), format="png"
            )[..., :3]
            inked = np.abs(shown - shown[0, 0]).max(axis=2) > 0.15
            assert inked.any()
            # The first pixels may be those of the frame around the figure, where it is not at a whole one.
            left, right, top, bottom = inked[:, 2:5], inked[:, -5:-2], inked[2:5], inked[-5:-2]
            assert not any(edge.any() for edge in (left, right, top, bottom))


BOXES = """(() => { const box = one => { const { left, right, top, bottom } = one.getBoundingClientRect();
        return [left, right, top, bottom]; };
    return { words: [...plot.querySelectorAll('.annotation .annotation-text')].map(box),
        lines: [...plot.querySelectorAll('.shapelayer path')].slice(-plot.layout.shapes.length).map(box),
        frame: box(plot) }; })()"""


@WIDTHS
@pytest.mark.parametrize("name", ["sneeze", "radius", "displacement"])
def test_the_step_marker_covers_no_words(browser: "Browser", flown: Path, width: int, name: str) -> None:
    with visit(browser, flown, width=width) as tab:
        draw(tab, name)
        for part in (0, 0.3, 0.6):
            slide(tab, part)
            boxes = plot(tab, name, BOXES)
            panels = plot(tab, name, "Object.keys(plot.layout).filter(key => key.startsWith('yaxis')).length")
            markers = [shape for shape in plot(tab, name, "plot.layout.shapes") if shape["type"] == "line"][
                :panels
            ]
            assert [one["yref"] for one in markers] == [f"y{n or ''} domain" for n in (0, 2)[:panels]]
            assert len({one["x0"] for one in markers}) == 1
            assert len(boxes["words"]) >= panels
            for left, right, top, bottom in boxes["lines"]:
                for words in boxes["words"]:
                    beside = right <= words[0] or left >= words[1]
                    over = bottom <= words[2] + 1 or top >= words[3] - 1
                    assert beside or over, (words, (left, right, top, bottom))
            for words in boxes["words"]:
                assert boxes["frame"][0] <= words[0]
                assert words[1] <= boxes["frame"][1]


NAMES = "plot.layout.annotations.filter(one => one.name === 'epoch').map(one => one.text)"


@WIDTHS
def test_epochs_have_names_above_the_chart_as_in_the_figure(
    browser: "Browser", flown: Path, width: int
) -> None:
    every = ["inhale", "sneeze", "deceleration", "re-expansion", "Fimbulwinter"]
    with visit(browser, flown, width=width) as tab:
        for name in ("radius", "speed", "frozen", "divergence", "loss"):
            draw(tab, name)
            assert plot(tab, name, NAMES) == every
            boxes = plot(tab, name, BOXES)["words"][-len(every) :]
            for before, after in itertools.pairwise(boxes):
                assert before[1] <= after[0] + 1, (name, before, after)
        draw(tab, "sneeze")
        assert plot(tab, "sneeze", NAMES) == every[:3]
        for name in ("inhale", "lifecycle", "displacement"):
            draw(tab, name)
            assert plot(tab, name, NAMES) == []
            assert not plot(tab, name, "plot.layout.shapes.filter(one => one.type === 'rect').length")
        draw(tab, "radius")
        tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = false; })")
        slide(tab, 1)
        for _ in range(2):
            tab.locator("figure[data-chart=radius] .tools").get_by_label("Zoom in").click()
        tab.wait_for_timeout(200)
        assert plot(tab, "radius", NAMES) == ["Fimbulwinter"]  # what is in sight
        tab.locator("figure[data-chart=radius] .tools").get_by_label("All steps").click()
        tab.wait_for_timeout(200)
        assert plot(tab, "radius", NAMES) == every


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_learning_rate_can_be_seen(browser: "Browser", flown: Path, scheme: str) -> None:
    with visit(browser, flown, width=1280, scheme=scheme) as tab:
        draw(tab, "frozen")
        of_rate = "one.meta.series === 'learning_rate, relative'"
        (rate,) = plot(tab, "frozen", f"plot._fullData.filter(one => {of_rate})")
        assert (rate["opacity"], rate["line"]["dash"]) == (1, "dot")
        assert rate["line"]["width"] > 2
        legend = tab.locator("figure[data-chart=frozen] .legend > button").first
        assert legend.inner_text() == "learning rate (100 % = highest)"


def test_what_is_seen_at_first_is_what_the_figure_shows(tab: "Page") -> None:
    draw(tab, "loss")
    assert all(plot(tab, "loss", "plot.data.map(one => one.visible)"))
    batches = tab.locator("figure[data-chart=loss] .legend > button", has_text="each batch")
    assert batches.get_attribute("aria-pressed") == "true"


def test_the_player_says_where_the_middle_of_its_slider_is(browser: "Browser", walked: Report) -> None:
    with visit(browser, walked.page, width=390) as tab:
        draw(tab, "radius")
        said = tab.locator("#figures > .played").inner_text()
        steps = tab.evaluate("JSON.parse(document.getElementById('chart-data').textContent).steps")
        slide(tab, 0.5)
        middle = tab.locator(".player output").inner_text().split(",")[0].removeprefix("step ")
        assert int(middle) < 30
        assert f"goes through {len(steps)} recorded steps of 61, closer together at the beginning" in said
        assert f"its middle is step {middle} of 60." in said
        assert tab.locator(".player input").get_attribute("title") == said
