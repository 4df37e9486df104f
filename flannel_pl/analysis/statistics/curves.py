"""Curves of groups: one series of all runs, as far as all of them go.

Shape suffixes: R rows, N runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flannel_pl.analysis.statistics.groups import Group
from flannel_pl.analysis.statistics.series import mean_and_std, smoothed, velocity
from flannel_pl.arrays import Array


@dataclass(frozen=True)
class Curve:
    """One series of all runs of a group, as far as all of them go."""

    group: Group
    steps_R: Array
    values_NR: Array
    """float64; NaN where a value is undefined or infinite."""

    skipped_NR: Array | None = None
    """Whether the optimizer skipped the step of each row, bool; None if that was nowhere."""

    def until(self, last_step: int) -> "Curve":
        """Returns the rows up to a step."""
        rows = self.steps_R <= last_step
        skipped_NR = None if self.skipped_NR is None else self.skipped_NR[:, rows]
        return replace(
            self, steps_R=self.steps_R[rows], values_NR=self.values_NR[:, rows], skipped_NR=skipped_NR
        )

    def relative(self) -> "Curve":
        """Returns the change since row 0, in percent of it."""
        with np.errstate(divide="ignore", invalid="ignore"):
            change_NR = 100 * (self.values_NR / self.values_NR[:, :1] - 1)
        return replace(self, values_NR=_finite(change_NR))

    def velocity(self) -> "Curve":
        """Returns the change per step to the next row, see `velocity`; the last row has none.

        NaN where the next row's step was skipped.
        """
        velocity_NR, skipped_NR = velocity(self.values_NR, self.steps_R), self.skipped_NR
        if skipped_NR is not None:
            velocity_NR = np.where(skipped_NR[:, 1:], np.nan, velocity_NR)
            skipped_NR = skipped_NR[:, 1:]
        return replace(self, steps_R=self.steps_R[:-1], values_NR=velocity_NR, skipped_NR=skipped_NR)

    def smoothed(self, window: int) -> "Curve":
        """Returns running means over rows, see `smoothed`."""
        return replace(self, values_NR=np.stack([smoothed(values_R, window) for values_R in self.values_NR]))

    @property
    def mean_R(self) -> Array:
        """Mean over runs."""
        return mean_and_std(self.values_NR)[0]

    @property
    def has_values(self) -> bool:
        """Whether there is anything but NaN."""
        return bool(np.isfinite(self.values_NR).any())


def curves_of(groups: Sequence[Group], token_set: str | None, name: str) -> list[Curve]:
    """Returns the curves of a series.

    Args:
        groups: From `groups_of`.
        token_set: Whose series; None for a scalar such as the loss.
        name: Of the series.

    Returns:
        A curve for each group all of whose runs have it, with at least one value.
    """
    result = []
    for group in groups:
        sources = [run.scalars if token_set is None else run.series.get(token_set, {}) for run in group.runs]
        if not all(name in source for source in sources):
            continue
        num_rows = min(len(source[name]) for source in sources)
        values_NR = _finite(np.stack([source[name][:num_rows] for source in sources]))
        skipped_NR = None
        if any(run.skipped_R.any() for run in group.runs):
            skipped_NR = np.stack([run.skipped_R[:num_rows] for run in group.runs])
        result.append(Curve(group, group.runs[0].steps_R[:num_rows], values_NR, skipped_NR))
    return [curve for curve in result if curve.has_values]


def distances_of(group: Group, token_set: str) -> tuple[Curve, Curve] | None:
    """Returns how far a group's runs are from each other, and from their own starts.

    Args:
        group: Runs that differ in their seed only.
        token_set: dead, live or all.

    Returns:
        Frobenius distances, one curve per pair, and one per run; None if there is no pair.
    """
    found = group.pairs.get(token_set)
    if found is None:
        return None
    members = {run.run for run in group.runs}
    rows = [number for number, pair in enumerate(found.pairs) if members.issuperset(pair)]
    runs = sorted({run for pair in found.pairs for run in pair})
    own = [number for number, run in enumerate(runs) if run in members]
    if not rows or not np.isfinite(found.distance_PR[rows]).any():
        return None
    steps_R = group.runs[0].steps_R[: min(len(run.steps_R) for run in group.runs)]
    values = found.distance_PR[rows, : len(steps_R)], found.evolution_NR[own, : len(steps_R)]
    return Curve(group, steps_R, values[0]), Curve(group, steps_R, values[1])


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, np.nan)
