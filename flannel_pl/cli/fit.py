"""The verbs `fit` and `plan`: what is asked for, what of it is done already, and the rest.

Here training and launching meet: `launch` is handed what a run's process does, and knows nothing else of it.
"""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flannel_pl import provenance
from flannel_pl.errors import UserError
from flannel_pl.experiment import Experiment, ExperimentPaths, Run
from flannel_pl.launch.attended import train_all
from flannel_pl.launch.changes import data_changes, settled_changes
from flannel_pl.launch.events import EventLog
from flannel_pl.launch.folder import (
    as_begun,
    begun_record,
    check_writable,
    nothing_left,
    unfinished_runs,
    write_folder,
    write_run_config,
)
from flannel_pl.launch.fork_server import stop_fork_server
from flannel_pl.launch.gathering import BackgroundGather, finish_gathering
from flannel_pl.launch.giving_up import told_to_script
from flannel_pl.launch.jobs import Jobs
from flannel_pl.launch.launcher import Launcher, find_launcher
from flannel_pl.launch.plan import Plan, describe_plan, make_plan
from flannel_pl.launch.standing import Outcome
from flannel_pl.launch.summary import summarize
from flannel_pl.launch.tasks import ATTENDED_VARIABLE
from flannel_pl.launch.unattended import find_jobs, refuse_beside_jobs, settle, submit
from flannel_pl.launch.waiting import wait_for_jobs
from flannel_pl.recording.experiment_record import ExperimentRecord
from flannel_pl.recording.gathering.gathered import is_gathered
from flannel_pl.recording.sameness import has_own_data, meaning, with_seed
from flannel_pl.recording.writing.disk import make_folder
from flannel_pl.recording.writing.leftovers import clear, has_leftovers
from flannel_pl.recording.writing.lock import Lock
from flannel_pl.signals import interruptible
from flannel_pl.terminal import is_terminal
from flannel_pl.texts import from_file
from flannel_pl.training.cli import resolve, to_yaml
from flannel_pl.training.environment import check_environments
from flannel_pl.training.fit import (
    CheckedRun,
    check,
    check_gatherable,
    hold_run,
    train_held,
    types_in_words,
)
from flannel_pl.training.rehearsal import rehearse
from flannel_pl.training.run_log import logged
from flannel_pl.training.worker import work

FOLDER_WAIT_S = 60.0
"""How long runs that a scheduler starts at once wait for the one of them that describes the experiment."""


DESCRIBED_WAIT_S = 2.0
"""How long others wait before they ask what is being trained: it is described by then."""


@dataclass(frozen=True)
class _Request:
    """What `fit` or `plan` was asked for, checked."""

    experiment: Experiment
    launcher: Launcher
    record: ExperimentRecord | None
    """What the folder's experiment.json says; None if the experiment is new."""

    plan: Plan | None
    """None if there is nothing to train."""

    first: CheckedRun
    """What is known of the first run."""

    types: list[str]
    """Lines that say in which types runs compute, and what is recorded in narrower ones."""

    words: list[str]
    """The command line behind the verb."""


def fit(words: list[str]) -> int:
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
    request = _understand(words)
    for line in request.types:
        print(line)
    experiment = request.experiment
    launcher = request.launcher
    is_alone = launcher.alone_here and len(experiment.selected) == 1
    if request.plan is not None and not launcher.outlives and not is_alone:
        return _fit_all(request, request.plan)
    stop_fork_server()  # which may have been started before it was known that it is of no use
    if launcher.outlives:
        return _fit_as_jobs(request)
    return _finish(experiment) if request.plan is None else _fit_one(request, request.plan)


def plan(words: list[str]) -> int:
    """Prints what `fit` would do with the same arguments, and does nothing.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit code, 0.

    Raises:
        UserError: If `fit` would refuse.
    """
    request = _understand(words)
    if request.plan is None:
        print(f"{request.experiment.paths.folder} is finished; there is nothing to train")
    else:
        print("\n".join((describe_plan(request.experiment, request.plan), *request.types)))
    return 0


