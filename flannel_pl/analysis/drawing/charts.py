"""What a chart of the page is made of: panels of lines, areas or cells, and what its legend switches.

A chart shows what the figure of the same name does, of the same series; here it is plain numbers and words,
which `reporting.plotly` hands to the library that draws them in a browser.

Shape suffixes: R rows, N runs or pairs of them, K rows that are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from flannel_pl.analysis.drawing.colors import color_of
from flannel_pl.analysis.drawing.panels import thinned
from flannel_pl.analysis.measuring.results import Cloud
from flannel_pl.analysis.statistics.curves import Curve
from flannel_pl.analysis.statistics.groups import Group
from flannel_pl.analysis.statistics.series import mean_and_std
from flannel_pl.arrays import Array

MAX_LINES = 60
"""Of runs, or of pairs of them, in a panel: with more they are so many of them, evenly spread."""

MAX_VALUES = 60_000
"""Of these lines together; of longer ones only the rows that make them look the same."""

MAX_MEAN_VALUES = 2_000
"""Of a mean."""

MEAN, SPREAD, RUNS = "mean", "spread", "runs"
"""Keys of what every chart of runs has."""


@dataclass(frozen=True)
class Line:
    """A line of a panel."""

    words: tuple[str, ...]
    """What it is, a line of text each."""

    steps_R: Array
    values_R: Array
    color: str
    keys: tuple[str, ...]
    """Of the legend: it is seen while all of them are on."""

    source: Mapping[str, str | int]
    """What it is in the tables: `series`, `set`, `group`, and `run` or `statistic`."""

    is_thick: bool = False
    dash: str = "solid"
    std_R: Array | None = None
    """Half the height of an area around it, which the key `spread` switches."""

    middle_R: Array | None = None
    """What that area is around; the line itself if None."""

    is_stacked: bool = False
    """Whether it is the upper edge of an area upon those before it."""


@dataclass(frozen=True)
class Cells:
    """A map of coloured cells."""

    edges_C: Array
    """Steps between columns, one more than there are columns."""

    names_B: Sequence[str]
    """Of the rows, from bottom to top."""

    values_BC: Array
    """Parts of 1; 0 is not coloured."""

    words: str
    level: float
    """Where a dashed line is, in rows from the bottom."""


@dataclass(frozen=True)
class ChartPanel:
    """One panel of a chart; all of them share the steps."""

    label: str
    lines: Sequence[Line] = ()
    cells: Cells | None = None
    is_log: bool = False
    is_part: bool = False
    """Whether values are parts of 1, shown as percents."""

    range: tuple[float, float] | None = None
    """Of values; as far as they go if None."""

    level: float | None = None
    """Value of a dashed line across."""


@dataclass(frozen=True)
class Entry:
    """A switch of a chart's legend."""

    key: str
    label: str
    color: str = ""
    dash: str = "solid"
    is_on: bool = True
    is_one_of_many: bool = False
    """Whether it is folded away with its like."""


@dataclass(frozen=True)
class Scene:
    """A cloud of tokens, that a browser plays."""

    name: str
    cloud: Cloud

    experiment: int
    """Number of the one it is of, among those that are drawn."""


@dataclass(frozen=True)
class Chart:
    """What a browser draws where a figure stands: panels, or scenes of which one is seen."""

    panels: Sequence[ChartPanel] = ()
    entries: Sequence[Entry] = ()
    scenes: Sequence[Scene] = ()
    note: str = ""
    """What is not in it."""

    has_epochs: bool = True
    """Whether epochs are shaded and named, as in the figure."""


@dataclass
class Legend:
    """Collects the switches of a chart, each once, in the order in which they come up."""

    found: dict[str, Entry] = field(default_factory=dict)

    def add(self, key: str, label: str, **rest: str | bool) -> str:
        """Returns the key."""
        self.found.setdefault(key, Entry(key, label, **rest))  # type: ignore[arg-type]
        return key

    @property
    def entries(self) -> list[Entry]:
        """All switches; without the one that would switch everything."""
        groups = [key for key in self.found if key.startswith("group ")]
        lone = groups if len(groups) == 1 else []
        shown = [entry for key, entry in self.found.items() if key not in lone]
        about_all = {key: place for place, key in enumerate((MEAN, SPREAD, RUNS), start=1)}
        return sorted(shown, key=lambda one: about_all.get(one.key, 0))


