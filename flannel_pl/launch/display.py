"""How far an experiment is, for a person: as a table, or line by line where nothing can be redrawn."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flannel_pl.launch.standing import ExperimentStatus, RunState, RunStatus
from flannel_pl.terminal import printable

MAX_ROWS = 30
"""Runs that a table shows one by one; the rest are counted."""

ALWAYS = 9
"""Importance of a column that is never left out."""

_MAX_TROUBLES = 5
_MAX_VALUE_CHARS = 20
_GAP = 2  # blanks between two columns
_BY_URGENCY: tuple[RunState, ...] = ("failed", "running", "silent", "unknown", "stopped", "done", "waiting")
_COLORS = {"failed": "red", "silent": "yellow", "unknown": "yellow", "stopped": "yellow", "done": "green"}


@dataclass(frozen=True)
class TableColumn:
    """A column of a table that makes do with the width there is."""

    title: str
    cells: Sequence[str | Text]
    importance: int
    """The least important column is the first to be left out; of equal ones, the last."""

    justify: Literal["left", "right"] = "right"

    @property
    def width(self) -> int:
        """Characters that its widest cell takes on the screen."""
        return max(cell.cell_len for cell in (_text(self.title), *map(_text, self.cells)))


def fitting_table(columns: Sequence[TableColumn], *, width: int) -> Table:
    """Makes a table of as many of the columns as fit into a line.

    Args:
        columns: All columns from left to right, each with as many cells.
        width: Characters in a line. What is `ALWAYS` kept may take more.
    """
    kept = list(columns)
    for place in sorted(range(len(columns)), key=lambda place: (columns[place].importance, -place)):
        column = columns[place]
        too_wide = sum(column.width + _GAP for column in kept) - _GAP > width
        if too_wide and column.importance < ALWAYS:
            kept.remove(column)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column in kept:
        table.add_column(_text(column.title), justify=column.justify, no_wrap=True)
    for row in zip(*(column.cells for column in kept), strict=True):
        table.add_row(*map(_text, row))
    return table


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(printable(cell))


def status_table(status: ExperimentStatus, *, width: int = 80, max_rows: int = MAX_ROWS) -> Table:
    """Makes a table with a row per run, and below it what there is to say of all of them.

    Args:
        status: How far the experiment is.
        width: Characters in a line; where it is too short, the least important columns are left out.
        max_rows: Of more runs than this only the most urgent are shown: failed ones, then running ones.
    """
    runs = status.runs
    if len(runs) > max_rows:
        runs = tuple(sorted(runs, key=lambda run: _BY_URGENCY.index(run.state)))
    shown, hidden = runs[:max_rows], runs[max_rows:]
    whole = Table.grid()
    whole.add_row(fitting_table(_columns(shown), width=width))
    if hidden:
        whole.add_row(f"... {_counts(hidden)}")
    whole.add_row(Text(f"\n{overall(status)}"))
    found = [trouble for run in runs for trouble in troubles(run)]
    for trouble in found[:_MAX_TROUBLES]:
        whole.add_row(Text(trouble))
    if len(found) > _MAX_TROUBLES:
        whole.add_row(f"... and {len(found) - _MAX_TROUBLES} more messages like these")
    return whole


def live_table(status: ExperimentStatus, console: Console) -> Table:
    """Makes a table that fits on the screen as it is now."""
    below = 5 + _MAX_TROUBLES
    return status_table(status, width=console.width, max_rows=max(3, min(MAX_ROWS, console.height - below)))


def overall(status: ExperimentStatus) -> str:
    """Returns in one line how far all runs together are."""
    done = sum(run.state == "done" for run in status.runs)
    others = _counts([run for run in status.runs if run.state != "done"])
    parts = [f"{done} of {len(status.runs)} runs done" + (f", {others}" if others else "")]
    if status.steps_left:
        eta = "" if status.eta_s is None else f", about {duration(status.eta_s)}"
        parts.append(f"{status.steps_left} steps left{eta}")
    parts.append(f"{_megabytes(status.bytes_written)} MB written")
    if status.gathered or status.gather != "none":
        parts.append("gathered" if status.gathered else "not gathered yet")
    return "; ".join(parts)


def not_finite(run: RunStatus) -> Iterator[str]:
    """Yields a line if the run's loss has turned NaN or infinite."""
    if run.first_bad_step is not None:
        yield f"run {run.run}: loss not finite from step {run.first_bad_step} on; recorded as it is"


def early_end(run: RunStatus) -> Iterator[str]:
    """Yields a line if the run has ended on purpose before its last step."""
    if run.ended is not None:
        yield f"run {run.run}: {printable(str(run.ended))}"


def troubles(run: RunStatus) -> Iterator[str]:
    """Yields a line for everything about a run that a person should know."""
    yield from not_finite(run)
    yield from early_end(run)
    if run.state == "failed":
        yield f"run {run.run} failed: {printable(run.message)}"
    elif run.state == "silent" and run.updated_s is not None:
        silence = duration(time.time() - run.updated_s)
        yield f"run {run.run}: no sign of life from {printable(run.host)} for {silence}"
    elif run.state in ("unknown", "waiting") and run.message:
        yield f"run {run.run}: {printable(run.message)}"


