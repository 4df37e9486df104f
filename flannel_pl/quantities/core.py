"""The rows of a recording: a loop over its quantities, whatever it is that trains.

It knows torch and the writer, and neither models nor trainers. Whoever trains says when a step begins and
ends, and what there is at these moments.
"""

import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flannel_pl.errors import RunError, UserError
from flannel_pl.quantities.passes import Passes
from flannel_pl.quantities.quantity import Column, Quantity
from flannel_pl.quantities.row import FilledRow, NoRow
from flannel_pl.quantities.step import Optimizing, Step
from flannel_pl.quantities.subject import Subject
from flannel_pl.recording.writing.ring import RowBuffer
from flannel_pl.recording.writing.writer import RecordingWriter


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

    Args:
        writer: Takes the rows.
        quantities: What they are made of.
        declared: Column -> the quantity that fills it, and what that declares.
        subject: What is trained.
        every_n_steps: Steps from one row to the next.
        token_ids: Which tokens are recorded, on the parameter's device; None for all.
        rounded: Columns of which it was asked that they be stored in another type.
        non_blocking: Whether the host does not compute the values.
        passes: What is taken during forward passes.
    """

    def __init__(
        self,
        writer: RecordingWriter,
        quantities: Sequence[Quantity],
        declared: Mapping[str, tuple[Quantity, Column]],
        *,
        subject: Subject,
        every_n_steps: int,
        token_ids: Tensor | None,
        rounded: Collection[str],
        non_blocking: bool,
        passes: Passes,
    ) -> None:
        self.subject, self.passes = subject, passes
        self._writer, self._quantities = writer, quantities
        self._columns = {name: column for name, (_, column) in declared.items()}
        self._every_n_steps, self._token_ids = every_n_steps, token_ids
        self._rounded, self._non_blocking = rounded, non_blocking
        self._row: tuple[RowBuffer, FilledRow, Step] | None = None
        self._begun = 0

    def take_first(self) -> None:
        """Writes row 0, the state before any step."""
        buffer, row = self._new_row()
        row.begin()
        for quantity in self._quantities:
            with blamed(quantity):
                quantity.first_row(row, self.subject)
        row.end()
        self._writer.submit(buffer, 0, self._copied())

    def before_step(self, number: int, optimizing: Optimizing, *, rate: float | Tensor) -> None:
        """Takes what a step uses up: its gradients are whole, and not clipped.

        Args:
            number: Of the step.
            optimizing: What the optimizer does.
            rate: By which it is going to.
        """
        self._begun = number
        step = Step(number, self.subject, optimizing, rate=kept_as_it_is(rate))
        if number % self._every_n_steps:
            for quantity in self._remembering:
                with blamed(quantity):
                    quantity.before_step(NoRow(), step)
            return
        buffer, row = self._new_row()
        for quantity in self._quantities:
            with blamed(quantity):
                quantity.before_step(row, step)
        self._row = (buffer, row, step)

    def after_step(self, number: int, optimizing: Optimizing, end: StepEnd, *, rate: float | Tensor) -> None:
        """Takes what there is after a step, and writes its row.

        Args:
            number: Of the step.
            optimizing: What the optimizer does.
            end: What is known of it then.
            rate: At its beginning; a step that was left out may never have come to `before_step`.
        """
        is_due = number % self._every_n_steps == 0
        if self._begun != number:
            self.before_step(number, optimizing, rate=rate)
        buffer, row, step = self._row or (None, NoRow(), Step(number, self.subject, optimizing, rate=rate))
        step.loss, step.logits_V, step.skipped = end.loss, end.logits_V, end.skipped
        step.rate = step.rate if end.rate is None else end.rate
        step.means = self.passes.means
        if isinstance(row, FilledRow):
            self.passes.fill(row, self._columns)
        for quantity in self._quantities if is_due else self._remembering:
            with blamed(quantity):
                quantity.after_step(row, step)
        if isinstance(row, FilledRow) and buffer is not None:
            row.end(without_passes=end.is_empty)
            self._writer.submit(buffer, number // self._every_n_steps, self._copied())
        self.passes.clear()
        self._row = None

    @property
    def _remembering(self) -> list[Quantity]:
        return [quantity for quantity in self._quantities if quantity.every_step]

    def _new_row(self) -> tuple[RowBuffer, FilledRow]:
        buffer = self._writer.acquire()
        row = FilledRow(
            buffer.tensors,
            self._columns,
            token_ids=self._token_ids,
            rounded=self._rounded,
            non_blocking=self._non_blocking,
        )
        return buffer, row

    def _copied(self) -> Callable[[], object] | None:
        """Returns a function that waits until the copies queued so far are done; None if they already are."""
        if not self._non_blocking:
            return None
        # The thread that waits for it sleeps; one that is not blocking would spin on a core.
        event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return lambda: event.synchronize()


@contextmanager
def blamed(quantity: Quantity) -> Iterator[None]:
    """Says whose code an error was raised in, where it is somebody's own quantity.

    Raises:
        UserError: In place of whatever else is raised.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        kind = type(quantity)
        if kind.__module__.startswith("flannel_pl."):
            raise
        *_, last = traceback.extract_tb(error.__traceback__)
        where = f"{last.filename}, line {last.lineno}"
        raise UserError(
            f"the quantity {kind.__module__}.{kind.__qualname__} failed with {type(error).__name__}: {error} "
            f"({where})"
        ) from error


def kept_as_it_is(rate: float | Tensor) -> float | Tensor:
    """Returns a rate that no schedule changes any more."""
    return rate.clone() if isinstance(rate, Tensor) else rate
