"""The writing side: each row is put in its final place in a file whose header is there before."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Mapping

from flannel_pl.publish import sync
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.formats.safetensors.layout import SPARE_HEADER_BYTES, FileLayout, plan_layout
from flannel_pl.recording.formats.safetensors.shard import create_shard, end_early, reopen_shard
from flannel_pl.recording.formats.schema import RecordingSchema, ShardPlan
from flannel_pl.recording.formats.specs import TensorSpec
from flannel_pl.recording.writing.disk import is_named, publish, write_at
from flannel_pl.recording.writing.held import check_held

MOST_COPIED_BYTES = 2**30
"""A recording of which nobody knew the length is made anew at its end, without the fillers that would make it
look enormous, as long as that takes no more than a moment."""


class SafetensorsSink:
    """Writes one run's safetensors file; see `Sink`. Its whole size is reserved before the first row.

    Args:
        plan: What it is to be.
    """

    _layout: FileLayout

    def __init__(self, plan: ShardPlan) -> None:
        self._plan, schema = plan, plan.schema
        self._row_bytes = {one.name: one.row_bytes for one in (*schema.columns, schema.checksum_column)}
        self._fd = -1

    @property
    def size(self) -> int:
        """Bytes that the file takes, but for the pages that its metadata fill."""
        return shard_bytes(self._plan.schema)

    def open(self) -> None:
        """Makes the file."""
        self._fd, self._layout = create_shard(self._plan)

    def reopen(self, first_row: int) -> None:
        """Opens the file of an earlier attempt, which must have the same header but for the attempts."""
        self._fd, self._layout = reopen_shard(self._plan, first_row)

    def rows(self, name: str, rows: range) -> bytes:
        """Returns some rows of a column."""
        row_bytes = self._row_bytes[name]
        return os.pread(self._fd, len(rows) * row_bytes, self._start(name) + rows.start * row_bytes)

    def write_row(self, row: int, cells: Iterable[tuple[str, memoryview]]) -> None:
        """Writes what a row has in each column."""
        for name, data in cells:
            write_at(self._fd, data, self._start(name) + row * self._row_bytes[name])

    def commit(self) -> None:
        """Makes everything durable."""
        sync(self._fd)

    def publish(self, num_rows: int, ended: EarlyEnd | None) -> None:
        """Gives the file its name; what it has no rows for is given back to the disk before."""
        plan = self._plan
        if ended is not None:
            schema = dataclasses.replace(plan.schema, num_rows=num_rows)
            self._fd, self._layout = end_early(
                *(plan.partial, self._fd, self._layout),
                schema=schema,
                ended=ended,
                most_copied_bytes=0 if plan.reserve else MOST_COPIED_BYTES,
            )
        publish(plan.partial, plan.final, fd=self._fd)

    def abort(self) -> None:
        """Removes the file if it still is this one, and nobody else's."""
        check_held(self._plan.partial)
        if is_named(self._plan.partial, fd=self._fd):
            self._plan.partial.unlink()

    def close(self) -> None:
        """Lets go of it."""
        with contextlib.suppress(OSError):  # what matters was synced before, and its failure reported
            os.close(self._fd)

    def _start(self, name: str) -> int:
        return self._layout.offsets[self._plan.schema.key_prefix + name]


def shard_bytes(
    schema: RecordingSchema, static: Mapping[str, TensorSpec] | None = None, *, metadata: str = ""
) -> int:
    """Returns the size of a run's file, header included.

    Args:
        schema: Its rows and columns.
        static: Its tensors besides the per-row ones, by name without prefix.
        metadata: The metadata string; without it the result is short by the whole pages that it fills.
    """
    return plan_layout(schema.specs(static), metadata=metadata, spare_bytes=SPARE_HEADER_BYTES).total_bytes
