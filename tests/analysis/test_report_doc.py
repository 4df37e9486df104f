"""docs/report.md says what the tables hold and how the epochs are found: held against both."""

import csv
import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flannel_pl
from flannel_pl.analysis.measuring.one_run import EVERY_SERIES, SCALARS
from flannel_pl.analysis.reporting.meanings import MEANINGS
from flannel_pl.analysis.statistics.epochs import rule_b
from tests.analysis.test_columns import KINDS, make

PAGE = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
KEY_FIGURES = PAGE.partition("## Key figures")[2].partition("\n## ")[0]


@pytest.mark.usefixtures("one_picture")
def test_every_column_of_every_table_is_on_the_page(tmp_path: Path) -> None:
    made = flannel_pl.report(make(tmp_path, KINDS[0]), out=tmp_path / "report")
    tables = sorted(made.page.parent.glob("*.csv"))
    assert len(tables) > 8
    absent = set()
    for table in tables:
        with table.open(newline="", encoding="utf-8") as file:
            header = next(csv.reader(file))
        if table.name.startswith("steps_"):
            header = [name.removesuffix("_mean").removesuffix("_std") for name in header]
        absent |= {f"{name} of {table.name}" for name in header if f"`{name}`" not in PAGE}
        if table.name.startswith("key_figures"):
            with table.open(newline="", encoding="utf-8") as file:
                figures = {part for line in csv.DictReader(file) for part in line["figure"].split(", ")}
            absent |= {f"{part} of {table.name}" for part in figures if part not in KEY_FIGURES}
    assert not absent


def test_every_name_means_on_the_page_what_the_report_says() -> None:
    known = {*EVERY_SERIES, *SCALARS, "lift-off step", "freeze step", "fraction of tokens still moving"}
    assert MEANINGS.keys() == known
    tables = [line for line in PAGE.splitlines() if line.startswith("| `")]
    for name, words in MEANINGS.items():
        named = re.compile(rf"`{re.escape(name)}(, [^`]+)?`")
        rows = [line for line in tables if named.search(line.split(" | ")[0]) and words in line]
        assert len(rows) == 1, name


def box_mean(values: list[float], width: int) -> list[float]:
    """The mean over a centred box, over what there is of it."""
    means = []
    for k in range(len(values)):
        box = [values[i] for i in range(k - width // 2, k + width // 2 + 1) if 0 <= i < len(values)]
        there = [x for x in box if not math.isnan(x)]
        means.append(math.fsum(there) / len(there) if there and not math.isnan(values[k]) else math.nan)
    return means


def re_expansion(
    radius: list[float], steps: list[int], frozen: list[float], skipped: list[bool]
) -> tuple[int, float] | None:
    """Rule B, word by word from the page: the step and the value."""
    apart = [after - before for before, after in itertools.pairwise(steps)]
    growth = [
        math.nan if skips else (after - before) / step
        for (before, after), step, skips in zip(itertools.pairwise(radius), apart, skipped[1:], strict=True)
    ]
    there = [k for k, x in enumerate(growth) if not math.isnan(x)]
    sneeze = max(there, key=lambda k: growth[k])
    if growth[sneeze] <= 0 or sneeze in (there[0], there[-1]):
        return None
    freezes = [k for k in range(sneeze + 1, len(frozen)) if frozen[k] > 0.9]
    end = freezes[0] if freezes and freezes[0] < len(frozen) - 1 else len(radius) - 1
    width = 5 // max(apart)
    width += width % 2 == 0
    smooth = box_mean(box_mean(growth, width), width)
    window = list(range(sneeze, end))
    inside = [k for k in window if not math.isnan(smooth[k])]
    if len(window) < 10 or not inside:
        return None
    least = min(inside, key=lambda k: smooth[k])
    reached = max(smooth[k] for k in inside if k >= least)
    if least > window[-1] - 5 or reached < 2 * max(smooth[least], 0) + 0.01 * growth[sneeze]:
        return None
    return steps[least], reached


@pytest.mark.parametrize("every", [1, 2, 3, 7])
@pytest.mark.parametrize("skips", [False, True])
def test_re_expansion_is_what_the_page_says(every: int, skips: bool) -> None:
    draw: Any = np.random.default_rng(every)
    found = []
    for _ in range(60):
        steps = np.arange(0, 120 * every, every)
        growth = np.exp(-(((steps / every - 12) / 8) ** 2)) + draw.uniform(0, 0.6) * np.exp(
            -(((steps / every - draw.uniform(40, 110)) / draw.uniform(4, 20)) ** 2)
        )
        radius = 1 + np.cumsum(growth + draw.normal(0, draw.choice([0, 1e-3, 0.05]), len(steps)))
        frozen = np.where(np.arange(len(steps)) > draw.integers(10, 200), 0.95, 0.1)
        skipped = draw.random(len(steps)) < 0.1 if skips else np.zeros(len(steps), bool)
        if skips:
            for row in np.flatnonzero(skipped[1:]) + 1:
                radius[row] = radius[row - 1]
        epochs = rule_b(radius, frozen, steps, skipped_R=skipped)
        expected = re_expansion(radius.tolist(), steps.tolist(), frozen.tolist(), skipped.tolist())
        if expected is None:
            assert epochs.re_expansion.step is None
        else:
            assert epochs.re_expansion.step == expected[0], epochs.re_expansion.reason
            assert epochs.re_expansion.value == pytest.approx(expected[1], rel=1e-9)
        found.append(expected)
    assert 5 < sum(one is not None for one in found) < 60
