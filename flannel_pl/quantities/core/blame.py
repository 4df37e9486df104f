"""Whose code an error was raised in, where somebody's own quantity is called."""

from collections.abc import Iterator
from contextlib import contextmanager

from flannel_pl.errors import RunError, UserError, raised_at
from flannel_pl.quantities.quantity import Quantity


@contextmanager
def blamed(quantity: Quantity) -> Iterator[None]:
    """Says whose code an error was raised in, where it is somebody's own quantity.

    Raises:
        UserError: In place of whatever else is raised.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        kind = type(quantity)
        if kind.__module__.startswith("flannel_pl."):
            raise
        raise UserError(
            f"the quantity {kind.__module__}.{kind.__qualname__} failed with {type(error).__name__}: {error} "
            f"({raised_at(error)})"
        ) from error
