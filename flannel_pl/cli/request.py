"""What `fit` or `plan` is asked for: understood and checked before anything is made."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from flannel_pl.errors import UserError
from flannel_pl.experiment import ExperimentPaths, ResolvedExperiment, Run
from flannel_pl.launch.changes import data_changes, settled_changes
from flannel_pl.launch.folder import (
    as_begun,
    begun_record,
    check_writable,
    unfinished_runs,
)
from flannel_pl.launch.launcher import Launcher, find_launcher
from flannel_pl.launch.plan import Plan, make_plan
from flannel_pl.launch.unattended import refuse_beside_jobs
from flannel_pl.provenance import forget_sources
from flannel_pl.recording.experiment_record import ExperimentRecord
from flannel_pl.recording.sameness import has_own_data, meaning, with_seed
from flannel_pl.texts import from_file
from flannel_pl.training.checked import CheckedRun, check, types_in_words
from flannel_pl.training.cli import resolve
from flannel_pl.training.environment import check_environments
from flannel_pl.training.gatherable import check_gatherable
from flannel_pl.training.length import with_length
from flannel_pl.training.rehearsal import rehearse


@dataclass(frozen=True)
class Request:
    """What `fit` or `plan` was asked for, checked."""

    experiment: ResolvedExperiment
    launcher: Launcher
    record: ExperimentRecord | None
    """What the folder's experiment.json says; None if the experiment is new."""

    plan: Plan | None
    """None if there is nothing to train."""

    first: CheckedRun
    """What is known of the first run."""

    keeps_all: bool
    """Whether every run that is interrupted goes on with what it has."""

    types: list[str]
    """Lines that say in which types runs compute, and what is recorded in narrower ones."""

    words: list[str]
    """The command line behind the verb."""


def understand(words: list[str], *, may_be_short: bool = False) -> Request:
    """Returns what a command line asks for.

    Args:
        words: What is behind the verb.
        may_be_short: Whether the plan only says so if memory or disk are too small.

    Raises:
        UserError: If anything is wrong with the config, the data or the folder.
        RunError: If what the folder says cannot be read.
    """
    forget_sources()
    experiment = ResolvedExperiment.from_config(with_length(resolve(words)))
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
    has_checkpoints = experiment.config.launch.checkpoint_every is not None
    keeps_all = has_checkpoints and not any(run.notice for run in checked.values())
    if record is not None and not runs:
        return Request(experiment, launcher, record, None, first, keeps_all, [], words)
    if runs:
        refuse_beside_jobs(experiment)
    check_writable(experiment.paths.folder.parent)
    bytes_of = {index: run.recording_bytes for index, run in checked.items()}
    plan = make_plan(experiment, runs, bytes_of=bytes_of, record=record, may_be_short=may_be_short)
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
    return Request(experiment, launcher, record, plan, first, keeps_all, types, words)


def _check_all(experiment: ResolvedExperiment) -> dict[int, CheckedRun]:
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


def _refuse_equal_runs(
    experiment: ResolvedExperiment, checked: dict[int, CheckedRun], *, accelerator: str
) -> None:
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
