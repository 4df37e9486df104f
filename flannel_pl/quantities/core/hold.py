"""A run's folder: kept from others while it is recorded into, and what is there from replacement.

In an experiment its launcher does that. A recording made from Python has only this.
"""

from pathlib import Path

import torch

from flannel_pl.errors import UserError
from flannel_pl.experiment import ExperimentPaths, RunPaths
from flannel_pl.paths import is_run_folder
from flannel_pl.recording.checking.verify import num_good_rows
from flannel_pl.recording.formats.files import open_file
from flannel_pl.recording.formats.lazy import LazyTensor
from flannel_pl.recording.formats.opening import is_there
from flannel_pl.recording.formats.schema import RECORDED_TOKENS
from flannel_pl.recording.integrity.parts import parts_of
from flannel_pl.recording.writing.disk import explained, make_folder
from flannel_pl.recording.writing.lock import Lock


def refuse_experiments_folder(folder: Path) -> None:
    """Refuses to record from Python into what `flannel-pl fit` has made: readers would find one of the two.

    Raises:
        UserError: If the folder is an experiment's, or that of one of its runs.
    """
    experiment = folder.parent if is_run_folder(folder) else folder
    if ExperimentPaths(experiment, experiment.name).record.exists():
        raise UserError(
            f"{experiment} is the folder of an experiment that flannel-pl fit has made; record into a folder "
            "of its own, at another place"
        )


def hold_folder(
    paths: RunPaths, *, first_row: int, step: int, every_n_steps: int, go_on: str, overwrite: bool
) -> Lock:
    """Locks a folder, and refuses to replace what is there.

    Args:
        paths: The run's files.
        first_row: First row that is going to be made.
        step: The step after which training goes on; 0 if it begins.
        every_n_steps: Steps from one row to the next.
        go_on: How to go on with an unfinished recording, in words.
        overwrite: Whether what is there may go, if training begins.

    Raises:
        UserError: If another process has it, or what is there does not fit.
        RunError: If the disk refuses.
    """
    make_folder(paths.folder)
    lock = Lock(paths.lock, what=f"the recording in {paths.folder}", has_status=False)
    lock.acquire()
    try:
        if overwrite and first_row == 0:
            _remove(paths)
        _refuse_what_is_there(paths, first_row=first_row, step=step, go_on=go_on)
        if first_row > 0:
            _refuse_too_few(paths, first_row=first_row, step=step, every_n_steps=every_n_steps)
    except BaseException:
        lock.release()
        raise
    return lock


def _remove(paths: RunPaths) -> None:
    """Removes an earlier recording; the journal goes first, which would tell of rows that are gone."""
    checkpoints = [path for *_, path in paths.checkpoints()]
    for path in (paths.journal, *checkpoints, paths.partial, paths.recording):
        with explained(path, need_bytes=0):
            path.unlink(missing_ok=True)


def _refuse_what_is_there(paths: RunPaths, *, first_row: int, step: int, go_on: str) -> None:
    if paths.recording.exists() and first_row > 0:
        raise UserError(
            f"{paths.recording} is finished, so that training cannot go on with it after step {step}; record "
            "from step 0 into another folder, or go on without recording"
        )
    if paths.recording.exists():
        raise UserError(
            f"{paths.recording} exists, and a recording is never overwritten; record into another folder, or "
            "say overwrite=True"
        )
    there = is_there(paths.partial)
    if first_row == 0 and there:
        raise UserError(
            f"{paths.partial} is there, unfinished, and training begins with step 0; {go_on}, move it away, "
            "say overwrite=True, or record into another folder"
        )
    if first_row > 0 and not there:
        raise UserError(
            f"training goes on after step {step}, but there is no {paths.partial} with the rows "
            "before that; bring it back, or train from the start"
        )


def _refuse_too_few(paths: RunPaths, *, first_row: int, step: int, every_n_steps: int) -> None:
    num_good = num_good_rows(paths.partial)
    if num_good < first_row:
        raise UserError(
            f"training goes on after step {step}, but {paths.partial} has whole rows only up to step "
            f"{(num_good - 1) * every_n_steps}; go on from an earlier checkpoint"
        )


def is_row(weight: torch.Tensor, step: int, partial: Path) -> bool:
    """Tells whether a parameter is what a recording has of a step; True if it has no row of that."""
    with open_file(partial) as file:
        prefix = parts_of(file.header)[0].prefix
        every_n_steps = file.header.flannel["every_n_steps"]
        if step % every_n_steps or f"{prefix}embeddings" not in file.header.tensors:
            return True
        row = LazyTensor(file, f"{prefix}embeddings", framework="pt")[step // every_n_steps]
        if f"{prefix}{RECORDED_TOKENS}" in file.header.tensors:
            weight = weight[torch.from_numpy(file.read(f"{prefix}{RECORDED_TOKENS}"))]
    # By their bits: a weight that is not a number is equal to itself here.
    return torch.equal(weight.to(row.dtype).contiguous().view(torch.uint8), row.view(torch.uint8))
