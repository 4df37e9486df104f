"""Trains several runs at once on this host: a process per run, a run per free slot, a queue of the rest.

The processes come from a fork server that has imported everything but touched no device, so that a further
run does not pay for the imports again; where that cannot be, each is a new one. A run sees only its own
device, prints to its own log, and stops when the launcher is gone. What runs in them is handed in: this room
starts training and knows nothing of it.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from types import FrameType

from flannel_pl.errors import Interrupted, RunError
from flannel_pl.experiment import Experiment, Run, Slot
from flannel_pl.launch.devices import seen_alone
from flannel_pl.launch.events import EventLog
from flannel_pl.launch.fork_server import start_deaf, start_fork_server, start_method
from flannel_pl.launch.giving_up import describe_exit, give_up
from flannel_pl.launch.progress import Progress
from flannel_pl.launch.standing import Outcome
from flannel_pl.recording.writing.held import check_held
from flannel_pl.signals import REPEAT_S, handled, stop_signal

POLL_S = 0.2
SERVER_ENDS_S = 0.2
"""How long a fork server that was killed may seem to be there."""

STOP_S = 9.0
"""How long runs have to bring everything to the disk when asked to stop."""

IN_VAIN = (2, 3)
"""Exit codes of a run that would fail in the same way again: for wrong usage, or on any device."""

UNKNOWN = 255
"""Exit code that `multiprocessing` makes up when the fork server has died and nobody can tell a run's own."""

Work = Callable[[Experiment, Run, Slot, int, Callable[..., None]], None]
"""Trains one run in a process of its own: experiment, run, slot, attempt, and what it tells events to."""


@dataclass(frozen=True)
class _Task:
    run: Run
    attempt: int = 1
    avoid: str | None = None
    """Name of the device on which the last attempt failed."""

    num_spared: int = 0
    """How many of its attempts ended only because too many runs were trained side by side."""


@dataclass(frozen=True)
class _Worker:
    task: _Task
    slot: Slot
    process: BaseProcess
    started_s: float


def train_all(
    experiment: Experiment,
    runs: Sequence[Run],
    slots: Sequence[Slot],
    *,
    work: Work,
    events: EventLog,
    finished: Callable[[int], object],
) -> list[Outcome]:
    """Trains `runs` on `slots` and returns how each ended, in the order of their numbers.

    A run that fails is started again, up to `launch.max_retries` times, and stops no other.

    Args:
        experiment: What the runs belong to.
        runs: The runs to train; their folders exist.
        slots: Where; each takes the next waiting run as soon as it is free.
        work: Trains one run; has to be importable by name.
        events: Told of every start and end.
        finished: Called with the number of every run that has finished.

    Raises:
        Interrupted: On a signal, after every run has been stopped.
        RunError: If another process has taken over the experiment's lock; every run has been killed then.
    """
    with _caught_signals() as signals, Progress(experiment, runs) as progress:
        return _Launch(experiment, runs, slots, work, events, progress, finished).train(signals)


