"""The file of one run before it has its final name: making it, reopening it, and writing its header anew.

The header is there before the first row and changes later: a further attempt goes on in another environment.
A crash in the middle of that must cost no row, so a copy of the new header is made safe beside the file
first; whoever reads a file whose header is torn takes the copy (see `read_layout`). Where the new header does
not fit into the space of the old one, the rows are copied into a file with more space, which then takes the
other's place.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flannel_pl.errors import RunError
from flannel_pl.publish import sync
from flannel_pl.recording.attempts import with_attempt
from flannel_pl.recording.disk import (
    copy_range,
    create,
    header_copy_of,
    publish,
    roomier_of,
    write_at,
    write_file,
)
from flannel_pl.recording.layout import SPARE_HEADER_BYTES, FileLayout, TensorSpec, plan_layout, read_layout
from flannel_pl.recording.metadata import CHECKSUM_KEY, dump_metadata
from flannel_pl.recording.schema import RecordingSchema
from flannel_pl.recording.space import preallocate

Static = Mapping[str, "np.ndarray[Any, Any]"]
"""Tensors besides the per-row ones, by name without prefix."""


def shard_layout(schema: RecordingSchema, metadata: Mapping[str, Any], static: Static) -> FileLayout:
    """Returns the layout of a new shard; equal arguments give an equal header."""
    said = schema.metadata(metadata, static=static)
    return plan_layout(_specs(schema, static), metadata=said, spare_bytes=SPARE_HEADER_BYTES)


def create_shard(path: Path, layout: FileLayout, *, schema: RecordingSchema, static: Static) -> int:
    """Makes the partial file with its full size, header and static tensors; returns its descriptor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = create(path)
    try:
        for leftover in (header_copy_of(path), roomier_of(path)):
            leftover.unlink(missing_ok=True)
        preallocate(fd, layout.total_bytes)
        write_at(fd, layout.header, 0)
        for name, array in static.items():
            write_at(fd, array.tobytes(), layout.offsets[schema.key_prefix + name])
    except OSError:
        os.close(fd)
        path.unlink()  # holds no row, and may have taken the last of the disk
        raise
    return fd


def reopen_shard(
    path: Path,
    *,
    schema: RecordingSchema,
    metadata: Mapping[str, Any],
    static: Static,
    first_row: int,
    environment: Mapping[str, Any] | None,
) -> tuple[int, FileLayout]:
    """Opens the partial file of an earlier attempt, and adds this one to what it says of itself.

    Args:
        path: The partial file.
        schema: Rows and columns it must have.
        metadata: What it must say, besides its attempts.
        static: The static tensors it must have.
        first_row: First row that is made now.
        environment: In what; None adds no attempt.

    Returns:
        Its descriptor and its layout.

    Raises:
        OSError: If the disk fails.
        RunError: If it was begun with something else, or its header is damaged.
    """
    fd = os.open(path, os.O_RDWR)
    try:
        there = read_layout(path)
        said = {key: value for key, value in there.flannel.items() if key != CHECKSUM_KEY}
        wanted = json.loads(schema.metadata(metadata, static=static))
        own = {"attempts", CHECKSUM_KEY}
        if there.tensors != _specs(schema, static) or any(
            wanted.get(key) != said.get(key) for key in (wanted.keys() | said.keys()) - own
        ):
            raise RunError(
                f"{path} was begun with other settings or metadata. Repeat what it was begun with, or choose "
                "another experiment.name."
            )
        if environment is not None and first_row < schema.num_rows:
            said["attempts"] = with_attempt(said, first_row, environment)
        layout = plan_layout(there.tensors, metadata=dump_metadata(said), min_header_bytes=len(there.header))
        if len(layout.header) > len(there.header):
            fd, layout = _with_more_room(path, fd, there, said)
        elif os.pread(fd, len(layout.header), 0) != layout.header:
            rewrite_header(path, fd, layout)
        header_copy_of(path).unlink(missing_ok=True)
    except BaseException:
        os.close(fd)
        raise
    return fd, layout


def rewrite_header(path: Path, fd: int, layout: FileLayout) -> None:
    """Writes a header over that of an unfinished file, which is as long; a crash at any moment costs nothing.

    Args:
        path: The file.
        fd: Its descriptor.
        layout: Its new layout.

    Raises:
        OSError: If the disk fails.
        RunError: Likewise.
    """
    write_file(header_copy_of(path), layout.header)
    write_at(fd, layout.header, 0)
    sync(fd)
    header_copy_of(path).unlink()


def _with_more_room(
    path: Path, fd: int, there: FileLayout, said: Mapping[str, Any]
) -> tuple[int, FileLayout]:
    """Puts a file with more space for its header in the place of an open one, which is closed.

    Args:
        path: The file.
        fd: Its descriptor.
        there: Its layout.
        said: What its header is to say.

    Returns:
        Descriptor and layout of the new file.
    """
    layout = plan_layout(there.tensors, metadata=dump_metadata(said), spare_bytes=len(there.header))
    new = create(roomier_of(path))
    try:
        preallocate(new, layout.total_bytes)
        write_at(new, layout.header, 0)
        copy_range(
            fd,
            new,
            source_offset=len(there.header),
            target_offset=len(layout.header),
            num_bytes=there.total_bytes - len(there.header),
            advance=lambda num_bytes: None,
        )
        sync(new)
        publish(roomier_of(path), path, fd=new)
    except BaseException:
        os.close(new)
        roomier_of(path).unlink(missing_ok=True)
        raise
    os.close(fd)
    return new, layout


def _specs(schema: RecordingSchema, static: Static) -> dict[str, TensorSpec]:
    return schema.specs({name: TensorSpec.of(array) for name, array in static.items()})