def _understand(words: list[str]) -> _Request:
    experiment = Experiment.from_config(resolve(words))
    record = begun_record(experiment)
    if record is not None:  # its files keep their names when its folder is renamed
        paths = ExperimentPaths(experiment.paths.folder, record.name)
        # And its runs the words that it was begun with.
        begun = tuple(Run(run.index, run.seed, from_file(run.swept)) for run in record.runs)
        experiment = dataclasses.replace(experiment, paths=paths, runs=begun)
    checked = _check_all(experiment)
    first = checked[experiment.selected[0].index]
    sizes = {index: run.memory for index, run in checked.items() if run.memory is not None}
    experiment = dataclasses.replace(experiment, memory_of=sizes)
    if record is not None:
        record = as_begun(experiment, record, data_changes(experiment, record, first.digests))
    launcher, runs = find_launcher(experiment), unfinished_runs(experiment)
    if record is not None and not runs:
        return _Request(experiment, launcher, record, None, first, [], words)
    if runs:
        refuse_beside_jobs(experiment)
    check_writable(experiment.paths.folder.parent)
    bytes_of = {index: run.recording_bytes for index, run in checked.items()}
    plan = make_plan(experiment, runs, bytes_of=bytes_of, record=record)
    if record is not None:
        record = as_begun(experiment, record, settled_changes(record, plan.settled))
    if experiment.config.experiment.run is None:
        check_gatherable(experiment, checked, plan.slots[0])
    elsewhere, slot = plan.capacity.elsewhere, plan.slots[0]
    check_environments(experiment, plan.runs, slot, elsewhere=elsewhere)
    side_by_side = not launcher.outlives and len(experiment.selected) > 1
    rehearse(experiment, plan.runs, slot, elsewhere=elsewhere, side_by_side=side_by_side)
    if record is None:
        _refuse_equal_runs(experiment, checked, accelerator=plan.slots[0].accelerator)
    types = types_in_words({run.index: checked[run.index] for run in experiment.selected})
    return _Request(experiment, launcher, record, plan, first, types, words)


def _check_all(experiment: Experiment) -> dict[int, CheckedRun]:
    """Checks every selected run; those that differ in nothing but their seed, once.

    Where runs have data of their own, also those that are not selected: whichever is trained first, it writes
    the one file of live and dead tokens that all of them are read with.
    """
    checked: dict[str, CheckedRun] = {}
    own_data = has_own_data(experiment.config.experiment.sweep)
    runs = experiment.runs if own_data else experiment.selected
    for run in runs:
        key = json.dumps(run.swept, sort_keys=True)
        if key not in checked:
            checked[key] = check(experiment, run)
    found = {run.index: checked[json.dumps(run.swept, sort_keys=True)] for run in runs}
    for run in runs:
        if found[run.index].digests.get("masks") != found[runs[0].index].digests.get("masks"):
            raise UserError(
                f"experiment.sweep gives run {runs[0].index} and run {run.index} texts in which other tokens "
                "are live, or as often, but an experiment has one file of live and dead tokens; make an "
                "experiment of each text"
            )
    return found


def _refuse_equal_runs(experiment: Experiment, checked: dict[int, CheckedRun], *, accelerator: str) -> None:
    """Refuses an experiment that would train one run under several numbers."""
    meanings: dict[str, dict[str, Any]] = {}
    trained: dict[str, Run] = {}
    for run in experiment.selected:
        swept = json.dumps(run.swept, sort_keys=True)
        if swept not in meanings:
            of_run = checked[run.index]
            known = {"trainer.precision": str(of_run.arithmetic), "data": of_run.digests}
            config = experiment.run_config(run).content
            meanings[swept] = meaning(config, accelerator=accelerator, known=known)
        meant = with_seed(meanings[swept], run.seed)
        first = trained.setdefault(json.dumps(meant, sort_keys=True), run)
        if first is run:
            continue
        if first.swept == run.swept and first.seed != run.seed:
            raise UserError(
                f"experiment.seeds has {first.seed} and {run.seed}, which are the same where both "
                "model.init_seed and data.order_seed are given; name one seed, or leave out one of these"
            )
        of_seeds = f" with seeds {first.seed} and {run.seed}" if first.seed != run.seed else ""
        raise UserError(
            f"experiment.sweep has {json.dumps(first.swept)} and {json.dumps(run.swept)}{of_seeds}, which "
            "are the same; name it once"
        )


