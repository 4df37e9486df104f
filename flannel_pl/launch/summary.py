"""What ends an experiment: how each run went, what failed and where to look, and how to go on."""

import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flannel_pl.experiment import ResolvedExperiment
from flannel_pl.launch.display import (
    ALWAYS,
    TableColumn,
    early_end,
    fitting_table,
    loss_column,
    not_finite,
    state_column,
    swept_columns,
)
from flannel_pl.launch.standing import Outcome, RunStatus
from flannel_pl.launch.status import collect_status
from flannel_pl.terminal import make_console, printable


def summarize(experiment: ResolvedExperiment, outcomes: Sequence[Outcome], *, command: Sequence[str]) -> None:
    """Prints a row per run; if any failed, also a table of those, their logs, and the command to go on with.

    Args:
        experiment: What the runs belong to.
        outcomes: How each of them ended.
        command: The command line without the program's name.
    """
    console = make_console()
    runs = collect_status(experiment.paths, experiment.config, [outcome.run for outcome in outcomes]).runs
    console.print(_results(outcomes, runs, width=console.width))
    for run in runs:
        for line in (*not_finite(run), *early_end(run)):
            console.print(line, highlight=False)
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    if not failed:
        return
    console.print(f"\nfailed: {len(failed)} of {len(outcomes)} runs\n", highlight=False)
    console.print(_failures(failed))
    console.print()
    for outcome in failed:
        log = shlex.quote(str(experiment.paths.run(outcome.run.index).log))
        _print_whole(console, f"log of run {outcome.run.index}: {log}")
    again = shlex.join(["flannel-pl", *command])
    _print_whole(console, f"go on with: {again}")


def _results(outcomes: Sequence[Outcome], runs: Sequence[RunStatus], *, width: int) -> Table:
    # As `status` counts them; a run that never came to its journal is known here only.
    retries = [
        str(max(run.retries, outcome.attempts - 1)) for run, outcome in zip(runs, outcomes, strict=True)
    ]
    return fitting_table(
        [
            TableColumn("run", [str(run.run) for run in runs], ALWAYS),
            TableColumn("seed", [str(run.seed) for run in runs], importance=6),
            *swept_columns(runs, importance=5),
            TableColumn("device", [outcome.device for outcome in outcomes], importance=3, justify="left"),
            TableColumn("rows", [f"{run.rows_written}/{run.num_rows}" for run in runs], importance=7),
            loss_column("last loss", runs, importance=8),
            TableColumn("seconds", [_seconds(outcome) for outcome in outcomes], importance=4),
            state_column(["failed" if outcome.failure else "done" for outcome in outcomes]),
            TableColumn("retries", retries, importance=2),
        ],
        width=width,
    )


def _seconds(outcome: Outcome) -> str:
    return "" if outcome.elapsed_s is None else f"{outcome.elapsed_s:.1f}"


def _failures(failed: Sequence[Outcome]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("run", justify="right", no_wrap=True)
    table.add_column("seed", justify="right", no_wrap=True)
    table.add_column("device", no_wrap=True)
    table.add_column("cause", overflow="fold")
    for outcome in failed:
        run, cause = outcome.run, Text(printable(outcome.failure or ""))
        table.add_row(str(run.index), str(run.seed), outcome.device, cause)
    return table


def _print_whole(console: Console, line: str) -> None:
    """Prints a line to be copied: whole."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
