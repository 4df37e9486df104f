"""The rows of a recording: a loop over its quantities, whatever it is that trains.

It knows torch and the writer, and neither models nor trainers. Whoever trains says when a step begins and
ends, and what there is at these moments.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flannel_pl.errors import UserError
from flannel_pl.quantities.core.blame import blamed
from flannel_pl.quantities.core.due import due
from flannel_pl.quantities.core.passes import Passes
from flannel_pl.quantities.core.row import FilledRow, HeldRow, NoRow
from flannel_pl.quantities.quantity import Column, Quantity
from flannel_pl.quantities.step import Optimizing, Step
from flannel_pl.quantities.subject import Subject
from flannel_pl.recording.writing.ring import RowBuffer
from flannel_pl.recording.writing.writer import RecordingWriter

MOST_HELD = 16
"""How many rows are kept in memory until one tells the sizes of all columns."""

Open = Callable[[Mapping[str, Column]], RecordingWriter]
"""Makes the file of a recording, of which all columns are known."""


@dataclass(frozen=True)
class StepEnd:
    """What is known of a step once it is over."""

    loss: Tensor
    """Mean over the batches that count; NaN if none does."""

    logits_V: Tensor | None
    skipped: bool | Tensor
    """Whether the optimizer has left the step out."""

    rate: float | Tensor | None
    """By which it has stepped, if that may be another than before the step."""

    is_empty: bool
    """Whether no batch counts."""


class Rows:
    """Fills the row of each step and hands it to the writer.

    Where a column's size is told by its first value only, rows are held back until that is there.

    Args:
        open_file: Makes the file.
        quantities: What the rows are made of.
        declared: Column -> the quantity that fills it, and what that declares.
        subject: What is trained.
        every_n_steps: Steps from one row to the next.
        token_ids: Which tokens are recorded, on the parameter's device; None for all.
        rounded: Columns of which it was asked that they be stored in another type.
        non_blocking: Whether the host does not compute the values.
        passes: What is taken during forward passes.
        optional: Columns of unknown size that are left out if the first step does not fill them.
    """

    def __init__(
        self,
        open_file: Open,
        quantities: Sequence[Quantity],
        declared: Mapping[str, tuple[Quantity, Column]],
        *,
        subject: Subject,
        every_n_steps: int,
        token_ids: Tensor | None,
        rounded: Collection[str],
        non_blocking: bool,
        passes: Passes,
        optional: Collection[str] = (),
    ) -> None:
        self.subject, self.passes = subject, passes
        self.writer: RecordingWriter | None = None
        """None until the sizes of all columns are known."""

        self._open_file, self._quantities, self._declared = open_file, list(quantities), declared
        self._optional = optional
        self._columns = {name: column for name, (_, column) in declared.items()}
        self._every_n_steps, self._token_ids = every_n_steps, token_ids
        self._rounded = rounded
        self._device = subject.parameter.device if non_blocking else None
        self._held: list[tuple[int, HeldRow, bool]] = []
        self._buffer: RowBuffer | None = None
        self._row: FilledRow | HeldRow | NoRow = NoRow()
        self._step: Step | None = None
        self._begun = 0
        if not self._unknown:
            self.writer = open_file(self._columns)

    @property
    def _unknown(self) -> list[str]:
        """The columns of which only the first value will tell the size."""
        return [name for name, column in self._columns.items() if column.has_unknown_size]

    def take_first(self) -> None:
        """Writes row 0, the state before any step."""
        row = self._begin_row()
        if isinstance(row, FilledRow):
            row.begin()
        for quantity in self._quantities:
            with blamed(quantity):
                quantity.first_row(row, self.subject)
        self._end_row(0, is_empty=False)

    def before_step(self, number: int, optimizing: Optimizing, *, rate: float | Tensor) -> None:
        """Takes what a step uses up: its gradients are whole, and not clipped.

        Args:
            number: Of the step.
            optimizing: What the optimizer does.
            rate: By which it is going to.
        """
        self._begun = number
        step = self._step = Step(number, self.subject, optimizing, rate=kept_as_it_is(rate))
        row = self._begin_row() if number % self._every_n_steps == 0 else NoRow()
        for quantity in due(self._quantities, number, self._every_n_steps):
            with blamed(quantity):
                quantity.before_step(row, step)

    def after_step(self, number: int, optimizing: Optimizing, end: StepEnd, *, rate: float | Tensor) -> None:
        """Takes what there is after a step, and writes its row.

        Args:
            number: Of the step.
            optimizing: What the optimizer does.
            end: What is known of it then.
            rate: At its beginning; a step that was left out may never have come to `before_step`.
        """
        if self._begun != number:
            self.before_step(number, optimizing, rate=rate)
        row, step = self._row, self._step
        assert step is not None
        step.loss, step.logits_V, step.skipped = end.loss, end.logits_V, end.skipped
        step.rate = step.rate if end.rate is None else end.rate
        step.means = self.passes.means
        self.passes.fill(row, self._columns)
        for quantity in due(self._quantities, number, self._every_n_steps):
            with blamed(quantity):
                quantity.after_step(row, step)
        self.passes.clear()
        if number % self._every_n_steps == 0:
            self._end_row(number // self._every_n_steps, is_empty=end.is_empty)

    def refuse_unknown(self) -> None:
        """Refuses a recording of which no row has told all sizes.

        Raises:
            UserError: Names the columns.
        """
        if unknown := self._unknown:
            raise UserError(
                f"no step has told the size of {', '.join(unknown)}; what declares it has to fill it, or to "
                "say its size (Column.like)"
            )

    def _begin_row(self) -> FilledRow | HeldRow:
        row = HeldRow(self._columns) if self.writer is None else self._acquire(self.writer)
        self._row = row
        return row

    def _end_row(self, number: int, *, is_empty: bool) -> None:
        row, self._row = self._row, NoRow()
        if isinstance(row, FilledRow):
            self._submit(number, row.end(without_passes=is_empty))
        elif isinstance(row, HeldRow):
            self._held.append((number, row, is_empty))
            if number > 0:
                self._learn_sizes(row, is_empty=is_empty)

    def _learn_sizes(self, row: HeldRow, *, is_empty: bool) -> None:
        """Makes the file, and writes what was held back, once the sizes of all columns are known."""
        for name in self._unknown:
            value = row.values.get(name)
            if isinstance(value, Tensor):
                like = torch.empty_like(value, device="meta")
                self._columns[name] = dataclasses.replace(self._columns[name], like=like)
            elif name in self._optional and not is_empty:
                owner, _ = self._declared[name]
                del self._columns[name]
                self._quantities = [quantity for quantity in self._quantities if quantity is not owner]
        if self._unknown and len(self._held) < MOST_HELD:
            return
        self.refuse_unknown()
        self.writer = self._open_file(self._columns)
        for number, held, without_passes in self._held:
            filled = self._acquire(self.writer)
            if number == 0:
                filled.begin()
            held.pour(filled)
            self._submit(number, filled.end(without_passes=without_passes))
        self._held.clear()

    def _acquire(self, writer: RecordingWriter) -> FilledRow:
        self._buffer = writer.acquire()
        return FilledRow(
            self._buffer,
            self._columns,
            token_ids=self._token_ids,
            rounded=self._rounded,
            device=self._device,
        )

    def _submit(self, number: int, ready: Callable[[], object] | None) -> None:
        assert self.writer is not None
        assert self._buffer is not None
        self.writer.submit(self._buffer, number, ready)


def kept_as_it_is(rate: float | Tensor) -> float | Tensor:
    """Returns a rate that no schedule changes any more."""
    return rate.clone() if isinstance(rate, Tensor) else rate
