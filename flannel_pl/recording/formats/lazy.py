"""Reading tensors of a file a few rows at a time, as numpy arrays or torch tensors, whatever its format."""

import copy
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from flannel_pl.arrays import Array
from flannel_pl.recording.formats.files import TensorFile
from flannel_pl.recording.formats.schema import RECORDED_TOKENS
from flannel_pl.recording.formats.specs import NUMPY_DTYPES

BLOCK_BYTES = 64 * 2**20
"""Most bytes that are read at once when only a part of them is wanted."""

Framework = Literal["np", "pt"]


class LazyTensor:
    """A tensor in a file; indexing reads what is asked for and nothing else stays in memory.

    Every axis is selected on its own: an integer (drops the axis), a slice, a list or array of integers, or
    a boolean mask. So `tensor[10:20, dead]` has shape (10, len(dead), D), and two arrays select a grid, as
    `numpy.ix_` does.

    Args:
        file: The open file.
        key: The tensor's key in it.
        framework: What indexing returns: "np" numpy arrays, "pt" torch tensors.
    """

    def __init__(self, file: TensorFile, key: str, *, framework: Framework = "np") -> None:
        spec = file.header.tensors[key]
        self.shape = spec.shape
        self._dtype = NUMPY_DTYPES[spec.dtype]
        self._file = file
        self._key = key
        self._framework = framework

    @property
    def dtype(self) -> str:
        """Name of the dtype, e.g. bfloat16."""
        return str(self._dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self._dtype.itemsize

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self.shape[0]

    def __repr__(self) -> str:
        """Names key, shape, dtype and file."""
        return f"LazyTensor({self._key}, shape={self.shape}, dtype={self.dtype}, file={self._file.path})"

    def __getitem__(self, key: Any) -> Any:
        """Reads a selection, see the class.

        Returns:
            A numpy array or a torch tensor that owns its memory.

        Raises:
            IndexError: If an index is out of range or of another kind.
        """
        try:
            return self._read(key)
        except IndexError as error:
            some = any(name.endswith(RECORDED_TOKENS) for name in self._file.header.tensors)
            where = "; it has some tokens only, of which run.rows_of(tokens) gives the places" if some else ""
            raise IndexError(f"{self._key} has the shape {self.shape}: {error}{where}") from None

    def _read(self, key: Any) -> Any:
        row_key, *inner_keys = self._key_per_axis(key)
        rows = np.arange(len(self))[row_key]
        if rows.ndim > 1:
            raise IndexError(f"{self._key} takes an integer, slice, list or mask for each axis; got {key}")
        whole_rows = all(isinstance(inner, slice) and inner == slice(None) for inner in inner_keys)
        row_shape = _select(np.empty((0, *self.shape[1:]), self._dtype), inner_keys).shape[1:]
        result = np.empty((rows.size, *row_shape), self._dtype)
        position = 0
        for start, stop in _blocks(np.atleast_1d(rows), max(1, BLOCK_BYTES // max(1, self.row_bytes))):
            target = result[position : position + stop - start]
            if whole_rows:
                self._file.read_into(self._key, target, start_row=start)
            else:
                target[...] = _select(self._read_rows(start, stop), inner_keys)
            position += stop - start
        return self._deliver(result if rows.ndim else result[0])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Reads everything, for `numpy.asarray`.

        Raises:
            ValueError: If it must not be a copy: what is in a file is in no memory yet.
        """
        if copy is False:
            raise ValueError(
                f"{self._key} is read from {self._file.path}, which makes a copy; copy=False forbids it"
            )
        return self._read_rows(0, len(self)).astype(dtype or self._dtype, copy=False)

    # Not `chunks`, which dask, xarray and others take for the shape of the pieces something is stored in.
    def stream(self, *, max_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, Any]]:
        """Streams the tensor from its first row to its last.

        Args:
            max_bytes: Most bytes of one stretch; it has at least one row.

        Yields:
            Number of the stretch's first row, and its rows.
        """
        num_rows = max(1, max_bytes // max(1, self.row_bytes))
        for start in range(0, len(self), num_rows):
            yield start, self._deliver(self._read_rows(start, min(start + num_rows, len(self))))

    def __copy__(self) -> "LazyTensor":
        """Returns a copy with a file of its own, like every other copy."""
        return copy.deepcopy(self)

    def _read_rows(self, start: int, stop: int) -> Array:
        rows = np.empty((stop - start, *self.shape[1:]), self._dtype)
        self._file.read_into(self._key, rows, start_row=start)
        return rows

    def _key_per_axis(self, key: Any) -> list[Any]:
        keys = list(key) if isinstance(key, tuple) else [key]
        ellipses = [axis for axis, one in enumerate(keys) if one is Ellipsis]
        missing = [slice(None)] * (self.ndim - len(keys) + len(ellipses[:1]))
        if ellipses:
            keys[ellipses[0] : ellipses[0] + 1] = missing
        else:
            keys += missing
        if len(keys) != self.ndim:
            raise IndexError(f"{self._key} has {self.ndim} axes, got {len(keys)} indices")
        return keys

    def _deliver(self, array: Any) -> Any:
        return array if self._framework == "np" else _to_torch(np.asarray(array))


def _select(rows: Array, inner_keys: list[Any]) -> Array:
    """Applies one key to each axis after the first."""
    # From the last axis, so that one dropped by an integer moves none that are still to come.
    for axis in range(len(inner_keys), 0, -1):
        rows = rows[(slice(None),) * axis + (inner_keys[axis - 1],)]
    return rows


def _blocks(rows: Array, max_rows: int) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of consecutive rows, in the order asked for, at most `max_rows` at a time."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for run in np.split(rows, breaks):
        if run.size:
            first, end = int(run[0]), int(run[-1]) + 1
            for start in range(first, end, max_rows):
                yield start, min(start + max_rows, end)


def _to_torch(array: Array) -> Any:
    # Here, not at the top: everything else in this room reads without torch, in a fraction of its import
    # time.
    import torch

    if array.dtype == NUMPY_DTYPES["BF16"]:  # torch does not know ml_dtypes; the bits are the same
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
