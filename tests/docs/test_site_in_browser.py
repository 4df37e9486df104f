"""Every page of the site in a real browser: nothing is wider than a phone, in the light and in the dark."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.analysis.conftest import browser as browser  # the fixture
from tests.docs.test_site import site as site

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PHONE = 390
WIDE = """[...document.querySelectorAll('.md-content *')].filter(one =>
    !one.closest('pre, .md-typeset__scrollwrap') && one.getBoundingClientRect().right > innerWidth + 1
).map(one => one.outerHTML.slice(0, 80))"""
"""What reaches out of the window, but for what scrolls by itself."""

GLARING = """[...document.querySelectorAll('.md-content img:not([src$=".svg"], .as-it-is)')].filter(one =>
    getComputedStyle(one).filter === 'none').map(one => one.src)"""
"""Pictures on white paper that are shown as they are."""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_a_phone(site: Path, browser: "Browser", scheme: str) -> None:
    # Of 404.html, which may be shown for any address, the links are those of a served site.
    pages = [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]
    assert len(pages) > 50
    wrong: list[str] = []
    context = browser.new_context(
        viewport={"width": PHONE, "height": 844}, color_scheme="dark" if scheme == "dark" else "light"
    )
    tab = context.new_page()
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    for page in pages:
        tab.goto(page.as_uri())
        name = page.relative_to(site)
        if (width := tab.evaluate("document.documentElement.scrollWidth")) > PHONE + 1:
            wrong.append(f"{name} is {width} wide")
        wrong += [f"{name}: {one}" for one in tab.evaluate(WIDE)]
        if scheme == "dark":
            assert tab.evaluate("document.body.dataset.mdColorScheme") == "slate"
            wrong += [f"{name} glares: {one}" for one in tab.evaluate(GLARING)]
    context.close()
    assert not wrong, "\n".join(wrong)
