"""Key figures, epochs and what stands beside the published figures, from docs/report.md word by word.

Nothing of the package computes here.
"""

import itertools
import math
import statistics

import numpy as np

from tests.analysis.crossings import Run
from tests.analysis.test_report_doc import box_mean, re_expansion


def value_at(run: Run, values: list[float], row: int) -> float:
    """That of the last row up to `row` whose step was taken."""
    return values[max(k for k in range(row + 1) if run.is_taken[k])]


def quantile(values: list[float], part: float) -> float:
    """The least that at least such a part of the tokens does not exceed."""
    return sorted(values)[math.ceil(part * len(values)) - 1]


def key_figures(runs: list[Run], apart: list[list[float]] | None) -> dict[str, list[float]]:
    """Figure -> the value of each run, NaN where it has none."""
    end = min(len(run.steps) for run in runs) - 1
    found: dict[str, list[float]] = {}
    for name in ("origin_radius", "centroid_radius", "centroid_norm", "std_per_dim", "bounding_radius"):
        found[f"{name}, start"] = [run.metrics[name][0] for run in runs]
        found[f"{name}, end"] = [run.metrics[name][end] for run in runs]
    if apart:
        found["separation, start"] = [one[0] for one in apart]
        found["separation, end"] = [one[end] for one in apart]
    found["lift-off step"] = [
        next(
            (
                step
                for step, c, bound in zip(
                    run.steps, run.metrics["centroid_norm"], run.metrics["bounding_radius"], strict=True
                )
                if c > bound
            ),
            math.nan,
        )
        for run in runs
    ]
    found["path_efficiency"] = [run.metrics["path_efficiency"][end] for run in runs]
    found["token_speed, largest"] = [
        max((x for x in run.metrics["token_speed"] if not math.isnan(x)), default=math.nan) for run in runs
    ]
    if runs[0].has_standstill:
        found |= standstill(runs, end)
    found["loss, mean over steps"] = [statistics.fmean(run.loss[1:]) for run in runs]
    return {name: values for name, values in found.items() if any(math.isfinite(x) for x in values)}


def standstill(runs: list[Run], end: int) -> dict[str, list[float]]:
    found = {}
    found["frozen_fraction, end"] = [value_at(run, run.metrics["frozen_fraction"], end) for run in runs]
    for name, part in (("q25", 0.25), ("median", 0.5), ("q75", 0.75), ("max", 1.0)):
        found[f"freeze step, {name}"] = [quantile(run.freeze_steps(), part) for run in runs]
    found["fraction of tokens still moving"] = [
        statistics.fmean(math.isinf(x) for x in run.freeze_steps()) for run in runs
    ]
    return found


Boundary = tuple[int, float] | None


def inhale(radius: list[float], steps: list[int], window: int) -> Boundary:
    rows = [k for k, step in enumerate(steps) if step <= window]
    least = min(rows, key=lambda k: radius[k])
    if len(rows) < 3 or least in (rows[0], rows[-1]):
        return None
    return steps[least], (radius[0] - radius[least]) / radius[0]


def sneeze(growth: list[float], steps: list[int]) -> Boundary:
    there = [k for k, x in enumerate(growth) if not math.isnan(x)]
    peak = max(there, key=lambda k: growth[k])
    return None if growth[peak] <= 0 or peak in (there[0], there[-1]) else (steps[peak], growth[peak])


def epochs(
    rule: str, radius: list[float], frozen: list[float], steps: list[int], skipped: list[bool]
) -> dict[str, Boundary]:
    """By the page's table."""
    found: dict[str, Boundary] = dict.fromkeys(("inhale", "sneeze", "re_expansion", "freeze"))
    if len(radius) < 3 or not all(map(math.isfinite, radius)) or len(set(radius)) == 1:
        return found
    apart = [after - before for before, after in itertools.pairwise(steps)]
    growth = [
        math.nan if skips else (after - before) / step
        for (before, after), step, skips in zip(itertools.pairwise(radius), apart, skipped[1:], strict=True)
    ]
    found["inhale"] = inhale(radius, steps, 10 if rule == "A" else 19)
    if rule == "B":
        found["sneeze"] = sneeze(growth, steps)
        found["re_expansion"] = re_expansion(radius, steps, frozen, skipped)
        values, below = frozen, [x > 0.9 for x in frozen]
        begin = found["sneeze"][0] if found["sneeze"] else 0
    else:
        width = 5 // max(apart)
        values = box_mean(growth, width + (width % 2 == 0))
        found["sneeze"] = sneeze(values, steps)
        peak = found["sneeze"] or (0, 0.0)
        below, begin = [x < 0.01 * peak[1] for x in values], max(100, peak[0])
    after = [k for k in range(len(values)) if steps[k] > begin]
    rests = [k for k in after if below[k]]
    is_edge = rests and (rests[0] == len(values) - 1 or (rule == "A" and rests[0] == after[0]))
    if found["sneeze"] and rests and not is_edge:
        found["freeze"] = steps[rests[0]], values[rests[0]]
    return found


