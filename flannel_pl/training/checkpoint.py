"""What a run goes on from: Lightning's checkpoints, each named after its step and the hash of its bytes.

The writer brings a checkpoint to the disk only after the rows up to its step, so one that is there
has its rows there. Two are kept: should the newest be damaged, the one before it takes its place.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import xxhash
from lightning.pytorch import Trainer

from flannel_pl.experiment import RunPaths
from flannel_pl.recording.disk import explained
from flannel_pl.recording.held import check_held
from flannel_pl.recording.layout import read_layout
from flannel_pl.recording.opening import unreachable
from flannel_pl.recording.verify import num_good_rows
from flannel_pl.small_files import open_regular

NUM_KEPT = 2


@dataclass(frozen=True)
class ResumePoint:
    """Where an interrupted run goes on."""

    checkpoint: Path
    step: int
    metadata: dict[str, Any]
    """What the unfinished recording says of itself; the header cannot change any more."""


def checkpoint_bytes(trainer: Trainer) -> bytes:
    """Returns the content of a Lightning checkpoint of this moment."""
    # Lightning saves to any fsspec path. This one is memory: the recording's writer brings it to the disk.
    path = f"/flannel-{os.getpid()}.ckpt"
    trainer.save_checkpoint(f"memory:/{path}", weights_only=False)
    memory = fsspec.filesystem("memory")
    data: bytes = memory.cat_file(path)
    memory.rm_file(path)
    return data


def checkpoint_digest(data: bytes) -> str:
    """Returns the xxh3-64 of a checkpoint's bytes, 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(data)


def remove_checkpoints(paths: RunPaths, *, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints of a run.

    Raises:
        RunError: If the disk refuses.
    """
    check_held(paths.folder)
    for _, _, path in paths.checkpoints()[keep:]:
        with explained(path, need_bytes=0):
            path.unlink(missing_ok=True)


def find_resume_point(
    paths: RunPaths, *, every_n_steps: int, note: Callable[[str], object]
) -> ResumePoint | None:
    """Finds the newest checkpoint that is whole and whose rows are whole.

    Args:
        paths: The run's files.
        every_n_steps: Steps from row to row.
        note: Called with a sentence for everything that is damaged.

    Returns:
        None if the run has to start from its beginning.
    """
    checkpoints = paths.checkpoints()
    if not checkpoints or not paths.partial.exists():
        return None
    num_good = num_good_rows(paths.partial)
    for step, digest, path in checkpoints:
        try:
            with open_regular(path) as file:
                data = file.read()
        except OSError as error:
            raise unreachable(path, error) from error
        if checkpoint_digest(data) != digest:
            note(f"{path} is damaged; trying the checkpoint before it")
        elif step // every_n_steps >= num_good:
            note(
                f"{paths.partial} has {num_good} good rows, too few for {path.name}; trying the one before it"
            )
        else:
            return ResumePoint(path, step, read_layout(paths.partial).flannel)
    note(f"no checkpoint in {paths.folder} can be used, so the run starts from its beginning")
    return None
