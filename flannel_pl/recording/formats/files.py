"""Files of tensors, whatever their format: the one table of those that there are, and what each must offer.

What writes and what reads a format lies in one folder. Nothing else in the package knows how a recording lies
on the disk, but for gathering: a gathered file is always one of safetensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from flannel_pl.arrays import Array
from flannel_pl.recording.formats.safetensors.file import SafetensorsFile
from flannel_pl.recording.formats.specs import TensorSpec


class Header(Protocol):
    """What a file says of itself, checked when it was read."""

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Key -> dtype and shape of everything in it."""

    @property
    def flannel(self) -> dict[str, Any]:
        """The metadata of flannel-pl, see docs/format.md; empty for a file that something else wrote."""

    @property
    def header_is_right(self) -> bool:
        """Whether every byte of it is as it was written; False if the file does not say."""

    @property
    def own_bytes(self) -> int:
        """Size of the header itself."""

    @property
    def used_bytes(self) -> int:
        """Size of the file without what was reserved for rows that never came."""


class TensorFile(Protocol):
    """An open file. Copies, also pickled ones, open the same file by themselves; many may be open at once."""

    @property
    def path(self) -> Path:
        """Its name."""

    @property
    def header(self) -> Header:
        """What it says of itself."""

    def read(self, key: str) -> Array:
        """Returns a whole tensor; for small ones."""

    def read_into(self, key: str, array: Array, *, start_row: int = 0) -> None:
        """Fills `array`, contiguous and of the tensor's dtype, with its rows from `start_row` on."""

    def read_bytes_into(self, key: str, view: memoryview, *, start_byte: int) -> None:
        """Fills `view` with a tensor's bytes from `start_byte` on."""

    def close(self) -> None:
        """Closes the file; nothing can be read from it afterwards."""

    def __enter__(self) -> "TensorFile": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class Format:
    """One row of the table."""

    name: str

    is_of: Callable[[Path], bool]
    """Tells by its content whether a file, or a folder, is of this format."""

    open: Callable[[Path], TensorFile]
    """Opens one, finished or not. Raises RunError if it cannot be read or is damaged."""


FORMATS: tuple[Format, ...] = (Format("safetensors", lambda path: path.is_file(), SafetensorsFile),)
"""The first is what recordings are written in, and what a file is taken for that is of none of the others."""


def format_of(path: Path) -> Format:
    """Returns the format of what has a name, or is to get it."""
    return next((one for one in FORMATS[1:] if one.is_of(path)), FORMATS[0])


def open_file(path: Path) -> TensorFile:
    """Opens a file of whatever format.

    Raises:
        Unreachable: If it cannot be read.
        RunError: If it is of no format, or damaged.
    """
    return format_of(path).open(path)


def read_header(path: Path) -> Header:
    """Returns what a file says of itself, finished or not.

    Raises:
        Unreachable: If it cannot be read.
        RunError: If it is of no format, or damaged.
    """
    with open_file(path) as file:
        return file.header
