"""The noncentral t distribution: what t is, where there is a true effect.

t = (z + noncentrality) / r, with z normal and r = sqrt(chi^2 / freedom), so that probabilities are means of
normal ones over r. scipy's own noncentral t is NaN for a t of some hundreds, which arms without any overlap
have, and here and there for smaller ones.

Source: Johnson, Kotz, Balakrishnan, Continuous Univariate Distributions 2 (1995), chapter 31.
"""

from functools import lru_cache

import numpy as np

from flannel_pl.arrays import Array

_NODES = 4000
"""Of the mean over r; twice as many change no quantile by 1e-4 of the distance between two of them."""


def noncentrality(t: float, freedom: float, below: float) -> float:
    """Returns the noncentrality under which a t is no larger than a given one with probability `below`.

    Example:
        >>> round(noncentrality(0.0, 9, 0.025), 5), round(noncentrality(3.0, 9, 0.975), 3)
        (1.95996, 0.557)
    """
    from scipy import optimize, special

    ratios = _ratios(freedom)

    def excess(trial: float) -> float:
        return float(special.ndtr(t * ratios - trial).mean()) - below

    ends = sorted((t * ratios[0], t * ratios[-1]))
    return float(optimize.brentq(excess, ends[0] - 10, ends[1] + 10, xtol=1e-10))


def beyond(t: float, freedom: float, shift: float) -> float:
    """Returns the probability that |t| is larger than a given one, where the noncentrality is `shift`.

    Example:
        >>> round(beyond(2.2622, 9, 0.0), 4), round(beyond(2.2622, 9, 3.0), 3)
        (0.05, 0.761)
    """
    from scipy import special

    ratios = _ratios(freedom)
    return float((special.ndtr(shift - t * ratios) + special.ndtr(-shift - t * ratios)).mean())


@lru_cache(maxsize=64)
def _ratios(freedom: float) -> Array:
    from scipy import stats

    parts = (np.arange(_NODES) + 0.5) / _NODES
    ratios: Array = np.sqrt(stats.chi2.ppf(parts, freedom) / freedom)
    return ratios
