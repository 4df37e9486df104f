"""From what quantities declare to the columns of a file."""

from collections.abc import Iterable, Mapping

import torch

from flannel_pl.errors import UserError
from flannel_pl.quantities.quantity import Column, Quantity
from flannel_pl.quantities.subject import Subject
from flannel_pl.recording.formats.columns import ColumnSpec
from flannel_pl.recording.formats.schema import DTYPE_CODES, RecordingSchema

_CODES = {
    **{getattr(torch, name): code for name, code in DTYPE_CODES.items()},
    **{torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL"},
}
"""Type of a tensor -> its code in a file."""

_OURS = "flannel_pl."


def torch_dtypes(names: Mapping[str, str]) -> dict[str, torch.dtype]:
    """Returns torch's types for their names, of those that a file can have."""
    return {name: getattr(torch, dtype) for name, dtype in names.items() if dtype in DTYPE_CODES}


def declared_columns(quantities: Iterable[Quantity], subject: Subject) -> dict[str, tuple[Quantity, Column]]:
    """Returns the name of each column -> the quantity that fills it, and what that declares.

    Raises:
        UserError: If two declare the same.
    """
    found: dict[str, tuple[Quantity, Column]] = {}
    for quantity in quantities:
        for column in quantity.columns(subject):
            if column.name in found:
                both = " and ".join(type(one).__name__ for one in (found[column.name][0], quantity))
                raise UserError(f"{both} both declare a column {column.name}; give one of them another name")
            found[column.name] = (quantity, column)
    return found


def schema_of(
    declared: Mapping[str, tuple[Quantity, Column]],
    *,
    dtypes: Mapping[str, str],
    num_token_ids: int | None,
    max_steps: int,
    every_n_steps: int,
    own_dtypes: Mapping[str, str],
    key_prefix: str = "",
    **others: int,
) -> RecordingSchema:
    """Lays out the columns.

    Args:
        declared: See `declared_columns`.
        dtypes: Column -> the type to record it in; the declared one for those not named.
        num_token_ids: How many tokens are recorded, if not all are.
        max_steps: Optimizer steps of the run.
        every_n_steps: Steps from one row to the next.
        own_dtypes: Column -> the type that it has in training, as the file says it.
        key_prefix: Goes before every key of the file.
        others: `version` of the file format, if not the newest.
    """
    specs = [_spec(quantity, column, dtypes, num_token_ids) for quantity, column in declared.values()]
    own = {name: dtype for name, dtype in own_dtypes.items() if name in declared}
    return RecordingSchema(
        1 + max_steps // every_n_steps, tuple(specs), every_n_steps, key_prefix, own, **others
    )


def _spec(
    quantity: Quantity, column: Column, dtypes: Mapping[str, str], num_token_ids: int | None
) -> ColumnSpec:
    dtype = column.dtype if column.dtype is not None or column.like is None else column.like.dtype
    shape = () if column.like is None else tuple(column.like.shape)
    path = f"{type(quantity).__module__}.{type(quantity).__qualname__}"
    if dtype not in _CODES or len(shape) != len(column.dims):
        raise UserError(
            f"{path} declares {column.name} of type {dtype} and shape {shape} with the axes {column.dims}; "
            "a column has a type that files know, and a name for each of its axes"
        )
    sizes = [
        num_token_ids if axis == "V" and num_token_ids is not None else size
        for axis, size in zip(column.dims, shape, strict=True)
    ]
    return ColumnSpec(
        column.name,
        DTYPE_CODES[dtypes[column.name]] if column.name in dtypes else _CODES[dtype],
        tuple(sizes),
        column.dims,
        column.taken,
        column.row0,
        column.meaning,
        column.parameter,
        "" if path.startswith(_OURS) else path,
        column.labels,
    )
