"""A run's journal: how far it is, readable at any moment from any process that sees the folder.

The file has two slots of fixed size, written in turn. Each holds a sequence number, the entry as JSON and a
checksum, in plain text (`cat` shows it). A reader takes the newest slot whose checksum is right, so a write
that a crash tore apart loses nothing but itself. Writers may take turns (launcher, run): the sequence
number is read from the file.
"""

import contextlib
import dataclasses
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import xxhash

from flannel_pl.errors import RunError
from flannel_pl.publish import sync, sync_folder
from flannel_pl.recording.formats.opening import unreachable
from flannel_pl.recording.writing.disk import write_at
from flannel_pl.recording.writing.held import check_held
from flannel_pl.recording.writing.space import reserve
from flannel_pl.small_files import read_small

SLOT_BYTES = 4096
MAX_BYTES = 16 * SLOT_BYTES  # what stands behind the two slots is no journal's, and does no harm
_CHECKSUM_BYTES = 18  # a space, 16 hexadecimal digits, a newline


State = Literal["waiting", "running", "done", "failed", "stopped"]
"""`stopped`: interrupted on request; goes on from its last checkpoint."""


@dataclass(frozen=True)
class JournalEntry:
    """How far a run is."""

    run: int
    seed: int | None
    """None if whoever records does not know it."""

    swept: dict[str, Any]
    state: State
    attempt: int
    """Counted from 1; each start of the run is one."""

    device: str
    host: str
    pid: int
    num_rows: int
    """Rows of the finished recording."""

    rows_written: int
    """Rows handed to the operating system."""

    rows_committed: int
    """Rows that survive a power cut."""

    loss: float | None
    """Loss of the newest written row; None before the first."""

    bytes_written: int
    started_s: float
    """Unix time at which this attempt began, in seconds."""

    updated_s: float
    """Unix time of this entry, in seconds."""

    message: str = ""
    """Short cause, if failed, stopped or ended early."""

    first_bad_step: int | None = None
    """Step of the first loss that is NaN or infinite; None if there is none, or in an older journal."""

    first_row: int = 0
    """Rows below this one were kept from an earlier attempt."""

    ended_step: int | None = None
    """The last one, if the run is done and ended on purpose before it had all; `message` says why."""

    live: dict[str, Any] = field(default_factory=dict)
    """Live metric -> its newest value, a number; empty where none is asked for, or in an older journal."""


class Journal:
    """The journal file at `path`; holds nothing open.

    Args:
        path: `RunPaths.journal`. The folder must exist when the first entry is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, entry: JournalEntry, *, durable: bool = False) -> None:
        """Makes `entry` the newest one.

        Args:
            entry: What to write; of one too long for the slot live metrics are left out and the message cut.
            durable: Whether to return only when the entry survives a power cut.

        Raises:
            OSError: If the disk refuses.
            RunError: If another process has taken over the folder's lock.
            ValueError: If the entry does not fit a slot even without its message.
        """
        check_held(self.path)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            content = os.pread(fd, 2 * SLOT_BYTES, 0)
            newest = max((sequence for sequence, _ in _valid_slots(content)), default=0)
            write_at(fd, _encode(newest + 1, entry), (newest + 1) % 2 * SLOT_BYTES)
            if not content:
                reserve(fd, 0, 2 * SLOT_BYTES)  # a full disk must not keep a run from saying that it failed
            if durable:
                sync(fd)
        finally:
            os.close(fd)
        if durable and not content:
            sync_folder(self.path.parent)

    def read(self) -> JournalEntry | None:
        """Returns the newest entry, or None if nothing was written yet.

        Raises:
            Unreachable: If the file cannot be read.
            RunError: If both slots are damaged.
        """
        for _ in range(3):  # once more if a writer was just at it
            try:
                content = read_small(self.path, max_bytes=MAX_BYTES)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise unreachable(self.path, error) from error
            if not content:
                return None
            slots = _valid_slots(content)
            if slots:
                return max(slots, key=lambda slot: slot[0])[1]
            time.sleep(0.01)
        raise RunError(
            f"{self.path} is damaged: neither of its two entries has a right checksum. "
            "The recording itself is not affected, and the run's next attempt writes the journal anew."
        )


def _encode(sequence: int, entry: JournalEntry) -> bytes:
    """Returns one slot; where it would not fit, without live metrics, then with a shorter message."""
    room = SLOT_BYTES - _CHECKSUM_BYTES
    body = _body(sequence, entry)
    if len(body) > room:
        entry = dataclasses.replace(entry, live={})
        body = _body(sequence, entry)
    while len(body) > room and entry.message:
        # An escaped character takes up to 12 bytes, so this never cuts more than it must.
        kept = len(entry.message) - math.ceil((len(body) - room) / 12)
        entry = dataclasses.replace(entry, message=entry.message[: max(kept, 0)])
        body = _body(sequence, entry)
    if len(body) > room:
        raise ValueError(
            f"The journal entry of run {entry.run} takes {len(body)} bytes, expected at most {room}"
        )
    body = body.ljust(room)
    return body + b" " + xxhash.xxh3_64_hexdigest(body).encode() + b"\n"


def _body(sequence: int, entry: JournalEntry) -> bytes:
    fields = dataclasses.asdict(entry)
    fields["loss"] = _as_json(entry.loss)
    fields["live"] = {name: _as_json(value) for name, value in entry.live.items()}
    return f"{sequence:020d} {json.dumps(fields)}".encode()


def _as_json(number: float | None) -> float | str | None:
    """Returns a number as JSON can have it, which knows no NaN and no infinity."""
    return number if number is None or math.isfinite(number) else str(number)


def _valid_slots(content: bytes) -> list[tuple[int, JournalEntry]]:
    """Returns (sequence, entry) of each slot that was written completely."""
    slots = []
    for start in (0, SLOT_BYTES):
        slot = content[start : start + SLOT_BYTES]
        body, checksum = slot[:-_CHECKSUM_BYTES], slot[-_CHECKSUM_BYTES:].strip()
        if len(slot) == SLOT_BYTES and xxhash.xxh3_64_hexdigest(body).encode() == checksum:
            with contextlib.suppress(ValueError, TypeError, RecursionError):  # nobody's entry, then
                sequence, text = body.split(b" ", 1)
                slots.append((int(sequence), _entry(json.loads(text))))
    return slots


def _entry(fields: dict[str, Any]) -> JournalEntry:
    """Returns the entry of a slot.

    Raises:
        ValueError: If a field has another type than `JournalEntry` says, or a number is out of range.
        TypeError: If a field is missing, or is none of an entry.
    """
    if isinstance(fields["loss"], str):
        fields["loss"] = float(fields["loss"])
    entry = JournalEntry(**fields)
    for one in dataclasses.fields(entry):
        value, kind = getattr(entry, one.name), _KINDS.get(one.name, one.type)
        if isinstance(value, bool) or not isinstance(value, kind):
            raise ValueError(f"{one.name} is {value!r}")
        if isinstance(value, int | float) and one.name != "loss" and not 0 <= value < 2**63:
            raise ValueError(f"{one.name} is {value!r}")
    # What is no number here raises, too: nobody could draw it.
    entry.live.update({name: float(value) for name, value in entry.live.items()})
    if entry.state not in get_args(State):
        raise ValueError(f"state is {entry.state!r}")
    return entry


_KINDS: dict[str, Any] = {
    **{"swept": dict, "live": dict, "state": str, "loss": float | int | None},
    **dict.fromkeys(("started_s", "updated_s"), float | int),
}
"""Types that `isinstance` cannot take as `JournalEntry` says them."""
