"""Motion whose law is known: straight ahead, random walks, persistent and caught ones."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from flannel_pl.analysis.statistics.jackknife import blocks_of, jackknife
from flannel_pl.analysis.statistics.motion import autocorrelation, displacements, exponent_of

Array = np.ndarray[Any, Any]
LAGS = [1, 2, 4, 8, 16]


def walk(rows: int, tokens: int, dim: int, *, seed: int, persistence: float = 0.0) -> Array:
    """A random walk whose steps remember the one before: a first-order process of velocity."""
    random = np.random.default_rng(seed)
    steps = random.standard_normal((rows, tokens, dim))
    for row in range(1, rows):
        steps[row] = persistence * steps[row - 1] + np.sqrt(1 - persistence**2) * steps[row]
    walked: Array = np.cumsum(steps, axis=0)
    return walked


def test_straight_ahead_is_two_and_at_rest_is_none() -> None:
    straight = np.arange(60.0)[:, np.newaxis, np.newaxis] * np.array([[1.0, 2.0], [0.5, 0.0]])
    found = displacements(straight, np.arange(60), LAGS)
    assert found.msd_L == pytest.approx((5 + 0.25) / 2 * np.array(LAGS) ** 2)
    exponent = exponent_of(found)
    assert exponent.value == pytest.approx(2)
    assert exponent.local == pytest.approx((2, 2))
    still = exponent_of(displacements(np.ones((60, 3, 2)), np.arange(60), LAGS))
    assert (still.value, still.interval, still.reason) == (None, None, "nothing moved")


def test_a_random_walk_is_one_within_its_interval() -> None:
    found = exponent_of(displacements(walk(400, 40, 8, seed=0), np.arange(400), LAGS))
    assert found.value is not None
    assert found.interval is not None
    assert found.value == pytest.approx(1, abs=0.03)
    assert found.interval.spans(1)
    assert found.interval.high - found.interval.low < 0.1
    assert (found.lags, found.starts) == ((1, 16), (0, 383))


def test_the_closed_form_of_a_persistent_walk() -> None:
    """MSD(n) = D (n (1 + p) / (1 - p) - 2 p (1 - p^n) / (1 - p)^2) of unit velocities, C(n) = p^n."""
    p, rows = 0.8, 1500
    W_RSD = walk(rows, 60, 4, seed=1, persistence=p)
    found = displacements(W_RSD, np.arange(rows), LAGS)
    n = np.array(LAGS)
    expected = 4 * (n * (1 + p) / (1 - p) - 2 * p * (1 - p**n) / (1 - p) ** 2)
    assert found.msd_L == pytest.approx(expected, rel=0.03)
    exponent = exponent_of(found)
    assert exponent.value is not None
    assert 1.3 < exponent.value < 1.8
    assert exponent.local is not None
    assert exponent.local[1] - exponent.local[0] > 0.4  # no one exponent, and it shows
    velocity = autocorrelation(W_RSD, np.arange(rows), [0, *LAGS])
    assert velocity.values_L == pytest.approx([1, *(p**n)], abs=0.02)
    assert ((velocity.low_L <= [1, *(p**n)]) & ([1, *(p**n)] <= velocity.high_L)).sum() >= 5
    assert velocity.decay_lag == 8
    assert velocity.moving_fraction == pytest.approx(1)


def test_a_caught_token_has_an_exponent_of_zero() -> None:
    noise = np.random.default_rng(2).standard_normal((300, 30, 4))
    found = exponent_of(displacements(noise, np.arange(300), LAGS))
    assert found.value == pytest.approx(0, abs=0.02)


def test_the_common_drift_can_be_taken_off() -> None:
    drift = 5.0 * np.arange(300)[:, np.newaxis, np.newaxis]
    W_RSD = walk(300, 50, 4, seed=3) + drift
    steps = np.arange(300)
    plain = exponent_of(displacements(W_RSD, steps, LAGS)).value
    relative = exponent_of(displacements(W_RSD, steps, LAGS, relative=True)).value
    assert plain == pytest.approx(2, abs=0.05)
    assert relative == pytest.approx(1, abs=0.05)
    assert autocorrelation(W_RSD, steps, [5]).values_L[0] > 0.9
    assert abs(autocorrelation(W_RSD, steps, [5], relative=True).values_L[0]) < 0.05


def test_windows_spacing_and_stored_types() -> None:
    W_RSD = walk(100, 10, 4, seed=4).astype(ml_dtypes.bfloat16)
    steps = np.arange(0, 200, 2)
    found = displacements(W_RSD, steps, [2, 4, 8, 16, 32])
    wide = W_RSD.astype(np.float64)
    assert found.squared_TL[3, 1] == pytest.approx(np.square(wide[5] - wide[3]).sum(axis=1).mean())
    assert found.starts_T.tolist() == list(range(0, 168, 2))
    assert exponent_of(found, window=(4, 16)).lags == (4, 16)
    few = exponent_of(found, window=(8, 16))
    assert (few.value, few.reason) == (None, "2 lags from 8 to 16 are too few for a slope")
    frozen = np.concatenate([wide[:50], np.repeat(wide[49:50], 50, axis=0)])
    assert autocorrelation(frozen, steps, [2]).moving_fraction == pytest.approx(49 / 98)


def test_what_does_not_fit_is_refused() -> None:
    W_RSD, steps = np.zeros((10, 1, 1)), np.arange(0, 20, 2)
    for lags in ([3], [], [0]):
        with pytest.raises(ValueError, match="expected multiples of 2"):
            displacements(W_RSD, steps, lags)
    with pytest.raises(ValueError, match="expected multiples of 2"):
        autocorrelation(W_RSD, steps, [3])
    for measure in (displacements, autocorrelation):
        with pytest.raises(ValueError, match="got a lag of 20 in 18 steps, expected a shorter one"):
            measure(W_RSD, steps, [20])
    with pytest.raises(ValueError, match=r"got rows that are \[1, 2\] steps apart"):
        displacements(W_RSD[:3], np.array([0, 1, 3]), [1])


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=12)
    error, interval = jackknife(lambda left: float(values[left].mean()), np.arange(12))
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(12))
    assert interval is not None
    assert interval.low == pytest.approx(values.mean() - 2.2009852 * error)
    assert blocks_of(10, 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert blocks_of(3, 10).tolist() == [0, 1, 2]
    assert jackknife(lambda left: 1.0, np.zeros(3))[1] is None
    assert jackknife(lambda left: float("nan"), np.arange(3))[1] is None
