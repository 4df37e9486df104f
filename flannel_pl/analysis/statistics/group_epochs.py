"""The epochs of runs that differ in their seed only: of each run, and of the mean over them.

Shape suffixes: R rows.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from flannel_pl.analysis.statistics.curves import curves_of
from flannel_pl.analysis.statistics.epochs import Epochs, rule_a, rule_b
from flannel_pl.analysis.statistics.groups import Group
from flannel_pl.analysis.statistics.series import Spread, mean_and_std, spread
from flannel_pl.arrays import Array

MARKS = {
    "inhale": "inhale ends",
    "sneeze": "sneeze peaks",
    "re_expansion": "re-expansion begins",
    "freeze": "Fimbulwinter begins",
}
"""Boundaries -> what a table calls them."""

MEAN_CURVE = "mean curve"
"""What the mean over runs is called where its boundaries are: they are no means of the runs' boundaries."""


@dataclass(frozen=True)
class GroupEpochs:
    """What one rule finds in a group of runs."""

    rule: str
    """A or B, see `epochs`."""

    token_set: str
    labels: tuple[str, ...]
    """Of the runs."""

    runs: tuple[Epochs, ...]

    mean: Epochs
    """In the curve that is the mean over runs; upstream's published steps are of this."""

    last_step: int

    def over_runs(self, mark: str) -> Spread:
        """Returns the spread over runs of the step of a boundary, a key of `MARKS`."""
        return spread([getattr(epochs, mark).step for epochs in self.runs])

    @property
    def warnings(self) -> list[str]:
        """What casts doubt on a boundary."""
        named = zip((MEAN_CURVE, *self.labels), (self.mean, *self.runs), strict=True)
        return [f"rule {self.rule}, {name}: {epochs.warning}" for name, epochs in named if epochs.warning]


def epochs_of(group: Group, token_set: str) -> list[GroupEpochs]:
    """Finds the epochs of a group by rules A and B.

    Args:
        group: Runs that differ in their seed only.
        token_set: dead, live or all.

    Returns:
        Rule A, rule B; B only if the tokens' standstill was measured. Nothing if the group has no such set.

    Example:
        >>> from flannel_pl.analysis.statistics.groups import groups_of
        >>> from flannel_pl.analysis.measuring.all_runs import measure_experiment
        >>> with flannel_pl.open_recording("runs/quickstart") as recording:
        ...     (group,) = groups_of(measure_experiment(recording))
        >>> rule_a, rule_b = epochs_of(group, "dead")
        >>> rule_a.rule, rule_b.labels
        ('A', ('seed 42', 'seed 43'))
    """
    radius, frozen = (mean_and_runs(group, token_set, of) for of in ("origin_radius", "frozen_fraction"))
    rates = mean_and_runs(group, None, "learning_rate")
    if not radius:
        return []
    steps_R = group.runs[0].steps_R[: len(radius[0])]
    steps = [steps_R, *(run.steps_R for run in group.runs)]
    skipped = skipped_of(group, len(steps_R))
    found = {
        "A": [
            rule_a(radius_R, steps_R, learning_rate_R=rate_R, skipped_R=skipped_R)
            for radius_R, steps_R, rate_R, skipped_R in itertools.zip_longest(radius, steps, rates, skipped)
        ]
    }
    if frozen:
        curves = itertools.zip_longest(radius, frozen, steps, rates, skipped)
        found["B"] = [
            rule_b(radius_R, frozen_R, steps_R, learning_rate_R=rate_R, skipped_R=skipped_R)
            for radius_R, frozen_R, steps_R, rate_R, skipped_R in curves
        ]
    labels = tuple(run.label for run in group.runs)
    return [
        GroupEpochs(rule, token_set, labels, tuple(runs), mean, int(steps_R[-1]))
        for rule, (mean, *runs) in found.items()
    ]


def mean_and_runs(group: Group, token_set: str | None, name: str) -> list[Array]:
    """Returns a series' mean over runs as far as all go, then the whole of each; nothing if not all have it.

    Runs that are not finite throughout (row 0 and skipped steps aside) are not in the mean: it would jump
    where they end.
    """
    curves = curves_of([group], token_set, name)
    if not curves:
        return []
    values_NR, skipped_NR = curves[0].values_NR, curves[0].skipped_NR
    there_NR = np.isfinite(values_NR) if skipped_NR is None else np.isfinite(values_NR) | skipped_NR
    whole = values_NR[there_NR[:, 1:].all(axis=1)]
    mean_R = mean_and_std(whole)[0] if len(whole) else curves[0].mean_R
    sources = [run.scalars if token_set is None else run.series[token_set] for run in group.runs]
    return [mean_R, *(np.where(np.isfinite(one[name]), one[name], np.nan) for one in sources)]


def skipped_of(group: Group, num_rows: int) -> list[Array | None]:
    """Returns which of the first rows' steps all runs skipped, then what each run did; None for none."""
    several = [run.skipped_R if run.skipped_R.any() else None for run in group.runs]
    each = [skipped_R[:num_rows] for skipped_R in several if skipped_R is not None]
    return [np.logical_and.reduce(each) if len(each) == len(several) else None, *several]
