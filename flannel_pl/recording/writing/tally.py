"""What a run's journal is told of its rows: how many there are, how many are safe, and the newest numbers."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from torch import Tensor

from flannel_pl.recording.formats.files import Sink
from flannel_pl.recording.formats.schema import no_batch_counted
from flannel_pl.recording.writing.disk import explained
from flannel_pl.recording.writing.journal import SLOT_BYTES, Journal, JournalEntry, State
from flannel_pl.recording.writing.ring import Ring, RowBuffer

_RECALLED = {"losses_f32": np.float32, "grad_norms": np.float32, "recorded_steps": np.int64}


class Watcher(Protocol):
    """Sees the rows of a run, in order, each once it is written."""

    @property
    def seen_from(self) -> int:
        """Of the rows that are kept from an earlier attempt, the first to be seen again."""

    def see(self, row: int, tensors: Mapping[str, Tensor]) -> Mapping[str, float] | None:
        """Looks at a row. Must not raise.

        Args:
            row: Its number.
            tensors: Its columns; not to be kept.

        Returns:
            Numbers that are in the journal until others are; None for nothing new.
        """


class Tally:
    """Counts the rows of one attempt, from its `first_row` on, and writes the journal.

    Args:
        journal: Where the entries go.
        entry: The entry to go on from.
        row_bytes: Size of a row.
        watcher: Sees every row that is counted.
    """

    def __init__(
        self, journal: Journal, entry: JournalEntry, *, row_bytes: int, watcher: Watcher | None = None
    ) -> None:
        self._journal, self._entry, self._row_bytes = journal, entry, row_bytes
        self.rows_written = self.rows_committed = self._rows_noted = entry.first_row
        self._loss, self._first_bad_step = entry.loss, entry.first_bad_step
        self._watcher = watcher
        self._live: Mapping[str, float] = {}
        self._committed_at_s = self._noted_at_s = time.monotonic()

    def recall(self, sink: Sink, ring: Ring) -> None:
        """Learns from the rows that are kept what the journal says of the last and the first bad one."""
        if self.rows_written == 0:
            return
        self._show_again(sink, ring)
        losses, norms, steps = (
            np.frombuffer(sink.rows(name, range(self.rows_written)), dtype)
            for name, dtype in _RECALLED.items()
        )
        is_bad = ~(np.isfinite(losses) | no_batch_counted(losses, norms))
        bad_steps = steps[1:][is_bad[1:]]  # row 0 has no loss
        self._loss = float(losses[-1])
        self._first_bad_step = int(bad_steps[0]) if bad_steps.size else None

    def count(self, row: int, buffer: RowBuffer) -> None:
        """Counts a row that was handed to the operating system."""
        self._loss = float(buffer.tensors["losses_f32"])
        is_finite = math.isfinite(self._loss)
        is_empty = no_batch_counted(self._loss, float(buffer.tensors["grad_norms"]))
        # Row 0 is NaN by definition: no step, no loss.
        if row > 0 and self._first_bad_step is None and not (is_finite or is_empty):
            self._first_bad_step = int(buffer.tensors["recorded_steps"])
        self.rows_written = row + 1
        self._show(row, buffer)

    def _show_again(self, sink: Sink, ring: Ring) -> None:
        first_row = self.rows_written if self._watcher is None else self._watcher.seen_from
        for row in range(first_row, self.rows_written):
            buffer = ring.take()
            for name, data in buffer.row_bytes.items():
                data[:] = sink.rows(name, range(row, row + 1))
            self._show(row, buffer)
            ring.hand_over(buffer)
            ring.give_back(buffer)

    def _show(self, row: int, buffer: RowBuffer) -> None:
        live = None if self._watcher is None else self._watcher.see(row, buffer.tensors)
        self._live = self._live if live is None else live

    def count_committed(self) -> None:
        """Counts all that were written as safe."""
        self.rows_committed = self.rows_written
        self._committed_at_s = time.monotonic()

    def count_ended(self, step: int) -> None:
        """Counts the rows that there are as all there will be, since the run ended early with a step."""
        self._entry = dataclasses.replace(self._entry, num_rows=self.rows_written, ended_step=step)

    def needs_commit(self, *, every_s: float) -> bool:
        """Tells whether written rows have not been safe for longer than that, in seconds."""
        return self.rows_written > self.rows_committed and time.monotonic() - self._committed_at_s >= every_s

    def needs_note(self, *, every_s: float) -> bool:
        """Tells whether the journal has not known of written rows for longer than that, in seconds."""
        return self.rows_written > self._rows_noted and time.monotonic() - self._noted_at_s >= every_s

    def note(self, state: State, message: str = "", *, durable: bool = False) -> None:
        """Writes what is known into the journal.

        Args:
            state: Of the run.
            message: Short cause.
            durable: Whether to return only when that survives a power cut.

        Raises:
            RunError: If the disk refuses, or another process has taken over the run's lock.
        """
        entry = dataclasses.replace(
            self._entry,
            state=state,
            message=message,
            rows_written=self.rows_written,
            rows_committed=self.rows_committed,
            loss=self._loss,
            first_bad_step=self._first_bad_step,
            live=dict(self._live),
            bytes_written=self.rows_written * self._row_bytes,
            updated_s=time.time(),
        )
        with explained(self._journal.path, need_bytes=2 * SLOT_BYTES):
            self._journal.write(entry, durable=durable)
        self._rows_noted = self.rows_written
        self._noted_at_s = time.monotonic()
