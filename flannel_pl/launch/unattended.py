"""Hands an experiment to a launcher whose jobs outlive us, and finds them again.

A job is a plain `flannel-pl fit --config run_i/config.yaml`, run by `job.sh`, which starts it again when it
fails. Which jobs these are is noted in `jobs.json`, so that the same command finds them again instead of
starting anything twice.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import time
from collections.abc import Sequence

from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths, ResolvedExperiment, Run
from flannel_pl.launch.jobs import Jobs, setting_changes, settings_of
from flannel_pl.launch.launcher import Capacity, Launcher, Task, find_launcher
from flannel_pl.launch.tasks import JOB_VARIABLE, gather_command, run_command
from flannel_pl.recording.writing.journal import Journal

FORGOTTEN_S = 24 * 3600.0
"""Where nobody can be asked, jobs that nothing was heard of for so long are taken for ended."""


def submit(launcher: Launcher, runs: Sequence[Run], capacity: Capacity, *, gathers: bool) -> Jobs:
    """Starts a job for each run, and one that gathers once all of them have ended.

    Where the launcher has no queue, a job waits for the one whose slot it gets. Only one process at a time
    may do so for an experiment.

    Args:
        launcher: Whose jobs they are to be.
        runs: The runs to train; their config files are written.
        capacity: What there is for them.
        gathers: Whether the last job is wanted.

    Raises:
        UserError: If a job is refused.
        RunError: If the launcher does not answer, or the disk fails. Whatever happens, jobs that were started
            before it are stopped; if even that fails, `jobs.json` names them.
    """
    experiment = launcher.experiment
    jobs = Jobs(launcher.name, {}, None, settings_of(experiment.config), time.time())
    slots, retries = capacity.slots, experiment.config.launch.max_retries

    def task_of(place: int) -> Task:
        run, started = runs[place], list(jobs.tasks.values())
        after = () if capacity.queues or place < len(slots) else (started[place - len(slots)],)
        log, command = experiment.paths.run(run.index).log, run_command(experiment.paths, run)
        return Task(run, slots[place % len(slots)], log, command, retries, after)

    try:
        while (begun := len(jobs.tasks)) < len(runs):
            end = len(runs) if capacity.queues else min(len(runs), begun + len(slots))
            names = launcher.start([task_of(place) for place in range(begun, end)])
            started = zip((run.index for run in runs[begun:]), names, strict=False)
            jobs = dataclasses.replace(jobs, tasks={**jobs.tasks, **dict(started)})
            jobs.write(experiment.paths)
        if gathers:
            log, command = experiment.paths.gather_log, gather_command(experiment.paths)
            task = Task(None, slots[0], log, command, after=tuple(jobs.tasks.values()))
            jobs = dataclasses.replace(jobs, gather=launcher.start([task])[0])
            jobs.write(experiment.paths)
    except BaseException:
        _take_back(launcher, jobs)
        raise
    return jobs


def _take_back(launcher: Launcher, jobs: Jobs) -> None:
    """Stops what was started: jobs that nobody knows of would train behind the next attempt's back."""
    try:
        launcher.stop(jobs.names, now=True)
        launcher.experiment.paths.jobs.unlink(missing_ok=True)
    except (RunError, OSError) as error:
        names = " ".join(launcher.short(jobs.names))
        print(f"flannel-pl: {error} These jobs are with {launcher.title} still: {names}", file=sys.stderr)


def find_jobs(launcher: Launcher) -> Jobs | None:
    """Returns the jobs that a launcher has of its experiment, if they are still going to do something.

    Raises:
        RunError: If it does not answer.
    """
    jobs = Jobs.read(launcher.experiment.paths)
    if jobs is None or jobs.launcher != launcher.name or not jobs.names:
        return None
    states = launcher.look(jobs.names)
    return jobs if any(state.is_active for state in states.values()) else None


def settle(launcher: Launcher, jobs: Jobs) -> Jobs:
    """Brings jobs in line with what is asked for now, where the launcher can, and says so.

    Args:
        launcher: Whose they are.
        jobs: Jobs that are still going to do something.

    Returns:
        The jobs as they are now.

    Raises:
        UserError: If they were started with anything that cannot be changed any more.
        RunError: If the launcher does not answer.
    """
    experiment = launcher.experiment
    changes = setting_changes(jobs, experiment.config)
    if not changes:
        return jobs
    texts = {key: [json.dumps(value) for value in values] for key, values in changes.items()}
    if stuck := launcher.adjust(list(jobs.tasks.values()), changes):
        differing = "; ".join(
            f"{key}: {there} there, {now} now" for key, (there, now) in texts.items() if key in stuck
        )
        raise UserError(
            f"the jobs of {experiment.paths.folder} are with {launcher.title} with other settings "
            f"({differing}). Repeat what they were submitted with; or end them, with a checkpoint each, "
            f"with: {launcher.stop_command(jobs.names)}, and start this command again"
        )
    for key, (before, now) in texts.items():
        print(f"{key} of the jobs is {now} now, it was {before}")
    jobs = dataclasses.replace(jobs, settings=settings_of(experiment.config))
    jobs.write(experiment.paths)
    return jobs


def refuse_beside_jobs(experiment: ResolvedExperiment) -> None:
    """Refuses to train while jobs of another launcher train in the folder. One of themselves may, of course.

    Raises:
        UserError: If there are such jobs, or may be.
        RunError: If their launcher does not answer.
    """
    paths = experiment.paths
    jobs = Jobs.read(paths)
    if jobs is None or not jobs.names or jobs.launcher == experiment.config.launch.launcher:
        return
    if os.environ.get(JOB_VARIABLE) == str(paths.folder):
        return
    try:
        launcher = find_launcher(experiment, jobs.launcher)
    except UserError:
        _judge_by_age(paths, jobs, jobs.names, f"there is no launcher {jobs.launcher} here")
        return
    names = launcher.short(jobs.names)
    if launcher.is_inside(jobs.names):
        return
    if reason := launcher.why_silent():
        _judge_by_age(paths, jobs, names, reason, title=launcher.title)
    elif find_jobs(launcher) is not None:
        raise UserError(
            f"{paths.folder} is with {launcher.title}, as {' '.join(names)}, and is not trained here beside "
            f"that. Look at it with --launch.launcher {launcher.name}; or end the jobs, with a checkpoint "
            f"each, with: {launcher.stop_command(jobs.names)}, and start this command again"
        )


def _judge_by_age(
    paths: ExperimentPaths, jobs: Jobs, names: Sequence[str], reason: str, *, title: str | None = None
) -> None:
    """Takes jobs that cannot be asked for for ended, if nothing has been heard of them for long."""
    noted_s = paths.noted_jobs.stat().st_mtime
    signs_s = [min(noted_s, jobs.submitted_s or noted_s)]
    for run in jobs.tasks:
        with contextlib.suppress(RunError, OSError, ValueError, TypeError, KeyError):
            entry = Journal(paths.run(run).journal).read()
            if entry is not None and entry.host != socket.gethostname():  # not what was trained here since
                signs_s.append(entry.updated_s)
    hours = (time.time() - max(signs_s)) / 3600
    told = (
        f"{paths.folder} was handed to {title or jobs.launcher}, as {' '.join(names)}, and {reason} to ask "
        f"what became of that. The last sign of life is {hours:.1f} hours old"
    )
    if hours * 3600 < FORGOTTEN_S:
        raise UserError(
            f"{told}. Start this command on a host of the cluster; or, if those jobs have ended, move "
            f"{paths.noted_jobs} away first"
        )
    print(f"flannel-pl: {told}, so the jobs are taken for ended", file=sys.stderr)
