"""The recordings of a report, measured, and the groups of runs in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flannel_pl.analysis.measuring.results import Measures
from flannel_pl.analysis.reporting.background import Background
from flannel_pl.analysis.statistics.groups import Group, groups_of
from flannel_pl.arrays import Array


@dataclass(frozen=True)
class Reported:
    """One recording of a report."""

    name: str
    """What it is called beside the others."""

    measures: Measures
    background: Background

    tokens: Mapping[int, Mapping[str, Array]]
    """Number of a run -> token set -> vocabulary ids, (S,)."""

    texts: Mapping[int, str] = field(default_factory=dict)
    """Of the tokens of its clouds, as far as they are known: vocabulary id -> text."""


def named_groups(experiments: Sequence[Reported]) -> list[tuple[Reported, Group]]:
    """Returns the groups of runs that differ in their seed only, each with its experiment."""
    return [(one, group) for one in experiments for group in groups_of([(one.name, one.measures)])]
