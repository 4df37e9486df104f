"""Compares one tensor of two recordings: to the bit, and how far apart its values are where they differ.

A few rows are read at a time, so tensors may be as large as they like. Where bytes are equal it costs no more
than reading them.

Shape suffixes: R rows that are compared, T tokens that are, E elements of a row.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from flannel_pl.arrays import Array
from flannel_pl.metrics.lattice import widen
from flannel_pl.metrics.ulps import FLOATS, ulp_distance
from flannel_pl.recording.reader import LazyTensor

PIECE_BYTES = 4 * 2**20
"""Read at once from each recording by each thread; one row at least."""

TILE_ELEMENTS = 2**16
"""Worked on at once where bytes differ: its intermediate results stay in a core's cache."""

MAX_THREADS = 4

BUFFER_BYTES = 256 * 2**20
"""What all threads together may hold of both recordings; a row of each at least."""


@dataclass(frozen=True)
class Alignment:
    """Which elements of a tensor in A and in B belong together."""

    steps_R: Array
    """Step of each row, int64."""

    rows_a_R: Array
    """Number of each row in A, int64."""

    rows_b_R: Array

    columns_a_T: Array | None = None
    """Positions along A's second axis; None = all, and they are those of B."""

    columns_b_T: Array | None = None

    labels_T: Sequence[int | str] | None = None
    """What the positions along the second axis are called, e.g. ids of tokens; None = their numbers."""


@dataclass(frozen=True)
class Element:
    """The first element that is not the same in both."""

    step: int
    row_a: int
    row_b: int

    column: int | str | None
    """Id of its token; for checksums the name of the tensor that it is of; None if a row is one number."""

    dim: int | None
    """Its dimension; None if there is none."""

    values: tuple[float | int, float | int]
    """In A and in B."""

    bits: tuple[int, int]
    """The same as stored."""

    ulps: int | None
    """Distance in units in the last place, see `ulp_distance`; None if one is NaN or they are no floats."""

    indices: tuple[int, ...] = ()
    """Where in its row it is; empty where the first axis is one of tokens, or of what is named."""


@dataclass(frozen=True)
class TensorComparison:
    """What a tensor of two runs has in common."""

    name: str

    dtypes: tuple[str, str]
    """In A and in B. Floats of different types are compared as float32."""

    num_elements: int
    """Elements that were compared."""

    num_differing: int
    """Elements whose bits differ: 0.0 and -0.0 do, a NaN and the same NaN do not."""

    num_nan: int
    """Differing elements with a NaN on either side; they have no distance in ULP."""

    first: Element | None
    """By row, then by place; None if none differs."""

    max_ulps: int | None
    """Largest distance in ULP of any element; 0 if none differs, None if there is none to measure."""

    distance_R: Array | None
    """||A - B||_F of every row, float64, in the tensor's unit; NaN in a row where a differing element is NaN.
    None for what is no float."""

    left_out: str = ""
    """Why it was not compared at all; empty if it was."""

    @property
    def equal(self) -> bool:
        """Whether type and bits are the same, as far as rows and tokens are in both."""
        return not self.num_differing and not self.left_out and self.dtypes[0] == self.dtypes[1]


