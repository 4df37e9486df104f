"""Shows how far the runs are while the launcher trains them."""

import dataclasses
import math
import shlex
import time
from collections.abc import Sequence
from types import TracebackType

from rich.live import Live

from flannel_pl.experiment import ResolvedExperiment, Run
from flannel_pl.launch.display import PlainLines, live_table
from flannel_pl.launch.standing import ExperimentStatus, RunStatus
from flannel_pl.launch.status import collect_status, waiting_run
from flannel_pl.terminal import make_console

REFRESH_S = 0.5
"""Shortest time between two looks at the journals."""

COST = 0.05
"""Largest share of its time that the launcher spends on looking and drawing, however many runs there are."""


class Progress:
    """A live table on a terminal; elsewhere a line for every start, end, retry and further tenth of a run.

    What it shows is what the journals say, see `launch.status`; and besides that, which runs the launcher has
    given up. At the end the live table is wiped away for the summary, unless an exception is on its way.

    Args:
        experiment: What the runs belong to.
        runs: The runs that the launcher trains.
        under_way: Whether they were started before, so that their journals are about this launch. Else a
            journal may be of an earlier launch, and says nothing about this one until it changes.

    Example:
        >>> with Progress(experiment, runs) as progress:  # doctest: +SKIP
        ...     progress.update()                         # often
    """

    def __init__(
        self, experiment: ResolvedExperiment, runs: Sequence[Run], *, under_way: bool = False
    ) -> None:
        self._experiment = experiment
        self._runs = {run.index: run for run in runs}
        earlier = () if under_way else self._collect(runs).runs
        self._earlier = {status.run: _sign_of_life(status) for status in earlier}
        self._failures: dict[int, str] = {}
        self._console = make_console()
        self._lines = PlainLines(self._console)
        self._live = Live(console=self._console, auto_refresh=False)
        self._next_s = -math.inf

    def __enter__(self) -> "Progress":
        if self._console.is_interactive:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show()
        self._live.transient = error is None
        self._live.stop()

    def update(self) -> None:
        """Shows what is new, if the last look was not just now; may be called at any rate."""
        began_s = time.monotonic()
        if began_s >= self._next_s:
            self._show()
            now_s = time.monotonic()
            self._next_s = now_s + max(REFRESH_S, (now_s - began_s) / COST)

    def ended(self, run: Run, failure: str | None) -> None:
        """Tells that the launcher is through with a run.

        Args:
            run: Which.
            failure: None if it is done, else why it was given up.
        """
        if failure is not None:
            self._failures[run.index] = failure

    def retry(self, run: Run, failure: str, *, device: str) -> None:
        """Tells that a run has failed and waits for its next attempt; its journal is of the past from now on.

        Args:
            run: Which.
            failure: Why it failed.
            device: Where.
        """
        log = shlex.quote(str(self._experiment.paths.run(run.index).log))
        self.note(
            f"run {run.index} (seed {run.seed}) on {device}: {failure}; starting it again. Its log: {log}"
        )
        self._earlier |= {status.run: _sign_of_life(status) for status in self._collect([run]).runs}

    def note(self, text: str) -> None:
        """Prints a line, on a terminal above the table."""
        self._lines.print(text)

    def _show(self) -> None:
        status = self._collect(self._experiment.selected)
        status = dataclasses.replace(status, runs=tuple(self._corrected(run) for run in status.runs))
        if self._console.is_interactive:
            self._live.update(live_table(status, self._console), refresh=True)
        else:
            self._lines.show(status)

    def _collect(self, runs: Sequence[Run]) -> ExperimentStatus:
        return collect_status(self._experiment.paths, self._experiment.config, runs)

    def _corrected(self, status: RunStatus) -> RunStatus:
        """Returns what is true of a run in this launch."""
        if status.run in self._failures:
            return dataclasses.replace(status, state="failed", message=self._failures[status.run])
        if status.state == "done" or status.run not in self._runs:
            return status
        if _sign_of_life(status) == self._earlier.get(status.run):
            return waiting_run(self._experiment.config, self._runs[status.run])
        if status.state == "failed":  # the launcher has not heard of it yet, and may start it again
            return dataclasses.replace(status, state="waiting", message="")
        return status


def _sign_of_life(status: RunStatus) -> tuple[float | None, bool]:
    """Returns what differs as soon as a run's journal is written, or damaged."""
    return status.updated_s, status.state == "unknown"
