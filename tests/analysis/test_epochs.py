"""Boundaries of curves whose answer is known, and what must not be taken for one."""

from typing import Any

import numpy as np
import pytest

from flannel_pl.analysis.statistics.epochs import Epochs, rule_a, rule_b
from flannel_pl.analysis.statistics.series import spread

Array = np.ndarray[Any, Any]
STEPS = np.arange(601)


def curve(*, inhale: float = 2, sneeze: float = 24.5, pause: float = 0.0) -> Array:
    """A radius that dips, bursts out around a step, and approaches its end slowly; perhaps in two goes."""
    dip = 0.01 * np.exp(-(((STEPS - inhale) / 2) ** 2))
    burst = 0.2 / (1 + np.exp((sneeze - STEPS) / 4))
    tail = 0.1 * (1 - np.exp(-STEPS / 60))
    again = pause / (1 + np.exp((300 - STEPS) / 15))
    radius: Array = 0.2 - dip + burst + tail * (pause == 0) + again
    return radius


def frozen_from(step: int) -> Array:
    return np.where(step > STEPS, 0.2, 0.95)


def test_rule_a_finds_inhale_sneeze_and_freeze() -> None:
    radius = curve()
    epochs = rule_a(radius, STEPS)
    assert epochs.inhale.step == int(np.argmin(radius[:11]))
    assert epochs.inhale.value == pytest.approx((radius[0] - radius[:11].min()) / radius[0])
    velocity = np.array([np.diff(radius)[max(0, k - 2) : k + 3].mean() for k in range(600)])
    assert epochs.sneeze.step == int(np.argmax(velocity)) == 24
    assert epochs.sneeze.value == pytest.approx(velocity.max())
    expected = next(k for k in range(101, 600) if velocity[k] < 0.01 * velocity.max())
    assert epochs.freeze.step == expected > 101
    assert epochs.warning is None


def test_rule_b_finds_the_largest_change_and_the_winter() -> None:
    radius = curve()
    epochs = rule_b(radius, frozen_from(450), STEPS)
    assert epochs.sneeze.step == int(np.argmax(np.diff(radius)))
    assert (epochs.freeze.step, epochs.freeze.value) == (450, 0.95)
    assert "not reached: " in str(epochs.re_expansion)


@pytest.mark.parametrize(("from_step", "end"), [(450, "the freeze"), (10_000, "the end of the recording")])
def test_where_no_re_expansion_ends_is_said(from_step: int, end: str) -> None:
    slowing = rule_b(curve(), frozen_from(from_step), STEPS)
    assert (slowing.freeze.step is None) == (from_step > STEPS[-1])
    short = rule_b(curve()[:40], frozen_from(min(from_step, 32))[:40] * (from_step < 1000), STEPS[:40])
    for reason in (slowing.re_expansion.reason, short.re_expansion.reason):
        assert reason is not None
        assert end in reason or "does not grow again" in reason
    assert end in str(short.re_expansion)


def test_a_second_burst_is_a_re_expansion() -> None:
    epochs = rule_b(curve(pause=0.1), frozen_from(500), STEPS)
    assert epochs.re_expansion.step is not None
    assert 60 < epochs.re_expansion.step < 260
    names = [name for name, _, _ in epochs.intervals(600)]
    assert names == ["inhale", "sneeze", "deceleration", "re-expansion", "Fimbulwinter"]
    bounds = [bound for _, first, last in epochs.intervals(600) for bound in (first, last)]
    assert bounds == sorted(bounds)


def test_a_minimum_at_the_windows_edge_is_no_inhale() -> None:
    # As upstream's centroid radius, which is still falling at step 10.
    falling = curve(inhale=-50, sneeze=80) - 0.1 * np.minimum(STEPS, 30) / 30
    assert str(rule_a(falling, STEPS).inhale) == (
        "not reached: the radius is still falling at step 10, the end of the window"
    )
    assert "the end of the window" in str(rule_b(falling, frozen_from(300), STEPS).inhale)
    assert "never below that of the start" in str(rule_a(np.sqrt(STEPS + 1.0), STEPS).inhale)


def test_a_freeze_where_the_search_begins_is_none() -> None:
    early = 0.2 + 0.3 / (1 + np.exp((24.5 - STEPS) / 4))
    assert "at step 100, where the search begins, the velocity is below 1%" in str(
        rule_a(early, STEPS).freeze
    )


def test_what_never_freezes_does_not() -> None:
    growing = curve() + 1e-3 * STEPS
    assert "after step 100 the velocity is never below 1% of its peak" in str(rule_a(growing, STEPS).freeze)
    assert "after the sneeze never more than 90% of the tokens stand still" in str(
        rule_b(growing, frozen_from(10**6), STEPS).freeze
    )
    still = rule_a(np.exp(STEPS / 100), STEPS)
    assert "still growing at step 600, where the recording ends" in str(still.sneeze)
    assert "the sneeze was not found" in str(still.freeze)


@pytest.mark.parametrize(
    ("radius", "reason"),
    [
        (np.ones(601), "never changes"),
        (np.full(601, np.nan), "not finite"),
        (np.ones(1), "1 row cannot show it"),
        (np.linspace(1, 0.5, 601), "never grows"),
    ],
)
def test_curves_without_epochs(radius: Array, reason: str) -> None:
    steps = STEPS[: len(radius)]
    assert reason in str(rule_a(radius, steps).sneeze)
    assert reason in str(rule_b(radius, np.full(len(radius), np.nan), steps).sneeze)


