"""Reading tensors of a safetensors file, as many bytes of them at a time as are wanted.

Bytes are read with pread, not through a memory map: streaming 1 GB through the map of the stock reader left
1.1 GB resident, this leaves the size of one block, and a file cut short is an error, not a SIGBUS.
"""

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash

from flannel_pl.arrays import Array
from flannel_pl.errors import RunError
from flannel_pl.recording.formats.opening import Descriptor, Identity, read_at, replaced, unreachable
from flannel_pl.recording.formats.safetensors.layout import FileLayout, layout_of
from flannel_pl.recording.formats.specs import NUMPY_DTYPES


class SafetensorsFile:
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
        try:
            self.layout: FileLayout = layout_of(self._descriptor) if layout is None else layout
        except BaseException:
            self.close()
            raise

    @property
    def header(self) -> FileLayout:
        """What it says of itself."""
        return self.layout

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

    def __enter__(self) -> "SafetensorsFile":
        """Returns the file; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the file."""
        self.close()


def _opened_again(path: str, identity: Identity, digest: str) -> SafetensorsFile:
    file = SafetensorsFile(Path(path), identity=identity)
    if _digest(file.layout) != digest:
        raise replaced(file.path)
    return file


def _digest(layout: FileLayout) -> str:
    return xxhash.xxh3_128_hexdigest(layout.header)
