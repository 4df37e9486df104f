"""Random choices that come out the same everywhere: raw PCG64 output and integer arithmetic, nothing else.

Numpy promises the raw stream of a bit generator but not that of the distributions of `Generator`, and
floating point may round differently elsewhere; neither may decide a byte of the built-in corpus.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


class Draws:
    """A stream of random choices that depends on `seed` alone."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def below(self, bound: int, size: int) -> Integers:
        """Returns `size` integers of 0 .. bound - 1, equally likely but for a bias below bound / 2^63."""
        raw = np.asarray(self._bits.random_raw(size), dtype=np.uint64)
        return (raw >> np.uint64(1)).astype(np.int64) % bound

    def pick(self, weights: Iterable[int] | Integers, size: int) -> Integers:
        """Returns `size` positions in `weights`, each as likely as its integer weight."""
        cumulative = np.cumsum(np.fromiter(weights, dtype=np.int64))
        drawn = self.below(int(cumulative[-1]), size)
        return np.searchsorted(cumulative, drawn, side="right").astype(np.int64)

    def chance(self, per_10_000: int, size: int) -> NDArray[np.bool_]:
        """Returns `size` booleans, each true `per_10_000` times in 10,000."""
        return self.below(10_000, size) < per_10_000


def zipf_weights(size: int, *, head: int, tail: int) -> Integers:
    """Returns integer weights of the ranks 0 .. size - 1 after Zipf's law, bent at both ends.

    Rank r weighs 1 / ((r + head) (r + tail)), scaled up: flat below `head`, after Mandelbrot; like 1 / r
    up to `tail`; like 1 / r^2 beyond, the second regime that rare words of large texts show.
    """
    rank = np.arange(size, dtype=np.int64)
    return 2**52 // ((rank + head) * (rank + tail))
