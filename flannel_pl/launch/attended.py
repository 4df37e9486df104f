"""Trains runs by a launcher whose jobs end with us: a run per free slot, a queue of the rest.

A run that fails is started again, on another device if there is one; a signal that asks to stop stops all.
"""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from flannel_pl.errors import Interrupted
from flannel_pl.experiment import ResolvedExperiment, Run, Slot
from flannel_pl.launch.events import EventLog
from flannel_pl.launch.giving_up import describe_exit, give_up
from flannel_pl.launch.launcher import JobState, Launcher, Task, Work, find_launcher
from flannel_pl.launch.progress import Progress
from flannel_pl.launch.standing import Outcome
from flannel_pl.launch.tasks import attended_command
from flannel_pl.recording.writing.held import check_held
from flannel_pl.signals import REPEAT_S, handled

POLL_S = 0.2

STOP_S = 9.0
"""How long runs have to bring everything to the disk when asked to stop."""

IN_VAIN = (2, 3)
"""Exit codes of a run that would fail in the same way again: for wrong usage, or on any device."""


@dataclass(frozen=True)
class _Try:
    run: Run
    attempt: int = 1
    avoid: str | None = None
    """Name of the device on which the last attempt failed."""

    num_spared: int = 0
    """How many of its attempts ended only because too many runs were trained side by side."""


@dataclass(frozen=True)
class _Worker:
    task: _Try
    slot: Slot
    job: str
    started_s: float