def test_rows_far_apart_have_no_inhale_but_steps_stay_steps() -> None:
    epochs = rule_b(curve()[::10], frozen_from(450)[::10], STEPS[::10])
    assert "2 rows up to step 19 cannot show it" in str(epochs.inhale)
    assert epochs.sneeze.step == 20
    assert epochs.freeze.step == 450


def test_a_freeze_at_the_schedules_end_is_suspicious() -> None:
    rate = np.concatenate([[np.nan], np.linspace(1e-3, 0, 600)])
    assert rule_b(curve(), frozen_from(450), STEPS, learning_rate_R=rate).warning is None
    warning = rule_b(curve(), frozen_from(570), STEPS, learning_rate_R=rate).warning
    assert warning is not None
    assert "at the freeze, step 570, the learning rate is 5.0% of its largest" in warning


def test_over_runs() -> None:
    runs: list[Epochs] = [rule_a(curve(sneeze=t), STEPS) for t in (20.5, 24.5, 31.5)]
    got = spread([epochs.sneeze.step for epochs in runs])
    assert (got.mean, got.least, got.most) == (25, 20, 31)
    assert got.std == pytest.approx(np.std([20, 24, 31], ddof=1))
    assert spread([None, None]).num_reached == 0
    assert spread([5.0]).std is None


def test_speeds_are_per_step_however_far_apart_the_rows_are() -> None:
    whole = rule_a(curve(), STEPS).sneeze
    for every in (2, 5, 10):
        thinned = rule_a(curve()[::every], STEPS[::every]).sneeze
        assert thinned.value == pytest.approx(whole.value, rel=0.15)
        assert thinned.step is not None
        assert whole.step is not None
        assert abs(thinned.step - whole.step) <= every


def test_nothing_freezes_before_the_sneeze() -> None:
    first, second = (1 / (1 + np.exp((t - STEPS) / 4)) for t in (60, 250))
    radius = 0.2 + 0.1 * first + 0.3 * second  # between the bursts it stands still
    a, b = rule_a(radius, STEPS), rule_b(radius, np.where((STEPS > 100) & (STEPS < 200), 0.95, 0.1), STEPS)
    assert (a.sneeze.step, b.sneeze.step) == (250, 249)
    assert a.freeze.step is not None
    assert a.freeze.step > 249
    assert b.freeze.step is None
    for epochs in (a, b):
        found = epochs.intervals(600)
        assert all(first <= last for _, first, last in found)
        assert [first for _, first, _ in found] == sorted(first for _, first, _ in found)


def test_a_peak_in_the_first_step_is_no_sneeze() -> None:
    slowing = 1 - np.exp(-STEPS / 50)
    assert "largest in the first step" in str(rule_a(slowing, STEPS).sneeze)
    assert "largest in the first step" in str(rule_b(slowing, frozen_from(300), STEPS).sneeze)


@pytest.mark.parametrize("last", [60, 101])
def test_a_recording_that_ends_before_rule_a_looks_says_so(last: int) -> None:
    epochs = rule_a(curve()[: last + 1], STEPS[: last + 1])
    assert epochs.sneeze.step == 24
    assert str(epochs.freeze) == (
        f"not reached: the recording ends at step {last}; rule A looks for it after step 100"
    )
    looked = rule_a((curve() + 1e-3 * STEPS)[:103], STEPS[:103]).freeze
    assert str(looked).endswith("never below 1% of its peak, up to step 102, where the recording ends")


def test_what_is_never_reached_is_said_up_to_the_end() -> None:
    never = rule_b(curve()[:61], frozen_from(10**6)[:61], STEPS[:61]).freeze
    assert str(never).endswith("of the tokens stand still, up to step 60, where the recording ends")


def test_steps_that_were_skipped_are_no_velocity_that_is_never_low() -> None:
    skipped = STEPS > 100
    skipped[0] = False
    freeze = rule_a(curve(), STEPS, skipped_R=skipped).freeze
    assert str(freeze) == "not reached: after step 100, where rule A looks for it, no step was taken"


@pytest.mark.parametrize(
    ("rows", "end"),
    [
        (slice(0, 6), "falling at step 5, where the recording ends"),
        (slice(0, 11), "falling at step 10, the end of the window"),
        (slice(0, 601, 4), "falling at step 8, the last row up to step 10"),
    ],
)
def test_where_an_inhale_is_still_falling_is_said(rows: slice, end: str) -> None:
    falling = 1 - 0.001 * STEPS
    assert end in str(rule_a(falling[rows], STEPS[rows]).inhale)


def test_a_short_recording_without_an_inhale_says_how_far_it_goes() -> None:
    rising = np.sqrt(STEPS + 1.0)
    assert str(rule_b(rising[:13], frozen_from(10**6)[:13], STEPS[:13]).inhale) == (
        "not reached: the radius is never below that of the start, up to step 12, where the recording ends"
    )
    assert str(rule_b(rising, frozen_from(10**6), STEPS).inhale).endswith("that of the start")


def test_a_freeze_in_the_last_row_is_none() -> None:
    epochs = rule_b(curve(), frozen_from(600), STEPS)
    assert str(epochs.freeze) == "not reached: it may begin at step 600, but there the recording ends"
    # Growth leads from a row to the next: the last one with any is the last but one.
    slow = curve() + 1e-3 * STEPS
    slow[-1] -= 0.1
    only_last = rule_a(np.delete(slow, np.s_[-3:-1]), np.delete(STEPS, np.s_[-3:-1])).freeze
    assert str(only_last) == "not reached: it may begin at step 597, but at step 600 the recording ends"
