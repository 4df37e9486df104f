"""What the streamed measurements do not reach: edges of single metrics. The rest is in test_measure.py."""

import numpy as np
import pytest

from flannel_pl.analysis import metrics


def test_an_empty_set_gives_nan() -> None:
    nothing = np.empty((0, 3), np.float32)
    assert np.isnan(metrics.centroid(nothing)).all()
    assert np.isnan(metrics.origin_radius(metrics.token_norms(nothing)))
    assert np.isnan(metrics.bounding_radius(metrics.token_norms(nothing)))
    assert np.isnan(metrics.std_per_dim(nothing))
    assert np.isnan(metrics.eccentricity(nothing))
    assert np.isnan(metrics.sign_fractions(np.empty(0))).all()


def test_radial_fractions_leave_out_what_has_no_direction() -> None:
    W_SD = np.array([[3, 4], [3, 4], [0, 0], [3, 4], [np.nan, 0]], np.float32)
    dW_SD = np.array([[-3, -4], [4, -3], [1, 0], [0, 0], [1, 0]], np.float32)
    got = metrics.radial_fractions(W_SD, dW_SD, metrics.token_norms(W_SD), metrics.token_norms(dW_SD))
    assert got[:2].tolist() == [-1, 0]
    assert np.isnan(got[2:]).all()
    # Upstream's mean counts the token at rest as 0.
    assert metrics.mean_or_nan(got) == -0.5


def test_liftoff_is_the_first_time_the_origin_is_outside() -> None:
    steps = np.array([0, 10, 20, 30])
    norms, radii = np.array([0.0, 2.0, 1.0, 3.0]), np.array([1.0, 1.5, 1.5, 1.5])
    assert metrics.liftoff_step(norms, radii, steps) == 10
    assert metrics.liftoff_step(np.zeros(4), radii, steps) is None


def test_path_efficiency() -> None:
    circle = np.array([[np.cos(t), np.sin(t)] for t in np.linspace(0, np.pi, 1001)])
    assert metrics.path_efficiency(circle) == pytest.approx(2 / np.pi, rel=1e-5)
    assert np.isnan(metrics.path_efficiency(np.ones((5, 3))))


def test_eccentricity_is_the_ratio_of_the_extreme_variances() -> None:
    W_SD = np.random.default_rng(0).normal(0, [1, 2, 5], (20_000, 3)).astype(np.float32)
    centred = W_SD.astype(float) - W_SD.astype(float).mean(0)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    assert metrics.eccentricity(W_SD) == pytest.approx(values[0] / values[-1], rel=1e-9)
    assert metrics.eccentricity(np.array([[1, 0], [2, 0], [3, 0]], np.float32)) == float("inf")
    assert np.isnan(metrics.eccentricity(np.full((4, 2), np.nan, np.float32)))
    assert np.isnan(metrics.eccentricity(W_SD[:1]))


def test_separation() -> None:
    assert metrics.separation(np.array([1.0, 1.0]), np.array([4.0, 5.0])) == 5
