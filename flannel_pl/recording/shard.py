"""The file of one run before its first row: its layout, and making or reopening it under its partial name."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flannel_pl.errors import RunError
from flannel_pl.recording.disk import create, write_at
from flannel_pl.recording.layout import FileLayout, TensorSpec, plan_layout
from flannel_pl.recording.schema import RecordingSchema
from flannel_pl.recording.space import preallocate


def shard_layout(
    schema: RecordingSchema, metadata: Mapping[str, Any], static: "Mapping[str, np.ndarray[Any, Any]]"
) -> FileLayout:
    """Returns the layout of a shard; equal arguments give an equal header."""
    specs = schema.specs({name: TensorSpec.of(array) for name, array in static.items()})
    return plan_layout(specs, metadata=schema.metadata(metadata, static=static))


def create_shard(
    path: Path, layout: FileLayout, *, schema: RecordingSchema, static: "Mapping[str, np.ndarray[Any, Any]]"
) -> int:
    """Makes the partial file with its full size, header and static tensors; returns its descriptor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = create(path)
    try:
        preallocate(fd, layout.total_bytes)
        write_at(fd, layout.header, 0)
        for name, array in static.items():
            write_at(fd, array.tobytes(), layout.offsets[schema.key_prefix + name])
    except OSError:
        os.close(fd)
        path.unlink()  # holds no row, and may have taken the last of the disk
        raise
    return fd


def reopen_shard(path: Path, layout: FileLayout) -> int:
    """Opens the partial file of an earlier attempt; returns its descriptor."""
    fd = os.open(path, os.O_RDWR)
    if os.pread(fd, len(layout.header), 0) == layout.header and os.fstat(fd).st_size == layout.total_bytes:
        return fd
    os.close(fd)
    raise RunError(
        f"{path} was begun with other settings or metadata. Repeat what it was begun with, or choose another "
        "experiment.name."
    )
