"""What is found by its name: the launchers that come with the package, and those that others add.

Others add theirs by an entry point; ours are the modules of one package, so that they are there in a checkout
that was never installed. Looking takes a moment, so only what trains does it.
"""

import contextlib
import dataclasses
import functools
import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from flannel_pl.config import LaunchConfig

LAUNCHERS = "flannel_pl.launchers"
"""Entry point group of launchers."""

_OURS = "flannel_pl.launch.launchers"


@functools.cache
def launchers() -> dict[str, EntryPoint]:
    """Returns the name of every launcher there is -> what loads its class; ours first.

    One that is called like another key of `launch`, or could not be a key, is none.
    """
    ours = sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(_OURS).__path__))
    found = {name: EntryPoint(name, f"{_OURS}.{name}:LAUNCHER", LAUNCHERS) for name in ours}
    others = {point.name: point for point in entry_points(group=LAUNCHERS)}
    taken = found.keys() | {field.name for field in dataclasses.fields(LaunchConfig)}
    names = sorted(name for name in others.keys() - taken if name.isidentifier())
    return {**found, **{name: others[name] for name in names}}


def launcher_settings() -> dict[str, type]:
    """Returns the name of every launcher that has config keys of its own -> their dataclass.

    One that cannot be loaded has none; whoever asks for it is told why.
    """
    found: dict[str, Any] = {}
    for name, point in launchers().items():
        with contextlib.suppress(Exception):
            settings = point.load().settings
            if settings is not None and settings():  # else one without defaults would be asked of everybody
                found[name] = settings
    return found
