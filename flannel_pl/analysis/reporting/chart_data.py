"""Charts as data of a page: what Plotly draws in a browser, with every array once and compactly.

Words are escaped for Plotly, which takes some tags in texts for formatting; numbers are float32, or float64
where that does not hold them. `page.js` puts arrays in their places and adds colours of the page.

Shape suffixes: F frames, S tokens, B rows of a map.
"""

import base64
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from flannel_pl.analysis.drawing.charts import Chart, ChartPanel, Line, Scene
from flannel_pl.analysis.drawing.cloud import KIND_COLORS, KIND_WORDS, axis_words
from flannel_pl.analysis.drawing.panels import FEW_ROWS, SHADE, Band
from flannel_pl.arrays import Array

GAP = 0.12
"""Between panels, as a part of the height."""

MAX_WORDS = 90
"""Letters of a name that a label shows."""

LABEL_WIDTH = 36
"""Letters of a line of a label, which fits a phone."""

NAMES_PX = 24
"""Above the first panel, for the names of epochs, where `page_epochs.js` puts them."""

SHORTEST_AXIS = 0.4
"""Of a cloud's axes, as a part of the longest: a box that is flatter has no place for its numbers."""

LOWEST_PART = 1e-5
"""Of the map's colours."""


@dataclass
class Pool:
    """Arrays of a page, each once."""

    arrays: list[dict[str, str]] = field(default_factory=list)
    places: dict[tuple[str, bytes], int] = field(default_factory=dict)

    def add(self, values: Array) -> dict[str, int]:
        """Returns what stands for an array."""
        packed = _packed(values)
        key = packed.dtype.str, packed.tobytes()
        if key not in self.places:
            self.places[key] = len(self.arrays)
            text = base64.b64encode(key[1]).decode("ascii")
            self.arrays.append({"type": packed.dtype.str[1:], "data": text})
        return {"$": self.places[key]}


def chart_data(
    charts: Mapping[str, Chart],
    *,
    steps: Sequence[int],
    epochs: Sequence[Band],
    texts: Sequence[Mapping[int, str]],
    said: str = "",
) -> str:
    """Returns charts as JSON that can stand in a script element.

    Args:
        charts: Name of a figure -> its chart.
        steps: Through which the page plays.
        epochs: That are shaded.
        texts: For each experiment, vocabulary id -> text, as far as that is known.
        said: Of these steps, to who plays through them.
    """
    pool = Pool()
    found = {}
    for name, chart in charts.items():
        bands = epochs if chart.has_epochs else ()
        shown = _scenes(chart, pool, texts) if chart.scenes else _panels(chart.panels, pool, bands)
        entries = [
            {"key": one.key, "label": shown_text(one.label), "color": one.color, "dash": one.dash}
            | {"on": one.is_on, "folded": one.is_one_of_many}
            for one in chart.entries
        ]
        found[name] = {"note": chart.note, "entries": entries, **shown}
    named = [[name, int(first), int(last)] for name, first, last in epochs]
    data: dict[str, Any] = {"steps": [int(step) for step in steps], "said": said, "epochs": named}
    data |= {"charts": found, "arrays": pool.arrays}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII, so no strange line ends
    for letter in "<>&":  # so that no name ends the element
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def shown_text(words: str) -> str:
    r"""Returns words as they are shown: not too long, and nothing in them that steers what is around.

    Example:
        >>> len(shown_text("a" * 100)), shown_text("a\nb")
        (90, 'a\\nb')
    """
    cut = words if len(words) <= MAX_WORDS else words[: MAX_WORDS - 1] + "\u2026"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in cut
    )


def plotly_text(words: str) -> str:
    """Returns words as Plotly has to be given them, to show just them."""
    return escape(shown_text(words), quote=False)


def _packed(values: Array) -> Array:
    """Returns an array in the smallest type that holds it well enough, little-endian."""
    if values.dtype.kind in "iu":
        fits = not values.size or np.abs(values).max() < 2**31
        return np.ascontiguousarray(values, "<i4" if fits else "<f8")
    there = values[np.isfinite(values) & (values != 0)]
    with np.errstate(over="ignore", under="ignore"):
        error = np.abs(there.astype(np.float32) / there.astype(np.float64) - 1).max(initial=0)
    return np.ascontiguousarray(values, "<f4" if error < 1e-6 else "<f8")


