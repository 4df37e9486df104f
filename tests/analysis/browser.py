"""What a page has to be in a real browser: nothing overflows, nothing complains, nothing is fetched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TOO_WIDE = """[...document.querySelectorAll('body *')].filter(one =>
    !one.closest('svg, .scroll') && one.getBoundingClientRect().right > innerWidth).length"""

DRIVER = ("[.WebGL-", "Canvas2D: ")
"""How begins what a browser says of its own graphics, which is software where there is no GPU."""

LOADED = """Promise.all([...document.querySelectorAll('svg image')].map(one => {
    const image = new Image(); image.src = one.href.baseVal; return image.decode().then(() => true);
}))"""


@contextmanager
def visit(
    browser: "Browser",
    path: Path,
    *,
    width: int,
    scheme: str = "light",
    scripts: bool = True,
    calm: bool = True,
) -> Iterator["Page"]:
    """Opens a page and checks what holds of any: of what overflows, the console, and requests.

    Args:
        browser: From the fixture.
        path: Of the page.
        width: Of the window, in pixels.
        scheme: light or dark.
        scripts: Whether the browser runs any.
        calm: Whether it asks for less motion.
    """
    said: list[str] = []
    requested: list[str] = []
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
        java_script_enabled=scripts,
        reduced_motion="reduce" if calm else "no-preference",
    )
    tab = context.new_page()
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("requestfailed", lambda request: said.append(request.url))
    tab.on("request", lambda request: requested.append(request.url))
    tab.goto(path.as_uri())
    # The folded part may not overflow either.
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(TOO_WIDE) == 0
    yield tab
    assert [words for words in said if not words.startswith(DRIVER)] == []
    assert {url for url in requested if not url.startswith("data:")} == {path.as_uri()}
    context.close()


def check_drawing(tab: "Page", *, num_figures: int) -> None:
    """Checks that the figures are there, wide enough to read, and their pixel parts whole."""
    images = tab.evaluate(LOADED)
    assert images
    assert all(images)
    figures = tab.evaluate(
        "[...document.querySelectorAll('figure .static svg')].map(one => one.getBoundingClientRect().width)"
    )
    assert len(figures) == num_figures
    assert min(figures) > 330


def draw_all(tab: "Page") -> None:
    """Has all charts drawn, by bringing each into sight."""
    count = tab.locator("figure[data-chart]").count()
    assert count > 0
    for number in range(count):
        figure = tab.locator("figure[data-chart]").nth(number)
        figure.evaluate("one => one.scrollIntoView()")
        tab.wait_for_function(
            "n => document.querySelectorAll('figure[data-chart]')[n].classList.contains('live')", arg=number
        )
