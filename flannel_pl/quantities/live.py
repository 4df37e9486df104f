"""Live metrics: numbers that the writer's thread computes of the rows, and training logs.

The thread measures a row once that is written, from the buffer that it is still in. Training fetches what is
ready, never waits for it, and logs it: loggers are called from one thread only. A row is fetched a fixed
number of rows later, when the ring has long come round, and not as soon as it happens to be there: so an
interrupted training that goes on logs what an undisturbed one does, in the same order.

Shape suffixes: V recorded tokens, D width of the embedding.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import torch
from torch import Tensor

from flannel_pl.arrays import Array
from flannel_pl.errors import UserError
from flannel_pl.metrics.row_metrics import RowMetric, find_metrics, measure_row
from flannel_pl.recording.formats.schema import SKIPPED, no_batch_counted

MEASURED = "embeddings"
"""The column that is measured."""


def check_live(names: Sequence[str], tensors: Sequence[str]) -> None:
    """Refuses live metrics that there are not, or that nothing would be there for.

    Args:
        names: `recorder.live`.
        tensors: What is recorded.

    Raises:
        UserError: With what there is.
    """
    find_metrics(names, option="recorder.live")
    if names and MEASURED not in tensors:
        raise UserError(
            f"recorder.live measures {MEASURED}, which recorder.tensors leaves out; add {MEASURED} to "
            "recorder.tensors, or leave recorder.live out"
        )


@dataclass(frozen=True)
class LiveValues:
    """What was measured of a row; nothing where none was due."""

    row: int
    step: int
    values: Mapping[str, float]
    failure: BaseException | None = None


class LiveMetrics:
    """Measures rows in one thread and hands the values over to another.

    A metric that fails ends live metrics, not the training: rows are worth more.

    Args:
        metrics: Name -> metric.
        sets: Token set -> positions in a row.
        every_n_steps: Measured is the first row, and the first at or after every n-th step.
        next_row: The first row that has not been logged; those below it are only looked at, as the row
            before another.
    """

    def __init__(
        self,
        metrics: Mapping[str, RowMetric],
        sets: Mapping[str, Array],
        *,
        every_n_steps: int,
        next_row: int,
    ) -> None:
        self.next_row = next_row
        """First row that was not taken yet; goes into checkpoints."""

        self._metrics, self._sets, self._every_n_steps = metrics, sets, every_n_steps
        self._first_row = next_row
        self._before: tuple[int, Array] | None = None
        self._has_failed = False
        self._seen: deque[LiveValues] = deque()

    @property
    def seen_from(self) -> int:
        """The row before the next."""
        return max(0, self.next_row - 1)

    def see(self, row: int, tensors: Mapping[str, Tensor]) -> Mapping[str, float] | None:
        """Measures a row; called with each of them, in order, by the thread that writes them.

        Args:
            row: Its number.
            tensors: Its columns; not to be kept.

        Returns:
            Its values; None if it was not due, nothing once measuring has failed.
        """
        if self._has_failed:
            return None
        step = int(tensors["recorded_steps"])
        try:
            seen = LiveValues(row, step, self._measure(row, step, tensors))
        except BaseException as error:  # sys.exit ends nothing but this thread, for whose rows training waits
            self._has_failed = True
            seen = LiveValues(row, step, {}, error)
        if row >= self._first_row:
            self._seen.append(seen)
        return seen.values if seen.values or self._has_failed else None

    def take(self, stop: int | None) -> Iterator[LiveValues]:
        """Yields what was measured of the rows below `stop`, each row once.

        Args:
            stop: Number of rows that have surely been seen; None for all that were.
        """
        while self._seen and (stop is None or self._seen[0].row < stop):
            seen = self._seen.popleft()
            self.next_row = seen.row + 1
            yield seen

    def _measure(self, row: int, step: int, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        stored_VD = _as_array(tensors[MEASURED])
        before_step, before_VD = self._before or (None, None)
        is_due = before_step is None or step // self._every_n_steps > before_step // self._every_n_steps
        values = {}
        if is_due and row >= self._first_row:
            if before_step == step - 1 and _nothing_moved(tensors, stored_VD, before_VD):
                before_VD = None
            values = measure_row(self._metrics, self._sets, stored_VD, before_VD)
        self._before = step, stored_VD.copy()
        return values


def _nothing_moved(tensors: Mapping[str, Tensor], stored_VD: Array, before_VD: Array | None) -> bool:
    """Tells whether the optimizer has left the step out, or done nothing in it because no batch counted.

    The same as `analysis/measuring/skipped.py` says of a recording: it is no rest.
    """
    if SKIPPED in tensors and bool(tensors[SKIPPED]):
        return True
    is_empty = no_batch_counted(float(tensors["losses_f32"]), float(tensors["grad_norms"]))
    return bool(is_empty) and before_VD is not None and stored_VD.tobytes() == before_VD.tobytes()


def _as_array(tensor: Tensor) -> Array:
    """Returns a view of a tensor on the host; torch itself gives numpy no bfloat16."""
    if tensor.dtype != torch.bfloat16:
        array: Array = tensor.numpy()
        return array
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
