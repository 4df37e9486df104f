"""Watches jobs that outlive us until their launcher is through with them."""

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from flannel_pl.errors import RunError
from flannel_pl.experiment import ResolvedExperiment, Run
from flannel_pl.launch.giving_up import give_up, last_words
from flannel_pl.launch.jobs import Jobs
from flannel_pl.launch.launcher import JobState, Launcher
from flannel_pl.launch.progress import Progress
from flannel_pl.launch.standing import Outcome, RunStatus
from flannel_pl.launch.status import collect_status

LOOK_S = 0.5

PATIENCE_S = 600.0
"""How long a launcher may not answer; a cluster's controller is restarted at times."""

SETTLE_S = 60.0
"""How long a shared folder may take to show here what a job on another host has finished."""


def wait_for_jobs(launcher: Launcher, jobs: Jobs, runs: Sequence[Run], *, under_way: bool) -> list[Outcome]:
    """Shows how far the runs are until their jobs and the one that gathers have ended.

    The journals say how far a run is, the launcher only whether anything is still going to happen.

    Args:
        launcher: Whose the jobs are.
        jobs: The jobs of its experiment.
        runs: The runs that have one.
        under_way: Whether the jobs were started before, by an earlier command.

    Returns:
        How each run ended.

    Raises:
        RunError: If the launcher does not answer for many minutes.
    """
    experiment = launcher.experiment
    last_states: dict[str, JobState] = {}
    said, answered_s, ended = "", time.monotonic(), set[int]()
    with Progress(experiment, runs, under_way=under_way) as progress:
        while True:
            try:
                states = launcher.look(jobs.names)
            except RunError as error:
                if time.monotonic() - answered_s > PATIENCE_S:
                    raise
                if said != str(error):
                    said = str(error)
                    progress.note(f"{said} Waiting for it")
                _show_for(progress, launcher.query_s)
                continue
            answered_s = time.monotonic()
            last_states |= states
            if (news := _waiting_for(states)) != said:
                said = news
                progress.note(f"{launcher.title}: {said or 'nothing waits'}")
            for run in runs:
                if run.index not in ended and not _is_active(jobs, run, states):
                    ended.add(run.index)
                    progress.ended(run, _outcome(experiment, jobs, run, last_states).failure)
            if not any(state.is_active for state in states.values()):
                break
            _show_for(progress, launcher.query_s)
        return [_outcome(experiment, jobs, run, last_states) for run in runs]


def _is_active(jobs: Jobs, run: Run, states: Mapping[str, JobState]) -> bool:
    state = states.get(jobs.tasks[run.index])
    return state is not None and state.is_active


def _show_for(progress: Progress, seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        progress.update()
        time.sleep(LOOK_S)


def _waiting_for(states: Mapping[str, JobState]) -> str:
    """Returns what jobs wait for, as far as that needs explanation."""
    waiting = defaultdict(list)
    for job, state in states.items():
        if state.phase == "waiting" and state.words:
            waiting[state.words].append(job)
    return "; ".join(f"{len(jobs)} waiting ({reason})" for reason, jobs in sorted(waiting.items()))


def _outcome(experiment: ResolvedExperiment, jobs: Jobs, run: Run, states: Mapping[str, JobState]) -> Outcome:
    state = states.get(jobs.tasks[run.index])
    deadline_s = time.monotonic() + (SETTLE_S if state is not None and state.phase == "done" else 0.0)
    status = _status(experiment, run)
    while status.state != "done" and time.monotonic() < deadline_s:
        time.sleep(LOOK_S)
        status = _status(experiment, run)
    failure = None
    if status.state != "done":
        said = "its job is gone" if state is None else f"its job ended as {state.words or state.phase}"
        failure = f"{said}: {last_words(experiment.paths.run(run.index), None)}"
        # The script of a job that has failed may not have come to say so.
        told = status.state not in ("waiting", "running", "silent")
        if state is not None and state.phase == "failed" and not told:
            give_up(experiment.paths, experiment.config, run, failure)
    device = f"{status.device} on {status.host}" if status.host else status.device
    return Outcome(run, device, max(1, status.attempt), None, failure)


def _status(experiment: ResolvedExperiment, run: Run) -> RunStatus:
    with contextlib.suppress(OSError):
        os.listdir(experiment.paths.run(run.index).folder)  # noqa: PTH208 - makes NFS look again
    return collect_status(experiment.paths, experiment.config, [run]).runs[0]
