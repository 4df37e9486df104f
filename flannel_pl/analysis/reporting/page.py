"""The report's page: one HTML file with everything in it, no script, nothing from elsewhere.

The page gets plain data, words and SVG text, and knows nothing of what they mean. All of it is escaped but
the figures' SVG, which has to be our own (`drawing.panels.for_page`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from urllib.parse import quote

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing is loaded and nothing runs, whatever the words in the page are."""

_NUMBER = re.compile(r"^[-+\u2212]?[\d.][\d.,]*(e[-+]?\d+)?( ?(%|\u00b1.*))?$")


@dataclass(frozen=True)
class Table:
    """A table of the page; scrolls inside its own box where it is too wide."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Of as many cells as the header has; the first names the row."""

    note: str = ""


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


@dataclass(frozen=True)
class Page:
    """All that a page says; a section without content is left out."""

    title: str
    lead: str = ""
    """A sentence below the title."""

    warnings: Sequence[str] = ()
    recorded: Sequence[tuple[str, str]] = ()
    """Experiment, runs, seeds, steps, settings: name, value."""

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

    provenance: Sequence[tuple[str, str]] = ()
    files: Sequence[tuple[str, str]] = ()
    """File relative to the page, what is in it."""


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
    sections = [(heading, body) for heading, body in _sections(page) if body]
    style = resources.files("flannel_pl.analysis.reporting").joinpath("page.css").read_text(encoding="utf-8")
    contents = "".join(f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>' for name, _ in sections)
    body = "\n".join(
        f'<section id="{_anchor(name)}">\n<h2>{escape(name)}</h2>\n{text}\n</section>'
        for name, text in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(page.title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(page.title)}</h1>
{_paragraph(page.lead, "lead")}
{_warnings(page.warnings)}
<nav aria-label="Contents"><ul>{contents}</ul></nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _sections(page: Page) -> list[tuple[str, str]]:
    return [
        ("What was recorded", facts(page.recorded) + tables(page.recorded_tables)),
        ("Key figures", key_figures(page.key_figures)),
        ("Figures", pictures(page.pictures)),
        ("Epochs", tables(page.epochs)),
        ("Beside the published figures", tables(page.comparison)),
        ("All key figures", tables(page.key_tables)),
        ("Left out", facts(page.left_out)),
        ("Provenance", _folded("Versions, command, data", facts(page.provenance))),
        ("Files", files(page.files)),
    ]


def tables(several: Sequence[Table]) -> str:
    """Returns tables one below the other; nothing if there are none."""
    return "\n".join(table(one) for one in several)


def table(one: Table) -> str:
    """Returns a table in a box of its own, numbers to the right.

    Example:
        >>> print(table(Table("Epochs", ["run", "inhale"], [["seed 42", "2"]])))  # doctest: +ELLIPSIS
        <h3>Epochs</h3>
        <div class="scroll" tabindex="0" role="region" aria-label="Epochs">
        ...
        <tr><th scope="row">seed 42</th><td class="number">2</td></tr>
        ...
    """
    kinds = [_kind(column) for column in zip(*one.rows, strict=True)] or ["words"] * len(one.header)
    header = "".join(
        f'<th scope="col" class="{kind}">{escape(cell)}</th>'
        for cell, kind in zip(one.header, kinds, strict=True)
    )
    rows = "\n".join(_row(cells, kinds) for cells in one.rows)
    return (
        f"<h3>{escape(one.caption)}</h3>\n"  # no caption: it would scroll away with the table
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(one.caption)}">\n'
        f"<table>\n<thead><tr>{header}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n{_paragraph(one.note, 'note')}"
    )


def _kind(column: Sequence[str]) -> str:
    """Returns the class of a column: numbers stand to the right, also beside an empty cell or a dash."""
    cells = [cell for cell in column if cell not in ("", "-", "\u2013")]
    return "number" if cells and all(_NUMBER.match(cell) for cell in cells) else "words"


def _row(cells: Sequence[str], kinds: Sequence[str]) -> str:
    name, *others = cells
    data = "".join(
        f'<td class="{kind}">{escape(cell)}</td>' for cell, kind in zip(others, kinds[1:], strict=True)
    )
    return f'<tr><th scope="row">{escape(name)}</th>{data}</tr>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Returns names and what there is to say about each; nothing if there are none."""
    if not pairs:
        return ""
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in pairs
    )
    return f'<div class="scroll"><table class="facts"><tbody>\n{rows}\n</tbody></table></div>'


def key_figures(figures: Sequence[tuple[str, str, str]]) -> str:
    """Returns a card for each name, value and remark; nothing if there are none."""
    if not figures:
        return ""
    cards = "\n".join(
        f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd>'
        f'<dd class="small">{escape(remark)}</dd></div>'
        for name, value, remark in figures
    )
    return f'<dl class="keys">\n{cards}\n</dl>'


def pictures(several: Sequence[Picture]) -> str:
    """Returns the figures with their captions; nothing if there are none."""
    if not several:
        return ""
    cards = "\n".join(_picture(number, one) for number, one in enumerate(several))
    return f'<div class="pictures">\n{cards}\n</div>'


def _picture(number: int, one: Picture) -> str:
    links = ", ".join(f'<a href="{quote(file)}">{escape(name)}</a>' for name, file in one.files.items())
    links = f"<p>{links}</p>" if links else ""
    formula = f"<p><code>{escape(one.formula)}</code></p>" if one.formula else ""
    return (
        f"<figure>\n<h3>{escape(one.heading)}</h3>\n{_embedded(one.svg, number, one.heading)}\n"
        f"<figcaption><p>{escape(one.caption)}</p>{formula}{links}</figcaption>\n"
        "</figure>"
    )


def _embedded(svg: str, number: int, name: str) -> str:
    """Returns an svg element that may stand beside others: its ids are its own, and it has a name."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>p{number}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1).strip()


def files(several: Sequence[tuple[str, str]]) -> str:
    """Returns links to files and what is in them; nothing if there are none.

    Example:
        >>> print(files([("metrics.csv", "every metric")]))
        <ul>
        <li><a href="metrics.csv">metrics.csv</a>: every metric</li>
        </ul>
    """
    if not several:
        return ""
    items = "\n".join(
        f'<li><a href="{quote(file)}">{escape(file)}</a>: {escape(what)}</li>' for file, what in several
    )
    return f"<ul>\n{items}\n</ul>"


def _warnings(texts: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="warnings" aria-label="Warnings">{items}</ul>' if texts else ""


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>" if body else ""


def _paragraph(text: str, kind: str) -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if text else ""


def _anchor(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower())
