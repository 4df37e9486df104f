"""Whether every row of a run is as its checksum says.

Rows are read in large sequential pieces by a few threads; reading and hashing both let go of the
interpreter, so the disk or the memory is the limit.
"""

import os
import queue
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from flannel_pl.recording.formats.files import TensorFile
from flannel_pl.recording.formats.schema import (
    static_checksum,
)
from flannel_pl.recording.integrity.parts import RunPart

PIECE_BYTES = 8 * 2**20
"""Read at once by each thread."""

MAX_THREADS = 4


@dataclass(frozen=True)
class _Piece:
    """Consecutive rows of one column."""

    name: str
    first: int
    last: int
    row_bytes: int


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
