"""Standing still, counted on one lattice for all: weights are rounded to one type before rows are compared.

Whether a token "froze" depends on how finely its weights are stored. Between two rows of float32 weights
some bit changes nearly always, in bfloat16 the same motion may be less than half a step of the lattice.
Counted to the bit, float32 weights are never frozen, by construction; arms of different types can be compared
only on the coarser lattice. Both counts are given: what the weights did, and what can be seen of it there.

Shape suffixes: S tokens, D dimensions.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from flannel_pl.arrays import Array
from flannel_pl.metrics.lattice import changed
from flannel_pl.metrics.row_metrics import Drawn, RowMetric

GRIDS = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
"""Lattices to count on, by name."""


@dataclass(frozen=True)
class Standstill:
    """Which part of the tokens did not move, by two counts."""

    on_grid: float
    """Of which no bit changed after both rows were rounded to the grid."""

    to_the_bit: float
    """Of which no bit changed as they are stored: at most `on_grid`."""


def on_grid(weights: Array, grid: str = "bfloat16") -> Array:
    """Returns weights rounded to the nearest of a grid, ties to even; -0.0 as 0.0.

    Args:
        weights: Of any float type and shape; of one that is not finer than the grid they stay as they are.
        grid: A key of GRIDS.

    Returns:
        The grid's type, the same shape; infinite where a weight is too large for it.

    Raises:
        KeyError: If `grid` is none of GRIDS.

    Example:
        >>> on_grid(np.float32([1.0, 1.001, 1.005])).astype(np.float32).tolist()
        [1.0, 1.0, 1.0078125]
    """
    # A tiny weight that changes its sign is 0 on the grid before and after: it did not move there.
    with np.errstate(over="ignore", invalid="ignore"):
        rounded: Array = weights.astype(GRIDS[grid]) + GRIDS[grid].type(0)
    return rounded


def changed_on_grid(before_SD: Array, after_SD: Array, grid: str = "bfloat16") -> Array:
    """Tells which tokens are not the same on a grid, for `Lifecycle` and fractions.

    Args:
        before_SD: As stored, any float type.
        after_SD: A later row, same shape and type.
        grid: A key of GRIDS.

    Returns:
        (S,) bool.

    Example:
        >>> before, after = np.float32([[1.0], [1.0]]), np.float32([[1.001], [1.01]])
        >>> changed_on_grid(before, after).tolist()
        [False, True]
    """
    return changed(on_grid(before_SD, grid), on_grid(after_SD, grid))


def standstill(before_SD: Array, after_SD: Array, grid: str = "bfloat16") -> Standstill:
    """Returns which part of the tokens stood still from one row to the next, by both counts.

    Args:
        before_SD: As stored, any float type.
        after_SD: A later row, same shape and type.
        grid: A key of GRIDS.

    Returns:
        NaN without tokens.

    Example:
        >>> standstill(np.float32([[1.0], [1.0]]), np.float32([[1.001], [1.0]]))
        Standstill(on_grid=1.0, to_the_bit=0.5)
    """
    if not len(before_SD):
        return Standstill(float("nan"), float("nan"))
    moved_S, changed_S = changed_on_grid(before_SD, after_SD, grid), changed(before_SD, after_SD)
    return Standstill(1 - float(moved_S.mean()), 1 - float(changed_S.mean()))


frozen_on_grid = RowMetric(
    lambda tokens: standstill(tokens.before_SD, tokens.stored_SD).on_grid,
    "fraction of the tokens that stood still on bfloat16's lattice, whatever their own type",
    of_motion=True,
    drawn=Drawn(
        "Frozen on one grid",
        "fraction that stood still",
        "Weights are rounded to bfloat16 before rows are compared, so that arms of different types can be.",
        "part of the tokens with bf16(w_i(t)) = bf16(w_i(t-1))",
    ),
)
"""For `report --metrics` and `recorder.live`, by its import path. Right of weights that are recorded in their
own type or in bfloat16, which is why it is measured of the latter, too."""
