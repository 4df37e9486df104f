"""What the figures draw: groups of runs that differ in their seed only, and their curves.

Shape suffixes: R rows, N runs, K rows that are drawn.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flannel_pl.analysis.measuring.divergence import Divergence
from flannel_pl.analysis.measuring.results import Measures, RunMeasures
from flannel_pl.analysis.series import mean_and_std, smoothed, velocity
from flannel_pl.arrays import Array

Experiments = Measures | Sequence[tuple[str, Measures]]
"""One experiment, or several with a name each."""

COLORS = ("#1f7fc4", "#d55e00", "#0a9a72", "#b8609a", "#8a7a20", "#5b78c9", "#c0504d")
"""Of groups of runs, after Okabe and Ito: told apart by the colour-blind, 3:1 on white and on near-black."""

MAX_POINTS = 600
"""Of a line; a panel is some 350 points wide."""


@dataclass(frozen=True)
class Group:
    """Runs of one experiment that differ in nothing but their seed."""

    name: str
    runs: tuple[RunMeasures, ...]
    pairs: Mapping[str, Divergence]
    dim: int
    color: str

    @property
    def legend(self) -> str:
        """The name as matplotlib shows it: no formula, and not hidden for an underscore at its beginning."""
        return legend(self.name)


def legend(name: str) -> str:
    """Returns a name as matplotlib shows it in a legend.

    Example:
        >>> legend("_under")
        ' _under'
    """
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def groups_of(experiments: Experiments) -> list[Group]:
    """Sorts the runs of experiments: a mean over runs is over seeds, never over the values of a sweep.

    Args:
        experiments: One, or several with their names.

    Returns:
        In the order of the runs, each with a colour of its own.

    Example:
        >>> from pathlib import Path
        >>> groups_of(Measures(Path("x"), "x", runs=(), pairs={}, dim=64, left_out={}))
        []
    """
    named = [("", experiments)] if isinstance(experiments, Measures) else list(experiments)
    found: dict[tuple[int, str], list[RunMeasures]] = {}
    for number, (_, measures) in enumerate(named):
        for run in measures.runs:
            found.setdefault((number, run.label.partition(", ")[2]), []).append(run)
    colors = _colors(len(found))
    result = []
    for ((number, swept), runs), color in zip(found.items(), colors, strict=True):
        name, measures = named[number]
        parts = [part for part in (name, swept) if part] or [measures.title]
        result.append(Group(", ".join(parts), tuple(runs), measures.pairs, measures.dim, color))
    return result


def _colors(number: int) -> list[str]:
    """Returns a colour for each group; of more groups than there are colours, a scale from dark to light."""
    if number <= len(COLORS):
        return list(COLORS[:number])
    import matplotlib  # here: tables have groups too, and draw nothing

    scale = matplotlib.colormaps["plasma"](np.linspace(0.3, 0.75, number))
    return [matplotlib.colors.to_hex(color) for color in scale]


def groups_and_set(experiments: Experiments, token_set: str) -> tuple[list[Group], str]:
    """Returns the groups, and the token set to draw: `token_set`, or "all" where a run does not have it."""
    groups = groups_of(experiments)
    return groups, shown_set([run for group in groups for run in group.runs], token_set)


def shown_set(runs: Iterable[RunMeasures], token_set: str) -> str:
    """Returns the token set to show: `token_set`, or "all" unless every run has it."""
    return token_set if all(token_set in run.series for run in runs) else "all"


def in_words(token_set: str) -> str:
    """Returns what a title calls a token set.

    Example:
        >>> in_words("dead"), in_words("all")
        ('the dead tokens', 'all tokens')
    """
    return "all tokens" if token_set == "all" else f"the {token_set} tokens"


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


def thinned(values_R: Array, max_points: int = MAX_POINTS) -> Array:
    """Returns the rows that a line has to go through to look the same: of every stretch the extremes.

    Args:
        values_R: A series, perhaps with NaN.
        max_points: About so many are kept.

    Returns:
        (K,) ascending positions, the first and the last among them.

    Example:
        >>> thinned(np.array([0.0, 1.0, 9.0, 1.0, 0.0, 1.0]), max_points=4).tolist()
        [0, 2, 3, 4, 5]
    """
    num_rows = len(values_R)
    if num_rows <= max_points:
        return np.arange(num_rows)
    keep = {0, num_rows - 1}
    for rows in np.array_split(np.arange(num_rows), max_points // 2):
        part = values_R[rows]
        keep.add(int(rows[np.argmin(np.where(np.isnan(part), np.inf, part))]))
        keep.add(int(rows[np.argmax(np.where(np.isnan(part), -np.inf, part))]))
    return np.array(sorted(keep))
