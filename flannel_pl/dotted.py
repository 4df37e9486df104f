"""Dotted keys of nested dicts, e.g. trainer.max_steps."""

from collections.abc import Iterator
from typing import Any


def flatten(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of nested dicts."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def set_value(config: dict[str, Any], dotted_key: str, value: Any) -> None:
    """Sets a dotted key of nested dicts."""
    *groups, key = dotted_key.split(".")
    for group in groups:
        config = config[group]
    config[key] = value
