"""The ring of rows in memory: one allocation, divided among a few buffers that are filled again and again."""

import math
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from flannel_pl.recording.formats.schema import RecordingSchema

TORCH_DTYPES = {
    **{"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64},
    **{"I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool},
}
"""Dtype code of a column -> torch's dtype."""

_ALIGNMENT_BYTES = 64  # of a cache line, and more than any dtype needs


@dataclass(frozen=True, eq=False)
class RowBuffer:
    """One row in memory. Fill every tensor in place before submitting it."""

    tensors: dict[str, torch.Tensor]
    """Column name -> a view of the ring, shape `ColumnSpec.sizes`, on the CPU."""

    row_bytes: dict[str, memoryview]
    """The same memory as bytes."""

    staged: dict[torch.dtype, torch.Tensor]
    """Type of numbers -> a place for all of that type, so that one copy from a device brings them."""

    def cells(self) -> Iterator[tuple[str, memoryview]]:
        """Yields what the row has in each column, as bytes, and at last the checksums of these."""
        checksums = np.empty(len(self.row_bytes), np.uint64)
        for position, (name, data) in enumerate(self.row_bytes.items()):
            checksums[position] = xxhash.xxh3_64_intdigest(data)
            yield name, data
        yield "checksums", checksums.data


class Ring:
    """A few buffers, each of them free, held by whoever fills it, or on its way to the disk.

    Args:
        schema: The columns of a row.
        num_buffers: How many rows the ring holds.
        pin_memory: Whether it is page-locked, for asynchronous copies from a GPU.
    """

    def __init__(self, schema: RecordingSchema, *, num_buffers: int, pin_memory: bool) -> None:
        self._free = deque(_make_buffers(schema, num_buffers=num_buffers, pin_memory=pin_memory))
        self.num_buffers = num_buffers
        self._held: set[RowBuffer] = set()

    @property
    def has_free(self) -> bool:
        """Whether `take` has one to give."""
        return bool(self._free)

    @property
    def is_held(self) -> bool:
        """Whether all of them are held."""
        return len(self._held) == self.num_buffers

    @property
    def is_at_rest(self) -> bool:
        """Whether none of them is on its way to the disk."""
        return len(self._free) + len(self._held) == self.num_buffers

    def take(self) -> RowBuffer:
        """Returns a free buffer, which is held from now on."""
        buffer = self._free.popleft()
        self._held.add(buffer)
        return buffer

    def hand_over(self, buffer: RowBuffer) -> None:
        """Lets a buffer be held no more.

        Raises:
            ValueError: If it is not held.
        """
        if buffer not in self._held:
            raise ValueError("got a buffer that was not acquired, or was submitted before")
        self._held.remove(buffer)

    def give_back(self, buffer: RowBuffer) -> None:
        """Makes a buffer free again."""
        self._free.append(buffer)


def _make_buffers(schema: RecordingSchema, *, num_buffers: int, pin_memory: bool) -> list[RowBuffer]:
    """Divides one allocation among `num_buffers` rows; every column starts aligned."""
    numbers = Counter(column.dtype for column in schema.columns if not column.sizes)
    sizes = {column.name: column.row_bytes for column in schema.columns}
    sizes |= {code: count * TORCH_DTYPES[code].itemsize for code, count in numbers.items()}
    starts, end = {}, 0
    for name, num_bytes in sizes.items():
        starts[name] = end
        end += math.ceil(num_bytes / _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    ring = torch.zeros((num_buffers, end), dtype=torch.uint8, device="cpu", pin_memory=pin_memory)
    buffers = []
    for memory in ring:
        parts = {name: memory[start : start + sizes[name]] for name, start in starts.items()}
        cells = {c.name: parts[c.name] for c in schema.columns}
        staged = {TORCH_DTYPES[code]: parts[code].view(TORCH_DTYPES[code]) for code in numbers}
        tensors = {c.name: cells[c.name].view(TORCH_DTYPES[c.dtype]).view(c.sizes) for c in schema.columns}
        of_bytes = {name: cell.numpy().data for name, cell in cells.items()}
        buffers.append(RowBuffer(tensors, of_bytes, staged))
    return buffers
