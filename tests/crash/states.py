"""From the notes of `noted.c`: what a power cut at some moment may leave on a disk."""

import hashlib
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

_HEADER = struct.Struct("=6q")

Names = Literal["strict", "early"]
"""Only names whose folder was synced; or all, and removals too, at once."""

Size = Literal["old", "new"]
"""What was not synced of a file is gone and its size as it was; or there are zeros in its place."""


@dataclass(frozen=True)
class Note:
    op: str
    inode: int
    offset: int
    paths: tuple[str, str]
    data: bytes


@dataclass(eq=False)
class _File:
    now: bytearray = field(default_factory=bytearray)
    synced: bytes = b""

    def content(self, size: Size) -> bytes:
        return self.synced if size == "old" else self.synced.ljust(len(self.now), b"\0")


@dataclass(frozen=True)
class State:
    """What is on the disk after a power cut.

    Attributes:
        name: The moment, and what was lost.
        files: Path below the noted folder -> content.
        folders: Those that are there.
    """

    name: str
    files: dict[str, bytes]
    folders: frozenset[str]

    @property
    def digest(self) -> bytes:
        hashed = hashlib.sha256(repr(sorted(self.folders)).encode())
        for path in sorted(self.files):
            hashed.update(path.encode() + b"\0" + hashlib.sha256(self.files[path]).digest())
        return hashed.digest()

    def write(self, folder: Path) -> None:
        """Makes it in a new folder."""
        for path in ("", *sorted(self.folders)):
            (folder / path).mkdir()
        for path, content in self.files.items():
            (folder / path).write_bytes(content)
            os.utime(folder / path, (time.time() - 60,) * 2)  # a power cut takes a while


def read_notes(log: Path) -> list[Note]:
    content, notes, at = log.read_bytes(), list[Note](), 0
    while at < len(content):
        op, inode, offset, *lengths = _HEADER.unpack_from(content, at)
        at += _HEADER.size
        parts = []
        for length in lengths:
            parts.append(content[at : at + length])
            at += length
        paths = parts[0].decode(), parts[1].decode()
        notes.append(Note(chr(op), inode, offset, paths, parts[2]))
    return notes


class _Disk:
    """What is on a disk, and what of it would survive a power cut."""

    def __init__(self, root: str, deaf_to: str) -> None:
        self.root, self.deaf_to = root, deaf_to
        self.inodes: dict[int, _File] = {}
        self.now: dict[str, _File | None] = {}  # None: a folder
        self.synced: dict[str, _File | None] = {}

    def play(self, note: Note) -> None:
        first, second = (path.removeprefix(self.root).strip("/") for path in note.paths)
        if note.op == "O":
            if first not in self.now:
                self.now[first] = self.inodes[note.inode] = _File()
            elif note.offset:
                self.inodes[note.inode].now.clear()
        elif note.op == "M":
            self.now[first] = None
        elif note.op == "R":
            self.now[second] = self.now.pop(first)
        elif note.op == "L":
            self.now[second] = self.now[first]
        elif note.op == "U":
            self.now.pop(first)
        elif note.op == "S":
            self._sync(first, note.inode)
        else:
            self._write(self.inodes[note.inode].now, note)

    def _write(self, now: bytearray, note: Note) -> None:
        end = note.offset + len(note.data)
        if note.op == "T":
            del now[end:]
        now.extend(bytes(max(0, end - len(now))))
        now[note.offset : end] = note.data

    def _sync(self, path: str, inode: int) -> None:
        if path != "" and self.now.get(path, self) is not None:
            if not path.endswith(self.deaf_to or "\0"):
                self.inodes[inode].synced = bytes(self.inodes[inode].now)
            return
        for names, others in ((self.now, self.synced), (self.synced, self.now)):
            for name in [name for name in names if _folder_of(name) == path]:
                if name in self.now:
                    self.synced[name] = self.now[name]
                elif name not in others:
                    del self.synced[name]

    def state(self, name: str, names: Names, size: Size) -> State:
        there = self.now if names == "early" else self.synced
        reached = {path for path in there if all(str(up) in there for up in list(Path(path).parents)[:-1])}
        files = {path: file.content(size) for path in reached if (file := there[path]) is not None}
        folders = frozenset(path for path in reached if there[path] is None)
        return State(f"{name}, names {names}, {size} size", files, folders)


def states(notes: list[Note], *, root: Path, deaf_to: str = "") -> Iterator[State]:
    """Yields every different state that a power cut may leave, in the order of the moments.

    Args:
        notes: Of an undisturbed command.
        root: The folder that was noted; empty before that.
        deaf_to: Syncs of files whose names end so are taken as never made.
    """
    disk, seen = _Disk(str(root), deaf_to), set[bytes]()
    for number, note in enumerate(notes):
        disk.play(note)
        if note.op not in "SRLU" and note is not notes[-1]:
            continue
        what = f"{number}: {note.op} {note.paths[0].removeprefix(str(root))}"
        for names in ("strict", "early"):
            for size in ("old", "new"):
                state = disk.state(what, names, size)
                if state.digest not in seen:
                    seen.add(state.digest)
                    yield state


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]
