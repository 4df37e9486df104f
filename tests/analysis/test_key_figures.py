"""Key figures, epochs and the published figures, computed once more from the file's bytes by docs/report.md.

Nothing of the package computes here. The recordings are crossed with what may happen to one: runs of other
lengths, steps that were skipped, rows several steps apart, a part of the tokens, one run, no dead tokens.
"""

import csv
import itertools
import json
import math
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import flannel_pl
from tests.analysis.samples import Array
from tests.analysis.test_report_doc import box_mean, re_expansion

DIM = 4
DEAD = [0, 1, 2, 4, 5, 7, 9]


@dataclass(frozen=True)
class Case:
    """What a recording is like."""

    dtype: torch.dtype
    num_rows: tuple[int, ...] = (170, 170, 170)
    every: int = 1
    num_tokens: int = 11
    dead: tuple[int, ...] = tuple(DEAD)
    skips: bool = False
    is_part: bool = False
    seed: int = 1

    @property
    def has_standstill(self) -> bool:
        return self.dtype in (torch.bfloat16, torch.float32)


CASES = {
    "bfloat16": Case(torch.bfloat16),
    "float32, runs of other lengths": Case(torch.float32, (170, 125, 140)),
    "float16, every third step of some tokens": Case(torch.float16, (60, 60, 50), every=3, is_part=True),
    "float64, steps skipped": Case(torch.float64, (170, 150), skips=True),
    "bfloat16, steps skipped, a run cut short": Case(torch.bfloat16, (170, 8, 170), skips=True, seed=2),
    "one run": Case(torch.bfloat16, (170,)),
    "no dead tokens": Case(torch.float32, (130, 170), dead=()),
    "a thousand steps": Case(torch.bfloat16, (1001, 1001, 900)),
    "two rows": Case(torch.float32, (2, 2)),
    "as many dead tokens as published": Case(
        torch.bfloat16, (3, 3, 3), every=500, num_tokens=3702, dead=tuple(range(3699))
    ),
}


def radius(step: Array, draw: np.random.Generator) -> Array:
    """Inhale, sneeze, re-expansion, rest."""
    again = draw.uniform(0.05, 0.15) / (1 + np.exp((draw.uniform(70, 85) - step) / 5))
    sneeze = 0.3 / (1 + np.exp((24.5 + draw.normal() - step) / 4))
    found: Array = 0.16 - 0.01 * np.exp(-((step - 2.5) ** 2) / 2) + sneeze + again
    return found


def make(path: Path, case: Case) -> Path:
    tensors: dict[str, torch.Tensor] = {}
    for run, num_rows in enumerate(case.num_rows):
        draw = np.random.default_rng(100 * case.seed + run)
        steps = np.arange(num_rows) * case.every
        way = draw.normal(0, 0.5, (case.num_tokens, DIM)) + np.array([0.8, 0, 0, 0])
        W = radius(steps, draw)[:, None, None] * way + draw.normal(0, 1e-5, (num_rows, case.num_tokens, DIM))
        skipped = draw.random(num_rows) < (0.08 if case.skips else 0)
        skipped[0] = False
        for row in range(1, num_rows):
            rests = np.arange(case.num_tokens) * 3 + 105 + run < steps[row]
            rests[3] = False  # moves to the end
            rests |= skipped[row]
            W[row, rests] = W[row - 1, rests]
        tensors[f"run_{run}_embeddings"] = torch.from_numpy(W).to(case.dtype)
        tensors[f"run_{run}_recorded_steps"] = torch.from_numpy(steps)
        loss = torch.from_numpy(draw.random(num_rows).astype(np.float32))
        loss[0] = math.nan
        tensors[f"run_{run}_losses_f32"] = loss
        if case.skips:
            tensors[f"run_{run}_skipped"] = torch.from_numpy(skipped)
        if case.is_part:
            tensors[f"run_{run}_recorded_tokens"] = torch.arange(case.num_tokens) * 2
    ids = [token * 2 if case.is_part else token for token in case.dead]
    dead_mask = torch.zeros(case.num_tokens * (2 if case.is_part else 1), dtype=torch.bool)
    dead_mask[ids] = True
    tensors |= {"dead_mask": dead_mask, "live_mask": ~dead_mask}
    own = {"embeddings": str(case.dtype).removeprefix("torch.")}
    runs = [{"index": run, "seed": 42 + run, "own_dtypes": own} for run in range(len(case.num_rows))]
    save_file(tensors, path, metadata={"flannel": json.dumps({"schema": 1, "name": "sample", "runs": runs})})
    return path


