"""Ways to damage a file, for the tests of this folder."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flannel_pl.recording.formats.files import open_file
from flannel_pl.recording.integrity.cells import bad_cells
from flannel_pl.recording.integrity.parts import parts_of


@contextlib.contextmanager
def flipped(path: Path, position: int, *, bit: int = 0) -> Iterator[None]:
    """Flips one bit of a file, and back when the block ends."""
    content = path.read_bytes()
    write_byte(path, position, content[position] ^ (1 << bit))
    yield
    write_byte(path, position, content[position])
    assert path.read_bytes() == content


def bad_rows(path: Path, *, first: int = 0, last: int | None = None) -> list[tuple[int, str]]:
    """Returns row and column of all that is not as its checksum says, in the file of one run."""
    with open_file(path) as file:
        (part,) = parts_of(file.header)
        return bad_cells(file, part, first=first, last=part.num_rows if last is None else last)


def write_byte(path: Path, position: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(bytes([value]))


def fail_at(name: str, k: int, *, code: int = errno.EIO) -> tuple[Callable[..., Any], list[int]]:
    """Returns `os.NAME` that fails at its k-th call, and the list of its calls."""
    real, calls = getattr(os, name), [0]

    def call(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == k:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **options)

    return call, calls
