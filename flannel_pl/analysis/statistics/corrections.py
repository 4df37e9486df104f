"""One table, many questions: what is left of a p value when all of them were asked.

Holm's step-down: with m values in ascending order, p of rank k (from 0) becomes the largest of (m - j) p_j
over j <= k, at most 1. The chance of any false alarm in the whole table is then at most the level, however
the questions hang together.

Source: Holm, Scand. J. Statist. 6 (1979) 65.
"""

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns p values corrected over a whole table.

    Args:
        p_values: In any order; None where nothing was tested, which is no part of the family.

    Raises:
        ValueError: If one is not from 0 to 1.

    Example:
        >>> holm([0.01, None, 0.04, 0.03])
        [0.03, None, 0.06, 0.06]
    """
    tested = [place for place, p in enumerate(p_values) if p is not None]
    values = np.array([p_values[place] for place in tested], np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"got {values.tolist()}, expected p values from 0 to 1")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected: list[float | None] = [None] * len(p_values)
    for rank, place in enumerate(order):
        corrected[tested[place]] = float(min(1.0, stepped[rank]))
    return corrected
