"""The report's page: one HTML file with everything in it, nothing from elsewhere.

It gets plain data, words and SVG text, and knows nothing of what they mean; `page.html.jinja` puts them in
their places. All of it is escaped but the figures' SVG, which has to be our own (`drawing.panels.for_page`),
and the charts' data (`chart_data`). Charts take the place of figures in a browser that runs scripts; no
other scripts than the two of `library` run, whatever the page says.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from jinja2 import Environment, PackageLoader, StrictUndefined

from flannel_pl.analysis.reporting.library import Interactive

_NUMBER = re.compile(r"^[-+\u2212]?[\d.][\d.,]*(e[-+]?\d+)?( ?(%|\u00b1.*))?$")


@dataclass(frozen=True)
class Table:
    """A table of the page; scrolls inside its own box where it is too wide."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Of as many cells as the header has; the first names the row."""

    note: str = ""
    lead: str = ""
    """What has to be known before the numbers."""

    titles: Mapping[str, str] = field(default_factory=dict)
    """Name of a row -> what it means, seen where the pointer rests on it."""

    @property
    def kinds(self) -> list[str]:
        """The class of each column: numbers stand to the right.

        Example:
            >>> Table("Epochs", ["run", "inhale"], [["seed 42", "2"], ["seed 43", "-"]]).kinds
            ['words', 'number']
        """
        return [_kind(column) for column in zip(*self.rows, strict=True)] or ["words"] * len(self.header)


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    heading: str
    svg: str
    """An svg element of ours; `currentColor` in it becomes the colour of text."""

    caption: str
    formula: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    """What a link says -> the file, relative to the page."""

    chart: str = ""
    """Its name among the charts of `Page.interactive`; empty if it stays as it is."""

    def embedded(self, number: int) -> str:
        """Returns its svg element, fit to stand beside others: its ids are its own, and it has a name.

        Args:
            number: Of the picture in the page.
        """
        svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", self.svg, flags=re.DOTALL)
        svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>p{number}-", svg)
        return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(self.heading)}" ', 1).strip()


@dataclass(frozen=True)
class Page:
    """All that a page says; a section without content is left out."""

    title: str
    lead: str = ""
    """A sentence below the title."""

    warnings: Sequence[str] = ()
    recorded: Sequence[tuple[str, str]] = ()
    """ResolvedExperiment, runs, seeds, steps, settings: name, value."""

    recorded_tables: Sequence[Table] = ()
    """The same of several experiments, side by side."""

    key_figures: Sequence[tuple[str, str, str]] = ()
    """Name, value, remark."""

    epochs: Sequence[Table] = ()
    comparison: Sequence[Table] = ()
    key_tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    left_out: Sequence[tuple[str, str]] = ()
    """What, why."""

    meanings: Sequence[tuple[str, str]] = ()
    """Name of a metric or key figure -> what it means."""

    provenance: Sequence[tuple[str, str]] = ()
    files: Sequence[tuple[str, str]] = ()
    """File relative to the page, what is in it."""

    interactive: Interactive | None = None
    """Charts for figures; None: the page has no script."""


def render(page: Page) -> str:
    """Returns the page.

    Args:
        page: What it says.

    Returns:
        HTML, complete.

    Example:
        >>> text = render(Page("flannel3", warnings=["seed < 0"]))
        >>> "<h1>flannel3</h1>" in text, "seed &lt; 0" in text, "<script" in text
        (True, True, False)
    """
    templates = Environment(
        loader=PackageLoader("flannel_pl.analysis.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["anchor"] = _anchor
    return templates.get_template("page.html.jinja").render(page=page)


def _kind(column: Sequence[str]) -> str:
    """Returns the class of a column of cells, some of which may be empty or a dash."""
    cells = [cell for cell in column if cell not in ("", "-", "\u2013")]
    return "number" if cells and all(_NUMBER.match(cell) for cell in cells) else "words"


def _anchor(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower())
