"""Training by a launcher whose jobs outlive this command: handing them over, and looking on."""

import shlex
import sys

from flannel_pl.cli.beginning import begin_experiment, locked_experiment, write_run_configs
from flannel_pl.cli.ending import finish_experiment, summarized
from flannel_pl.cli.request import Request
from flannel_pl.errors import UserError
from flannel_pl.launch.events import EventLog
from flannel_pl.launch.folder import (
    nothing_left,
)
from flannel_pl.launch.jobs import Jobs
from flannel_pl.launch.plan import Plan
from flannel_pl.launch.unattended import find_jobs, settle, submit
from flannel_pl.launch.waiting import wait_for_jobs
from flannel_pl.recording.gathering.gathered import is_gathered


def fit_as_jobs(request: Request) -> int:
    """Hands over what is to be trained, unless that was done before, and waits for it, if that is wanted."""
    experiment, launcher, paths = request.experiment, request.launcher, request.experiment.paths
    mode = experiment.config.experiment.gather
    gathers = mode != "none" and experiment.config.experiment.run is None
    if request.plan is None and (not gathers or mode == "none" or is_gathered(paths, mode=mode)):
        return finish_experiment(experiment)
    launcher.check()
    jobs = find_jobs(launcher)
    under_way = jobs is not None
    if jobs is None:
        if request.plan is None:
            return finish_experiment(experiment)
        jobs = _submit(request, request.plan, gathers=gathers)
    else:
        _refuse_other_jobs(request, jobs)
        jobs = settle(launcher, jobs)
        print(f"the jobs are with {launcher.title} already")
    stop = launcher.stop_command(jobs.names)
    gather = "".join(launcher.short([jobs.gather])) if jobs.gather else ""
    print(
        f"with {launcher.title}: {launcher.describe(list(jobs.tasks.values()))}"
        + (f", then job {gather} to gather" if gather else "")
    )
    print(f"look at them with: flannel-pl status {shlex.quote(str(paths.folder))} --watch")
    print(f"stop them, with a checkpoint each, with: {stop}")
    if experiment.config.launch.detach:
        return 0
    runs = [experiment.runs[index] for index in jobs.tasks]
    try:
        outcomes = wait_for_jobs(launcher, jobs, runs, under_way=under_way)
    except KeyboardInterrupt:
        print(f"the jobs go on; stop them with: {stop}", file=sys.stderr)
        raise
    if not summarized(request, outcomes):
        return 1
    if gather and mode != "none" and not is_gathered(paths, mode=mode):
        print(f"job {gather} has not gathered (see {paths.gather_log}), so it is done here")
    return finish_experiment(experiment)


def _submit(request: Request, plan: Plan, *, gathers: bool) -> Jobs:
    experiment, launcher, paths = request.experiment, request.launcher, request.experiment.paths
    with locked_experiment(experiment), nothing_left(experiment, plan.runs, unless=paths.jobs):
        if (found := find_jobs(launcher)) is not None:
            raise UserError(
                f"another command has just handed {paths.folder} to {launcher.title}, as "
                f"{' and '.join(launcher.short(found.names))}; repeat this command to look at those jobs"
            )
        plan = begin_experiment(request, plan)
        if not plan.runs:
            raise UserError(f"another command has just finished {paths.folder}; repeat this one to see it")
        write_run_configs(request, plan)
        jobs = submit(launcher, plan.runs, plan.capacity, gathers=gathers)
        EventLog(paths.events).write("submitted", **jobs.content)
    return jobs


def _refuse_other_jobs(request: Request, jobs: Jobs) -> None:
    """Refuses to take jobs that are under way for those of this command, if they are not.

    Raises:
        UserError: If they have another config, or not all of the runs that are to be trained.
    """
    launcher, stop = request.launcher, request.launcher.stop_command(jobs.names)
    if request.plan is not None and request.record is None:
        raise UserError(
            f"{request.experiment.paths.folder} has jobs with {launcher.title} that have another config; "
            f"repeat what they were submitted with, or first end them with: {stop}"
        )
    runs = () if request.plan is None else request.plan.runs
    if missing := [run.index for run in runs if run.index not in jobs.tasks]:
        raise UserError(
            f"the jobs {' '.join(launcher.short(jobs.names))} are with {launcher.title} for run "
            f"{', '.join(map(str, jobs.tasks))} only, not for {', '.join(map(str, missing))}; wait for them, "
            f"or end them with: {stop}"
        )
