"""From what quantities declare to the columns of a file."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import torch

from flannel_pl.errors import UserError
from flannel_pl.quantities.core.blame import blamed
from flannel_pl.quantities.quantity import Column, Quantity
from flannel_pl.quantities.subject import Subject
from flannel_pl.recording.formats.columns import ColumnSpec
from flannel_pl.recording.formats.schema import ALL_NAMES, DTYPE_CODES, RecordingSchema

_CODES = {
    **{getattr(torch, name): code for name, code in DTYPE_CODES.items()},
    **{torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL"},
}
"""Type of a tensor -> its code in a file."""

_OURS = "flannel_pl."

_RESERVED = re.compile(r"run_\d+_|unused/|__")
"""What the keys of files begin with that are something else."""


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
        for column in _columns(quantity, subject):
            _refuse_declaration(quantity, column)
            if column.name in found:
                both = " and ".join(type(one).__name__ for one in (found[column.name][0], quantity))
                raise UserError(f"{both} both declare a column {column.name}; give one of them another name")
            found[column.name] = (quantity, column)
    return found


def refuse_aliases(aliases: Iterable[str], declared: Collection[str]) -> None:
    """Refuses a further parameter that is called as a tensor is, since `run["grads"]` would be that tensor.

    Args:
        aliases: Of the parameters.
        declared: The names of all columns.

    Raises:
        UserError: Names it.
    """
    for alias in aliases:
        further = [name for name in declared if name.startswith(f"{alias}/")]
        if further and alias in {*declared, *ALL_NAMES}:
            raise UserError(
                f"recorder.parameters calls a parameter {alias!r}, which is the name of a tensor of the "
                f'first; give it another alias, e.g. "{alias}_2"'
            )


def _columns(quantity: Quantity, subject: Subject) -> Sequence[Column]:
    kind = type(quantity)
    if kind.columns is Quantity.columns:
        raise UserError(f"{kind.__name__} declares no columns; it needs a method columns(self, subject)")
    with blamed(quantity):
        columns = quantity.columns(subject)
    if not isinstance(columns, Sequence) or not all(isinstance(one, Column) for one in columns):
        raise UserError(f"{kind.__name__}.columns returned {columns!r}, expected a list of Column")
    return columns


def _refuse_declaration(quantity: Quantity, column: Column) -> None:
    """Refuses what no file can have, or what would pass for something else in it."""
    if wrong := next(_wrong(column, is_ours=type(quantity).__module__.startswith(_OURS)), None):
        raise UserError(f"{type(quantity).__name__} declares {wrong}")


def _wrong(column: Column, *, is_ours: bool) -> Iterator[str]:
    name, dtype = column.name, _dtype(column)
    is_unknown = column.has_unknown_size
    sizes = () if column.like is None else tuple(column.like.shape)
    if not name or not name.isprintable() or _RESERVED.match(name) or (name in ALL_NAMES and not is_ours):
        yield f"a column {name!r}, a name that files cannot have, or use for something else"
    if isinstance(column.dims, str) or (not is_unknown and (len(column.dims) != len(sizes) or 0 in sizes)):
        expected = "expected a name for each, of size 1 or more"
        yield f"{name} of shape {sizes} with the axes {column.dims!r}, {expected}"
        return
    if is_unknown and column.dtype is None:
        dtype = torch.float32
    if dtype not in _CODES:
        types = ", ".join(str(one).removeprefix("torch.") for one in _CODES)
        yield f"{name} of type {dtype}, expected one of {types}"
    elif column.row0 not in ("initial", "zero", "nan"):
        yield f"{name} with row0 {column.row0!r}, expected 'initial', 'zero' or 'nan'"
    elif column.row0 == "nan" and not dtype.is_floating_point:
        yield f"{name} of type {dtype} with row0 'nan', which that type has not; expected 'initial' or 'zero'"
    if column.taken not in ("", "forward", "before_step", "after_step"):
        yield f"{name} as taken {column.taken!r}, expected 'forward', 'before_step' or 'after_step'"
    places = dict(zip(column.dims, sizes, strict=not is_unknown))
    if not is_unknown and any(places.get(axis) != len(names) for axis, names in column.labels.items()):
        found = {axis: len(names) for axis, names in column.labels.items()}
        yield f"{name} with {found} labels, expected as many as its axes have places, {places}"


def _dtype(column: Column) -> torch.dtype:
    if column.dtype is not None:
        return column.dtype
    return torch.get_default_dtype() if column.like is None else column.like.dtype


def column_dtype(column: Column) -> str:
    """Returns the name of the type that a column's values have, as it declares it."""
    return str(_dtype(column)).removeprefix("torch.")


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
    for quantity, column in declared.values():
        _refuse_declaration(quantity, column)  # some sizes were not known when they were declared
    specs = [_spec(quantity, column, dtypes, num_token_ids) for quantity, column in declared.values()]
    own = {name: dtype for name, dtype in own_dtypes.items() if name in declared}
    return RecordingSchema(
        1 + max_steps // every_n_steps, tuple(specs), every_n_steps, key_prefix, own, **others
    )


def _spec(
    quantity: Quantity, column: Column, dtypes: Mapping[str, str], num_token_ids: int | None
) -> ColumnSpec:
    dtype = _dtype(column)
    shape = () if column.like is None else tuple(column.like.shape)
    path = f"{type(quantity).__module__}.{type(quantity).__qualname__}"
    sizes = [
        num_token_ids if axis == "V" and num_token_ids is not None else size
        for axis, size in zip(column.dims, shape, strict=False)  # a plan may not know the sizes
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
