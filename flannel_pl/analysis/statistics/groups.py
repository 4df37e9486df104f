"""Groups of runs that differ in their seed only: what a mean or a spread is over."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flannel_pl.analysis.measuring.divergence import Divergence
from flannel_pl.analysis.measuring.results import Measures, RunMeasures

Experiments = Measures | Sequence[tuple[str, Measures]]
"""One experiment, or several with a name each."""


@dataclass(frozen=True)
class Group:
    """Runs of one experiment that differ in nothing but their seed."""

    name: str
    runs: tuple[RunMeasures, ...]
    pairs: Mapping[str, Divergence]
    dim: int

    place: int
    """Among the `num_groups` that were sorted together, from 0."""

    num_groups: int


def groups_of(experiments: Experiments) -> list[Group]:
    """Sorts the runs of experiments: a mean over runs is over seeds, never over the values of a sweep.

    Args:
        experiments: One, or several with their names.

    Returns:
        In the order of the runs.

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
    result = []
    for place, ((number, swept), runs) in enumerate(found.items()):
        name, measures = named[number]
        parts = [part for part in (name, swept) if part] or [measures.title]
        result.append(Group(", ".join(parts), tuple(runs), measures.pairs, measures.dim, place, len(found)))
    return result


def groups_and_set(experiments: Experiments, token_set: str) -> tuple[list[Group], str]:
    """Returns the groups, and the token set to draw: `token_set`, or "all" where a run does not have it."""
    groups = groups_of(experiments)
    return groups, shown_set([run for group in groups for run in group.runs], token_set)


def shown_set(runs: Iterable[RunMeasures], token_set: str) -> str:
    """Returns the token set to show: `token_set`, or "all" unless every run has it."""
    return token_set if all(token_set in run.series for run in runs) else "all"
