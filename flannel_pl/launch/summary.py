"""The table that ends an experiment: how each run went."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from flannel_pl.experiment import Experiment
from flannel_pl.launch.local import Outcome
from flannel_pl.recording.journal import Journal


def summarize(experiment: Experiment, outcomes: Sequence[Outcome]) -> None:
    """Prints one line per run, and for every failure where to look."""
    swept = sorted({key for outcome in outcomes for key in outcome.run.swept})
    table = Table("run", "seed", *swept, "device", "rows", "last loss", "seconds", "state")
    for outcome in outcomes:
        run, entry = outcome.run, Journal(experiment.paths.run(outcome.run.index).journal).read()
        table.add_row(
            str(run.index),
            str(run.seed),
            *(str(run.swept[key]) for key in swept),
            outcome.device,
            "-" if entry is None else f"{entry.rows_written}/{entry.num_rows}",
            "-" if entry is None or entry.loss is None else f"{entry.loss:.4f}",
            f"{outcome.elapsed_s:.1f}",
            "done" if outcome.failure is None else "failed",
        )
    console = Console()
    console.print(table)
    for outcome in outcomes:
        if outcome.failure is not None:
            console.print(f"run {outcome.run.index} failed: {outcome.failure}", markup=False, soft_wrap=True)