def compare_tensor(
    name: str,
    a: LazyTensor,
    b: LazyTensor,
    alignment: Alignment,
    *,
    advance: Callable[[int], object] | None = None,
) -> TensorComparison:
    """Compares a tensor in two recordings.

    Args:
        name: What it is called.
        a: The tensor in A; its first axis is the rows.
        b: The tensor in B.
        alignment: Which rows, and which positions along the second axis, belong together.
        advance: Called with the number of bytes, of both, of every piece that is done.

    Raises:
        RunError: If a file cannot be read.

    Example:
        >>> with flannel_pl.open_recording("runs/quickstart") as rec:
        ...     a, b, rows = rec.run(0).losses_f32, rec.run(1).losses_f32, np.arange(21)
        ...     compare_tensor("losses_f32", a, b, Alignment(rows, rows, rows)).first.step
        1
    """
    dtypes = (a.dtype, b.dtype)
    num_rows = len(alignment.steps_R)
    reason = _why_not(a, b, alignment)
    if reason:
        return TensorComparison(name, dtypes, 0, 0, 0, None, None, None, reason)
    num_elements = num_rows * int(np.prod(_row_shape(a, alignment.columns_a_T), dtype=np.int64))
    height = max(1, PIECE_BYTES // max(1, a.row_bytes, b.row_bytes))
    work = [slice(top, min(top + height, num_rows)) for top in range(0, num_rows, height)]
    pieces: list[_Piece] = []
    most_threads = BUFFER_BYTES // max(1, height * (a.row_bytes + b.row_bytes))
    num_threads = max(1, min(MAX_THREADS, os.cpu_count() or 1, most_threads))
    with ThreadPoolExecutor(num_threads) as threads:
        for piece in threads.map(lambda rows: _compare_piece(a, b, alignment, rows), work):
            pieces.append(piece)
            if advance is not None:
                advance(len(piece.squares_R) * (a.row_bytes + b.row_bytes))
    num_differing = sum(piece.num_differing for piece in pieces)
    ulps = [piece.max_ulps for piece in pieces if piece.max_ulps is not None]
    is_float = a.dtype in FLOATS
    return TensorComparison(
        name=name,
        dtypes=dtypes,
        num_elements=num_elements,
        num_differing=num_differing,
        num_nan=sum(piece.num_nan for piece in pieces),
        first=next((piece.first for piece in pieces if piece.first is not None), None),
        max_ulps=max(ulps, default=None if num_differing else 0) if is_float else None,
        distance_R=np.sqrt(np.concatenate([piece.squares_R for piece in pieces])) if is_float else None,
    )


def _why_not(a: LazyTensor, b: LazyTensor, alignment: Alignment) -> str:
    shape_a, shape_b = _row_shape(a, alignment.columns_a_T), _row_shape(b, alignment.columns_b_T)
    if shape_a != shape_b:
        return f"a row has the shape {shape_a} in A and {shape_b} in B"
    if a.dtype != b.dtype and not (a.dtype in FLOATS and b.dtype in FLOATS):
        return f"it is {a.dtype} in A and {b.dtype} in B"
    return ""


def _row_shape(tensor: LazyTensor, columns_T: Array | None) -> tuple[int, ...]:
    shape: tuple[int, ...] = tensor.shape[1:]
    return shape if columns_T is None else (len(columns_T), *shape[1:])


@dataclass
class _Piece:
    """What consecutive rows have in common; the fields are those of `TensorComparison`."""

    squares_R: Array
    num_differing: int = 0
    num_nan: int = 0
    max_ulps: int | None = None
    first: Element | None = None


def _compare_piece(a: LazyTensor, b: LazyTensor, alignment: Alignment, rows: slice) -> _Piece:
    A = _read(a, alignment.rows_a_R[rows], alignment.columns_a_T)
    B = _read(b, alignment.rows_b_R[rows], alignment.columns_b_T)
    row_shape = A.shape[1:]
    piece = _Piece(np.zeros(len(A)))
    if A.dtype != B.dtype:
        A, B = widen(A), widen(B)
    if _same_bytes(A, B):
        return piece
    A_RE, B_RE = A.reshape(len(A), -1), B.reshape(len(B), -1)
    for tile in _tiles(*A_RE.shape):
        A_tile, B_tile = np.ascontiguousarray(A_RE[tile]), np.ascontiguousarray(B_RE[tile])
        if _same_bytes(A_tile, B_tile):
            continue
        first = _add_tile(piece, A_tile, B_tile, squares_R=piece.squares_R[tile[0]])
        if piece.first is None:
            row, element = tile[0].start + first[0], tile[1].start + first[1]
            values = A_RE[row, element], B_RE[row, element]
            piece.first = _element(alignment, rows.start + row, np.unravel_index(element, row_shape), *values)
    return piece


def _add_tile(piece: _Piece, A: Array, B: Array, *, squares_R: Array) -> tuple[int, int]:
    """Adds a tile that differs; returns row and column of the first element that does."""
    differs = _bits(A) != _bits(B)
    piece.num_differing += int(np.count_nonzero(differs))
    if A.dtype.name in FLOATS:
        wide_A, wide_B = widen(A), widen(B)
        with np.errstate(invalid="ignore"):
            apart = wide_A.astype(np.float64) - wide_B
        ulps = ulp_distance(A, B)
        if not np.isfinite(apart).all():
            apart[~differs] = 0  # infinities and NaN that are the same
            measurable = differs & ~(np.isnan(wide_A) | np.isnan(wide_B))
            piece.num_nan += int(np.count_nonzero(differs & ~measurable))
            ulps = ulps[measurable]
        squares_R += np.einsum("re,re->r", apart, apart)
        if ulps.size:
            piece.max_ulps = max(piece.max_ulps or 0, int(ulps.max()))
    row, element = divmod(int(np.argmax(differs)), differs.shape[1])
    return row, element


def _element(alignment: Alignment, number: int, place: Any, a: Any, b: Any) -> Element:
    column = int(place[0]) if len(place) else None
    labels = alignment.labels_T
    a_1, b_1 = np.array([a]), np.array([b])
    is_float = a.dtype.name in FLOATS
    has_ulps = is_float and not (np.isnan(widen(a_1)) | np.isnan(widen(b_1))).any()
    return Element(
        step=int(alignment.steps_R[number]),
        row_a=int(alignment.rows_a_R[number]),
        row_b=int(alignment.rows_b_R[number]),
        column=column if column is None or labels is None else labels[column],
        dim=int(place[1]) if len(place) > 1 else None,
        values=(a.item(), b.item()),
        bits=(int(_bits(a_1)[0]), int(_bits(b_1)[0])),
        ulps=int(ulp_distance(a_1, b_1)[0]) if has_ulps else None,
        indices=tuple(map(int, place)) if labels is None else (),
    )


def _read(tensor: LazyTensor, rows_R: Array, columns_T: Array | None) -> Array:
    first, last = int(rows_R[0]), int(rows_R[-1]) + 1
    key = slice(first, last) if last - first == len(rows_R) else rows_R
    values: Array = tensor[key] if columns_T is None else tensor[key, columns_T]
    return np.ascontiguousarray(values)


def _tiles(num_rows: int, row_size: int) -> Iterator[tuple[slice, slice]]:
    """Yields rows and elements of each tile, by row and then by element."""
    height = max(1, TILE_ELEMENTS // max(1, row_size))
    width = TILE_ELEMENTS if height == 1 else row_size
    for top in range(0, num_rows, height):
        for left in range(0, row_size, width):
            yield slice(top, min(top + height, num_rows)), slice(left, min(left + width, row_size))


def _bits(values: Array) -> Array:
    return values.view(f"u{values.dtype.itemsize}")


def _same_bytes(A: Array, B: Array) -> bool:
    unit = np.uint64 if A.nbytes % 8 == 0 else np.uint8
    return bool((A.reshape(-1).view(unit) == B.reshape(-1).view(unit)).all())
