"""Watches the jobs of an experiment until Slurm is through with them."""

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from flannel_pl.errors import RunError
from flannel_pl.experiment import Experiment, Run
from flannel_pl.launch.giving_up import give_up, last_words
from flannel_pl.launch.progress import Progress
from flannel_pl.launch.slurm_commands import JobState, job_states
from flannel_pl.launch.standing import Outcome, RunStatus
from flannel_pl.launch.status import collect_status
from flannel_pl.launch.submission import Submission

QUERY_S = 5.0
"""Time between two questions to Slurm, which serves others too."""

LOOK_S = 0.5

PATIENCE_S = 600.0
"""How long Slurm may not answer; its controller is restarted at times."""

SETTLE_S = 60.0
"""How long a shared folder may take to show here what a job on another host has finished."""

_ORDINARY = {"None", "Dependency"}

_CUT_OFF = {"BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
"""States of a job whose script may not have come to say that its run has failed."""


def wait_for_jobs(
    experiment: Experiment, submission: Submission, runs: Sequence[Run], *, under_way: bool
) -> list[Outcome]:
    """Shows how far the runs are until their jobs and the one that gathers have ended.

    The journals say how far a run is, Slurm only whether anything is still going to happen.

    Args:
        experiment: What the runs belong to.
        submission: Its jobs.
        runs: The runs that have a task.
        under_way: Whether the jobs were submitted before, by an earlier command.

    Returns:
        How each run ended.

    Raises:
        RunError: If Slurm does not answer for many minutes.
    """
    last_states: dict[str, JobState] = {}
    said, answered_s, ended = "", time.monotonic(), set[int]()
    with Progress(experiment, runs, under_way=under_way) as progress:
        while True:
            try:
                states = job_states(submission.jobs)
            except RunError as error:
                if time.monotonic() - answered_s > PATIENCE_S:
                    raise
                if said != str(error):
                    said = str(error)
                    progress.note(f"{said} Waiting for it")
                _show_for(progress, QUERY_S)
                continue
            answered_s = time.monotonic()
            last_states |= states
            if (news := _waiting_for(states)) != said:
                said = news
                progress.note(f"Slurm: {said or 'nothing waits'}")
            for run in runs:
                if run.index not in ended and not _is_active(submission, run, states):
                    ended.add(run.index)
                    progress.ended(run, _outcome(experiment, submission, run, last_states).failure)
            if not any(state.is_active for state in states.values()):
                break
            _show_for(progress, QUERY_S)
        return [_outcome(experiment, submission, run, last_states) for run in runs]


def _is_active(submission: Submission, run: Run, states: Mapping[str, JobState]) -> bool:
    state = states.get(submission.task(run.index))
    return state is not None and state.is_active


def _show_for(progress: Progress, seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        progress.update()
        time.sleep(LOOK_S)


def _waiting_for(states: Mapping[str, JobState]) -> str:
    """Returns what Slurm lets tasks wait for, unless that needs no explanation."""
    waiting = defaultdict(list)
    for job, state in states.items():
        if state.state == "PENDING" and state.reason not in _ORDINARY:
            waiting[state.reason].append(job)
    return "; ".join(f"{len(jobs)} waiting ({reason})" for reason, jobs in sorted(waiting.items()))


def _outcome(
    experiment: Experiment, submission: Submission, run: Run, states: Mapping[str, JobState]
) -> Outcome:
    state = states.get(submission.task(run.index))
    deadline_s = time.monotonic() + (SETTLE_S if state is not None and state.state == "COMPLETED" else 0.0)
    status = _status(experiment, run)
    while status.state != "done" and time.monotonic() < deadline_s:
        time.sleep(LOOK_S)
        status = _status(experiment, run)
    failure = None
    if status.state != "done":
        said = "its job is gone" if state is None else f"its job ended as {state.state}"
        failure = f"{said}: {last_words(experiment.paths.run(run.index), None)}"
        if state is not None and state.state in _CUT_OFF and status.state in ("waiting", "running", "silent"):
            give_up(experiment.paths, experiment.config, run, failure)
    device = f"{status.device} on {status.host}" if status.host else status.device
    return Outcome(run, device, max(1, status.attempt), None, failure)


def _status(experiment: Experiment, run: Run) -> RunStatus:
    with contextlib.suppress(OSError):
        os.listdir(experiment.paths.run(run.index).folder)  # noqa: PTH208 - makes NFS look again
    return collect_status(experiment.paths, experiment.config, [run]).runs[0]
