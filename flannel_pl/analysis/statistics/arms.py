"""Arms side by side: each with its mean, and each against the one that the experiment names as reference.

Everything of an experiment that is asked at once goes into one table, several outcomes too: then p values
are corrected over all of it (`corrections`). What was tried before and left out is not corrected for.

Shape suffixes: N runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from flannel_pl.analysis.statistics.corrections import holm
from flannel_pl.analysis.statistics.effects import Effect, hedges_g, paired_effect
from flannel_pl.analysis.statistics.equivalence import Equivalence, equivalence, paired_equivalence
from flannel_pl.analysis.statistics.intervals import Estimate, difference_interval, mean_interval
from flannel_pl.analysis.statistics.permutations import PermutationTest, sign_flip_test, two_sample_test
from flannel_pl.analysis.statistics.power import ALPHA, smallest_effect
from flannel_pl.analysis.statistics.seed_pairs import Matched, matched
from flannel_pl.analysis.statistics.verdicts import Evidence, Verdict, verdict_of

Cell = str | int | float | None
Values = Mapping[str, Mapping[int, float]]
"""Arm -> seed -> number; NaN, or no entry, for a run that does not have it."""


@dataclass(frozen=True)
class ArmSummary:
    """One outcome of one arm."""

    outcome: str
    arm: str
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    """Whose numbers they are, ascending."""

    without: tuple[int, ...]
    """Seeds of runs that have no such number."""

    mean: Estimate | None
    """None if no run has it."""


@dataclass(frozen=True)
class ArmComparison:
    """One outcome of one arm, less that of the reference."""

    outcome: str
    arm: str
    reference: str
    matched: Matched
    difference: Estimate | None
    effect: Effect | None
    test: PermutationTest | None
    p_holm: float | None
    """Corrected over the whole table."""

    equivalence: Equivalence | None
    """None where no margin was stated."""

    p_equivalence_holm: float | None
    """Corrected over all claims of equivalence in the table."""

    detectable: float | None
    """The least true effect (as `effect`) that so many runs show in 80 % of studies of so many comparisons;
    None if no effect can be shown."""

    verdict: Verdict


@dataclass(frozen=True)
class ArmsTable:
    """Everything that was asked of an experiment's arms."""

    reference: str
    summaries: tuple[ArmSummary, ...]
    comparisons: tuple[ArmComparison, ...]
    alpha: float
    num_tests: int
    """That p values were corrected for."""

    num_equivalence_tests: int

    def summary_rows(self) -> list[dict[str, Cell]]:
        """Returns a line of a table for each arm and outcome."""
        return [
            {
                "outcome": one.outcome,
                "arm": one.arm,
                "num": len(one.values),
                "num_without": len(one.without),
                "mean": None if one.mean is None else one.mean.value,
                "std": None if one.mean is None else one.mean.std,
                **_ends("", one.mean),
            }
            for one in self.summaries
        ]

    def comparison_rows(self) -> list[dict[str, Cell]]:
        """Returns a line of a table for each arm but the reference, and outcome."""
        return [_row(one) for one in self.comparisons]


def compare_arms(
    values: Values,
    reference: str,
    *,
    outcome: str = "",
    margin: float | None = None,
    paired: bool | None = None,
    alpha: float = ALPHA,
) -> ArmsTable:
    """Compares one outcome of several arms; see `compare_outcomes`.

    Args:
        values: Arm -> seed -> number.
        reference: The arm that the others are held against.
        outcome: What the number is called.
        margin: Of equivalence, in the number's unit, if 'no effect' is to be shown.
        paired: Whether seeds are pairs; None: where enough are shared, see `seed_pairs`.
        alpha: The chance of any false alarm in the whole table.

    Example:
        >>> table = compare_arms(
        ...     {
        ...         "bf16": {seed: 0.9 + seed / 100 for seed in range(8)},
        ...         "fp32": {seed: 0.1 + seed / 90 for seed in range(8)},
        ...     },
        ...     "bf16",
        ... )
        >>> print(table.comparisons[0].verdict.words.partition(" (")[0])
        differs: lower by 0.796111
    """
    margins = {} if margin is None else {outcome: margin}
    return compare_outcomes({outcome: values}, reference, margins=margins, paired=paired, alpha=alpha)


def compare_outcomes(
    outcomes: Mapping[str, Values],
    reference: str,
    *,
    margins: Mapping[str, float] | None = None,
    paired: bool | None = None,
    alpha: float = ALPHA,
) -> ArmsTable:
    """Compares several outcomes of several arms, with p values corrected over all of them.

    Args:
        outcomes: Outcome -> arm -> seed -> number.
        reference: The arm that the others are held against.
        margins: Outcome -> margin of equivalence, in the number's unit.
        paired: Whether seeds are pairs; None: where enough are shared, see `seed_pairs`.
        alpha: The chance of any false alarm in the whole table.

    Returns:
        Arms in the order in which they are given, the outcomes outside.

    Raises:
        ValueError: If the reference is no arm of every outcome, there is no other, or a margin is of no
            outcome.

    Example:
        >>> values = {"a": {1: 1.0, 2: 2.0, 3: 4.0}, "b": {1: 1.0, 2: 2.0, 3: 4.0}}
        >>> table = compare_outcomes({"loss": values}, "a")
        >>> table.comparisons[0].verdict.words
        'the same: equal to the last digit in all 3 pairs'
    """
    margins = dict(margins or {})
    _check(outcomes, reference, margins)
    summaries = [_summary(name, arm, runs) for name, arms in outcomes.items() for arm, runs in arms.items()]
    found = [
        _compared(name, arm, reference, matched(runs, arms[reference], paired=paired), margins.get(name))
        for name, arms in outcomes.items()
        for arm, runs in arms.items()
        if arm != reference
    ]
    p_values = [None if one.test is None else one.test.p for one in found]
    p_near = [None if one.equivalence is None else one.equivalence.p for one in found]
    num_tests, num_near = (len(one) - one.count(None) for one in (p_values, p_near))
    judged = tuple(
        _judged(one, p, near, (num_tests, num_near), alpha)
        for one, p, near in zip(found, holm(p_values), holm(p_near), strict=True)
    )
    return ArmsTable(reference, tuple(summaries), judged, alpha, num_tests, num_near)


