"""Files of tensors, whatever their format: the one table of those that there are, and what each must offer.

What writes and what reads a format lies in one folder. Nothing else in the package knows how a recording lies
on the disk, but for gathering: a gathered file is always one of safetensors.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from flannel_pl.arrays import Array
from flannel_pl.recording.formats.early_end import EarlyEnd
from flannel_pl.recording.formats.safetensors.file import SafetensorsFile
from flannel_pl.recording.formats.safetensors.sink import SafetensorsSink, shard_bytes
from flannel_pl.recording.formats.schema import RECORDED_TOKENS, RecordingSchema, ShardPlan
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


class Sink(Protocol):
    """The unfinished file of one run: what stands between the ring of rows and the disk.

    One thread at a time calls it. `open` or `reopen` comes first, `close` last. Each may raise OSError or
    RunError; after that nobody knows what the disk holds, and only `abort` and `close` follow.
    """

    @property
    def size(self) -> int:
        """Bytes that the file takes on the disk, about."""

    def open(self) -> None:
        """Makes the file under its unfinished name, with the space for all of its rows reserved."""

    def reopen(self, first_row: int) -> None:
        """Opens the file of an earlier attempt, whose rows from `first_row` on are written anew.

        Raises:
            RunError: If it was begun with other rows, columns or metadata.
        """

    def rows(self, name: str, rows: range) -> bytes:
        """Returns some rows of a column; for few of them, or small ones."""

    def write_row(self, row: int, cells: Iterable[tuple[str, memoryview]]) -> None:
        """Writes what a row has in each column, checksums included, in the order in which they come."""

    def commit(self) -> None:
        """Makes everything that was written survive a power cut."""

    def publish(self, num_rows: int, ended: EarlyEnd | None) -> None:
        """Gives the file its final name; everything is committed.

        Args:
            num_rows: Rows that there are.
            ended: Why they are fewer than were planned, which the file then says.
        """

    def abort(self) -> None:
        """Removes the unfinished file, if it still is this one."""

    def close(self) -> None:
        """Lets go of the file; raises nothing."""


@dataclass(frozen=True)
class Format:
    """One row of the table."""

    name: str

    is_of: Callable[[Path], bool]
    """Tells by its content whether a file or a folder is of this format."""

    open: Callable[[Path], TensorFile]
    """Opens one, finished or not. Raises RunError if it cannot be read or is damaged."""

    sink: Callable[[ShardPlan], Sink]
    """Returns what writes one; touches no file yet."""

    num_bytes: Callable[[RecordingSchema, Mapping[str, TensorSpec]], int]
    """Returns how large the file of a run is, about, with its tensors besides the per-row ones."""


FORMATS: tuple[Format, ...] = (
    Format("safetensors", Path.is_file, SafetensorsFile, SafetensorsSink, shard_bytes),
)
"""The first is what recordings are written in, and what a file is taken for that is of none of the others."""


def is_recording(path: Path) -> bool:
    """Tells whether something is a recording by itself, although it may be a folder."""
    return any(one.is_of(path) for one in FORMATS)


def format_of(path: Path) -> Format:
    """Returns the format of what has a name, or is to get it."""
    return next((one for one in FORMATS[1:] if one.is_of(path)), FORMATS[0])


def recording_bytes(schema: RecordingSchema, *, num_recorded_tokens: int | None = None) -> int:
    """Returns how large the recording of a run will be, short of what its metadata take.

    Args:
        schema: Its rows and columns.
        num_recorded_tokens: Size of the token subset, if only a subset is recorded.
    """
    ids = {} if num_recorded_tokens is None else {RECORDED_TOKENS: TensorSpec("I64", (num_recorded_tokens,))}
    return FORMATS[0].num_bytes(schema, ids)


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
