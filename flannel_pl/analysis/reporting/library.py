"""The library that draws charts in a browser: Plotly's JavaScript, as its Python package brings it along.

That package is not imported, which would take longer than reading the one file we need.
"""

import base64
import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

PACKAGE, FILE = "plotly", Path("package_data") / "plotly.min.js"

SCRIPTS = ("page_charts.js", "page_epochs.js", "page_player.js")


@dataclass(frozen=True)
class Interactive:
    """What makes a page's figures interactive."""

    data: str
    """JSON, fit for a script element (`chart_data`)."""

    library: str
    """Plotly, packed with gzip, in base64: a third of its size."""

    library_hash: str
    """SHA-256 of Plotly itself, in base64, by which the page's policy knows it."""

    @property
    def script(self) -> str:
        """Our own script: the files of `SCRIPTS` in one function."""
        folder = resources.files("flannel_pl.analysis.reporting")
        parts = [folder.joinpath(name).read_text("utf-8") for name in SCRIPTS]
        return "\n".join(['(() => {\n"use strict";', *parts, "})();"])

    @property
    def sources(self) -> str:
        """What may run, as a Content-Security-Policy has it."""
        return f"'sha256-{_digest(self.script.encode())}' 'sha256-{self.library_hash}'"


def interactive(data: str) -> Interactive | None:
    """Returns what makes a page interactive; None where Plotly is not installed.

    Args:
        data: From `chart_data`.
    """
    path = _library_path()
    if path is None:
        return None
    return Interactive(data, *_packed_library(path))


@cache
def _packed_library(path: Path) -> tuple[str, str]:
    """Returns the library, packed, and its hash; of all reports of a process once."""
    # As a browser reads a script's text: UTF-8, with plain line ends.
    text = path.read_text(encoding="utf-8").encode()
    packed = gzip.compress(text, mtime=0)  # no time in it: the same page has the same bytes
    return base64.b64encode(packed).decode("ascii"), _digest(text)


def _library_path() -> Path | None:
    spec = find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / FILE).is_file():
            return path
    return None


def _digest(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode("ascii")
