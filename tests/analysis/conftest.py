"""A real browser for the tests of pages, and matplotlib's list of fonts, which is made at its first use."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import matplotlib.font_manager  # noqa: F401 - makes the list, of which it tells on the terminal if that takes long
import pytest

from flannel_pl.analysis.drawing.gallery import GALLERY
from flannel_pl.analysis.reporting import report as reporting

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def browser_path() -> str | None:
    """Returns the program of an installed browser; None if there is none."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A browser without a window, for one module: its driver is a thread that other tests would count."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = browser_path()
    if path is None:
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)} is on the path")
    with playwright.sync_playwright() as started:
        # A browser refuses to run as root with its sandbox, and containers run as root.
        running = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has reports draw one figure of all, for tests that look at none."""
    monkeypatch.setattr(reporting, "GALLERY", GALLERY[:1])
