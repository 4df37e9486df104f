"""Streams a run's rows into their final place in one safetensors file, from a background thread.

The whole file is laid out and its space reserved before training starts. A row then goes: `acquire` a buffer
of the ring, fill its tensors, `submit` it; the thread computes checksums, writes each column's row with
pwrite, and every few seconds syncs the file and then the journal. A full ring makes `acquire` wait, so no
row is ever dropped and memory never grows. A failed write or fsync ends the attempt: after it nobody knows
what the disk holds, so it is never tried again.
"""

import contextlib
import dataclasses
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash

from flannel_pl.errors import RunError, UserError
from flannel_pl.publish import sync
from flannel_pl.recording.formats.attempts import with_attempt
from flannel_pl.recording.formats.columns import ColumnSpec
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.formats.safetensors.shard import create_shard, end_early, reopen_shard, shard_layout
from flannel_pl.recording.formats.schema import RecordingSchema, no_batch_counted
from flannel_pl.recording.writing.disk import disk_error, explained, publish, write_at, write_file
from flannel_pl.recording.writing.held import check_held
from flannel_pl.recording.writing.journal import SLOT_BYTES, Journal, JournalEntry, State

TORCH_DTYPES = {
    **{"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64},
    **{"I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool},
}
"""Dtype code of a column -> torch's dtype."""

JOURNAL_EVERY_S = 0.5
_ALIGNMENT_BYTES = 64  # of a cache line, and more than any dtype needs

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RowBuffer:
    """One row in memory. Fill every tensor in place before submitting it."""

    tensors: dict[str, torch.Tensor]
    """Column name -> a view of the ring, shape `ColumnSpec.sizes`, on the CPU."""

    row_bytes: dict[str, memoryview]
    """The same memory as bytes, which is what the thread writes."""


@dataclass(frozen=True)
class _Row:
    buffer: RowBuffer
    row: int
    ready: Callable[[], object] | None


@dataclass(frozen=True)
class _Checkpoint:
    path: Path
    data: bytes
    then: Callable[[], object] | None


class RecordingWriter:
    """Writes one run's recording; rows in order, each exactly once.

    The file carries `final_path` only when it is complete and synced. The journal always says how many rows
    are safe.

    Args:
        final_path: Name of the finished shard.
        partial_path: Its name until then, on the same file system.
        schema: Rows and columns.
        metadata: Goes into the header: `run`, `seed`, `swept`, `config`, `provenance`, as far as they are
            known.
        environment: In what this attempt is trained; goes into the header's list of attempts. None adds none.
        static: Tensors besides the per-row ones, by name without prefix, e.g. `recorded_tokens`.
        journal_entry: The entry to go on from; the writer updates all that changes while it writes.
        journal: Where the entries go.
        num_buffers: Rows the ring holds.
        pin_memory: Whether the ring is page-locked, for asynchronous copies from a GPU.
        commit_every_s: Longest time, in seconds, that a written row stays unsynced.
        first_row: Rows below this one are kept from an earlier attempt, whose partial file must have the
            same header but for the attempts.

    Raises:
        UserError: If `final_path` exists: a recording is never overwritten.
        RunError: If the disk is full, fails, or holds no matching partial file, or if another process has
            taken over the run's lock; later also from every method but `abort`.

    Example:
        >>> buffer = writer.acquire()                                  # doctest: +SKIP
        >>> buffer.tensors["embeddings"].copy_(weight)                 # doctest: +SKIP
        >>> writer.submit(buffer, row=0)                               # doctest: +SKIP
        >>> writer.finish()                                          # doctest: +SKIP
    """

    def __init__(
        self,
        final_path: Path,
        *,
        partial_path: Path,
        schema: RecordingSchema,
        metadata: Mapping[str, Any],
        static: "Mapping[str, np.ndarray[Any, Any]]",
        journal_entry: JournalEntry,
        journal: Journal,
        environment: Mapping[str, Any] | None = None,
        num_buffers: int = 4,
        pin_memory: bool = False,
        commit_every_s: float = 5.0,
        first_row: int = 0,
    ) -> None:
        if final_path.exists():
            raise UserError(
                f"{final_path} exists, and a recording is never overwritten. "
                "Choose another experiment.name or output_dir."
            )
        self.final_path = final_path
        self.partial_path = partial_path
        self.schema = schema
        self._journal = journal
        self._entry = dataclasses.replace(journal_entry, num_rows=schema.num_rows, first_row=first_row)
        self._commit_every_s = commit_every_s
        buffers = _make_buffers(schema, num_buffers=num_buffers, pin_memory=pin_memory)
        check_held(partial_path)
        with explained(partial_path, need_bytes=schema.file_bytes()):
            if first_row == 0:
                begun = {} if environment is None else {"attempts": with_attempt({}, 0, environment)}
                self._layout = shard_layout(schema, {**metadata, **begun}, static)
                self._fd = create_shard(partial_path, self._layout, schema=schema, static=static)
            else:
                self._fd, self._layout = reopen_shard(
                    partial_path,
                    schema=schema,
                    metadata=metadata,
                    static=static,
                    first_row=first_row,
                    environment=environment,
                )
        # Shared with the thread, guarded by `_changed`.
        self._changed = threading.Condition()
        self._free = deque(buffers)
        self._num_buffers = num_buffers
        self._held: set[RowBuffer] = set()
        self._jobs: deque[_Row | _Checkpoint] = deque()
        self._next_row = first_row
        self._failure: Exception | None = None
        self._ending = False
        self._closed = False
        # The thread's own, until it is joined.
        self._rows_written = first_row
        self._rows_committed = first_row
        self._rows_noted = first_row
        self._loss = journal_entry.loss
        self._first_bad_step = journal_entry.first_bad_step
        self._committed_at_s = self._noted_at_s = time.monotonic()
        try:
            with explained(partial_path, need_bytes=0):
                self._recall(first_row)
            self._note("running")
        except RunError:
            os.close(self._fd)
            raise
        self._thread = threading.Thread(target=self._work, name="flannel-writer", daemon=True)
        self._thread.start()

    def _recall(self, num_rows: int) -> None:
        """Learns from the rows that are kept what the journal says of the last and the first bad one."""
        if num_rows == 0:
            return
        columns = {"losses_f32": np.float32, "grad_norms": np.float32, "recorded_steps": np.int64}
        losses, norms, steps = (
            np.frombuffer(os.pread(self._fd, num_rows * np.dtype(dtype).itemsize, self._start(name)), dtype)
            for name, dtype in columns.items()
        )
        is_bad = ~(np.isfinite(losses) | no_batch_counted(losses, norms))
        bad_steps = steps[1:][is_bad[1:]]  # row 0 has no loss
        self._loss = float(losses[-1])
        self._first_bad_step = int(bad_steps[0]) if bad_steps.size else None

    def acquire(self) -> RowBuffer:
        """Returns a buffer to fill; waits while all of them are still being written.

        Raises:
            RunError: If writing has failed.
            ValueError: If the caller holds every buffer already, or the writer is closed.
        """
        with self._changed:
            if len(self._held) == self._num_buffers:
                raise ValueError("every buffer is held by the caller; submit one first")
            self._changed.wait_for(lambda: self._free or self._failure or self._closed)
            self._check_open()
            buffer = self._free.popleft()
            self._held.add(buffer)
            return buffer

    def submit(self, buffer: RowBuffer, row: int, ready: Callable[[], object] | None = None) -> None:
        """Hands a filled buffer over to the thread.

        Args:
            buffer: From `acquire`; not to be touched any more.
            row: Its row; rows come in order and without a gap.
            ready: Called by the thread before it reads the buffer, e.g. `torch.cuda.Event.synchronize`.

        Raises:
            RunError: If writing has failed.
            ValueError: If this is not the next row, or the buffer is not the caller's.
        """
        with self._changed:
            self._check_open()
            if row != self._next_row or row >= self.schema.num_rows:
                raise ValueError(f"got row {row}, expected row {self._next_row} of {self.schema.num_rows}")
            if buffer not in self._held:
                raise ValueError("got a buffer that was not acquired, or was submitted before")
            self._held.remove(buffer)
            self._next_row += 1
            self._jobs.append(_Row(buffer, row, ready))
            self._changed.notify_all()

    def checkpoint(self, path: Path, data: bytes, *, then: Callable[[], object] | None = None) -> None:
        """Queues a checkpoint behind the rows submitted so far.

        The thread makes those rows durable first, so a checkpoint on the disk always has its rows there.

        Args:
            path: Its name; it is written as `.partial` beside that, synced and renamed.
            data: Its bytes, opaque to the writer.
            then: Called by the thread once the checkpoint is durable, e.g. to delete older ones.

        Raises:
            RunError: If writing has failed.
            ValueError: If the writer is closed.
        """
        with self._changed:
            self._check_open()
            self._jobs.append(_Checkpoint(path, data, then))
            self._changed.notify_all()

    def raise_if_failed(self) -> None:
        """Raises the thread's error, if it had one.

        Raises:
            RunError: If writing has failed.
        """
        with self._changed:
            if self._failure is not None:
                raise self._explanation(self._failure) from self._failure

    def finish(self, ended: EarlyEnd | None = None) -> None:
        """Waits for the last row, makes everything durable, and gives the file its final name.

        Args:
            ended: Why no more rows come, if there are fewer than were planned. The file then has those that
                are there, and says so.

        Raises:
            RunError: If writing has failed or rows are missing; the partial file stays and the journal says
                why.
        """
        with self._changed:
            self._check_open()
        self._join()
        try:
            self.raise_if_failed()
            if ended is None and self._rows_written != self.schema.num_rows:
                raise RunError(
                    f"{self.partial_path} ended at row {self._rows_written} of {self.schema.num_rows}. "
                    "Start the run again; an unfinished file never gets its final name."
                )
            with explained(self.partial_path, need_bytes=0):
                self._publish(ended)
        except (RunError, UserError) as error:
            self.abort(str(error))
            raise
        self._close()

    def abort(
        self, message: str, *, state: Literal["failed", "stopped"] = "failed", keep_file: bool = True
    ) -> None:
        """Ends the attempt: writes and syncs what was submitted, if it can, and tells the journal.

        Raises nothing for a failing disk, since it is called while another error is
        on its way; does nothing if the writer is closed already.

        Args:
            message: Short cause.
            state: What the journal says: failed, or stopped on request. After a failed write it is always
                failed.
            keep_file: Whether the partial file stays.
        """
        if self._closed:
            return
        self._join()
        try:
            if self._failure is None:
                with explained(self.partial_path, need_bytes=0):
                    self._commit(state, message)
            else:
                self._note("failed", message, durable=True)
        except RunError as error:
            if str(error) != str(self._failure):
                _log.warning("%s", error)
        if not keep_file:
            self._remove_file()
        self._close()

    def _remove_file(self) -> None:
        """Removes the partial file if it still is this one, and nobody else's."""
        with contextlib.suppress(OSError, RunError):
            check_held(self.partial_path)
            if os.path.samestat(os.fstat(self._fd), self.partial_path.stat()):
                self.partial_path.unlink()

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._explanation(self._failure) from self._failure
        if self._closed:
            raise ValueError(f"the writer of {self.final_path} is closed")

    def _explanation(self, failure: Exception) -> RunError:
        if isinstance(failure, RunError):
            return RunError(str(failure))
        if isinstance(failure, OSError):
            rows_left = self.schema.num_rows - self._rows_written
            return disk_error(failure, self.partial_path, need_bytes=rows_left * self.schema.row_bytes)
        return RunError(
            f"Cannot write row {self._rows_written} of {self.partial_path}: "
            f"{type(failure).__name__}: {failure}"
        )

    def _join(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join()

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with contextlib.suppress(OSError):  # what matters was synced before, and its failure reported
            os.close(self._fd)

    def _publish(self, ended: EarlyEnd | None) -> None:
        # Data first, then the name, then the journal: a crash in between leaves a whole file under either
        # name and a journal that says too little. The other way round, "done" could stand beside a file
        # that is not there.
        sync(self._fd)
        self._rows_committed = self._rows_written
        if self.final_path.exists():
            raise UserError(
                f"{self.final_path} appeared during the run; {self.partial_path} is complete, and gets that "
                "name if you move the other file to another folder and repeat the command"
            )
        if ended is not None:
            self.schema = dataclasses.replace(self.schema, num_rows=self._rows_written)
            self._fd, self._layout = end_early(
                self.partial_path, self._fd, self._layout, schema=self.schema, ended=ended
            )
        publish(self.partial_path, self.final_path, fd=self._fd)
        if ended is not None:
            self._entry = dataclasses.replace(
                self._entry, num_rows=self.schema.num_rows, ended_step=ended.step
            )
        self._note("done", "" if ended is None else ended.reason, durable=True)

    # What follows runs in the thread; or after it was joined.

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._jobs or self._ending, timeout=JOURNAL_EVERY_S)
                    job = self._jobs.popleft() if self._jobs else None
                    if job is None and self._ending:
                        return
                check_held(self.partial_path, look=False)
                if isinstance(job, _Row):
                    self._write_row(job)
                    with self._changed:
                        self._free.append(job.buffer)
                        self._changed.notify_all()
                elif job is not None:
                    self._write_checkpoint(job)
                self._report_progress()
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _write_row(self, job: _Row) -> None:
        if job.ready is not None:
            job.ready()
        checksums = np.empty(len(self.schema.columns), np.uint64)
        for position, column in enumerate(self.schema.columns):
            data = job.buffer.row_bytes[column.name]
            checksums[position] = xxhash.xxh3_64_intdigest(data)
            self._write_cell(column, job.row, data)
        self._write_cell(self.schema.checksum_column, job.row, checksums.data)
        self._loss = float(job.buffer.tensors["losses_f32"])
        is_finite = math.isfinite(self._loss)
        is_empty = no_batch_counted(self._loss, float(job.buffer.tensors["grad_norms"]))
        # Row 0 is NaN by definition: no step, no loss.
        if job.row > 0 and self._first_bad_step is None and not (is_finite or is_empty):
            self._first_bad_step = int(job.buffer.tensors["recorded_steps"])
        self._rows_written = job.row + 1

    def _write_checkpoint(self, job: _Checkpoint) -> None:
        self._commit("running")
        write_file(job.path, job.data)
        if job.then is not None:
            job.then()

    def _write_cell(self, column: ColumnSpec, row: int, data: memoryview) -> None:
        write_at(self._fd, data, self._start(column.name) + row * column.row_bytes)

    def _start(self, column_name: str) -> int:
        return self._layout.offsets[self.schema.key_prefix + column_name]

    def _report_progress(self) -> None:
        now_s = time.monotonic()
        if self._rows_written > self._rows_committed and now_s - self._committed_at_s >= self._commit_every_s:
            self._commit("running")
        elif self._rows_written > self._rows_noted and now_s - self._noted_at_s >= JOURNAL_EVERY_S:
            self._note("running")

    def _commit(self, state: State, message: str = "") -> None:
        sync(self._fd)
        self._rows_committed = self._rows_written
        self._committed_at_s = time.monotonic()
        self._note(state, message, durable=True)

    def _note(self, state: State, message: str = "", *, durable: bool = False) -> None:
        entry = dataclasses.replace(
            self._entry,
            state=state,
            message=message,
            rows_written=self._rows_written,
            rows_committed=self._rows_committed,
            loss=self._loss,
            first_bad_step=self._first_bad_step,
            bytes_written=self._rows_written * self.schema.row_bytes,
            updated_s=time.time(),
        )
        with explained(self._journal.path, need_bytes=2 * SLOT_BYTES):
            self._journal.write(entry, durable=durable)
        self._rows_noted = self._rows_written
        self._noted_at_s = time.monotonic()


def _make_buffers(schema: RecordingSchema, *, num_buffers: int, pin_memory: bool) -> list[RowBuffer]:
    """Divides one allocation among `num_buffers` rows; every column starts aligned."""
    starts, end = {}, 0
    for column in schema.columns:
        starts[column.name] = end
        end += math.ceil(column.row_bytes / _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    ring = torch.zeros((num_buffers, end), dtype=torch.uint8, pin_memory=pin_memory)
    buffers = []
    for memory in ring:
        cells = {c.name: memory[starts[c.name] : starts[c.name] + c.row_bytes] for c in schema.columns}
        tensors = {c.name: cells[c.name].view(TORCH_DTYPES[c.dtype]).view(c.sizes) for c in schema.columns}
        buffers.append(RowBuffer(tensors, {name: cell.numpy().data for name, cell in cells.items()}))
    return buffers
