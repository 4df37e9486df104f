"""What a run goes on from: Lightning's checkpoints, each named after its step and the hash of its bytes.

The writer brings a checkpoint to the disk only after the rows up to its step, so one that is there
has its rows there. Two are kept: should the newest be damaged, the one before it takes its place.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import fsspec
import xxhash
from lightning.pytorch import Callback, Trainer

from flannel_pl.experiment import RunPaths
from flannel_pl.recording.sameness import decisive
from flannel_pl.recording.writing.disk import explained
from flannel_pl.recording.writing.held import check_held

NUM_KEPT = 2


def identity_in_checkpoint(run: int, seed: int | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a checkpoint says of its run, with what of its config decides bits as JSON.

    Args:
        run: Its number.
        seed: Its seed.
        metadata: What its recording says besides these.
    """
    identity: dict[str, Any] = {"run": run, "seed": seed}
    if "config" in metadata:
        identity["config"] = json.dumps(decisive(metadata["config"]))
    return identity


def key_in_checkpoint(recorder: Callback, trainer: Trainer) -> str:
    """Returns where a recorder's part of a checkpoint is; of several each has its own."""
    callbacks: list[Callback] = getattr(trainer, "callbacks", [recorder])
    number = [one for one in callbacks if type(one) is type(recorder)].index(recorder)
    return f"flannel_pl_{number}" if number else "flannel_pl"


def checkpoint_bytes(trainer: Trainer) -> bytes:
    """Returns the content of a Lightning checkpoint of this moment."""
    # Lightning saves to any fsspec path. This one is memory: the recording's writer brings it to the disk.
    path = f"/flannel-{os.getpid()}"
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
