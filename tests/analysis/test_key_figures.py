"""Every table of a report, computed once more from the file's bytes: see `crossings` and `by_the_page`."""

import itertools
import math
import statistics
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.analysis.by_the_page import all_epochs, key_figures, published
from tests.analysis.crossings import CASES, DIM, Made, Run, close, lines_of, make, report


@pytest.fixture(scope="module", params=[*CASES, "the first of two", "the second of two"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("figures")
    if request.param in CASES:
        case = CASES[request.param]
        file = make(folder / "sample.safetensors", case)
        report(file, out=folder / "report")
        (group,) = {line["group"] for line in lines_of(folder / "report" / "epochs.csv")}
        return Made(case, file, folder / "report", group)
    cases = [CASES["bfloat16, steps skipped, some tokens, a run cut short"], CASES["no dead tokens"]]
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


def test_tokens(made: Made) -> None:
    lines = lines_of(made.report / f"tokens{made.suffix}.csv")
    case = made.case
    if not case.has_standstill:
        assert not lines
        return
    assert len(lines) == len(case.num_rows) * case.num_tokens
    for number, run in enumerate(made.runs("all")):
        with safe_open(made.file, framework="pt") as there:
            size = there.get_tensor(f"run_{number}_embeddings").abs()
        spacing = (torch.nextafter(size, torch.full_like(size, math.inf)).double() - size.double()).numpy()
        moved = np.abs(np.diff(run.W, axis=0)) / spacing[:-1]
        did = {
            "early": np.sqrt((moved**2).sum(axis=2)) > math.sqrt(DIM),
            "midlife": moved.max(axis=2) > 1,
            "late": (moved > 0).any(axis=2),
        }
        of_run = [line for line in lines if line["run"] == str(number)]
        for token, line, rests in zip(range(case.num_tokens), of_run, run.freeze_steps(), strict=True):
            assert line["label"] == f"seed {42 + number}"
            assert int(line["token"]) == (2 * token if case.is_part else token)
            assert line["dead"] == str(int(token in case.dead))
            ends = [
                max((run.steps[k + 1] for k in np.flatnonzero(rows[:, token])), default=0)
                for rows in did.values()
            ]
            found = [int(line[f"{name}_end"]) for name in did]
            assert found == [max(ends[: k + 1]) for k in range(3)]
            assert int(line["freeze_step"]) == (-1 if math.isinf(rests) else rests)


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


def check_spread(line: dict[str, str], values: list[float], name: str) -> None:
    there = [x for x in values if math.isfinite(x)]
    assert (line["num_reached"], line["num_runs"]) == (str(len(there)), str(len(values))), name
    close(line["mean"], statistics.fmean(there) if there else None)
    close(line["std"], statistics.stdev(there) if len(there) > 1 else None)
    close(line["least"], min(there, default=None))
    close(line["most"], max(there, default=None))


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


def test_published(made: Made) -> None:
    path = made.report / "published.csv"
    if not made.case.dead:
        assert not path.exists() or not made.lines("published.csv")
        return
    lines = {line["figure"]: line for line in made.lines("published.csv")}
    runs = made.runs("dead")
    expected, is_whole = published(runs), min(run.steps[-1] for run in runs) >= 1000
    summed = {"distance between runs, step 0", "distance between runs, step 1000"}
    summed |= {"distance from the start, step 1000", "parting: largest growth per step"}
    assert lines.keys() == expected.keys()
    if len(made.case.dead) != 3699:
        expected |= dict.fromkeys(summed, ([], 0))
    for name, (values, count) in expected.items():
        line, (theirs, std) = lines[name], PUBLISHED[name]
        mean = statistics.fmean(values) if values else None
        spread = statistics.stdev(values) if len(values) > 1 else None
        close(line["published_mean"], theirs)
        close(line["published_std"], std)
        close(line["mean"], mean)
        close(line["std"], spread)
        assert line["count"] == str(count), name
        unit = (std or spread) if is_whole else None
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
