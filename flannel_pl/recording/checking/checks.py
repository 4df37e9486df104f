"""What must hold of one run's tensors in one file: the right keys, and every row as its checksum says.

Rows are read in large sequential pieces by a few threads; reading and hashing both let go of the
interpreter, so the disk or the memory is the limit.
"""

import dataclasses
import os
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from flannel_pl.errors import UserError
from flannel_pl.recording.formats.columns import NOTEBOOK, ColumnSpec, said_columns
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.formats.files import Header, TensorFile
from flannel_pl.recording.formats.metadata import short
from flannel_pl.recording.formats.schema import (
    DTYPE_CODES,
    EXPERIMENT_TENSORS,
    KNOWN_SCHEMAS,
    RECORDABLE,
    RECORDED_TOKENS,
    SKIPPED,
    RecordingSchema,
    static_checksum,
)
from flannel_pl.recording.formats.specs import TensorSpec

PIECE_BYTES = 8 * 2**20
"""Read at once by each thread."""

MAX_THREADS = 4

REQUIRED = ("num_rows", "every_n_steps", "checksum_columns", "static_checksums")
"""What the metadata must say of a run before it can be checked."""


@dataclass(frozen=True)
class RunPart:
    """One run's tensors in one file."""

    run: int | None
    prefix: str
    """What their keys begin with: nothing, or run_3_."""

    metadata: Mapping[str, Any]
    """What the file says of this run: at least `REQUIRED`, once `problems` has found none."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """The config that the file says it was recorded with, by group; of a gathered file that of all runs."""

    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name -> what the file says of each column; empty in one of schema 1."""

    @property
    def is_of_own_class(self) -> bool:
        """Whether the config names the model's class, of whose arguments nobody knows what they mean."""
        return "class_path" in self.config.get("model", {})

    @property
    def num_rows(self) -> int:
        """R."""
        return int(self.metadata["num_rows"])

    def key(self, name: str) -> str:
        """Returns the key of the tensor `name` in the file."""
        return self.prefix + name

    def said(self, key: str) -> Any:
        """Returns this run's value of a config key such as recorder.tokens; None if the file does not say."""
        group, name = key.split(".")
        return self.metadata.get("swept", {}).get(key, self.config.get(group, {}).get(name))

    def step(self, row: int) -> int:
        """Returns the step that `row` belongs to."""
        return row * int(self.metadata["every_n_steps"])


@dataclass(frozen=True)
class _Piece:
    """Consecutive rows of one column."""

    name: str
    first: int
    last: int
    row_bytes: int


def parts_of(header: Header) -> list[RunPart]:
    """Returns the runs that a file's metadata list: one for a shard, several for a gathered file."""
    metadata = header.flannel
    config = metadata.get("config", {})
    if "runs" in metadata:
        return [
            RunPart(run["index"], f"run_{run['index']}_", run, config, said_columns(metadata, run))
            for run in metadata["runs"]
        ]
    prefix = f"run_{metadata.get('run')}_"
    prefix = prefix if f"{prefix}checksums" in header.tensors else ""
    return [RunPart(metadata.get("run"), prefix, metadata, config, said_columns(metadata, metadata))]


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
    if [*schema.names, *added] != names:
        yield f"the columns are {names}, expected {[*schema.names, *added]}"
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
    schema = RecordingSchema.build(
        tensors=names,
        dtypes=_dtypes(header, part, names),
        num_tokens=num_tokens,
        hidden_dim=hidden_dim,
        max_steps=1,
        every_n_steps=int(part.metadata["every_n_steps"]),
        own_dtypes=part.metadata.get("own_dtypes"),
        skippable=SKIPPED in part.metadata["checksum_columns"],
        key_prefix=part.prefix,
    )
    columns = tuple(_as_listed(column, part) for column in schema.columns)
    return dataclasses.replace(schema, num_rows=part.num_rows, columns=columns)


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


def bad_static(file: TensorFile, checksums: Mapping[str, str], *, prefix: str = "") -> list[str]:
    """Returns the names of the tensors without rows that are not as their checksums say.

    Args:
        file: Where they are.
        checksums: Name -> xxh3-64 in hex.
        prefix: Goes before each name in the file.
    """
    return [name for name, digits in checksums.items() if static_checksum(file.read(prefix + name)) != digits]


def num_leading_rows(file: TensorFile, part: RunPart) -> int:
    """Returns how many rows of an unfinished recording have been written, by its small columns alone.

    So of a file that is mostly empty, only the part with rows has to be read.
    """
    steps, checksums = file.read(part.key("recorded_steps")), file.read(part.key("checksums"))
    written = (steps == np.arange(part.num_rows) * part.step(1)) & checksums.any(axis=1)
    return part.num_rows if written.all() else int(np.argmin(written))


