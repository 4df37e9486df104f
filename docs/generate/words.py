"""Values, types and docstrings as words in a table."""

import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml


def value(given: Any) -> str:
    """Returns a value as YAML has it, as code."""
    if isinstance(given, Path):
        given = str(given)
    elif isinstance(given, tuple):
        given = list(given)
    text = yaml.safe_dump(given, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    return f"`{text}`"


def kind(annotation: Any) -> str:
    """Returns a type in words: what may be given."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(value(one) for one in parts)
    if origin in (Union, types.UnionType):
        words = list(dict.fromkeys(kind(one) for one in parts))
        if "text" in words and "path" in words:
            words.remove("text")
        return " or ".join(words)
    if annotation is type(None):
        return "`null`"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"map from {kind(parts[0])} to {kind(parts[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"list of {_several(kind(parts[0]))}"
    plain = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
    return plain.get(annotation, "anything" if annotation is Any else f"`{annotation.__name__}`")


def _several(kind: str) -> str:
    return f"{kind}s" if kind in ("whole number", "number", "text", "path") else kind


def argument(name: str, annotation: Any, default: Any, *, is_required: bool) -> str:
    """Returns the first cell of an argument: its name, below it what may be given and what else holds."""
    otherwise = "required" if is_required else f"default {value(default)}"
    return f"`{name}`<br>{kind(annotation)}; {otherwise}"


def cell(text: str) -> str:
    """Returns a docstring's words as the cell of a table."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([*|<\[\]])", r"\\\1", part) for part in parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
