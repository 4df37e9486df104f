"""When a cloud's epochs begin and end: inhale, sneeze, deceleration, re-expansion, Fimbulwinter.

Two rules, which are not equivalent (upstream 3.3); both look at the radius around the origin unless told
otherwise:

- Rule A (upstream 1.22d, 1.23a): the inhale ends at the smallest radius of steps 0 to 10; the velocity is the
  change of the radius per step, smoothed by a box of 5; the sneeze peaks at its maximum; the freeze is the
  first step after 100 and after the sneeze at which the velocity is below 1 % of that maximum.
- Rule B (upstream 1.24b, 1.27a): the inhale ends at the smallest radius of the first 20 steps; the sneeze
  peaks at the largest change of the radius; Fimbulwinter begins at the first step after that at which more
  than 90 % of the tokens are frozen (some may thaw again). The re-expansion, if there is one, begins where
  the deceleration between those two turns into acceleration.

A boundary that lies at the edge of the window it was sought in is none: then the reason is given instead of
a step.

Shape suffixes: R rows, N runs.
"""

from dataclasses import dataclass

import numpy as np

from flannel_pl.analysis.statistics.series import smoothed, velocity
from flannel_pl.analysis.words import counted
from flannel_pl.arrays import Array

INHALE_WINDOW_A, INHALE_WINDOW_B = 10, 19
"""Last step at which the two rules look for the inhale's end."""

SMOOTHING_STEPS = 5
FREEZE_AFTER_STEP, FREEZE_FRACTION = 100, 0.01
FROZEN_FRACTION = 0.9

LOW_RATE = 0.1
"""A freeze at less than this fraction of the largest learning rate may be the schedule's doing."""


@dataclass(frozen=True)
class Mark:
    """One boundary, found or not."""

    step: int | None
    """The step; None if it was not reached."""

    value: float | None = None
    """What belongs to it: the inhale's depth as a fraction of the first radius, a velocity per step (of the
    re-expansion the largest that follows, smoothed twice), a frozen fraction. None without a step."""

    reason: str | None = None
    """Why it was not reached."""

    later: bool = False
    """Whether it was not reached because the recording ends: it may come after that, but not before."""

    def __str__(self) -> str:
        """Returns e.g. `24` or `not reached: ...`."""
        return f"not reached: {self.reason}" if self.step is None else str(self.step)


@dataclass(frozen=True)
class Epochs:
    """The boundaries that one rule finds in one curve."""

    inhale: Mark
    """Where the radius is smallest; value: how much smaller than at the start, as a fraction of that."""

    sneeze: Mark
    """Where the radius grows fastest; value: by how much per step."""

    re_expansion: Mark
    """Where the deceleration after the sneeze turns into acceleration; rule B only."""

    freeze: Mark
    """Where Fimbulwinter begins; value: what the rule compares."""

    warning: str | None = None
    """Why the freeze may not be the model's own doing."""

    def intervals(self, last_step: int) -> list[tuple[str, int, int]]:
        """Returns name, first and last step of the epochs whose boundaries are known, in order.

        Args:
            last_step: The last recorded step.
        """
        inhale, sneeze, again, freeze = (
            mark.step for mark in (self.inhale, self.sneeze, self.re_expansion, self.freeze)
        )
        end = last_step if freeze is None else freeze
        found: list[tuple[str, int, int]] = []
        if inhale is not None:
            found.append(("inhale", 0, inhale))
        if sneeze is not None:
            found.append(("sneeze", inhale or 0, sneeze))
            found.append(("deceleration", sneeze, end if again is None else again))
        if again is not None:
            found.append(("re-expansion", again, end))
        if freeze is not None:
            found.append(("Fimbulwinter", freeze, last_step))
        return found


def rule_a(
    radius_R: Array,
    steps_R: Array,
    *,
    learning_rate_R: Array | None = None,
    skipped_R: Array | None = None,
    freeze_below: float = FREEZE_FRACTION,
) -> Epochs:
    """Finds the epochs by the velocity of the radius.

    Args:
        radius_R: A radius per row, of one run or the mean over runs.
        steps_R: Step of each row, ascending.
        learning_rate_R: The rate of each row, for the warning; NaN in row 0.
        skipped_R: Whether the optimizer skipped the step of each row, bool: there is no velocity there.
        freeze_below: Part of the peak velocity below which it is frozen.

    Example:
        >>> steps = np.arange(301)
        >>> radius = 0.2 - 0.01 * np.exp(-((steps - 2.0) ** 2)) + 0.3 / (1 + np.exp((24.5 - steps) / 4))
        >>> epochs = rule_a(radius, steps)
        >>> epochs.inhale.step, epochs.sneeze.step
        (2, 24)
        >>> epochs.freeze.reason
        'at step 100, where the search begins, the velocity is below 1% of its peak already'
    """
    if (refusal := _refusal(radius_R)) is not None:
        return Epochs(refusal, refusal, Mark(None, reason="rule A knows none"), refusal)
    velocity_R = _smoothed(_velocity(radius_R, steps_R, skipped_R), steps_R)
    sneeze = _sneeze(velocity_R, steps_R, of="the smoothed velocity")
    freeze = Mark(None, reason="the sneeze was not found", later=sneeze.later)
    if sneeze.step is not None and sneeze.value is not None:
        begin = max(FREEZE_AFTER_STEP, sneeze.step)
        freeze = _freeze_a(velocity_R, steps_R, begin=begin, peak=sneeze.value, part=freeze_below)
    inhale = _inhale(radius_R, steps_R, window=INHALE_WINDOW_A)
    warning = _schedule_warning(freeze, steps_R, learning_rate_R)
    return Epochs(inhale, sneeze, Mark(None, reason="rule A knows none"), freeze, warning)