def _fit_one(request: _Request, plan: Plan) -> int:
    """Trains a single run in this process."""
    experiment, run, slot = request.experiment, plan.runs[0], plan.slots[0]
    # Whoever started this process may hold the lock for it, and tell of its start and end.
    is_attended = os.environ.get(ATTENDED_VARIABLE) == str(experiment.paths.folder)
    attempt = int(os.environ.get("FLANNEL_PL_ATTEMPT", 1))  # a scheduler's script counts
    progress_bar = None if is_terminal() else False
    # The run first: once it is locked, nobody takes this experiment for one that was not begun.
    with _kept_if_used(experiment.paths.run(run.index).folder), hold_run(experiment, run):
        # A scheduler may have started all runs of a new experiment in the same moment.
        with nullcontext() if is_attended else _locked(experiment, wait_s=FOLDER_WAIT_S):
            plan = _begin(request, plan, own_lock=experiment.paths.run(run.index).lock)
        if plan.runs:
            _write_run_configs(request, plan)
            paths, events = experiment.paths.run(run.index), EventLog(experiment.paths.events)
            told = nullcontext() if is_attended else events.run(run, slot, attempt=attempt)
            with told_to_script(paths), told, logged(paths.log):
                train_held(
                    experiment, run, slot, attempt=attempt, progress_bar=progress_bar, note=events.write
                )
    return _finish(experiment)


def _fit_all(request: _Request, plan: Plan) -> int:
    """Trains several runs in processes of their own."""
    experiment = request.experiment
    with _locked(experiment):
        plan = _begin(request, plan)
        if not plan.runs:
            return _finish(experiment, is_locked=True)
        _write_run_configs(request, plan)
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
                )
            if not _summarized(request, outcomes):
                return 1
            return _finish(experiment, background=background, is_locked=True)


def _fit_as_jobs(request: _Request) -> int:
    """Hands over what is to be trained, unless that was done before, and waits for it, if that is wanted."""
    experiment, launcher, paths = request.experiment, request.launcher, request.experiment.paths
    mode = experiment.config.experiment.gather
    gathers = mode != "none" and experiment.config.experiment.run is None
    if request.plan is None and (not gathers or mode == "none" or is_gathered(paths, mode=mode)):
        return _finish(experiment)
    launcher.check()
    jobs = find_jobs(launcher)
    under_way = jobs is not None
    if jobs is None:
        if request.plan is None:
            return _finish(experiment)
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
    if not _summarized(request, outcomes):
        return 1
    if gather and mode != "none" and not is_gathered(paths, mode=mode):
        print(f"job {gather} has not gathered (see {paths.gather_log}), so it is done here")
    return _finish(experiment)


def _submit(request: _Request, plan: Plan, *, gathers: bool) -> Jobs:
    experiment, launcher, paths = request.experiment, request.launcher, request.experiment.paths
    with _locked(experiment), nothing_left(experiment, plan.runs, unless=paths.jobs):
        if (found := find_jobs(launcher)) is not None:
            raise UserError(
                f"another command has just handed {paths.folder} to {launcher.title}, as "
                f"{' and '.join(launcher.short(found.names))}; repeat this command to look at those jobs"
            )
        plan = _begin(request, plan)
        if not plan.runs:
            raise UserError(f"another command has just finished {paths.folder}; repeat this one to see it")
        _write_run_configs(request, plan)
        jobs = submit(launcher, plan.runs, plan.capacity, gathers=gathers)
        EventLog(paths.events).write("submitted", **jobs.content)
    return jobs


