"""What a run's process does in tests of the launcher alone: nothing, for long."""

import time

from flannel_pl.experiment import ResolvedExperiment, Run, Slot


def sleep(experiment: ResolvedExperiment, run: Run, slot: Slot, attempt: int, note: object) -> None:
    time.sleep(60)