def rule_b(
    radius_R: Array,
    frozen_fraction_R: Array,
    steps_R: Array,
    *,
    learning_rate_R: Array | None = None,
    skipped_R: Array | None = None,
    frozen_above: float = FROZEN_FRACTION,
) -> Epochs:
    """Finds the epochs by the largest change of the radius and the fraction of frozen tokens.

    Args:
        radius_R: A radius per row, of one run or the mean over runs.
        frozen_fraction_R: Fraction of tokens that did not change; NaN in row 0 and where a step was skipped.
        steps_R: Step of each row, ascending.
        learning_rate_R: The rate of each row, for the warning; NaN in row 0.
        skipped_R: Whether the optimizer skipped the step of each row, bool: there is no velocity there.
        frozen_above: Fraction of frozen tokens that has to be exceeded.

    Example:
        >>> steps = np.arange(301)
        >>> radius = 0.2 - 0.01 * np.exp(-((steps - 2.0) ** 2)) + 0.3 / (1 + np.exp((24.5 - steps) / 4))
        >>> epochs = rule_b(radius, np.where(steps < 200, 0.1, 0.95), steps)
        >>> epochs.sneeze.step, epochs.freeze.step
        (24, 200)
    """
    if (refusal := _refusal(radius_R)) is not None:
        return Epochs(refusal, refusal, refusal, refusal)
    change_R = _velocity(radius_R, steps_R, skipped_R)
    sneeze = _sneeze(change_R, steps_R, of="the change of the radius")
    freeze = Mark(None, reason="the sneeze was not found", later=sneeze.later)
    if sneeze.step is not None:
        rows = np.flatnonzero((frozen_fraction_R > frozen_above) & (steps_R > sneeze.step))
        never = f"after the sneeze never more than {100 * frozen_above:g}% of the tokens stand still"
        freeze = _first(rows, steps_R, frozen_fraction_R, never=f"{never}, {_to_the_end(steps_R)}")
    again = _re_expansion(change_R, steps_R, sneeze=sneeze, freeze=freeze)
    inhale = _inhale(radius_R, steps_R, window=INHALE_WINDOW_B)
    return Epochs(inhale, sneeze, again, freeze, _schedule_warning(freeze, steps_R, learning_rate_R))


def _refusal(radius_R: Array) -> Mark | None:
    if not np.isfinite(radius_R).all():
        return Mark(None, reason="the radius is not finite everywhere")
    if len(radius_R) < 3:
        return Mark(None, reason=f"{counted(len(radius_R), 'row')} cannot show it")
    if np.ptp(radius_R) == 0:
        return Mark(None, reason="the radius never changes")
    return None


def _velocity(radius_R: Array, steps_R: Array, skipped_R: Array | None) -> Array:
    """Returns the change per step; NaN where the step was skipped."""
    velocity_R = velocity(radius_R, steps_R)
    return velocity_R if skipped_R is None else np.where(skipped_R[1:], np.nan, velocity_R)


