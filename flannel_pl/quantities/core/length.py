"""How many rows to reserve for a training of which nobody knows how long it is going to be."""

from pathlib import Path

from flannel_pl.recording.writing.space import free_bytes

MOST_ROWS = 1_000_000
MOST_BYTES = 2**42
"""4 TiB: some file systems have no larger files."""


def reserved_rows(folder: Path, row_bytes: int) -> int:
    """Returns for how many rows a file gets names and places; those that never come cost no space.

    Args:
        folder: Where the file is.
        row_bytes: Size of a row.

    Returns:
        As many as the disk has room for, within what files may have; 2 at least.
    """
    free = free_bytes(folder)
    room = MOST_BYTES if free is None else min(free, MOST_BYTES)
    return max(2, min(MOST_ROWS, room // max(1, row_bytes)))
