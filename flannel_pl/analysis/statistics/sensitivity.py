"""Marks, and how much they are the rule's: per run with an interval, and for several thresholds.

A mark is a step that a rule finds in a curve (`epochs`). It is looked for in every run, and the number that
counts is the mean over runs with its interval. The mark of the mean curve stands beside it: it is another
number, which may lie outside (a mean of curves that fall at different steps falls more slowly than any of
them), and which has no spread. So no difference of a mean curve's mark is ever divided by the spread of runs'
marks; `MarkOverRuns` says whether it lies within their interval, and that is all there is to say.

Where a rule finds no mark because the recording ends first, the mark is later than that, and the mean over
the others would be too early: then there is no interval of the mean, but Kaplan and Meier's median and
restricted mean over all runs.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flannel_pl.analysis.statistics.epochs import FREEZE_FRACTION, FROZEN_FRACTION, Mark, rule_a, rule_b
from flannel_pl.analysis.statistics.group_epochs import GroupEpochs, mean_and_runs, skipped_of
from flannel_pl.analysis.statistics.groups import Group
from flannel_pl.analysis.statistics.intervals import Estimate, mean_interval
from flannel_pl.analysis.statistics.survival import Survival, kaplan_meier
from flannel_pl.arrays import Array

THRESHOLDS = {"A": (0.005, 0.01, 0.02, 0.05), "B": (0.5, 0.75, 0.9, 0.95, 0.99)}
"""Rule -> what its freeze is compared with: part of the peak velocity, fraction of frozen tokens."""

USUAL = {"A": FREEZE_FRACTION, "B": FROZEN_FRACTION}


@dataclass(frozen=True)
class MarkOverRuns:
    """One boundary in all runs of a group, and in their mean curve."""

    steps: tuple[int | None, ...]
    """In the order of the runs; None where it was not reached."""

    mean: Estimate | None
    """Over runs; None if one did not reach it."""

    until: Survival | None
    """Where some did not: times until the mark, right-censored at the last step. None if all did or none."""

    mean_curve: int | None
    """Another number, without a spread of its own."""

    @property
    def mean_curve_inside(self) -> bool | None:
        """Whether the mean curve's mark lies in the interval over runs; None where one is missing."""
        if self.mean is None or self.mean.interval is None or self.mean_curve is None:
            return None
        return self.mean.interval.spans(self.mean_curve)


@dataclass(frozen=True)
class ThresholdRow:
    """The freeze by one rule at one threshold."""

    rule: str
    threshold: float
    usual: bool
    """Whether it is the rule's own."""

    mark: MarkOverRuns


def mark_over_runs(
    steps: Sequence[int | None],
    last_step: int,
    mean_curve: int | None,
    *,
    later: Sequence[bool] | None = None,
) -> MarkOverRuns:
    """Sums up where runs have a mark.

    Args:
        steps: Of each run; None where it was not reached.
        last_step: Of the recording.
        mean_curve: The mark of the mean curve.
        later: Whether each, if not reached, can only be later than the recording; None: all are.

    Example:
        >>> found = mark_over_runs([287, 240, 378, 305, 380, 265, 267, 254, 317, 257], 1000, 366)
        >>> found.mean.value, found.mean_curve_inside
        (295.0, False)
    """
    reached = [step for step in steps if step is not None]
    mean, until = None, None
    known = [True] * len(steps) if later is None else later
    if len(reached) == len(steps) and reached:
        mean = mean_interval(np.array(reached, np.float64))
    elif reached and all(step is not None or after for step, after in zip(steps, known, strict=True)):
        times = [last_step if step is None else step for step in steps]
        until = kaplan_meier(times, [step is not None for step in steps], horizon=last_step)
    return MarkOverRuns(tuple(steps), mean, until, mean_curve)


