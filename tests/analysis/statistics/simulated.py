"""Studies whose truth is known: how often intervals cover it, tests err, and figures of power come true.

`python -m tests.analysis.statistics.simulated` prints the figures of docs/statistics.md; test_simulated.py
asserts what is promised.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flannel_pl.analysis.statistics.corrections import holm
from flannel_pl.analysis.statistics.effects import hedges_g, paired_effect
from flannel_pl.analysis.statistics.equivalence import equivalence, paired_equivalence
from flannel_pl.analysis.statistics.factorial import factorial
from flannel_pl.analysis.statistics.growth import divergence_rate
from flannel_pl.analysis.statistics.intervals import Interval, difference_interval, mean_interval
from flannel_pl.analysis.statistics.motion import displacements, exponent_of
from flannel_pl.analysis.statistics.permutations import sign_flip_test, two_sample_test
from flannel_pl.analysis.statistics.power import power_of
from flannel_pl.analysis.statistics.survival import kaplan_meier

Array = np.ndarray[Any, Any]
Draw = Callable[[np.random.Generator, int], Array]
STUDIES, DRAWS = 2000, 999
MANY_STUDIES = 10_000
"""Where the truth lies so near the promise that 2000 would not tell."""

SHAPES: dict[str, Draw] = {
    "normal": lambda random, num: random.normal(size=num),
    "heavy tails (t, 5)": lambda random, num: random.standard_t(5, num),
    "uniform": lambda random, num: random.uniform(-1, 1, num),
    "skewed (gamma, 4)": lambda random, num: random.gamma(4, size=num) - 4,
    "very skewed (exponential)": lambda random, num: random.exponential(size=num) - 1,
}
"""All of mean 0."""

POWER_PAIRED = (
    *((6, 1.2, 1), (6, 2.0, 1), (7, 1.0, 1), (8, 1.2, 1), (9, 2.0, 8), (10, 0.8, 1)),
    *((10, 1.2, 8), (11, 1.5, 8), (13, 1.2, 40), (15, 0.8, 1), (15, 1.3, 50), (17, 1.5, 200)),
)
POWER_OF_ARMS = ((4, 2.0, 1), (5, 1.5, 1), (6, 2.0, 8), (7, 1.2, 1), (8, 1.5, 1), (8, 2.0, 8), (8, 2.32, 20))
"""Pairs or runs of each arm, true effect, comparisons in the table."""

SPREADS = ((5, 5, 3.0), (8, 8, 3.0), (4, 8, 3.0), (8, 4, 3.0))
"""Runs of each of two arms, spread of the second."""


def covered(intervals: list[Interval | None], truth: float) -> float:
    """Returns the part of intervals that have the truth in them; one that is missing has not."""
    return float(np.mean([one is not None and one.spans(truth) for one in intervals]))


def mean_coverage(shape: str, num: int, *, studies: int = STUDIES) -> dict[str, float]:
    """Returns how often intervals of a mean cover it: ours, Student's, and quantiles of resampled means."""
    random = np.random.default_rng(1000 * num + list(SHAPES).index(shape))
    ours: list[Interval | None] = []
    student: list[Interval | None] = []
    quantiles: list[Interval | None] = []
    for _ in range(studies):
        values = SHAPES[shape](random, num)
        found = mean_interval(values, draws=DRAWS, seed=int(random.integers(2**32)))
        ours.append(found.interval)
        student.append(found.t_interval)
        means = values[random.integers(0, num, (DRAWS, num))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        quantiles.append(Interval(float(low), float(high), 0.95, "quantiles"))
    return {name: covered(one, 0) for name, one in (("ours", ours), ("t", student), ("quantiles", quantiles))}


def difference_coverage(
    shape: str, ours: int, theirs: int, ratio: float, *, studies: int = STUDIES
) -> dict[str, float]:
    """Returns how often intervals of a difference cover it, where the second arm has another spread."""
    random = np.random.default_rng(100 * ours + theirs)
    bootstrap: list[Interval | None] = []
    student: list[Interval | None] = []
    for _ in range(studies):
        arms = SHAPES[shape](random, ours), ratio * SHAPES[shape](random, theirs)
        found = difference_interval(*arms, draws=DRAWS, seed=int(random.integers(2**32)))
        bootstrap.append(found.interval)
        student.append(found.t_interval)
    return {"ours": covered(bootstrap, 0), "t": covered(student, 0)}


def effect_coverage(d: float, num: int, *, paired: bool, studies: int = STUDIES) -> float:
    """Returns how often intervals of an effect size cover the true one."""
    random = np.random.default_rng(num)
    hits = []
    for _ in range(studies):
        found = (
            paired_effect(random.normal(d, 1, num))
            if paired
            else hedges_g(random.normal(d, 1, num), random.normal(0, 1, num))
        )
        hits.append(found is not None and found.interval.spans(d))
    return float(np.mean(hits))


def false_alarms(
    shape: str, num: int, *, paired: bool, arms: int = 4, outcomes: int = 3, studies: int = STUDIES
) -> float:
    """Returns the part of tables with any p of at most .05 after correction, where no arm does anything.

    Arms share their reference, and, if paired, what each seed does; outcomes are alike, too.
    """
    random = np.random.default_rng(num)
    alarms = 0
    for _ in range(studies):
        p_values: list[float | None] = []
        base = SHAPES[shape](random, num * (arms + 1)).reshape(arms + 1, num)
        if paired:
            base += 2 * SHAPES[shape](random, num)
        for _ in range(outcomes):
            values = base + SHAPES[shape](random, base.size).reshape(base.shape)
            for arm in range(1, arms + 1):
                test = (
                    sign_flip_test(values[arm] - values[0])
                    if paired
                    else two_sample_test(values[arm], values[0])
                )
                p_values.append(test.p)
        alarms += min(p for p in holm(p_values) if p is not None) <= 0.05
    return alarms / studies


def false_alarms_of_spread(
    ours: int, theirs: int, ratio: float, *, studies: int = STUDIES
) -> dict[str, float]:
    """Returns how often arms of one mean and other spreads have p of at most .05, and are said to differ."""
    random = np.random.default_rng(ours)
    low, differs = 0, 0
    for _ in range(studies):
        arms = random.normal(0, 1, ours), random.normal(0, ratio, theirs)
        if two_sample_test(*arms).p <= 0.05:
            low += 1
            interval = difference_interval(*arms, draws=DRAWS, seed=int(random.integers(2**32))).interval
            differs += interval is not None and not interval.spans(0)
    return {"p": low / studies, "differs": differs / studies}


def false_equivalence(num: int, *, paired: bool, studies: int = STUDIES) -> float:
    """Returns how often a difference that is exactly the margin is called equivalent."""
    random = np.random.default_rng(num)
    hits = 0
    for _ in range(studies):
        found = (
            paired_equivalence(random.normal(1.5, 0.4, num), 1.5)
            if paired
            else equivalence(random.normal(1.5, 0.3, num), random.normal(0, 0.6, num), 1.5)
        )
        hits += found is not None and found.p <= 0.05
    return hits / studies


def false_effects(shape: str, *, blocked: bool, studies: int = STUDIES) -> dict[str, float]:
    """Returns how often effects of a 2 x 3 factorial have p of at most .05, where there is none.

    With seeds as blocks, or without and unbalanced.
    """
    random = np.random.default_rng(7)
    cells = [(a, b, seed) for a in (0, 1) for b in (0, 1, 2) for seed in range(5)]
    if not blocked:
        cells = [cell for place, cell in enumerate(cells) if place not in (0, 7, 8, 21)]
    factors = {name: [cell[place] for cell in cells] for place, name in enumerate("ab")}
    seeds = [cell[2] for cell in cells]
    hits = {"a": 0, "b": 0, "a x b": 0}
    for study in range(studies):
        values = SHAPES[shape](random, len(cells))
        if blocked:
            values = values + 3 * random.normal(size=5)[seeds]
        table = factorial(values, factors, blocks=seeds if blocked else None, permutations=199, seed=study)
        for effect in table.effects:
            hits[effect.name] += effect.p <= 0.05
    return {name: count / studies for name, count in hits.items()}


def shown(d: float, num: int, *, paired: bool, comparisons: int = 1, studies: int = STUDIES) -> float:
    """Returns how often a true effect is shown by the test that the table makes."""
    random = np.random.default_rng(int(100 * d) + num)
    hits = 0
    for _ in range(studies):
        test = (
            sign_flip_test(random.normal(d, 1, num))
            if paired
            else two_sample_test(random.normal(d, 1, num), random.normal(0, 1, num))
        )
        hits += test.p * comparisons <= 0.05 + 1e-12
    return hits / studies


def survival_coverage(num: int, *, studies: int = STUDIES) -> dict[str, float]:
    """Returns how often intervals over exponential times, of which a quarter is censored, cover the truth."""
    random = np.random.default_rng(num)
    at, horizon = 0.7, 1.0
    truth = {"survival": math.exp(-at), "median": math.log(2), "restricted mean": 1 - math.exp(-horizon)}
    hits = dict.fromkeys(truth, 0)
    for _ in range(studies):
        stop, lost = random.exponential(size=num), random.uniform(1, 2, num)
        found = kaplan_meier(np.minimum(stop, lost), stop <= lost, horizon=horizon)
        row = int(np.searchsorted(found.times_E, at, side="right")) - 1
        low, high = found.median_interval
        hits["survival"] += row >= 0 and bool(found.low_E[row] <= truth["survival"] <= found.high_E[row])
        hits["median"] += (low or 0.0) <= truth["median"] <= (math.inf if high is None else high)
        mean = found.restricted_interval
        hits["restricted mean"] += mean is not None and mean.spans(truth["restricted mean"])
    return {name: count / studies for name, count in hits.items()}


def exponent_coverage(rows: int, *, studies: int = 400) -> float:
    """Returns how often the interval of a random walk's exponent has 1 in it."""
    random = np.random.default_rng(rows)
    found = []
    for _ in range(studies):
        walk = np.cumsum(random.standard_normal((rows, 5, 4)), axis=0)
        found.append(exponent_of(displacements(walk, np.arange(rows), [1, 2, 4, 8])).interval)
    return covered(found, 1)


def rate_coverage(*, studies: int = STUDIES) -> float:
    """Returns how often the interval of a rate has the true one in it, where steps in a row are alike."""
    random = np.random.default_rng(0)
    steps = np.arange(80)
    found = []
    for _ in range(studies):
        noise = random.normal(0, 0.1, 80)
        for row in range(1, 80):
            noise[row] += 0.5 * noise[row - 1]
        found.append(divergence_rate(np.exp(0.1 * steps + noise), steps, window=(0, 79)).interval)
    return covered(found, 0.1)


def main() -> None:
    """Prints the tables of docs/statistics.md."""
    for num in (3, 4, 5, 7, 10):
        for shape in SHAPES:
            print("mean", num, shape, mean_coverage(shape, num), flush=True)
    for shape in ("normal", "skewed (gamma, 4)"):
        for ours, theirs, ratio in (
            (3, 3, 1.0),
            (5, 5, 1.0),
            (5, 5, 3.0),
            (10, 10, 1.0),
            (10, 10, 3.0),
            (5, 10, 1.0),
            (3, 10, 1.0),
        ):
            print(
                "difference",
                ours,
                theirs,
                ratio,
                shape,
                difference_coverage(shape, ours, theirs, ratio),
                flush=True,
            )
    for paired in (True, False):
        for d in (0.0, 1.0, 3.0):
            print(
                "effect",
                paired,
                d,
                [(num, effect_coverage(d, num, paired=paired)) for num in (3, 5, 10)],
                flush=True,
            )
        num, studies = (10, MANY_STUDIES) if paired else (6, STUDIES)
        for shape in ("normal", "very skewed (exponential)"):
            found = false_alarms(shape, num, paired=paired, studies=studies)
            print("false alarms", paired, shape, num, found, flush=True)
        print(
            "false equivalence",
            paired,
            [(num, false_equivalence(num, paired=paired)) for num in (3, 5, 10)],
            flush=True,
        )
    for shape in ("normal", "very skewed (exponential)"):
        for blocked in (False, True):
            print("factorial", shape, blocked, false_effects(shape, blocked=blocked), flush=True)
    for ours, theirs, ratio in SPREADS:
        print("spread", ours, theirs, ratio, false_alarms_of_spread(ours, theirs, ratio), flush=True)
    for paired, cases in ((True, POWER_PAIRED), (False, POWER_OF_ARMS)):
        for num, d, comparisons in cases:
            said = power_of(d, num, paired=paired, comparisons=comparisons)
            came = shown(d, num, paired=paired, comparisons=comparisons)
            print("power", paired, num, d, comparisons, round(said, 3), came, flush=True)
    for num in (10, 30, 200):
        print("survival", num, survival_coverage(num), flush=True)
    print("exponent", [(rows, exponent_coverage(rows)) for rows in (100, 400)], flush=True)
    print("rate", rate_coverage(), flush=True)


if __name__ == "__main__":
    main()
