"""Replays AdamW from a recording: what the recorded moments say the next weights are, to the bit.

Follows `torch/optim/adam.py`, `_single_tensor_adam` of torch 2, which neither fuses nor reorders: a tensor
operation on bfloat16 computes in float32 and rounds once, and Python's float64 scalars become float32 first.
So bfloat16 weights that were trained on a CPU are reproduced to the bit. In float32 they are but for the
square root, of which torch's last bit is wrong on some CPUs. On a GPU it is not measured.
Source of the question: upstream 3.7 (notebooks 1.25a-1.26c, 1.31j-k), without their mistakes: eps is added
to the square root, the rate is the one that the step used, and decay is lr * weight_decay * W.

Shape suffixes: S tokens, D dimensions.
"""

from dataclasses import dataclass

import numpy as np

from flannel_pl.arrays import Array
from flannel_pl.metrics.cloud import dot_products, token_norms
from flannel_pl.metrics.lattice import widen
from flannel_pl.metrics.ulps import ulp_distance

TILE_ELEMENTS = 2**16
"""Worked on at once: the intermediate results stay in a core's cache."""


@dataclass(frozen=True)
class AdamSettings:
    """What AdamW was made with, float64 as in Python.

    Example:
        >>> AdamSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0).beta2
        0.999
    """

    beta1: float
    """Decay of the first moment."""

    beta2: float
    """Decay of the second moment."""

    epsilon: float
    """Added to the square root of the second moment."""

    weight_decay: float
    """Decoupled decay: a step takes away lr * weight_decay of a weight."""


def predicted_weights(
    W_before: Array,
    momentum: Array,
    variance: Array,
    *,
    step: int,
    learning_rate: float,
    settings: AdamSettings,
) -> Array:
    """Returns the weights after step t, as torch's AdamW rounds them on a CPU.

    With W the weights before, m and v the moments after the step:

        W' = W * (1 - lr * weight_decay), left out if there is no decay
        W' + (-lr / (1 - beta1^t) * m) / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    where in bfloat16 the decayed weight, sqrt(v), its quotient, its sum with eps and the result are rounded.

    Args:
        W_before: bfloat16 (as `ml_dtypes.bfloat16`) or float32, of any shape.
        momentum: exp_avg after the step, the same shape and type.
        variance: exp_avg_sq after the step, the same shape and type.
        step: t, counted from 1.
        learning_rate: The rate that step t used.
        settings: Of the optimizer.

    Returns:
        The same shape and type. NaN where torch has one, not necessarily of the same bits.

    Raises:
        ValueError: If the types are others or not the same.

    Example:
        >>> settings = AdamSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0)
        >>> W, m, v = np.float32([0.02]), np.float32([1e-5]), np.float32([1e-11])
        >>> predicted_weights(W, m, v, step=1, learning_rate=1e-3, settings=settings)
        array([0.0190001], dtype=float32)
    """
    dtypes = {one.dtype.name for one in (W_before, momentum, variance)}
    if dtypes not in ({"bfloat16"}, {"float32"}):
        raise ValueError(
            f"weights and moments are {', '.join(sorted(dtypes))}, expected one of bfloat16, float32"
        )
    result = np.empty(W_before.shape, W_before.dtype)
    flat = [np.ascontiguousarray(one).reshape(-1) for one in (W_before, momentum, variance)]
    scalars = _Scalars.of(step, learning_rate, settings, is_bfloat16=dtypes == {"bfloat16"})
    space = np.empty((2, min(TILE_ELEMENTS, result.size)), np.float32)
    with np.errstate(all="ignore"):  # infinity and NaN are answers, like those of torch
        for start in range(0, result.size, TILE_ELEMENTS):
            tile = slice(start, start + TILE_ELEMENTS)
            W, m, v = (one[tile] for one in flat)
            _step(W, m, v, scalars, result.reshape(-1)[tile], space[:, : len(W)])
    return result


