"""What a page has to be in a real browser: nothing overflows, nothing complains, nothing is fetched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TOO_WIDE = """[...document.querySelectorAll('body *')].filter(one =>
    !one.closest('svg, .scroll') && one.getBoundingClientRect().right > innerWidth).length"""

LOADED = """Promise.all([...document.querySelectorAll('svg image')].map(one => {
    const image = new Image(); image.src = one.href.baseVal; return image.decode().then(() => true);
}))"""


@contextmanager
def visit(browser: "Browser", path: Path, *, width: int, scheme: str) -> Iterator["Page"]:
    """Opens a page and checks what holds of any: of what overflows, the console, and requests."""
    said: list[str] = []
    requested: list[str] = []
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if scheme == "dark" else "light"
    )
    tab = context.new_page()
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("requestfailed", lambda request: said.append(request.url))
    tab.on("request", lambda request: requested.append(request.url))
    tab.goto(path.as_uri())
    for summary in tab.query_selector_all("summary"):
        summary.click()  # the folded part may not overflow either
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(TOO_WIDE) == 0
    yield tab
    assert said == []
    assert [url for url in requested if not url.startswith("data:")] == [path.as_uri()]
    context.close()


def check_drawing(tab: "Page", *, num_figures: int) -> None:
    """Checks that the figures are there, wide enough to read, and their pixel parts whole."""
    images = tab.evaluate(LOADED)
    assert images
    assert all(images)
    figures = tab.evaluate(
        "[...document.querySelectorAll('svg')].map(one => one.getBoundingClientRect().width)"
    )
    assert len(figures) == num_figures
    assert min(figures) > 330