def _refuse_other_jobs(request: _Request, jobs: Jobs) -> None:
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


def _summarized(request: _Request, outcomes: list[Outcome]) -> bool:
    """Says how the runs went, and returns whether all went well."""
    summarize(request.experiment, outcomes, command=["fit", *request.words])
    return not any(outcome.failure for outcome in outcomes)


@contextmanager
def _locked(experiment: Experiment, *, wait_s: float = DESCRIBED_WAIT_S) -> Iterator[None]:
    """Keeps other launchers out of the experiment's folder, which is made, and removed if it stays empty."""
    with _kept_if_used(experiment.paths.folder):
        lock = Lock(experiment.paths.lock, what=f"the experiment {experiment.paths.folder}")
        try:
            note = lock.acquire(wait_s=wait_s)
        except UserError:
            begun_record(experiment, in_use=True)  # names the difference, if it is another experiment
            raise
        if note:
            print(f"flannel-pl: {note}; going on", file=sys.stderr)
        try:
            yield
        finally:
            lock.release()


@contextmanager
def _kept_if_used(folder: Path) -> Iterator[None]:
    """Makes a folder and those above it; removes what it has made and is empty when the block ends."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _begin(request: _Request, plan: Plan, *, own_lock: Path | None = None) -> Plan:
    """Sees to it that `experiment.json` says what is going to be trained, and that nobody changes that.

    The experiment's lock is held: whatever was found before may have changed.

    Args:
        request: What is asked for.
        plan: What was to be trained when that was looked at.
        own_lock: The lock of a run, if this process holds one.

    Returns:
        What of it is still to be trained.

    Raises:
        UserError: If another experiment was begun in the folder meanwhile, or this one handed over.
    """
    experiment, digests = request.experiment, request.first.digests
    refuse_beside_jobs(experiment)
    record = begun_record(experiment, own_lock=own_lock)
    if record is not None:
        changes = data_changes(experiment, record, digests) + settled_changes(record, plan.settled)
        record = as_begun(experiment, record, changes, own_lock=own_lock)
    if record is None:
        origin = {**provenance.collect(), "data": digests}
        content = experiment.record(origin, settled=plan.settled)
        write_folder(experiment, content, masks=request.first.masks)
    left = unfinished_runs(experiment)
    return dataclasses.replace(plan, runs=tuple(run for run in plan.runs if run in left))


def _write_run_configs(request: _Request, plan: Plan) -> None:
    for run in plan.runs:
        write_run_config(request.experiment, run, plan.slots[0], to_yaml=to_yaml)


def _finish(
    experiment: Experiment, *, background: BackgroundGather | None = None, is_locked: bool = False
) -> int:
    """Gathers the recordings if that is wanted and not done yet, and says where everything is."""
    mode, paths = experiment.config.experiment.gather, experiment.paths
    if experiment.config.experiment.run is not None or mode == "none":
        for run in experiment.selected:
            print(f"finished: {paths.run(run.index).recording}")
        return 0
    target = paths.gathered if mode == "single" else paths.index
    is_new = False
    indices = [run.index for run in experiment.runs]
    # Else not even a lock may change the folder.
    if not is_gathered(paths, mode=mode) or (not is_locked and has_leftovers(paths, indices)):
        with nullcontext() if is_locked else _locked(experiment), interruptible():
            events = EventLog(paths.events)
            is_new = finish_gathering(paths, mode=mode, events=events, background=background)
            clear(paths, indices)
    if is_new:
        print(f"what is in it: flannel-pl info {shlex.quote(str(target))}")
    else:
        print(f"finished already: {target}")
    return 0
