"""A launcher of one's own: processes of this host that go on when the command that started them is gone."""

import contextlib
import fcntl
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from flannel_pl.experiment import Slot
from flannel_pl.launch.launcher import Capacity, JobState, Launcher, threads_per_run

# A job waits for those before it. Each holds a lock on a file of its name as long as any process of it lives.
JOB = 'for job in $1; do until flock -sn "$0/$job" true; do sleep 0.2; done; done; shift; exec "$@"'


@dataclass
class BackgroundConfig:
    slots: int = 2
    """Runs trained side by side."""


class Background(Launcher):
    outlives, settings, title, query_s = True, BackgroundConfig, "the background", 1.0

    @property
    def locks(self) -> Path:
        return self.experiment.paths.folder / ".background"

    def capacity(self, *, num_runs, record):
        threads = threads_per_run(self.experiment.config, record, auto=1)
        return Capacity((Slot("cpu", None, threads),) * min(num_runs, self.own.slots))

    def start(self, tasks):
        task = tasks[0]
        self.locks.mkdir(exist_ok=True)
        with task.log.open("ab") as log, (self.locks / "new").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            command = ["bash", "-c", JOB, str(self.locks), " ".join(task.after), *task.job]
            files = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "pass_fds": [lock.fileno()]}
            process = subprocess.Popen(command, start_new_session=True, **files)
        (self.locks / "new").rename(self.locks / str(process.pid))
        process.returncode = 0  # whoever started it need not wait for it
        return [str(process.pid)]

    def look(self, jobs, *, wait_s=0.0):
        return {job: JobState("running" if self.is_alive(job) else "failed") for job in jobs}

    def is_alive(self, job):
        with contextlib.suppress(OSError), (self.locks / job).open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def stop(self, jobs, *, now):
        for job in filter(self.is_alive, jobs):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(job), signal.SIGKILL if now else signal.SIGTERM)

    def stop_command(self, jobs):
        return f"kill {' '.join(jobs)}"
