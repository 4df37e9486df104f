"""Which quantities are called in a step."""

from collections.abc import Iterable

from flannel_pl.quantities.quantity import Quantity


def due(quantities: Iterable[Quantity], number: int, every_n_steps: int) -> list[Quantity]:
    """Returns the quantities that are called in a step.

    Args:
        quantities: All.
        number: Of the step.
        every_n_steps: Steps from one row to the next.
    """
    return [one for one in quantities if one.every_step or number % every_n_steps == 0]
