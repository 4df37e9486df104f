"""Texts in files are Unicode; those of a process are what system calls take, whatever its locale is.

The two are the same wherever the locale's encoding is UTF-8. In another one, e.g. LC_ALL=C, Python has the
bytes of a name that are no text there as halves of characters.
"""

import os
import sys
from collections.abc import Callable
from typing import Any


def from_file(value: Any) -> Any:
    """Returns plain values that were read from a file with texts as this process has them."""
    return value if _is_same() else _each_text(value, _of_process)


def for_file(value: Any) -> Any:
    """Returns plain values with texts as they stand in files."""
    return value if _is_same() else _each_text(value, _of_file)


def _is_same() -> bool:
    return sys.getfilesystemencoding() == "utf-8"


def _each_text(value: Any, convert: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {_each_text(key, convert): _each_text(item, convert) for key, item in value.items()}
    if isinstance(value, list):
        return [_each_text(item, convert) for item in value]
    try:
        return convert(value) if isinstance(value, str) else value
    except UnicodeEncodeError:  # half of a character that is no byte of a name
        return value


def _of_process(text: str) -> str:
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def _of_file(text: str) -> str:
    return os.fsencode(text).decode("utf-8", "surrogateescape")