def duration(seconds: float) -> str:
    """Returns e.g. '45 s', '3 min 20 s' or '2 h 5 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def swept_columns(runs: Sequence[RunStatus], *, importance: int) -> list[TableColumn]:
    """Returns a column per swept key, named by the key's last part if that is clear enough."""
    keys = list(dict.fromkeys(key for run in runs for key in run.swept))
    last_parts = Counter(key.split(".")[-1] for key in keys)
    columns = []
    for key in keys:
        last_part = key.split(".")[-1]
        cells = [_shortened(str(run.swept.get(key, ""))) for run in runs]
        columns.append(TableColumn(key if last_parts[last_part] > 1 else last_part, cells, importance))
    return columns


def loss_column(title: str, runs: Sequence[RunStatus], *, importance: int) -> TableColumn:
    """Returns the column of the newest losses."""
    cells = ["" if run.loss is None else f"{run.loss:.4f}" for run in runs]
    return TableColumn(title, cells, importance)


def state_column(states: Sequence[str]) -> TableColumn:
    """Returns the column of the states, in color."""
    cells = [Text(state, style=_COLORS.get(state, "")) for state in states]
    return TableColumn("state", cells, ALWAYS, "left")


def _columns(runs: Sequence[RunStatus]) -> list[TableColumn]:
    hosts = [run.host for run in runs]
    several_hosts = len(set(hosts) - {""}) > 1
    rates = ["" if run.steps_per_s is None else _rate(run.steps_per_s) for run in runs]
    megabytes = [_megabytes(run.bytes_written) if run.bytes_written else "" for run in runs]
    return [
        TableColumn("run", [str(run.run) for run in runs], ALWAYS),
        TableColumn("seed", [str(run.seed) for run in runs], importance=5),
        *swept_columns(runs, importance=6),
        *([TableColumn("host", hosts, importance=1, justify="left")] if several_hosts else []),
        TableColumn("device", [run.device for run in runs], importance=3, justify="left"),
        TableColumn("step", [f"{run.step}/{run.max_steps}" for run in runs], ALWAYS),
        TableColumn("steps/s", rates, importance=7),
        loss_column("loss", runs, importance=8),
        *_live_columns(runs, importance=4),
        TableColumn("MB", megabytes, importance=2),
        state_column([run.state for run in runs]),
        TableColumn("retries", [str(run.retries) for run in runs], importance=4),
    ]


def _live_columns(runs: Sequence[RunStatus], *, importance: int) -> list[TableColumn]:
    """Returns a column per live metric; of those that do not fit, the last are left out first."""
    names = dict.fromkeys(name for run in runs for name in run.live)
    return [
        TableColumn(name, [f"{run.live[name]:.4g}" if name in run.live else "" for run in runs], importance)
        for name in names
    ]


def _counts(runs: Sequence[RunStatus]) -> str:
    counts = Counter(run.state for run in runs)
    return ", ".join(f"{counts[state]} {state}" for state in _BY_URGENCY if counts[state])


def _rate(steps_per_s: float) -> str:
    return f"{steps_per_s:.0f}" if steps_per_s >= 100 else f"{steps_per_s:.2f}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f}"


def _shortened(text: str) -> str:
    """Cuts a long value at its front: of paths the end tells them apart."""
    return text if len(text) <= _MAX_VALUE_CHARS else f"...{text[3 - _MAX_VALUE_CHARS :]}"


class PlainLines:
    """Prints a line whenever a run has started, done a further tenth, ended, or has something to tell.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._news: dict[int, tuple[RunState, int, int | None]] = {}
        self._tenths: dict[int, int] = {}
        self._num_ended = 0

    def show(self, status: ExperimentStatus) -> None:
        """Prints what is new since the last call."""
        for run in status.runs:
            self._show_run(run)
        counts = Counter(run.state for run in status.runs)
        num_ended = counts["done"] + counts["failed"]
        if num_ended > self._num_ended:
            self._num_ended = num_ended
            self.print(overall(status))

    def print(self, line: str) -> None:
        """Prints one line as it is, however long."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _show_run(self, run: RunStatus) -> None:
        news = (run.state, run.attempt, run.first_bad_step)
        tenth = 10 * run.step // run.max_steps
        is_news = news != self._news.get(run.run)
        if is_news or (run.state == "running" and tenth > self._tenths[run.run]):
            self._news[run.run], self._tenths[run.run] = news, tenth
            if run.state in ("running", "stopped", "done"):
                self.print(_line(run))
        if is_news:
            for trouble in troubles(run):
                self.print(trouble)


def _line(run: RunStatus) -> str:
    parts = [run.state + (f" on {run.device}" if run.device else "")]
    if run.retries:
        parts.append(f"retry {run.retries}")
    parts.append(f"{run.step}/{run.max_steps} steps")
    if run.loss is not None and run.step > 0:  # row 0 has none
        parts.append(f"loss {run.loss:.4f}")
    if run.steps_per_s is not None:
        parts.append(f"{_rate(run.steps_per_s)} steps/s")
    parts += [f"{name} {value:.4g}" for name, value in run.live.items()]
    return f"run {run.run}: {', '.join(parts)}"