def _smoothed(velocity_R: Array, steps_R: Array) -> Array:
    """Returns a moving mean over SMOOTHING_STEPS steps, however many rows that are."""
    return smoothed(velocity_R, SMOOTHING_STEPS // int(np.diff(steps_R).max()) | 1)


def _inhale(radius_R: Array, steps_R: Array, *, window: int) -> Mark:
    rows = np.flatnonzero(steps_R <= window)
    if len(rows) < 3:
        return Mark(None, reason=f"{counted(len(rows), 'row')} up to step {window} cannot show it")
    lowest, last = int(np.argmin(radius_R[rows])), int(steps_R[rows[-1]])
    ends = last < window and len(rows) == len(steps_R)
    if lowest == 0:
        until = f", {_to_the_end(steps_R)}" if ends else ""
        return Mark(None, reason=f"the radius is never below that of the start{until}")
    if lowest == len(rows) - 1:
        edge = "the end of the window" if last == window else f"the last row up to step {window}"
        edge = "where the recording ends" if ends else edge
        return Mark(None, reason=f"the radius is still falling at step {last}, {edge}")
    return Mark(int(steps_R[lowest]), float((radius_R[0] - radius_R[lowest]) / radius_R[0]))


def _freeze_a(velocity_R: Array, steps_R: Array, *, begin: int, peak: float, part: float) -> Mark:
    """The first step after `begin` at which the velocity is below a part of its peak."""
    last = int(steps_R[-1])
    if not (steps_R[:-1] > begin).any():
        reason = f"the recording ends at step {last}; rule A looks for it after step {begin}"
        return Mark(None, reason=reason, later=True)
    if np.isnan(velocity_R[steps_R[:-1] > begin]).all():
        return Mark(None, reason=f"after step {begin}, where rule A looks for it, no step was taken")
    below = f"below {100 * part:g}% of its peak"
    return _first(
        np.flatnonzero((velocity_R < part * peak) & (steps_R[:-1] > begin)),
        *(steps_R, velocity_R),
        never=f"after step {begin} the velocity is never {below}, {_to_the_end(steps_R)}",
        earliest=int(np.searchsorted(steps_R, begin, side="right")),
        edge=f"at step {begin}, where the search begins, the velocity is {below} already",
    )


def _to_the_end(steps_R: Array) -> str:
    return f"up to step {steps_R[-1]}, where the recording ends"


def _sneeze(velocity_R: Array, steps_R: Array, *, of: str) -> Mark:
    """The step from which the change is largest: velocity k is that from row k to row k + 1."""
    if np.isnan(velocity_R).all():
        return Mark(None, reason="no step was taken")
    peak = int(np.nanargmax(velocity_R))
    if velocity_R[peak] <= 0:
        return Mark(None, reason="the radius never grows")
    if np.isnan(velocity_R[:peak]).all():
        return Mark(None, reason=f"{of} is largest in the first step")
    if np.isnan(velocity_R[peak + 1 :]).all():
        reason = f"{of} is still growing at step {steps_R[-1]}, where the recording ends"
        return Mark(None, reason=reason, later=True)
    return Mark(int(steps_R[peak]), float(velocity_R[peak]))


def _first(
    rows: Array, steps_R: Array, values_R: Array, *, never: str, earliest: int | None = None, edge: str = ""
) -> Mark:
    """Returns the first of some rows, unless it is where the search begins, or the last of all."""
    if not len(rows):
        return Mark(None, reason=never, later=True)
    row = int(rows[0])
    if row == earliest:
        return Mark(None, reason=edge)
    if row == len(values_R) - 1:
        ends = "there" if row == len(steps_R) - 1 else f"at step {steps_R[-1]}"
        reason = f"it may begin at step {steps_R[row]}, but {ends} the recording ends"
        return Mark(None, reason=reason, later=True)
    return Mark(int(steps_R[row]), float(values_R[row]))


def _re_expansion(change_R: Array, steps_R: Array, *, sneeze: Mark, freeze: Mark) -> Mark:
    """Finds where, between sneeze and freeze, the velocity, smoothed twice, is least before it grows again.

    Upstream takes any change of sign of the second difference, and finds noise at the window's end.
    """
    if sneeze.step is None:
        return Mark(None, reason="the sneeze was not found")
    end = "the end of the recording" if freeze.step is None else "the freeze"
    smoothed_R = _smoothed(_smoothed(change_R, steps_R), steps_R)
    inside = (steps_R[:-1] >= sneeze.step) & (steps_R[:-1] < (freeze.step or steps_R[-1]))
    rows = np.flatnonzero(inside)
    if len(rows) < 2 * SMOOTHING_STEPS:
        return Mark(None, reason=f"the sneeze and {end} leave no room for it")
    if np.isnan(smoothed_R[rows]).all():
        return Mark(None, reason=f"between the sneeze and {end} no step was taken")
    lowest = rows[int(np.nanargmin(smoothed_R[rows]))]
    later = smoothed_R[lowest : rows[-1] + 1]
    if lowest > rows[-1] - SMOOTHING_STEPS:
        return Mark(None, reason=f"the velocity falls until {end}")
    if np.nanmax(later) < 2 * max(smoothed_R[lowest], 0) + FREEZE_FRACTION * (sneeze.value or 0):
        return Mark(None, reason="the velocity does not grow again after the sneeze")
    return Mark(int(steps_R[lowest]), float(np.nanmax(later)))


def _schedule_warning(freeze: Mark, steps_R: Array, learning_rate_R: Array | None) -> str | None:
    if freeze.step is None or learning_rate_R is None or not np.isfinite(learning_rate_R).any():
        return None
    row = int(np.searchsorted(steps_R, freeze.step))
    share = float(learning_rate_R[row] / np.nanmax(learning_rate_R))
    if not share < LOW_RATE:
        return None
    return (
        f"at the freeze, step {freeze.step}, the learning rate is {share:.1%} of its largest: it may be the "
        "schedule that ends the motion"
    )
