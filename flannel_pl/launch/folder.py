"""The experiment's folder: what is written there before the first run, and what is found there again."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flannel_pl.config import LaunchConfig
from flannel_pl.errors import RunError, UserError
from flannel_pl.experiment import ExperimentPaths, ResolvedExperiment, Run, RunPaths, Slot
from flannel_pl.launch.changes import config_changes
from flannel_pl.launch.jobs import Jobs
from flannel_pl.paths import final_of, is_run_folder
from flannel_pl.recording.belonging import refuse_foreign_shard
from flannel_pl.recording.experiment_record import ExperimentRecord, read_record
from flannel_pl.recording.formats.opening import is_there
from flannel_pl.recording.gathering.gathered import gathered_runs
from flannel_pl.recording.writing.disk import explained, make_folder, why_not_writable, write_file
from flannel_pl.recording.writing.journal import Journal
from flannel_pl.recording.writing.lock import is_held
from flannel_pl.texts import for_file


def begun_record(
    experiment: ResolvedExperiment, *, own_lock: Path | None = None, in_use: bool = False
) -> ExperimentRecord | None:
    """Returns what the folder's `experiment.json` says if the experiment may go on there, None if it is new.

    An experiment of which nothing was recorded yet counts as new, whatever its config. That is true for as
    long as the experiment's lock is held; without it, it is a guess.

    Args:
        experiment: What is asked for.
        own_lock: The lock of a run that this process holds.
        in_use: Whether another process holds the experiment's lock. What it has described counts as begun.

    Raises:
        UserError: If the folder holds another experiment, or something that is none.
        RunError: If its record cannot be read.
    """
    paths = experiment.paths
    if not paths.folder.exists():
        return None
    if not paths.folder.is_dir():
        raise UserError(
            f"{paths.folder} is a file; choose another --experiment.name or --experiment.output_dir"
        )
    if not is_there(paths.record):
        # Where only a run is locked, another command is about to describe the experiment.
        if (begun := find_beginning(paths, locks_count=False)) is not None:
            raise UserError(
                f"{paths.folder} has {begun.relative_to(paths.folder)} in it but no {paths.record.name}, so "
                "it is no experiment of ours and nothing is written there; choose another --experiment.name "
                f"or --experiment.output_dir, or bring {paths.record.name} back"
            )
        return None
    record = read_record(paths)
    changes = config_changes(experiment, record)
    if in_use:
        refuse_changes(experiment, changes)
    return as_begun(experiment, record, changes, own_lock=own_lock)


def as_begun(
    experiment: ResolvedExperiment,
    record: ExperimentRecord,
    changes: list[str],
    *,
    own_lock: Path | None = None,
) -> ExperimentRecord | None:
    """Returns the record of an experiment that may go on; None if it has changed and counts as new.

    Args:
        experiment: What is asked for.
        record: What the folder's `experiment.json` says.
        changes: In what they differ: config, data, or what `auto` came to.
        own_lock: The lock of a run that this process holds.

    Raises:
        UserError: If something was recorded already; names the changes.
    """
    if changes and find_beginning(experiment.paths, own_lock=own_lock) is None:
        return None
    refuse_changes(experiment, changes)
    return record


def find_beginning(
    paths: ExperimentPaths, *, own_lock: Path | None = None, locks_count: bool = True
) -> Path | None:
    """Returns something that shows that an experiment was begun, None if there is nothing.

    That is every file but those that are there before the first run is: what describes the experiment and
    its runs, which jobs were submitted, what was logged, that a run failed before its first row, and locks
    that nobody holds. So what a later version adds counts, too.

    Args:
        paths: The experiment's files; its folder exists.
        own_lock: The lock of a run that this process holds, which shows nothing.
        locks_count: Whether the lock of a run that another process holds shows a beginning.
    """
    described = {paths.record, paths.masks, paths.events, paths.gather_log}
    if Jobs.read(paths) is not None:  # whoever goes by this asks their launcher for those jobs
        described.add(paths.noted_jobs)
    for path in _files_in(paths.folder, lock=paths.lock):
        if is_run_folder(path) and path.is_dir():
            run = RunPaths(path)
            if locks_count and run.lock != own_lock and is_held(run.lock):
                return run.lock
            for inner in _files_in(run.folder, lock=run.lock):
                if final_of(inner) not in {run.config, run.log} and not _says_nothing_is(inner, run):
                    return inner
        elif final_of(path) not in described:
            return path
    return None


def _says_nothing_is(path: Path, run: RunPaths) -> bool:
    """Whether a file is the journal of a run that has failed before its first row."""
    if path != run.journal:
        return False
    with suppress(RunError):
        entry = Journal(path).read()
        return entry is not None and entry.state == "failed" and entry.rows_written == 0
    return False


def _files_in(folder: Path, *, lock: Path) -> list[Path]:
    """Returns what is in a folder, in order; no hidden files, and nothing of taking its lock."""
    return [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and path != lock and not path.name.startswith(f"{lock.name}.")
    ]


def refuse_changes(experiment: ResolvedExperiment, changes: list[str]) -> None:
    """Refuses to go on with an experiment that differs from the one in its folder.

    Raises:
        UserError: If there are any changes; it names them.
    """
    if changes:
        raise UserError(
            f"{experiment.paths.folder} holds another experiment, and nothing is overwritten. Different: "
            f"{'; '.join(changes)}. Choose another --experiment.name, or repeat what that folder was made "
            "with"
        )


def unfinished_runs(experiment: ResolvedExperiment) -> list[Run]:
    """Returns the selected runs that have no finished shard yet and are not gathered either.

    Raises:
        RunError: If one is finished with other settings than the experiment's, or none can tell.
    """
    paths = experiment.paths
    with_shard = [run.index for run in experiment.selected if is_there(paths.run(run.index).recording)]
    gathered: frozenset[int] = frozenset()
    if is_there(paths.record):
        record = read_record(paths)
        for index in with_shard:
            refuse_foreign_shard(paths, record, index)
        gathered = gathered_runs(paths.folder)
    return [run for run in experiment.selected if run.index not in gathered.union(with_shard)]


def check_writable(folder: Path) -> None:
    """Refuses a folder in which nothing can be made, whether it exists yet or not; makes nothing.

    Raises:
        UserError: If it, or the nearest folder above it that exists, cannot be written.
    """
    if reason := why_not_writable(folder):
        raise UserError(
            f"cannot write to {folder}: {reason}; choose another --experiment.output_dir, or change its "
            "permissions"
        )


def write_folder(experiment: ResolvedExperiment, content: dict[str, Any], *, masks: bytes | None) -> None:
    """Writes what describes the experiment: experiment.json and the masks.

    Args:
        experiment: The experiment.
        content: Of experiment.json.
        masks: Content of the live/dead masks file; None where there are no tokens.

    Raises:
        UserError: If the config has something that could not be read again.
        RunError: If the disk fails.
    """
    paths = experiment.paths
    text = (json.dumps(for_file(content), indent=1, sort_keys=True) + "\n").encode()
    try:
        ExperimentRecord.parse(text)
    except ValueError as error:
        raise UserError(f"{paths.record.name} cannot describe this experiment: {error}") from error
    make_folder(paths.folder)
    # The record last: a folder that has it has its masks as well, whatever failed in between.
    with explained(paths.record, need_bytes=0):
        paths.record.unlink(missing_ok=True)
    if masks is not None:
        write_file(paths.masks, masks)
    write_file(paths.record, text)


def write_run_config(
    experiment: ResolvedExperiment, run: Run, slot: Slot, *, to_yaml: Callable[[dict[str, Any]], str]
) -> None:
    """Writes the complete config of one run.

    Args:
        experiment: The experiment.
        run: The run.
        slot: Where the run is trained: one device. Its number of threads is part of the config, because bits
            depend on it.
        to_yaml: Turns a config into the YAML text that `fit --config` reads.
    """
    launch = {"launcher": LaunchConfig.launcher, "devices": "auto", "runs_per_device": 1}
    launch["threads_per_run"] = slot.threads
    config = experiment.run_config(run).but(
        {
            **{"trainer.accelerator": slot.accelerator, "trainer.devices": 1},
            **{f"launch.{key}": value for key, value in launch.items()},
        }
    )
    path = experiment.paths.run(run.index).config
    make_folder(path.parent)
    write_file(path, to_yaml(config.content).encode())


@contextmanager
def nothing_left(experiment: ResolvedExperiment, runs: Sequence[Run], *, unless: Path) -> Iterator[None]:
    """Removes what the block has made to describe an experiment and its runs, if it ends in an error.

    The experiment's lock must be held. What was there before stays, and so does whatever else is in folders.

    Args:
        experiment: The experiment.
        runs: Runs whose folder and config the block writes.
        unless: A file; if it is there in the end, nothing is removed.
    """
    paths = experiment.paths
    files = [paths.run(run.index).config for run in runs] + [paths.record, paths.masks]
    new = [path for path in (*files, *(paths.run(run.index).folder for run in runs)) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in [] if unless.exists() else new:
            with suppress(OSError):  # not there, or not empty
                path.unlink() if path in files else path.rmdir()
        raise
