"""Trains each run in a process of its own on this host.

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
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from typing_extensions import override

from flannel_pl.errors import RunError
from flannel_pl.experiment import ResolvedExperiment
from flannel_pl.launch.devices import seen_alone
from flannel_pl.launch.fork_server import start_deaf, start_fork_server, start_method
from flannel_pl.launch.launcher import Capacity, JobState, Launcher, Task
from flannel_pl.launch.launchers.local.capacity import capacity_here
from flannel_pl.recording.experiment_record import ExperimentRecord
from flannel_pl.signals import stop_signal

SERVER_ENDS_S = 0.2
"""How long a fork server that was killed may seem to be there."""

UNKNOWN = 255
"""Exit code that `multiprocessing` makes up when the fork server has died and nobody can tell a run's own."""

_ORPHANED = JobState(
    "failed", "the process that it was forked from was killed (by hand, or because memory ran out)"
)


class LocalLauncher(Launcher):
    """A process per job, named by its number."""

    alone_here = True

    def __init__(self, name: str, experiment: ResolvedExperiment) -> None:
        super().__init__(name, experiment)
        self._processes: dict[str, BaseProcess] = {}

    @override
    def capacity(self, *, num_runs: int, record: ExperimentRecord | None) -> Capacity:
        return capacity_here(self.experiment, num_runs=num_runs, record=record)

    @override
    def start(self, tasks: Sequence[Task]) -> list[str]:
        task = tasks[0]
        if task.slot.accelerator == "cuda":
            assert task.slot.device is not None
            slot = dataclasses.replace(task.slot, environment=seen_alone(task.slot.device))
            task = dataclasses.replace(task, slot=slot)
        try:
            try:
                process = self._start_process(task)
            except ConnectionRefusedError:  # killed a moment ago, so that it still seemed to be there
                time.sleep(SERVER_ENDS_S)
                process = self._start_process(task)
        except (EOFError, ConnectionError) as error:
            raise RunError(
                f"The process that runs are forked from ended while it started {task.name}: memory "
                "has run out, or the system allows no more processes (ulimit -u). Nothing is lost; make room "
                "and start again."
            ) from error
        self._processes[str(process.pid)] = process
        return [str(process.pid)]

    def _start_process(self, task: Task) -> BaseProcess:
        assert task.work is not None
        method = start_method(task.slot.accelerator)
        if method == "forkserver":
            start_fork_server(task.work.__module__)  # unless it is there
        arguments = (self.experiment, task.run, task.slot, task.attempt, task.note)
        context = multiprocessing.get_context(method)
        process: BaseProcess = context.Process(  # type: ignore[attr-defined]  # of every context but the base
            target=task.work, args=arguments, name=task.name
        )
        # Until it has a session of its own, Ctrl-C reaches a new process as well; `stop` tells it to stop.
        start_deaf(process.start, [signal.SIGINT])
        return process

    @override
    def look(self, jobs: Sequence[str], *, wait_s: float = 0.0) -> Mapping[str, JobState]:
        wait([self._processes[job].sentinel for job in jobs], timeout=wait_s)
        return {job: _state(self._processes[job]) for job in jobs}

    @override
    def stop(self, jobs: Sequence[str], *, now: bool) -> None:
        processes = [self._processes[job] for job in jobs]
        for process in processes:
            if now:
                process.kill()
            elif process.is_alive() and process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, stop_signal())
        if now:
            for process in processes:
                process.join()


def _state(process: BaseProcess) -> JobState:
    if process.is_alive():
        return JobState("running", pid=process.pid)
    if process.exitcode == UNKNOWN:
        _end_orphan(process)
        return _ORPHANED
    return JobState("failed" if process.exitcode else "done", exit_code=process.exitcode, pid=process.pid)


def _end_orphan(process: BaseProcess) -> None:
    """Kills a run of whose end nobody would hear, and which would keep its next attempt out."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getsid(process.pid) == process.pid:  # else the number is another process's by now
            os.kill(process.pid, signal.SIGKILL)
