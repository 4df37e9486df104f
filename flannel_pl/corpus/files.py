"""Reading what the user named, and publishing files whole or not at all."""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flannel_pl.errors import UserError
from flannel_pl.publish import sync
from flannel_pl.small_files import open_regular

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}")
"""What names of `temporary_beside` look like."""


def read_bytes(path: Path, *, role: str) -> bytes:
    """Returns the bytes of a file the user named.

    Args:
        path: The file.
        role: What it is for, e.g. "corpus"; the error says it.

    Raises:
        UserError: The file is missing or cannot be read.
    """
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read the {role} {path}: {error.strerror}. Check the path") from error


def decode(data: bytes, *, path: Path) -> str:
    r"""Returns what `open(path, encoding="utf-8").read()` does for these bytes: \r\n and \r become \n.

    Raises:
        UserError: The bytes are not UTF-8, or there is no text in them; names `path`.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start:,}."
            " Convert it first, e.g. with iconv -t UTF-8"
        ) from error
    if not text.strip():
        state = "holds nothing but blanks" if text else "is empty"
        raise UserError(f"{path} {state}; expected UTF-8 text. Check the path")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def temporary_beside(path: Path) -> Path:
    """Returns a hidden name of its own beside `path`; nothing is made."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def clear_temporaries(folder: Path, *, before_s: float) -> None:
    """Removes what `temporary_beside` has named in a folder and nothing was written to since `before_s`."""
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            with suppress(OSError):  # another process may do the same
                inner = path.iterdir() if path.is_dir() else ()
                if max(one.lstat().st_mtime for one in (path, *inner)) < before_s:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yields a name to write under; the file becomes `path`, or is removed if the block raised."""
    temporary = temporary_beside(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            sync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
