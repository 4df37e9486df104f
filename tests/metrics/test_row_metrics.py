"""Live metrics of a row, against loops over Python numbers; tests/training compares them with the report."""

import math

import ml_dtypes
import numpy as np
import pytest

from flannel_pl.arrays import Array
from flannel_pl.metrics.row_metrics import ROW_METRICS, measure_row

SETS = {"dead": np.array([0, 3]), "live": np.array([1, 2, 4])}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_every_metric_against_loops(dtype: type) -> None:
    draw = np.random.default_rng(1)
    before_VD: Array = draw.normal(size=(5, 3)).astype(dtype)
    after_VD = before_VD.copy()
    after_VD[[1, 3]] += np.ones(3, dtype)
    values = measure_row(ROW_METRICS, SETS, after_VD, before_VD)
    assert values.keys() == {f"{one}/{name}" for one in SETS for name in ROW_METRICS}
    for one, tokens in SETS.items():
        after, before = after_VD[tokens].astype(float).tolist(), before_VD[tokens].astype(float).tolist()
        count = len(tokens)
        centroid = [sum(column) / count for column in zip(*after, strict=True)]
        expected = {
            "origin_radius": sum(math.hypot(*token) for token in after) / count,
            "centroid_radius": sum(math.dist(token, centroid) for token in after) / count,
            "speed": sum(map(math.dist, after, before)) / count,
            "frozen_fraction": sum(token == earlier for token, earlier in zip(after, before, strict=True))
            / count,
        }
        got = {name: values[f"{one}/{name}"] for name in ROW_METRICS}
        assert got == pytest.approx(expected, rel=1e-12)
        assert got["frozen_fraction"] == {"dead": 1 / 2, "live": 1 - 1 / 3}[one]


def test_without_a_row_before_there_is_no_motion() -> None:
    values = measure_row(ROW_METRICS, SETS, np.zeros((5, 3), np.float32), None)
    assert {name.split("/")[1] for name in values} == {"origin_radius", "centroid_radius"}


def test_weights_that_are_not_finite_give_what_they_give_without_a_warning() -> None:
    W_VD = np.full((5, 3), np.inf, np.float32)
    values = measure_row(ROW_METRICS, SETS, W_VD, W_VD)
    assert values["dead/origin_radius"] == math.inf
    assert math.isnan(values["dead/speed"])
    assert values["dead/frozen_fraction"] == 1