@dataclass
class Run:
    """One run's weights, and what the tables of metrics say of them."""

    W: Array
    bits: Array
    steps: list[int]
    skipped: list[bool]
    loss: list[float]
    has_standstill: bool

    def __post_init__(self) -> None:
        norm, center = np.linalg.norm, self.W.mean(axis=1)
        self.is_taken = [not skips for skips in self.skipped]
        self.radius: list[float] = norm(self.W, axis=2).mean(axis=1).tolist()
        apart = norm(self.W - center[:, None], axis=2)
        moved = [math.nan, *norm(np.diff(self.W, axis=0), axis=2).mean(axis=1).tolist()]
        frozen = [math.nan, *(self.bits[1:] == self.bits[:-1]).all(axis=2).mean(axis=1).tolist()]
        path = [0.0, *np.cumsum(norm(np.diff(center, axis=0), axis=1)).tolist()]
        drift = norm(center - center[0], axis=1)
        self.metrics = {
            "origin_radius": self.radius,
            "centroid_radius": apart.mean(axis=1).tolist(),
            "bounding_radius": apart.max(axis=1).tolist(),
            "centroid_norm": norm(center, axis=1).tolist(),
            "std_per_dim": self.W.std(axis=1).mean(axis=1).tolist(),
            "path_efficiency": [d / p if p else math.nan for d, p in zip(drift, path, strict=True)],
            "token_speed": self.unless_skipped(moved),
        }
        if self.has_standstill:
            self.metrics["frozen_fraction"] = self.unless_skipped(frozen)

    def unless_skipped(self, values: list[float]) -> list[float]:
        return [x if taken else math.nan for x, taken in zip(values, self.is_taken, strict=True)]

    def freeze_steps(self) -> list[float]:
        """Of each token the step of its last change; infinite if that is the last step that was taken."""
        changed = (self.bits[1:] != self.bits[:-1]).any(axis=2)
        last_taken = max(step for step, taken in zip(self.steps, self.is_taken, strict=True) if taken)
        found = [
            max((self.steps[k + 1] for k in np.flatnonzero(changed[:, token])), default=0)
            for token in range(changed.shape[1])
        ]
        return [math.inf if step == last_taken else float(step) for step in found]


def runs_of(file: Path, case: Case, tokens: list[int]) -> list[Run]:
    found = []
    with safe_open(file, framework="pt") as there:
        for run, num_rows in enumerate(case.num_rows):
            W = there.get_tensor(f"run_{run}_embeddings")[:, tokens]
            bits = W.contiguous().view(torch.uint8).numpy()
            skipped = there.get_tensor(f"run_{run}_skipped").tolist() if case.skips else [False] * num_rows
            steps = there.get_tensor(f"run_{run}_recorded_steps").tolist()
            loss = there.get_tensor(f"run_{run}_losses_f32").double().tolist()
            found.append(Run(W.double().numpy(), bits, steps, skipped, loss, case.has_standstill))
    return found


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


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def close(cell: str, value: float | None) -> None:
    if value is None or not math.isfinite(value):
        assert cell == ""
    else:
        assert math.isclose(float(cell), value, rel_tol=1e-9, abs_tol=1e-15), (cell, value)


