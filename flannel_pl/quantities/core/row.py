"""A row while it is filled: where values go, and what is refused."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flannel_pl.errors import UserError
from flannel_pl.quantities.quantity import Column
from flannel_pl.recording.formats.schema import holds
from flannel_pl.recording.writing.ring import RowBuffer


def dtype_name(tensor: Tensor) -> str:
    """Returns the name of a tensor's type.

    Example:
        >>> import torch
        >>> dtype_name(torch.zeros(1, dtype=torch.bfloat16))
        'bfloat16'
    """
    return str(tensor.dtype).removeprefix("torch.")


class NoRow:
    """Where a quantity puts what it takes in a step that has no row."""

    def __setitem__(self, name: str, value: Tensor | float) -> None:
        """Forgets it."""


class HeldRow:
    """Keeps the values of a row until there is a file: what they are, they tell themselves.

    Args:
        columns: Column -> what was declared of it.
    """

    def __init__(self, columns: Collection[str]) -> None:
        self._columns = columns
        self.values: dict[str, Tensor | float] = {}

    def __setitem__(self, name: str, value: Tensor | float) -> None:
        """Keeps a copy of a value.

        Raises:
            UserError: If there is no such column, or it is filled.
        """
        _refuse_name(name, name in self._columns, is_filled=name in self.values)
        self.values[name] = value.detach().clone() if isinstance(value, Tensor) else value

    def pour(self, row: "FilledRow") -> None:
        """Fills a row with what it has, as far as that row has a place for it."""
        for name, value in self.values.items():
            if row.has(name):
                row[name] = value


class FilledRow:
    """Takes the values of one row, each column once, without waiting for the device that computes them.

    Numbers that a device has come together, in one copy for each type.

    Args:
        buffer: Where each column has its place in the ring.
        columns: Column -> what was declared of it.
        token_ids: Which rows of an axis `V` are recorded, on the parameter's device; None for all.
        rounded: Columns of which it was asked that they be stored in another type.
        device: The device that computes the values, if that is not the host.
    """

    def __init__(
        self,
        buffer: RowBuffer,
        columns: Mapping[str, Column],
        *,
        token_ids: Tensor | None,
        rounded: Collection[str],
        device: torch.device | None,
    ) -> None:
        self._tensors, self._columns, self._staged = buffer.tensors, columns, buffer.staged
        self._token_ids, self._rounded, self._device = token_ids, rounded, device
        self._empty = set(self._tensors)
        self._numbers: dict[torch.dtype, dict[str, tuple[Tensor, int]]] = {}

    def has(self, name: str) -> bool:
        """Tells whether there is such a column."""
        return name in self._tensors

    def __setitem__(self, name: str, value: Tensor | float) -> None:
        """Copies a value into a column.

        Raises:
            UserError: If there is no such column, it is filled, or the value is of another shape or type.
        """
        _refuse_name(name, name in self._tensors, is_filled=name not in self._empty)
        self._empty.remove(name)
        target = self._tensors[name]
        if not isinstance(value, Tensor):
            if not isinstance(value, int | float):
                raise UserError(f"{name} was given a {type(value).__name__}, expected a tensor or a number")
            if isinstance(value, float) and not target.is_floating_point():
                raise UserError(f"{name} is of type {dtype_name(target)}, and was given {value}")
            target.fill_(value)
            return
        value, column = value.detach(), self._columns[name]
        if column.dtype is None:
            self._refuse_rounding(name, value)
        elif not (target.is_floating_point() or _fits(value.dtype, target.dtype)):
            raise UserError(
                f"{name} is of type {dtype_name(target)}, which does not hold the {dtype_name(value)} that "
                "it was given; declare another type (Column.dtype)"
            )
        if self._token_ids is not None and "V" in column.dims:
            value = value.index_select(column.dims.index("V"), self._token_ids)
        if value.shape != target.shape:
            got, expected = tuple(value.shape), tuple(target.shape)
            raise UserError(f"{name} was given a value of shape {got}, expected {expected}")
        # To the type on the device: a copy that has to change it as well makes the host wait.
        value = value.to(target.dtype)
        if value.ndim == 0 and value.device == self._device:
            self._numbers.setdefault(value.dtype, {})[name] = (value, value._version)
        else:
            target.copy_(value, non_blocking=self._device is not None)

    def begin(self) -> None:
        """Fills every column with what row 0 has if nobody fills it."""
        for name, tensor in self._tensors.items():
            tensor.fill_(float("nan") if self._columns[name].row0 == "nan" else 0)
        self._empty = {name for name, column in self._columns.items() if column.row0 == "initial"}

    def end(self, *, without_passes: bool = False) -> Callable[[], object] | None:
        """Refuses a row that lacks something, and starts the last copies.

        Args:
            without_passes: Whether no batch of the step counts: then what is taken of one is NaN, or 0.

        Returns:
            A function that waits until all copies are done; None if they already are.

        Raises:
            UserError: Names what was not filled, or was changed meanwhile.
        """
        if without_passes:
            for name in [name for name in self._empty if self._columns[name].taken == "forward"]:
                tensor = self._tensors[name]
                self[name] = float("nan") if tensor.is_floating_point() else 0
        if self._empty:
            raise UserError(f"{', '.join(sorted(self._empty))} was declared, and not filled in this step")
        if self._device is None:
            return None
        for dtype, numbers in self._numbers.items():
            changed = [name for name, (value, version) in numbers.items() if value._version != version]
            if changed:
                raise UserError(f"{', '.join(changed)} was changed in place after it was given to the row")
            together = torch.stack([value for value, _ in numbers.values()])
            self._staged[dtype][: len(numbers)].copy_(together, non_blocking=True)
        # The thread that waits for it sleeps; one that is not blocking would spin on a core.
        event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return partial(self._wait, event)

    def _wait(self, event: Any) -> None:
        """Waits for the copies, and puts numbers where they belong."""
        event.synchronize()
        for dtype, numbers in self._numbers.items():
            for name, number in zip(numbers, self._staged[dtype], strict=False):
                self._tensors[name].copy_(number)

    def _refuse_rounding(self, name: str, value: Tensor) -> None:
        stored, own = dtype_name(self._tensors[name]), dtype_name(value)
        if name not in self._rounded and not holds(stored, own):
            raise UserError(
                f"{name} is of type {own}, and the recording has {stored} for it; say in recorder.dtypes in "
                f"which type to record it, e.g. {{{name!r}: {own!r}}}"
            )


def _fits(own: torch.dtype, stored: torch.dtype) -> bool:
    """Tells whether a type of whole numbers has all those of another."""
    if own == stored or own == torch.bool:
        return True
    if own.is_floating_point or own.is_complex or stored == torch.bool:
        return False
    return torch.iinfo(stored).min <= torch.iinfo(own).min and torch.iinfo(own).max <= torch.iinfo(stored).max


def _refuse_name(name: str, is_declared: bool, *, is_filled: bool) -> None:
    if is_filled or not is_declared:
        what = "is filled twice" if is_declared else "was not declared by any quantity"
        raise UserError(f"{name} {what}; a quantity fills each column that it declares once per row")