def _check(outcomes: Mapping[str, Values], reference: str, margins: Mapping[str, float]) -> None:
    for name, arms in outcomes.items():
        if reference not in arms:
            raise ValueError(f"got arms {sorted(arms)} of {name!r}, expected {reference!r}, the reference")
        if len(arms) < 2:
            raise ValueError(f"got no arm of {name!r} besides the reference, expected one or more")
    if strangers := sorted(set(margins) - set(outcomes)):
        raise ValueError(f"got margins of {strangers}, expected some of {sorted(outcomes)}")


def _summary(outcome: str, arm: str, runs: Mapping[int, float]) -> ArmSummary:
    there = {seed: float(runs[seed]) for seed in sorted(runs) if np.isfinite(runs[seed])}
    without = tuple(seed for seed in sorted(runs) if seed not in there)
    values = tuple(there.values())
    return ArmSummary(outcome, arm, values, tuple(there), without, mean_interval(values) if values else None)


_PENDING = verdict_of(Evidence(None, None, None, 0, False, ALPHA))


def _compared(outcome: str, arm: str, reference: str, pairs: Matched, margin: float | None) -> ArmComparison:
    """Compares two arms, but for what needs the whole table."""
    values_N, reference_N = pairs.values_N, pairs.reference_N
    difference, effect, test, near = None, None, None, None
    if len(values_N) and len(reference_N):
        if pairs.paired:
            differences_N = values_N - reference_N
            difference, effect = mean_interval(differences_N), paired_effect(differences_N)
            test = sign_flip_test(differences_N)
            near = None if margin is None else paired_equivalence(differences_N, margin)
        else:
            difference, effect = difference_interval(values_N, reference_N), hedges_g(values_N, reference_N)
            near = None if margin is None else equivalence(values_N, reference_N, margin)
            if min(len(values_N), len(reference_N)) > 1:
                test = two_sample_test(values_N, reference_N)
    return ArmComparison(
        outcome, arm, reference, pairs, difference, effect, test, None, near, None, None, _PENDING
    )


def _judged(
    one: ArmComparison, p_holm: float | None, p_near: float | None, family: tuple[int, int], alpha: float
) -> ArmComparison:
    """Adds what needs the whole table."""
    pairs, (num_tests, num_near) = one.matched, family
    everything = np.concatenate([pairs.values_N, pairs.reference_N])
    if pairs.paired:
        identical = bool((pairs.values_N == pairs.reference_N).all())
    else:
        identical = len(everything) > 1 and bool(np.ptp(everything) == 0)
    evidence = Evidence(
        *(one.difference, one.test, p_holm, num_tests, pairs.paired, alpha),
        identical=identical,
        num_equivalence_tests=num_near,
        equivalence=one.equivalence,
        p_equivalence_holm=p_near,
    )
    detectable = None
    if one.test is not None:
        fewest = min(len(pairs.values_N), len(pairs.reference_N))
        detectable = smallest_effect(fewest, paired=pairs.paired, alpha=alpha, comparisons=num_tests)
    return replace(
        one,
        p_holm=p_holm,
        p_equivalence_holm=p_near,
        detectable=detectable,
        verdict=verdict_of(evidence),
    )


def _ends(prefix: str, estimate: Estimate | None) -> dict[str, Cell]:
    """Returns the ends of an estimate's intervals as cells."""
    interval = None if estimate is None else estimate.interval
    student = None if estimate is None else estimate.t_interval
    return {
        f"{prefix}low": None if interval is None else interval.low,
        f"{prefix}high": None if interval is None else interval.high,
        f"{prefix}method": None if interval is None else interval.method,
        f"{prefix}t_low": None if student is None else student.low,
        f"{prefix}t_high": None if student is None else student.high,
    }


def _row(one: ArmComparison) -> dict[str, Cell]:
    effect, test, near = one.effect, one.test, one.equivalence
    return {
        "outcome": one.outcome,
        "arm": one.arm,
        "reference": one.reference,
        "paired": int(one.matched.paired),
        "num": len(one.matched.values_N),
        "num_reference": len(one.matched.reference_N),
        "num_left_out": len(one.matched.left_out),
        "difference": None if one.difference is None else one.difference.value,
        **_ends("", one.difference),
        "effect_kind": None if effect is None else effect.kind,
        "effect": None if effect is None else effect.size,
        "effect_low": None if effect is None else effect.interval.low,
        "effect_high": None if effect is None else effect.interval.high,
        "p": None if test is None else test.p,
        "p_holm": one.p_holm,
        "smallest_p": None if test is None else test.smallest_p,
        "exact": None if test is None else int(test.exact),
        "margin": None if near is None else near.margin,
        "p_equivalence": None if near is None else near.p,
        "p_equivalence_holm": one.p_equivalence_holm,
        "equivalence_low": None if near is None else near.interval.low,
        "equivalence_high": None if near is None else near.interval.high,
        "detectable": one.detectable,
        "finding": str(one.verdict.finding),
        "verdict": one.verdict.words,
    }