def check_spread(line: dict[str, str], values: list[float], name: str) -> None:
    there = [x for x in values if math.isfinite(x)]
    assert (line["num_reached"], line["num_runs"]) == (str(len(there)), str(len(values))), name
    close(line["mean"], statistics.fmean(there) if there else None)
    close(line["std"], statistics.stdev(there) if len(there) > 1 else None)
    close(line["least"], min(there, default=None))
    close(line["most"], max(there, default=None))


@dataclass(frozen=True)
class Made:
    """A recording and its report."""

    case: Case
    file: Path
    report: Path
    group: str
    suffix: str = ""

    def runs(self, one: str) -> list[Run]:
        tokens = {"dead": list(self.case.dead), "all": list(range(self.case.num_tokens))}
        tokens["live"] = [token for token in tokens["all"] if token not in self.case.dead]
        return runs_of(self.file, self.case, tokens[one])

    def sets(self) -> list[str]:
        return ["dead", "live", "all"] if self.case.dead else ["live", "all"]

    def lines(self, name: str) -> list[dict[str, str]]:
        return [line for line in lines_of(self.report / name) if line["group"] == self.group]

    def separation(self, one: str) -> list[list[float]] | None:
        if one != "all" or not self.case.dead:
            return None
        both = zip(self.runs("dead"), self.runs("live"), strict=True)
        return [np.linalg.norm(a.W.mean(axis=1) - b.W.mean(axis=1), axis=1).tolist() for a, b in both]