def train_all(
    experiment: ResolvedExperiment,
    runs: Sequence[Run],
    slots: Sequence[Slot],
    *,
    work: Work,
    events: EventLog,
    finished: Callable[[int], object],
    launcher: Launcher | None = None,
    keeps_all: bool = True,
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
        launcher: What starts them; None = the one that the config asks for.
        keeps_all: Whether a run that is interrupted goes on with what it has.

    Raises:
        Interrupted: On a signal, after every run has been stopped.
        RunError: If another process has taken over the experiment's lock; every run has been killed then.
    """
    launcher = launcher or find_launcher(experiment)
    with _caught_signals() as signals, Progress(experiment, runs) as progress:
        launch = _Launch(launcher, runs, slots, work, events, progress, finished)
        outcomes = launch.train(signals)
        if outcomes is None:
            raise Interrupted(signals[0], keeps_all=keeps_all)
        return outcomes


class _Launch:
    """The loop of `train_all` and what it keeps account of."""

    def __init__(
        self,
        launcher: Launcher,
        runs: Sequence[Run],
        slots: Sequence[Slot],
        work: Work,
        events: EventLog,
        progress: Progress,
        finished: Callable[[int], object],
    ) -> None:
        self.launcher, self.experiment = launcher, launcher.experiment
        self.work, self.events, self.progress, self.finished = work, events, progress, finished
        self.max_retries = self.experiment.config.launch.max_retries
        self.waiting = deque(_Try(run) for run in runs)
        self.free = list(slots)
        self.workers: list[_Worker] = []
        self.outcomes: list[Outcome] = []
        self.max_at_once = len(slots)

    def train(self, signals: list[int]) -> list[Outcome] | None:
        """Trains every run and returns how each ended; None if a signal came."""
        try:
            while self.waiting or self.workers:
                self._start_waiting()
                ended = self._wait()
                check_held(self.experiment.paths.folder, look=False)
                if signals:
                    self._stop(signals)
                    return None
                for worker, state in ended:
                    self._collect(worker, state)
                self.progress.update()
        finally:
            if self.workers:  # the lock is lost, or something unforeseen happened
                self.launcher.stop([worker.job for worker in self.workers], now=True)
        return sorted(self.outcomes, key=lambda outcome: outcome.run.index)

    def _start_waiting(self) -> None:
        while self.waiting and self.free and len(self.workers) < self.max_at_once:
            task = self.waiting.popleft()
            slot = next((slot for slot in self.free if slot.name != task.avoid), self.free[0])
            self.free.remove(slot)
            self.workers.append(self._start(task, slot))

    def _start(self, task: _Try, slot: Slot) -> _Worker:
        check_held(self.experiment.paths.folder)
        paths, run = self.experiment.paths, task.run
        job = self.launcher.start(
            [
                Task(
                    run,
                    slot,
                    paths.run(run.index).log,
                    attended_command(paths, run, attempt=task.attempt),
                    attempt=task.attempt,
                    work=self.work,
                    note=self.events.write,
                )
            ]
        )[0]
        state = self.launcher.look([job]).get(job)
        self.events.write(
            "run_started",
            run=run.index,
            seed=run.seed,
            device=slot.name,
            attempt=task.attempt,
            pid=None if state is None else state.pid,
        )
        return _Worker(task, slot, job, time.monotonic())

    def _wait(self) -> list[tuple[_Worker, JobState]]:
        """Waits a moment, and returns the jobs that have ended."""
        began_s = time.monotonic()
        gone = JobState("failed", "its job is gone")
        states = self.launcher.look([worker.job for worker in self.workers], wait_s=POLL_S)
        ended = [(worker, states.get(worker.job, gone)) for worker in self.workers]
        ended = [(worker, state) for worker, state in ended if not state.is_active]
        if not ended:
            time.sleep(max(0.0, began_s + POLL_S - time.monotonic()))
        return ended

    def _collect(self, worker: _Worker, state: JobState) -> None:
        self.workers.remove(worker)
        self.free.append(worker.slot)
        task, elapsed_s = worker.task, time.monotonic() - worker.started_s
        failure = self._failure(worker, state)
        if failure is None:
            self.events.write(
                "run_finished",
                run=task.run.index,
                device=worker.slot.name,
                attempt=task.attempt,
                seconds=round(elapsed_s, 3),
            )
            self.finished(task.run.index)
        elif self._retry(worker, state, failure):
            return
        else:
            experiment = self.experiment
            give_up(experiment.paths, experiment.config, task.run, failure, attempt=task.attempt)
        self.outcomes.append(Outcome(task.run, worker.slot.name, task.attempt, elapsed_s, failure))
        self.progress.ended(task.run, failure)

    def _failure(self, worker: _Worker, state: JobState) -> str | None:
        """Returns in one line why a run has not finished; None if it has."""
        paths = self.experiment.paths.run(worker.task.run.index)
        if paths.recording.exists():
            return None  # whole, whatever happened to the process after that
        if not paths.folder.is_dir():
            return (
                f"{paths.folder} was removed or renamed while it was trained; the same command begins it anew"
            )
        if state.exit_code is None:
            return state.words or "its job ended without a word"
        return describe_exit(paths, state.exit_code, state.pid)

    def _retry(self, worker: _Worker, state: JobState, failure: str) -> bool:
        """Puts a failed run back in the queue, if it may be tried again."""
        task, num_spared = worker.task, worker.task.num_spared
        if state.exit_code in (-signal.SIGKILL, None) and self._train_fewer() and self.max_retries:
            num_spared += 1
        may_retry = task.attempt - num_spared <= self.max_retries
        paths = self.experiment.paths.run(task.run.index)
        # A folder that somebody has removed stays removed until somebody asks for the run again.
        will_retry = may_retry and state.exit_code not in IN_VAIN and paths.folder.is_dir()
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
            self.waiting.append(_Try(task.run, task.attempt + 1, worker.slot.name, num_spared))
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
        self.launcher.stop([worker.job for worker in self.workers], now=False)
        deadline_s = time.monotonic() + STOP_S
        while self.workers and len(signals) == 1 and time.monotonic() < deadline_s:
            for worker, _ in self._wait():
                self.workers.remove(worker)
        self.launcher.stop([worker.job for worker in self.workers], now=True)
        self.workers = []


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
