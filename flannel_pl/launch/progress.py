"""Shows how far the runs are while they train, read from their journals."""

import contextlib
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from flannel_pl.errors import RunError
from flannel_pl.experiment import Experiment, Run
from flannel_pl.recording.journal import Journal, JournalEntry


class Progress:
    """One bar per run on a terminal; elsewhere a plain line whenever a run has done a further tenth.

    Args:
        experiment: What the runs belong to.
        runs: The runs to show.
    """

    def __init__(self, experiment: Experiment, runs: Sequence[Run]) -> None:
        self._console = Console()
        self._journals = {run.index: Journal(experiment.paths.run(run.index).journal) for run in runs}
        self._stale = {index: _read(journal) for index, journal in self._journals.items()}
        self._tenths = dict.fromkeys(self._journals, 0)
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[int, TaskID] = {
            run.index: self._bars.add_task(
                f"run {run.index}  seed {run.seed}", total=None, note="waiting", start=False
            )
            for run in runs
        }

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self) -> None:
        """Reads every journal and shows what is new."""
        for index, journal in self._journals.items():
            entry = _read(journal)
            # A journal from an earlier attempt says nothing about this one.
            if entry is None or entry == self._stale[index]:
                continue
            loss = "" if entry.loss is None else f"loss {entry.loss:.4f}"
            task = self._tasks[index]
            self._bars.start_task(task)
            self._bars.update(task, completed=entry.rows_written, total=entry.num_rows, note=loss)
            self._line(index, entry, loss)

    def ended(self, run: Run, failure: str | None) -> None:
        """Shows that a run has ended."""
        self.update()
        note = "done" if failure is None else "failed"
        self._bars.update(self._tasks[run.index], note=note)
        if not self._console.is_terminal:
            self._console.print(f"run {run.index}: {note}", highlight=False)

    def _line(self, index: int, entry: JournalEntry, loss: str) -> None:
        tenths = 10 * entry.rows_written // entry.num_rows
        if not self._console.is_terminal and tenths > self._tenths[index]:
            self._tenths[index] = tenths
            self._console.print(
                f"run {index}: {entry.rows_written}/{entry.num_rows} rows  {loss}", highlight=False
            )


def _read(journal: Journal) -> JournalEntry | None:
    # A journal that cannot be read right now only means that there is nothing to show.
    with contextlib.suppress(RunError, OSError):
        return journal.read()
    return None
