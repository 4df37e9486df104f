"""Shows a run that is trained in the process of its command as the launcher shows several."""

import time
from types import TracebackType

from flannel_pl.experiment import ResolvedExperiment, Run, Slot
from flannel_pl.launch.progress import Progress
from flannel_pl.launch.standing import Outcome


class Display:
    """Shows how far the one run of an experiment is.

    Args:
        experiment: What the run belongs to.
        run: The run.
        slot: Where it is trained.
    """

    def __init__(self, experiment: ResolvedExperiment, run: Run, slot: Slot) -> None:
        self._run, self._slot = run, slot
        self._progress = Progress(experiment, [run])
        self._began_s = time.monotonic()

    def __enter__(self) -> "Display":
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def update(self) -> None:
        """Shows what is new; may be called after every step."""
        self._progress.update()

    @property
    def outcome(self) -> Outcome:
        """How the run ended, once it has."""
        elapsed_s = time.monotonic() - self._began_s
        return Outcome(self._run, self._slot.name, attempts=1, elapsed_s=elapsed_s, failure=None)
