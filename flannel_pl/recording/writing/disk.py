"""The few calls that put bytes on a disk, and what to tell the user when one fails.

`os` functions are looked up when called, so that tests can let any one of them fail.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from flannel_pl.errors import RunError
from flannel_pl.paths import partial_of
from flannel_pl.publish import sync, sync_folder
from flannel_pl.recording.writing.held import check_held
from flannel_pl.recording.writing.space import NO_SPACE, free_bytes, preallocate

_PIECE_BYTES = 8 * 2**20
_KERNEL_PIECE_BYTES = 64 * 2**20  # so that progress shows


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`; a single pwrite may write less."""
    view = memoryview(data).cast("B")
    while view:
        num_written = os.pwrite(fd, view, offset)
        if num_written == 0:
            raise OSError(errno.EIO, "the disk accepts no more bytes")
        view, offset = view[num_written:], offset + num_written


def create(path: Path) -> int:
    """Makes a new, empty file and returns its descriptor, for reading and writing.

    A file that has the name already is unlinked, not emptied: another process may still hold it.

    Raises:
        OSError: If the disk refuses.
        RunError: If another process has taken over the folder's lock.
    """
    check_held(path)
    path.unlink(missing_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def publish(partial: Path, final: Path, *, fd: int) -> None:
    """Gives a complete, synced file its final name.

    Args:
        partial: Its name so far.
        final: The name it gets; a file that has it is replaced.
        fd: The descriptor it was written through.

    Raises:
        RunError: If `partial` is by now another file than the one that was written, or another process has
            taken over the folder's lock.
    """
    check_held(final)
    if not is_named(partial, fd=fd):
        check_held(final)  # perhaps lost only just now
        raise RunError(
            f"{partial} was replaced by another process while it was written, so it does not become "
            f"{final.name}. See to it that only one process writes there, then start again."
        )
    os.replace(partial, final)  # noqa: PTH105 - looked up in `os` like every call here
    sync_folder(final.parent)


def is_named(path: Path, *, fd: int) -> bool:
    """Tells whether an open file has that name."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    written = os.fstat(fd)
    return (written.st_dev, written.st_ino) == (there.st_dev, there.st_ino)


def readable_bytes(num_bytes: float) -> str:
    """Returns e.g. '4.79 GiB'."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} TiB"


def why_not_writable(folder: Path) -> str | None:
    """Returns why nothing can be made in a folder, whether it exists yet or not, or None; makes nothing."""
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        return f"{there} is a file"
    if not os.access(there, os.W_OK | os.X_OK):
        return "no permission, or a read-only disk"
    return None


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, unless it is there; it survives a power cut.

    Raises:
        RunError: If the disk refuses.
    """
    for path in reversed([path for path in (folder, *folder.parents) if not path.is_dir()]):
        if path.is_file():
            raise RunError(f"{path} is a file, and expected is a folder; name another one")
        with explained(path, need_bytes=0):
            path.mkdir(exist_ok=True)
            sync_folder(path.parent)


@contextlib.contextmanager
def new_file(final: Path, num_bytes: int) -> Iterator[int]:
    """Writes a file under a `.partial` name; syncs it and gives it its name when the block ends.

    Args:
        final: The name.
        num_bytes: The file's size, reserved at once.

    Yields:
        The descriptor to write to.

    Raises:
        RunError: If the disk fails; like after any other error, the partial file is gone then.
    """
    partial = partial_of(final)
    with explained(final, need_bytes=num_bytes):
        fd = create(partial)
        try:
            preallocate(fd, num_bytes)
            yield fd
            sync(fd)
            publish(partial, final, fd=fd)
        except BaseException:
            if is_named(partial, fd=fd):  # else another process writes there by now
                partial.unlink()
            raise
        finally:
            os.close(fd)


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Writes a small file, whole or not at all; when this returns, it survives a power cut.

    Args:
        path: Its name; until it is complete it carries `.partial` behind that.
        data: All of its bytes.

    Raises:
        RunError: If the disk fails; what was there before is still there then.
    """
    if not hasattr(os, "pwrite"):
        return _write_in_order(path, data)
    with new_file(path, len(data)) as fd:
        write_at(fd, data, 0)
    return None


def _write_in_order(path: Path, data: bytes | memoryview) -> None:
    """Does what `write_file` does on Windows, where an open file cannot get another name."""
    partial = partial_of(path)
    with explained(path, need_bytes=len(data)):
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                sync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def copy_range(
    source_fd: int,
    target_fd: int,
    *,
    source_offset: int,
    target_offset: int,
    num_bytes: int,
    advance: Callable[[int], object],
) -> None:
    """Copies bytes from file to file, inside the kernel where it can.

    Args:
        source_fd: Copied from.
        target_fd: Copied to.
        source_offset: First byte to copy.
        target_offset: Where it goes.
        num_bytes: How many.
        advance: Called with the size of each piece that is done.

    Raises:
        OSError: If the disk fails or the source ends too early.
    """
    done, in_kernel = 0, True
    while done < num_bytes:
        places = (source_offset + done, target_offset + done)
        if in_kernel:
            num_copied = _copy_in_kernel(
                source_fd, target_fd, min(num_bytes - done, _KERNEL_PIECE_BYTES), *places
            )
            in_kernel = num_copied > 0
        else:
            piece = os.pread(source_fd, min(num_bytes - done, _PIECE_BYTES), places[0])
            if not piece:
                raise OSError(errno.EIO, "a file it is copied from ends too early")
            write_at(target_fd, piece, places[1])
            num_copied = len(piece)
        done += num_copied
        advance(num_copied)


def _copy_in_kernel(source_fd: int, target_fd: int, num_bytes: int, source: int, target: int) -> int:
    """Returns how much was copied; 0 if this system or this pair of file systems cannot do it."""
    try:
        return os.copy_file_range(source_fd, target_fd, num_bytes, source, target)
    except AttributeError:  # macOS has no such call
        return 0
    except OSError as error:
        # Containers forbid it, network file systems answer almost anything. A disk that fails shows that to
        # reading and writing as well.
        if error.errno in NO_SPACE:
            raise
        return 0


@contextlib.contextmanager
def explained(path: Path, *, need_bytes: int) -> Iterator[None]:
    """Turns an OSError of the block into a RunError that says what to do.

    Args:
        path: The file that is being written.
        need_bytes: How much of it is still to be written, for the message of a full disk; 0 if unknown.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(error, path, need_bytes=need_bytes) from error


def row_error(error: BaseException, path: Path, *, row: int, need_bytes: int) -> RunError:
    """Returns the user's explanation of whatever happened while a row of `path` was written."""
    if isinstance(error, RunError):
        return RunError(str(error))
    if isinstance(error, OSError):
        return disk_error(error, path, need_bytes=need_bytes)
    return RunError(f"Cannot write row {row} of {path}: {type(error).__name__}: {error}")


def disk_error(error: OSError, path: Path, *, need_bytes: int) -> RunError:
    """Returns the user's explanation of `error`, which happened while writing `path`."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = free_bytes(path.parent)
        have = "an unknown number of bytes" if free is None else readable_bytes(free)
        need = f"Need {readable_bytes(need_bytes)}, have" if need_bytes else "There are"
        return RunError(
            f"Cannot write {path}: {reason}. {need} {have} free. "
            "Free some space, or write to another disk; a recording is smaller with fewer recorder.tensors "
            "or a larger recorder.every_n_steps."
        )
    if error.errno in (errno.ENOENT, errno.ESTALE) and not path.parent.exists():
        return RunError(
            f"Cannot write {path}: {path.parent} is not there any more, it was removed or renamed while it "
            "was in use. Bring it back to go on, or start again from the beginning."
        )
    return RunError(f"Cannot write {path}: {reason}. Check the disk and its permissions, then start again.")
