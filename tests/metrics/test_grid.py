"""Standstill on one grid: float32 arms read 0 to the bit, and what bfloat16 arms would read on the grid."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from flannel_pl.metrics.grid import changed_on_grid, frozen_on_grid, on_grid, standstill
from flannel_pl.metrics.lattice import changed
from flannel_pl.metrics.row_metrics import Moment, find_metrics

Array = np.ndarray[Any, Any]


def f32(values: Any) -> Array:
    return np.array(values, np.float32)


def f64(values: Any) -> Array:
    return np.array(values, np.float64)


def test_float32_is_never_frozen_to_the_bit_and_is_on_the_grid() -> None:
    random = np.random.default_rng(0)
    before = random.normal(0, 0.02, (2000, 64)).astype(np.float32)
    after = before + random.choice([-1, 1], before.shape).astype(np.float32) * np.float32(1e-8)
    found = standstill(before, after)
    assert found.to_the_bit == 0
    rounded = before.astype(ml_dtypes.bfloat16), after.astype(ml_dtypes.bfloat16)
    assert found.on_grid == pytest.approx(1 - (rounded[0] != rounded[1]).any(axis=1).mean())
    assert 0.5 < found.on_grid < 1


def test_bfloat16_is_counted_alike_by_both() -> None:
    random = np.random.default_rng(1)
    before = random.normal(0, 0.02, (500, 8)).astype(ml_dtypes.bfloat16)
    after = before.copy()
    after[:123, 3] = after[:123, 3] * np.float32(1.02)
    assert (changed_on_grid(before, after) == changed(before, after)).all()
    found = standstill(before, after)
    assert found.on_grid == found.to_the_bit == pytest.approx(377 / 500)


def test_ties_go_to_even_and_signs_of_zero_do_not_count() -> None:
    spacing = 2.0**-7
    weights = f32([1 + spacing / 2, 1 + 1.5 * spacing, -0.0, -1e-45])
    assert on_grid(weights).astype(np.float64).tolist() == [1, 1 + 2 * spacing, 0, 0]
    assert not np.signbit(on_grid(weights).astype(np.float64)).any()
    assert not changed_on_grid(f32([[-1e-45]]), f32([[1e-45]])).any()
    assert standstill(f32([[0.0]]), f32([[-0.0]])).to_the_bit == 0


def test_other_grids_and_numbers_that_are_none() -> None:
    before, after = f64([[1.0]]), f64([[1.0 + 1e-9]])
    assert standstill(before, after, "float32").on_grid == 1
    assert standstill(before, after).to_the_bit == 0
    assert changed_on_grid(f32([[1.0]]), f32([[1.002]]), "float16").all()
    assert np.isinf(on_grid(f32([1e6]), "float16")).all()
    empty = standstill(np.empty((0, 3), np.float32), np.empty((0, 3), np.float32))
    assert np.isnan([empty.on_grid, empty.to_the_bit]).all()
    with pytest.raises(KeyError):
        on_grid(before, "float8")


def test_a_report_finds_it_by_its_import_path() -> None:
    found = find_metrics(["flannel_pl.metrics.grid.frozen_on_grid"], option="--metrics")
    assert found == {"frozen_on_grid": frozen_on_grid}
    before, after = f32([[1.0], [1.0], [0.5]]), f32([[1.001], [1.01], [0.5]])
    assert frozen_on_grid.measure(Moment(after, before)) == pytest.approx(2 / 3)
    assert frozen_on_grid.of_motion
    assert not frozen_on_grid.of_bits
