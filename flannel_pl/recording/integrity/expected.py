"""Which keys a file must have, of which shapes and dtypes: what its metadata imply."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from flannel_pl.errors import UserError
from flannel_pl.recording.formats.columns import NOTEBOOK, ColumnSpec, notebook_columns
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.formats.files import Header
from flannel_pl.recording.formats.metadata import short
from flannel_pl.recording.formats.schema import (
    DTYPE_CODES,
    KNOWN_SCHEMAS,
    RECORDABLE,
    RECORDED_TOKENS,
    SCALAR_COLUMNS,
    SKIPPED,
    RecordingSchema,
    check_wishes,
    experiment_tensors_of,
)
from flannel_pl.recording.formats.specs import TensorSpec
from flannel_pl.recording.integrity.parts import REQUIRED, RunPart


def problems(header: Header, part: RunPart) -> Iterator[str]:
    """Yields what of a run's keys, shapes and dtypes is not as the metadata imply."""
    absent = [name for name in REQUIRED if name not in part.metadata]
    if absent:
        yield f"the metadata do not say {', '.join(absent)}"
        return
    try:
        schema = _implied_schema(header, part)
    except (UserError, TypeError) as error:
        yield f"its config cannot be: {error}"
        return
    yield from _other_rows(part)
    names = part.metadata["checksum_columns"]
    added = [name for name in names if name not in NOTEBOOK and name in part.columns]
    expected_names = [*schema.names, *added]
    # A file that lists its columns says in which order their checksums are.
    if (sorted(expected_names) != sorted(names)) if part.columns else (expected_names != names):
        yield f"the columns are {names}, expected {expected_names}"
    yield from _other_columns(schema, part)
    more = [ColumnSpec.of(name, part.columns[name]) for name in added]
    schema = dataclasses.replace(schema, columns=(*schema.columns, *more))
    static = {}
    if _has_token_subset(part):
        static[RECORDED_TOKENS] = TensorSpec("I64", (_row_sizes(header, part)[0],))
    if static.keys() != part.metadata["static_checksums"].keys():
        named = list(part.metadata["static_checksums"])
        yield f"static_checksums has {named}, expected {list(static)}"
    expected = schema.specs(static)
    got = {key: spec for key, spec in header.tensors.items() if key.startswith(part.prefix)}
    for key in sorted(expected.keys() | got.keys()):
        if got.get(key) != expected.get(key):
            yield f"{key} is {_describe(got.get(key))}, expected {_describe(expected.get(key))}"


def _other_columns(schema: RecordingSchema, part: RunPart) -> Iterator[str]:
    """Yields in what the file's list of columns contradicts the config."""
    for column in schema.columns if part.columns else ():
        listed = part.columns.get(column.name)
        if listed is None:
            yield f"its columns lack {column.name}"
        elif (listed.get("dtype"), listed.get("sizes")) != (column.dtype, list(column.sizes)):
            yield (
                f"its columns say {listed.get('dtype')} of row shape {listed.get('sizes')} of {column.name}, "
                f"expected {column.dtype} of {list(column.sizes)}"
            )


def _implied_schema(header: Header, part: RunPart) -> RecordingSchema:
    """Returns the schema that the config asks for; where it says nothing, one like what is there."""
    names = part.said("recorder.tensors")
    if names is None or part.config.get("recorder", {}).get("parameter", "") is None:
        names = [name for name in RECORDABLE if name in part.metadata["checksum_columns"]]
    num_tokens, hidden_dim = _row_sizes(header, part)
    names = (names,) if isinstance(names, str) else tuple(names)
    dtypes, every_n_steps = _dtypes(header, part, names), int(part.metadata["every_n_steps"])
    own = {name: dtype for name, dtype in part.metadata.get("own_dtypes", {}).items() if name in names}
    check_wishes(names, dtypes, own, max_steps=1, every_n_steps=every_n_steps)
    if num_tokens < 1 or hidden_dim < 1:
        raise UserError(
            f"{num_tokens} tokens of width {hidden_dim} are to be recorded, expected at least 1 of each"
        )
    codes = {name: DTYPE_CODES[dtypes.get(name, own.get(name, "bfloat16"))] for name in names}
    codes |= {"recorded_steps": "I64", **SCALAR_COLUMNS}
    codes |= {SKIPPED: "BOOL"} if SKIPPED in part.metadata["checksum_columns"] else {}
    columns = notebook_columns(codes, {"V": num_tokens, "D": hidden_dim})
    listed = tuple(_as_listed(column, part) for column in columns)
    return RecordingSchema(part.num_rows, listed, every_n_steps, part.prefix)


