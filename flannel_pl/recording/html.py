"""What notebooks show of recordings: tables in HTML, in whatever colours the notebook has."""

import html
from collections.abc import Iterable, Sequence

from flannel_pl.terminal import printable


def table_of(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table with a line above it; every text is escaped, since files may come from anywhere."""
    cells = "".join(f"<th style='text-align:left'>{_escaped(cell)}</th>" for cell in head)
    lines = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{_escaped(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f"<div><strong>{_escaped(title)}</strong><table><thead><tr>{cells}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def _escaped(text: str) -> str:
    return html.escape(printable(str(text)))
