"""Floats in steps of one: how many of a type lie between two numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flannel_pl.arrays import Array

FLOATS: Mapping[str, type[np.signedinteger[Any]]] = {
    "bfloat16": np.int16,
    "float16": np.int16,
    "float32": np.int32,
}
"""Dtypes whose distances are measured -> the integer of their size. All others are only equal or not."""


def ulp_distance(A: Array, B: Array) -> Array:
    """Counts the steps between neighbouring floats that lead from A to B.

    Floats in ascending order are numbered in steps of one, both zeros 0, and the numbers subtracted. So the
    distance is right across exponents and signs: from -0.0 to 0.0 it is 0, from the largest float to
    infinity 1. Source: ours.

    Args:
        A: bfloat16, float16 or float32, any shape; not NaN.
        B: The same shape and type.

    Returns:
        Integers of that shape, 0 or more: int32 for floats of two bytes, int64 for those of four.

    Raises:
        KeyError: If the type is another.

    Example:
        >>> ulp_distance(np.float32([1.0, -0.0, -1e-45]), np.float32([0.99999994, 0.0, 1e-45])).tolist()
        [1, 0, 2]
    """
    wide = np.int32 if A.dtype.itemsize == 2 else np.int64
    distance: Array = np.abs(np.subtract(_ordered(A), _ordered(B), dtype=wide))
    return distance


def _ordered(floats: Array) -> Array:
    """Returns integers of the same size, in the order of the floats: of a negative one the bits, negated."""
    bits = floats.view(FLOATS[floats.dtype.name])
    sign = bits >> (8 * bits.itemsize - 1)  # -1 where negative, else 0
    magnitude = bits & np.iinfo(bits.dtype).max
    ordered: Array = (magnitude ^ sign) - sign
    return ordered