class _Launch:
    """The loop of `train_all` and what it keeps account of."""

    def __init__(
        self,
        experiment: Experiment,
        runs: Sequence[Run],
        slots: Sequence[Slot],
        work: Work,
        events: EventLog,
        progress: Progress,
        finished: Callable[[int], object],
    ) -> None:
        self.experiment, self.work, self.events, self.progress = experiment, work, events, progress
        self.finished = finished
        self.max_retries = experiment.config["launch"]["max_retries"]
        self.waiting = deque(_Task(run) for run in runs)
        self.free = list(slots)
        self.workers: list[_Worker] = []
        self.outcomes: list[Outcome] = []
        self.max_at_once = len(slots)
        self.context: ForkServerContext | SpawnContext = multiprocessing.get_context("spawn")
        if start_method(slots[0].accelerator) == "forkserver":
            self.context = multiprocessing.get_context("forkserver")

    def train(self, signals: list[int]) -> list[Outcome]:
        try:
            while self.waiting or self.workers:
                self._start_waiting()
                wait([worker.process.sentinel for worker in self.workers], timeout=POLL_S)
                check_held(self.experiment.paths.folder, look=False)
                if signals:
                    self._stop(signals)
                    raise Interrupted(signals[0])
                self._collect()
                self.progress.update()
        finally:
            for worker in self.workers:  # none, unless the lock is lost or something unforeseen happened
                worker.process.kill()
        return sorted(self.outcomes, key=lambda outcome: outcome.run.index)

    def _start_waiting(self) -> None:
        while self.waiting and self.free and len(self.workers) < self.max_at_once:
            task = self.waiting.popleft()
            slot = next((slot for slot in self.free if slot.name != task.avoid), self.free[0])
            self.free.remove(slot)
            self.workers.append(self._start(task, slot))

    def _start(self, task: _Task, slot: Slot) -> _Worker:
        check_held(self.experiment.paths.folder)
        if slot.accelerator == "cuda":
            assert slot.device is not None
            slot = dataclasses.replace(slot, environment=seen_alone(slot.device))
        try:
            try:
                process = self._start_process(task, slot)
            except ConnectionRefusedError:  # killed a moment ago, so that it still seemed to be there
                time.sleep(SERVER_ENDS_S)
                process = self._start_process(task, slot)
        except (EOFError, ConnectionError) as error:
            raise RunError(
                f"The process that runs are forked from ended while it started run {task.run.index}: memory "
                "has run out, or the system allows no more processes (ulimit -u). Nothing is lost; make room "
                "and start again."
            ) from error
        self.events.write(
            "run_started",
            run=task.run.index,
            seed=task.run.seed,
            device=slot.name,
            attempt=task.attempt,
            pid=process.pid,
        )
        return _Worker(task, slot, process, time.monotonic())

    def _start_process(self, task: _Task, slot: Slot) -> BaseProcess:
        if isinstance(self.context, ForkServerContext):
            start_fork_server(self.work.__module__)  # unless it is there
        arguments = (self.experiment, task.run, slot, task.attempt, self.events.write)
        name = f"run {task.run.index}"
        process: BaseProcess = self.context.Process(target=self.work, args=arguments, name=name)
        # Until it has a session of its own, Ctrl-C reaches a new process as well; `_stop` tells it to stop.
        start_deaf(process.start, [signal.SIGINT])
        return process

    def _collect(self) -> None:
        for worker in [worker for worker in self.workers if not worker.process.is_alive()]:
            self.workers.remove(worker)
            self.free.append(worker.slot)
            task, elapsed_s = worker.task, time.monotonic() - worker.started_s
            if worker.process.exitcode == UNKNOWN:
                _end_orphan(worker.process)
            failure = self._failure(worker)
            if failure is None:
                self.events.write(
                    "run_finished",
                    run=task.run.index,
                    device=worker.slot.name,
                    attempt=task.attempt,
                    seconds=round(elapsed_s, 3),
                )
                self.finished(task.run.index)
            elif self._retry(worker, failure):
                continue
            else:
                experiment = self.experiment
                give_up(experiment.paths, experiment.config, task.run, failure, attempt=task.attempt)
            outcome = Outcome(task.run, worker.slot.name, task.attempt, elapsed_s, failure)
            self.outcomes.append(outcome)
            self.progress.ended(task.run, failure)

    def _failure(self, worker: _Worker) -> str | None:
        """Returns in one line why a run has not finished; None if it has."""
        paths, code = self.experiment.paths.run(worker.task.run.index), worker.process.exitcode
        if paths.recording.exists():
            return None  # whole, whatever happened to the process after that
        assert code is not None
        if not paths.folder.is_dir():
            return (
                f"{paths.folder} was removed or renamed while it was trained; the same command begins it anew"
            )
        if code == UNKNOWN:
            return "the process that it was forked from was killed (by hand, or because memory ran out)"
        return describe_exit(paths, code, worker.process.pid)

    def _retry(self, worker: _Worker, failure: str) -> bool:
        """Puts a failed run back in the queue, if it may be tried again."""
        task, num_spared = worker.task, worker.task.num_spared
        if worker.process.exitcode in (-signal.SIGKILL, UNKNOWN) and self._train_fewer() and self.max_retries:
            num_spared += 1
        may_retry = task.attempt - num_spared <= self.max_retries
        paths = self.experiment.paths.run(task.run.index)
        # A folder that somebody has removed stays removed until somebody asks for the run again.
        will_retry = may_retry and worker.process.exitcode not in IN_VAIN and paths.folder.is_dir()
        self.events.write(
            "run_failed",
            run=task.run.index,
            seed=task.run.seed,
            device=worker.slot.name,
            attempt=task.attempt,
            cause=failure,
            log=paths.log,
            will_retry=will_retry,
        )
        if will_retry:
            self.progress.retry(task.run, failure, device=worker.slot.name)
            self.waiting.append(_Task(task.run, task.attempt + 1, worker.slot.name, num_spared))
        return will_retry

    def _train_fewer(self) -> bool:
        """Trains one run less side by side from now on, if there were several when one was killed.

        Whether memory ran out cannot be told for certain. The number of threads of a run stays what it is, so
        no bit depends on this.
        """
        before, beside = self.max_at_once, len(self.workers)
        if not 0 < beside < before:
            return False
        self.max_at_once = beside
        self.events.write("fewer_at_once", runs=self.max_at_once)
        self.progress.note(
            f"memory may have run out: from now on {self.max_at_once} run(s) side by side instead of {before}"
        )
        return True

    def _stop(self, signals: list[int]) -> None:
        """Asks the runs to stop; kills those that do not, or all of them at a second signal."""
        name = signal.Signals(signals[0]).name
        self.events.write("stopping", signal=name)
        self.progress.note(f"{name}: the runs finish their step; once more stops at once")
        for worker in self.workers:
            if worker.process.is_alive() and worker.process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process.pid, stop_signal())
        deadline_s = time.monotonic() + STOP_S
        while self.workers and len(signals) == 1 and time.monotonic() < deadline_s:
            wait([worker.process.sentinel for worker in self.workers], timeout=POLL_S)
            self.workers = [worker for worker in self.workers if worker.process.is_alive()]
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
        self.workers = []


def _end_orphan(process: BaseProcess) -> None:
    """Kills a run of whose end nobody would hear, and which would keep its next attempt out."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getsid(process.pid) == process.pid:  # else the number is another process's by now
            os.kill(process.pid, signal.SIGKILL)


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Yields a list to which every signal that asks us to stop is appended."""
    caught: list[int] = []
    asked_s = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked_s
        now_s = time.monotonic()
        if number == signal.SIGINT or number not in caught or now_s - asked_s > REPEAT_S:
            caught.append(number)
            asked_s = now_s

    with handled(handle):
        yield caught
