"""Streams a run's rows to the disk, from a background thread.

The file is made and its space reserved before training starts; how a row lies in it is the `Sink`'s affair. A
row goes: `acquire` a buffer of the ring, fill its tensors, `submit` it; the thread computes checksums, hands
each column's cell to the sink, and every few seconds syncs the file and then the journal. A full ring makes
`acquire` wait, so no row is ever dropped and memory never grows. A failed write or fsync ends the attempt:
after it nobody knows what the disk holds, so it is never tried again.
"""

import contextlib
import dataclasses
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from flannel_pl.arrays import Array
from flannel_pl.errors import RunError, UserError
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.formats.files import format_of
from flannel_pl.recording.formats.schema import RecordingSchema, ShardPlan
from flannel_pl.recording.writing.disk import explained, row_error, write_file
from flannel_pl.recording.writing.held import check_held
from flannel_pl.recording.writing.journal import Journal, JournalEntry, State
from flannel_pl.recording.writing.ring import Ring, RowBuffer
from flannel_pl.recording.writing.tally import Tally, Watcher

JOURNAL_EVERY_S = 0.5

_log = logging.getLogger(__name__)


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
        reserve: Whether the disk gives all rows their space now; not where nobody knows how many come.
        watcher: Sees every row, in the thread once it is written; of those that are kept some, at once.

    Raises:
        UserError: If `final_path` exists: a recording is never overwritten.
        RunError: If the disk is full, fails, or holds no matching partial file, or if another process has
            taken over the run's lock; later also from every method but `abort`.
    """

    def __init__(
        self,
        final_path: Path,
        *,
        partial_path: Path,
        schema: RecordingSchema,
        metadata: Mapping[str, Any],
        static: Mapping[str, Array],
        journal_entry: JournalEntry,
        journal: Journal,
        environment: Mapping[str, Any] | None = None,
        num_buffers: int = 4,
        pin_memory: bool = False,
        commit_every_s: float = 5.0,
        first_row: int = 0,
        reserve: bool = True,
        watcher: Watcher | None = None,
    ) -> None:
        if final_path.exists():
            raise UserError(
                f"{final_path} exists, and a recording is never overwritten. "
                "Choose another experiment.name or output_dir."
            )
        self.final_path, self.partial_path, self.schema = final_path, partial_path, schema
        self._commit_every_s = commit_every_s
        ring = Ring(schema, num_buffers=num_buffers, pin_memory=pin_memory)
        check_held(partial_path)
        plan = ShardPlan(final_path, partial_path, schema, metadata, static, environment, reserve)
        self._sink = format_of(partial_path).sink(plan)
        with explained(partial_path, need_bytes=self._sink.size):
            self._sink.open() if first_row == 0 else self._sink.reopen(first_row)
        # Shared with the thread, guarded by `_changed`.
        self._changed = threading.Condition()
        self._ring = ring
        self._jobs: deque[Callable[[], object]] = deque()
        self._next_row = first_row
        self._failure: BaseException | None = None
        self._ending = self._closed = False
        # The thread's own, until it is joined.
        entry = dataclasses.replace(journal_entry, num_rows=schema.num_rows, first_row=first_row)
        self._tally = Tally(journal, entry, row_bytes=schema.row_bytes, watcher=watcher)
        try:
            with explained(partial_path, need_bytes=0):
                self._tally.recall(self._sink, ring)
            self._tally.note("running")
        except RunError:
            self._sink.close()
            raise
        self._thread = threading.Thread(target=self._work, name="flannel-writer", daemon=True)
        self._thread.start()

    @property
    def num_rows_seen(self) -> int:
        """Rows that the watcher has surely seen, whatever the thread is at: their buffers have come round."""
        return self._next_row - self._ring.num_buffers

    def settle(self) -> None:
        """Waits until all rows that were submitted are written and seen; raises as `raise_if_failed` does."""
        with self._changed:
            self._changed.wait_for(lambda: self._ring.is_at_rest or self._failure)
        self.raise_if_failed()

    def acquire(self) -> RowBuffer:
        """Returns a buffer to fill; waits while all of them are still being written.

        Raises:
            RunError: If writing has failed.
            ValueError: If the caller holds every buffer already, or the writer is closed.
        """
        with self._changed:
            if self._ring.is_held:
                raise ValueError("every buffer is held by the caller; submit one first")
            self._changed.wait_for(lambda: self._ring.has_free or self._failure or self._closed)
            self._check_open()
            return self._ring.take()

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
            self._ring.hand_over(buffer)
            self._next_row += 1
            self._queue(partial(self._write_row, buffer, row, ready))

    def checkpoint(self, path: Path, data: bytes, *, then: Callable[[], object] | None = None) -> None:
        """Queues a checkpoint behind the rows submitted so far.

        The thread makes those rows durable first, so a checkpoint on the disk always has its rows there.

        Args:
            path: Its name; it is written as `.partial` beside that, synced and renamed.
            data: Its bytes, opaque to the writer.
            then: Called by the thread once the checkpoint is durable, e.g. to delete older ones.
        """
        with self._changed:
            self._queue(partial(self._write_checkpoint, path, data, then))

    def flush(self) -> int:
        """Waits until the rows submitted so far are safe on the disk; returns their number, or raises."""
        done = threading.Event()
        with self._changed:
            num_rows = self._next_row
            self._queue(partial(self._commit, "running"))
            self._queue(done.set)
        while not done.wait(timeout=0.05):
            self.raise_if_failed()
        return num_rows

    def _queue(self, job: Callable[[], object]) -> None:
        self._check_open()
        self._jobs.append(job)
        self._changed.notify_all()

    def raise_if_failed(self) -> None:
        """Raises the thread's error, if it had one.

        Raises:
            RunError: If writing has failed.
        """
        with self._changed:
            if self._failure is not None:
                row = self._tally.rows_written
                need_bytes = (self.schema.num_rows - row) * self.schema.row_bytes
                raise row_error(
                    self._failure, self.partial_path, row=row, need_bytes=need_bytes
                ) from self._failure

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
            if ended is None and self._tally.rows_written != self.schema.num_rows:
                raise RunError(
                    f"{self.partial_path} ended at row {self._tally.rows_written} of {self.schema.num_rows}. "
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

        Raises nothing for a failing disk, since it is called while another error is on its way; does nothing
        if the writer is closed already.

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
                self._tally.note("failed", message, durable=True)
        except RunError as error:
            if str(error) != str(self._failure):
                _log.warning("%s", error)
        if not keep_file:
            with contextlib.suppress(OSError, RunError):
                self._sink.abort()
        self._close()

    def _check_open(self) -> None:
        self.raise_if_failed()
        if self._closed:
            raise ValueError(f"the writer of {self.final_path} is closed")

    def _join(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join()

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._sink.close()

    def _publish(self, ended: EarlyEnd | None) -> None:
        # Data first, then the name, then the journal: a crash in between leaves a whole file under either
        # name and a journal that says too little. The other way round, "done" could stand beside a file
        # that is not there.
        self._sink.commit()
        self._tally.count_committed()
        if self.final_path.exists():
            raise UserError(
                f"{self.final_path} appeared during the run; {self.partial_path} is complete, and gets that "
                "name if you move the other file to another folder and repeat the command"
            )
        self._sink.publish(self._tally.rows_written, ended)
        if ended is not None:
            self.schema = dataclasses.replace(self.schema, num_rows=self._tally.rows_written)
            self._tally.count_ended(ended.step)
        self._tally.note("done", "" if ended is None else ended.reason, durable=True)

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
                if job is not None:
                    job()
                self._report_progress()
        except BaseException as error:  # whatever it is, nobody may wait for this thread
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _write_row(self, buffer: RowBuffer, row: int, ready: Callable[[], object] | None) -> None:
        if ready is not None:
            ready()
        self._sink.write_row(row, buffer.cells())
        self._tally.count(row, buffer)
        with self._changed:
            self._ring.give_back(buffer)
            self._changed.notify_all()

    def _write_checkpoint(self, path: Path, data: bytes, then: Callable[[], object] | None) -> None:
        self._commit("running")
        write_file(path, data)
        if then is not None:
            then()

    def _report_progress(self) -> None:
        if self._tally.needs_commit(every_s=self._commit_every_s):
            self._commit("running")
        elif self._tally.needs_note(every_s=JOURNAL_EVERY_S):
            self._tally.note("running")

    def _commit(self, state: State, message: str = "") -> None:
        self._sink.commit()
        self._tally.count_committed()
        self._tally.note(state, message, durable=True)
