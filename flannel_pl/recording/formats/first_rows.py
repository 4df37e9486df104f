"""The rows that an unfinished file has so far, as if there were no more to come."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from flannel_pl.arrays import Array
from flannel_pl.recording.formats.columns import run_prefix
from flannel_pl.recording.formats.files import TensorFile, open_file
from flannel_pl.recording.formats.specs import TensorSpec


@dataclass(frozen=True)
class _ShortHeader:
    tensors: Mapping[str, TensorSpec]
    flannel: dict[str, Any]
    header_is_right: bool
    own_bytes: int
    used_bytes: int


class FirstRows:
    """The first rows of a run's file, see `TensorFile`.

    Args:
        file: The open file, of one run.
        num_rows: How many.
    """

    def __init__(self, file: TensorFile, num_rows: int) -> None:
        self._file, self._num_rows = file, num_rows
        whole = file.header
        said = whole.flannel
        names = (*said.get("checksum_columns", ()), "checksums")
        per_row = {f"{prefix}{name}" for name in names for prefix in ("", run_prefix(said.get("run")))}
        tensors = {
            key: TensorSpec(spec.dtype, (num_rows, *spec.shape[1:])) if key in per_row else spec
            for key, spec in whole.tensors.items()
        }
        num_bytes = sum(spec.num_bytes for spec in tensors.values())
        self.header = _ShortHeader(
            tensors,
            {**said, "num_rows": num_rows},
            whole.header_is_right,
            whole.own_bytes,
            whole.own_bytes + num_bytes,
        )

    @property
    def path(self) -> Path:
        """Name of the file."""
        return self._file.path

    def __reduce__(self) -> tuple[Any, ...]:
        """Opens the same file again."""
        return FirstRows, (self._file, self._num_rows)

    def read(self, key: str) -> Array:
        """Returns a whole tensor, of the rows that there are."""
        array: Array = self._file.read(key)[: self._num_rows] if self._is_cut(key) else self._file.read(key)
        return array

    def _is_cut(self, key: str) -> bool:
        return self.header.tensors[key] != self._file.header.tensors[key]

    def read_into(self, key: str, array: Array, *, start_row: int = 0) -> None:
        """See `TensorFile`."""
        self._file.read_into(key, array, start_row=start_row)

    def read_bytes_into(self, key: str, view: memoryview, *, start_byte: int) -> None:
        """See `TensorFile`."""
        self._file.read_bytes_into(key, view, start_byte=start_byte)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "FirstRows":
        """Returns itself; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the file."""
        self.close()


def open_first_rows(path: Path, num_rows: int) -> FirstRows:
    """Opens an unfinished file of one run.

    Raises:
        Unreachable: If it cannot be read.
        RunError: If it is damaged.
    """
    return FirstRows(open_file(path), num_rows)