def lines_of(
    curve: Curve,
    legend: Legend,
    *,
    series: str,
    token_set: str,
    what: Entry | None = None,
    each: bool = True,
    runs: bool = True,
    mean: bool = True,
    spread: bool = True,
    names: Sequence[tuple[str, ...]] | None = None,
) -> list[Line]:
    """Returns the lines of a curve: every run, thin, and their mean, thick.

    Args:
        curve: Of a group of runs.
        legend: Gets the switches.
        series: What it is called in the tables.
        token_set: Of the tables.
        what: Which of several quantities of the chart it is, with its colour and dashes.
        each: Whether runs are seen at first.
        runs: Whether they are there at all.
        mean: Whether there is a mean, with its spread.
        spread: Whether the mean has its standard deviation around it.
        names: What each line is, unless they are the group's runs.
    """
    group, alone = curve.group, len(curve.values_NR) == 1
    hue = what.color if what is not None and what.color else color_of(group)
    keys = [legend.add(f"group {group.place}", group.name, color=color_of(group))]
    if what is not None:
        legend.found.setdefault(what.key, what)
        keys.append(what.key)
    origin: dict[str, str | int] = {"series": series, "set": token_set, "group": group.name}
    dash = what.dash if what is not None else "solid"
    label = (what.label,) if what is not None else ()
    of = "pairs of runs" if names else "runs"
    base = Line(label, curve.steps_R, curve.mean_R, hue, tuple(keys), origin, alone, dash)
    lines = [_mean_line(base, curve, legend, of=of, spread=spread)] if mean and not alone else []
    thin_keys = list(keys)
    if runs and not alone:
        thin_keys.append(legend.add(RUNS, "pairs" if names else "runs", is_on=each))
    for number in shown_lines(len(curve.values_NR)) if runs or alone else ():
        words = names[number] if names else _run_words(group, number)
        key = legend.add(f"{group.place} {words}", ", ".join(words), is_one_of_many=True)
        own: dict[str, str | int] = {"pair": words[0]} if names else {"run": group.runs[number].run}
        line = replace(
            base,
            words=(*label, *words, group.name),
            values_R=curve.values_NR[number],
            keys=(*thin_keys, key),
            source=origin | own,
        )
        lines.append(shortened(line, MAX_VALUES // min(MAX_LINES, len(curve.values_NR))))
    return lines


def _mean_line(base: Line, curve: Curve, legend: Legend, *, of: str, spread: bool) -> Line:
    """Returns the mean over the runs of a curve, with its spread if there is one."""
    mean_R, std_R = mean_and_std(curve.values_NR)
    count = len(curve.values_NR)
    has_spread = spread and count > 1
    keys = (*base.keys, legend.add(MEAN, "mean"))
    if has_spread:
        legend.add(SPREAD, "\u00b1 standard deviation")
    line = replace(
        base,
        words=(*base.words, f"mean of {count} {of}", curve.group.name),
        values_R=mean_R,
        keys=keys,
        source={**base.source, "statistic": "mean"},
        is_thick=True,
        std_R=std_R if has_spread else None,
    )
    return shortened(line, MAX_MEAN_VALUES)


def shown_lines(count: int) -> list[int]:
    """Returns which of so many lines are shown: all, or evenly spread ones.

    Example:
        >>> shown_lines(3), len(shown_lines(4950))
        ([0, 1, 2], 60)
    """
    return sorted({int(x) for x in np.linspace(0, count - 1, min(count, MAX_LINES)).round()})


def shortened(line: Line, max_values: int) -> Line:
    """Returns a line of about so many values at most: of every stretch of rows the extremes."""
    if len(line.values_R) <= max_values:
        return line
    rows_K = thinned(line.values_R, max_values)
    std_R = None if line.std_R is None else line.std_R[rows_K]
    return replace(line, steps_R=line.steps_R[rows_K], values_R=line.values_R[rows_K], std_R=std_R)


def left_out_lines(curves: Sequence[Curve]) -> str:
    """Returns which lines are not in a chart, in words."""
    most = max((len(curve.values_NR) for curve in curves), default=0)
    if most <= MAX_LINES:
        return ""
    return f"Thin lines are {MAX_LINES} of {most:,}, evenly spread; the mean is over all."


def _run_words(group: Group, number: int) -> tuple[str, ...]:
    run = group.runs[number]
    seed = run.label.partition(", ")[0]
    return (f"run {run.run}, {seed}",) if seed.startswith("seed") else (seed,)
