"""What can be imported, as directives of mkdocstrings, which reads the docstrings."""

import importlib
import inspect
import typing
from collections import deque
from typing import Any

import flannel_pl
from flannel_pl.adapters.options import RecorderOptions

DEPTH = 3
"""How far from a public name a class may be that is explained because something returns it."""


def public() -> str:
    """Returns the names of `flannel_pl.__all__`, and the classes of what they return."""
    names = [name for name in flannel_pl.__all__ if not name.startswith("__")]
    found = {name: getattr(flannel_pl, name) for name in names}
    text = "".join(_directive(thing, f"flannel_pl.{name}", level=2) for name, thing in found.items())
    text += f"## Options of a recorder\n\n{_directive(RecorderOptions, 'RecorderOptions')}"
    text += "## What these return\n\n"
    return text + "".join(_directive(thing, thing.__name__) for thing in _returned(list(found.values())))


def of(module: str, *, shown: str | None = None) -> str:
    """Returns the names of a module's `__all__`, or all of its own that are public; below a heading."""
    home = importlib.import_module(module)
    names = getattr(home, "__all__", None) or [
        name
        for name, thing in vars(home).items()
        if not name.startswith("_") and getattr(thing, "__module__", "") == module
    ]
    return "".join(_directive(getattr(home, name), f"{shown or module}.{name}") for name in names)


def _directive(thing: Any, heading: str, *, level: int = 3) -> str:
    if inspect.ismodule(thing):
        return f"## {heading}\n\n{inspect.getdoc(thing) or ''}\n\n{of(thing.__name__, shown=heading)}"
    lines = [f"::: {thing.__module__}.{thing.__qualname__}", "    options:", f"      heading_level: {level}"]
    lines += [f"      heading: {heading}", f"      toc_label: {heading.rpartition('.')[2]}"]
    if inspect.isclass(thing):
        lines.append(f"      members: [{', '.join(_members(thing))}]")
    return "\n".join(lines) + "\n\n"


def _members(kind: type) -> list[str]:
    """Returns the public members that a class has of its own: not the hooks that a framework calls."""
    own = [name for name in vars(kind) if not name.startswith("_") and not name.isupper()]
    return [name for name in own if not _is_override(vars(kind)[name])]


def _is_override(member: Any) -> bool:
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return bool(getattr(function, "__override__", False))


def _returned(things: list[Any]) -> list[type]:
    """Returns the classes of this package that functions and methods say they return, nearest first."""
    queue = deque((thing, 0) for thing in things if not inspect.ismodule(thing))
    known: list[type] = []
    while queue:
        thing, depth = queue.popleft()
        members = [getattr(thing, name) for name in _members(thing)] if inspect.isclass(thing) else [thing]
        for member in members:
            function = member.fget if isinstance(member, property) else member
            if not inspect.isfunction(function):
                continue
            for kind in _classes(typing.get_type_hints(function).get("return")):
                if kind not in (*known, *things) and depth < DEPTH:
                    known.append(kind)
                    queue.append((kind, depth + 1))
    return known


def _classes(annotation: Any) -> list[type]:
    if inspect.isclass(annotation) and annotation.__module__.partition(".")[0] == "flannel_pl":
        return [annotation]
    return [one for part in typing.get_args(annotation) for one in _classes(part)]
