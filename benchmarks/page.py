"""How large a report's page is, and how soon a browser has it open; prints both, with the load average.

The page is of ten seeds x 1000 steps, of made-up measures of that shape (`tests.analysis.synthetic`). The
browser is started for itself and asked only after some seconds: one that is watched while it works takes
longer, since it keeps track of where in a script it is.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from flannel_pl.analysis.reporting.page import render
from tests.analysis.conftest import browser_path
from tests.analysis.synthetic import make_measures, make_page

ASKED = """[performance.getEntriesByType('navigation')[0].loadEventEnd,
    Math.min(...performance.getEntriesByType('mark').map(one => one.startTime))]"""


def main() -> None:
    """Makes the page, or takes one that is given, and opens it several times."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, help="an index.html (default: ten seeds x 1000 steps)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--wait_s", type=float, default=8.0, help="before the browser is asked")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        page = options.page or Path(folder) / "index.html"
        if options.page is None:
            page.write_text(render(make_page(make_measures())), encoding="utf-8")
        print(f"the page: {page.stat().st_size / 1e6:.2f} MB")
        found = [opened_ms(page, wait_s=options.wait_s) for _ in range(options.repeats)]
    for number, what in enumerate(("open, with all its figures", "first chart can be used")):
        values = [one[number] for one in found]
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"{what}: median {statistics.median(values):.0f} ms, {spread}")
    print(f"load average of the minute: {machine.load_average()} on {machine.num_cores()} cores")


def opened_ms(page: Path, *, wait_s: float) -> tuple[float, float]:
    """Returns when a fresh browser had loaded a page, and when its first chart was drawn, in ms.

    Args:
        page: The file; it is opened where its figures begin.
        wait_s: Before the browser is asked.
    """
    from playwright.sync_api import sync_playwright

    path = browser_path()
    if path is None:
        sys.exit("there is no Chromium on the path; nothing was measured")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = ["--headless", "--no-sandbox", "--window-size=1400,900", "--remote-debugging-port=0"]
        command = [path, *words, f"--user-data-dir={profile}", f"{page.resolve().as_uri()}#figures"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        address = next(found[0] for line in process.stderr if (found := re.search(r"ws://\S+", line)))
        time.sleep(wait_s)
        with sync_playwright() as started:
            running = started.chromium.connect_over_cdp(address)
            loaded_ms, drawn_ms = _asked(running)
            running.close()
        process.terminate()
        process.wait()
    return loaded_ms, drawn_ms


def _asked(running: Any) -> tuple[float, float]:
    loaded_ms, drawn_ms = running.contexts[0].pages[0].evaluate(ASKED)
    return float(loaded_ms), float(drawn_ms)


if __name__ == "__main__":
    main()
