"""What the streamed measurements do not reach: edges of single metrics. The rest is in tests/analysis."""

import numpy as np
import pytest

from flannel_pl.metrics import cloud


def test_an_empty_set_gives_nan() -> None:
    nothing = np.empty((0, 3), np.float32)
    assert np.isnan(cloud.centroid(nothing)).all()
    assert np.isnan(cloud.origin_radius(cloud.token_norms(nothing)))
    assert np.isnan(cloud.bounding_radius(cloud.token_norms(nothing)))
    assert np.isnan(cloud.std_per_dim(nothing))
    assert np.isnan(cloud.eccentricity(nothing))
    assert np.isnan(cloud.sign_fractions(np.empty(0))).all()


def test_radial_fractions_leave_out_what_has_no_direction() -> None:
    W_SD = np.array([[3, 4], [3, 4], [0, 0], [3, 4], [np.nan, 0]], np.float32)
    dW_SD = np.array([[-3, -4], [4, -3], [1, 0], [0, 0], [1, 0]], np.float32)
    got = cloud.radial_fractions(W_SD, dW_SD, cloud.token_norms(W_SD), cloud.token_norms(dW_SD))
    assert got[:2].tolist() == [-1, 0]
    assert np.isnan(got[2:]).all()
    # Upstream's mean counts the token at rest as 0.
    assert cloud.mean_or_nan(got) == -0.5


def test_cloud_against_float64_loops() -> None:
    # Far from the origin and narrow, as dead tokens end: what float32 is worst at.
    W_SD = np.random.default_rng(3).normal(0.5, 0.014, (3000, 5)).astype(np.float32)
    exact = [[float(x) for x in token] for token in W_SD]
    middle = [sum(column) / len(exact) for column in zip(*exact, strict=True)]
    apart = [sum((x - c) ** 2 for x, c in zip(token, middle, strict=True)) ** 0.5 for token in exact]
    variances = [
        sum((x - c) ** 2 for x in column) / len(exact)
        for column, c in zip(zip(*exact, strict=True), middle, strict=True)
    ]
    centroid_D = cloud.centroid(W_SD)
    centred_SD = cloud.centred(W_SD, centroid_D)
    distances_S = cloud.token_norms(centred_SD)
    np.testing.assert_allclose(centroid_D, middle, rtol=1e-12)
    np.testing.assert_allclose(distances_S, apart, rtol=1e-5)
    assert cloud.centroid_radius(distances_S) == pytest.approx(sum(apart) / len(apart), rel=1e-6)
    assert cloud.bounding_radius(distances_S) == pytest.approx(max(apart), rel=1e-6)
    assert cloud.std_per_dim(centred_SD) == pytest.approx(sum(v**0.5 for v in variances) / 5, rel=1e-5)
    lengths = [sum(x * x for x in token) ** 0.5 for token in exact]
    assert cloud.origin_radius(cloud.token_norms(W_SD)) == pytest.approx(np.mean(lengths), rel=1e-6)


@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-133, 1e-30, 2.0**-51, 2.0**-49, 1.0, 1e25])
def test_norms_of_every_magnitude(scale: float) -> None:
    W_SD = (np.array([[3, 4, 0], [0, -5, 0], [0, 0, 0], [1, 0, 0]]) * scale).astype(np.float32)
    expected = np.array([5, 5, 0, 1]) * scale
    np.testing.assert_allclose(cloud.token_norms(W_SD).astype(float), expected, rtol=1e-6)


def test_weights_that_are_not_finite_propagate_without_a_warning() -> None:
    W_SD = np.array([[np.inf, 1], [-np.inf, 2], [np.nan, 3], [4, 5]], np.float32)
    norms_S = cloud.token_norms(W_SD)
    assert norms_S[:2].tolist() == [np.inf, np.inf]
    assert np.isnan(norms_S[2])
    assert norms_S[3] == pytest.approx(41**0.5)
    for rows in ([0, 3], [0, 1, 3], [2, 3]):
        centroid_D = cloud.centroid(W_SD[rows])
        assert not np.isfinite(centroid_D[0])
        assert np.isfinite(centroid_D[1])
        distances_S = cloud.token_norms(cloud.centred(W_SD[rows], centroid_D))
        assert not np.isfinite(cloud.centroid_radius(distances_S))
        assert not np.isfinite(cloud.separation(centroid_D, centroid_D))
        assert np.isnan(cloud.path_efficiency(np.stack([centroid_D, centroid_D])))


def test_sign_fractions_leave_no_token_out_but_nan() -> None:
    assert cloud.sign_fractions(np.array([0.1, -2.0, -1e-30, 0.0, -0.0])) == (0.2, 0.4, 0.4)
    assert cloud.sign_fractions(np.array([1.0, np.nan])) == (0.5, 0.0, 0.0)


def test_liftoff_is_the_first_time_the_origin_is_outside() -> None:
    steps = np.array([0, 10, 20, 30])
    norms, radii = np.array([0.0, 2.0, 1.0, 3.0]), np.array([1.0, 1.5, 1.5, 1.5])
    assert cloud.liftoff_step(norms, radii, steps) == 10
    assert cloud.liftoff_step(np.zeros(4), radii, steps) is None
    assert cloud.liftoff_step(radii, radii, steps) is None


def test_path_efficiency() -> None:
    circle = np.array([[np.cos(t), np.sin(t)] for t in np.linspace(0, np.pi, 1001)])
    assert cloud.path_efficiency(circle) == pytest.approx(2 / np.pi, rel=1e-5)
    assert np.isnan(cloud.path_efficiency(np.ones((5, 3))))


def test_eccentricity_is_the_ratio_of_the_extreme_variances() -> None:
    W_SD = np.random.default_rng(0).normal(0, [1, 2, 5], (20_000, 3)).astype(np.float32)
    centred = W_SD.astype(float) - W_SD.astype(float).mean(0)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    assert cloud.eccentricity(W_SD) == pytest.approx(values[0] / values[-1], rel=1e-9)
    assert cloud.eccentricity(np.array([[1, 0], [2, 0], [3, 0]], np.float32)) == float("inf")
    assert np.isnan(cloud.eccentricity(np.full((4, 2), np.nan, np.float32)))
    assert np.isnan(cloud.eccentricity(W_SD[:1]))
    assert cloud.eccentricity(W_SD[:, :1]) == 1
    for seed in range(20):  # the rounding error of the smallest variance has either sign
        tilted = np.random.default_rng(seed).normal(size=(100, 3))
        tilted[:, 2] = tilted[:, 0] + 0.3 * tilted[:, 1]  # flat, but along no axis
        assert cloud.eccentricity(tilted) == float("inf")


def test_separation() -> None:
    assert cloud.separation(np.array([1.0, 1.0]), np.array([4.0, 5.0])) == 5
