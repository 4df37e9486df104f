"""Hands runs to Slurm: an array job with a task for every run, and a job after it that gathers.

Jobs are found by their comment as well, should a note of them not have come about.
"""

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from typing_extensions import override

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths
from flannel_pl.launch.launcher import Capacity, JobState, Launcher, Task
from flannel_pl.launch.launchers.slurm.commands import (
    cancel,
    check_slurm,
    jobs_with_comment,
    max_array_size,
    sbatch,
    set_array_limit,
    task_states,
)
from flannel_pl.launch.launchers.slurm.settings import SlurmConfig
from flannel_pl.launch.launchers.slurm.slots import WARNING_S, slurm_slots
from flannel_pl.paths import run_folder
from flannel_pl.recording.experiment_record import ExperimentRecord

TASK_SCRIPT = Path(__file__).with_name("task.sh")
_BATCH_SCRIPT = Path(__file__).with_name("batch.sh")

# A task of an array runs the command of the array's first run, with its own number added to that run's.
_OF_TASK = 'exec "${@:1:$#-1}" "$((${!#} + SLURM_ARRAY_TASK_ID))"'

_ORDINARY = {"None", "Dependency"}
"""Reasons to wait that need no explanation."""


@dataclass(frozen=True)
class ArrayPart:
    """The runs of one array job."""

    first_run: int
    """What its task 0 would train."""

    runs: tuple[int, ...]
    folder: str
    """Name of the folder of a task's run, as sbatch writes it."""


