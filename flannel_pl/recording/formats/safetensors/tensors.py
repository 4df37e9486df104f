"""Reading tensors of a safetensors file a few rows at a time, as numpy arrays or torch tensors.

Bytes are read with pread, not through a memory map: streaming 1 GB through the map of the stock reader left
1.1 GB resident, this leaves the size of one block, and a file cut short is an error, not a SIGBUS.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import xxhash

from flannel_pl.arrays import Array
from flannel_pl.errors import RunError
from flannel_pl.recording.formats.opening import Descriptor, Identity, read_at, replaced, unreachable
from flannel_pl.recording.formats.safetensors.layout import NUMPY_DTYPES, FileLayout, layout_of

BLOCK_BYTES = 64 * 2**20
"""Most bytes that are read at once when only a part of them is wanted."""

Framework = Literal["np", "pt"]


class TensorFile:
    """One open safetensors file. Thousands may be open at once; the system sees only some of them open.

    A copy, also one that is pickled for another process, opens the same file by itself: closing one leaves
    the other open.

    Args:
        path: The file.
        layout: Its layout, if the header is not there yet; otherwise it is read.
        identity: Of the file that is meant, if it was opened before.

    Raises:
        RunError: If it cannot be read, is damaged, or is another file than the one that is meant.
    """

    def __init__(
        self, path: Path, *, layout: FileLayout | None = None, identity: Identity | None = None
    ) -> None:
        self.path = path
        self._descriptor = Descriptor(path, identity=identity)
        self.layout: FileLayout = layout_of(self._descriptor) if layout is None else layout

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies which file it is, and opens that; a closed one is refused.

        Raises:
            RunError: If it is another file by now, or the disk fails.
            ValueError: If the file is closed.
        """
        try:
            identity = self._descriptor.identity()
        except OSError as error:
            raise unreachable(self.path, error) from error
        return _opened_again, (str(self._descriptor.absolute), identity, _digest(self.layout))

    def read_into(self, key: str, array: Array, *, start_row: int = 0) -> None:
        """Fills `array`, contiguous and of the tensor's dtype, with its rows from `start_row` on.

        Raises:
            RunError: If the file became shorter or the disk fails.
            ValueError: If the file is closed.
        """
        row_bytes = array[:1].nbytes if array.ndim else array.nbytes
        self.read_bytes_into(key, array.reshape(-1).view(np.uint8).data, start_byte=start_row * row_bytes)

    def read_bytes_into(self, key: str, view: memoryview, *, start_byte: int) -> None:
        """Fills `view` with a tensor's bytes from `start_byte` on.

        Raises:
            RunError: If the file became shorter, was replaced, or the disk fails.
            ValueError: If the file is closed.
        """
        offset = self.layout.offsets[key] + start_byte
        try:
            with self._descriptor.opened() as fd:
                while view:
                    num_read = read_at(fd, view, offset)
                    if num_read == 0:
                        raise RunError(f"{self.path} was cut short while it was read: {key} ends too early")
                    view, offset = view[num_read:], offset + num_read
        except OSError as error:
            raise unreachable(self.path, error, what=key) from error

    def read(self, key: str) -> Array:
        """Returns a whole tensor; for small ones."""
        spec = self.layout.tensors[key]
        array = np.empty(spec.shape, NUMPY_DTYPES[spec.dtype])
        self.read_into(key, array)
        return array

    def close(self) -> None:
        """Closes the file; nothing can be read from it afterwards."""
        self._descriptor.close()

    def __enter__(self) -> "TensorFile":
        """Returns the file; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the file."""
        self.close()


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
        spec = file.layout.tensors[key]
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


def _opened_again(path: str, identity: Identity, digest: str) -> TensorFile:
    file = TensorFile(Path(path), identity=identity)
    if _digest(file.layout) != digest:
        raise replaced(file.path)
    return file


def _digest(layout: FileLayout) -> str:
    return xxhash.xxh3_128_hexdigest(layout.header)


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