def _as_listed(column: ColumnSpec, part: RunPart) -> ColumnSpec:
    """Returns a column as the file lists it, where the config does not tell its type and shape."""
    listed = part.columns.get(column.name)
    if listed is None:
        return column
    of_file = ColumnSpec.of(column.name, listed)
    return of_file if part.is_of_own_class or of_file.dims != column.dims else column


def _dtypes(header: Header, part: RunPart, names: Iterable[str]) -> Mapping[str, str]:
    if "dtypes" in part.config.get("recorder", {}):
        dtypes = part.said("recorder.dtypes") or {}
        if not isinstance(dtypes, dict):
            raise UserError(f"recorder.dtypes is {short(dtypes)}")
        return dtypes
    codes = {code: dtype for dtype, code in DTYPE_CODES.items()}
    specs = {name: header.tensors.get(part.key(name)) for name in names}
    return {name: codes.get(spec.dtype, "bfloat16") for name, spec in specs.items() if spec is not None}


def _has_token_subset(part: RunPart) -> bool:
    """Tells whether a part of the vocabulary was recorded."""
    tokens = part.said("recorder.tokens")
    return RECORDED_TOKENS in part.metadata["static_checksums"] if tokens is None else bool(tokens != "all")


def _other_rows(part: RunPart) -> Iterator[str]:
    """Yields in what the rows are not those that the config asks for."""
    every_n_steps, max_steps = part.said("recorder.every_n_steps"), part.said("trainer.max_steps")
    if every_n_steps is not None and every_n_steps != part.metadata["every_n_steps"]:
        yield f"every_n_steps is {part.metadata['every_n_steps']}, its config says {every_n_steps!r}"
        return
    ended = EarlyEnd.of(part.metadata)
    if ended is not None and max_steps is not None and ended.planned_steps != max_steps:
        yield f"it says that {ended.planned_steps} steps were planned, its config has {max_steps!r}"
    last_step = max_steps if ended is None else ended.step
    if isinstance(last_step, int) and (expected := 1 + last_step // part.step(1)) != part.num_rows:
        asks = "its config asks for" if ended is None else f"it {ended} and so should have"
        yield f"num_rows is {part.num_rows}, {asks} {expected}"


def _row_sizes(header: Header, part: RunPart) -> tuple[int, int]:
    """Returns V and D as the config has them, else as the file has them, 1 for what it does not have."""
    specs = [header.tensors.get(part.key(name)) for name in RECORDABLE]
    shapes = [spec.shape[1:] for spec in specs if spec is not None]
    tokens = header.tensors.get(part.key(RECORDED_TOKENS))
    if tokens is not None:
        shapes.append(tokens.shape)
    sizes = (*max(shapes, key=len, default=()), 1, 1)
    vocab_size, hidden_dim = part.said("model.vocab_size"), part.said("model.hidden_dim")
    if part.is_of_own_class:
        vocab_size = hidden_dim = None
    if vocab_size is None or _has_token_subset(part):
        vocab_size = max(sizes[0], 1) if tokens is None else max(tokens.shape[0] if tokens.shape else 1, 1)
    return vocab_size, max(sizes[1], 1) if hidden_dim is None else hidden_dim


def _describe(spec: TensorSpec | None) -> str:
    return "not there" if spec is None else f"{spec.dtype} of shape {spec.shape}"


def shared_problems(header: Header, parts: list[RunPart]) -> Iterator[str]:
    """Yields what of the keys and metadata that belong to no run is not as it should be."""
    metadata = header.flannel
    if metadata.get("schema") not in KNOWN_SCHEMAS:
        known = " and ".join(map(str, KNOWN_SCHEMAS))
        yield f"its schema is {metadata.get('schema')!r}, this flannel-pl knows {known}"
    if "runs" in metadata:
        of_runs = tuple(part.prefix for part in parts)
        got = {key for key in header.tensors if not key.startswith(of_runs)}
        digests = metadata.get("provenance", {}).get("data") or {}
        expected = set(experiment_tensors_of(metadata.get("config", {}), digests))
        for key in sorted(got ^ expected):
            yield f"{key} is not there" if key in expected else f"{key} is there and belongs to no run"
        if metadata.get("static_checksums", {}).keys() != expected:
            yield "static_checksums are not those of the experiment's tensors"
        numbers = [part.run for part in parts]
        if numbers != list(range(len(numbers))):
            yield f"its runs are numbered {numbers}, expected 0, 1, ..."
