"""Schemas by what a user wishes, as the recorder makes them of its quantities."""

from collections.abc import Mapping, Sequence

from flannel_pl.recording.formats.columns import notebook_columns
from flannel_pl.recording.formats.schema import (
    DTYPE_CODES,
    SCALAR_COLUMNS,
    SCHEMA_VERSION,
    SKIPPED,
    RecordingSchema,
    check_wishes,
)


def build_schema(
    *,
    tensors: Sequence[str] | str,
    dtypes: Mapping[str, str],
    num_tokens: int,
    hidden_dim: int,
    max_steps: int,
    every_n_steps: int,
    own_dtypes: Mapping[str, str] | None = None,
    skippable: bool = False,
    key_prefix: str = "",
    version: int = SCHEMA_VERSION,
    parameter: str = "",
) -> RecordingSchema:
    """Returns the schema of some of the notebook's tensors; they are bfloat16 where nothing else is said."""
    tensors = (tensors,) if isinstance(tensors, str) else tuple(tensors)
    own = {name: dtype for name, dtype in (own_dtypes or {}).items() if name in tensors}
    check_wishes(tensors, dtypes, own, max_steps=max_steps, every_n_steps=every_n_steps)
    codes = {name: DTYPE_CODES[dtypes.get(name, own.get(name, "bfloat16"))] for name in tensors}
    codes |= {"recorded_steps": "I64", **SCALAR_COLUMNS, **({SKIPPED: "BOOL"} if skippable else {})}
    columns = notebook_columns(codes, {"V": num_tokens, "D": hidden_dim}, parameter=parameter)
    num_rows = 1 + max_steps // every_n_steps
    return RecordingSchema(num_rows, columns, every_n_steps, key_prefix, own, version)
