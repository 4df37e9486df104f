"""A measured figure, its limit, and the Markdown table of all of them."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TABLE, RATIOS = "benchmark", "ratios"
"""What is between marks of that name in a page: the whole table, and the README's part of it."""

TELLING = {
    "recording: step with the recorder / without": "the time of a step with the recorder / without it",
    "the same / the notebook's time, 2 runs side by side": "the time of two seeds / the notebook's",
    "gather / `cp`": "the speed of joining the runs' files / that of `cp`",
}
"""Figure of the table -> what the README calls it."""


@dataclass(frozen=True)
class Figure:
    """One thing that was measured, several times."""

    name: str
    """What it is, as the table says it."""

    unit: str
    """ms, s, GB, MB/s, ...; empty for a ratio."""

    values: Sequence[float]
    """Every single measurement, in the order they were taken; none where it could not be measured."""

    limit: float | None = None
    """What the median has to keep; None = there is none."""

    bound: Literal["<=", ">="] = "<="
    """Which side of the limit is the right one."""

    why_not: str = ""
    """Why there are no values."""

    def as_json(self) -> dict[str, Any]:
        """Returns the figure with its median, spread and verdict, rounded to four digits."""
        if not self.values:
            nothing = dict.fromkeys(("median", "least", "most", "limit", "met"))
            return {"name": self.name, "unit": self.unit, **nothing, "values": [], "why_not": self.why_not}
        median = statistics.median(self.values)
        met = None
        if self.limit is not None:
            met = median <= self.limit if self.bound == "<=" else median >= self.limit
        return {
            "name": self.name,
            "unit": self.unit,
            **{"median": _rounded(median), "least": _rounded(min(self.values))},
            "most": _rounded(max(self.values)),
            "limit": None if self.limit is None else f"{self.bound} {self.limit:g}",
            "met": met,
            "values": [_rounded(value) for value in self.values],
        }


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Returns the quotient of each pair that was measured in the same round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def measured_on_gpus(folder: Path) -> list[dict[str, Any]]:
    """Returns what the result files of machines with a GPU hold."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [result for result in found if result.get("accelerator") == "gpu"]


def table(result: dict[str, Any], *, on_gpus: Sequence[dict[str, Any]] = ()) -> str:
    """Returns a result file's content as Markdown: a sentence on where it was measured, and a table.

    Args:
        result: As `python -m benchmarks` writes it.
        on_gpus: Likewise, of machines with a GPU; what they have goes below that of one without.
    """
    loads = [f"{part['load_average_before']:g}" for part in result["parts"].values()]
    lines = [
        f"{result['device']}, {result['cores']} cores; load average before each part {', '.join(loads)} "
        "(of the minute before, the last part's own work included); every value, with versions and commit: "
        f"[benchmarks/results/{result['machine']}.json](../benchmarks/results/{result['machine']}.json).",
        "",
        "| figure | median | least to most | limit | |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(figure) for figure in _figures(result)]
    if result["accelerator"] == "cpu":
        lines += [_row(figure, where=f"{gpu['device']}: ") for gpu in on_gpus for figure in _figures(gpu)]
        what = "the rest" if on_gpus else "the same"
        lines.append(f"| {what} on a GPU (`make bench-gpu`) | not measured | | | |")
    return "\n".join(lines)


def telling_ratios(result: dict[str, Any]) -> str:
    """Returns the three ratios that the README shows, as Markdown."""
    found = {figure["name"]: figure for figure in _figures(result)}
    where = f"{result['device']}, {result['cores']} cores"
    lines = [
        f"Medians of `make bench` on {where}; [docs/benchmarks.md](docs/benchmarks.md) has their",
        "spread, and the limits that they were to keep:",
        "",
    ]
    lines += [f"- {words}: **{found[name]['median']:g}**" for name, words in TELLING.items()]
    return "\n".join(lines)


def between_marks(page: str, name: str) -> str:
    """Returns what stands between the two marks of that name in a page."""
    return page.split(f"<!-- {name}: begin -->")[1].split(f"<!-- {name}: end -->")[0].strip()


def put_into(path: Path, name: str, text: str) -> None:
    """Replaces what stands between the two marks of that name in a page."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = path.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def _figures(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [figure for part in result["parts"].values() for figure in part["figures"]]


def _row(figure: dict[str, Any], *, where: str = "") -> str:
    if not figure["values"]:
        return f"| {where}{figure['name']} | not measured: {figure['why_not']} | | | |"
    unit = f" {figure['unit']}" if figure["unit"] else ""
    verdict = {True: "met", False: "**not met**", None: ""}[figure["met"]]
    limit = f"{figure['limit']}{unit}" if figure["limit"] else ""
    spread = f"{figure['least']:g} to {figure['most']:g}" if len(figure["values"]) > 1 else "once"
    return f"| {where}{figure['name']} | {figure['median']:g}{unit} | {spread} | {limit} | {verdict} |"


def _rounded(value: float) -> float:
    return float(f"{value:.3g}") if abs(value) < 1000 else round(value)