def bad_cells(
    file: TensorFile,
    part: RunPart,
    *,
    first: int,
    last: int,
    advance: Callable[[int], object] | None = None,
) -> list[tuple[int, str]]:
    """Checks rows `first` to `last` - 1 of a run.

    Args:
        file: Where they are; `problems` has found none.
        part: Which run.
        first: First row to check.
        last: First row not to check.
        advance: Called with the number of bytes of each piece that is done.

    Returns:
        Row and column of every cell that is not as its checksum says, or not the step that is expected there.

    Raises:
        RunError: If the file cannot be read.
    """
    if last <= first:
        return []
    columns = list(part.metadata["checksum_columns"])
    table = np.empty((last - first, len(columns)), np.uint64)
    file.read_into(part.key("checksums"), table, start_row=first)
    steps = np.empty(last - first, np.int64)
    file.read_into(part.key("recorded_steps"), steps, start_row=first)
    expected_steps = np.arange(first, last) * part.step(1)
    bad = {(first + int(i), "recorded_steps") for i in np.flatnonzero(steps != expected_steps)}
    for piece, digests in _digests(file, part, columns, first=first, last=last):
        rows = slice(piece.first - first, piece.last - first)
        wrong = np.flatnonzero(digests != table[rows, columns.index(piece.name)])
        bad |= {(piece.first + int(i), piece.name) for i in wrong}
        if advance is not None:
            advance((piece.last - piece.first) * piece.row_bytes)
    return sorted(bad, key=lambda cell: (cell[0], columns.index(cell[1])))


def _digests(
    file: TensorFile, part: RunPart, columns: list[str], *, first: int, last: int
) -> "Iterator[tuple[_Piece, np.ndarray[Any, Any]]]":
    """Yields the checksums that the rows of each piece really have."""
    pieces: list[_Piece] = []
    for name in columns:
        spec = file.header.tensors[part.key(name)]
        row_bytes = spec.num_bytes // spec.shape[0]
        num_rows = max(1, PIECE_BYTES // row_bytes)
        for start in range(first, last, num_rows):
            pieces.append(_Piece(name, start, min(start + num_rows, last), row_bytes))
    num_threads = min(MAX_THREADS, os.cpu_count() or 1, len(pieces))
    buffers: queue.SimpleQueue[np.ndarray[Any, Any]] = queue.SimpleQueue()
    for _ in range(num_threads):
        buffers.put(np.empty(PIECE_BYTES, np.uint8))

    def work(piece: _Piece) -> "tuple[_Piece, np.ndarray[Any, Any]]":
        buffer = buffers.get()
        try:
            return piece, _hash_rows(file, part.key(piece.name), piece, buffer.data)
        finally:
            buffers.put(buffer)

    with ThreadPoolExecutor(num_threads, thread_name_prefix="flannel-check") as pool:
        yield from pool.map(work, pieces)


def _hash_rows(file: TensorFile, key: str, piece: _Piece, memory: memoryview) -> "np.ndarray[Any, Any]":
    """Returns the xxh3-64 of each row of a piece, uint64."""
    row_bytes, num_rows = piece.row_bytes, piece.last - piece.first
    if row_bytes > len(memory):  # then the piece is this one row
        return np.array([_hash_long_row(file, key, piece, memory)], np.uint64)
    view = memory[: num_rows * row_bytes]
    file.read_bytes_into(key, view, start_byte=piece.first * row_bytes)
    starts = range(0, len(view), row_bytes)
    hashes = (xxhash.xxh3_64_intdigest(view[start : start + row_bytes]) for start in starts)
    return np.fromiter(hashes, np.uint64, count=num_rows)


def _hash_long_row(file: TensorFile, key: str, piece: _Piece, memory: memoryview) -> int:
    hasher, start = xxhash.xxh3_64(), piece.first * piece.row_bytes
    for done in range(0, piece.row_bytes, len(memory)):
        view = memory[: min(len(memory), piece.row_bytes - done)]
        file.read_bytes_into(key, view, start_byte=start + done)
        hasher.update(view)
    return hasher.intdigest()


def shared_problems(header: Header, parts: list[RunPart]) -> Iterator[str]:
    """Yields what of the keys and metadata that belong to no run is not as it should be."""
    metadata = header.flannel
    if metadata.get("schema") not in KNOWN_SCHEMAS:
        known = " and ".join(map(str, KNOWN_SCHEMAS))
        yield f"its schema is {metadata.get('schema')!r}, this flannel-pl knows {known}"
    if "runs" in metadata:
        of_runs = tuple(part.prefix for part in parts)
        got = {key for key in header.tensors if not key.startswith(of_runs)}
        expected = set(EXPERIMENT_TENSORS)
        for key in sorted(got ^ expected):
            yield f"{key} is not there" if key in expected else f"{key} is there and belongs to no run"
        if metadata.get("static_checksums", {}).keys() != expected:
            yield "static_checksums are not those of the experiment's tensors"
        numbers = [part.run for part in parts]
        if numbers != list(range(len(numbers))):
            yield f"its runs are numbered {numbers}, expected 0, 1, ..."


def num_bytes_of(header: Header, part: RunPart) -> int:
    """Returns the size of a run's tensors."""
    names = (*part.metadata["checksum_columns"], "checksums")
    return sum(header.tensors[part.key(name)].num_bytes for name in names)