def reproduced(predicted_SD: Array, recorded_SD: Array) -> tuple[Array, Array]:
    """Returns which fraction of each token's weights is predicted to the bit, and which within one ULP.

    Two weights are within one ULP if they are neighbours among the floats of their type, or the same, see
    `ulp_distance`. A NaN is predicted if the bits are equal, and has no neighbour. The mean over tokens is
    the fraction of all weights.

    Args:
        predicted_SD: From `predicted_weights`.
        recorded_SD: The same shape and type.

    Returns:
        Two (S,) float64 arrays, 0 to 1.

    Example:
        >>> exact_S, near_S = reproduced(np.float32([[1.0, 1.0, 2.0]]), np.float32([[1.0, 0.99999994, 1.0]]))
        >>> exact_S.round(3).tolist(), near_S.round(3).tolist()
        ([0.333], [0.667])
    """
    integer = np.dtype(f"u{predicted_SD.dtype.itemsize}")
    num_tokens, dim = predicted_SD.shape
    differing = np.flatnonzero(predicted_SD.view(integer) != recorded_SD.view(integer))
    predicted, recorded = predicted_SD.reshape(-1)[differing], recorded_SD.reshape(-1)[differing]
    is_nan = np.isnan(widen(predicted)) | np.isnan(widen(recorded))
    is_far = is_nan | (ulp_distance(predicted, recorded) > 1)
    num_wrong_S = np.bincount(differing // dim, minlength=num_tokens)
    num_far_S = np.bincount(differing[is_far] // dim, minlength=num_tokens)
    return 1 - num_wrong_S / dim, 1 - num_far_S / dim


def cos_grad_step(grad_SD: Array, dW_SD: Array) -> Array:
    """Returns the cosine between each token's gradient and its step: -1 where a step goes straight downhill.

    Source: upstream 1.24c8, whose medians count tokens that stand still as 0; here they have no direction.

    Args:
        grad_SD: Gradient at the weights before the step; clipping does not matter.
        dW_SD: The step.

    Returns:
        (S,) float64; NaN where gradient or step is zero or not finite.

    Example:
        >>> cos_grad_step(np.float32([[1, 0], [1, 1], [0, 0]]), np.float32([[-2, 0], [0, 3], [1, 1]]))
        array([-1.        ,  0.70710678,         nan])
    """
    with np.errstate(all="ignore"):
        cosines_S: Array = dot_products(grad_SD, dW_SD) / (token_norms(grad_SD) * token_norms(dW_SD))
    return cosines_S


@dataclass(frozen=True)
class _Scalars:
    """A step's numbers, computed in float64 and then rounded to float32, as torch does."""

    decay: np.float32
    step_size: np.float32
    correction: np.float32
    epsilon: np.float32
    has_decay: bool

    @classmethod
    def of(cls, step: int, learning_rate: float, settings: AdamSettings, *, is_bfloat16: bool) -> "_Scalars":
        epsilon = np.array([settings.epsilon], np.float32)
        if is_bfloat16:  # torch's add_ takes its number in the tensor's type; mul_, div and addcdiv_ do not
            epsilon = _round(epsilon, np.empty(1, np.uint32))
        return cls(
            decay=np.float32(1 - learning_rate * settings.weight_decay),
            step_size=np.float32(-(learning_rate / (1 - settings.beta1**step))),
            correction=np.float32((1 - settings.beta2**step) ** 0.5),
            epsilon=epsilon[0],
            has_decay=settings.weight_decay != 0,
        )


def _step(W: Array, m: Array, v: Array, scalars: _Scalars, out: Array, space: Array) -> None:
    """Takes the step for a tile of few elements; `space` is two tiles of float32."""
    is_bfloat16 = W.dtype != np.float32

    def rounded(values: Array) -> Array:
        return _round(values, spare) if is_bfloat16 else values

    denominator, spare_f32 = space
    spare = spare_f32.view(np.uint32)
    wide_W, wide_m = widen(W), widen(m)
    if scalars.has_decay:
        wide_W = rounded(wide_W * scalars.decay)
    np.sqrt(widen(v), out=denominator)
    rounded(denominator)
    np.divide(denominator, scalars.correction, out=denominator)
    rounded(denominator)
    np.add(denominator, scalars.epsilon, out=denominator)
    rounded(denominator)
    moved = wide_m * scalars.step_size
    np.divide(moved, denominator, out=moved)
    np.add(wide_W, moved, out=moved)
    if is_bfloat16:
        bits = np.right_shift(rounded(moved).view(np.uint32), 16, out=spare)
        out.view(np.uint16)[...] = bits
    else:
        out[...] = moved


def _round(values: Array, spare: Array) -> Array:
    """Rounds float32 to what bfloat16 holds, in place, to the nearest and of two such to the even one.

    A NaN stays one: those that come from bfloat16, or from an operation, have no bits in their lower half
    that could carry over.

    Args:
        values: float32.
        spare: uint32, the same shape; overwritten.

    Returns:
        `values`.
    """
    bits = values.view(np.uint32)
    np.right_shift(bits, 16, out=spare)
    np.bitwise_and(spare, 1, out=spare)
    np.add(spare, 0x7FFF, out=spare)
    np.add(bits, spare, out=bits)
    np.bitwise_and(bits, 0xFFFF0000, out=bits)
    return values
