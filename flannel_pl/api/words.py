"""From a config and keyword arguments to the words of a command line."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flannel_pl.errors import UserError


def command_words(config: str | Path | Mapping[str, Any] | None, changes: Mapping[str, Any]) -> list[str]:
    """Returns what is to stand behind `flannel-pl fit`.

    Values are written as the content of a config, in which a text stays that text; as words of their own some
    would be taken for something else.

    Args:
        config: A YAML file, the name of a config that comes with flannel-pl, or the content of one, as nested
            dicts; None = the defaults.
        changes: What to override: group -> {key: value}, or key -> value, with two underscores or a dot
            between the group and its key.

    Raises:
        UserError: If it cannot be said in words, e.g. a class that no other process could import.
    """
    for name in ("print_config", "help", "debug"):
        if name in changes:
            raise UserError(
                f"{name} is an option of the command line, e.g. flannel-pl fit --{name}; leave it out"
            )
    words: list[str] = []
    if isinstance(config, Mapping):
        words += ["--config", json.dumps(_plain("config", config))]
    elif isinstance(config, str | Path):
        words.append(_name_of_config(config))
    elif config is not None:
        raise UserError(
            f"config is of type {type(config).__name__}, expected a YAML file, the name of a config that "
            "comes with flannel-pl, or nested dicts"
        )
    return [*words, "--config", _content(changes)] if changes else words


def _name_of_config(config: str | Path) -> str:
    name = str(Path(config).expanduser()) if str(config).startswith("~") else str(config)
    if not name.strip() or name.startswith("-") or "\0" in name:
        raise UserError(
            f"config is {name!r}, expected a YAML file or the name of a config that comes with flannel-pl; "
            'options are keywords, e.g. trainer={"max_steps": 50}'
        )
    return name


def _content(changes: Mapping[str, Any]) -> str:
    """Returns what is to be overridden as the content of a config."""
    content: dict[str, Any] = {}
    for name, value in changes.items():
        key = name.replace("__", ".")
        plain = _plain(key, value)
        if isinstance(plain, dict) and "." not in key:
            for inner, item in plain.items():
                _put(content, [key, *inner.split(".")], item)
        else:
            _put(content, key.split("."), plain)
    return json.dumps(content)


def _put(content: dict[str, Any], path: list[str], value: Any) -> None:
    *groups, key = path
    for group in groups:
        inner = content.setdefault(group, {})
        if isinstance(inner, str) and group in ("model", "data"):  # a class
            inner = content[group] = {"class_path": inner}
        elif isinstance(inner, str) and group != groups[0]:  # one inside a group, as model.optimizer
            content[group] = {"class_path": inner, "init_args": {}}
            inner = content[group]["init_args"]
        elif isinstance(inner, dict) and group != groups[0] and isinstance(inner.get("init_args"), dict):
            inner = inner["init_args"]
        if not isinstance(inner, dict):
            raise UserError(
                f"{'.'.join(path)} is given beside {group} as a whole, {inner!r}; give one of them"
            )
        content = inner
    if key in content:
        raise UserError(f"{'.'.join(path)} is given twice, {content[key]!r} and {value!r}; give it once")
    content[key] = value


def _plain(key: str, value: Any) -> Any:
    """Returns a value made of what JSON has."""
    if isinstance(value, type):
        return _class_path(value)
    if isinstance(value, Mapping):
        if other := [name for name in value if not isinstance(name, str)]:
            raise UserError(f"{key} has the key {other[0]!r}, expected texts for keys")
        return {name: _plain(f"{key}.{name}", item) for name, item in value.items()}
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