def array_parts(runs: Sequence[int], *, max_tasks: int) -> list[ArrayPart]:
    """Spreads runs over array jobs.

    Where one is not enough, each has the runs that agree in all but their last digits: sbatch can put a
    task's number, filled up with zeros, into the name of a log, but no sum with it.

    Args:
        runs: Increasing numbers.
        max_tasks: What a task's number has to stay below.
    """
    if not runs or runs[-1] < max_tasks:
        return [ArrayPart(0, tuple(runs), run_folder("%a"))]
    num_digits = len(str(max_tasks)) - 1
    parts = []
    for leading, group in itertools.groupby(runs, lambda run: run // 10**num_digits):
        task = "%a" if leading == 0 else f"{leading}%{num_digits}a"  # e.g. 1%3a for runs 1000 to 1999
        folder = run_folder(task if num_digits else leading)
        parts.append(ArrayPart(leading * 10**num_digits, tuple(group), folder))
    return parts


class SlurmLauncher(Launcher):
    """A task of an array job per run, named as Slurm names it, e.g. 12_3."""

    outlives = True
    settings = SlurmConfig
    title = "Slurm"

    own: SlurmConfig
    _arrays: tuple[str, ...] = ()
    """Array jobs that were submitted by this command."""

    @override
    def check(self) -> None:
        check_slurm()

    @override
    def capacity(self, *, num_runs: int, record: ExperimentRecord | None) -> Capacity:
        experiment = self.experiment
        slots = slurm_slots(
            experiment.config,
            self.own,
            folder=experiment.paths.folder,
            num_runs=num_runs,
            record=record,
        )
        return Capacity(slots, queues=True, elsewhere=True)

    @override
    def start(self, tasks: Sequence[Task]) -> list[str]:
        paths = self.experiment.paths
        if tasks[0].run is None:
            return [self._sbatch(self._gather_options(tasks[0]), tasks[0].retries, tasks[0].command)]
        if not self._arrays:
            _refuse_strays(paths)
        numbers = [task.run.index for task in tasks if task.run is not None]
        part = array_parts(numbers, max_tasks=max_array_size())[0]
        command = [*tasks[0].command[:-1], str(part.first_run)]
        options = self._array_options(part, tasks[0])
        job = self._sbatch(options, tasks[0].retries, ["bash", "-c", _OF_TASK, "bash", *command])
        self._arrays = (*self._arrays, job)
        return [f"{job}_{run - part.first_run}" for run in part.runs]

    def _array_options(self, part: ArrayPart, task: Task) -> list[str]:
        paths = self.experiment.paths
        limit = "" if self.own.array_limit is None else f"%{self.own.array_limit}"
        tasks = _ranges([run - part.first_run for run in part.runs])
        options = [f"--job-name={paths.name}", f"--array={tasks}{limit}"]
        options.append(f"--cpus-per-task={task.slot.threads}")
        if limit and self._arrays:  # the limit holds for all of the runs
            options.append(f"--dependency=afterany:{self._arrays[-1]}")
        options += ["--gres=gpu:1"] * (self.own.gpus_per_run == 1 and task.slot.accelerator == "cuda")
        options.append(f"--output={_literal(paths.folder)}/{part.folder}/{task.log.name}")
        return [*options, *self.own.extra]

    def _gather_options(self, task: Task) -> list[str]:
        options = [
            f"--job-name={self.experiment.paths.name}-gather",
            f"--dependency=afterany:{':'.join(self.short(task.after))}",
            f"--output={_literal(task.log)}",
        ]
        return options + [option for option in self.own.extra if not option.startswith(("--gres", "--gpus"))]

    def _sbatch(self, options: Sequence[str], retries: int, command: Sequence[str]) -> str:
        common = ["--requeue", "--open-mode=append", f"--signal=B:USR1@{WARNING_S}", "--ntasks=1"]
        common += [f"--comment={_comment(self.experiment.paths)}"]
        common += [f"--partition={self.own.partition}"] * (self.own.partition is not None)
        common += [f"--time={self.own.time}"] * (self.own.time is not None)
        words = [str(TASK_SCRIPT), str(retries), *command]
        return sbatch([*common, *options], str(_BATCH_SCRIPT), words)

    @override
    def look(self, jobs: Sequence[str], *, wait_s: float = 0.0) -> Mapping[str, JobState]:
        states = task_states(self.short(jobs))
        return {job: _told(*states[job]) for job in jobs if job in states}

    @override
    def stop(self, jobs: Sequence[str], *, now: bool) -> None:
        known = self.short(jobs)
        if now:  # and one that Slurm took without getting to say so
            with contextlib.suppress(RunError):
                known = sorted({*known, *jobs_with_comment(_comment(self.experiment.paths))})
        if known:
            cancel(known)

    @override
    def stop_command(self, jobs: Sequence[str]) -> str:
        return f"scancel {' '.join(self.short(jobs))}"

    @override
    def short(self, jobs: Sequence[str]) -> list[str]:
        """Returns the numbers of whole jobs, as Slurm's commands want them."""
        return list(dict.fromkeys(match[0] for job in jobs if (match := re.match(r"\d+", job))))

    @override
    def describe(self, jobs: Sequence[str]) -> str:
        return f"array job {' and '.join(self.short(jobs))} of {len(jobs)} runs"

    @override
    def why_silent(self) -> str:
        return "" if shutil.which("squeue") else "there is no squeue here"

    @override
    def is_inside(self, jobs: Sequence[str]) -> bool:
        """Tells it by the number alone, as jobs of an older version know it."""
        ours = {os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID")}
        return bool(ours & {*self.short(jobs)})

    @override
    def adjust(self, jobs: Sequence[str], changes: Mapping[str, tuple[Any, Any]]) -> set[str]:
        """Tells jobs another `array_limit`; arrays wait for each other, or do not, so not always."""
        arrays, limit = self.short(jobs), f"launch.{self.name}.array_limit"
        stuck = {key for key in changes if key != limit}
        if limit in changes and None in changes[limit] and len(arrays) > 1:
            stuck.add(limit)
        if not stuck and limit in changes:
            for array in arrays:
                set_array_limit(array, changes[limit][1])
        return stuck


def _told(state: str, reason: str) -> JobState:
    """Returns what Slurm says of a task or job: its state, e.g. RUNNING, and why it is pending."""
    if state == "PENDING":
        return JobState("waiting", "" if reason in _ORDINARY else reason)
    if state == "COMPLETED":
        return JobState("done", state)
    if state in {"CANCELLED", "PREEMPTED", "REVOKED"}:
        return JobState("stopped", state)
    if state in {"BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}:
        return JobState("failed", state)
    return JobState("running", state)


def _refuse_strays(paths: ExperimentPaths) -> None:
    """Refuses to submit anything beside jobs of the folder that are noted nowhere.

    Raises:
        UserError: If there are any.
        RunError: If Slurm does not answer.
    """
    if strays := jobs_with_comment(_comment(paths)):
        raise UserError(
            f"{paths.folder} has jobs with Slurm that its {paths.jobs.name} does not tell of, of a start "
            f"that was cut off; end them with: scancel {' '.join(strays)}, and start this command again"
        )


def _comment(paths: ExperimentPaths) -> str:
    """Returns the comment by which the jobs of a folder are found; short, and of plain letters."""
    return f"flannel-pl {xxhash.xxh3_64_hexdigest(os.fsencode(paths.folder))}"


def _ranges(numbers: Sequence[int]) -> str:
    """Returns increasing numbers as sbatch writes them, e.g. 0-4,7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _literal(path: Path) -> str:
    """Returns a path in which sbatch sees no pattern."""
    return str(path).replace("%", "%%")
