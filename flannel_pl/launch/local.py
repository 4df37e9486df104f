"""Trains several runs at once on this host: a process per run, a run per free slot, a queue of the rest.

A child is a plain `flannel-pl fit --config run_i/config.yaml` with its own log file. It sees only its own
device.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from flannel_pl.errors import Interrupted
from flannel_pl.experiment import Experiment, Run, Slot
from flannel_pl.launch.progress import Progress

POLL_S = 0.2
STOP_S = 10.0
"""How long children have to bring their rows to the disk when asked to stop."""


@dataclass(frozen=True)
class Outcome:
    """How one run ended."""

    run: Run
    device: str
    elapsed_s: float
    failure: str | None
    """None if the run finished, else what went wrong, in one line."""


@dataclass
class _Worker:
    run: Run
    slot: Slot
    process: subprocess.Popen[bytes]
    started_s: float


def train_all(experiment: Experiment, runs: Sequence[Run], slots: Sequence[Slot]) -> list[Outcome]:
    """Trains `runs` on `slots` and returns how each ended, in the order of their numbers.

    A run that fails stops no other.

    Args:
        experiment: What the runs belong to.
        runs: The runs to train; the config file of each is written.
        slots: Where; each takes the next waiting run as soon as it is free.

    Raises:
        Interrupted: On SIGINT or SIGTERM, after every child has been stopped.
    """
    waiting, free = deque(runs), deque(slots)
    workers: list[_Worker] = []
    outcomes: list[Outcome] = []
    with _signals_raised(), Progress(experiment, runs) as progress:
        try:
            while waiting or workers:
                while waiting and free:
                    workers.append(_start(experiment, waiting.popleft(), free.popleft()))
                time.sleep(POLL_S)
                for worker in [worker for worker in workers if worker.process.poll() is not None]:
                    workers.remove(worker)
                    free.append(worker.slot)
                    outcomes.append(_outcome(experiment, worker))
                    progress.ended(outcomes[-1].run, outcomes[-1].failure)
                progress.update()
        finally:
            _stop(workers)
    return sorted(outcomes, key=lambda outcome: outcome.run.index)


def _start(experiment: Experiment, run: Run, slot: Slot) -> _Worker:
    paths = experiment.paths.run(run.index)
    command = [sys.executable, "-m", "flannel_pl", "fit", "--config", str(paths.config)]
    # One bar per child would be ten bars fighting for one line; the launcher shows the progress of all.
    command += ["--trainer.enable_progress_bar", "false"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(slot.threads), "MKL_NUM_THREADS": str(slot.threads)}
    if slot.accelerator == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = _visible_device(slot.device)
    with paths.log.open("ab") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C then reaches the launcher only, which stops its children in order.
            start_new_session=True,
        )
    return _Worker(run, slot, process, time.monotonic())


def _visible_device(device: int | None) -> str:
    """Translates a device number of this process into the name a child has to be given."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    assert device is not None
    return visible[device] if visible else str(device)


def _outcome(experiment: Experiment, worker: _Worker) -> Outcome:
    code = worker.process.returncode
    paths = experiment.paths.run(worker.run.index)
    failure = None
    if code != 0 or not paths.recording.exists():
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        lines = paths.log.read_text(encoding="utf-8", errors="replace").splitlines()
        last_words = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        failure = f"{cause}: {last_words}; the whole story is in {paths.log}"
    return Outcome(worker.run, worker.slot.name, time.monotonic() - worker.started_s, failure)


def _stop(workers: list[_Worker]) -> None:
    """Asks the children to stop, and kills those that do not."""
    for worker in workers:
        worker.process.terminate()
    deadline_s = time.monotonic() + STOP_S
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


@contextmanager
def _signals_raised() -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into `Interrupted`; a second one is left to end the process."""

    def handle(number: int, frame: FrameType | None) -> None:
        for other in previous:
            signal.signal(other, signal.SIG_DFL)
        raise Interrupted(number)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