def _panels(panels: Sequence[ChartPanel], pool: Pool, epochs: Sequence[Band]) -> dict[str, Any]:
    """Returns traces and layout of panels above one another."""
    height = (1 - GAP * (len(panels) - 1)) / len(panels)
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"annotations": []}
    for number, panel in enumerate(panels):
        name = f"{number + 1}" if number else ""
        top = 1 - number * (height + GAP)
        layout[f"yaxis{name}"] = {"domain": [max(0, top - height), top]} | _y_axis(panel)
        layout["annotations"].append(_label(panel.label, top, NAMES_PX if epochs and not number else 0))
        axis = {"yaxis": f"y{name}"}
        for line in panel.lines:
            traces += [trace | axis for trace in _line(line, pool, panel, number)]
        if panel.cells is not None:
            traces.append(_cells(panel, pool, number == 0) | axis)
    ends = [end for panel in panels for end in _ends(panel)]
    first, last = min(ends), max(ends)
    margin = 0.01 * (last - first) or 0.5
    last_axis = f"y{len(panels)}" if len(panels) > 1 else "y"
    layout["xaxis"] = {"range": [first - margin, last + margin], "anchor": last_axis}
    marker = {"type": "line", "x0": first, "x1": first}
    layout["shapes"] = [*_of_each_panel([marker], panels), *_levels(panels)]
    layout["shapes"] += _of_each_panel(_shaded(epochs), panels)
    return {"traces": traces, "layout": layout, "panels": len(panels), "named": bool(epochs)}


def _of_each_panel(shapes: Sequence[dict[str, Any]], panels: Sequence[ChartPanel]) -> list[dict[str, Any]]:
    """Returns shapes as high as a panel, for each panel its own: between them stand words."""
    places = [f"y{number or ''} domain" for number in (0, *range(2, len(panels) + 1))]
    return [shape | {"yref": place, "y0": 0, "y1": 1} for place in places for shape in shapes]


def _ends(panel: ChartPanel) -> list[float]:
    rows = [line.steps_R for line in panel.lines] or [panel.cells.edges_C if panel.cells else np.zeros(1)]
    return [float(end) for steps_R in rows for end in (steps_R[0], steps_R[-1])]


