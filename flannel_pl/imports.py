"""Importing torch, Lightning and transformers in two thirds of the time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Keeps the garbage collector away from what is imported, which lives as long as the process.

    Collecting among the millions of objects of those libraries takes a third of the time that importing them
    takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
