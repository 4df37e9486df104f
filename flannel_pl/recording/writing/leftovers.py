"""What a power cut left in an experiment's folder and nobody will read: found, and removed under its lock."""

import os
from collections.abc import Iterable
from pathlib import Path

from flannel_pl.errors import UserError
from flannel_pl.paths import (
    ExperimentPaths,
    RunPaths,
    all_beside_lock,
    header_copy_of,
    partial_of,
    roomier_of,
)
from flannel_pl.recording.writing.disk import explained
from flannel_pl.recording.writing.held import check_held
from flannel_pl.recording.writing.lock import Lock


def leftovers_of_run(paths: RunPaths) -> list[Path]:
    """Returns what processes that were killed have left of a run, besides what it goes on from."""
    found = paths.half_written()
    header = header_copy_of(paths.partial)
    found += [partial_of(header), roomier_of(paths.partial)]
    if not os.path.lexists(paths.partial):
        found.append(header)
    return sorted({path for path in found if path.exists()})


def has_leftovers(paths: ExperimentPaths, indices: Iterable[int]) -> bool:
    """Tells whether anything is left in a finished experiment: unfinished files, or locks.

    Args:
        paths: The experiment's files.
        indices: Its finished runs.
    """
    runs = [paths.run(index) for index in indices]
    locks = any(_is_locked(lock) for lock in (paths.lock, *(run.lock for run in runs)))
    return locks or bool(_of_experiment(paths)) or any(leftovers_of_run(run) for run in runs)


def clear_run(paths: RunPaths) -> None:
    """Removes what is left of a run; its lock is held.

    Raises:
        RunError: If the disk refuses.
    """
    for path in leftovers_of_run(paths):
        _remove(path)


def clear(paths: ExperimentPaths, indices: Iterable[int]) -> None:
    """Removes what is left of an experiment whose lock is held.

    Args:
        paths: The experiment's files.
        indices: Its finished runs. One that another process has locked is left alone.

    Raises:
        RunError: If the disk refuses.
    """
    for path in _of_experiment(paths):
        _remove(path)
    for run in map(paths.run, indices):
        if not (_is_locked(run.lock) or leftovers_of_run(run)):
            continue
        lock = Lock(run.lock, what=f"the run {run.folder}")
        try:
            lock.acquire()  # which removes what is left beside the lock file
        except UserError:
            continue
        try:
            clear_run(run)
        finally:
            lock.release()


def _is_locked(lock: Path) -> bool:
    """Tells whether there is a lock file, or what somebody has left who was about to make or remove it."""
    return lock.exists() or bool(all_beside_lock(lock))


def _of_experiment(paths: ExperimentPaths) -> list[Path]:
    """Returns unfinished files of an experiment; what gathering goes on from is none."""
    whole = (paths.record, paths.masks, paths.index, paths.index_extras, paths.jobs, paths.older_jobs)
    return [partial for path in whole if (partial := partial_of(path)).exists()]


def _remove(path: Path) -> None:
    check_held(path)
    with explained(path, need_bytes=0):
        path.unlink(missing_ok=True)