def mean_of(several: list[list[float]]) -> list[float]:
    """Row by row, over those that have a number there, as far as all go."""
    columns = [[x for x in row if not math.isnan(x)] for row in zip(*several, strict=False)]
    return [statistics.fmean(column) if column else math.nan for column in columns]


def all_epochs(runs: list[Run], rule: str) -> list[dict[str, Boundary]]:
    """Of the mean curve, then of each run."""
    end = min(len(run.steps) for run in runs)
    frozen = [run.metrics.get("frozen_fraction", []) for run in runs]
    all_skip = [all(run.skipped[k] for run in runs) for k in range(end)]
    mean = epochs(rule, mean_of([run.radius for run in runs]), mean_of(frozen), runs[0].steps[:end], all_skip)
    each = [
        epochs(rule, run.radius, still, run.steps, run.skipped)
        for run, still in zip(runs, frozen, strict=True)
    ]
    return [mean, *each]


def published(runs: list[Run]) -> dict[str, tuple[list[float], int]]:
    """Figure -> its values, or the one of all runs, and the count."""
    mean, *each = all_epochs(runs, "A")
    end = min(len(run.steps) for run in runs)
    steps = runs[0].steps[:end]
    found: dict[str, tuple[list[float], int]] = {}

    for step in (0, 1000):
        for name in ("origin_radius", "centroid_radius"):
            row = steps.index(step) if step in steps else None
            values = [] if row is None else [run.metrics[name][row] for run in runs]
            found[f"{name.replace('_', ' ')}, step {step}"] = values, len(values)
    ends = [one["inhale"] for one in each if one["inhale"]]
    found["inhale: step of its end, each run"] = [float(x[0]) for x in ends], len(ends)
    depths = [one["inhale"][1] * run.radius[0] for one, run in zip(each, runs, strict=True) if one["inhale"]]
    found["inhale: depth, each run"] = depths, len(depths)
    for name, boundary, what in (
        ("inhale: depth of the mean, as a part", "inhale", 1),
        ("sneeze: peak speed of the mean", "sneeze", 1),
        ("sneeze: step of the peak", "sneeze", 0),
        ("freeze: step, rule A on the mean", "freeze", 0),
    ):
        ours, values = mean[boundary], [float(one[boundary][what]) for one in each if one[boundary]]  # type: ignore[index]
        found[name] = [float(ours[what])] if ours else [], len(values) if ours else 0
    pairs = list(itertools.combinations(runs, 2))
    apart = [np.linalg.norm((a.W[:end] - b.W[:end]).reshape(end, -1), axis=1) for a, b in pairs]
    growth = np.diff(np.mean(apart, axis=0)) / np.diff(steps) if pairs else np.empty(0)
    found["parting: step of that growth"] = (
        ([float(steps[growth.argmax()])], len(pairs)) if len(growth) else ([], 0)
    )
    found["parting: largest growth per step"] = (
        ([float(growth.max())], len(pairs)) if len(growth) else ([], 0)
    )
    ratios, own = [], []
    for step in (0, 1000):
        values = [float(one[steps.index(step)]) for one in apart] if step in steps else []
        found[f"distance between runs, step {step}"] = values, len(values)
    if 1000 in steps and pairs:
        row = steps.index(1000)
        own = [float(np.linalg.norm(run.W[row] - run.W[0])) for run in runs]
        ratios = [float(np.mean([one[row] for one in apart]) / np.mean(own))]
    found["distance from the start, step 1000"] = own, len(own)
    found["ratio of the two, step 1000"] = ratios, len(pairs) if ratios else 0
    losses = [statistics.fmean(run.loss[1:]) for run in runs if run.steps[-1] == 1000]
    found["loss, mean of 1000 steps"] = losses, len(losses)
    return found
