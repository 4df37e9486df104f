"""The spacing of floats, against numpy's and ml_dtypes' own neighbours, and steps measured in it."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from flannel_pl.metrics import lattice
from flannel_pl.metrics.cloud import token_norms

Array = np.ndarray[Any, Any]


def bf16(*values: float) -> Array:
    return np.array(values, ml_dtypes.bfloat16)


def f32(*values: float) -> Array:
    return np.array(values, np.float32)


def test_facts() -> None:
    spacing = lattice.ulp(f32(1.0, 0.5, 0.02002, 0.0, -0.0, -1.0), "bfloat16")
    assert spacing.astype(float).tolist() == [2**-7, 2**-8, 2**-13, 2**-133, 2**-133, 2**-7]
    spacing = lattice.ulp(f32(1.0, 0.0), "float32")
    assert spacing.astype(float).tolist() == [2**-23, 2**-149]


def test_every_finite_bfloat16_has_its_neighbour_one_ulp_away() -> None:
    bits = np.arange(0x7F7F, dtype=np.uint16)  # all from 0 to the largest but one
    values, neighbours = bits.view(ml_dtypes.bfloat16), (bits + 1).astype(np.uint16).view(ml_dtypes.bfloat16)
    spacing = lattice.ulp(lattice.widen(values), "bfloat16").astype(np.float64)
    assert np.array_equal(neighbours.astype(np.float64) - values.astype(np.float64), spacing)


def test_float32_spacing_is_numpys() -> None:
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 0x7F7FFFFF, 10_000, dtype=np.uint32)
    values = np.concatenate([bits, np.arange(100, dtype=np.uint32)]).view(np.float32)
    assert np.array_equal(lattice.ulp(values, "float32"), np.spacing(values))


def test_another_format_has_no_spacing_here() -> None:
    with pytest.raises(KeyError):
        lattice.ulp(f32(1.0), "float16")


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_widening_changes_no_value(dtype: Any) -> None:
    values = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(dtype)
    assert np.array_equal(lattice.widen(values), values.astype(np.float32))
    strided = values.reshape(-1, 2)[:, 1]
    assert np.array_equal(lattice.widen(strided), strided.astype(np.float32))


def test_changed_looks_at_bits() -> None:
    before = bf16(1.0, 0.0, np.nan, 2.0).reshape(4, 1)
    after = bf16(1.0, -0.0, np.nan, 2.015625).reshape(4, 1)
    assert lattice.changed(before, after).tolist() == [False, True, False, True]


def test_a_step_in_units_of_the_place_where_it_begins() -> None:
    before = lattice.widen(bf16(1.0, 0.5, 2.0))[None]
    after = lattice.widen(bf16(1.0 + 2**-7, 0.5 - 2**-9, 2.0 - 2**-7))[None]  # below 0.5 and 2 it is finer
    moved = lattice.displacement(after - before, lattice.ulp(before, "bfloat16"))
    assert moved.tolist() == [[1.0, -0.5, -0.5]]
    assert lattice.integrality(moved) == pytest.approx(1 / 3)


def test_norms_against_float64_loops() -> None:
    draw = np.random.default_rng(1)
    moved = (draw.normal(0, 3, (50, 8))).astype(np.float32)
    moved[3] = 0
    moved[4, 2] = 2.0**125  # its square is beyond float32
    l1_S, l2_S, linf_S = lattice.lattice_norms(moved)
    exact = [[abs(float(x)) for x in token] for token in moved]
    np.testing.assert_allclose(l1_S, [sum(token) for token in exact], rtol=1e-6)
    np.testing.assert_allclose(l2_S, [sum(x * x for x in token) ** 0.5 for token in exact], rtol=1e-6)
    np.testing.assert_array_equal(linf_S, [max(token) for token in exact])


def test_leaving_zero_in_every_dimension_is_far_and_no_warning() -> None:
    after = lattice.widen(bf16(*[1e-3] * 64))[None]
    moved = lattice.displacement(after, lattice.ulp(np.zeros_like(after), "bfloat16"))
    l1_S, l2_S, linf_S = lattice.lattice_norms(moved)
    hop = float(after[0, 0]) * 2.0**133
    assert (l1_S[0], l2_S[0], linf_S[0]) == (64 * hop, 8 * hop, hop)  # 64 hops are beyond float32
    # Where float32 was recorded, one is beyond it already.
    moved = lattice.displacement(after, lattice.ulp(np.zeros_like(after), "float32"))
    hop *= 2.0**16
    assert [norm_S[0] for norm_S in lattice.lattice_norms(moved)] == [64 * hop, 8 * hop, hop]


def test_subnormals_are_a_lattice_too() -> None:
    before, after = (
        lattice.widen(bf16(2.0**-133, -(2.0**-131)))[None],
        lattice.widen(bf16(0.0, 2.0**-132))[None],
    )
    moved = lattice.displacement(after - before, lattice.ulp(before, "bfloat16"))
    assert moved.tolist() == [[-1.0, 6.0]]
    lengths_S = token_norms(after - before)
    mean_ulp_S = lattice.ulp(before, "bfloat16").mean(axis=1)
    assert lattice.hop_classes(lengths_S, mean_ulp_S).tolist() == [lattice.LATTICE]


def test_widening_keeps_the_shape() -> None:
    for shape in ((), (0, 3), (2, 1, 3)):
        assert lattice.widen(np.ones(shape, ml_dtypes.bfloat16)).shape == shape


def test_what_does_not_move_is_frozen_and_no_perfect_lattice() -> None:
    still = np.zeros((5, 4), np.float32)
    assert np.isnan(lattice.integrality(still))
    lengths_S, mean_ulp_S = np.array([0.0, 1e-9, 8.0, 8.1, np.nan]), np.array([1.0] * 5)
    expected = [lattice.FROZEN, lattice.LATTICE, lattice.LATTICE, lattice.THERMAL, lattice.THERMAL]
    assert lattice.hop_classes(lengths_S, mean_ulp_S).tolist() == expected


def test_every_token_is_in_one_bin() -> None:
    edges = lattice.HISTOGRAM_EDGES
    values = np.concatenate([[0.0, 0.49, 0.5, 1.0, 2.0**24, 1e30, np.inf], [np.nan]])
    counted = lattice.histogram(values)
    assert counted.shape == (len(edges) - 1,)
    assert counted.sum() == 7
    assert counted[[0, 1, 2, -1]].tolist() == [2, 1, 1, 3]
