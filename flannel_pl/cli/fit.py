"""The verbs `fit` and `plan`: what is asked for, what of it is done already, and the rest.

Here training and launching meet: `launch` is handed what a run's process does, and knows nothing else of it.
"""

import os
import sys
from contextlib import nullcontext

from flannel_pl.answer import answer
from flannel_pl.cli.alone import Display
from flannel_pl.cli.as_jobs import fit_as_jobs
from flannel_pl.cli.beginning import begin_experiment, kept_if_used, locked_experiment, write_run_configs
from flannel_pl.cli.ending import finish_experiment, summarized
from flannel_pl.cli.finished import named_files, note_finished
from flannel_pl.cli.request import Request, understand
from flannel_pl.errors import UserError
from flannel_pl.launch.attended import train_all
from flannel_pl.launch.events import EventLog
from flannel_pl.launch.fork_server import stop_fork_server
from flannel_pl.launch.gathering import BackgroundGather
from flannel_pl.launch.giving_up import told_to_script
from flannel_pl.launch.plan import Plan, describe_plan
from flannel_pl.launch.summary import summarize
from flannel_pl.launch.tasks import ATTENDED_VARIABLE
from flannel_pl.terminal import is_terminal
from flannel_pl.training.fit import hold_run, train_held
from flannel_pl.training.run_log import logged
from flannel_pl.training.worker import work

FOLDER_WAIT_S = 60.0
"""How long runs that a scheduler starts at once wait for the one of them that describes the experiment."""


def fit_verb(words: list[str]) -> int:
    """Trains every run of an experiment that is not finished, then gathers the recordings.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit code: 0 done, 1 a run failed.

    Raises:
        UserError: If anything is wrong with the config, the data or the folder.
        RunError: If the disk or the launcher fails.
        Interrupted: On a signal, once everything so far is on the disk.
    """
    try:
        named = named_files(words)  # before they are read: who edits one while it trains means the next time
        request = understand(words)
        named = {**named_files((), request.experiment.config.content), **named}
        code = _fit(request)
        if code == 0:
            note_finished(words, named, request.experiment)
        return code
    finally:
        stop_fork_server()  # this may be somebody's program, which goes on


def _fit(request: Request) -> int:
    for line in request.types:
        print(line)
    experiment = request.experiment
    answer(folder=str(experiment.paths.folder))
    launcher = request.launcher
    is_alone = launcher.alone_here and len(experiment.selected) == 1
    if request.plan is not None and not launcher.outlives and not is_alone:
        return _fit_all(request, request.plan)
    stop_fork_server()  # it was started before it was known that it is of no use
    if launcher.outlives:
        return fit_as_jobs(request)
    return finish_experiment(experiment) if request.plan is None else _fit_one(request, request.plan)


def plan_verb(words: list[str]) -> int:
    """Prints what `fit` would do with the same arguments, and what there is too little of; does nothing.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit code, 0.

    Raises:
        UserError: If `fit` would refuse.
    """
    request = understand(words, may_be_short=True)
    if request.plan is None:
        print(f"{request.experiment.paths.folder} is finished; there is nothing to train")
    else:
        print("\n".join((describe_plan(request.experiment, request.plan), *request.types)))
        if request.plan.short:
            raise UserError("; ".join(request.plan.short))
    return 0


def _fit_one(request: Request, plan: Plan) -> int:
    """Trains a single run in this process.

    An experiment of one run looks as one of several does. A run that is asked for by its number is shown as
    Lightning does: a scheduler's script keeps that, and who looks for a fault wants to see it.
    """
    experiment, run, slot = request.experiment, plan.runs[0], plan.slots[0]
    # Whoever started this process may hold the lock for it, and tell of its start and end.
    is_attended = os.environ.get(ATTENDED_VARIABLE) == str(experiment.paths.folder)
    attempt = int(os.environ.get("FLANNEL_PL_ATTEMPT", 1))  # a scheduler's script counts
    is_whole = experiment.config.experiment.run is None
    progress_bar = None if is_terminal() and not is_whole else False
    # The run first: once it is locked, nobody takes this experiment for one that was not begun.
    with kept_if_used(experiment.paths.run(run.index).folder), hold_run(experiment, run):
        # A scheduler may have started all runs of a new experiment in the same moment.
        with nullcontext() if is_attended else locked_experiment(experiment, wait_s=FOLDER_WAIT_S):
            plan = begin_experiment(request, plan, own_lock=experiment.paths.run(run.index).lock)
        if plan.runs:
            write_run_configs(request, plan)
            paths, events = experiment.paths.run(run.index), EventLog(experiment.paths.events)
            told = nullcontext() if is_attended else events.run(run, slot, attempt=attempt)
            shown = Display(experiment, run, slot) if is_whole else nullcontext()
            with told_to_script(paths), told, shown as display, logged(paths.log, only_there=is_whole):
                train_held(
                    experiment,
                    run,
                    slot,
                    attempt=attempt,
                    progress_bar=progress_bar,
                    note=events.write,
                    after_step=display.update if display else None,
                )
            if display:
                summarize(experiment, [display.outcome], command=["fit", *request.words])
    return finish_experiment(experiment)


def _fit_all(request: Request, plan: Plan) -> int:
    """Trains several runs in processes of their own."""
    experiment = request.experiment
    with locked_experiment(experiment):
        plan = begin_experiment(request, plan)
        if not plan.runs:
            return finish_experiment(experiment, is_locked=True)
        write_run_configs(request, plan)
        events = EventLog(experiment.paths.events)
        runs, slots = [run.index for run in plan.runs], [slot.name for slot in plan.slots]
        with events.launch(runs=runs, slots=slots, command=sys.argv):
            background = None
            if experiment.config.experiment.gather == "single":
                background = BackgroundGather(experiment.paths, events=events)
            with background or nullcontext():
                outcomes = train_all(
                    experiment,
                    plan.runs,
                    plan.slots,
                    work=work,
                    events=events,
                    finished=background.add if background else lambda index: None,
                    launcher=request.launcher,
                    keeps_all=request.keeps_all,
                )
            if not summarized(request, outcomes):
                return 1
            return finish_experiment(experiment, background=background, is_locked=True)
