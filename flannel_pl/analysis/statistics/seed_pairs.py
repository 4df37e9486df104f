"""Which runs of two arms belong together: those of one seed.

Two runs of one seed share what the seed decides, mostly the first weights and the order of the data. Their
difference is without what that does, so that fewer seeds show more. Whether there are pairs is decided by the
seeds alone, never by the values: wherever at least half of each arm's seeds are shared, the shared ones count
and the others are left out; else all runs count and none is paired. Runs that are counted as not paired
although some share a seed make the test and the interval too careful, if runs of one seed are alike.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flannel_pl.arrays import Array

FEWEST_PAIRS = 2


@dataclass(frozen=True)
class Matched:
    """The runs of two arms that are compared.

    Shape suffixes: N runs.
    """

    paired: bool

    values_N: Array
    reference_N: Array
    """In the same order of seeds, if paired."""

    seeds: tuple[int, ...]
    """That the values are of, ascending; the reference has the same ones, if paired."""

    reference_seeds: tuple[int, ...]
    left_out: tuple[int, ...]
    """Seeds of either arm that have a number and are not compared."""


def matched(
    values: Mapping[int, float], reference: Mapping[int, float], *, paired: bool | None = None
) -> Matched:
    """Finds the runs of two arms that are compared.

    Args:
        values: Seed -> number, of the one arm; a run whose number is not finite has none.
        reference: Of the other.
        paired: Whether they are paired by seed; None: by the rule above.

    Raises:
        ValueError: If they are to be paired and share fewer than two seeds.

    Example:
        >>> found = matched({1: 1.0, 2: 2.0, 3: 3.0}, {2: 5.0, 3: 6.0, 4: 7.0})
        >>> found.paired, found.seeds, found.left_out
        (True, (2, 3), (1, 4))
    """
    ours, theirs = (
        {seed: float(arm[seed]) for seed in sorted(arm) if math.isfinite(arm[seed])}
        for arm in (values, reference)
    )
    shared = tuple(seed for seed in ours if seed in theirs)
    if paired is None:
        paired = len(shared) >= FEWEST_PAIRS and 2 * len(shared) >= max(len(ours), len(theirs))
    elif paired and len(shared) < FEWEST_PAIRS:
        raise ValueError(f"got {len(shared)} seeds that both arms have, expected {FEWEST_PAIRS} to pair them")
    chosen = (shared, shared) if paired else (tuple(ours), tuple(theirs))
    left_out = tuple(sorted({*ours, *theirs} - set(shared))) if paired else ()
    arrays = [
        np.array([arm[seed] for seed in seeds]) for arm, seeds in zip((ours, theirs), chosen, strict=True)
    ]
    return Matched(paired, arrays[0], arrays[1], chosen[0], chosen[1], left_out)
