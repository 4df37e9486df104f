"""Where a cloud of tokens is, how it moves: one pure function per metric, each for one recorded row.

Formulas follow upstream (`upstream 1.21d` names the notebook a formula comes from). All is computed in
float64, which holds every recorded weight exactly. An empty set gives NaN. Weights that are
not finite make radii, speeds and centroids not finite, without a warning; from radial fractions and from the
counts of outward and inward steps such tokens are left out.

Shape suffixes: R rows, S tokens, D dimensions. c is the centroid, w_i a token, d the change since the row
before.
"""

from fractions import Fraction

import numpy as np

from flannel_pl.arrays import Array


def token_norms(W_SD: Array) -> Array:
    """Returns |w_i| of each token, in the weights' unit; of a step, the lengths |dw_i|.

    Returns:
        (S,) float64.

    Example:
        >>> token_norms(np.float32([[3, 4], [0, 0]]))
        array([5., 0.])
    """
    return np.sqrt(dot_products(W_SD, W_SD))


def dot_products(A_SD: Array, B_SD: Array) -> Array:
    """Returns the dot product of each token with its partner.

    Returns:
        (S,) float64.

    Example:
        >>> dot_products(np.float32([[3, 4]]), np.float32([[1, -1]]))
        array([-1.])
    """
    A_SD, B_SD = A_SD.astype(np.float64, copy=False), B_SD.astype(np.float64, copy=False)
    products_S: Array = np.einsum("sd,sd->s", A_SD, B_SD)
    return products_S


def mean_or_nan(x_S: Array) -> float:
    """Returns the mean of what is not NaN; NaN if there is nothing.

    Example:
        >>> mean_or_nan(np.array([1.0, np.nan, 3.0])), mean_or_nan(np.array([]))
        (2.0, nan)
    """
    defined = x_S[~np.isnan(x_S)]
    return float(defined.mean(dtype=np.float64)) if defined.size else float("nan")


def mean(x_S: Array) -> float:
    """Returns the mean, NaN where one value is; NaN if there is nothing.

    Example:
        >>> mean(np.array([1.0, 3.0])), mean(np.array([]))
        (2.0, nan)
    """
    return float(x_S.mean(dtype=np.float64)) if x_S.size else float("nan")


def centroid(W_SD: Array) -> Array:
    """Returns c, the mean over tokens (upstream 1.21d). Its norm |c| is the centroid norm.

    Returns:
        (D,) float64.

    Example:
        >>> centroid(np.float32([[1, 2], [3, 4]]))
        array([2., 3.])
    """
    if not len(W_SD):
        return np.full(W_SD.shape[1], np.nan)
    with np.errstate(invalid="ignore"):  # infinity and -infinity
        centroid_D: Array = W_SD.mean(axis=0, dtype=np.float64)
    return centroid_D


def origin_radius(norms_S: Array) -> float:
    """Returns mean_i |w_i|, the cloud's radius around the origin (upstream 1.22c, 1.23a).

    Args:
        norms_S: From `token_norms`.

    Example:
        >>> origin_radius(np.array([3.0, 5.0]))
        4.0
    """
    return mean(norms_S)


def centred(W_SD: Array, centroid_D: Array) -> Array:
    """Returns w_i - c, whose norms are the tokens' distances from the centroid.

    Of steps dw_i and the centroid's step dc: dw_i - dc, whose norms are the thermal motion that is left when
    the motion of the bulk is taken away (upstream 1.31i).

    Returns:
        (S, D) float64.

    Example:
        >>> centred(np.float32([[3, 4]]), np.array([1.0, 1.0]))
        array([[2., 3.]])
    """
    with np.errstate(invalid="ignore"):  # weights that are not finite
        difference_SD: Array = W_SD - centroid_D
    return difference_SD


def centroid_radius(distances_S: Array) -> float:
    """Returns mean_i |w_i - c|, the cloud's radius around its centroid (upstream 1.21d, 1.22d).

    Example:
        >>> centroid_radius(np.array([1.0, 2.0]))
        1.5
    """
    return mean(distances_S)


def bounding_radius(distances_S: Array) -> float:
    """Returns max_i |w_i - c| (upstream 1.20a, Crucible 3).

    Example:
        >>> bounding_radius(np.array([1.0, 2.0]))
        2.0
    """
    return float(distances_S.max()) if distances_S.size else float("nan")


def std_per_dim(centred_SD: Array) -> float:
    """Returns the mean over dimensions of the standard deviation over tokens, divisor S (upstream 1.21d).

    Args:
        centred_SD: From `centred`.

    Example:
        >>> std_per_dim(np.float32([[-1, -2], [1, 2]]))
        1.5
    """
    if not len(centred_SD):
        return float("nan")
    variance_D = np.einsum("sd,sd->d", centred_SD, centred_SD) / len(centred_SD)
    return float(np.sqrt(variance_D).mean())


def liftoff_step(centroid_norms_R: Array, bounding_radii_R: Array, steps_R: Array) -> int | None:
    """Returns the first step at which the cloud no longer holds the origin: |c| > max_i |w_i - c|.

    Source: Crucible 3. None if that never happens.

    Example:
        >>> liftoff_step(np.array([0.0, 1.0, 3.0]), np.array([2.0, 2.0, 2.0]), np.array([0, 1, 2]))
        2
    """
    rows = np.flatnonzero(centroid_norms_R > bounding_radii_R)
    return int(steps_R[rows[0]]) if len(rows) else None


