"""How an experiment is begun or gone on with: its folder, record and runs' configs, under its lock."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flannel_pl import provenance
from flannel_pl.cli.request import Request
from flannel_pl.errors import UserError
from flannel_pl.experiment import ResolvedExperiment
from flannel_pl.launch.changes import data_changes, settled_changes
from flannel_pl.launch.folder import (
    as_begun,
    begun_record,
    unfinished_runs,
    write_folder,
    write_run_config,
)
from flannel_pl.launch.plan import Plan
from flannel_pl.launch.unattended import refuse_beside_jobs
from flannel_pl.recording.writing.disk import make_folder
from flannel_pl.recording.writing.lock import Lock
from flannel_pl.training.cli import to_yaml

DESCRIBED_WAIT_S = 2.0
"""How long others wait before they ask what is being trained: it is described by then."""


@contextmanager
def locked_experiment(experiment: ResolvedExperiment, *, wait_s: float = DESCRIBED_WAIT_S) -> Iterator[None]:
    """Keeps other launchers out of the experiment's folder, which is made, and removed if it stays empty."""
    with kept_if_used(experiment.paths.folder):
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
def kept_if_used(folder: Path) -> Iterator[None]:
    """Makes a folder and those above it; removes what it has made and is empty when the block ends."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def begin_experiment(request: Request, plan: Plan, *, own_lock: Path | None = None) -> Plan:
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


def write_run_configs(request: Request, plan: Plan) -> None:
    """Writes a complete config of each run that is going to be trained."""
    for run in plan.runs:
        write_run_config(request.experiment, run, plan.slots[0], to_yaml=to_yaml)