def _y_axis(panel: ChartPanel) -> dict[str, Any]:
    axis: dict[str, Any] = {}
    if panel.is_log:
        axis |= {"type": "log", "exponentformat": "power"}
    if panel.is_part:
        axis |= {"tickformat": ".0%"}
    if panel.range is not None:
        low, high = np.log10(panel.range) if panel.is_log else panel.range
        axis |= {"range": [float(low), float(high)]}
    if panel.cells is not None:
        names = [plotly_text(name) for name in panel.cells.names_B]
        every = max(1, len(names) // 6)
        shown = names[:1] + names[2::every]
        short = [name.partition(" ")[0] for name in shown]
        axis |= {"type": "category", "tickvals": shown, "ticktext": short}
    return axis


def _label(words: str, top: float, raised_px: int) -> dict[str, Any]:
    """Returns the name of a panel's axis, above it: beside it a phone has no place."""
    text = "<br>".join(_wrapped(words, 48))
    at = {"x": 0, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    return {"text": text, "showarrow": False, "align": "left", "yshift": raised_px, **at}


def _levels(panels: Sequence[ChartPanel]) -> list[dict[str, Any]]:
    """Returns the dashed lines of panels; rows of a map have their middles at 0, 1, 2, ..."""
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "line": {"dash": "dash", "color": SHADE}}
    levels = [panel.level if panel.cells is None else panel.cells.level - 0.5 for panel in panels]
    places = ["y", *(f"y{number}" for number in range(2, len(levels) + 1))]
    return [
        line | {"yref": place, "y0": level, "y1": level}
        for place, level in zip(places, levels, strict=True)
        if level is not None
    ]


def _shaded(epochs: Sequence[Band]) -> list[dict[str, Any]]:
    """Returns every second epoch as an area."""
    shape = {"type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": "rgba(128,128,128,0.16)"}
    return [shape | {"x0": int(first), "x1": int(last)} for _, first, last in epochs[::2]]


def _line(line: Line, pool: Pool, panel: ChartPanel, number: int) -> list[dict[str, Any]]:
    """Returns the traces of a line: itself, and the edges of the area around it."""
    x, traces = pool.add(line.steps_R), []
    common = {"type": "scatter", "x": x, "keys": list(line.keys)}
    if line.std_R is not None:
        edge = common | {"mode": "lines", "line": {"width": 0, "color": line.color}, "hoverinfo": "skip"}
        edge["keys"] = [*line.keys, "spread"]
        middle_R = line.values_R if line.middle_R is None else line.middle_R
        low, high = pool.add(middle_R - line.std_R), pool.add(middle_R + line.std_R)
        meta = dict(line.source)
        traces.append(edge | {"y": low, "meta": meta | {"statistic": "mean - std"}})
        area = {"fill": "tonexty", "fillcolor": _faint(line.color)}
        traces.append(edge | {"y": high, "meta": meta | {"statistic": "mean + std"}} | area)
    words = [text for words in dict.fromkeys(line.words) for text in _wrapped(words)]
    value = "%{y:.2%}" if panel.is_part else "%{y:.6g}"
    trace = common | {
        "y": pool.add(line.values_R),
        "mode": "lines+markers" if len(line.values_R) <= FEW_ROWS else "lines",
        "line": {"color": line.color, "width": 2.2 if line.is_thick else 1.0, "dash": line.dash},
        "marker": {"size": 5 if line.is_thick else 4},
        "opacity": 1.0 if line.is_thick or line.is_stacked else 0.55,
        "hovertemplate": "%{meta.words}<br>step %{x}: " + value + "<extra></extra>",
        "meta": dict(line.source) | {"words": "<br>".join(words)},
    }
    if line.is_stacked:
        trace |= {"stackgroup": f"panel {number}", "fillcolor": line.color, "hoveron": "points"}
        trace["line"] = {"width": 0.5, "color": line.color}
    return [*traces, trace]


def _faint(color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"


def _wrapped(words: str, width: int = LABEL_WIDTH) -> list[str]:
    return [escape(line, quote=False) for line in textwrap.wrap(shown_text(words), width)]


def _cells(panel: ChartPanel, pool: Pool, has_scale: bool) -> dict[str, Any]:
    """Returns the trace of a map."""
    assert panel.cells is not None
    cells = panel.cells
    parts = pool.add(cells.values_BC.ravel()) | {"rows": len(cells.values_BC)}
    decades = range(int(np.log10(LOWEST_PART)), 1)
    scale = {"tickvals": list(decades), "ticktext": [f"{100 * 10.0**power:g}%" for power in decades]}
    return {
        "type": "heatmap",
        "x": pool.add(cells.edges_C),
        "y": [plotly_text(name) for name in cells.names_B],
        "z": parts | {"log": True},
        "customdata": parts,
        "zmin": decades[0],
        "zmax": 0,
        "colorscale": "Viridis",
        "showscale": has_scale,
        "colorbar": scale | {"thickness": 10, "x": 1.01, "xpad": 2},
        "hovertemplate": "%{y}<br>about step %{x:.0f}: %{customdata:.2%} of the tokens<extra></extra>",
        "keys": [],
        "meta": {"series": "displacement", "group": cells.words},
    }


def _scenes(chart: Chart, pool: Pool, texts: Sequence[Mapping[int, str]]) -> dict[str, Any]:
    return {"scenes": [_scene(scene, pool, texts[scene.experiment]) for scene in chart.scenes]}


def _scene(scene: Scene, pool: Pool, texts: Mapping[int, str]) -> dict[str, Any]:
    """Returns a cloud: its frames, and of each kind of token where it stands in them, and its words."""
    cloud = scene.cloud
    ranges = _ranges([cloud.points_F3S[:, axis] for axis in range(3)])
    kinds = []
    for kind, color in KIND_COLORS.items():
        places = np.flatnonzero(cloud.dead_S == kind)
        if len(places):
            words = [_token_words(int(token), kind, texts) for token in cloud.tokens_S[places]]
            one = {"key": f"kind {kind}", "color": color, "texts": words}
            kinds.append(one | {"first": int(places[0]), "count": len(places)})
    return {
        "name": shown_text(scene.name),
        "steps": [int(step) for step in cloud.steps_F],
        "points": pool.add(cloud.points_F3S.ravel()),
        "tokens": len(cloud.tokens_S),
        "kinds": kinds,
        "axes": [axis_words(cloud, axis) for axis in range(3)],
        "ranges": ranges,
        "aspect": _aspect(ranges),
        "run": cloud.run,
    }


def _token_words(token: int, kind: int, texts: Mapping[int, str]) -> str:
    text = f"\u201c{plotly_text(texts[token])}\u201d, token {token}" if token in texts else f"token {token}"
    return text if kind not in (0, 1) else f"{text}, {KIND_WORDS[kind].split()[0]}"


def _ranges(values_3FS: Sequence[Array]) -> list[list[float]]:
    """Returns the ranges of axes, with a margin, the same in all frames; none is far shorter than another."""
    there = [values_FS[np.isfinite(values_FS)].astype(np.float64) for values_FS in values_3FS]
    ends = np.array([[values.min(), values.max()] for values in there])
    longest = 1.1 * np.ptp(ends, axis=1).max() or 0.1 * np.abs(ends).max() or 2.0
    halves = np.maximum(1.1 * np.ptp(ends, axis=1), longest * SHORTEST_AXIS) / 2
    return [
        [float(mean - half), float(mean + half)] for mean, half in zip(ends.mean(axis=1), halves, strict=True)
    ]


def _aspect(ranges: Sequence[Sequence[float]]) -> list[float]:
    """Returns how long axes are drawn: one scale for all, in a box with the diagonal of a cube of 1."""
    lengths = np.array([high - low for low, high in ranges])
    return [float(length) for length in lengths * np.sqrt(3) / np.linalg.norm(lengths)]