def path_efficiency(centroids_RD: Array) -> float:
    """Returns how straight the centroid went: |c(T) - c(0)| / sum_t |dc_t|, 0 to 1 (upstream Crucible 2).

    NaN if it never moved.

    Example:
        >>> path_efficiency(np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]]))
        0.7142857142857143
    """
    with np.errstate(invalid="ignore"):  # weights that are not finite
        path = np.linalg.norm(np.diff(centroids_RD, axis=0), axis=1).sum()
        drift = np.linalg.norm(centroids_RD[-1] - centroids_RD[0])
        return float(drift / path) if path > 0 else float("nan")


def radial_fractions(W_SD: Array, dW_SD: Array, norms_S: Array, lengths_S: Array) -> Array:
    """Returns f_i = (dw_i . w_i / |w_i|) / |dw_i|: 1 outward, -1 inward, 0 sideways (upstream 1.22a).

    Upstream counts a token that stands still as 0, which dilutes every mean; here it has no direction.

    Args:
        W_SD: Weights before the step.
        dW_SD: The step.
        norms_S: `token_norms(W_SD)`.
        lengths_S: `token_norms(dW_SD)`.

    Returns:
        (S,) float64; NaN for a token that did not move, began at the origin or is not finite.

    Example:
        >>> W, dW = np.float32([[1, 0], [1, 0]]), np.float32([[2, 0], [0, 0]])
        >>> radial_fractions(W, dW, token_norms(W), token_norms(dW))
        array([ 1., nan])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        fractions_S: Array = dot_products(W_SD, dW_SD) / (norms_S * lengths_S)
    fractions_S[(norms_S == 0) | (lengths_S == 0)] = np.nan
    return fractions_S


def radius_changes(
    before_SD: Array, after_SD: Array, squares_before_S: Array, squares_after_S: Array
) -> Array:
    """Returns |w_i after|^2 - |w_i before|^2, whose sign says if a token got farther from the origin.

    The sign is that of exact arithmetic: a token that only swaps two components has not moved outward.

    Args:
        before_SD: Weights before the step.
        after_SD: Weights after it.
        squares_before_S: `dot_products(before_SD, before_SD)`.
        squares_after_S: `dot_products(after_SD, after_SD)`.

    Returns:
        (S,) float64; NaN for a token that is not finite.

    Example:
        >>> before, after = np.float32([[0.1, 0.2, 0.3], [1, 0, 0]]), np.float32([[0.3, 0.1, 0.2], [2, 0, 0]])
        >>> squares = dot_products(before, before), dot_products(after, after)
        >>> radius_changes(before, after, *squares).tolist()
        [0.0, 3.0]
    """
    change_S: Array = squares_after_S - squares_before_S
    # A sum of D squares is off by at most D roundings of the whole.
    error_S = (squares_after_S + squares_before_S) * (before_SD.shape[1] * np.finfo(np.float64).eps)
    unsure = np.flatnonzero(np.isfinite(change_S) & (np.abs(change_S) <= error_S))
    change_S[unsure] = 0.0  # right where no component changed
    for token in unsure[(before_SD[unsure] != after_SD[unsure]).any(axis=1)]:
        square, square_before = (
            sum(Fraction(w) ** 2 for w in w_SD[token].tolist()) for w_SD in (after_SD, before_SD)
        )
        change_S[token] = float(square - square_before)
    return change_S


def sign_fractions(change_S: Array) -> tuple[float, float, float]:
    """Returns which fractions of the tokens got farther from the origin, nearer, neither (upstream 1.22b).

    Args:
        change_S: From `radius_changes`. A token that is NaN is a token, but did none of the three.

    Example:
        >>> sign_fractions(np.array([1.0, 2.0, -1.0, 0.0]))
        (0.5, 0.25, 0.25)
    """
    if not change_S.size:
        return (float("nan"),) * 3
    outward, inward, zero = (float(np.mean(x)) for x in (change_S > 0, change_S < 0, change_S == 0))
    return outward, inward, zero


def separation(first_D: Array, second_D: Array) -> float:
    """Returns |c_live - c_dead|, the distance between two centroids (upstream 1.24a).

    Example:
        >>> separation(np.array([0.0, 0.0]), np.array([3.0, 4.0]))
        5.0
    """
    with np.errstate(invalid="ignore"):  # weights that are not finite
        return float(np.linalg.norm(first_D - second_D))


def eccentricity(W_SD: Array) -> float:
    """Returns lambda_max / lambda_min of the cloud's covariance matrix, in float64 (upstream 1.23c).

    NaN for weights that are not finite, infinity for a cloud that is flat in some direction: where lambda_min
    is nothing but the rounding error of lambda_max.

    Example:
        >>> round(eccentricity(np.float32([[2, 0], [-2, 0], [0, 1], [0, -1]])), 6)
        4.0
    """
    if len(W_SD) < 2 or not np.isfinite(W_SD).all():
        return float("nan")
    covariance_DD = np.atleast_2d(np.cov(W_SD.T.astype(np.float64)))
    variances_D = np.linalg.eigvalsh(covariance_DD)
    smallest, largest = float(variances_D[0]), float(variances_D[-1])
    rounding = len(variances_D) * float(np.finfo(np.float64).eps) * largest
    return largest / smallest if smallest > rounding else float("inf")
