"""How far an experiment is: what there is to know of it and of each of its runs."""

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flannel_pl.experiment import Run
from flannel_pl.recording.formats.early_end import EarlyEnd

RunState = Literal["waiting", "running", "stopped", "done", "failed", "silent", "unknown"]
"""`silent`: says it is running, but said so too long ago. `unknown`: the journal cannot be read."""


@dataclass(frozen=True)
class RunStatus:
    """How far one run is."""

    run: int
    seed: int
    swept: Mapping[str, Any]
    max_steps: int
    num_rows: int
    """Rows of the finished recording."""

    state: RunState = "waiting"
    attempt: int = 0
    """Which start of the run this is about, from 1; 0 if it was never started."""

    step: int = 0
    """Step of the newest row; 0 before the first."""

    rows_written: int = 0
    device: str = ""
    host: str = ""
    steps_per_s: float | None = None
    """Mean of this attempt; None as long as there is none."""

    loss: float | None = None
    first_bad_step: int | None = None
    """Step of the first loss that is NaN or infinite."""

    live: Mapping[str, float] = field(default_factory=dict)
    """Live metric -> its newest value."""

    bytes_written: int = 0
    updated_s: float | None = None
    """Last sign of life, Unix time in seconds."""

    message: str = ""
    """Why the run failed or stopped, or why nothing is known of it."""

    ended: EarlyEnd | None = None
    """How the run ended, if it is done before its last step."""

    @property
    def retries(self) -> int:
        """How often the run was started again."""
        return max(0, self.attempt - 1)

    @property
    def steps_left(self) -> int:
        """Steps that are still to be trained; none of a run that is done or has failed."""
        return 0 if self.state in ("failed", "done") else self.max_steps - self.step


@dataclass(frozen=True)
class ExperimentStatus:
    """How far all of an experiment is."""

    name: str
    folder: Path
    runs: tuple[RunStatus, ...]
    gather: str
    """What is to be made of the finished runs: single, index or none."""

    gathered: bool
    """Whether that is there."""

    launching: bool
    """Whether a launcher is at work in the folder, so that a failed run may be started again."""

    @property
    def num_runs_in(self) -> Counter[RunState]:
        """State -> number of runs in it."""
        return Counter(run.state for run in self.runs)

    @property
    def ended(self) -> bool:
        """Whether every run is done or has failed for good."""
        counts = self.num_runs_in
        if counts["done"] == len(self.runs):
            return True
        return counts["done"] + counts["failed"] == len(self.runs) and not self.launching

    @property
    def steps_left(self) -> int:
        """Steps that are still to be trained, of all runs that have not failed."""
        return sum(run.steps_left for run in self.runs)

    @property
    def bytes_written(self) -> int:
        """Bytes that all runs have recorded so far."""
        return sum(run.bytes_written for run in self.runs)

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last run is done; None if no run tells how fast it is.

        As many runs as now stay side by side, and whichever is done first makes room for the next. A run of
        which no rate is known is as fast as those that are running, on average.
        """
        running = [run for run in self.runs if run.state == "running"]
        rates = [run.steps_per_s for run in running if run.steps_per_s]
        if not rates:
            return None
        mean = sum(rates) / len(rates)
        places = [run.steps_left / (run.steps_per_s or mean) for run in running]
        heapq.heapify(places)
        for run in self.runs:
            if run.state != "running":
                heapq.heapreplace(places, places[0] + run.steps_left / mean)
        return max(places)


@dataclass(frozen=True)
class Outcome:
    """How one run ended."""

    run: Run
    device: str
    attempts: int
    elapsed_s: float | None
    """Of the last attempt; None if nobody knows."""

    failure: str | None
    """None if the run finished, else what went wrong, in one line."""
