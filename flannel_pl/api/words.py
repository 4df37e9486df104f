"""From a config and keyword arguments to the words of a command line."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flannel_pl.errors import UserError

_PLAIN_TEXT = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
_NOT_TEXT = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"}


def command_words(config: str | Path | Mapping[str, Any] | None, changes: Mapping[str, Any]) -> list[str]:
    """Returns what is to stand behind `flannel-pl fit`.

    Args:
        config: A YAML file, or the content of one, as nested dicts; None = the defaults.
        changes: What to override: group -> {key: value}, or key -> value, with two underscores or a dot
            between the group and its key.

    Raises:
        UserError: If it cannot be said in words, e.g. a class that no other process could import.
    """
    words: list[str] = []
    if isinstance(config, Mapping):
        words += _words(config)
    elif config is not None:
        words += ["--config", str(config)]
    return [*words, *_words({key.replace("__", "."): value for key, value in changes.items()})]


def _words(content: Mapping[str, Any]) -> Iterator[str]:
    for group, value in content.items():
        if group in ("model", "data") and isinstance(value, type):
            yield f"--{group}={_class_path(value)}"
        elif not isinstance(value, Mapping):
            yield f"--{group}={_text(group, value)}"
        else:
            yield from _words_of_group(group, dict(value))


def _words_of_group(group: str, keys: dict[str, Any]) -> Iterator[str]:
    if "class_path" in keys:
        class_path = keys.pop("class_path")
        yield f"--{group}={_class_path(class_path) if isinstance(class_path, type) else class_path}"
        keys |= keys.pop("init_args", {})
    for key, value in keys.items():
        if group == "launch" and isinstance(value, Mapping):  # a launcher's own keys
            yield from _words_of_group(f"{group}.{key}", dict(value))
        else:
            yield f"--{group}.{key}={_text(f'{group}.{key}', value)}"


def _text(key: str, value: Any) -> str:
    """Returns a value as the command line takes it; a text that is not plain is quoted, as in YAML."""
    plain = _plain(key, value)
    if isinstance(plain, str) and _PLAIN_TEXT.fullmatch(plain) and plain.lower() not in _NOT_TEXT:
        return plain
    return json.dumps(plain)


def _plain(key: str, value: Any) -> Any:
    """Returns a value made of what JSON has."""
    if isinstance(value, type):
        return _class_path(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(key, item) for name, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(key, item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if callable(item := getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        value = item()  # a number of numpy's or torch's
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{key} is {value}, expected a finite number")
        return value
    raise UserError(
        f"{key} is of type {type(value).__name__}, expected what a YAML file can hold: numbers, texts, lists "
        "and dicts of these, and classes"
    )


def _class_path(kind: type) -> str:
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        raise UserError(
            f"{kind.__qualname__} is defined in this notebook, script or function, where the processes that "
            "train cannot import it; put it into a module of its own, e.g. my_lab.py beside it"
        )
    return f"{kind.__module__}.{kind.__qualname__}"
