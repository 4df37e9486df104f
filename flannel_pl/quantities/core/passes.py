"""What quantities take during the forward passes of a step, until its row is written.

A pass counts only once its batch is over: its loss may turn out to be none, and gradients of earlier batches
may be thrown away.
"""

from collections.abc import Container

from torch import Tensor

from flannel_pl.quantities.quantity import Row


class Passes:
    """Gathers the values of a step's forward passes: means over all of them, or what the first one gave."""

    def __init__(self) -> None:
        self.clear()
        self._drop()

    def clear(self) -> None:
        """Forgets all passes that are over."""
        self._firsts: dict[str, Tensor] = {}
        self._means: dict[str, tuple[Tensor, float | Tensor]] = {}

    def _drop(self) -> None:
        self._new_firsts: dict[str, Tensor] = {}
        self._new_means: dict[str, tuple[Tensor, float | Tensor]] = {}

    def __setitem__(self, name: str, value: Tensor) -> None:
        """Takes the value of a column in this pass; the row gets that of the first pass that counts."""
        # What is given may be part of something large, or changed by what comes next.
        self._new_firsts.setdefault(name, value.detach().clone())

    def mean(self, name: str, value: Tensor, weight: float | Tensor = 1.0) -> None:
        """Adds to the weighted mean of a column over the passes, and over the pieces of each.

        Args:
            name: Of the column.
            value: A mean over this pass or piece.
            weight: How much it counts, e.g. how many positions it is over.
        """
        _add(self._new_means, name, value.detach() * weight, weight)

    def end(self, *, counts: bool) -> None:
        """Ends a pass.

        Args:
            counts: Whether its batch does.
        """
        if counts:
            for name, value in self._new_firsts.items():
                self._firsts.setdefault(name, value)
            for name, (total, weight) in self._new_means.items():
                _add(self._means, name, total, weight)
        self._drop()

    @property
    def means(self) -> dict[str, Tensor]:
        """The means over all passes that count."""
        return {name: total / weight for name, (total, weight) in self._means.items()}

    def fill(self, row: Row, columns: Container[str]) -> None:
        """Puts what belongs to columns into a row."""
        for name, value in (self._firsts | self.means).items():
            if name in columns:
                row[name] = value


def _add(
    means: dict[str, tuple[Tensor, float | Tensor]], name: str, total: Tensor, weight: float | Tensor
) -> None:
    before = means.get(name)
    means[name] = (total, weight) if before is None else (before[0] + total, before[1] + weight)
