"""What a launcher has runs do in place of training; in a module of its own, for their processes to import."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable

from flannel_pl.experiment import ResolvedExperiment, Run, Slot

Note = Callable[..., object]


def finish(experiment: ResolvedExperiment, run: Run, slot: Slot, attempt: int, note: Note) -> None:
    """Takes a moment and leaves what counts as a recording, in it what the process sees of its devices."""
    time.sleep(0.1)
    seen = {name: value for name, value in os.environ.items() if name.endswith(("_DEVICES", "_ORDER"))}
    content = {"attempt": attempt, "number": slot.number, "threads": slot.threads, "environment": seen}
    experiment.paths.run(run.index).recording.write_text(json.dumps(content))


def need_all_the_memory(
    experiment: ResolvedExperiment, run: Run, slot: Slot, attempt: int, note: Note
) -> None:
    """Is killed, as by a kernel that is out of memory, if there is another run beside it."""
    mark = experiment.paths.folder / f"at work {run.index}"
    mark.touch()
    time.sleep(0.3)
    is_alone = len(list(experiment.paths.folder.glob("at work *"))) == 1
    mark.unlink()
    if not is_alone:
        os.kill(os.getpid(), signal.SIGKILL)
    finish(experiment, run, slot, attempt, note)


def be_killed(experiment: ResolvedExperiment, run: Run, slot: Slot, attempt: int, note: Note) -> None:
    """Is killed, whatever is beside it."""
    os.kill(os.getpid(), signal.SIGKILL)


def lose_the_folder(experiment: ResolvedExperiment, run: Run, slot: Slot, attempt: int, note: Note) -> None:
    """Fails, in run 1 because somebody removes its folder meanwhile."""
    if run.index != 1:
        finish(experiment, run, slot, attempt, note)
        return
    shutil.rmtree(experiment.paths.run(1).folder)
    sys.exit(1)


def wait_for_another_attempt(
    experiment: ResolvedExperiment, run: Run, slot: Slot, attempt: int, note: Note
) -> None:
    """Goes on for long in the first attempt, and finishes in the second."""
    if attempt == 1:
        os.setsid()
        (experiment.paths.folder / f"at work {run.index}").write_text(str(os.getpid()))
        time.sleep(60)
    finish(experiment, run, slot, attempt, note)


def work_without_training(
    experiment: ResolvedExperiment, run: Run, slot: Slot, attempt: int, note: Note
) -> None:
    """Does all that a run's process does, but for the training."""
    from flannel_pl.training import worker

    def train(
        experiment: ResolvedExperiment, run: Run, slot: Slot, *, attempt: int, progress_bar: bool, note: Note
    ) -> None:
        finish(experiment, run, slot, attempt, note)

    vars(worker)["train"] = train  # of this process
    worker.work(experiment, run, slot, attempt, note)


def be_forked_too_late(
    experiment: ResolvedExperiment, run: Run, slot: Slot, attempt: int, note: Note
) -> None:
    """Is a run's process in which torch says that its GPU cannot be used after the fork."""
    import torch

    from flannel_pl.training import worker

    vars(torch.mps)["_is_in_bad_fork"] = lambda: True
    worker.work(experiment, run, slot, attempt, note)
