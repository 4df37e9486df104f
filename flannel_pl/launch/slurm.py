"""Hands an experiment to Slurm: an array job with a task for every run, and a job after it that gathers.

A task is a plain `flannel-pl fit --config run_i/config.yaml`, run by `slurm_task.sh`, which starts it again
when it fails and puts it back into the queue before a time limit. Which jobs these are is noted in
`slurm.json`, so that the same command finds them again instead of submitting anything twice. Their comment
tells them too, should that note not have come about.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import xxhash

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import Experiment, ExperimentPaths, Run, Slot
from flannel_pl.launch.slurm_commands import (
    cancel,
    job_states,
    jobs_with_comment,
    max_array_size,
    sbatch,
    set_array_limit,
)
from flannel_pl.launch.slurm_slots import WARNING_S
from flannel_pl.launch.submission import (
    ARRAY_LIMIT,
    ArrayJob,
    Submission,
    setting_changes,
    settings_of,
)
from flannel_pl.recording.writing.journal import Journal

TASK_SCRIPT = Path(__file__).with_name("slurm_task.sh")

JOB_VARIABLE = "FLANNEL_PL_JOB_OF"
"""Tells the process of a task whose job it is: the experiment's folder."""

FORGOTTEN_S = 24 * 3600.0
"""Where Slurm cannot be asked, jobs that nothing was heard of for so long are taken for ended."""

# Trains the run that the task's number, counted from the array's first run, stands for.
_FIT = f"""\
run=$1/run_$(($2 + SLURM_ARRAY_TASK_ID))
printf '%s\\0' "$0" "$run" >"$FLANNEL_PL_TELL"
{JOB_VARIABLE}="$1" exec "$0" -m flannel_pl fit --config "$run/config.yaml"
"""

_GATHER = '"$0" -m flannel_pl.launch.giving_up "$1"; exec "$0" -m flannel_pl gather "$1"'


