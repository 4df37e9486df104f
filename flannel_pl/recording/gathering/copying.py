"""The bytes of a gathered file while it grows: copying a run into it, checking that, and completing it."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flannel_pl.errors import RunError
from flannel_pl.publish import sync
from flannel_pl.recording.experiment_tensors import Extras
from flannel_pl.recording.formats.columns import run_prefix
from flannel_pl.recording.formats.opening import unreachable
from flannel_pl.recording.formats.safetensors.file import SafetensorsFile
from flannel_pl.recording.formats.safetensors.layout import FileLayout
from flannel_pl.recording.integrity.findings import Advance, part_damage
from flannel_pl.recording.integrity.parts import RunPart
from flannel_pl.recording.writing.disk import copy_range, create, explained, is_named, publish, write_at
from flannel_pl.recording.writing.held import check_held
from flannel_pl.recording.writing.space import reserve


class OwnFile:
    """A file that this process has made or taken over; open, so that no new file gets its number.

    Args:
        path: Its name.

    Raises:
        Unreachable: If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._fd = -1
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR)
        except OSError as error:
            raise unreachable(path, error) from error

    @property
    def is_there(self) -> bool:
        """Whether its name is still that of this file."""
        try:
            return is_named(self.path, fd=self._fd)
        except OSError:
            return False

    def check(self) -> None:
        """Refuses to go on with any other file.

        Raises:
            RunError: If another process has replaced or removed it.
        """
        if not self.is_there:
            raise RunError(
                f"{self.path} was replaced or removed by another process while runs were gathered into it, "
                "so nothing becomes of it. See to it that only one process gathers there, then gather again."
            )

    def close(self) -> None:
        """Lets it go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def make_growing_file(path: Path, layout: FileLayout) -> None:
    """Makes a file of the full size that takes no space yet: that grows run by run.

    Raises:
        RunError: If the disk fails.
    """
    with explained(path, need_bytes=len(layout.header)):
        fd = create(path)
        try:
            os.ftruncate(fd, layout.total_bytes)
        finally:
            os.close(fd)


def copy_tensors(
    source: Path,
    source_layout: FileLayout,
    target: Path,
    target_layout: FileLayout,
    *,
    keys: Mapping[str, str],
    advance: Advance,
) -> None:
    """Copies tensors from file to file; `synced` makes them durable.

    Args:
        source: Copied from.
        source_layout: Its layout.
        target: Copied to; it has its full size.
        target_layout: Its layout.
        keys: Key in the target -> key in the source.
        advance: Called with the size of each piece that is done.

    Raises:
        RunError: If the disk fails.
    """
    check_held(target)
    sizes = {key: source_layout.tensors[inner].num_bytes for key, inner in keys.items()}
    with explained(target, need_bytes=sum(sizes.values())), contextlib.ExitStack() as stack:
        source_fd, target_fd = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR)
        for fd in (source_fd, target_fd):
            stack.callback(os.close, fd)
        for key, inner in keys.items():
            reserve(target_fd, target_layout.offsets[key], sizes[key])
            copy_range(
                source_fd,
                target_fd,
                source_offset=source_layout.offsets[inner],
                target_offset=target_layout.offsets[key],
                num_bytes=sizes[key],
                advance=advance,
            )


@contextlib.contextmanager
def synced(path: Path) -> Iterator[None]:
    """Makes what was written to a file durable while the block does something else, e.g. reads it again.

    Raises:
        RunError: At the end of the block, if the disk fails.
    """
    with contextlib.ExitStack() as stack:
        fd = os.open(path, os.O_RDWR)
        stack.callback(os.close, fd)
        thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="flannel-sync"))
        syncing = thread.submit(sync, fd)
        yield
        with explained(path, need_bytes=0):
            syncing.result()


def copy_damage(
    path: Path,
    layout: FileLayout,
    index: int,
    metadata: Mapping[str, Any],
    *,
    advance: Advance | None = None,
) -> list[str]:
    """Returns what of a run's tensors in a growing file is not as their checksums say, a sentence each.

    Args:
        path: The file.
        layout: Its layout; the header is not there yet.
        index: Number of the run.
        metadata: What its own recording says of it.
        advance: Called with the size of each piece that is read.
    """
    with SafetensorsFile(path, layout=layout) as file:
        return part_damage(file, RunPart(index, run_prefix(index), metadata), advance=advance)


def complete(own: OwnFile, layout: FileLayout, *, extras: Extras, final: Path, advance: Advance) -> None:
    """Writes what a file that has every run still lacks, and gives it its final name.

    Args:
        own: The file.
        layout: Its layout, with the true header.
        extras: The tensors that belong to no run.
        final: Its name.
        advance: Called with the size of each piece that is done.

    Raises:
        RunError: If the disk fails, or another process has replaced the file.
    """
    with explained(final, need_bytes=len(layout.header)):
        own.check()
        fd = os.open(own.path, os.O_RDWR)
        try:
            own.check()
            write_at(fd, layout.header, 0)
            advance(len(layout.header))
            for name, array in extras.items():
                write_at(fd, array.tobytes(), layout.offsets[name])
                advance(array.nbytes)
            sync(fd)
            publish(own.path, final, fd=fd)
        finally:
            os.close(fd)
