"""Weights live on a lattice: between two neighbours of a float there is nothing.

The spacing of that lattice, the unit in the last place (ULP), depends on a weight's exponent. A step measured
in ULP of the place where it begins says how many lattice points the optimizer jumped over; late in training
most tokens hop to a neighbour or stay.

Source: upstream 3.5 (lattice-scale.md, notebooks 1.24c-1.31g), without their mistakes: the ULP is read from
the stored format's exponent, and a token that does not move is frozen, not "on a perfect lattice".

Shape suffixes: S tokens, D dimensions.
"""

import numpy as np

from flannel_pl.arrays import Array

FROZEN, LATTICE, THERMAL = 0, 1, 2
"""Classes of `hop_classes`."""

LATTICE_REACH = 8
"""Longest step, in mean ULP of a token, that counts as a hop on the lattice: sqrt(D) of the 64 dimensions."""

HISTOGRAM_EDGES = np.concatenate([[0.0], np.exp2(np.arange(-1.0, 25.0)), [np.inf]])
"""Bins of `histogram`, in ULP: below 0.5 (where only 0 is possible), 0.5 to 1, ... and 2^24 or more."""

_MANTISSA_BITS = {"bfloat16": 7, "float32": 23}


def widen(weights: Array) -> Array:
    """Returns weights as float32, exactly; float64, which float32 does not hold, as they are.

    Args:
        weights: bfloat16 (as `ml_dtypes.bfloat16`), float16, float32 or float64, of any shape.

    Returns:
        float32 or float64, the same shape.

    Example:
        >>> import ml_dtypes
        >>> widen(np.array([1.0, -0.02002], ml_dtypes.bfloat16))
        array([ 1.        , -0.02001953], dtype=float32)
    """
    if weights.dtype in (np.float32, np.float64):
        return weights
    if weights.dtype.name != "bfloat16":
        return weights.astype(np.float32)
    bits = weights.view(np.uint16).astype(np.uint32)  # ten times as fast as a cast
    widened: Array = np.left_shift(bits, 16, out=bits).view(np.float32)
    return widened


def changed(before_SD: Array, after_SD: Array) -> Array:
    """Tells which tokens are not the same to the bit; 0.0 and -0.0 differ, a NaN equals itself.

    Args:
        before_SD: As stored, any float type.
        after_SD: A later row, same shape and type.

    Returns:
        (S,) bool.

    Example:
        >>> changed(np.array([[1.0], [0.0]]), np.array([[1.0], [-0.0]])).tolist()
        [False, True]
    """
    integer = np.dtype(f"u{before_SD.dtype.itemsize}")
    result: Array = (before_SD.view(integer) != after_SD.view(integer)).any(axis=1)
    return result


def ulp(weights: Array, dtype: str) -> Array:
    """Returns the spacing of the stored format at each weight.

    With the biased exponent E: 2^(E - 134) for bfloat16 and 2^(E - 150) for float32; where E = 0 (zero and
    subnormals) 2^-133 and 2^-149. NaN and infinity have none that means anything.

    Args:
        weights: float32 of any shape, widened from the stored type.
        dtype: The stored type, bfloat16 or float32.

    Returns:
        float32, the same shape, powers of two.

    Raises:
        KeyError: If `dtype` is another.

    Example:
        >>> ulp(np.float32([1.0, 0.5, 0.02002]), "bfloat16") == np.float32([2**-7, 2**-8, 2**-13])
        array([ True,  True,  True])
    """
    num_bits = _MANTISSA_BITS[dtype]
    exponent_bits = weights.view(np.uint32) & np.uint32(0x7F800000)
    smallest = np.uint32((num_bits + 1) << 23)
    spacing: Array = (np.maximum(exponent_bits, smallest) - np.uint32(num_bits << 23)).view(np.float32)
    tiny = exponent_bits < smallest
    if tiny.any():  # its spacing is a subnormal number, which has no exponent to subtract from
        exponent = np.maximum(exponent_bits[tiny] >> np.uint32(23), 1).astype(np.int32)
        spacing[tiny] = np.ldexp(np.float32(1), exponent - 127 - num_bits)
    return spacing


def displacement(dW_SD: Array, ulp_SD: Array) -> Array:
    """Returns steps in units of the lattice: dW' = dW / ULP(W before).

    Not an integer where a weight fell below a power of two, since the lattice is finer there. Huge where a
    weight left 0: 2^133 times its step for bfloat16 and 2^149 times for float32.

    Args:
        dW_SD: The step, float64.
        ulp_SD: ULP of the weights before it.

    Returns:
        float64, the same shape.

    Example:
        >>> before = np.float32([[1.0, 0.5]])
        >>> displacement(np.array([[2**-6, 0.0]]), ulp(before, "bfloat16"))
        array([[2., 0.]])
    """
    with np.errstate(invalid="ignore"):  # weights that are not finite
        scaled: Array = dW_SD.astype(np.float64, copy=False) / ulp_SD
    return scaled


def lattice_norms(displacement_SD: Array) -> tuple[Array, Array, Array]:
    """Returns L1 (sum of |.|), L2 and Linf (largest |.|) of each token's displacement, in ULP.

    Args:
        displacement_SD: From `displacement`.

    Returns:
        Three (S,) float64 arrays.

    Example:
        >>> [norm.tolist() for norm in lattice_norms(np.array([[3.0, -4.0]]))]
        [[7.0], [5.0], [4.0]]
    """
    size_SD = np.abs(displacement_SD.astype(np.float64, copy=False))
    return size_SD.sum(axis=1), np.sqrt(np.einsum("sd,sd->s", size_SD, size_SD)), size_SD.max(axis=1)


def hop_classes(lengths_S: Array, mean_ulp_S: Array) -> Array:
    """Sorts steps: FROZEN, |dw| = 0; LATTICE, 0 < |dw| <= 8 mean ULP; THERMAL, longer (upstream 1.27c-1.30b).

    Args:
        lengths_S: Length of each token's step.
        mean_ulp_S: Mean ULP of each token before it.

    Returns:
        (S,) uint8; a step that is NaN is THERMAL.

    Example:
        >>> hop_classes(np.array([0.0, 0.01, 1.0]), np.array([2**-7] * 3)).tolist()
        [0, 1, 2]
    """
    classes = np.full(lengths_S.shape, THERMAL, np.uint8)
    classes[lengths_S <= LATTICE_REACH * mean_ulp_S] = LATTICE
    classes[lengths_S == 0] = FROZEN
    return classes


def integrality(displacement_SD: Array) -> float:
    """Returns the fraction of components that moved and did so by whole ULP; NaN if none moved.

    A displacement of nothing but zeros is frozen; that all its components are whole numbers says nothing.

    Example:
        >>> integrality(np.float32([[2.0, 0.0, 0.5]])), integrality(np.zeros((1, 3), np.float32))
        (0.5, nan)
    """
    moved = displacement_SD[displacement_SD != 0]
    return float(np.mean(moved == np.rint(moved))) if moved.size else float("nan")


def histogram(l2_S: Array) -> Array:
    """Counts tokens by the L2 norm of their displacement.

    Args:
        l2_S: In ULP; NaN is counted nowhere.

    Returns:
        (bins,) int64, see HISTOGRAM_EDGES.

    Example:
        >>> histogram(np.array([0.0, 1.0, 1.5, np.inf])).nonzero()[0].tolist()
        [0, 2, 26]
    """
    bins_S = np.searchsorted(HISTOGRAM_EDGES[1:-1], l2_S[~np.isnan(l2_S)], side="right")
    return np.bincount(bins_S, minlength=len(HISTOGRAM_EDGES) - 1)