def report(*files: Path, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flannel_pl.analysis.reporting.report.GALLERY", ())  # no figures
        flannel_pl.report(*files, out=out)


@pytest.fixture(scope="module", params=[*CASES, "the first of two", "the second of two"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("figures")
    if request.param in CASES:
        case = CASES[request.param]
        file = make(folder / "sample.safetensors", case)
        report(file, out=folder / "report")
        (group,) = {line["group"] for line in lines_of(folder / "report" / "epochs.csv")}
        return Made(case, file, folder / "report", group)
    cases = [CASES["bfloat16, steps skipped, a run cut short"], CASES["no dead tokens"]]
    files = [make(folder / f"{name}.safetensors", case) for name, case in zip("ab", cases, strict=True)]
    report(*files, out=folder / "report")
    which = int(request.param == "the second of two")
    return Made(cases[which], files[which], folder / "report", "ab"[which], f"_{which + 1}")


def test_metrics(made: Made) -> None:
    lines = lines_of(made.report / f"metrics{made.suffix}.csv")
    assert {line["set"] for line in lines} == set(made.sets())
    for one in made.sets():
        for number, run in enumerate(made.runs(one)):
            found = [line for line in lines if (line["set"], line["run"]) == (one, str(number))]
            assert [int(line["step"]) for line in found] == run.steps
            for name, values in run.metrics.items():
                for line, value in zip(found, values, strict=True):
                    close(line[name], value)


def test_what_is_left_out_says_why(made: Made) -> None:
    reason = f"the weights are {str(made.case.dtype).removeprefix('torch.')}; this is measured of"
    page = (made.report / "index.html").read_text(encoding="utf-8")
    assert (reason in page) != made.case.has_standstill
    assert "rests at other times" not in page


def test_key_figures(made: Made) -> None:
    for one in made.sets():
        expected = key_figures(made.runs(one), made.separation(one))
        lines = made.lines(f"key_figures_{one}.csv")
        assert Counter(line["figure"] for line in lines) == Counter(expected.keys())
        for line in lines:
            check_spread(line, expected[line["figure"]], line["figure"])
        for name, group in itertools.groupby(
            made.lines(f"key_figures_{one}_by_run.csv"), lambda line: line["figure"]
        ):
            by_run = list(group)
            assert [line["run"] for line in by_run] == [f"seed {42 + k}" for k in range(len(by_run))]
            for line, value in zip(by_run, expected[name], strict=True):
                close(line["value"], value)


def test_epochs(made: Made) -> None:
    lines = iter(made.lines("epochs.csv"))
    for one, rule in itertools.product(made.sets(), "AB" if made.case.has_standstill else "A"):
        runs = made.runs(one)
        labels = ["mean curve", *(f"seed {42 + number}" for number in range(len(runs)))]
        for label, found in zip(labels, all_epochs(runs, rule), strict=True):
            for boundary, expected in found.items():
                line = next(lines)
                named = (line["set"], line["rule"], line["run"], line["boundary"])
                assert named == (one, rule, label, boundary)
                step, value = expected or (None, None)
                assert line["step"] == ("" if step is None else str(step)), line
                close(line["value"], value)
                assert bool(line["reason"]) == (expected is None), line
    assert next(lines, None) is None


PUBLISHED: dict[str, tuple[float, float | None]] = {
    "origin radius, step 0": (0.159387, 0.000143),
    "origin radius, step 1000": (0.525185, 0.022288),
    "centroid radius, step 0": (0.159365, 0.000143),
    "centroid radius, step 1000": (0.114290, 0.003882),
    "inhale: step of its end, each run": (2, 0),
    "inhale: depth, each run": (0.000862, 0.000194),
    "inhale: depth of the mean, as a part": (0.00541, None),
    "sneeze: peak speed of the mean": (0.005191, None),
    "sneeze: step of the peak": (24, None),
    "freeze: step, rule A on the mean": (393, None),
    "distance between runs, step 0": (13.765362, 0.014810),
    "distance between runs, step 1000": (45.727581, 3.319516),
    "distance from the start, step 1000": (31.457407, 1.360466),
    "ratio of the two, step 1000": (1.4536, None),
    "parting: largest growth per step": (0.454, None),
    "parting: step of that growth": (24, None),
    "loss, mean of 1000 steps": (7.11286, 0.014648),
}


def published(runs: list[Run]) -> dict[str, tuple[list[float], float | None, int]]:
    """Figure -> its values, or the one of all runs, what its spread is else taken from, and the count."""
    mean, *each = all_epochs(runs, "A")
    end = min(len(run.steps) for run in runs)
    steps = runs[0].steps[:end]
    found: dict[str, tuple[list[float], float | None, int]] = {}

    def stdev(values: list[float]) -> float | None:
        return statistics.stdev(values) if len(values) > 1 else None

    for step in (0, 1000):
        for name in ("origin_radius", "centroid_radius"):
            row = steps.index(step) if step in steps else None
            values = [] if row is None else [run.metrics[name][row] for run in runs]
            found[f"{name.replace('_', ' ')}, step {step}"] = values, None, len(values)
    ends = [one["inhale"] for one in each if one["inhale"]]
    found["inhale: step of its end, each run"] = [float(x[0]) for x in ends], None, len(ends)
    depths = [one["inhale"][1] * run.radius[0] for one, run in zip(each, runs, strict=True) if one["inhale"]]
    found["inhale: depth, each run"] = depths, None, len(depths)
    for name, boundary, what in (
        ("inhale: depth of the mean, as a part", "inhale", 1),
        ("sneeze: peak speed of the mean", "sneeze", 1),
        ("sneeze: step of the peak", "sneeze", 0),
        ("freeze: step, rule A on the mean", "freeze", 0),
    ):
        ours, values = mean[boundary], [float(one[boundary][what]) for one in each if one[boundary]]  # type: ignore[index]
        found[name] = [float(ours[what])] if ours else [], stdev(values), len(values) if ours else 0
    pairs = list(itertools.combinations(runs, 2))
    apart = [np.linalg.norm((a.W[:end] - b.W[:end]).reshape(end, -1), axis=1) for a, b in pairs]
    growth = np.diff(np.mean(apart, axis=0)) / np.diff(steps) if pairs else np.empty(0)
    found["parting: step of that growth"] = (
        ([float(steps[growth.argmax()])], None, len(pairs)) if len(growth) else ([], None, 0)
    )
    found["parting: largest growth per step"] = (
        ([float(growth.max())], None, len(pairs)) if len(growth) else ([], None, 0)
    )
    ratios, own = [], []
    for step in (0, 1000):
        values = [float(one[steps.index(step)]) for one in apart] if step in steps else []
        found[f"distance between runs, step {step}"] = values, None, len(values)
    if 1000 in steps and pairs:
        row = steps.index(1000)
        own = [float(np.linalg.norm(run.W[row] - run.W[0])) for run in runs]
        ratios = [float(np.mean([one[row] for one in apart]) / np.mean(own))]
    found["distance from the start, step 1000"] = own, None, len(own)
    found["ratio of the two, step 1000"] = ratios, None, len(pairs) if ratios else 0
    losses = [statistics.fmean(run.loss[1:]) for run in runs if run.steps[-1] == 1000]
    found["loss, mean of 1000 steps"] = losses, None, len(losses)
    return found


def test_published(made: Made) -> None:
    path = made.report / "published.csv"
    if not made.case.dead:
        assert not path.exists() or not made.lines("published.csv")
        return
    lines = {line["figure"]: line for line in made.lines("published.csv")}
    expected = published(made.runs("dead"))
    summed = {"distance between runs, step 0", "distance between runs, step 1000"}
    summed |= {"distance from the start, step 1000", "parting: largest growth per step"}
    assert lines.keys() == expected.keys()
    if len(made.case.dead) != 3699:
        expected |= dict.fromkeys(summed, ([], None, 0))
    for name, (values, scale, count) in expected.items():
        line, (theirs, std) = lines[name], PUBLISHED[name]
        mean = statistics.fmean(values) if values else None
        spread = statistics.stdev(values) if len(values) > 1 else None
        close(line["published_mean"], theirs)
        close(line["published_std"], std)
        close(line["mean"], mean)
        close(line["std"], spread)
        assert line["count"] == str(count), name
        unit = std or spread or scale
        close(line["difference_in_std"], None if mean is None or not unit else (mean - theirs) / unit)
        assert line["source"]


def spread_of(values: list[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of what there is."""
    there = [x for x in values if math.isfinite(x)]
    mean = statistics.fmean(there) if there else None
    return mean, statistics.stdev(there) if len(there) > 1 else None


def shortest(runs: list[Run]) -> list[int]:
    return runs[0].steps[: min(len(run.steps) for run in runs)]


def test_means_over_runs(made: Made) -> None:
    for one in made.sets():
        runs = made.runs(one)
        lines = made.lines(f"steps_{one}.csv")
        assert [int(line["step"]) for line in lines] == shortest(runs)
        for (row, line), name in itertools.product(enumerate(lines), runs[0].metrics):
            mean, std = spread_of([run.metrics[name][row] for run in runs])
            close(line[f"{name}_mean"], mean)
            close(line[f"{name}_std"], std)


def test_distances(made: Made) -> None:
    path = made.report / "distances.csv"
    if len(made.case.num_rows) == 1:
        assert not path.exists() or not made.lines("distances.csv")
        return
    lines = iter(made.lines("distances.csv"))
    for one in made.sets():
        runs = made.runs(one)
        for row, step in enumerate(shortest(runs)):
            line = next(lines)
            assert (line["set"], line["step"]) == (one, str(step))
            pairs = itertools.combinations(runs, 2)
            apart = [float(np.linalg.norm(a.W[row] - b.W[row])) for a, b in pairs]
            own = [float(np.linalg.norm(run.W[row] - run.W[0])) for run in runs]
            for name, values in (("distance", apart), ("evolution", own)):
                mean, std = spread_of(values)
                close(line[f"{name}_mean"], mean)
                close(line[f"{name}_std"], std)
            close(line["distance_least"], min(apart))
            close(line["distance_most"], max(apart))
            far = statistics.fmean(own)
            close(line["ratio"], statistics.fmean(apart) / far if far else None)
    assert next(lines, None) is None