@dataclasses.dataclass(frozen=True)
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
        return [ArrayPart(0, tuple(runs), "run_%a")]
    num_digits = len(str(max_tasks)) - 1
    parts = []
    for leading, group in itertools.groupby(runs, lambda run: run // 10**num_digits):
        task = "%a" if leading == 0 else f"{leading}%{num_digits}a"  # e.g. 1%3a for runs 1000 to 1999
        folder = f"run_{task if num_digits else leading}"
        parts.append(ArrayPart(leading * 10**num_digits, tuple(group), folder))
    return parts


def submit(experiment: Experiment, runs: Sequence[Run], slot: Slot, *, gathers: bool) -> Submission:
    """Submits an array job with a task for each run, and a job that gathers once all of them have ended.

    Only one process at a time may do so for an experiment.

    Args:
        experiment: What the runs belong to; the runs' config files are written.
        runs: The runs to train.
        slot: What each of them gets.
        gathers: Whether the second job is wanted.

    Raises:
        UserError: If Slurm refuses a job, or has jobs of this folder that `slurm.json` does not tell of.
        RunError: If Slurm does not answer, or the disk fails. Whatever happens, jobs that were submitted
            before it are cancelled; if even that fails, `slurm.json` names them.
    """
    paths, slurm = experiment.paths, experiment.config["launch"]["slurm"]
    _refuse_strays(paths)
    numbers = tuple(run.index for run in runs)
    submission = Submission((), None, numbers, settings_of(experiment.config), time.time())
    try:
        for part in array_parts(numbers, max_tasks=max_array_size()):
            options = _array_options(experiment, part, slot, after=submission.jobs)
            task = ["bash", "-c", _FIT, sys.executable, str(paths.folder), str(part.first_run)]
            job = _sbatch(experiment, options, [str(experiment.config["launch"]["max_retries"]), *task])
            arrays = (*submission.arrays, ArrayJob(job, part.first_run))
            submission = dataclasses.replace(submission, arrays=arrays)
            submission.write(paths)
        if gathers:
            options = [
                f"--job-name={paths.name}-gather",
                f"--dependency=afterany:{':'.join(submission.jobs)}",
            ]
            options += [f"--output={_literal(paths.gather_log)}"]
            options += [option for option in slurm["extra"] if not option.startswith(("--gres", "--gpus"))]
            gather = ["bash", "-c", _GATHER, sys.executable, str(paths.folder)]
            submission = dataclasses.replace(
                submission, gather_job=_sbatch(experiment, options, ["0", *gather])
            )
            submission.write(paths)
    except BaseException:
        _take_back(submission, paths)
        raise
    return submission


def _array_options(experiment: Experiment, part: ArrayPart, slot: Slot, *, after: Sequence[str]) -> list[str]:
    """Returns what an array job is asked for; `after` are the arrays before it."""
    paths, slurm = experiment.paths, experiment.config["launch"]["slurm"]
    limit = "" if slurm["array_limit"] is None else f"%{slurm['array_limit']}"
    tasks = _ranges([run - part.first_run for run in part.runs])
    options = [f"--job-name={paths.name}", f"--array={tasks}{limit}", f"--cpus-per-task={slot.threads}"]
    if limit and after:  # the limit holds for all of the runs
        options.append(f"--dependency=afterany:{after[-1]}")
    options += ["--gres=gpu:1"] * (slurm["gpus_per_run"] == 1 and slot.accelerator == "cuda")
    options.append(f"--output={_literal(paths.folder)}/{part.folder}/{paths.run(0).log.name}")
    return [*options, *slurm["extra"]]


def _sbatch(experiment: Experiment, options: Sequence[str], arguments: Sequence[str]) -> str:
    slurm = experiment.config["launch"]["slurm"]
    common = ["--requeue", "--open-mode=append", f"--signal=B:USR1@{WARNING_S}", "--ntasks=1"]
    common += [f"--comment={_comment(experiment.paths)}"]
    common += [f"--partition={slurm['partition']}"] * (slurm["partition"] is not None)
    common += [f"--time={slurm['time']}"] * (slurm["time"] is not None)
    return sbatch([*common, *options], str(TASK_SCRIPT), arguments)


def _take_back(submission: Submission, paths: ExperimentPaths) -> None:
    """Cancels what was submitted: jobs that nobody knows of would train behind the next attempt's back."""
    jobs = submission.jobs
    with contextlib.suppress(RunError):  # one that Slurm took without getting to say so
        jobs = sorted({*jobs, *jobs_with_comment(_comment(paths))})
    try:
        if jobs:
            cancel(jobs)
        paths.slurm.unlink(missing_ok=True)
    except (RunError, OSError) as error:
        print(f"flannel-pl: {error} These jobs are with Slurm still: {' '.join(jobs)}", file=sys.stderr)


def _refuse_strays(paths: ExperimentPaths) -> None:
    """Refuses to submit anything beside jobs of the folder that `slurm.json` does not tell of.

    Raises:
        UserError: If there are any.
        RunError: If Slurm does not answer.
    """
    if strays := jobs_with_comment(_comment(paths)):
        raise UserError(
            f"{paths.folder} has jobs with Slurm that its {paths.slurm.name} does not tell of, of a start "
            f"that was cut off; end them with: scancel {' '.join(strays)}, and start this command again"
        )


def _comment(paths: ExperimentPaths) -> str:
    """Returns the comment by which the jobs of a folder are found; short, and of plain letters."""
    return f"flannel-pl {xxhash.xxh3_64_hexdigest(os.fsencode(paths.folder))}"


def find_submission(paths: ExperimentPaths) -> Submission | None:
    """Returns the jobs that an experiment was handed to Slurm as, if they are still going to do something.

    Raises:
        RunError: If Slurm does not answer.
    """
    submission = Submission.read(paths)
    if submission is None or not submission.jobs:
        return None
    states = job_states(submission.jobs)
    return submission if any(state.is_active for state in states.values()) else None


def settle(experiment: Experiment, submission: Submission) -> Submission:
    """Brings jobs in line with what is asked for now: another `array_limit` they are told, and it is said.

    Args:
        experiment: What is asked for.
        submission: Jobs that are still going to do something.

    Returns:
        The jobs as they are now.

    Raises:
        UserError: If they were submitted with anything else that cannot be changed any more.
        RunError: If Slurm does not answer.
    """
    changes = setting_changes(submission, experiment.config)
    limits = changes.pop(ARRAY_LIMIT, None)
    if limits is not None and None in limits and len(submission.arrays) > 1:
        changes[ARRAY_LIMIT] = limits  # arrays wait for each other, or do not
    if changes:
        differing = "; ".join(
            f"{key}: {json.dumps(theirs)} there, {json.dumps(ours)} now"
            for key, (theirs, ours) in changes.items()
        )
        raise UserError(
            f"the jobs of {experiment.paths.folder} are with Slurm with other settings ({differing}). Repeat "
            f"what they were submitted with; or end them, with a checkpoint each, with: "
            f"scancel {' '.join(submission.jobs)}, and start this command again"
        )
    if limits is None:
        return submission
    for array in submission.arrays:
        set_array_limit(array.job, limits[1])
    before, now = (json.dumps(limit) for limit in limits)
    print(f"{ARRAY_LIMIT} of the jobs is {now} now, it was {before}")
    submission = dataclasses.replace(submission, settings=settings_of(experiment.config))
    submission.write(experiment.paths)
    return submission


def refuse_beside_jobs(paths: ExperimentPaths) -> None:
    """Refuses to train on this host while jobs of the folder are with Slurm. A task of theirs may, of course.

    Raises:
        UserError: If there are such jobs, or may be.
        RunError: If Slurm does not answer.
    """
    submission = Submission.read(paths)
    if submission is None or not submission.jobs or _is_task_of(paths, submission):
        return
    if shutil.which("squeue") is None:
        _judge_by_age(paths, submission)
    elif find_submission(paths) is not None:
        jobs = " ".join(submission.jobs)
        raise UserError(
            f"{paths.folder} is with Slurm, as {jobs}, and is not trained here beside that. Look at it with "
            f"--launch.launcher slurm; or end the jobs, with a checkpoint each, with: scancel {jobs}, and "
            "start this command again"
        )


def _judge_by_age(paths: ExperimentPaths, submission: Submission) -> None:
    """Takes jobs that cannot be asked for for ended, if nothing has been heard of them for long."""
    noted_s = paths.slurm.stat().st_mtime
    signs_s = [min(noted_s, submission.submitted_s or noted_s)]
    for run in submission.runs:
        with contextlib.suppress(RunError, OSError, ValueError, TypeError, KeyError):
            entry = Journal(paths.run(run).journal).read()
            if entry is not None and entry.host != socket.gethostname():  # not what was trained here since
                signs_s.append(entry.updated_s)
    hours = (time.time() - max(signs_s)) / 3600
    told = (
        f"{paths.folder} was handed to Slurm, as {' '.join(submission.jobs)}, and there is no squeue here to "
        f"ask what became of that. The last sign of life is {hours:.1f} hours old"
    )
    if hours * 3600 < FORGOTTEN_S:
        raise UserError(
            f"{told}. Start this command on a host of the cluster; or, if those jobs have ended, move "
            f"{paths.slurm} away first"
        )
    print(f"flannel-pl: {told}, so the jobs are taken for ended", file=sys.stderr)


def _is_task_of(paths: ExperimentPaths, submission: Submission) -> bool:
    """Whether this process is a task of the jobs. Jobs of an older version know by their number alone."""
    ours = {os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID")}
    return os.environ.get(JOB_VARIABLE) == str(paths.folder) or bool(ours & {*submission.jobs})


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
