"""What a comparison allows to say, in words, and no more.

- *the same*: the runs are equal to the last digit, in every pair. Nothing was compared; the arms may be one.
- *differs*: p, corrected over the whole table, is at most alpha, and the interval leaves 0 out.
- *equivalent within a margin*: two one-sided tests say so, at a margin that was stated before. Both may be
  true: a difference that is sure, and too small to matter.
- *too few seeds*: whatever the runs had shown, p could not have been small enough.
- *not decided*: everything else. It is no evidence for "no effect".
"""

from dataclasses import dataclass
from enum import StrEnum

from flannel_pl.analysis.statistics.equivalence import Equivalence
from flannel_pl.analysis.statistics.intervals import Estimate
from flannel_pl.analysis.statistics.permutations import (
    PermutationTest,
    smallest_paired_p,
    smallest_two_sample_p,
)
from flannel_pl.analysis.words import counted, number


class Finding(StrEnum):
    """What can be said of two arms."""

    SAME = "the same"
    DIFFERS = "differs"
    DIFFERS_WITHIN = "differs, by less than the margin"
    EQUIVALENT = "equivalent"
    TOO_FEW = "too few seeds"
    NOT_DECIDED = "not decided"


@dataclass(frozen=True)
class Evidence:
    """What a finding is made of."""

    difference: Estimate | None
    """None where an arm has no run with a number."""

    test: PermutationTest | None
    p_holm: float | None
    num_tests: int
    """In the family that p was corrected over."""

    paired: bool
    alpha: float
    identical: bool = False
    """Whether all pairs are equal, or all runs of both arms are one number."""

    equivalence: Equivalence | None = None
    p_equivalence_holm: float | None = None
    num_equivalence_tests: int = 1


@dataclass(frozen=True)
class Verdict:
    """What the data allow to say."""

    finding: Finding

    words: str
    """A sentence's beginning, e.g. `not decided: the interval, -0.1 to 0.3, spans 0`."""


def verdict_of(evidence: Evidence) -> Verdict:
    """Puts a comparison into words.

    Example:
        >>> from flannel_pl.analysis.statistics.intervals import mean_interval
        >>> from flannel_pl.analysis.statistics.permutations import sign_flip_test
        >>> differences = [0.2, -0.1, 0.3]
        >>> test = sign_flip_test(differences)
        >>> verdict_of(Evidence(mean_interval(differences), test, test.p, 1, True, 0.05)).words
        'too few seeds: 3 pairs give p = 0.25 at best; 6 could show something'
    """
    difference, test = evidence.difference, evidence.test
    if difference is None:
        return Verdict(Finding.TOO_FEW, "too few seeds: an arm has no run with this number")
    if evidence.identical:
        what = f"all {counted(difference.num, 'pair')}" if evidence.paired else "every run of both arms"
        return Verdict(Finding.SAME, f"the same: equal to the last digit in {what}")
    if test is None or difference.interval is None or evidence.p_holm is None:
        return Verdict(Finding.TOO_FEW, f"too few seeds: {_runs(evidence)} has no spread")
    differs = evidence.p_holm <= evidence.alpha and not difference.interval.spans(0)
    near = evidence.p_equivalence_holm is not None and evidence.p_equivalence_holm <= evidence.alpha
    if differs:
        return _differs(evidence, near)
    if near and evidence.equivalence is not None:
        interval = evidence.equivalence.interval
        return Verdict(
            Finding.EQUIVALENT,
            f"equivalent within {number(evidence.equivalence.margin)}: the 90 % interval is "
            f"{number(interval.low)} to {number(interval.high)}, {_p(evidence.p_equivalence_holm)}"
            f"{_over(evidence.num_equivalence_tests)}",
        )
    if test.smallest_p * evidence.num_tests > evidence.alpha:
        return Verdict(Finding.TOO_FEW, _too_few(evidence, test))
    return Verdict(Finding.NOT_DECIDED, _not_decided(evidence))


def pairs_to_show(alpha: float, num_tests: int = 1) -> int:
    """Returns the fewest pairs whose smallest p is small enough for a table of so many tests.

    Example:
        >>> pairs_to_show(0.05), pairs_to_show(0.05, 12)
        (6, 9)
    """
    return next(num for num in range(1, 100) if smallest_paired_p(num) * num_tests <= alpha or num == 99)


def runs_to_show(alpha: float, num_tests: int = 1) -> int:
    """Returns the same of two arms that are not paired, in runs of each.

    Example:
        >>> runs_to_show(0.05), runs_to_show(0.05, 12)
        (4, 6)
    """
    fewest = (
        num for num in range(2, 100) if smallest_two_sample_p(num, num) * num_tests <= alpha or num == 99
    )
    return next(fewest)


def _differs(evidence: Evidence, near: bool) -> Verdict:
    difference = evidence.difference
    assert difference is not None
    assert difference.interval is not None
    ends = sorted((abs(difference.interval.low), abs(difference.interval.high)))
    words = (
        f"{'higher' if difference.value > 0 else 'lower'} by {number(abs(difference.value))} "
        f"({number(ends[0])} to {number(ends[1])}), {_p(evidence.p_holm)}{_over(evidence.num_tests)}"
    )
    if near and evidence.equivalence is not None:
        margin = number(evidence.equivalence.margin)
        return Verdict(Finding.DIFFERS_WITHIN, f"differs, by less than the margin of {margin}: {words}")
    return Verdict(Finding.DIFFERS, f"differs: {words}")


def _too_few(evidence: Evidence, test: PermutationTest) -> str:
    needed = (pairs_to_show if evidence.paired else runs_to_show)(evidence.alpha, evidence.num_tests)
    words = f"too few seeds: {_runs(evidence)} give {_p(test.smallest_p)} at best"
    if evidence.num_tests > 1:
        words += f", and one of {counted(evidence.num_tests, 'comparison')} may need "
        words += _p(evidence.alpha / evidence.num_tests)
    return f"{words}; {needed}{'' if evidence.paired else ' of each'} could show something"


def _not_decided(evidence: Evidence) -> str:
    difference = evidence.difference
    assert difference is not None
    assert difference.interval is not None
    ends = f"{number(difference.interval.low)} to {number(difference.interval.high)}"
    if not difference.interval.spans(0):
        p = f"{_p(evidence.p_holm)}{_over(evidence.num_tests)}"
        return f"not decided: the interval, {ends}, leaves 0 out, but {p}"
    if evidence.p_holm is not None and evidence.p_holm <= evidence.alpha:
        return f"not decided: {_p(evidence.p_holm)}, but the interval, {ends}, spans 0"
    return f"not decided: the interval, {ends}, spans 0"


def _runs(evidence: Evidence) -> str:
    difference = evidence.difference
    assert difference is not None
    if evidence.paired:
        return counted(difference.num, "pair")
    return "a single run" if difference.num == 1 else f"{difference.num} runs of an arm"


def _over(num_tests: int) -> str:
    return "" if num_tests == 1 else f" after correction for {num_tests} comparisons"


def _p(p: float | None) -> str:
    """Returns a probability with two digits, and never 0."""
    return "no p" if p is None else "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"