def marks_of(found: GroupEpochs, mark: str) -> MarkOverRuns:
    """Sums up a boundary that a rule finds in a group.

    Args:
        found: From `epochs_of`.
        mark: inhale, sneeze, re_expansion or freeze.
    """
    marks = [getattr(epochs, mark) for epochs in found.runs]
    return _summed(marks, found.last_step, getattr(found.mean, mark))


def freeze_by_threshold(
    rule: str,
    radius_R: Array,
    steps_R: Array,
    frozen_fraction_R: Array | None = None,
    *,
    thresholds: Sequence[float] | None = None,
    skipped_R: Array | None = None,
) -> dict[float, Mark]:
    """Returns where one curve freezes by one rule, for several thresholds.

    Args:
        rule: A or B.
        radius_R: A radius per row.
        steps_R: Step of each row.
        frozen_fraction_R: Fraction of frozen tokens; for rule B.
        thresholds: None: those of THRESHOLDS.
        skipped_R: As of `rule_a`.

    Raises:
        ValueError: If the rule is neither, or B has no fraction of frozen tokens.

    Example:
        >>> steps = np.arange(601)
        >>> radius = 0.2 + 0.3 / (1 + np.exp((24.5 - steps) / 4)) + 0.1 * (1 - np.exp(-steps / 60))
        >>> {threshold: mark.step for threshold, mark in freeze_by_threshold("A", radius, steps).items()}
        {0.005: 171, 0.01: 129, 0.02: None, 0.05: None}
    """
    if rule not in THRESHOLDS or (rule == "B" and frozen_fraction_R is None):
        raise ValueError(f"got rule {rule!r}, expected A, or B with the fraction of frozen tokens")
    found: dict[float, Mark] = {}
    for threshold in THRESHOLDS[rule] if thresholds is None else thresholds:
        if frozen_fraction_R is None or rule == "A":
            epochs = rule_a(radius_R, steps_R, skipped_R=skipped_R, freeze_below=threshold)
        else:
            above = threshold
            epochs = rule_b(radius_R, frozen_fraction_R, steps_R, skipped_R=skipped_R, frozen_above=above)
        found[threshold] = epochs.freeze
    return found


def threshold_table(group: Group, token_set: str) -> list[ThresholdRow]:
    """Returns the freeze of a group's runs by both rules at several thresholds.

    Args:
        group: Runs that differ in their seed only.
        token_set: dead, live or all.

    Returns:
        Rule B only where the tokens' standstill was measured; nothing if the group has no such set.

    Example:
        >>> from flannel_pl.analysis.statistics.groups import groups_of
        >>> from flannel_pl.analysis.measuring.all_runs import measure_experiment
        >>> with flannel_pl.open_recording("runs/quickstart") as recording:
        ...     (group,) = groups_of(measure_experiment(recording))
        >>> [(row.rule, row.threshold) for row in threshold_table(group, "dead") if row.usual]
        [('A', 0.01), ('B', 0.9)]
    """
    radius = mean_and_runs(group, token_set, "origin_radius")
    frozen = mean_and_runs(group, token_set, "frozen_fraction")
    if not radius:
        return []
    steps = [group.runs[0].steps_R[: len(radius[0])], *(run.steps_R for run in group.runs)]
    curves = list(itertools.zip_longest(radius, steps, frozen, skipped_of(group, len(steps[0]))))
    rows = []
    for rule in ("A", "B") if frozen else ("A",):
        of_mean, *of_runs = (
            freeze_by_threshold(rule, radius_R, steps_R, frozen_R, skipped_R=skipped_R)
            for radius_R, steps_R, frozen_R, skipped_R in curves
        )
        for threshold, mark in of_mean.items():
            summed = _summed([found[threshold] for found in of_runs], int(steps[0][-1]), mark)
            rows.append(ThresholdRow(rule, threshold, threshold == USUAL[rule], summed))
    return rows


def _summed(marks: Sequence[Mark], last_step: int, of_mean: Mark) -> MarkOverRuns:
    steps, later = [mark.step for mark in marks], [mark.later for mark in marks]
    return mark_over_runs(steps, last_step, of_mean.step, later=later)
